"""Chunks that a thread brings are told several at a time, and none is left untold."""

from __future__ import annotations

from collections.abc import Sequence

import trio
import trio.testing

from kachery_p2p.limits import ARRIVALS_TOLD_S
from kachery_p2p.transfer.arrivals import Arrival, Arrivals


class Told:
    """What was told, a list for each time; the clock stands still unless it is moved."""

    def __init__(self, last: int) -> None:
        self.told: list[list[int]] = []
        self.now = 0.0
        self.arrivals = Arrivals(last, self._tell, lambda: self.now)

    def _tell(self, came: Sequence[Arrival]) -> None:
        self.told.append([arrival.number for arrival in came])

    async def add(self, *numbers: int) -> list[list[int]]:
        """Add them in a thread, one after the other; what has been told when trio is idle again."""
        for number in numbers:
            await trio.to_thread.run_sync(self.arrivals.add, number, 7)
        await trio.testing.wait_all_tasks_blocked()
        return self.told


async def test_chunks_that_come_fast_are_told_with_the_last_of_the_request() -> None:
    told = Told(last=3)
    assert await told.add(0, 1, 2) == []
    assert await told.add(3) == [[0, 1, 2, 3]]


async def test_chunks_that_come_slowly_are_told_meanwhile() -> None:
    told = Told(last=9)
    assert await told.add(0) == []
    told.now += ARRIVALS_TOLD_S
    assert await told.add(1) == [[0, 1]]
    assert await told.add(2) == [[0, 1]]
    told.now += ARRIVALS_TOLD_S
    assert await told.add(3) == [[0, 1], [2, 3]]


async def test_what_came_before_a_request_broke_off_is_told_when_it_is_settled() -> None:
    told = Told(last=9)
    await told.add(4, 5)
    told.arrivals.settle()
    told.arrivals.settle()
    assert told.told == [[4, 5]]


async def test_a_chunk_is_told_with_its_length_and_in_the_thread_of_trio() -> None:
    came: list[Arrival] = []

    def tell(arrivals: Sequence[Arrival]) -> None:
        trio.lowlevel.current_task()  # raises in any other thread
        came.extend(arrivals)

    arrivals = Arrivals(1, tell)
    await trio.to_thread.run_sync(arrivals.add, 1, 12)
    await trio.testing.wait_all_tasks_blocked()
    assert came == [Arrival(1, 12)]
