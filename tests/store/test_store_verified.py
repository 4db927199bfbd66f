"""Groups of small blobs that were asked for by their hashes: stored once, whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from kachery_p2p.content.hashes import ContentHash, Root, sha1_of
from kachery_p2p.errors import HashCollisionError, StorageFailedError, StorageFullError
from kachery_p2p.limits import CHUNK_BYTES
from kachery_p2p.store.blobs import BlobStore, Stored
from kachery_p2p.store.index import Index
from kachery_p2p.store.verified import Verified

DATAS = [f"spikes {number}".encode() * 20 for number in range(40)]


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(str(tmp_path / "store"), Index(str(tmp_path / "index.db")), 0)


def verified(datas: list[bytes]) -> list[Verified]:
    return [Verified(sha1_of(data), data) for data in datas]


def assert_stored(store: BlobStore, datas: list[bytes], outcomes: Sequence[object]) -> None:
    assert [type(one) for one in outcomes] == [Stored] * len(datas)
    for data, one in zip(datas, outcomes, strict=True):
        assert isinstance(one, Stored)
        path = Path(one.path)
        assert path.read_bytes() == data
        assert path.stat().st_mode & 0o777 == 0o444
        known = store.known(sha1_of(data))
        assert known is not None
        assert (known.root, known.size) == (one.root, len(data))
        with store.open_verified(sha1_of(data)) as opened:
            assert opened.root_object == known
    assert not os.listdir(Path(store.directory) / ".tmp")


def test_a_group_is_stored_and_known(store: BlobStore) -> None:
    assert_stored(store, DATAS, list(store.verified.put(verified(DATAS))))


def test_what_is_unlike_a_new_small_blob_is_stored_too(store: BlobStore) -> None:
    store.put_bytes(DATAS[3])
    # Never hashed by this node, good and bad.
    for data, found in ((DATAS[5], DATAS[5]), (DATAS[6], b"forged")):
        path = Path(store.directory, *("sha1", *_parts(sha1_of(data))))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(found)
        path.chmod(0o444)
    datas = [*DATAS, b"", bytes(CHUNK_BYTES), DATAS[9], DATAS[3]]
    assert_stored(store, datas, list(store.verified.put(verified(datas))))


def _parts(content: ContentHash) -> tuple[str, ...]:
    return content[:2], content[2:4], content[4:6], content


def test_few_are_stored_each_by_itself(store: BlobStore) -> None:
    assert_stored(store, DATAS[:2], list(store.verified.put(verified(DATAS[:2]))))


@pytest.mark.parametrize("mask", [0o077, 0o000])
def test_whatever_the_umask_all_may_read_what_is_stored(store: BlobStore, mask: int) -> None:
    before = os.umask(mask)
    try:
        outcomes = list(store.verified.put(verified(DATAS)))
    finally:
        os.umask(before)
    assert_stored(store, DATAS, outcomes)


def test_where_one_sync_does_not_do_each_file_is_synced(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    sync = os.fsync

    def counted(fd: int) -> None:
        synced.append(fd)
        sync(fd)

    monkeypatch.setattr("kachery_p2p.store.temps.syncs_at_once", lambda fd: False)
    monkeypatch.setattr(os, "fsync", counted)
    outcomes = list(store.verified.put(verified(DATAS)))
    # Each file, and the three directories on the way to it, of which some are shared.
    assert len(synced) > 3 * len(DATAS)
    monkeypatch.undo()
    assert_stored(store, DATAS, outcomes)


def test_directories_that_somebody_removed_are_made_again(store: BlobStore) -> None:
    list(store.verified.put(verified(DATAS)))
    shutil.rmtree(Path(store.directory) / "sha1")
    more = [data + b"more" for data in DATAS]
    assert_stored(store, more, list(store.verified.put(verified(more))))


def test_another_content_with_a_known_hash_is_refused_alone(
    store: BlobStore, tmp_path: Path
) -> None:
    index = Index(str(tmp_path / "index.db"))
    manifest = store.put_bytes(b"read before")
    with store.open_verified(manifest.content) as opened:
        status = os.fstat(opened.descriptor)
    content = sha1_of(DATAS[7])
    _pin(index, content, status)
    outcomes = list(store.verified.put(verified(DATAS)))
    assert isinstance(outcomes[7], HashCollisionError)
    others = outcomes[:7] + outcomes[8:]
    assert_stored(store, DATAS[:7] + DATAS[8:], list(others))
    assert store.find(content) is None


def _pin(index: Index, content: ContentHash, status: os.stat_result) -> None:
    from kachery_p2p.store.backlog import Remembered
    from kachery_p2p.store.hashing import hash_bytes

    forged = hash_bytes(b"another content")
    index.note([Remembered(content, forged, Root("1" * 64), status)])


@pytest.mark.parametrize("failing", ["sync_filesystem", "rename_new"])
def test_what_is_not_durable_is_neither_told_nor_known(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "input/output error")

    monkeypatch.setattr("kachery_p2p.store.temps.syncs_at_once", lambda fd: True)
    monkeypatch.setattr(f"kachery_p2p.store.verified.{failing}", fail)
    with pytest.raises(StorageFailedError):
        store.verified.put(verified(DATAS))
    assert all(store.known(sha1_of(data)) is None for data in DATAS)
    assert not os.listdir(Path(store.directory) / ".tmp")


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path) -> None:
    store = BlobStore(str(tmp_path / "store"), Index(str(tmp_path / "index.db")), 1 << 60)
    with pytest.raises(StorageFullError):
        store.verified.put(verified(DATAS))
    assert not list((tmp_path / "store").glob("sha1/**/*"))


def test_states_are_those_of_the_files_that_were_hashed(store: BlobStore) -> None:
    stored = [one for one in store.verified.put(verified(DATAS)) if isinstance(one, Stored)]
    states = store.known_files.states([one.content for one in stored])
    assert len(states) == len(DATAS)
    opened = store.known_files.open(stored[0].content, states[stored[0].content])
    assert opened is not None
    os.close(opened[0])
    assert opened[1] == stored[0].size
    # Of another file, of none, and after a change there is nothing.
    assert store.known_files.open(stored[0].content, states[stored[1].content]) is None
    assert store.known_files.open(stored[0].content, None) is None
    os.utime(stored[0].path, ns=(1, 1))
    assert store.known_files.open(stored[0].content, states[stored[0].content]) is None
