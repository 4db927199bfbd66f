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


class Begun(Generic[Result]):
    """Something that a thread does, and what comes of it."""

    __slots__ = (
        "_arguments",
        "_do",
        "_error",
        "_is_settled",
        "_result",
        "_settled",
        "_task",
        "_then",
    )

    def __init__(
        self,
        do: Callable[..., Result],
        arguments: tuple[Any, ...],
        then: Callable[[Result], None] | None,
        settled: Callable[[], None],
    ) -> None:
        self._do = do
        self._arguments = arguments
        self._then = then
        self._settled = settled
        self._is_settled = False
        # Who waits for it.
        self._task: trio.lowlevel.Task | None = None
        self._result: Result | None = None
        self._error: BaseException | None = None

    def work(self) -> None:
        """In a thread."""
        try:
            self._result = self._do(*self._arguments)
        except BaseException as error:
            self._error = error

    def settle(self, token: trio.lowlevel.TrioToken) -> None:
        """In the trio thread."""
        is_told = self._error is None and self._then is not None
        if self._then is not None and is_told:
            try:
                self._then(self._result)  # type: ignore[arg-type]
            except BaseException as error:
                self._error = error
        self._is_settled = True
        if self._task is None:
            self._settled()
        elif is_told:
            # Those that it woke up go first.
            token.run_sync_soon(trio.lowlevel.reschedule, self._task)
        else:
            trio.lowlevel.reschedule(self._task)

    async def result(self) -> Result:
        """What came of it, or raises what it raised; once. It is not cancelled."""
        try:
            if not self._is_settled:
                self._task = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(_go_on)
                # Not before: what the caller does next comes before anything that is begun.
                self._settled()
            if self._error is not None:
                raise self._error
            return self._result  # type: ignore[return-value]
        finally:
            # What was raised keeps the frames that it went through, and with them this.
            self._error = None


class Hands:
    """The threads: begun when there is work for them, there until `close`."""

    def __init__(self) -> None:
        # None sends a thread away.
        self._jobs: queue.SimpleQueue[Begun[Any] | None] = queue.SimpleQueue()
        # What is not done yet.
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
        return await self.begin(do, *arguments, then=then).result()

    def begin(
        self,
        do: Callable[[*Arguments], Result],
        *arguments: *Arguments,
        then: Callable[[Result], None] | None = None,
        settled: Callable[[], None] = lambda: None,
        is_urgent: bool = True,
    ) -> Begun[Result]:
        """The same without waiting: somebody has to ask for its `result`, who hears of errors.

        `settled` is called when all of it is over, whether it failed or not. What is not urgent
        begins when the tasks that are woken up in this turn of the loop have had theirs: a thread
        would take the interpreter away from them.
        """

        def settle() -> None:
            self._busy -= 1
            settled()

        begun = Begun(do, arguments, then, settle)
        self._busy += 1
        if self._busy > self._threads and self._threads < FEED_THREADS_MAX:
            try:
                self._begin_thread()
            except BaseException:
                if not self._threads:
                    settle()
                    raise
        if is_urgent:
            # The thread runs when this one sleeps, so nothing is left to be done behind it.
            self._jobs.put(begun)
        else:
            # What is asked for now comes in their turn, before or behind them; the next is after.
            soon = trio.lowlevel.current_trio_token().run_sync_soon
            soon(lambda: soon(self._jobs.put, begun))
        return begun

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


def _work(jobs: queue.SimpleQueue[Begun[Any] | None], token: trio.lowlevel.TrioToken) -> None:
    while (job := jobs.get()) is not None:
        job.work()
        try:
            token.run_sync_soon(job.settle, token)
        except trio.RunFinishedError:
            return
        # Not while it waits for the next one: what came of it may be large.
        del job
