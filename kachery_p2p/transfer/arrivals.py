"""Chunks that a thread has brought, told to trio several at a time.

Each telling wakes trio's thread, which then takes the interpreter, and the processor's
caches, from the thread that receives: told one by one, the chunks of a GiB cost half a
second of processor time (measured). So they are told when the last of a request is here,
and before that no more often than a person or a schedule can make use of.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import trio

from kachery_p2p.limits import ARRIVALS_TOLD_S


class Arrival(NamedTuple):
    """A verified chunk that is on disk, or was already."""

    number: int
    length: int


class Arrivals:
    """The chunks of one request, up to number `last`. `tell` is called in trio, with some."""

    def __init__(
        self,
        last: int,
        tell: Callable[[Sequence[Arrival]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._last = last
        self._tell = tell
        self._token = trio.lowlevel.current_trio_token()
        self._came: deque[Arrival] = deque()
        self._clock = clock
        self._told_at = clock()

    def add(self, number: int, length: int) -> None:
        """This one has come; in the thread that receives."""
        self._came.append(Arrival(number, length))
        now = self._clock()
        if number == self._last or now - self._told_at >= ARRIVALS_TOLD_S:
            self._told_at = now
            self._token.run_sync_soon(self.settle)

    def settle(self) -> None:
        """Tell what was not told; in trio."""
        came = [self._came.popleft() for _ in range(len(self._came))]
        if came:
            self._tell(came)
