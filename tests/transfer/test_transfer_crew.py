"""One source while it brings enough, all when that is faster. The time passes as told here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.limits import (
    CHUNK_BYTES,
    CREW_AGAIN_S,
    CREW_ENOUGH_BYTES_PER_S,
    CREW_JOIN_S_MAX,
    CREW_LOOK_S,
    CREW_MEASURED_S,
    CREW_REST_S_MIN,
    CREW_TRY_S,
)
from kachery_p2p.transfer.crew import Crew
from tests.transfer.test_transfer_fetch import Blob, Member, World, read

ENOUGH = CREW_ENOUGH_BYTES_PER_S


class Load:
    """A transfer whose rate depends on who is asked, looked at as often as a fetch does."""

    def __init__(self, of_one: float, of_all: float, joining_s: float = 0.0) -> None:
        """`joining_s`: how long the others take to begin, each time that they are asked."""
        self.of_one, self.of_all = of_one, of_all
        self.joining_s = joining_s
        self.crew = Crew()
        self.now, self.came = 1000.0, 0.0
        self.crew.begins(0, self.now)
        # How long each was asked; all without a pause.
        self.alone_s = self.together_s = self.in_a_row_s = 0.0

    def run(self, seconds: float, step_s: float = 0.02) -> None:
        for _ in range(round(seconds / step_s)):
            if self.crew.asks_all:
                self.together_s += step_s
                self.in_a_row_s += step_s
            else:
                self.alone_s += step_s
                self.in_a_row_s = 0.0
            have_joined = self.in_a_row_s > self.joining_s
            self.came += step_s * (self.of_all if have_joined else self.of_one)
            self.now += step_s
            delivered = {"a": int(self.came), "b": int(have_joined)}
            self.crew.look(["a", "b"], delivered.__getitem__, int(self.came), self.now)

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
    assert 0.0 < load.alone_s < 0.01 * load.together_s


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


def test_a_source_that_pauses_is_helped_at_once_and_soon_left_alone_again() -> None:
    load = Load(of_one=3 * ENOUGH, of_all=2 * ENOUGH)
    load.run(2.0)
    load.of_one = 0.0
    load.run(2 * CREW_LOOK_S + 0.04)
    assert load.crew.asks_all
    load.of_one = 3 * ENOUGH
    load.run(CREW_REST_S_MIN + CREW_MEASURED_S)
    assert not load.crew.asks_all


def test_sources_that_take_long_to_reach_are_not_judged_before_they_have_begun() -> None:
    load = Load(of_one=1.5 * ENOUGH, of_all=4 * ENOUGH, joining_s=2 * CREW_MEASURED_S)
    load.run(CREW_TRY_S + load.joining_s + 2 * CREW_MEASURED_S)
    assert load.crew.asks_all
    load.run(10.0)
    assert load.crew.asks_all


def test_sources_that_never_begin_are_given_up() -> None:
    load = Load(of_one=2 * ENOUGH, of_all=2 * ENOUGH, joining_s=1e9)
    load.run(CREW_TRY_S + CREW_JOIN_S_MAX + 2 * CREW_MEASURED_S)
    assert load.together_s > 0.0
    assert not load.crew.asks_all


def test_where_a_source_has_only_a_part_all_are_asked() -> None:
    load = Load(of_one=3 * ENOUGH, of_all=2 * ENOUGH)
    load.run(1.0)
    load.crew.has_parts = True
    assert load.crew.may_ask("b")
    load.run(60.0)
    assert load.crew.asks_all
    load.crew.has_parts = False
    load.run(CREW_TRY_S)
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


def test_who_reads_again_after_one_was_slow_asks_all_at_once() -> None:
    load = Load(of_one=ENOUGH / 4, of_all=ENOUGH / 2)
    for _ in range(9):
        load.run(0.5)
        load.crew.begins(int(load.came), load.now)
    # Each time that one was tried, and was slow, it is believed for longer.
    assert load.alone_s <= 3 * (CREW_LOOK_S + 0.04)


def delivered(**chunks: int) -> Callable[[str], int]:
    return lambda node: chunks.get(node, 0) * CHUNK_BYTES


def may_ask(crew: Crew, chunks: dict[str, int]) -> list[str]:
    crew.look(list(chunks), delivered(**chunks), 0, 0.0)
    return [node for node in "abc" if crew.may_ask(node)]


def test_the_one_is_who_brought_most_and_stays_while_it_is_at_work() -> None:
    crew = Crew()
    crew.begins(0, 0.0)
    assert crew.may_ask("anybody")
    assert may_ask(crew, {"a": 1, "b": 5, "c": 2}) == ["b"]
    assert may_ask(crew, {"a": 9, "b": 5, "c": 2}) == ["b"]
    assert may_ask(crew, {"a": 9, "c": 2}) == ["a"]
    assert may_ask(crew, {}) == ["a", "b", "c"]


def test_after_all_were_asked_the_one_is_who_brought_most() -> None:
    crew = Crew()
    crew.begins(0, 0.0)
    nodes, now, came = ["a", "b"], 0.0, 0
    brought = {"a": 0, "b": 0}
    turns = 0
    while now < 20.0:
        for node, rate in (("a", 0.2), ("b", 2.0)):
            if crew.may_ask(node):
                brought[node] += int(rate * ENOUGH * 0.1)
        came, now = sum(brought.values()), now + 0.1
        turns += crew.look(nodes, brought.__getitem__, came, now)
    assert not crew.asks_all
    assert crew.may_ask("b") and not crew.may_ask("a")
    # For the one that was slow, and for the first try.
    assert turns <= 2


# --- a whole fetch --------------------------------------------------------------------------------

LARGE = Blob(hashlib.shake_128(b"crew").digest(60 * CHUNK_BYTES))


class Fast(Member):
    """Brings as much as is enough."""

    async def pull(self, content: Any, root: Any, next_range: Any, deliver: Any) -> None:
        while (chunks := next_range()) is not None:
            self.asked.extend(chunks)
            for number in chunks:
                await trio.sleep(CHUNK_BYTES / (1.5 * ENOUGH))
                await deliver(self, number, self.blob.chunk(number))


class Loading(Fast):
    """Is loading the blob itself, and has nearly all of it."""

    async def chunks(self, content: Any, root: Any, page: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return ((1 << 50) - 1).to_bytes(8, "little")


async def test_one_of_two_that_bring_enough_is_asked(disk: Any, virtual_clock: MockClock) -> None:
    members = [Fast(LARGE, node) for node in ("one", "other")]
    await World(disk, *members, blob=LARGE).load()
    assert sorted(len(member.asked) for member in members) == [0, 60]


async def test_a_reader_of_what_the_one_does_not_have_is_served_by_another_at_once(
    disk: Any, virtual_clock: MockClock
) -> None:
    loading, whole = Loading(LARGE, "loading"), Fast(LARGE, "whole")
    world = World(disk, loading, blob=LARGE)
    async with world.running() as fetch, trio.open_nursery() as nursery:
        nursery.start_soon(fetch.wait_for, None)
        await trio.sleep(0.05)
        world.change(loading, whole)
        await fetch._suppliers.look()
        fetch._schedule_changed()
        began = trio.current_time()
        start = 55 * CHUNK_BYTES
        assert await read(fetch, start, start + 9) == LARGE.data[start : start + 9]
        assert trio.current_time() - began < 0.1
        assert whole.asked[0] == 55
