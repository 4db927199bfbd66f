"""What of an own subfeed is on the disk, as its writers tell each other, and what nobody knows."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from kachery_p2p.errors import FeedStoppedError
from kachery_p2p.feeds.direct import DirectLog
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.records import Header, encode_record
from kachery_p2p.feeds.writers import Standing
from tests.feeds.direct_logs import failing, refused, said, take_in
from tests.feeds.feed_logs import path_of
from tests.feeds.feed_parts import messages


def test_a_newcomer_writes_once_more_what_nobody_vouches_for(
    own: LogFile, direct: Callable[[], DirectLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = direct()
    log.append(messages(1))
    log.append(messages(1, 1))
    # The sync of the second may have failed before a newcomer opened the file.
    synced, entries = said(own).synced, path_of(own, "entries").read_bytes()
    assert 0 < synced < len(entries)
    written: list[tuple[int, bytes]] = []
    really = os.pwrite

    def noted(fd: int, data: Any, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("entries"):
            written.append((offset, bytes(data)))
        return really(fd, data, offset)

    newcomer = direct()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", noted)
        newcomer.append(messages(1, 2))
        newcomer.append(messages(1, 3))
    assert written[0] == (synced, entries[synced:])
    assert [offset for offset, _ in written[1:]] == [len(entries), written[2][0]]
    assert take_in(own) == messages(4)


def test_what_nobody_vouches_for_is_written_once_more_in_pieces_and_then_vouched_for(
    own: LogFile, direct: Callable[[], DirectLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = direct()
    log.append(messages(1))
    with monkeypatch.context() as patch:
        # They write, and are killed before they sync.
        patch.setattr(DirectLog, "_sync", lambda *about: None)
        for number in range(1, 501, 5):
            log.append(messages(5, number))
    entries, begin = path_of(own, "entries"), said(own).synced
    monkeypatch.setattr("kachery_p2p.feeds.direct.FEED_REWRITTEN_BYTES", 1_000)
    calls: list[tuple[str, int]] = []
    write, sync = os.pwrite, os.fdatasync

    def pwrite(fd: int, data: Any, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("entries"):
            calls.append(("write", len(data)))
        else:
            calls.append(("say", said(own).synced))
        return write(fd, data, offset)

    def fdatasync(fd: int) -> None:
        calls.append(("sync", 0))
        sync(fd)

    end = said(own).end
    newcomer = direct()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        patch.setattr(os, "fdatasync", fdatasync)
        assert newcomer.append(messages(1, 501)) == 501
    pieces = 0
    while begin + 1_000 < end:
        (write_call, count), *others = calls[3 * pieces : 3 * pieces + 3]
        # A whole number of records, so that who is killed in between leaves the begin of one.
        assert write_call == "write"
        assert 1_000 <= count < 1_200
        assert others == [("sync", 0), ("say", begin)]
        begin, pieces = begin + count, pieces + 1
        assert Header.decode(entries.read_bytes()[begin : begin + 32]) is not None
    assert pieces > 5
    assert len(calls) == 3 * pieces + 5
    # So who comes next finds nothing to do.
    assert said(own).synced == said(own).end == len(entries.read_bytes().rstrip(b"\0"))
    assert take_in(own) == messages(502)


@pytest.mark.parametrize("what", ["all of it", "the first", "the last", "a byte"])
def test_what_a_lost_disk_never_got_is_neither_written_once_more_nor_written_behind(
    own: LogFile,
    direct: Callable[[], DirectLog],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    log, entries = direct(), path_of(own, "entries")
    log.append(messages(1))
    at = [entries.stat().st_size]
    with monkeypatch.context() as patch:
        patch.setattr(DirectLog, "_sync", lambda *about: None)
        for number in range(1, 4):
            log.append(messages(1, number))
            at.append(entries.stat().st_size)
    lost = {"all of it": (0, 3), "the first": (0, 1), "the last": (2, 3), "a byte": (1, 2)}[what]
    begin, end = at[lost[0]], at[lost[1]]
    if what == "a byte":
        begin = end - 1
    data = entries.read_bytes()
    data = data[:begin] + bytes(end - begin) + data[end:]
    entries.write_bytes(data)
    assert refused(direct()) is None
    assert entries.read_bytes() == data


def test_who_appends_once_leaves_nothing_for_the_next_to_write_once_more(
    own: LogFile, direct: Callable[[], DirectLog]
) -> None:
    for number in range(3):
        assert direct().append(messages(1, number)) == number
        assert said(own).synced == said(own).end == path_of(own, "entries").stat().st_size


def test_not_more_is_left_unsynced_than_a_crash_may_leave_half_written(
    own: LogFile, direct: Callable[[], DirectLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kachery_p2p.feeds.direct._UNSYNCED_BYTES_MAX", 300)
    one, other = direct(), direct()
    one.append(messages(1))
    other.append(messages(1, 1))
    # They write, and do not come to sync.
    monkeypatch.setattr(DirectLog, "_sync", lambda *about: None)
    for number in range(2, 30):
        assert (one, other)[number % 2].append(messages(1, number)) == number
        assert said(own).end - said(own).synced < 400
    monkeypatch.setattr(os, "fdatasync", failing("fdatasync", errno.EIO))
    with pytest.raises(FeedStoppedError):
        for number in range(30, 60):
            one.append(messages(1, number))
    assert said(own).standing is Standing.STOPPED


def test_a_record_says_what_was_not_known_to_be_on_the_disk(
    own: LogFile, direct: Callable[[], DirectLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = direct(), direct()
    one.append(messages(1))
    one.append(messages(1, 1))
    other.append(messages(1, 2))
    other.append(messages(1, 3))
    data = path_of(own, "entries").read_bytes()
    doubtful, at = [], 0
    while header := Header.decode(data[at : at + 32]):
        doubtful.append(header.doubtful)
        at += 32 + header.body_bytes
    # The third was written before anybody else could know of the sync of the second.
    assert doubtful == [0, 0, len(encode_record(1, messages(1, 1), None)), 0]
