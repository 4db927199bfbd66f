"""One source while it brings enough, all when that is faster. The time passes as told here."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kachery_p2p.limits import (
    CHUNK_BYTES,
    CREW_AGAIN_S,
    CREW_ENOUGH_BYTES_PER_S,
    CREW_LOOK_S,
    CREW_MEASURED_S,
    CREW_TRY_S,
)
from kachery_p2p.transfer.crew import Crew

ENOUGH = CREW_ENOUGH_BYTES_PER_S


class Load:
    """A transfer whose rate depends on who is asked, looked at as often as a fetch does."""

    def __init__(self, of_one: float, of_all: float) -> None:
        self.of_one, self.of_all = of_one, of_all
        self.crew = Crew()
        self.now, self.came = 1000.0, 0.0
        self.crew.begins(0, self.now)
        # How long each was asked.
        self.alone_s = self.together_s = 0.0

    def run(self, seconds: float, step_s: float = 0.02) -> None:
        for _ in range(round(seconds / step_s)):
            if self.crew.asks_all:
                self.together_s += step_s
            else:
                self.alone_s += step_s
            self.came += step_s * (self.of_all if self.crew.asks_all else self.of_one)
            self.now += step_s
            self.crew.look(int(self.came), self.now)

    @property
    def rate(self) -> float:
        return self.came / (self.alone_s + self.together_s)


def test_one_is_asked_first_and_the_others_only_when_it_brings_little() -> None:
    load = Load(of_one=ENOUGH / 2, of_all=0.9 * ENOUGH)
    load.run(CREW_LOOK_S + 0.04)
    assert load.crew.asks_all
    load.run(120.0)
    assert load.alone_s <= CREW_LOOK_S + 0.04, "what all cannot bring one is not tried for again"


def test_one_that_brings_too_little_is_tried_again_now_and_then_where_all_bring_much() -> None:
    load = Load(of_one=ENOUGH / 2, of_all=2 * ENOUGH)
    load.run(600.0)
    assert 0.0 < load.alone_s < 0.05 * load.together_s


def test_while_one_brings_as_much_as_all_the_others_cost_next_to_nothing() -> None:
    load = Load(of_one=3 * ENOUGH, of_all=2 * ENOUGH)
    load.run(CREW_TRY_S - 0.1)
    assert load.together_s == 0.0
    load.run(600.0)
    assert load.rate > 0.98 * load.of_one


def test_all_are_asked_where_they_bring_more_though_one_brings_enough() -> None:
    load = Load(of_one=1.5 * ENOUGH, of_all=4 * ENOUGH)
    load.run(CREW_TRY_S + 2 * CREW_MEASURED_S)
    assert load.crew.asks_all
    load.run(600.0)
    assert load.rate > 0.96 * load.of_all


@pytest.mark.parametrize("gain", [1.0, 1.1])
def test_little_more_is_not_worth_all_of_them(gain: float) -> None:
    load = Load(of_one=2 * ENOUGH, of_all=gain * 2 * ENOUGH)
    load.run(300.0)
    assert load.alone_s > 0.95 * (load.alone_s + load.together_s)


def test_a_source_that_becomes_slow_is_helped_at_once_and_left_alone_again_later() -> None:
    load = Load(of_one=3 * ENOUGH, of_all=2 * ENOUGH)
    load.run(2.0)
    load.of_one = 0.0
    load.run(2 * CREW_LOOK_S + 0.04)
    assert load.crew.asks_all
    load.of_one = 3 * ENOUGH
    load.run(CREW_TRY_S + CREW_MEASURED_S)
    assert not load.crew.asks_all


def test_what_was_learned_is_looked_at_again_after_a_while() -> None:
    load = Load(of_one=3 * ENOUGH, of_all=2 * ENOUGH)
    load.run(CREW_TRY_S + 2 * CREW_MEASURED_S)
    assert not load.crew.asks_all
    # Somebody else's load at the one source has begun.
    load.of_one, load.of_all = 1.5 * ENOUGH, 4 * ENOUGH
    load.run(CREW_AGAIN_S + CREW_TRY_S)
    assert load.crew.asks_all


def test_a_pause_in_which_nobody_worked_is_not_slowness() -> None:
    load = Load(of_one=3 * ENOUGH, of_all=3 * ENOUGH)
    load.run(1.0)
    load.now += 60.0
    load.crew.begins(int(load.came), load.now)
    load.run(1.0)
    assert load.together_s == 0.0


def delivered(**chunks: int) -> Callable[[str], int]:
    return lambda node: chunks.get(node, 0) * CHUNK_BYTES


def test_the_one_is_who_brought_most_and_stays_while_it_is_at_work() -> None:
    crew = Crew()
    assert crew.may_ask("anybody")
    crew.choose(["a", "b", "c"], delivered(a=1, b=5, c=2))
    assert [node for node in "abc" if crew.may_ask(node)] == ["b"]
    crew.choose(["a", "b", "c"], delivered(a=9, b=5, c=2))
    assert [node for node in "abc" if crew.may_ask(node)] == ["b"]
    crew.choose(["a", "c"], delivered(a=9, b=5, c=2))
    assert [node for node in "abc" if crew.may_ask(node)] == ["a"]
    crew.choose([], delivered())
    assert crew.may_ask("c")
