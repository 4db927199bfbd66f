"""`kp.open`: a file object over what is stored here, or over ranges of what is not."""

from __future__ import annotations

import io
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest

import kachery_p2p as kp
from kachery_p2p.client import opening
from kachery_p2p.errors import NotFoundError, UriError
from kachery_p2p.limits import CHUNK_BYTES, OPENED_BLOCKS_MAX

DATA = random.Random(1).randbytes(3 * CHUNK_BYTES + 1234)
ROOT = "1" * 64


class Ranges:
    """What `load_bytes` was asked for, and answers."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[tuple[int, int]] = []

    def __call__(self, uri: str, start: int, end: int, **origin: object) -> bytes:
        assert 0 <= start <= end <= len(self.data)
        self.asked.append((start, end))
        return self.data[start:end]


@pytest.fixture
def ranges(monkeypatch: pytest.MonkeyPatch) -> Ranges:
    found = Ranges(DATA)
    monkeypatch.setattr(opening, "load_bytes", found)
    return found


@pytest.fixture
def far(ranges: Ranges) -> io.BufferedReader:
    return io.BufferedReader(opening.RemoteFile("sha1://x", len(DATA)))


def test_a_stored_file_is_opened_in_place(tmp_path: Path) -> None:
    uri = kp.store_text("0123456789\nabc\n")
    with kp.open(uri) as file:
        assert file.readline() == b"0123456789\n"
        assert file.seek(-4, os.SEEK_END) == 11
        assert file.read() == b"abc\n"
        buffer = bytearray(3)
        file.seek(2)
        assert file.readinto(buffer) == 3  # type: ignore[attr-defined]
        assert buffer == b"234"
        assert file.name.startswith(str(tmp_path))
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"x")
    assert file.closed


def test_what_is_wrong_is_said_when_it_is_opened() -> None:
    with pytest.raises(UriError):
        kp.open("sha1://abc")
    for uri in ("sha1://" + "0" * 40, f"sha1://{'0' * 40}?root={ROOT}"):
        with pytest.raises(NotFoundError, match="no daemon is running"):
            kp.open(uri)


def test_a_far_file_is_read_by_ranges_through_the_daemon(daemon: Any) -> None:
    content = daemon.give_network(DATA)
    with kp.open(f"sha1://{content}/x.h5?root={ROOT}") as file:
        file.seek(CHUNK_BYTES + 7)
        assert file.read(100) == DATA[CHUNK_BYTES + 7 : CHUNK_BYTES + 107]
        assert file.seek(0, os.SEEK_END) == len(DATA)
    assert "load_range" in daemon.operations
    assert "load" not in daemon.operations


def test_a_far_file_is_read_over_http_too(remote: Any) -> None:
    content = remote.give_network(DATA)
    with kp.open(f"sha1://{content}") as file:
        assert file.read() == DATA


def test_a_far_file_without_a_root_is_fetched_whole_first(daemon: Any) -> None:
    content = daemon.give_network(DATA)
    with kp.open(f"sha1://{content}") as file:
        assert file.read() == DATA
    assert daemon.operations.count("load") == 1


def test_reading_ahead_brings_one_mebibyte(far: io.BufferedReader, ranges: Ranges) -> None:
    for _ in range(100):
        far.read(5)
    far.seek(2 * CHUNK_BYTES + 10)
    far.read(1)
    far.seek(100)
    far.read(1)
    assert ranges.asked == [(0, CHUNK_BYTES), (2 * CHUNK_BYTES, 3 * CHUNK_BYTES)]


def test_the_blocks_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    size = (OPENED_BLOCKS_MAX + 2) * CHUNK_BYTES
    ranges = Ranges(bytes(size))
    monkeypatch.setattr(opening, "load_bytes", ranges)
    raw = opening.RemoteFile("sha1://x", size)
    for number in range(OPENED_BLOCKS_MAX + 2):
        raw.seek(number * CHUNK_BYTES)
        raw.read(1)
    assert len(raw._blocks) == OPENED_BLOCKS_MAX


def test_any_sequence_of_calls_reads_as_a_local_file_does(far: io.BufferedReader) -> None:
    rng, local = random.Random(7), io.BytesIO(DATA)
    for _ in range(400):
        match rng.randrange(5):
            case 0:
                place = rng.randrange(len(DATA) + 100)
                assert far.seek(place) == local.seek(place)
            case 1:
                offset = -rng.randrange(len(DATA))
                assert far.seek(offset, os.SEEK_END) == local.seek(offset, os.SEEK_END)
            case 2:
                count = rng.choice([0, 1, 10, 70_000, CHUNK_BYTES, 3 * CHUNK_BYTES])
                assert far.read(count) == local.read(count)
            case 3:
                assert far.readline(1000) == local.readline(1000)
            case 4:
                ours, theirs = bytearray(5000), bytearray(5000)
                assert far.readinto(ours) == local.readinto(theirs)
                assert ours == theirs
        assert far.tell() == local.tell()


def test_what_no_file_does_is_an_error(far: io.BufferedReader) -> None:
    for offset, whence in ((-1, os.SEEK_SET), (-len(DATA) - 1, os.SEEK_END), (0, 9)):
        with pytest.raises(ValueError):
            far.seek(offset, whence)
    far.close()
    with pytest.raises(ValueError):
        far.read(1)
    with pytest.raises(ValueError):
        far.raw.read(1)


def test_threads_read_each_byte_once(far: io.BufferedReader) -> None:
    pieces: list[bytes] = []

    def drain() -> None:
        while piece := far.read(10_000):
            pieces.append(piece)

    threads = [threading.Thread(target=drain) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(map(len, pieces)) == len(DATA)
    assert {piece in DATA for piece in pieces} == {True}
