"""Threads that wait for work on the disk, and say at once when it is done.

`trio.to_thread` takes 0.17 ms for handing something over and back while it is busy, and twice
that while it is not; threads that take their work out of a queue need a third of it. A reader
of news waits for one such exchange for each message, so it is most of what can be spared.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, TypeVarTuple

import trio
import trio.lowlevel

from kachery_p2p.limits import FEED_THREADS_MAX

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class _Job(Generic[Result]):
    """Something to be done, and what came of it."""

    __slots__ = ("arguments", "do", "error", "result", "task", "then")

    def __init__(
        self,
        do: Callable[..., Result],
        arguments: tuple[Any, ...],
        then: Callable[[Result], None] | None,
    ) -> None:
        self.do = do
        self.arguments = arguments
        self.then = then
        self.task = trio.lowlevel.current_task()
        self.result: Result | None = None
        self.error: BaseException | None = None

    def work(self) -> None:
        """In a thread."""
        try:
            self.result = self.do(*self.arguments)
        except BaseException as error:
            self.error = error

    def settle(self, token: trio.lowlevel.TrioToken) -> None:
        """In the trio thread."""
        if self.error is None and self.then is not None:
            try:
                self.then(self.result)  # type: ignore[arg-type]
            except BaseException as error:
                self.error = error
            # Those that it woke up go first.
            token.run_sync_soon(trio.lowlevel.reschedule, self.task)
        else:
            trio.lowlevel.reschedule(self.task)


class Hands:
    """The threads: begun when there is work for them, there until `close`."""

    def __init__(self) -> None:
        # None sends a thread away.
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        # Jobs that are not done yet: each has a task that waits for it.
        self._busy = 0
        self._threads = 0

    async def do(
        self,
        do: Callable[[*Arguments], Result],
        *arguments: *Arguments,
        then: Callable[[Result], None] | None = None,
    ) -> Result:
        """What `do` returns, or raises, in a thread. It is not cancelled once it was begun.

        `then` is called with it in the trio thread, and whoever it wakes up goes on before the
        caller does.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        job = _Job(do, arguments, then)
        self._busy += 1
        try:
            if self._busy > self._threads and self._threads < FEED_THREADS_MAX:
                self._begin_thread()
            # The thread runs when this one sleeps, so nothing is left to be done behind it.
            self._jobs.put(job)
            await trio.lowlevel.wait_task_rescheduled(_go_on)
            if job.error is not None:
                raise job.error
            return job.result  # type: ignore[return-value]
        finally:
            self._busy -= 1
            # What was raised keeps the frames that it went through, and with them the job.
            job.error = None

    def close(self) -> None:
        """Let the threads go, when nothing is done any more."""
        for _ in range(self._threads):
            self._jobs.put(None)
        self._threads = 0

    def _begin_thread(self) -> None:
        token = trio.lowlevel.current_trio_token()
        # Should the process end meanwhile, it does not wait: whoever waited for the job is gone.
        thread = threading.Thread(target=_work, args=(self._jobs, token), daemon=True)
        thread.start()
        self._threads += 1


def _go_on(_: object) -> trio.lowlevel.Abort:
    """What is being done is not cancelled."""
    return trio.lowlevel.Abort.FAILED


def _work(jobs: queue.SimpleQueue[_Job[Any] | None], token: trio.lowlevel.TrioToken) -> None:
    while (job := jobs.get()) is not None:
        job.work()
        try:
            token.run_sync_soon(job.settle, token)
        except trio.RunFinishedError:
            return
        # Not while it waits for the next one: what came of it may be large.
        del job
