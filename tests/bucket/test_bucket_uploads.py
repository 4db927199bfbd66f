"""The way into a bucket: a queue that outlives its node, and nothing twice, partial or wrong."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from kachery_p2p.bucket import layout
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.pushing import Pace, push
from kachery_p2p.bucket.queue import DONE, LEFT_OUT, MIRRORED, REQUESTED, WAITING, UploadQueue
from kachery_p2p.bucket.uploads import Uploads
from kachery_p2p.bucket.verifying import garbage, verify
from kachery_p2p.channels.bucket_settings import (
    BucketSettings,
    read_bucket,
    remove_bucket,
    write_bucket,
)
from kachery_p2p.channels.channel import generate_secret
from kachery_p2p.channels.channel_file import parse_channel_file
from kachery_p2p.channels.files import join_shared, leave
from kachery_p2p.channels.joined import bucket_path
from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.content.manifests import RootObject
from kachery_p2p.errors import (
    BucketAnswerError,
    BucketReadOnlyError,
    ConfigError,
    CorruptObjectError,
    KacheryError,
    StateCorruptError,
    StateVersionError,
    UnknownChannelError,
)
from kachery_p2p.limits import BUCKET_PART_BYTES, CHUNK_BYTES, UPLOAD_RETRY_S_MAX
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.index import Index

SMALL, LARGE = b"small" * 100, bytes(range(256)) * 4096 * 9
LAB, OTHER = "1a" * 32, "2b" * 32


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
def place(memory_bucket: Objects) -> str:
    return str(memory_bucket.url)


@pytest.fixture
def uploads(place: str, blobs: BlobStore, queue: UploadQueue) -> Uploads:
    return Uploads(BucketSettings((place,)), LAB, blobs, queue)


# --- one content ---------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"x", SMALL, LARGE], ids=["0", "1", "500", "9M"])
def test_what_is_pushed_is_there_whole_with_what_verifies_its_parts(
    any_bucket: Objects, blobs: BlobStore, data: bytes
) -> None:
    stored = blobs.put_bytes(data)
    assert push(any_bucket, blobs, stored.content, "x.csv") == (len(data), True)
    assert b"".join(any_bucket.read(stored.content, 0, len(data))) == data
    found = any_bucket.look(stored.content)
    assert found is not None
    if any_bucket.url.scheme != "file":
        assert (found.root, found.label) == (stored.root, "x.csv")
    if len(data) > CHUNK_BYTES:
        start, end = layout.root_object_span(len(data))
        read = any_bucket.read_tables(stored.root, start, end)
        assert RootObject.decode(read).root == stored.root


def test_nothing_is_pushed_twice(memory_bucket: Objects, blobs: BlobStore) -> None:
    for data in (SMALL, LARGE):
        content = blobs.put_bytes(data).content
        sent: list[int] = []
        assert push(memory_bucket, blobs, content, None, sent.append).sent
        assert sum(sent) == len(data)
        assert not push(memory_bucket, blobs, content, None, sent.append).sent
        assert sum(sent) == len(data)


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "in parts"])
def test_a_file_that_is_not_what_it_was_is_not_pushed(
    memory_bucket: Objects, blobs: BlobStore, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = blobs.put_bytes(data)
    # As if the disk gave other bytes than those that were hashed.
    wrong = blobs.open_verified(blobs.put_bytes(data[:-1] + b"!").content)
    with wrong, blobs.open_verified(stored.content) as right:
        swapped = right._replace(descriptor=wrong.descriptor)
        monkeypatch.setattr(type(right), "close", lambda self: None)
        monkeypatch.setattr(blobs, "open_verified", lambda content: swapped)
        with pytest.raises(CorruptObjectError):
            push(memory_bucket, blobs, stored.content)
        monkeypatch.undo()
    assert memory_bucket.look(stored.content) is None


def test_other_bytes_under_the_name_are_noticed(memory_bucket: Objects, blobs: BlobStore) -> None:
    content = blobs.put_bytes(SMALL).content
    memory_bucket.put_new(layout.key_of(content), b"other", {})
    with pytest.raises(BucketAnswerError):
        push(memory_bucket, blobs, content)


def test_a_pace_holds_for_all_threads_together() -> None:
    pace, started = Pace(1_000_000), time.monotonic()

    def send() -> None:
        for _ in range(5):
            pace(20_000)

    threads = [Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The last piece is not waited for.
    assert time.monotonic() - started >= 0.37


# --- the queue -----------------------------------------------------------------------------------


def test_the_queue_survives_and_forgets_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "uploads.db")
    contents = [sha1_of(bytes([number])) for number in range(10)]
    first = UploadQueue(path)
    assert first.add("a", contents, MIRRORED) == 10
    assert first.add("a", contents, MIRRORED) == 0
    assert first.add("b", contents[:1], MIRRORED) == 1
    first.done(first.due("a", 0.0, 1)[0], 1)
    first.close()
    second = UploadQueue(path)
    assert second.counts("a") == (9, 0, 1, 0, None)
    assert len(second.due("a", 0.0, 100)) == 9
    second.close()


def test_a_failed_upload_waits_longer_each_time(queue: UploadQueue) -> None:
    content = sha1_of(SMALL)
    queue.add("a", [content], MIRRORED)
    waits = []
    now = 1_000.0
    for _ in range(15):
        (upload,) = queue.due("a", now, 1)
        queue.failed(upload, "the server is down", now)
        failed = queue.of("a", content)
        assert failed is not None
        assert queue.due("a", failed.next_at - 0.1, 1) == []
        waits.append(failed.next_at - now)
        now = failed.next_at
    assert waits[:4] == [2, 4, 8, 16]
    assert waits[-1] == UPLOAD_RETRY_S_MAX
    assert queue.counts("a") == (1, 1, 0, 0, "the server is down")


def test_what_a_server_asks_for_is_waited_for(queue: UploadQueue) -> None:
    queue.add("a", [sha1_of(SMALL)], MIRRORED)
    (upload,) = queue.due("a", 0.0, 1)
    queue.failed(upload, "busy", 1_000.0, rest_s=500.0)
    assert queue.due("a", 1_499.0, 1) == []
    assert len(queue.due("a", 1_501.0, 1)) == 1


def test_whoever_asks_is_not_kept_waiting_by_earlier_failures(queue: UploadQueue) -> None:
    content = sha1_of(SMALL)
    queue.add("a", [content], MIRRORED)
    (upload,) = queue.due("a", 0.0, 1)
    queue.failed(upload, "down", 1_000.0)
    queue.add("a", [content], REQUESTED)
    (again,) = queue.due("a", 0.0, 1)
    assert (again.why, again.tries) == (REQUESTED, 0)
    queue.done(again, 5)
    queue.add("a", [content], MIRRORED)
    assert queue.due("a", 1e12, 1) == [], "it is there"
    queue.add("a", [content], REQUESTED)
    assert len(queue.due("a", 0.0, 1)) == 1, "it may have been taken out since"


def test_a_damaged_queue_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "uploads.db"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StateCorruptError) as damaged:
        UploadQueue(str(path)).counts("a")
    assert damaged.value.hint


# --- queue and bucket ----------------------------------------------------------------------------


def test_what_is_due_is_put_there_once(
    uploads: Uploads, blobs: BlobStore, queue: UploadQueue
) -> None:
    contents = [blobs.put_bytes(data).content for data in (SMALL, LARGE)]
    queue.add(uploads.place, contents, MIRRORED)
    for upload in uploads.due(10):
        assert uploads.put(upload)
    assert uploads.due(10) == []
    assert queue.counts(uploads.place).done == 2
    assert {checked.good for checked in verify(uploads.bucket)} == {True}


def test_limits_of_size_leave_out_what_is_mirrored_and_not_what_is_asked_for(
    place: str, blobs: BlobStore, queue: UploadQueue
) -> None:
    limited = Uploads(BucketSettings((place,), size_min=10, size_max=1_000), LAB, blobs, queue)
    tiny, fits, huge = (blobs.put_bytes(data).content for data in (b"tiny", SMALL, LARGE))
    queue.add(limited.place, [tiny, fits, huge], MIRRORED)
    for upload in limited.due(10):
        assert limited.put(upload)
    states = [queue.of(limited.place, content) for content in (tiny, fits, huge)]
    assert [one and one.state for one in states] == [LEFT_OUT, DONE, LEFT_OUT]
    queue.add(limited.place, [huge], REQUESTED)
    assert limited.put(limited.due(1)[0])
    assert limited.bucket.look(huge) is not None


def test_what_is_gone_from_the_store_is_left_out(uploads: Uploads, queue: UploadQueue) -> None:
    content = sha1_of(b"never stored")
    queue.add(uploads.place, [content], MIRRORED)
    assert uploads.put(uploads.due(1)[0])
    left = queue.of(uploads.place, content)
    assert left is not None and left.state == LEFT_OUT and left.said


def test_a_second_channel_puts_nothing_under_the_prefix(
    uploads: Uploads, place: str, blobs: BlobStore, queue: UploadQueue
) -> None:
    content = blobs.put_bytes(SMALL).content
    queue.add(uploads.place, [content], MIRRORED)
    assert uploads.put(uploads.due(1)[0])
    second = Uploads(BucketSettings((place,)), OTHER, blobs, queue)
    other = blobs.put_bytes(b"of the other channel").content
    queue.add(second.place, [other], REQUESTED)
    assert not second.put(second.due(1)[0])
    waiting = queue.of(second.place, other)
    assert waiting is not None and waiting.state == WAITING
    assert waiting.said is not None and "another channel" in waiting.said
    assert second.bucket.look(other) is None


def test_nothing_is_put_where_it_is_only_read(
    place: str, blobs: BlobStore, queue: UploadQueue
) -> None:
    for settings in (
        BucketSettings(("https://example.org/lab",)),
        BucketSettings((place,), mirror="none"),
    ):
        with pytest.raises(BucketReadOnlyError):
            Uploads(settings, LAB, blobs, queue)


# --- looking after a bucket ---------------------------------------------------------------------


def test_verifying_finds_what_is_not_what_its_name_says(
    any_bucket: Objects, blobs: BlobStore
) -> None:
    good = [blobs.put_bytes(bytes([number]) * 1000).content for number in range(20)]
    for content in good:
        push(any_bucket, blobs, content)
    bad = sha1_of(b"what it should be")
    any_bucket.put_new(layout.key_of(bad), b"what it is", {})
    any_bucket.put_new("sha1/README", b"no content", {})
    assert {one.content for one in verify(any_bucket) if not one.good} == {bad}
    assert len(list(verify(any_bucket))) == 21
    assert 0 < len(list(verify(any_bucket, 0.5, random.Random(1)))) < 21


def test_only_what_belongs_to_nothing_and_is_old_is_garbage(
    memory_bucket: Objects, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, gone = (blobs.put_bytes(data) for data in (LARGE, LARGE + b"!"))
    for stored in (kept, gone):
        push(memory_bucket, blobs, stored.content)
    memory_bucket.delete(layout.key_of(gone.content))
    memory_bucket.put_new(".kachery-p2p-probe/left", b"", {})
    assert list(garbage(memory_bucket)) == [], "it may belong to an upload that goes on"
    monkeypatch.setattr("kachery_p2p.bucket.verifying._YOUNG_S", -60.0)
    found = {one.key for one in garbage(memory_bucket)}
    assert found == {layout.tables_key(gone.root), ".kachery-p2p-probe/left"}


# --- settings ------------------------------------------------------------------------------------


@pytest.fixture
def config_dir(tmp_path: Path) -> str:
    path = tmp_path / "config"
    path.mkdir(mode=0o700)
    join_shared(str(path), "lab", generate_secret(b"L" * 20))
    return str(path)


def test_settings_are_remembered_privately_until_they_are_removed(config_dir: str) -> None:
    told = BucketSettings(
        ("s3://lab/x?endpoint=https://s3.example.org",),
        "requested",
        "file:/home/me/keys",
        1,
        2,
        3,
    )
    assert read_bucket(config_dir, "lab") is None
    write_bucket(config_dir, "lab", told)
    assert read_bucket(config_dir, "lab") == told
    assert Path(bucket_path(config_dir, "lab")).stat().st_mode & 0o777 == 0o600
    assert remove_bucket(config_dir, "lab")
    assert not remove_bucket(config_dir, "lab")
    assert read_bucket(config_dir, "lab") is None
    with pytest.raises(UnknownChannelError):
        write_bucket(config_dir, "other", told)


def test_whoever_leaves_a_channel_forgets_its_bucket(config_dir: str) -> None:
    write_bucket(config_dir, "lab", BucketSettings(("memory:x",)))
    leave(config_dir, "lab")
    assert not Path(bucket_path(config_dir, "lab")).exists()


@pytest.mark.parametrize(
    "wrong",
    [
        BucketSettings(()),
        BucketSettings(('memory:"x',)),
        BucketSettings(("memory:x\ny",)),
        BucketSettings(("memory:x",), mirror="all"),
        BucketSettings(("memory:x",), credentials="AKIAKEY"),
        BucketSettings(("memory:x",), credentials="file:relative"),
        BucketSettings(("memory:x",), size_max=-1),
        BucketSettings(tuple(f"https://a{n}.example" for n in range(9))),
    ],
)
def test_settings_that_make_no_sense_are_not_written(
    config_dir: str, wrong: BucketSettings
) -> None:
    with pytest.raises(ConfigError):
        write_bucket(config_dir, "lab", wrong)
    assert read_bucket(config_dir, "lab") is None


@pytest.mark.parametrize("text", ["[", "version = 1", 'version = 1\nurls = "x"', "urls = []"])
def test_damaged_settings_are_said_to_be(config_dir: str, text: str) -> None:
    path = Path(bucket_path(config_dir, "lab"))
    path.touch(0o600)
    path.write_text(text)
    with pytest.raises(StateCorruptError):
        read_bucket(config_dir, "lab")
    path.write_text("version = 99\nwhatever = 1\n")
    with pytest.raises(StateVersionError):
        read_bucket(config_dir, "lab")


def test_a_channel_file_may_name_a_bucket_and_never_credentials() -> None:
    start = 'kind = "shared-secret"\nname = "lab"\n[bucket]\n'
    bucket = parse_channel_file(f'{start}url = "s3://lab/x"\nmirror = "none"', "lab.toml").bucket
    assert bucket == BucketSettings(("s3://lab/x",), "none")
    for wrong in (
        'url = "s3://lab/x"\ncredentials = "none"',
        'mirror = "none"',
        "url = 1",
        'url = "s3://lab/x"\nmirror = 1',
    ):
        with pytest.raises(KacheryError):
            parse_channel_file(start + wrong, "lab.toml")


def test_large_means_larger_than_a_part() -> None:
    assert len(LARGE) > BUCKET_PART_BYTES
