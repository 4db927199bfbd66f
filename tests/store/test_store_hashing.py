"""Both hashes of a file while it grows: any size, few threads, little memory, whatever fails."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kachery_p2p.limits import CHUNK_BYTES, HASH_BUFFERS_MAX
from kachery_p2p.store import hashing
from kachery_p2p.store.hashing import EndedEarlyError, FileHashes, hash_bytes, hash_file

LARGEST = (HASH_BUFFERS_MAX + 9) * CHUNK_BYTES + 1
DATA = hashlib.shake_128(b"hashing").digest(LARGEST)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(DATA)
    descriptor = os.open(tmp_path / "file", os.O_RDWR)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("chunks", [0, 1, 2, HASH_BUFFERS_MAX, HASH_BUFFERS_MAX + 1, 16])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_a_file_of_any_size_has_the_hashes_of_its_bytes(fd: int, chunks: int, more: int) -> None:
    size = max(0, chunks * CHUNK_BYTES + more)
    assert hash_file(fd, size) == hash_bytes(DATA[:size])


@pytest.mark.parametrize("step", [CHUNK_BYTES // 3, 5 * CHUNK_BYTES + 7, LARGEST])
def test_however_it_grows(fd: int, step: int) -> None:
    with FileHashes(fd) as hashes:
        for size in range(0, LARGEST, step):
            hashes.grown(size)
        assert hashes.finish(LARGEST) == hash_bytes(DATA)


def test_without_a_thread_it_takes_longer(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    assert hash_file(fd, LARGEST) == hash_bytes(DATA)


@pytest.mark.parametrize("spare", [0, 3])
def test_many_at_once_share_the_spare_buffers_and_give_them_back(
    fd: int, spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffers = threading.BoundedSemaphore(spare) if spare else threading.Semaphore(0)
    monkeypatch.setattr(hashing, "_spare_buffers", buffers)
    with FileHashes(fd) as hashes, FileHashes(fd) as others:
        for size in range(0, LARGEST, CHUNK_BYTES):
            hashes.grown(size)
            others.grown(size)
            assert hashes._sha1._buffers + others._sha1._buffers <= 4 + spare
        assert hashes.finish(LARGEST) == others.finish(LARGEST) == hash_bytes(DATA)
    assert [buffers.acquire(blocking=False) for _ in range(spare + 1)] == [True] * spare + [False]


def test_an_error_that_is_kept_keeps_no_buffers(fd: int) -> None:
    os.ftruncate(fd, LARGEST - CHUNK_BYTES)
    with pytest.raises(EndedEarlyError) as raised, FileHashes(fd) as hashes:
        hashes.finish(LARGEST)
    assert raised.value.__traceback__ is not None
    assert hashes._sha1._buffers == 0
    assert all(thread.name != "sha1" for thread in threading.enumerate())


@pytest.mark.parametrize("at", [0, HASH_BUFFERS_MAX, HASH_BUFFERS_MAX + 8])
def test_whatever_ends_the_hashing_is_raised_and_nobody_waits(
    fd: int, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def __init__(self) -> None:
            self.count = 0

        def update(self, chunk: memoryview) -> None:
            self.count += 1
            if self.count > at:
                raise SystemExit("at this of all moments")

    with FileHashes(fd) as hashes:
        monkeypatch.setattr(hashes._sha1, "_sha1", Failing())
        with pytest.raises(SystemExit, match="of all moments"):
            hashes.finish(LARGEST)
