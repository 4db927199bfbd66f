"""Zeros ahead of the records of an own subfeed, whatever happens to them."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

import pytest

from kachery_p2p.errors import StateCorruptError
from kachery_p2p.feeds import direct as direct_module
from kachery_p2p.feeds.direct import DirectLog
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.log_files import LogFiles
from kachery_p2p.feeds.records import encode_record
from kachery_p2p.feeds.writers import Writers
from kachery_p2p.limits import FEED_ROOM_BYTES_MAX
from tests.feeds.direct_logs import failing, length, put, refused, said, take_in
from tests.feeds.feed_logs import all_of, crashed, path_of, reopened
from tests.feeds.feed_parts import LOG, messages


def test_one_who_appends_short_records_makes_room_now_and_then(
    own: LogFile, direct: Callable[[], DirectLog]
) -> None:
    log, lengths = direct(), set()
    for number in range(1_000):
        log.append(messages(1, number))
        lengths.add(length(own))
        if said(own).end < 8_192:
            assert length(own) == said(own).end, "a short feed stays short"
    assert said(own).end < length(own) <= 1.5 * said(own).end
    data = path_of(own, "entries").read_bytes()
    assert not any(data[said(own).end :])
    grown = [each for each in lengths if each > 8_192]
    assert len(grown) < 20
    assert take_in(own) == messages(1_000)
    assert all_of(reopened(own)) == messages(1_000)


def test_room_has_a_bound_and_long_records_need_none(
    own: LogFile, direct: Callable[[], DirectLog]
) -> None:
    log = direct()
    log.append([bytes([65]) * 1_000_000] * 4)
    assert length(own) == said(own).end
    log.append(messages(1, 4))
    assert length(own) == said(own).end + FEED_ROOM_BYTES_MAX
    log.append([b"x" * 20_000])
    assert length(own) < said(own).end + FEED_ROOM_BYTES_MAX
    assert len(take_in(own)) == own.size == 6


def test_a_disk_that_is_full_of_it_takes_the_records_all_the_same(
    own: LogFile, direct: Callable[[], DirectLog], roomy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, write, refusals = direct(), os.pwrite, 0

    def full(fd: int, data: bytes, offset: int) -> int:
        nonlocal refusals
        if not any(data):
            refusals += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    for number in range(5):
        assert log.append(messages(1, number)) == number
    assert refusals
    assert take_in(own) == messages(5)


def test_the_node_notices_what_is_written_into_the_room_and_nothing_else(
    files: LogFiles, own: LogFile, roomy_log: DirectLog
) -> None:
    assert own.untaken() == said(own).end
    assert take_in(own) == messages(7)
    assert own.untaken() == 0
    roomy_log.append(messages(1, 7))
    assert own.has_grown()
    assert take_in(own) == messages(1, 7)
    own.close()
    assert own.untaken() == 0
    assert not files.has_grown(LOG, 8)
    again = DirectLog(own.path)
    again.append(messages(1, 8))
    again.close()
    assert own.has_grown()
    assert files.has_grown(LOG, 8)
    own.open()
    assert all_of(own) == messages(9)


def test_the_node_appends_in_the_room_that_a_program_made(
    own: LogFile, roomy_log: DirectLog
) -> None:
    before = length(own)
    assert own.append(messages(1, 7), 1) == 7
    assert length(own) == before
    assert roomy_log.append(messages(1, 8)) == 8
    assert all_of(reopened(own)) == messages(9)


@pytest.mark.parametrize("cut", [1, 4, 31, 32, 40, -1])
@pytest.mark.parametrize("who", ["program", "node", "restart", "crash"])
def test_a_record_that_was_begun_in_the_room_is_cut_off(
    own: LogFile, roomy_log: DirectLog, direct: Callable[[], DirectLog], cut: int, who: str
) -> None:
    put(own, encode_record(7, messages(1, 99), None)[:cut])
    if who == "program":
        assert roomy_log.append(messages(1, 7)) == 7
    elif who == "node":
        assert own.append(messages(1, 7), 1) == 7
    elif who == "restart":
        reopened(own)
        assert direct().append(messages(1, 7)) == 7
    else:
        crashed(own)
        own.open()
        assert own.append(messages(1, 7), 1) == 7
    take_in(own)
    assert all_of(own) == messages(8)
    assert b"m99" not in path_of(own, "entries").read_bytes()


@pytest.mark.parametrize("who", ["program", "node", "restart", "crash"])
def test_a_whole_record_in_the_room_counts(own: LogFile, roomy_log: DirectLog, who: str) -> None:
    put(own, encode_record(7, messages(2, 7), None))
    if who == "program":
        assert roomy_log.append(messages(1, 9)) == 9
    elif who == "node":
        assert own.append(messages(1, 9), 1) == 9
    else:
        if who == "crash":
            crashed(own)
        assert reopened(own).append(messages(1, 9), 1) == 9
    take_in(own)
    assert all_of(own) == messages(10)


def test_of_what_a_crash_left_in_the_room_nothing_stays_behind_a_gap(
    own: LogFile, roomy_log: DirectLog
) -> None:
    # The page with its first half was not written, the one with its second was.
    record = encode_record(7, messages(200, 7), None)
    put(own, record[len(record) // 2 :], said(own).end + len(record) // 2)
    crashed(own)
    own.open()
    assert all_of(own) == messages(7)
    assert length(own) < said(own).end + len(record) // 2
    assert own.append(messages(1, 7), 1) == 7


def test_a_record_that_is_damaged_is_no_room(own: LogFile, roomy_log: DirectLog) -> None:
    record = bytearray(encode_record(7, messages(3, 7), None))
    record[60] ^= 1
    put(own, bytes(record))
    before = path_of(own, "entries").read_bytes()
    assert refused(roomy_log) is None
    with pytest.raises(StateCorruptError):
        own.append(messages(1, 7), 1)
    assert path_of(own, "entries").read_bytes() == before


def test_zeros_in_the_place_of_known_entries_are_damage_and_no_room(
    own: LogFile, roomy_log: DirectLog
) -> None:
    take_in(own)
    own.close()
    end = said(own).end
    put(own, bytes(end // 2), end // 2)
    own.open()
    assert own.size == 7
    assert own.check()
    assert length(own) > end
    assert own.append(messages(1, 7), 1) == 7


def test_more_zeros_than_anybody_writes_ahead_are_cut_off_like_other_gaps(own: LogFile) -> None:
    own.append(messages(3), 1)
    end = length(own)
    crashed(own)
    os.truncate(path_of(own, "entries"), end + 3 * FEED_ROOM_BYTES_MAX)
    own.open()
    assert all_of(own) == messages(3)
    assert length(own) == end


def test_a_file_that_was_cut_at_its_last_record_gets_new_room(
    own: LogFile, roomy_log: DirectLog
) -> None:
    os.truncate(path_of(own, "entries"), said(own).end)
    for number in range(7, 40):
        assert roomy_log.append(messages(1, number)) == number
    assert length(own) > said(own).end
    assert take_in(own) == messages(40)


def test_a_file_that_was_cut_before_is_refused(own: LogFile, roomy_log: DirectLog) -> None:
    os.truncate(path_of(own, "entries"), said(own).end - 1)
    assert refused(roomy_log) is None


def test_who_had_to_wait_for_others_asks_the_disk_once_less(
    own: LogFile, roomy_log: DirectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(direct_module, "start_write_back", lambda *about: asked.append(1))
    roomy_log.append(messages(1, 7))
    assert len(asked) == 1
    other = Writers(os.open(path_of(own, "writers"), os.O_RDWR))
    other.take()
    # While it sleeps the other one is done.
    monkeypatch.setattr(time, "sleep", lambda s: other.__exit__(None, None, None))
    roomy_log.append(messages(1, 8))
    other.close()
    assert len(asked) == 1
    roomy_log.append(messages(1, 9))
    assert len(asked) == 2
    assert take_in(own) == messages(10)


# --- who ends between making it and saying what is before it --------------------------------------


@pytest.fixture
def long_log(own: LogFile, direct: Callable[[], DirectLog]) -> DirectLog:
    """A log that is so long that the next short record gets all the room there can be."""
    log = direct()
    log.append([b"x" * 500_000] * 5)
    assert len(take_in(own)) == 5
    return log


@pytest.mark.parametrize("who", ["program", "node", "restart", "crash"])
def test_the_record_before_all_the_room_counts_if_nobody_says_so(
    own: LogFile,
    long_log: DirectLog,
    direct: Callable[[], DirectLog],
    monkeypatch: pytest.MonkeyPatch,
    who: str,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing("pwrite", errno.EIO, "writers"))
        assert long_log.append(messages(1, 5)) == 5
    assert length(own) > said(own).end + FEED_ROOM_BYTES_MAX
    if who == "program":
        assert direct().append(messages(1, 6)) == 6
    elif who == "node":
        assert own.append(messages(1, 6), 1) == 6
    else:
        if who == "crash":
            crashed(own)
        assert reopened(own).append(messages(1, 6), 1) == 6
    take_in(own)
    assert own.entries(5, 2, 1 << 20) == messages(2, 5)


def test_an_alarm_while_it_is_made_is_no_failure_of_the_disk(
    own: LogFile, long_log: DirectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite

    def alarmed(fd: int, data: bytes, offset: int) -> int:
        if not any(data):
            raise TimeoutError("the alarm of the program")
        return write(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", alarmed)
        with pytest.raises(TimeoutError):
            long_log.append(messages(1, 5))
    # Whether it was appended nobody knows; it was, and is found.
    assert long_log.append(messages(1, 6)) == 6
    assert take_in(own) == messages(2, 5)


def test_a_look_whether_something_follows_reads_next_to_nothing(
    files: LogFiles, own: LogFile, long_log: DirectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing("pwrite", errno.EIO, "writers"))
        long_log.append(messages(1, 5))
    pread, sizes = os.pread, []

    def noting(fd: int, count: int, offset: int) -> bytes:
        sizes.append(count)
        return pread(fd, count, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", noting)
        assert own.has_grown()
        assert sum(sizes) < 100
        assert take_in(own) == messages(1, 5)
        own.close()
        sizes.clear()
        assert not own.has_grown()
        assert not files.has_grown(LOG, 6)
        assert sum(sizes) < 1_000


# --- a disk that was away -------------------------------------------------------------------------


def test_nobody_appends_where_later_pages_of_something_lost_would_follow(
    own: LogFile, roomy_log: DirectLog, direct: Callable[[], DirectLog]
) -> None:
    for number in range(7, 60):
        roomy_log.append(messages(1, number))
    take_in(own)
    record = encode_record(60, messages(300, 60), None)
    lost = -said(own).end % 4_096 or 4_096
    put(own, record[lost:], said(own).end + lost)
    assert refused(direct()) is None
    path_of(own, "checkpoint").unlink(missing_ok=True)
    assert reopened(own).size == 60
    assert direct().append(messages(1, 60)) == 60
    take_in(own)
    assert all_of(own) == messages(61)
