"""Many objects at once: one outcome each, and the errors of one are not those of another."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.errors import (
    HashCollisionError,
    KacheryError,
    SourceFileError,
    StorageFailedError,
    StorageFullError,
    StorePermissionError,
)
from kachery_p2p.limits import CHUNK_BYTES, GROUP_OBJECTS_MIN
from kachery_p2p.store import durable, groups, placing, temps
from kachery_p2p.store.blobs import BlobStore, Outcome, Stored
from kachery_p2p.store.hashing import hash_bytes
from kachery_p2p.store.index import Index
from kachery_p2p.store.paths import blob_path, temp_dir

MIB = CHUNK_BYTES
COUNTS = [0, 1, GROUP_OBJECTS_MIN - 1, GROUP_OBJECTS_MIN, GROUP_OBJECTS_MIN + 10]


def texts(count: int, first: int = 0) -> list[bytes]:
    return [b"text %d" % number for number in range(first, first + count)]


def names_of(outcomes: list[Outcome]) -> list[str]:
    """The contents that were stored; the errors that were met, by name."""
    return [one.content if isinstance(one, Stored) else type(one).__name__ for one in outcomes]


@pytest.fixture(params=["syncfs", "fsync"])
def synced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """On a file system where one sync is enough, and on one where it is not."""
    monkeypatch.setattr(temps, "syncs_at_once", lambda fd: request.param == "syncfs")
    return str(request.param)


@pytest.mark.parametrize("count", COUNTS)
def test_the_outcomes_come_in_the_order_of_the_items(
    store: BlobStore, synced: str, count: int
) -> None:
    items = texts(count)
    outcomes = list(store.put_many(items))
    assert names_of(outcomes) == [sha1_of(item) for item in items]
    for item in items:
        with store.open_verified(sha1_of(item)) as opened:
            assert os.pread(opened.descriptor, 100, 0) == item
            assert opened.root_object == hash_bytes(item).root_object
        assert os.stat(blob_path(store.directory, sha1_of(item))).st_mode & 0o777 == 0o444
    if count:
        assert os.listdir(temp_dir(store.directory)) == []


def test_bytes_and_files_of_all_sizes_go_together(store: BlobStore, tmp_path: Path) -> None:
    datas = [hashlib.shake_128(b"many").digest(size) for size in (0, 1, MIB, MIB + 1, 3 * MIB + 7)]
    items: list[bytes | str | int] = [*texts(60)]
    for number, data in enumerate(datas):
        path = tmp_path / str(number)
        path.write_bytes(data)
        items += [data, str(path), os.open(path, os.O_RDONLY)]
    outcomes = list(store.put_many(items))
    assert names_of(outcomes[60:]) == [sha1_of(data) for data in datas for _ in range(3)]
    for item in items:
        if isinstance(item, int):
            os.close(item)
    for data in datas:
        assert Path(blob_path(store.directory, sha1_of(data))).read_bytes() == data


def test_what_is_known_to_the_index_is_not_written_again(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = texts(100)
    first = list(store.put_many(items))
    monkeypatch.setattr(groups, "write_all", None)
    assert list(store.put_many(items)) == first


def test_a_failing_item_does_not_stop_the_others(store: BlobStore, tmp_path: Path) -> None:
    items: list[bytes | str] = [*texts(70)]
    items[3] = str(tmp_path / "missing")
    items[69] = str(tmp_path)
    outcomes = list(store.put_many(items))
    assert isinstance(outcomes[3], SourceFileError)
    assert isinstance(outcomes[69], SourceFileError)
    assert sum(isinstance(one, Stored) for one in outcomes) == 68
    few: list[bytes | str] = [b"one", str(tmp_path / "missing"), b"two"]
    assert names_of(list(store.put_many(few))) == [
        sha1_of(b"one"),
        "SourceFileError",
        sha1_of(b"two"),
    ]


def test_a_forged_content_is_refused_alone(store: BlobStore, index: Index) -> None:
    items = texts(70)
    forged = hash_bytes(b"other")
    index.remember(sha1_of(items[7]), os.stat("/"), forged)
    outcomes = list(store.put_many(items))
    assert isinstance(outcomes[7], HashCollisionError)
    assert sum(isinstance(one, Stored) for one in outcomes) == 69
    assert store.find(sha1_of(items[7])) is None


def test_a_bad_file_under_a_name_is_quarantined_and_replaced(store: BlobStore) -> None:
    items = texts(70)
    path = Path(blob_path(store.directory, sha1_of(items[5])))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"rot")
    assert names_of(list(store.put_many(items))) == [sha1_of(item) for item in items]
    assert path.read_bytes() == items[5]


def test_a_store_removed_meanwhile_is_made_again(
    store: BlobStore, synced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(store.put_many(texts(70)))
    really, called = durable.rename_new, [0]

    def rename_new(old: str, new: str) -> None:
        called[0] += 1
        if called[0] == 10:
            shutil.rmtree(os.path.join(store.directory, "sha1"))
        really(old, new)

    monkeypatch.setattr(placing, "rename_new", rename_new)
    outcomes = list(store.put_many(texts(70, first=100)))
    # Nine were there, and are gone with the rest: that is not called stored.
    assert [type(one) for one in outcomes] == [StorageFailedError] * 9 + [Stored] * 61
    assert {one.content for one in store.list_objects()} == {
        one.content for one in outcomes if isinstance(one, Stored)
    }


@pytest.mark.parametrize("which", [1, 2])
def test_a_failed_sync_acknowledges_nothing(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    monkeypatch.setattr(temps, "syncs_at_once", lambda fd: True)
    calls = [0]

    def sync_filesystem(fd: int) -> None:
        calls[0] += 1
        if calls[0] == which:
            raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(groups, "sync_filesystem", sync_filesystem)
    outcomes = list(store.put_many(texts(70)))
    assert {type(one) for one in outcomes} == {StorageFailedError}
    assert calls[0] == which  # never tried again
    assert os.listdir(temp_dir(store.directory)) == []
    assert store.known(sha1_of(b"text 1")) is None
    assert names_of(list(store.put_many(texts(70)))) == [sha1_of(item) for item in texts(70)]


def test_a_full_disk_is_the_outcome_of_each(tmp_path: Path, index: Index) -> None:
    store = BlobStore(str(tmp_path / "store"), index, reserve_bytes=1 << 60)
    outcomes = list(store.put_many(texts(70)))
    assert {type(one) for one in outcomes} == {StorageFullError}
    assert os.listdir(temp_dir(store.directory)) == []


def test_a_store_that_cannot_be_written_is_one_error(tmp_path: Path, index: Index) -> None:
    (tmp_path / "store").write_bytes(b"")
    store = BlobStore(str(tmp_path / "store"), index, reserve_bytes=0)
    with pytest.raises(StorageFailedError, match="is not a directory"):
        list(store.put_many(texts(70)))
    assert issubclass(StorePermissionError, KacheryError)


def test_groups_are_bounded_and_answered_one_by_one(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "GROUP_OBJECTS_MAX", 100)
    read = 0

    def items() -> Iterator[bytes]:
        nonlocal read
        for item in texts(1_000):
            read += 1
            yield item

    outcomes = store.put_many(items())
    next(outcomes)
    assert read == 100
    assert sum(isinstance(one, Stored) for one in outcomes) == 999


def test_values_and_files_in_turn_keep_their_order_and_their_group(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "_SLICE_ITEMS", 3)
    monkeypatch.setattr(groups, "GROUP_OBJECTS_MAX", 7)
    items: list[bytes | str] = []
    for number in range(140):
        text = b"number %d" % number
        if number % 5 == 2:
            (tmp_path / f"{number}").write_bytes(text)
        items.append(str(tmp_path / f"{number}") if number % 5 == 2 else text)
    stored = list(store.put_many(items))
    assert names_of(stored) == [sha1_of(b"number %d" % number) for number in range(140)]
    # Again, and some of them twice in one group.
    twice = [item for item in items[:80] for _ in range(2)]
    assert names_of(list(store.put_many(twice))) == [
        sha1_of(b"number %d" % (number // 2)) for number in range(160)
    ]


def test_an_index_that_cannot_be_asked_is_the_outcome_of_each(
    store: BlobStore, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(contents: object) -> None:
        raise StorageFailedError("the index does not answer")

    monkeypatch.setattr(index, "pinned_roots", ask)
    assert names_of(list(store.put_many(texts(70)))) == ["StorageFailedError"] * 70
    assert list(store.list_objects()) == []


def test_a_group_keeps_few_descriptors_and_no_bytes(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, hard))
    monkeypatch.setattr(groups, "GROUP_BYTES_MAX", 20 * MIB)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        # 100 MiB, of which no more than one item is ever here.
        items = (number.to_bytes(4, "big") * (MIB // 4) for number in range(100))
        assert all(isinstance(one, Stored) for one in store.put_many(items))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    # The 64 that decide whether there is a group at all are held, and no more.
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 80


def test_an_error_of_the_caller_leaves_nothing(store: BlobStore) -> None:
    def items() -> Iterator[bytes]:
        yield from texts(80)
        raise RuntimeError("the caller's")

    with pytest.raises(RuntimeError):
        list(store.put_many(items()))
    assert os.listdir(temp_dir(store.directory)) == []
    assert list(store.list_objects()) == []


def test_renaming_never_replaces_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for noreplace in (True, False):
        if not noreplace:
            monkeypatch.setattr(durable, "_libc", lambda: None)
        (tmp_path / "old").write_bytes(b"old")
        (tmp_path / "new").write_bytes(b"new")
        with pytest.raises(FileExistsError):
            durable.rename_new(f"{tmp_path}/old", f"{tmp_path}/new")
        assert (tmp_path / "new").read_bytes() == b"new"
        (tmp_path / "new").unlink()
        durable.rename_new(f"{tmp_path}/old", f"{tmp_path}/new")
        assert (tmp_path / "new").read_bytes() == b"old"
        with pytest.raises(FileNotFoundError):
            durable.rename_new(f"{tmp_path}/old", f"{tmp_path}/other")


def test_a_group_is_stored_where_no_thread_can_be_had(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    items = [b"%d" % number for number in range(70)]
    stored = [one for one in store.put_many(items) if isinstance(one, Stored)]
    assert [one.content for one in stored] == [sha1_of(item) for item in items]
    assert all(store.known(one.content) for one in stored)
