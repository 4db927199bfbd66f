"""Calls that last are looked after; those that are answered at once cost nothing of it."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from kachery_p2p.limits import DOOR_QUICK_S
from kachery_p2p.node.slow_calls import SlowCalls


@pytest.fixture
async def slow(nursery: trio.Nursery) -> SlowCalls:
    found = SlowCalls()
    nursery.start_soon(found.run)
    return found


async def test_a_call_that_lasts_is_noticed_while_it_lasts(
    slow: SlowCalls, autojump_clock: Any
) -> None:
    noticed = trio.Event()
    with slow.noticing(noticed.set), trio.fail_after(3 * DOOR_QUICK_S):
        await noticed.wait()


async def test_a_call_that_is_answered_at_once_is_not(slow: SlowCalls, autojump_clock: Any) -> None:
    noticed: list[str] = []
    with slow.noticing(lambda: noticed.append("quick")):
        await trio.lowlevel.checkpoint()
    await trio.sleep(10 * DOOR_QUICK_S)
    assert not noticed


async def test_each_of_many_calls_is_noticed_once(slow: SlowCalls, autojump_clock: Any) -> None:
    noticed: list[int] = []

    async def call(number: int) -> None:
        await trio.sleep(number * DOOR_QUICK_S / 7)
        with slow.noticing(lambda: noticed.append(number)):
            await trio.sleep(10 * DOOR_QUICK_S)

    async with trio.open_nursery() as calls:
        for number in range(50):
            calls.start_soon(call, number)
    assert sorted(noticed) == list(range(50))


async def test_a_call_that_fails_is_forgotten(slow: SlowCalls, autojump_clock: Any) -> None:
    noticed: list[str] = []
    with pytest.raises(ValueError), slow.noticing(lambda: noticed.append("failed")):
        raise ValueError
    await trio.sleep(10 * DOOR_QUICK_S)
    assert not noticed


async def test_nobody_wakes_while_there_are_no_calls(slow: SlowCalls, autojump_clock: Any) -> None:
    with slow.noticing(lambda: None):
        await trio.sleep(3 * DOOR_QUICK_S)
    await trio.sleep(3 * DOOR_QUICK_S)
    assert not slow._called.is_set()
