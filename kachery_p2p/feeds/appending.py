"""Appending for many at once: what comes while the disk is busy is signed and synced together.

Each log that is appended to has a thread, which takes what waits, writes it as one record, and
lets those go who waited for it. So one sync serves all that came during the one before: a
single caller has the speed of the disk, and many have many times that. A thread lingers for a
moment, because handing work to one that is there takes a fifth of starting one.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

import trio

from kachery_p2p.errors import FeedStoppedError, MessageTooLargeError
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.limits import (
    FEED_APPEND_BYTES_MAX,
    FEED_APPENDS_MAX,
    FEED_THREAD_LINGER_S,
    FEED_THREADS_MAX,
    RECORD_BYTES_MAX,
    RECORD_ENTRIES_MAX,
)


class _Append:
    """One call that waits."""

    __slots__ = ("bytes", "done", "entries", "error", "first")

    def __init__(self, entries: Sequence[bytes]) -> None:
        self.entries = entries
        self.bytes = sum(map(len, entries))
        self.first = 0
        self.error: BaseException | None = None
        self.done = trio.Event()


class _Line:
    """Who waits to append to one log, and the thread that serves them."""

    def __init__(self, log: LogFile) -> None:
        self.log = log
        # None sends the thread away.
        self._waiting: queue.SimpleQueue[_Append | None] = queue.SimpleQueue()
        # What was taken from the queue, but did not fit the last record.
        self._left: _Append | None = None
        self.added = 0
        self._taken = 0

    def add(self, append: _Append) -> None:
        """One more waits."""
        self.added += 1
        self._waiting.put(append)

    def dismiss(self) -> None:
        """Send the thread away once it has served those before."""
        # It looks again after those that wait, and one dismissal is enough.
        if self._waiting.empty():
            self._waiting.put(None)

    def is_empty(self) -> bool:
        """True if nobody waits. To be asked while no thread takes any."""
        return self._taken == self.added

    def take(self) -> list[_Append]:
        """Those that fit one record, when there is one at least; none if the thread may go."""
        batch: list[_Append] = []
        count = size = 0
        # Without a time-out: with one a thread wakes up three times later.
        append = self._left or self._waiting.get()
        while append is not None:
            count, size = count + len(append.entries), size + append.bytes
            fits = count <= RECORD_ENTRIES_MAX and size <= RECORD_BYTES_MAX
            self._left = None if fits else append
            if not fits:
                break
            batch.append(append)
            try:
                append = self._waiting.get_nowait()
            except queue.Empty:
                break
        self._taken += len(batch)
        return batch

    def rest(self) -> list[_Append]:
        """All that wait, when the thread has gone."""
        self._taken = self.added
        found = [] if self._left is None else [self._left]
        while not self._waiting.empty():
            append = self._waiting.get_nowait()
            found += [] if append is None else [append]
        return found


class Appender:
    """Appends to own logs, for any number of callers. `run` it in a nursery."""

    def __init__(
        self,
        appended: Callable[[LogFile], None] = lambda log: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`appended` is called in the trio thread for a log that has grown, once a record."""
        self._appended = appended
        self._now = now
        self._lines: dict[LogFile, _Line] = {}
        self._threads = trio.CapacityLimiter(FEED_THREADS_MAX)
        self._stopping = threading.Event()
        # Entries of calls that are not answered yet.
        self.waiting_bytes = 0
        self._waiting = 0
        self._room = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._trio: trio.lowlevel.TrioToken | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Append for ever. When cancelled, what is being written is finished, and no more begun."""
        self._stopping.clear()
        self._trio = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None
                # The threads do not know of the cancellation, and the nursery waits for them.
                self._stopping.set()
                for line in self._lines.values():
                    line.dismiss()

    async def append(self, log: LogFile, entries: Sequence[bytes]) -> int:
        """Append `entries` to the own `log`; the position of the first. On the disk by then.

        All or none of them. Raises what `LogFile.append` does; MessageTooLargeError if they are
        more than one record takes. Who is cancelled does not know whether they were appended.
        """
        append = _Append(entries)
        if append.bytes > RECORD_BYTES_MAX or len(entries) > RECORD_ENTRIES_MAX:
            raise MessageTooLargeError(
                f"{len(entries):,} messages of {append.bytes:,} bytes are too many for one call",
                hint=f"append at most {RECORD_ENTRIES_MAX:,} messages and "
                f"{RECORD_BYTES_MAX >> 20} MiB at a time",
            )
        while self._waiting and (
            self.waiting_bytes + append.bytes > FEED_APPEND_BYTES_MAX
            or self._waiting >= FEED_APPENDS_MAX
        ):
            await self._room.wait()
        self._enqueue(log, append)
        await append.done.wait()
        if append.error is not None:
            raise append.error.with_traceback(None)
        return append.first

    def is_busy(self, log: LogFile) -> bool:
        """True while a thread appends to the log, or lingers for more."""
        return log in self._lines

    def _enqueue(self, log: LogFile, append: _Append) -> None:
        if self._nursery is None:
            raise _stopping()
        self._waiting += 1
        self.waiting_bytes += append.bytes
        line = self._lines.get(log)
        if line is not None:
            line.add(append)
            return
        line = self._lines[log] = _Line(log)
        line.add(append)
        self._nursery.start_soon(self._serve, line)

    async def _serve(self, line: _Line) -> None:
        """Let a thread append to the log until nobody has come for a moment."""
        try:
            while not self._stopping.is_set() and not line.is_empty():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._dismiss, line)
                    await trio.to_thread.run_sync(self._write, line, limiter=self._threads)
                    nursery.cancel_scope.cancel()
            # Nobody can have come since the last look: nothing is awaited in between.
        finally:
            del self._lines[line.log]
            self._settle(line.log, _failed(line.rest(), _stopping()))

    async def _dismiss(self, line: _Line) -> None:
        """Send the thread away when nobody came for a moment, or others wait for it."""
        while True:
            added = line.added
            await trio.sleep(FEED_THREAD_LINGER_S)
            if line.added == added or len(self._lines) > FEED_THREADS_MAX:
                line.dismiss()

    def _write(self, line: _Line) -> None:
        """In a thread: append what waits, and what comes, until sent away."""
        assert self._trio is not None
        while not self._stopping.is_set() and (batch := line.take()):
            entries = [entry for append in batch for entry in append.entries]
            try:
                first = line.log.append(entries, int(self._now() * 1000))
            except BaseException as error:
                _failed(batch, error)
            else:
                for append in batch:
                    append.first = first
                    first += len(append.entries)
            self._trio.run_sync_soon(self._settle, line.log, batch)

    def _settle(self, log: LogFile, batch: Sequence[_Append]) -> None:
        """Let those go who waited for this batch."""
        for append in batch:
            self._waiting -= 1
            self.waiting_bytes -= append.bytes
            append.done.set()
        if self._room.statistics().tasks_waiting:
            self._room.set()
            self._room = trio.Event()
        if any(append.error is None for append in batch):
            self._appended(log)


def _failed(batch: Sequence[_Append], error: BaseException) -> Sequence[_Append]:
    for append in batch:
        append.error = error
    return batch


def _stopping() -> FeedStoppedError:
    return FeedStoppedError("the node is stopping", hint="append again when it runs")
