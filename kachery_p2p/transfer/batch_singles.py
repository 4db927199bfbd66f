"""What of a load of many is fetched one by one: some at a time, each with its own outcome."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import trio

from kachery_p2p.errors import KacheryError
from kachery_p2p.limits import BATCH_SINGLES_MAX

# Brings one of them into the store, whatever it takes; raises the KacheryError of that load.
LoadNumber = Callable[[int], Awaitable[None]]
# Told what became of it: None if it is in the store.
End = Callable[[int, KacheryError | None], None]


class Singles:
    """Loads numbers with `load`, in tasks of `nursery`, and tells `end` of each."""

    def __init__(self, nursery: trio.Nursery, load: LoadNumber, end: End) -> None:
        self._nursery = nursery
        self._load = load
        self._end = end
        self._waiting: deque[int] = deque()
        self._workers = 0

    def add(self, number: int) -> None:
        """One more; it is begun when fewer than BATCH_SINGLES_MAX are under way."""
        self._waiting.append(number)
        if self._workers < BATCH_SINGLES_MAX:
            self._workers += 1
            self._nursery.start_soon(self._work)

    async def _work(self) -> None:
        while self._waiting:
            number = self._waiting.popleft()
            try:
                await self._load(number)
            except KacheryError as error:
                self._end(number, error)
            else:
                self._end(number, None)
        self._workers -= 1
