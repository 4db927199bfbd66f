"""Values of one chunk: the short way into the store, and when it is not taken."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from kachery_p2p.content.hashes import ContentHash, sha1_of
from kachery_p2p.errors import HashCollisionError, StorageFullError
from kachery_p2p.limits import CHUNK_BYTES
from kachery_p2p.store import intake, small
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.durable import rename_new
from kachery_p2p.store.hashing import hash_bytes
from kachery_p2p.store.index import Index
from kachery_p2p.store.paths import blob_path
from kachery_p2p.store.small import SmallObjects


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each value that was offered to the short way, whether it went there."""
    told: list[bool] = []
    really = SmallObjects.put

    def put(*args: object) -> object:
        stored = really(*args)  # type: ignore[arg-type]
        told.append(stored is not None)
        return stored

    monkeypatch.setattr(SmallObjects, "put", put)
    return told


def test_a_new_value_goes_the_short_way_and_is_known(store: BlobStore, taken: list[bool]) -> None:
    stored = store.put_bytes(b"value")
    assert taken == [True]
    assert stored == (sha1_of(b"value"), hash_bytes(b"value").root, 5, stored.path)
    assert Path(stored.path).read_bytes() == b"value"
    assert os.stat(stored.path).st_mode & 0o777 == 0o444
    assert store.known(stored.content) == hash_bytes(b"value").root_object
    assert os.listdir(f"{store.directory}/.tmp") == []


@pytest.mark.parametrize("size", [0, CHUNK_BYTES + 1])
def test_what_is_not_one_chunk_is_not_offered(
    store: BlobStore, taken: list[bool], size: int
) -> None:
    assert store.put_bytes(bytes(size)).size == size
    assert taken == []


def test_a_value_that_is_stored_is_not_written_again(store: BlobStore, taken: list[bool]) -> None:
    first = store.put_bytes(b"value")
    inode = os.stat(first.path).st_ino
    assert store.put_bytes(b"value") == first
    assert taken == [True, False]
    assert os.stat(first.path).st_ino == inode


def test_a_file_that_nobody_here_stored_stays_if_it_is_the_value(
    store: BlobStore, taken: list[bool]
) -> None:
    path = Path(blob_path(store.directory, sha1_of(b"value")))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"value")
    inode = path.stat().st_ino
    assert store.put_bytes(b"value").path == str(path)
    assert taken == [False]
    assert path.stat().st_ino == inode
    assert os.listdir(f"{store.directory}/.tmp") == []


def test_a_bad_file_under_its_name_makes_room(store: BlobStore, taken: list[bool]) -> None:
    path = Path(blob_path(store.directory, sha1_of(b"value")))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"rot")
    store.put_bytes(b"value")
    assert taken == [False]
    assert path.read_bytes() == b"value"
    assert len(os.listdir(f"{store.directory}/.quarantine")) == 1


def test_other_bytes_with_its_sha1_are_refused(store: BlobStore, index: Index) -> None:
    other = hash_bytes(b"other")
    forged = other._replace(root_object=other.root_object._replace(content=sha1_of(b"value")))
    index.remember(sha1_of(b"value"), os.stat("/"), forged)
    with pytest.raises(HashCollisionError):
        store.put_bytes(b"value")
    assert not os.path.exists(blob_path(store.directory, sha1_of(b"value")))


@pytest.mark.parametrize("gone", ["sha1", ".tmp", "."])
def test_directories_that_somebody_removed_are_made_again(store: BlobStore, gone: str) -> None:
    # In the same directory as the value, so that it is remembered as one that is there.
    first = sha1_of(b"value")
    os.makedirs(os.path.dirname(blob_path(store.directory, first)))
    store.put_bytes(b"value")
    shutil.rmtree(os.path.normpath(f"{store.directory}/{gone}"))
    stored = store.put_bytes(b"value")
    assert Path(stored.path).read_bytes() == b"value"


def test_a_full_disk_is_said_before_anything_is_written(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageFullError("the disk is full")

    monkeypatch.setattr(intake, "check_space", full)
    with pytest.raises(StorageFullError):
        store.put_bytes(b"value")
    assert os.listdir(f"{store.directory}/.tmp") == []


def test_a_write_that_takes_fewer_bytes_is_continued(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: really(fd, bytes(data)[:2], at))
    assert Path(store.put_bytes(b"value").path).read_bytes() == b"value"


def test_who_loses_a_race_for_the_name_answers_the_same(
    store: BlobStore, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    really = rename_new

    def overtaken(old: str, new: str) -> None:
        monkeypatch.setattr(small, "rename_new", really)
        Path(new).write_bytes(b"value")
        really(old, new)

    monkeypatch.setattr(small, "rename_new", overtaken)
    stored = store.put_bytes(b"value")
    assert taken == [False]
    assert Path(stored.path).read_bytes() == b"value"
    assert os.listdir(f"{store.directory}/.tmp") == []


@pytest.mark.parametrize("data", [b"value", b"", bytes(CHUNK_BYTES + 1)])
def test_whoever_wants_to_know_is_told_the_name_of_new_and_known_values(
    store: BlobStore, data: bytes
) -> None:
    told: list[bool] = []

    def named(content: ContentHash) -> None:
        assert content == sha1_of(data)
        told.append(os.path.exists(blob_path(store.directory, content)))

    for _ in range(2):
        store.put_bytes(data, named)
    assert told == [True, True]


def test_the_name_is_synced_after_it_was_told(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    store.put_bytes(b"first")
    monkeypatch.setattr(small, "sync_file", lambda fd: happened.append("bytes"))
    monkeypatch.setattr(small, "sync_directory", lambda path: happened.append("name"))
    store.put_bytes(b"value", lambda content: happened.append("told"))
    assert happened == ["bytes", "told", "name"]


def test_what_the_told_one_raises_is_raised_and_the_value_may_be_stored_again(
    store: BlobStore, index: Index
) -> None:
    def named(content: ContentHash) -> None:
        raise StorageFullError("no space for what belongs to it")

    with pytest.raises(StorageFullError, match="belongs to it"):
        store.put_bytes(b"value", named)
    # Its name was not synced, so nobody is told that it is stored.
    assert index.pinned_root(sha1_of(b"value")) is None
    assert os.listdir(f"{store.directory}/.tmp") == []
    assert store.put_bytes(b"value").size == 5
    assert store.known(sha1_of(b"value")) is not None
