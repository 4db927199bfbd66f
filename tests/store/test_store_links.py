"""Linked files stand for objects while they keep their bytes, and not a moment longer."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.content.hashes import ContentHash, sha1_of
from kachery_p2p.errors import (
    HashCollisionError,
    LinkChangedError,
    NotFoundError,
    SourceFileError,
)
from kachery_p2p.limits import CHUNK_BYTES
from kachery_p2p.store import objects
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.hashing import hash_bytes
from kachery_p2p.store.index import Index
from kachery_p2p.store.paths import old_link_paths

DATA = hashlib.shake_128(b"link").digest(2 * CHUNK_BYTES + 5)
CONTENT = sha1_of(DATA)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "user" / "recording.dat"
    path.parent.mkdir()
    path.write_bytes(DATA)
    return path


def content_of(store: BlobStore, content: ContentHash) -> bytes:
    with store.open_verified(content) as opened:
        assert opened.root_object == hash_bytes(DATA).root_object
        return os.pread(opened.descriptor, opened.root_object.size, 0)


def test_a_linked_file_is_found_opened_and_copied_without_being_stored(
    store: BlobStore, file: Path, tmp_path: Path
) -> None:
    linked = store.link_file(file)
    assert linked == (CONTENT, hash_bytes(DATA).root, len(DATA), str(file))
    assert store.find(CONTENT) == store.local_path(CONTENT) == str(file)
    assert store.known(CONTENT) == hash_bytes(DATA).root_object
    assert store.page(CONTENT, 0) == hash_bytes(DATA).pages[0]
    assert store.pinned_root(CONTENT) == linked.root
    assert content_of(store, CONTENT) == DATA
    assert Path(store.copy_to(CONTENT, f"{tmp_path}/copy")).read_bytes() == DATA
    assert not os.path.exists(store.directory)
    assert [tuple(one) for one in store.list_objects()] == [(CONTENT, len(DATA), str(file), True)]


def test_a_link_outlives_its_process_and_the_index(store: BlobStore, file: Path) -> None:
    store.link_file(file)
    store.close()
    index = Index(f"{file.parent}/../config/state/index.db")
    assert content_of(BlobStore(store.directory, index, 0), CONTENT) == DATA
    index.close()
    for name in os.listdir(f"{file.parent}/../config/state"):
        if name.startswith("index.db"):
            os.unlink(f"{file.parent}/../config/state/{name}")
    again = BlobStore(store.directory, index, 0)
    assert again.known(CONTENT) is None
    assert content_of(again, CONTENT) == DATA
    assert again.known(CONTENT) is not None
    again.close()
    index.close()


def test_linking_and_opening_again_reads_nothing(
    store: BlobStore, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked = store.link_file(file)
    monkeypatch.setattr(objects, "hash_file", None)
    assert store.link_file(str(file)) == linked
    store.open_verified(CONTENT).close()


def touched(path: Path) -> None:
    os.utime(path, (1, 1))


def rewritten(path: Path) -> None:
    path.unlink()
    path.write_bytes(DATA)


@pytest.mark.parametrize("change", [touched, rewritten])
def test_a_change_that_keeps_the_bytes_keeps_the_link(
    store: BlobStore, file: Path, change: Callable[[Path], None]
) -> None:
    store.link_file(file)
    change(file)
    assert store.known(CONTENT) is None
    assert content_of(store, CONTENT) == DATA
    assert store.known(CONTENT) is not None


def flipped(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(CHUNK_BYTES)
        file.write(bytes([DATA[CHUNK_BYTES] ^ 1]))


def flipped_in_secret(path: Path) -> None:
    status = os.stat(path)
    flipped(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def grown(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def emptied(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("change", [flipped, flipped_in_secret, grown, emptied])
@pytest.mark.parametrize("way", ["open_verified", "local_path", "verify"])
def test_other_content_ends_the_link_with_an_error(
    store: BlobStore, file: Path, change: Callable[[Path], None], way: str
) -> None:
    store.link_file(file)
    change(file)
    assert store.known(CONTENT) is None
    with pytest.raises(LinkChangedError, match="has other content now") as caught:
        getattr(store, way)(CONTENT)
    assert caught.value.hint
    assert store.find(CONTENT) is None
    with pytest.raises(NotFoundError, match="is not stored in"):
        getattr(store, way)(CONTENT)
    assert file.exists()


def test_a_file_that_is_gone_may_come_back(store: BlobStore, file: Path) -> None:
    store.link_file(file)
    file.rename(f"{file}.away")
    assert store.find(CONTENT) is None
    with pytest.raises(NotFoundError, match="was linked to .*, which is not there"):
        store.open_verified(CONTENT)
    Path(f"{file}.away").rename(file)
    assert content_of(store, CONTENT) == DATA


def test_a_stored_copy_stands_before_the_link(store: BlobStore, file: Path) -> None:
    store.link_file(file)
    stored = store.put_file(file)
    flipped(file)
    assert store.find(CONTENT) == store.local_path(CONTENT) == stored.path
    assert content_of(store, CONTENT) == DATA
    os.unlink(stored.path)
    with pytest.raises(LinkChangedError):
        store.open_verified(CONTENT)


def test_linking_what_is_stored_keeps_both(store: BlobStore, file: Path) -> None:
    stored = store.put_file(file)
    store.link_file(file)
    assert store.known(CONTENT) is not None
    os.unlink(stored.path)
    assert content_of(store, CONTENT) == DATA


def test_to_remove_a_link_leaves_the_file(store: BlobStore, file: Path) -> None:
    store.link_file(file)
    assert store.remove(CONTENT) == 0
    assert file.read_bytes() == DATA
    assert store.find(CONTENT) is None
    with pytest.raises(NotFoundError):
        store.remove(CONTENT)


def test_what_is_no_file_is_not_linked(store: BlobStore, tmp_path: Path) -> None:
    for name in ("missing", "."):
        with pytest.raises(SourceFileError):
            store.link_file(tmp_path / name)


def test_a_forged_file_is_not_linked(store: BlobStore, index: Index, file: Path) -> None:
    index.remember(CONTENT, os.stat("/"), hash_bytes(b"other"))
    with pytest.raises(HashCollisionError):
        store.link_file(file)


def test_a_link_that_became_a_pipe_is_not_waited_for(store: BlobStore, file: Path) -> None:
    store.link_file(file)
    file.unlink()
    os.mkfifo(file)
    assert store.find(CONTENT) is None
    with pytest.raises(NotFoundError):
        store.open_verified(CONTENT)


def test_damaged_links_are_kept_aside(
    store: BlobStore, file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.link_file(file)
    store.close()
    state = tmp_path / "config" / "state"
    (state / "links.db").write_bytes(b"noise" * 5_000)
    assert store.find(CONTENT) is None
    assert "link your files again" in caplog.text
    store.link_file(file)
    assert store.find(CONTENT) == str(file)
    assert [name for name in os.listdir(state) if "links.db.damaged" in name]


# --- the links of older packages ---------------------------------------------------------


def p2p_form(path: str) -> dict[str, Any]:
    status = {"size": len(DATA), "mtime": 1_600_000_000.5}
    return {"path": path, "manifest_hash": "ab" * 20, "stat": status}


def daemon_form(path: str) -> dict[str, Any]:
    status = {"size": len(DATA), "mtime": 1_600_000_000_500}
    return {"path": path, "manifestSha1": "ab" * 20, "stat": status, "_writingProcess": "x"}


def cloud_form(path: str) -> dict[str, Any]:
    return {"path": path, "size": len(DATA), "mtime": 1_600_000_000.5, "sha1": CONTENT}


def plant(store: BlobStore, text: str, which: int = 0) -> Path:
    path = Path(old_link_paths(store.directory, CONTENT)[which])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("form", [p2p_form, daemon_form, cloud_form])
def test_links_of_older_packages_are_hashed_once_and_then_used(
    store: BlobStore, file: Path, form: Callable[[str], dict[str, Any]]
) -> None:
    note = plant(store, json.dumps(form(str(file))), which=int(form is cloud_form))
    assert store.find(CONTENT) == str(file)
    assert store.known(CONTENT) is None
    assert content_of(store, CONTENT) == DATA
    assert store.known(CONTENT) is not None
    assert store.local_path(CONTENT) == str(file)
    flipped(file)
    with pytest.raises(NotFoundError):
        store.open_verified(CONTENT)
    assert note.exists()


def test_an_old_link_to_something_else_is_read_only_once(
    store: BlobStore, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flipped(file)
    plant(store, json.dumps(p2p_form(str(file))))
    with pytest.raises(NotFoundError):
        store.open_verified(CONTENT)
    monkeypatch.setattr(objects, "hash_file", None)
    with pytest.raises(NotFoundError):
        store.open_verified(CONTENT)


BAD_NOTES = [
    "",
    "null",
    "[]",
    "{",
    "[" * 50_000,
    '{"path": 5, "size": 5}',
    '{"path": "relative", "size": 5}',
    '{"path": "/nul\\u0000", "size": 5}',
    '{"path": "/dev/zero", "size": 0}',
    '{"path": "/etc", "size": 4096}',
    '{"path": "/etc/passwd", "size": true}',
    '{"path": "/etc/passwd", "stat": 5}',
    '{"path": "/etc/passwd", "size": 1e999}',
    '{"path": "/etc/passwd", "size": 5, "sha1": "' + "0" * 40 + '"}',
    " " * 70_000 + "{}",
]


@pytest.mark.parametrize("text", BAD_NOTES)
@pytest.mark.parametrize("which", [0, 1])
def test_a_bad_note_of_an_old_link_is_as_good_as_none(
    store: BlobStore, text: str, which: int
) -> None:
    plant(store, text, which)
    assert store.find(CONTENT) is None
    with pytest.raises(NotFoundError):
        store.open_verified(CONTENT)


def test_to_remove_an_old_link_removes_the_note(store: BlobStore, file: Path) -> None:
    notes = [
        plant(store, json.dumps(form(str(file))), n)
        for n, form in enumerate((p2p_form, cloud_form))
    ]
    store.remove(CONTENT)
    assert not any(note.exists() for note in notes)
    assert file.exists()
