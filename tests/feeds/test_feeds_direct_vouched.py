"""What of an own subfeed is on the disk, as its writers tell each other, and what nobody knows."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kachery_p2p.errors import FeedStoppedError
from kachery_p2p.feeds.direct import DirectLog
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.records import Header, encode_record
from kachery_p2p.feeds.writers import Standing
from tests.feeds.direct_logs import failing, said, take_in
from tests.feeds.feed_logs import path_of
from tests.feeds.feed_parts import messages


@pytest.fixture
def direct(own: LogFile) -> Iterator[Callable[[], DirectLog]]:
    """Opens the log as a program does."""
    made: list[DirectLog] = []

    def opened() -> DirectLog:
        made.append(DirectLog(own.path))
        return made[-1]

    yield opened
    for log in made:
        log.close()


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
    log.append(messages(500, 1))
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

    end = entries.stat().st_size
    newcomer = direct()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        patch.setattr(os, "fdatasync", fdatasync)
        assert newcomer.append(messages(1, 501)) == 501
    pieces = (end - begin) // 1_000
    assert pieces > 5
    for piece in range(pieces):
        said_before = begin + 1_000 * piece
        assert calls[3 * piece : 3 * piece + 3] == [
            ("write", 1_000),
            ("sync", 0),
            ("say", said_before),
        ]
    assert len(calls) == 3 * pieces + 5
    # So who comes next finds nothing to do.
    assert said(own).synced == said(own).end == entries.stat().st_size
    assert take_in(own) == messages(502)


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
