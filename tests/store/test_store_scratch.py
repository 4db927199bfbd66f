"""Files for some days: put there while others sweep, and whatever else stands in the way."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.errors import HashCollisionError, StorageFailedError
from kachery_p2p.store import scratch
from kachery_p2p.store.durable import write_all
from kachery_p2p.store.scratch import put_scratch, scratch_dir, sweep_scratch

NOW = 1_700_000_000.0


class Store:
    def __init__(self, top: Path) -> None:
        self.path = str(top / "store")
        self.scratch = Path(scratch_dir(self.path))
        self._state = str(top / "state")

    def put(
        self, data: bytes, until: float, link: Callable[[str], None] = lambda path: None
    ) -> Path:
        content = put_scratch(self.path, until, lambda fd: write_all(fd, data, 0), link)
        return self.scratch / content

    def sweep(self, now: float = NOW) -> int:
        return sweep_scratch(self.path, self._state, now)

    def names(self) -> list[str]:
        return sorted(os.listdir(self.scratch))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_what_is_being_stored_is_not_swept_before_it_is_linked(store: Store) -> None:
    swept: list[int] = []
    path = store.put(b"short", NOW - 1, lambda path: swept.append(store.sweep()))
    assert swept == [0]
    assert path.read_bytes() == b"short"
    assert store.sweep() == 1
    assert store.names() == []


def test_what_is_put_again_during_a_sweep_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.put(b"again", NOW - 1)
    lock = scratch._is_locked

    def late(directory: int, how: int, wait_s: float) -> bool:
        if how == fcntl.LOCK_EX:  # the sweep has seen that the time of the file has come
            store.put(b"again", NOW + 1)
        return lock(directory, how, wait_s)

    monkeypatch.setattr(scratch, "_is_locked", late)
    assert store.sweep() == 0
    assert path.read_bytes() == b"again"


def test_who_stores_does_not_wait_forever_for_a_sweep(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "SCRATCH_LOCK_S_MAX", 0.0)
    store.put(b"first", NOW)
    directory = os.open(store.scratch, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    try:
        with pytest.raises(StorageFailedError, match="swept by another"):
            store.put(b"second", NOW)
    finally:
        os.close(directory)
    assert store.names() == [sha1_of(b"first")]


def test_the_longer_of_two_times_counts_and_many_are_swept_in_turns(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "SCRATCH_SWEPT_AT_ONCE", 2)
    for until in (NOW + 5, NOW - 5):
        path = store.put(b"twice", until)
        assert path.stat().st_mtime == NOW + 5
    for number in range(5):
        store.put(b"%d" % number, NOW - 1)
    assert store.sweep() == 5
    assert store.names() == [path.name]


def test_the_name_is_on_disk_before_it_is_linked(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(scratch, "sync_open_directory", lambda fd: seen.append(os.listdir(fd)))
    path = store.put(b"data", NOW, lambda path: seen.append([path]))
    assert seen == [[path.name], [str(path)]]


def test_other_bytes_with_the_same_hash_are_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "_sha1", lambda fd: "12" * 20)
    path = store.put(b"first", NOW)
    with pytest.raises(HashCollisionError):
        store.put(b"forged", NOW)
    assert path.read_bytes() == b"first"
    assert store.names() == [path.name]


@pytest.mark.parametrize("kind", ["bytes", "link", "directory"])
def test_what_is_not_the_content_of_its_name_goes_to_quarantine(
    store: Store, tmp_path: Path, kind: str
) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"data")
    wrong = store.scratch / sha1_of(b"data")
    store.scratch.mkdir(parents=True)
    if kind == "bytes":
        wrong.write_bytes(b"rotten")
    elif kind == "link":
        wrong.symlink_to(other)
    else:
        wrong.mkdir()
    path = store.put(b"data", NOW)
    assert path == wrong
    assert path.is_file()
    assert not path.is_symlink()
    assert path.read_bytes() == other.read_bytes() == b"data"
    (kept,) = (Path(store.path) / ".quarantine").iterdir()
    assert kept.name.startswith(path.name)


def test_names_that_are_not_ours_are_left_alone(store: Store) -> None:
    old = store.put(b"old", NOW - 1)
    names = ["z" * 40, "A" * 40, "README", "0" * 39]
    for name in names:
        (store.scratch / name).touch()
        os.utime(store.scratch / name, (1, 1))
    (store.scratch / ("0" * 40)).mkdir()
    os.utime(store.scratch / ("0" * 40), (1, 1))
    assert store.sweep() == 1
    assert store.names() == sorted([*names, "0" * 40])
    assert not old.exists()


def test_a_planted_directory_is_not_written_to(store: Store, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    Path(store.path).mkdir()
    store.scratch.symlink_to(tmp_path / "mine")
    with pytest.raises(StorageFailedError, match="something else"):
        store.put(b"data", time.time())
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_failed_write_leaves_nothing(store: Store) -> None:
    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with pytest.raises(StorageFailedError, match="input/output"):
        put_scratch(store.path, NOW, fail, lambda path: None)
    assert store.names() == []
