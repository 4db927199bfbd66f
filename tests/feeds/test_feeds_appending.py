"""Appending for many: one record for those that wait together, and each hears what became of it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable

import pytest
import trio
import trio.testing

from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.errors import (
    FeedReadOnlyError,
    FeedStoppedError,
    MessageTooLargeError,
    StorageFullError,
)
from kachery_p2p.feeds import appending
from kachery_p2p.feeds.appending import Appender
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.log_files import LogFiles
from kachery_p2p.feeds.names import subfeed_log
from kachery_p2p.limits import RECORD_BYTES_MAX, RECORD_ENTRIES_MAX
from tests.feeds.feed_parts import FEED, KEY, LOG, messages


class Disk:
    """Syncs that wait until they are let go."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.syncs = 0
        self.free = threading.Event()
        self.free.set()
        self.begun = threading.Event()
        self.error: OSError | None = None
        really = os.fdatasync

        def sync(fd: int) -> None:
            self.syncs += 1
            self.begun.set()
            assert self.free.wait(60)
            if self.error is not None:
                raise self.error
            really(fd)

        patch.setattr(os, "fdatasync", sync)

    async def block(self) -> None:
        self.begun.clear()
        self.free.clear()

    async def wait_for_sync(self) -> None:
        assert await trio.to_thread.run_sync(self.begun.wait, 60)


@pytest.fixture
def disk(own: LogFile, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


async def test_what_is_appended_has_its_position_and_is_there(
    own: LogFile, nursery: trio.Nursery
) -> None:
    grown: list[LogFile] = []
    appender = Appender(grown.append, now=lambda: 7.5)
    await nursery.start(appender.run)
    assert await appender.append(own, messages(3)) == 0
    assert await appender.append(own, messages(1, 3)) == 3
    assert own.entries(0, 9, 1 << 20) == messages(4)
    assert own.signed is not None
    assert own.signed.time_ms == 7_500
    assert grown == [own, own]
    nursery.cancel_scope.cancel()


async def test_those_who_wait_together_share_one_sync(
    own: LogFile, disk: Disk, nursery: trio.Nursery
) -> None:
    appender = Appender()
    await nursery.start(appender.run)
    places: dict[int, int] = {}

    async def append(number: int) -> None:
        places[number] = await appender.append(own, messages(2, 2 * number))

    await disk.block()
    async with trio.open_nursery() as callers:
        callers.start_soon(append, 0)
        await disk.wait_for_sync()
        for number in range(1, 33):
            callers.start_soon(append, number)
        await trio.testing.wait_all_tasks_blocked()
        assert places == {}
        disk.free.set()
    assert disk.syncs == 2
    assert sorted(places.values()) == list(range(0, 66, 2))
    entries = own.entries(0, 100, 1 << 20)
    for number, first in places.items():
        assert entries[first : first + 2] == messages(2, 2 * number)
    nursery.cancel_scope.cancel()


async def test_logs_do_not_wait_for_each_other(
    own: LogFile, files: LogFiles, disk: Disk, nursery: trio.Nursery
) -> None:
    other = files.own(subfeed_log(FEED, sha1_of(b"other")), KEY)
    appender = Appender()
    await nursery.start(appender.run)
    for log in (own, other):
        await disk.block()
        nursery.start_soon(appender.append, log, messages(1))
        await disk.wait_for_sync()
    disk.free.set()
    await appender.append(own, messages(1, 1))
    await appender.append(other, messages(1, 1))
    assert (own.size, other.size) == (2, 2)
    nursery.cancel_scope.cancel()


async def test_more_logs_than_threads_all_get_their_turn(
    files: LogFiles, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    monkeypatch.setattr(appending, "FEED_THREADS_MAX", 2)
    appender = Appender()
    await nursery.start(appender.run)
    logs = [files.own(subfeed_log(FEED, sha1_of(b"%d" % n)), KEY) for n in range(9)]

    async def append(log: LogFile) -> None:
        for number in range(5):
            assert await appender.append(log, messages(1, number)) == number

    async with trio.open_nursery() as callers:
        for log in logs:
            callers.start_soon(append, log)
    assert [log.size for log in logs] == [5] * 9
    nursery.cancel_scope.cancel()


async def test_an_error_is_told_to_each_who_waited_and_to_nobody_else(
    own: LogFile, files: LogFiles, nursery: trio.Nursery
) -> None:
    appender = Appender()
    await nursery.start(appender.run)
    copy = files.copy(subfeed_log(FEED, sha1_of(b"other")))
    with pytest.raises(FeedReadOnlyError):
        await appender.append(copy, messages(1))
    assert await appender.append(own, messages(1)) == 0
    with pytest.MonkeyPatch.context() as patch:

        def full(fd: int, data: bytes, offset: int) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "pwrite", full)
        with pytest.raises(StorageFullError):
            await appender.append(own, messages(1, 1))
    assert await appender.append(own, messages(1, 1)) == 1
    nursery.cancel_scope.cancel()


async def test_after_a_failed_sync_everybody_is_told_to_stop(
    own: LogFile, disk: Disk, nursery: trio.Nursery
) -> None:
    appender = Appender()
    await nursery.start(appender.run)
    disk.error = OSError(errno.EIO, os.strerror(errno.EIO))
    for _ in range(2):
        with pytest.raises(FeedStoppedError):
            await appender.append(own, messages(1))
    assert (own.size, disk.syncs) == (0, 1)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "entries",
    [lambda: [b""] * (RECORD_ENTRIES_MAX + 1), lambda: [bytes(1 << 20)] * 9],
    ids=["many", "long"],
)
async def test_what_no_record_takes_is_refused_as_a_whole(
    own: LogFile, nursery: trio.Nursery, entries: Callable[[], list[bytes]]
) -> None:
    appender = Appender()
    await nursery.start(appender.run)
    with pytest.raises(MessageTooLargeError) as caught:
        await appender.append(own, entries())
    assert caught.value.hint
    assert own.size == 0
    nursery.cancel_scope.cancel()


