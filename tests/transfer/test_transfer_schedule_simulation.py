"""Sources of several speeds, simulated: how long a blob takes, and what is fetched in vain."""

from __future__ import annotations

import heapq
import itertools
from collections import deque

import pytest

from kachery_p2p.limits import (
    CHUNK_BYTES,
    END_GAME_GAIN_S_MIN,
    END_GAME_LOOK_S,
    RANGE_CHUNKS_MAX,
    STALL_S_MAX,
    WINDOW_CHUNKS_MAX,
)
from kachery_p2p.transfer.schedule import ChunkSchedule


class Line:
    """A source that delivers in the order asked, `chunks_per_s`, until it dies without a word."""

    def __init__(self, chunks_per_s: float, delay_s: float = 0.0, dies_at: float = 1e9) -> None:
        self.chunks_per_s = chunks_per_s
        self.delay_s = delay_s
        self.dies_at = dies_at
        self.queue: deque[tuple[int, float]] = deque()
        self.sending: int | None = None
        self.gone = False


class Transfer:
    """A blob fetched over lines, as a puller for each would: told and asked in virtual time."""

    def __init__(self, chunk_count: int, *lines: Line, cancels: bool = True) -> None:
        self.made = ChunkSchedule(chunk_count)
        self.made.want(range(chunk_count))
        self.lines = {f"line {i}": line for i, line in enumerate(lines)}
        self.now = 0.0
        self.order: list[int] = []
        self.owed_at_death = 0
        self._cancels = cancels
        self._counter = itertools.count()
        self._events: list[tuple[float, int, str]] = []

    def run(self) -> float:
        """Seconds until all is held."""
        self._ask()
        while not self.made.satisfied:
            assert self.now < 10_000, "never ends"
            upcoming = self._events[0][0] if self._events else self.now + END_GAME_LOOK_S
            if upcoming > self.now + END_GAME_LOOK_S:
                self.now += END_GAME_LOOK_S
            else:
                self.now = upcoming
            while self._events and self._events[0][0] <= self.now:
                self._arrive(heapq.heappop(self._events)[2])
            for name in self.made.stalled(self.now):
                self.lines[name].gone = True
                self.made.source_left(name)
            self._ask()
        return self.now

    def _arrive(self, name: str) -> None:
        line = self.lines[name]
        number, line.sending = line.sending, None
        if line.dies_at <= self.now:
            self.owed_at_death += 1 + len(line.queue)
            line.queue.clear()
            return
        assert number is not None
        if not self.made.holds(number):
            self.order.append(number)
        self.made.received(name, number, self.now)
        self._send_next(name)

    def _send_next(self, name: str) -> None:
        line = self.lines[name]
        if line.sending is None and line.queue:
            line.sending, ready_at = line.queue.popleft()
            done_at = max(self.now, ready_at) + 1 / line.chunks_per_s
            heapq.heappush(self._events, (done_at, next(self._counter), name))

    def _ask(self) -> None:
        for name, line in self.lines.items():
            if line.gone:
                continue
            for run in self.made.pointless(name, self.now) if self._cancels else ():
                line.queue = deque((n, at) for n, at in line.queue if n not in run)
                for number in run:
                    if number != line.sending:
                        self.made.given_back(name, range(number, number + 1), self.now)
            while (new := self.made.next_for(name, WINDOW_CHUNKS_MAX, self.now)) is not None:
                line.queue.extend((number, self.now + line.delay_s) for number in new)
            if line.dies_at > self.now:
                self._send_next(name)

    @property
    def bytes_by_line(self) -> list[float]:
        states = {state.source: state for state in self.made.sources(self.now)}
        return [
            states[name].received_bytes / CHUNK_BYTES if name in states else 0
            for name in self.lines
        ]


def fetched(chunk_count: int, *lines: Line) -> Transfer:
    transfer = Transfer(chunk_count, *lines)
    transfer.run()
    return transfer


