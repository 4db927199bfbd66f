"""Looking after calls that are not answered at once, at no cost to those that are.

Whoever waits for a client to go away needs a task of its own, and that costs four times what
the rest of a quick call does (120 us of 150). So the tasks of all calls of a door
are begun by one, which looks round while there are calls and sleeps while there are none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import trio

from kachery_p2p.limits import DOOR_QUICK_S


class SlowCalls:
    """Begins something for each call that lasts longer than DOOR_QUICK_S."""

    def __init__(self) -> None:
        # Of calls that are young: when they came, and what is to be begun. The oldest first.
        self._young: dict[object, tuple[float, Callable[[], None]]] = {}
        self._called = trio.Event()

    async def run(self) -> None:
        """Look round for as long as the door is open."""
        while True:
            await self._called.wait()
            await trio.sleep(DOOR_QUICK_S)
            self._begin_for_old()
            if not self._young:
                self._called = trio.Event()

    @contextlib.contextmanager
    def noticing(self, begin: Callable[[], None]) -> Iterator[None]:
        """Call `begin` if what is done inside takes long, while it is being done."""
        call = object()
        self._young[call] = trio.current_time(), begin
        self._called.set()
        try:
            yield
        finally:
            self._young.pop(call, None)

    def _begin_for_old(self) -> None:
        before = trio.current_time() - DOOR_QUICK_S
        while self._young:
            call, (came, begin) = next(iter(self._young.items()))
            if came > before:
                return
            del self._young[call]
            begin()