async def test_what_does_not_fit_one_record_is_for_the_next(
    own: LogFile, disk: Disk, nursery: trio.Nursery
) -> None:
    appender = Appender()
    await nursery.start(appender.run)
    places: list[int] = []

    async def append() -> None:
        places.append(await appender.append(own, [bytes(1 << 20)] * 3))

    await disk.block()
    async with trio.open_nursery() as callers:
        for _ in range(5):
            callers.start_soon(append)
        await disk.wait_for_sync()
        disk.free.set()
    assert sorted(places) == [0, 3, 6, 9, 12]
    assert RECORD_BYTES_MAX < 9 << 20
    assert disk.syncs >= 3
    nursery.cancel_scope.cancel()


async def test_what_waits_is_bounded_and_the_rest_waits_outside(
    own: LogFile, disk: Disk, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    monkeypatch.setattr(appending, "FEED_APPEND_BYTES_MAX", 1_000)
    appender = Appender()
    await nursery.start(appender.run)
    done: list[int] = []

    async def append() -> None:
        done.append(await appender.append(own, [bytes(400)]))

    await disk.block()
    async with trio.open_nursery() as callers:
        for _ in range(10):
            callers.start_soon(append)
        await disk.wait_for_sync()
        await trio.testing.wait_all_tasks_blocked()
        assert appender.waiting_bytes == 800
        disk.free.set()
    assert sorted(done) == list(range(10))
    assert appender.waiting_bytes == 0
    nursery.cancel_scope.cancel()


async def test_stopping_finishes_what_is_being_written_and_refuses_the_rest(
    own: LogFile, disk: Disk
) -> None:
    appender = Appender()
    outcomes: list[object] = []

    async def append(number: int) -> None:
        try:
            outcomes.append(await appender.append(own, messages(1, number)))
        except FeedStoppedError as error:
            outcomes.append(type(error))

    await disk.block()
    async with trio.open_nursery() as callers, trio.open_nursery() as nursery:
        await nursery.start(appender.run)
        callers.start_soon(append, 0)
        await disk.wait_for_sync()
        callers.start_soon(append, 1)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
        disk.free.set()
    assert set(outcomes) == {0, FeedStoppedError}
    assert own.entries(0, 9, 1 << 20) == messages(1)
    with pytest.raises(FeedStoppedError):
        await appender.append(own, messages(1))


async def test_a_thread_that_nobody_needs_goes_and_comes_again(
    own: LogFile, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appending, "FEED_THREAD_LINGER_S", 0.001)
    appender = Appender()
    await nursery.start(appender.run)
    for number in range(3):
        assert await appender.append(own, messages(1, number)) == number
        with trio.fail_after(30):
            while appender.is_busy(own):
                await trio.lowlevel.checkpoint()
    assert own.log == LOG
    nursery.cancel_scope.cancel()
