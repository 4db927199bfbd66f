"""`kp.open`: a file object over what is stored here, or over blocks of what is not."""

from __future__ import annotations

import gc
import io
import os
import random
import struct
import threading
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kachery_p2p as kp
from kachery_p2p.client import ahead as ahead_module
from kachery_p2p.client.blocks import Blocks
from kachery_p2p.client.opening import RemoteFile
from kachery_p2p.client.origin import ANYWHERE, Origin
from kachery_p2p.content.uris import parse_uri
from kachery_p2p.errors import (
    LoadFileError,
    LoadTimeoutError,
    NotFoundError,
    UnsupportedValueError,
    UriError,
)
from kachery_p2p.limits import (
    CHUNK_BYTES,
    OPENED_BUFFER_BYTES,
)

DATA = random.Random(1).randbytes(3 * CHUNK_BYTES + 1234)
ROOT = "1" * 64
URI = parse_uri(f"sha1://{'a' * 40}?root={ROOT}")
HELD_S = 5.0


class CountedBlocks(Blocks):
    """Blocks of bytes at hand, and which were fetched. `may_fetch` holds fetches up."""

    def __init__(self, data: bytes, origin: Origin = ANYWHERE) -> None:
        super().__init__(URI, origin, len(data))
        self.data = data
        self.fetched: list[int] = []
        self.here: set[int] = set()
        self.may_fetch = threading.Event()
        self.may_fetch.set()
        self.began = threading.Event()
        self.fail_with: Exception | None = None
        self.is_closed = False

    def _has(self, number: int) -> bool:
        return number in self.here

    def _fetch(self, run: range, start: int, end: int, *, shown: bool) -> None:
        self.began.set()
        assert self.may_fetch.wait(HELD_S)
        if self.fail_with is not None:
            raise self.fail_with
        assert end == min(run.stop * CHUNK_BYTES, self.size)
        with self._changed:
            self.fetched += run
            self.here.update(run)

    def read_into(self, offset: int, target: memoryview) -> int:
        blocks = range(offset // CHUNK_BYTES, -(-(offset + len(target)) // CHUNK_BYTES))
        assert all(map(self._has, blocks)), "bytes were read that nobody has verified"
        target[:] = self.data[offset : offset + len(target)]
        return len(target)

    def close(self) -> None:
        self.is_closed = True


def opened(blocks: Blocks) -> io.BufferedReader:
    return io.BufferedReader(RemoteFile("sha1://x", blocks), OPENED_BUFFER_BYTES)


@pytest.fixture
def blocks() -> CountedBlocks:
    return CountedBlocks(DATA)


@pytest.fixture
def far(blocks: CountedBlocks) -> io.BufferedReader:
    return opened(blocks)


def settled(file: io.BufferedReader) -> None:
    """Return when no thread reads ahead any more."""
    raw: Any = file.raw
    raw._ahead.want(range(0))
    for thread in threading.enumerate():
        if thread.name == "kachery-p2p read ahead":
            thread.join(HELD_S)
            assert not thread.is_alive()


# --- here and there -------------------------------------------------------------------------------


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
    with pytest.raises(UnsupportedValueError):
        kp.open("sha1://" + "0" * 40, verify="nobody")
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


# --- without a root -------------------------------------------------------------------------------


def test_a_far_file_without_a_root_is_fetched_whole_first_and_a_warning_says_so(
    daemon: Any,
) -> None:
    content = daemon.give_network(DATA)
    with pytest.warns(UserWarning, match=f"all {len(DATA)} bytes are fetched") as warned:
        file = kp.open(f"sha1://{content}")
    assert [Path(warning.filename).name for warning in warned] == [Path(__file__).name]
    with file:
        assert file.read() == DATA
    assert daemon.operations.count("load") == 1


def test_of_a_small_file_the_whole_is_what_it_takes_anyway(daemon: Any) -> None:
    content = daemon.give_network(b"small")
    with warnings.catch_warnings(), kp.open(f"sha1://{content}") as file:
        warnings.simplefilter("error")
        assert file.read() == b"small"


def test_a_far_file_is_read_over_http_too(remote: Any) -> None:
    content = remote.give_network(DATA)
    with pytest.warns(UserWarning), kp.open(f"sha1://{content}") as file:
        assert file.read() == DATA


@pytest.mark.parametrize("where", ["daemon", "remote"])
def test_who_takes_a_providers_word_reads_by_ranges_against_its_root(
    where: str, request: pytest.FixtureRequest
) -> None:
    node = request.getfixturevalue(where)
    content = node.give_network(DATA)
    node.claimed_root = ROOT
    with kp.open(f"sha1://{content}", verify="provider") as file:
        file.seek(-10, os.SEEK_END)
        assert file.read() == DATA[-10:]
    assert kp.load_bytes(f"sha1://{content}", 5, 9, verify="provider") == DATA[5:9]
    assert "load" not in node.operations


def test_what_the_daemon_has_verified_itself_is_read_by_ranges_without_a_word(
    distant: Any,
) -> None:
    stored = distant.blobs.put_bytes(DATA)
    distant.claimed_root = stored.root
    with kp.open(f"sha1://{stored.content}") as file:
        file.seek(-10, os.SEEK_END)
        assert file.read() == DATA[-10:]
    assert "load" not in distant.operations


def test_a_provider_that_claims_no_root_is_no_reason_to_trust(daemon: Any) -> None:
    content = daemon.give_network(DATA)
    with pytest.raises(NotFoundError, match="no provider says"):
        kp.open(f"sha1://{content}", verify="provider")


def test_load_bytes_without_a_root_says_that_it_takes_the_whole(daemon: Any) -> None:
    content = daemon.give_network(DATA)
    with pytest.warns(UserWarning, match="are fetched and verified first") as warned:
        assert kp.load_bytes(f"sha1://{content}", 1, 3) == DATA[1:3]
    assert [Path(warning.filename).name for warning in warned] == [Path(__file__).name]


# --- only what is touched -------------------------------------------------------------------------


def test_jumps_fetch_the_blocks_that_are_touched_and_each_once(
    far: io.BufferedReader, blocks: CountedBlocks
) -> None:
    for _ in range(100):
        far.read(5)
    far.seek(2 * CHUNK_BYTES + 10)
    far.read(1)
    far.seek(100)
    far.read(1)
    settled(far)
    assert blocks.fetched == [0, 2]


def test_a_short_read_at_the_end_of_a_block_does_not_fetch_the_next(
    far: io.BufferedReader, blocks: CountedBlocks
) -> None:
    far.seek(CHUNK_BYTES - 200)
    assert far.read(100) == DATA[CHUNK_BYTES - 200 : CHUNK_BYTES - 100]
    settled(far)
    assert blocks.fetched == [0]


def test_an_archive_of_one_small_member_touches_its_table_and_its_place() -> None:
    buffer = io.BytesIO()
    noise = random.Random(2)
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("first", "second", "third"):
            archive.writestr(name, noise.randbytes(6 * CHUNK_BYTES))
        archive.writestr("note", b"what was wanted")
        archive.writestr("last", noise.randbytes(6 * CHUNK_BYTES))
    blocks = CountedBlocks(buffer.getvalue())
    file = opened(blocks)
    with zipfile.ZipFile(file) as archive:
        assert archive.read("note") == b"what was wanted"
    settled(file)
    assert sorted(blocks.fetched) == [18, blocks.count - 1]


def test_an_array_is_loaded_as_from_a_local_file_and_an_archive_by_its_members() -> None:
    array = np.arange(3 * CHUNK_BYTES // 8, dtype="f8")
    buffer = io.BytesIO()
    np.save(buffer, array)
    blocks = CountedBlocks(buffer.getvalue())
    np.testing.assert_array_equal(np.load(opened(blocks)), array)
    assert sorted(blocks.fetched) == list(range(blocks.count))
    buffer = io.BytesIO()
    np.savez(buffer, big=np.arange(2 * CHUNK_BYTES), little=np.arange(10))
    blocks = CountedBlocks(buffer.getvalue())
    file = opened(blocks)
    with np.load(file) as arrays:
        np.testing.assert_array_equal(arrays["little"], np.arange(10))
    settled(file)
    assert len(blocks.fetched) <= 2 < blocks.count


def test_a_tree_of_offsets_costs_the_blocks_on_its_path() -> None:
    """As HDF5 reads: a superblock, nodes that name places far apart, then one data set."""
    places = [0, 40, 7, 55, 23]
    data = bytearray(64 * CHUNK_BYTES)
    for place, following in zip(places, [*places[1:], 63], strict=True):
        struct.pack_into("<Q", data, place * CHUNK_BYTES + 96, following * CHUNK_BYTES + 96)
    blocks = CountedBlocks(bytes(data))
    file = opened(blocks)
    offset = 96
    for _ in places:
        file.seek(offset)
        (offset,) = struct.unpack("<Q", file.read(8))
    assert offset == 63 * CHUNK_BYTES + 96
    settled(file)
    assert blocks.fetched == places


# --- reading ahead --------------------------------------------------------------------------------


def test_a_file_is_read_through_with_each_block_fetched_once(
    far: io.BufferedReader, blocks: CountedBlocks
) -> None:
    assert b"".join(iter(lambda: far.read(100_000), b"")) == DATA
    settled(far)
    assert sorted(blocks.fetched) == list(range(blocks.count))


def test_the_next_block_comes_while_the_reader_works_on_this_one(blocks: CountedBlocks) -> None:
    far = opened(blocks)
    far.read(10)
    far.seek(CHUNK_BYTES)
    far.read(10)
    # Nobody asked for block 2.
    with blocks._changed:
        assert blocks._changed.wait_for(lambda: 2 in blocks.here, HELD_S)
    settled(far)
    assert sorted(blocks.fetched) == [0, 1, 2]


def test_who_comes_to_a_block_that_is_under_way_waits_for_it(blocks: CountedBlocks) -> None:
    blocks.may_fetch.clear()
    readers = [threading.Thread(target=blocks.ensure, args=(range(2),)) for _ in range(8)]
    for reader in readers:
        reader.start()
    assert blocks.began.wait(HELD_S)
    # To read ahead is no reason to wait.
    blocks.ensure(range(2), ahead=True)
    blocks.may_fetch.set()
    for reader in readers:
        reader.join(HELD_S)
    assert blocks.fetched == [0, 1]


def test_who_waits_for_another_thread_waits_no_longer_than_allowed() -> None:
    blocks = CountedBlocks(DATA, Origin(timeout_s=0.01))
    blocks.may_fetch.clear()
    other = threading.Thread(target=blocks.ensure, args=(range(1),))
    other.start()
    assert blocks.began.wait(HELD_S)
    with pytest.raises(LoadTimeoutError):
        blocks.ensure(range(1))
    blocks.may_fetch.set()
    other.join(HELD_S)


def test_what_fails_ahead_is_said_to_whoever_reads_it_and_tried_again(
    far: io.BufferedReader, blocks: CountedBlocks
) -> None:
    far.read(CHUNK_BYTES)
    blocks.fail_with = LoadFileError("nobody has it any more")
    far.raw._ahead.want(range(1, 3))  # type: ignore[attr-defined]
    settled(far)
    with pytest.raises(LoadFileError, match="any more"):
        far.read(10)
    blocks.fail_with = None
    assert far.read(10) == DATA[CHUNK_BYTES : CHUNK_BYTES + 10]


def test_the_thread_ends_by_itself_and_begins_again(
    monkeypatch: pytest.MonkeyPatch, far: io.BufferedReader, blocks: CountedBlocks
) -> None:
    monkeypatch.setattr(ahead_module, "OPENED_AHEAD_IDLE_S", 0.01)
    raw: Any = far.raw
    for number in (1, 2):
        others = set(threading.enumerate())
        raw._ahead.want(range(number, number + 1))
        with blocks._changed:
            assert blocks._changed.wait_for(lambda: number in blocks.here, HELD_S)  # noqa: B023
        for thread in set(threading.enumerate()) - others:
            thread.join(HELD_S)
        assert not thread.is_alive()
        assert raw._ahead._threads == 0
    assert blocks.fetched == [1, 2]


def test_a_forked_process_waits_for_no_thread_of_its_parent(
    far: io.BufferedReader, blocks: CountedBlocks
) -> None:
    blocks.may_fetch.clear()
    raw: Any = far.raw
    raw._ahead.want(range(3))
    assert blocks.began.wait(HELD_S)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of threads
        child = os.fork()
    if not child:
        blocks.may_fetch = threading.Event()
        blocks.may_fetch.set()
        code = 0 if raw.read(10) == DATA[:10] and blocks.fetched == [0] else 1
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    blocks.may_fetch.set()
    settled(far)


# --- as any file ----------------------------------------------------------------------------------


def test_any_sequence_of_calls_reads_as_a_local_file_does(far: io.BufferedReader) -> None:
    rng, local = random.Random(7), io.BytesIO(DATA)
    for _ in range(400):
        match rng.randrange(7):
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
            case 5:
                found = far.read1(3000)
                assert found == local.read(len(found))
            case 6:
                assert far.peek(10)[:1] == local.getvalue()[local.tell() :][:1]
        assert far.tell() == local.tell()
    far.seek(1234)
    assert far.read() == DATA[1234:]
    assert far.raw.readall() == b""  # type: ignore[attr-defined]


def test_what_no_file_does_is_an_error(far: io.BufferedReader) -> None:
    for offset, whence in ((-1, os.SEEK_SET), (-len(DATA) - 1, os.SEEK_END), (0, 9)):
        with pytest.raises(ValueError):
            far.seek(offset, whence)
    assert (far.readable(), far.seekable(), far.writable()) == (True, True, False)
    with pytest.raises(io.UnsupportedOperation):
        far.fileno()
    far.close()
    raw: Any = far.raw
    for method in (far.read, raw.tell, raw.readall):
        with pytest.raises(ValueError):
            method()
    with pytest.raises(ValueError):
        raw.seek(0)


def test_an_empty_content_has_nothing_to_read() -> None:
    assert opened(CountedBlocks(b"")).read() == b""


def test_a_file_that_nobody_holds_any_more_is_closed(blocks: CountedBlocks) -> None:
    file = opened(blocks)
    file.read(10)
    del file
    gc.collect()
    assert blocks.is_closed


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
