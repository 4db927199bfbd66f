from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.feeds.appending import Appender
from kachery_p2p.feeds.direct import DirectLog
from kachery_p2p.feeds.hands import Hands
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.log_files import LogFiles
from tests.feeds.direct_logs import length, said
from tests.feeds.feed_buckets import BucketScene
from tests.feeds.feed_nodes import FeedLab, feed_lab
from tests.feeds.feed_parts import KEY, LOG, messages


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, if there is one: for tests that write thousands of times."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    path = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="kachery-test-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def files(quick_path: Path) -> Iterator[LogFiles]:
    """The subfeeds of one node."""
    files = LogFiles(f"{quick_path}/config/feeds")
    (quick_path / "config").mkdir()
    yield files
    files.close()


@pytest.fixture
def own(files: LogFiles) -> LogFile:
    """An own log without entries."""
    return files.own(LOG, KEY)


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


@pytest.fixture
def virtual_clock(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> MockClock:
    """Time passes when every task waits for it, and stands still while a thread is at work.

    A thread that stays in case that more is appended is at work only while somebody appends.
    """
    at_work = 0
    in_thread, append, by_hand = trio.to_thread.run_sync, Appender.append, Hands.begin

    @contextlib.contextmanager
    def working() -> Iterator[None]:
        nonlocal at_work
        at_work += 1
        autojump_clock.autojump_threshold = math.inf
        try:
            yield
        finally:
            at_work -= 1
            if not at_work:
                autojump_clock.autojump_threshold = 0

    async def run_sync(do: Any, *args: Any, **options: Any) -> Any:
        with contextlib.nullcontext() if _stays(do) else working():
            return await in_thread(do, *args, **options)

    async def append_at_work(*args: Any) -> int:
        with working():
            return await append(*args)

    def by_hand_at_work(
        *args: Any, settled: Callable[[], None] = lambda: None, **options: Any
    ) -> Any:
        working_until = contextlib.ExitStack()
        working_until.enter_context(working())
        working_until.callback(settled)
        return by_hand(*args, settled=working_until.close, **options)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    monkeypatch.setattr(Hands, "begin", by_hand_at_work)
    monkeypatch.setattr(Appender, "append", append_at_work)
    return autojump_clock


def _stays(do: Any) -> bool:
    return getattr(do, "__func__", None) is Appender._write


@pytest.fixture
async def lab(virtual_clock: MockClock, quick_path: Path) -> AsyncIterator[FeedLab]:
    """Nodes with feeds, in the simulated world."""
    async with feed_lab(quick_path) as made:
        yield made


@pytest.fixture
def scene_with_bucket(lab: FeedLab, tmp_path: Path) -> Iterator[BucketScene]:
    """Nodes with feeds, in the simulated world, and a bucket."""
    made = BucketScene(lab, tmp_path)
    yield made
    for book in made.books:
        book.close()


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a short feed gets room."""
    monkeypatch.setattr("kachery_p2p.feeds.room.FEED_ROOM_BYTES_MIN", 1)


@pytest.fixture
def roomy_log(own: LogFile, direct: Callable[[], DirectLog], roomy: None) -> DirectLog:
    """A log with seven entries and room for more."""
    log = direct()
    log.append(messages(7))
    assert length(own) > said(own).end
    return log