def small_range_s(rate: float) -> float:
    """A small range of a fast source, once it is seen that asking for it again is a gain."""
    return RANGE_CHUNKS_MAX / rate + END_GAME_GAIN_S_MIN + END_GAME_LOOK_S


RATES = (10.0, 100.0, 1000.0)
COUNTS = (20, 400)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("cancels", [True, False])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("rate", RATES)
def test_a_third_source_at_one_percent_costs_no_more_than_one_small_range(
    rate: float, count: int, cancels: bool, place: int
) -> None:
    without = Transfer(count, Line(rate), Line(rate)).run()
    lines = [Line(rate), Line(rate)]
    lines.insert(place, Line(rate / 100))
    together = Transfer(count, *lines, cancels=cancels).run()
    assert together <= without + small_range_s(rate)


@pytest.mark.parametrize("share", [0.03, 0.06, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("rate", RATES)
def test_a_slower_source_never_costs_more_than_it_brings(
    rate: float, count: int, share: float
) -> None:
    without = Transfer(count, Line(rate), Line(rate)).run()
    together = Transfer(count, Line(rate * share), Line(rate), Line(rate)).run()
    assert together <= without + small_range_s(rate)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("rate", RATES)
def test_over_a_long_line_a_slow_source_costs_a_few_round_trips(rate: float, count: int) -> None:
    delay_s = 0.1
    without = Transfer(count, Line(rate, delay_s), Line(rate, delay_s)).run()
    slow = Line(rate / 100, delay_s)
    together = Transfer(count, slow, Line(rate, delay_s), Line(rate, delay_s)).run()
    assert together <= without + small_range_s(rate) + 3 * delay_s


@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("rate", RATES)
def test_a_dying_source_costs_no_more_than_its_outstanding_ranges(
    rate: float, count: int, part: float
) -> None:
    alive_s = Transfer(count, Line(rate), Line(rate), Line(rate)).run()
    dies_at = part * alive_s
    dying = fetched(count, Line(rate), Line(rate), Line(rate, dies_at=dies_at))
    # Three until then, two for the rest, and what it owed once more.
    delivered = 3 * rate * dies_at
    ideal_s = dies_at + max(count - delivered, 0.0) / (2 * rate)
    assert dying.now <= ideal_s + dying.owed_at_death / rate + 2 * small_range_s(rate)
    assert dying.now < STALL_S_MAX + ideal_s
    assert dying.made.total.wasted_bytes == 0, "the living are not doubted"


@pytest.mark.parametrize("rate", RATES)
def test_three_equal_sources_are_three_times_as_fast_and_nothing_comes_twice(rate: float) -> None:
    alone = fetched(1024, Line(rate))
    three = fetched(1024, Line(rate), Line(rate), Line(rate))
    assert three.now < alone.now / 2.9
    assert three.made.total.wasted_bytes == 0


@pytest.mark.parametrize("rate", RATES)
def test_work_is_split_by_rate(rate: float) -> None:
    transfer = fetched(1024, Line(rate), Line(rate / 2), Line(rate / 4))
    ideal = [1024 * weight / 7 for weight in (4, 2, 1)]
    assert transfer.bytes_by_line == pytest.approx(ideal, rel=0.1)
    assert transfer.now < 1.05 * 1024 / (1.75 * rate)


def test_one_source_is_asked_strictly_in_order() -> None:
    assert fetched(300, Line(100.0, delay_s=0.05)).order == list(range(300))


def test_a_source_that_was_slow_and_recovers_gets_work_again() -> None:
    slow = Line(1.0)
    transfer = Transfer(4096, Line(100.0), slow)
    advance = transfer._arrive

    def arrive(name: str) -> None:
        if transfer.now > 5:
            slow.chunks_per_s = 100.0
        advance(name)

    transfer._arrive = arrive  # type: ignore[method-assign]
    transfer.run()
    assert transfer.bytes_by_line[1] > 500


def test_a_source_that_dies_is_found_stalled() -> None:
    dying = Line(1.0, dies_at=0.5)
    Transfer(60, Line(1.0), dying).run()
    assert dying.gone
