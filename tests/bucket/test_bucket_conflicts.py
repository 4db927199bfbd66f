"""A store that says "conflict", "refused" or "done" means it of that moment, not for ever."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kachery_p2p.bucket import layout
from kachery_p2p.bucket.credentials import find_credentials
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.pushing import Pushed, push
from kachery_p2p.bucket.queue import DONE, REQUESTED, WAITING, UploadQueue
from kachery_p2p.bucket.uploads import Uploads
from kachery_p2p.bucket.urls import parse_bucket_url
from kachery_p2p.channels.bucket_settings import BucketSettings
from kachery_p2p.errors import BucketAnswerError, BucketBusyError
from kachery_p2p.limits import BUCKET_PROVIDER_S
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.index import Index
from tests.bucket import faulty as faults
from tests.bucket.faulty import Faulty

SMALL, LARGE = b"small" * 100, bytes(range(256)) * 4096 * 9
KEY = "sha1/x"
LAB = "1a" * 32


@pytest.fixture(autouse=True)
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kachery_p2p.bucket.objects.BUCKET_WRITE_RETRIES_MAX", 0)


@pytest.fixture
def blobs(tmp_path: Path) -> Iterator[BlobStore]:
    (tmp_path / "state").mkdir()
    index = Index(str(tmp_path / "state/index.db"))
    store = BlobStore(str(tmp_path / "store"), index, 0)
    yield store
    store.close()
    index.close()


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[UploadQueue]:
    opened = UploadQueue(str(tmp_path / "uploads.db"))
    yield opened
    opened.close()


@pytest.fixture
def keys(tmp_path: Path) -> str:
    """What names a file with credentials, which the faulty server does not look at."""
    path = tmp_path / "keys.toml"
    path.touch(0o600)
    path.write_text('access_key_id = "a"\nsecret_access_key = "b"\n')
    return f"file:{path}"


@pytest.fixture
def bucket(faulty: Faulty, keys: str) -> Objects:
    url = parse_bucket_url(f"s3://lab/k?endpoint={faulty.url}")
    return Objects(url, find_credentials(keys, "s3", {}))


@pytest.fixture
def uploads(faulty: Faulty, keys: str, blobs: BlobStore, queue: UploadQueue) -> Uploads:
    settings = BucketSettings((f"s3://lab/k?endpoint={faulty.url}",), credentials=keys)
    faulty.put(f"/lab/k/{layout.MARKER}", f"{LAB}\n".encode())
    return Uploads(settings, LAB, blobs, queue)


def conflict(status: int = 409, *, faster: tuple[str, bytes] | None = None) -> faults.Fault:
    """Nothing may be written. With `faster` another has written this meanwhile."""

    def fault(server: Faulty, request: faults.Request, connection: socket.socket) -> bool:
        if request.method not in ("PUT", "POST"):
            return False
        if faster is not None:
            server.put(*faster)
        said = b"<Error><Code>ConditionalRequestConflict</Code></Error>"
        faults.send(connection, status, said, request=request)
        return True

    return fault


# --- two who write at once -----------------------------------------------------------------------


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "in parts"])
def test_a_conflict_is_no_upload_and_is_tried_again(
    uploads: Uploads, faulty: Faulty, blobs: BlobStore, queue: UploadQueue, data: bytes
) -> None:
    content = blobs.put_bytes(data).content
    queue.add(uploads.place, [content], REQUESTED)
    faulty.fault = conflict()
    assert not uploads.put(uploads.due(1)[0])
    row = queue.of(uploads.place, content)
    assert row is not None and (row.state, row.tries) == (WAITING, 1)
    assert row.said is not None and "409" in row.said


def test_a_conflict_is_an_error_of_the_bucket_whatever_is_written(
    bucket: Objects, faulty: Faulty
) -> None:
    faulty.put(f"/lab/k/{KEY}", b"before")
    faulty.fault = conflict()
    with pytest.raises(BucketBusyError):
        bucket.put("other", b"data")
    with pytest.raises(BucketBusyError):
        bucket.put_new("other", b"data", {})
    with pytest.raises(BucketBusyError):
        bucket.put_large("other", iter([LARGE]), len(LARGE), {})
    assert not bucket.put_new(KEY, b"data", {}), "this one is there"


@pytest.mark.parametrize("status", [409, 412])
def test_what_another_was_faster_to_put_there_is_judged(
    bucket: Objects, faulty: Faulty, blobs: BlobStore, status: int
) -> None:
    content = blobs.put_bytes(SMALL).content
    path = f"/lab/k/{layout.key_of(content)}"
    faulty.fault = conflict(status, faster=(path, b"something else"))
    with pytest.raises(BucketAnswerError):
        push(bucket, blobs, content)
    del faulty.objects[path]
    faulty.fault = conflict(status, faster=(path, SMALL))
    assert push(bucket, blobs, content) == Pushed(len(SMALL), sent=False)


# --- credentials that are renewed ----------------------------------------------------------------


def test_credentials_that_were_refused_are_not_held_to_be_bad_for_ever(
    uploads: Uploads,
    faulty: Faulty,
    blobs: BlobStore,
    queue: UploadQueue,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue.add(uploads.place, [blobs.put_bytes(SMALL).content], REQUESTED)
    seen = [uploads.is_refused]
    faulty.fault = faults.status(403)
    assert not uploads.put(uploads.due(1)[0])
    seen.append(uploads.is_refused)
    later = time.monotonic() + BUCKET_PROVIDER_S
    with monkeypatch.context() as patched:
        patched.setattr(time, "monotonic", lambda: later)
        seen.append(uploads.is_refused)
    assert seen == [False, True, False]


# --- what was taken out of the bucket ------------------------------------------------------------


def test_what_is_asked_for_again_is_put_there_again_if_it_was_taken_out(
    memory_bucket: Objects, blobs: BlobStore, queue: UploadQueue
) -> None:
    uploads = Uploads(BucketSettings((str(memory_bucket.url),)), LAB, blobs, queue)
    content = blobs.put_bytes(SMALL).content
    for _ in range(2):
        queue.add(uploads.place, [content], REQUESTED)
        assert uploads.put(uploads.due(1)[0])
        row = queue.of(uploads.place, content)
        assert row is not None and row.state == DONE
        assert memory_bucket.look(content) is not None
        memory_bucket.delete(layout.key_of(content))
