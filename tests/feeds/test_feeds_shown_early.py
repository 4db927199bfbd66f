"""A message is read while the disk of the reader's node takes it; nobody else hears of it yet."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from kachery_p2p.errors import FeedStoppedError, HeadError, StorageFullError
from kachery_p2p.feeds import opened
from kachery_p2p.feeds.disk import sync_data
from kachery_p2p.feeds.hands import Hands
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.log_files import LogFiles
from kachery_p2p.feeds.replica import Replica, Standing
from kachery_p2p.feeds.subfeed import Subfeed
from kachery_p2p.feeds.told import SubfeedName, Told
from kachery_p2p.limits import FEED_FORESEEN_ENTRIES_MAX
from tests.feeds.feed_nodes import MAIN, FeedLab
from tests.feeds.feed_parts import KEY, LOG, NAME, MemoryLog, messages

WAIT_S = 60


class Gate:
    """A disk that takes what copies are given only when it is let."""

    def __init__(self) -> None:
        self.is_open = threading.Event()

    def sync(self, descriptor: int) -> None:
        assert self.is_open.wait(WAIT_S)
        sync_data(descriptor)

    @contextlib.contextmanager
    def shut(self) -> Iterator[None]:
        self.is_open.clear()
        try:
            yield
        finally:
            self.is_open.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    gate.is_open.set()
    monkeypatch.setattr(opened, "sync_data", gate.sync)
    return gate


class Copy:
    """An owner's log, and the copy of it on a disk."""

    def __init__(self, log: LogFile, hands: Hands) -> None:
        self.own = MemoryLog(LOG, KEY)
        self.log = log
        self.subfeed = Subfeed(NAME, Replica(log), hands)

    def news(self) -> Told:
        self.own.append(messages(1, self.own.size))
        return Replica(self.own).tell_news(self.own.size - 1)

    def counts(self) -> tuple[int, int]:
        return self.subfeed.readable, self.subfeed.size


@pytest.fixture
async def copy(gate: Gate, files: LogFiles) -> AsyncIterator[Copy]:
    hands = Hands()
    made = Copy(files.copy(LOG), hands)
    await made.subfeed.hear(made.news())
    assert made.counts() == (1, 1)
    yield made
    hands.close()


async def test_what_the_disk_is_given_can_be_read_and_is_not_passed_on(
    gate: Gate, copy: Copy
) -> None:
    subfeed, news = copy.subfeed, copy.news()
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            with gate.shut():
                changed = subfeed.changed
                nursery.start_soon(subfeed.hear, news)
                await changed.wait()
                assert copy.counts() == (2, 2)
                assert list(subfeed.recent(0, 9)) == messages(2)
                # What others are told, and what a crash would leave.
                shown = subfeed.replica.shown
                assert shown is not None
                assert (shown.size, subfeed.replica.readable) == (1, 1)
                await wait_all_tasks_blocked()
                assert subfeed.replica.readable == 1
    assert copy.counts() == (2, 2)
    assert subfeed.replica.shown == copy.own.signed
    assert copy.log.entries(0, 9, 1 << 20) == messages(2)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
async def test_what_the_disk_did_not_take_is_not_read_any_more(
    copy: Copy, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    subfeed, news = copy.subfeed, copy.news()
    call, error = {
        errno.EIO: ("sync_data", FeedStoppedError),
        errno.ENOSPC: ("write_all", StorageFullError),
    }[code]

    def fail(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(opened, call, fail)
        hearing = subfeed.begin_hearing(news)
        assert hearing is not None
        assert copy.counts() == (2, 2)
        with pytest.raises(error):
            await subfeed.hear(news, hearing)
        assert copy.counts() == (1, 1)
        assert list(subfeed.recent(0, 9)) == messages(1)
        # It is not shown again and again.
        hearing = subfeed.begin_hearing(news)
        assert hearing is not None
        assert copy.counts() == (1, 1)
        with pytest.raises(error):
            await subfeed.hear(news, hearing)
    if code == errno.ENOSPC:
        await subfeed.hear(news)
        assert copy.counts() == (2, 2)
        assert subfeed.begin_hearing(copy.news()) is not None
        assert copy.counts() == (3, 3)


async def test_what_takes_long_to_verify_is_read_when_the_disk_has_it(
    gate: Gate, copy: Copy
) -> None:
    subfeed = copy.subfeed
    copy.own.append(messages(FEED_FORESEEN_ENTRIES_MAX + 1, 1))
    many = Replica(copy.own).tell_news(1)
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            with gate.shut():
                nursery.start_soon(subfeed.hear, many)
                await wait_all_tasks_blocked()
                assert copy.counts() == (1, 1)
    assert copy.counts() == (copy.own.size, copy.own.size)


async def test_a_lie_is_never_read(copy: Copy) -> None:
    subfeed, changed, news = copy.subfeed, copy.subfeed.changed, copy.news()
    heard = await subfeed.hear(news._replace(entries=messages(1, 1, "forged")))
    assert heard.standing is Standing.UNKNOWN
    # Entries that fit a head that the owner has not signed.
    signed = news.head
    assert signed is not None
    forged = signed._replace(signature=bytes([signed.signature[0] ^ 1]) + signed.signature[1:])
    hearing = subfeed.begin_hearing(news._replace(head=forged))
    assert hearing is not None
    assert copy.counts() == (1, 1)
    with pytest.raises(HeadError):
        await subfeed.hear(news, hearing)
    assert copy.counts() == (1, 1)
    assert not changed.is_set()
    await subfeed.hear(news)
    assert list(subfeed.recent(0, 9)) == messages(2)


async def test_a_reader_has_the_message_before_its_disk_and_says_so_when_that_has_it(
    virtual_clock: MockClock, gate: Gate, lab: FeedLab
) -> None:
    author, reader = await lab.node("author"), await lab.node("reader")
    feed = await author.new_feed('"one"')
    assert await reader.read_all(feed, 1) == ['"one"']
    name = SubfeedName(feed, MAIN)
    (follower,) = author.feeds._spreading._followers[name].values()
    with gate.shut():
        await author.append(feed, '"two"')
        found, size = await reader.feeds.read(feed, MAIN, 1, 9, 1 << 20, 5)
        assert ([message.text for message in found], size) == (['"two"'], 2)
        assert await reader.feeds.watch([(feed, MAIN, 1)], 0) == [0]
        info = await reader.feeds.subfeed(feed, MAIN)
        assert (info.size, info.local_size) == (2, 2)
        # As much as fits, one at least.
        found, _ = await reader.feeds.read(feed, MAIN, 0, 9, 1, 0)
        assert [message.text for message in found] == ['"one"']
        await author.append(feed, '"three"')
        assert (await reader.subfeed(feed)).replica.readable == 1
        assert follower.size < 2
    assert await reader.read_all(feed, 3) == ['"one"', '"two"', '"three"']
    await author.until(feed, lambda _: follower.size == 3)


def test_the_gate_is_where_copies_are_synced(tmp_path: Path) -> None:
    """Or the tests above would show nothing."""
    (tmp_path / "config").mkdir()
    files = LogFiles(f"{tmp_path}/config/feeds")
    own, log = MemoryLog(LOG, KEY), files.copy(LOG)
    own.append(messages(1))
    synced: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opened, "sync_data", synced.append)
        assert Replica(log).hear(Replica(own).tell_news(0)).kept == messages(1)
    files.close()
    assert len(synced) == 1
