"""What in a log that crashed is damage, and what was only begun: with room ahead, and without."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable

import pytest

from kachery_p2p.errors import StateCorruptError, StorageFullError
from kachery_p2p.feeds.direct import DirectLog
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.records import HEADER_BYTES, encode_record
from tests.feeds.direct_logs import length, put, said, take_in
from tests.feeds.feed_logs import crashed, path_of
from tests.feeds.feed_parts import messages


@pytest.mark.parametrize("has_room", [True, False])
@pytest.mark.parametrize("count", [1, 4, 7, 12])
def test_zeros_at_the_end_of_an_acknowledged_record_are_damage(
    own: LogFile,
    direct: Callable[[], DirectLog],
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    has_room: bool,
) -> None:
    if has_room:
        monkeypatch.setattr("kachery_p2p.feeds.room.FEED_ROOM_BYTES_MIN", 1)
    log = direct()
    for number in range(0, 30, 10):
        log.append(messages(10, number))
    take_in(own)
    end = said(own).end
    assert end % 512 > 12
    assert (length(own) > end) is has_room
    put(own, bytes(count), end - count)
    own.close()
    path_of(own, "checkpoint").unlink()
    damaged = path_of(own, "entries").read_bytes()
    # The hashes know its entry: it can be mended.
    own.open()
    assert own.size == 30
    assert own.check() == (29,)
    own.close()
    for name in ("checkpoint", "hashes"):
        path_of(own, name).unlink()
    with pytest.raises(StateCorruptError):
        own.open()
    assert path_of(own, "entries").read_bytes() == damaged


def test_a_damaged_head_is_not_cut_off_because_its_last_byte_is_zero(
    own: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.append(messages(3), 1)
    time_ms = 10
    while path_of(own, "entries").read_bytes()[-1]:
        own.append([], time_ms)
        time_ms += 1
    crashed(own)
    data = bytearray(path_of(own, "entries").read_bytes())
    data[-100] ^= 4
    path_of(own, "entries").write_bytes(bytes(data))
    with pytest.raises(StateCorruptError):
        own.open()
    assert path_of(own, "entries").read_bytes() == bytes(data)


@pytest.mark.parametrize("missing", ["the first bytes", "the last bytes"])
def test_a_record_of_which_a_sector_has_only_some_bytes_is_torn_if_they_are_missing(
    own: LogFile, direct: Callable[[], DirectLog], missing: str
) -> None:
    own.append(messages(1), 1)
    # So that it begins three bytes before a sector ends, or ends three bytes behind.
    begin = length(own) + 32 + 4
    record = encode_record(2, messages(1, 2, "y" * 600), None)
    wanted = -3 if missing == "the first bytes" else 3 - len(record)
    own.append([b"x" * ((wanted - begin) % 512)], 1)
    at = length(own)
    boundary = at + 3 if missing == "the first bytes" else at + len(record) - 3
    assert boundary % 512 == 0
    own.close()
    with path_of(own, "entries").open("ab") as file:
        file.write(record)
    data = bytearray(path_of(own, "entries").read_bytes())
    if missing == "the first bytes":
        data[at:boundary] = bytes(3)
    else:
        data[boundary:] = bytes(3)
    path_of(own, "entries").write_bytes(bytes(data))
    # The computer was started since, so nobody says anything.
    path_of(own, "writers").unlink()
    own.open()
    assert own.size == 2
    assert length(own) == at


@pytest.mark.parametrize("in_the_next", range(1, 32))
def test_a_header_of_which_the_next_sector_never_reached_the_disk_is_torn(
    own: LogFile, in_the_next: int
) -> None:
    own.append(messages(1), 1)
    at = length(own) + HEADER_BYTES + 4
    own.append([b"x" * ((in_the_next - HEADER_BYTES - at) % 512)], 1)
    at = length(own)
    boundary = at + HEADER_BYTES - in_the_next
    assert boundary % 512 == 0
    own.close()
    before = path_of(own, "entries").read_bytes()
    record = encode_record(2, [b"y"], None)
    path_of(own, "entries").write_bytes((before + record)[:boundary].ljust(at + len(record), b"\0"))
    path_of(own, "writers").unlink()
    own.open()
    assert own.size == 2
    assert length(own) == at


@pytest.mark.parametrize("flipped", [2, 30, 31])
def test_a_damaged_header_across_sectors_is_damage(own: LogFile, flipped: int) -> None:
    own.append(messages(1), 1)
    at = length(own) + HEADER_BYTES + 4
    own.append([b"x" * ((1 - HEADER_BYTES - at) % 512)], 1)
    at = length(own)
    # Its last byte of the header is in the next sector; and in 1 of 256 it is zero.
    bodies = (str(number).encode() for number in itertools.count())
    record = next(r for r in (encode_record(2, [b], None) for b in bodies) if not r[31])
    own.close()
    data = bytearray(path_of(own, "entries").read_bytes() + record)
    data[at + flipped] ^= 1
    path_of(own, "entries").write_bytes(bytes(data))
    path_of(own, "writers").unlink()
    with pytest.raises(StateCorruptError):
        own.open()
    assert path_of(own, "entries").read_bytes() == bytes(data)


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("written", [20, 100, 1_500])
def test_what_the_node_began_in_the_room_is_cut_off_though_its_hashes_are_written(
    own: LogFile,
    direct: Callable[[], DirectLog],
    monkeypatch: pytest.MonkeyPatch,
    written: int,
    is_restarted: bool,
) -> None:
    log = direct()
    for number in range(30):
        log.append(messages(1, number, "y" * 600))
    take_in(own)
    end, write = said(own).end, os.pwrite
    assert length(own) > end + 4_000

    def killing(fd: int, data: bytes, offset: int) -> int:
        if offset == end:
            # Of a record of 3,000 bytes, up to the end of a sector.
            write(fd, data[: written - (end + written) % 512], offset)
            raise _Killed
        return write(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", killing)
        with pytest.raises(_Killed):
            own.append([b"z" * 3_000], 1)
    own.close()
    path_of(own, "checkpoint").unlink(missing_ok=True)
    if is_restarted:
        path_of(own, "writers").unlink()
    own.open()
    assert own.size == 30
    assert own.check() == ()
    assert own.append(messages(1, 30), 1) == 30


def test_hashes_of_a_record_that_was_withdrawn_are_not_about_the_one_in_its_place(
    own: LogFile, roomy_log: DirectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_in(own)
    end, write = said(own).end, os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if offset == end:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StorageFullError):
            own.append([b"z" * 3_000], 1)
    roomy_log.append([b"y" * 2_000])
    roomy_log.close()
    crashed(own)
    # A bit has flipped in what the program was told of.
    data = bytearray(path_of(own, "entries").read_bytes())
    data[end + 1_000] ^= 1
    path_of(own, "entries").write_bytes(bytes(data))
    with pytest.raises(StateCorruptError):
        own.open()
    assert path_of(own, "entries").read_bytes() == bytes(data)


def test_a_head_of_which_the_last_bytes_never_reached_the_disk_is_torn(
    own: LogFile, direct: Callable[[], DirectLog]
) -> None:
    own.append(messages(1), 1)
    # The head's record has 229 bytes, of which three are in the next sector.
    fill = (512 + 3 - 229 - (length(own) + 32 + 4)) % 512
    own.append([b"x" * fill], 1)
    own.append([], 2)
    end = length(own)
    assert end % 512 == 3
    crashed(own)
    data = path_of(own, "entries").read_bytes()
    path_of(own, "entries").write_bytes(data[:-3] + bytes(3) + bytes(2_000))
    path_of(own, "writers").unlink()
    own.open()
    assert own.size == 2
    assert length(own) == end - 229
    assert direct().append(messages(1, 2)) == 2
