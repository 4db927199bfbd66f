"""Appending to feeds, reading them back, opening them: against bare loops of the same bytes.

Messages have 200 bytes. Disks differ from minute to minute, so what is compared takes turns.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio
from feeds_daemons import measure_clients
from processes import child, child_running, environment
from settings import Settings
from table import Row, Sample, at_least, at_most, figure, sample

from kachery_p2p.content.hashes import FeedId
from kachery_p2p.feeds.appending import Appender
from kachery_p2p.feeds.keys import FeedKey
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.log_files import LogFiles
from kachery_p2p.feeds.messages import message_entries
from kachery_p2p.feeds.names import name_hash_of, subfeed_log
from kachery_p2p.feeds.records import encode_record

TEXT = '"' + "x" * 198 + '"'
APPENDERS = 32
BATCH = 1_000
BARE_SHARE_MIN = 0.6
TOGETHER_A_SECOND_MIN = 5_000
BATCHED_A_SECOND_MIN = 150_000
OPEN_S_MAX = 2.0
REPLICATED_A_SECOND_MIN = 50_000
HEARD_MS_MAX = 2.0


def measure(settings: Settings) -> list[Row]:
    """What one node does by itself, what two do together, and what clients get of it."""
    return [
        *measure_appending(settings),
        *measure_opening(settings),
        *measure_following(settings),
        *measure_clients(settings),
    ]


def measure_appending(settings: Settings) -> list[Row]:
    """Messages a second that are on the disk when the appender is told so."""
    bare: list[float] = []
    one: list[float] = []
    many: list[float] = []
    batched: list[float] = []
    with_log = partial(_with_log, settings.room("appending"))
    record = encode_record(0, message_entries([TEXT], 1), None)
    for number in settings.times(7):
        bare.append(_bare_loop(settings.directory / f"bare{number}", record, settings.calls(1_000)))
        one.append(with_log(partial(_one_by_one, calls=settings.calls(1_000))))
        many.append(with_log(partial(_together, calls=settings.calls(300))))
        batched.append(with_log(partial(_in_batches, calls=settings.calls(50))))
    loop = sample(bare, "/s")
    shares = sample([a / b for a, b in zip(one, bare, strict=True)], "x")
    return [
        Row("bare loop: append + fdatasync of one record", loop),
        Row(
            "messages appended one by one, in the node",
            sample(one, "/s"),
            f"{figure(shares.median)}x the bare loop beside it",
            budget=at_least(BARE_SHARE_MIN, shares.median, "x"),
        ),
        Row(
            f"messages appended by {APPENDERS} at once, in the node",
            sample(many, "/s"),
            f"{figure(sample(many, '').median / loop.median)}x the bare loop",
            budget=at_least(TOGETHER_A_SECOND_MIN, sample(many, "").median, "/s"),
        ),
        Row(
            f"messages appended in batches of {BATCH:,}, in the node",
            sample(batched, "/s"),
            budget=at_least(BATCHED_A_SECOND_MIN, sample(batched, "").median, "/s"),
        ),
    ]


def measure_opening(settings: Settings) -> list[Row]:
    """A subfeed of a million messages: opened after a kill, and read."""
    directory = settings.room("opening")
    count = 10 * BATCH if settings.quick else 1_000_000
    files = LogFiles(f"{directory}/feeds")
    own = _own(files)
    for _ in range(count // BATCH):
        own.append(message_entries([TEXT] * BATCH, 1), 1)
    opened, rebuilt, read = [], [], []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in settings.times(5):
        # Not `close`, which notes how far it came: a kill does not.
        checkpoint = _bytes_of(own, "checkpoint")
        files.close()
        _restore(own, "checkpoint", checkpoint)
        opened.append(_timed(own.open))
        read.append(count / _timed(partial(_read_all, own)))
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    for _ in settings.times(3):
        files.close()
        for name in ("hashes", "offsets", "checkpoint"):
            Path(own.path, name).unlink(missing_ok=True)
        rebuilt.append(_timed(own.open))
    files.close()
    seconds: Sample = sample(opened, "s")
    return [
        Row(
            f"subfeed of {count:,} messages opened after a kill",
            seconds,
            peak=figure(peak),
            budget=at_most(OPEN_S_MAX, seconds.median, "s"),
        ),
        Row("... with all that is derived made anew", sample(rebuilt, "s")),
        Row("messages read back and verified", sample(read, "/s")),
    ]


def measure_following(settings: Settings) -> list[Row]:
    """Two nodes: a reader that has nothing yet, and how fast it then hears of each message."""
    count = BATCH if settings.quick else 200_000
    live = settings.calls(300)
    rates: list[float] = []
    waits: list[float] = []
    for number in settings.times(5):
        room = settings.room(f"following{number}")
        env = environment(room)
        with child_running(env, "feed_nodes.write", f"{room}/a", count, live) as told:
            address, feed = told.split()
            done = child(env, "feed_nodes.follow", f"{room}/b", address, feed, count, live)
        rates.append(count / done["seconds"])
        waits += done["waits_ms"]
    rate, wait = sample(rates, "/s"), sample(waits, "ms")
    late = sorted(waits)[int(0.99 * len(waits))]
    return [
        Row(
            f"{count:,} messages to an empty reader, verified and durable",
            rate,
            budget=at_least(REPLICATED_A_SECOND_MIN, rate.median, "/s"),
        ),
        Row(
            "from append to a remote reader's waiting read",
            wait,
            f"99 % within {figure(late)} ms",
            budget=at_most(HEARD_MS_MAX, wait.median, "ms"),
        ),
    ]


def _own(files: LogFiles) -> LogFile:
    key = FeedKey(bytes(range(32)))
    return files.own(subfeed_log(FeedId(key.feed), name_hash_of("main")), key)


def _with_log(directory: Path, append: Callable[[Appender, LogFile], object]) -> float:
    """The messages a second that `append` gets into a new log."""
    path = directory / str(time.monotonic_ns())
    files = LogFiles(str(path))
    own = _own(files)

    async def main() -> float:
        appender = Appender()
        async with trio.open_nursery() as nursery:
            await nursery.start(appender.run)
            began = time.perf_counter()
            await append(appender, own)  # type: ignore[misc]
            seconds = time.perf_counter() - began
            nursery.cancel_scope.cancel()
        return seconds

    seconds = trio.run(main)
    rate = own.size / seconds
    files.close()
    return rate


async def _one_by_one(appender: Appender, log: LogFile, calls: int) -> None:
    for _ in range(calls):
        await appender.append(log, message_entries([TEXT], 1))


async def _together(appender: Appender, log: LogFile, calls: int) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(APPENDERS):
            nursery.start_soon(_one_by_one, appender, log, calls)


async def _in_batches(appender: Appender, log: LogFile, calls: int) -> None:
    for _ in range(calls):
        await appender.append(log, message_entries([TEXT] * BATCH, 1))


def _bare_loop(path: Path, record: bytes, calls: int) -> float:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    began = time.perf_counter()
    for number in range(calls):
        os.pwrite(fd, record, number * len(record))
        os.fdatasync(fd)
    seconds = time.perf_counter() - began
    os.close(fd)
    path.unlink()
    return calls / seconds


def _read_all(log: LogFile) -> None:
    position = 0
    while position < log.size:
        position += len(log.entries(position, 10_000, 1 << 20))


def _bytes_of(log: LogFile, name: str) -> bytes | None:
    path = Path(log.path, name)
    return path.read_bytes() if path.exists() else None


def _restore(log: LogFile, name: str, data: bytes | None) -> None:
    path = Path(log.path, name)
    path.unlink(missing_ok=True)
    if data is not None:
        path.write_bytes(data)
        path.chmod(0o600)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
