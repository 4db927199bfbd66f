"""Threads that work on the disk for feeds."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from kachery_p2p.feeds.hands import Hands
from kachery_p2p.limits import FEED_THREADS_MAX

WAIT_S = 30


@pytest.fixture
def hands() -> Iterator[Hands]:
    """Hands that are idle in the end."""
    made = Hands()
    before = set(threading.enumerate())
    yield made
    made.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(WAIT_S)
        assert not thread.is_alive()


async def test_what_is_done_in_a_thread_is_returned_or_raised(hands: Hands) -> None:
    me = threading.get_ident()
    assert await hands.do(threading.get_ident) != me
    assert await hands.do(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await hands.do(divmod, 7, 0)


async def test_whoever_is_woken_by_what_was_done_goes_on_before_the_one_who_asked(
    hands: Hands,
) -> None:
    order, done = [], trio.Event()

    async def reader() -> None:
        await done.wait()
        order.append("reader")

    for _ in range(20):
        order.clear()
        done = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            await trio.testing.wait_all_tasks_blocked()
            assert await hands.do(int, "7", then=lambda _: done.set()) == 7
            order.append("who asked")
        assert order == ["reader", "who asked"]


async def test_a_mistake_in_what_follows_is_raised_where_it_was_asked_for(hands: Hands) -> None:
    def fail(result: int) -> None:
        raise ValueError(result)

    with pytest.raises(ValueError, match="7"):
        await hands.do(int, "7", then=fail)
    assert await hands.do(int, "8") == 8


async def test_what_was_begun_is_finished_before_who_asked_is_cancelled(hands: Hands) -> None:
    begun, may_end = trio.Event(), threading.Event()
    token, ended = trio.lowlevel.current_trio_token(), []

    def work() -> None:
        token.run_sync_soon(begun.set)
        may_end.wait(WAIT_S)
        ended.append(True)

    async def ask(scope: trio.CancelScope) -> None:
        with scope:
            await hands.do(work)
            await trio.lowlevel.checkpoint()
        assert ended
        assert scope.cancelled_caught

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, scope)
        await begun.wait()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert not ended
        may_end.set()


async def test_threads_are_bounded_and_used_again(hands: Hands) -> None:
    seen: set[int] = set()
    together = threading.Barrier(FEED_THREADS_MAX)

    def work() -> None:
        seen.add(threading.get_ident())
        together.wait(WAIT_S)

    async with trio.open_nursery() as nursery:
        for _ in range(2 * FEED_THREADS_MAX):
            nursery.start_soon(hands.do, work)
    assert len(seen) == FEED_THREADS_MAX
    for _ in range(3):
        assert await hands.do(threading.get_ident) in seen


async def test_what_is_begun_is_done_without_anybody_who_waits(hands: Hands) -> None:
    told, settled = trio.Event(), []
    begun = hands.begin(int, "7", then=lambda _: told.set(), settled=lambda: settled.append(7))
    with trio.fail_after(WAIT_S):
        await told.wait()
    assert settled == [7]
    assert await begun.result() == 7
    failing = hands.begin(divmod, 7, 0, then=lambda _: settled.append(8))
    with pytest.raises(ZeroDivisionError):
        await failing.result()
    assert settled == [7]


async def test_what_is_not_urgent_begins_behind_whoever_is_woken_in_the_same_turn(
    hands: Hands,
) -> None:
    await hands.do(int, "7")  # its thread waits for more
    began_first: list[bool] = []

    async def reader(told: trio.Event, begun: threading.Event) -> None:
        await told.wait()
        # Nothing else in the loop goes on meanwhile; a thread would.
        began_first.append(begun.wait(0.01))

    for _ in range(20):
        told, begun = trio.Event(), threading.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader, told, begun)
            await trio.testing.wait_all_tasks_blocked()
            job = hands.begin(begun.set, is_urgent=False)
            told.set()
            await job.result()
        assert begun.is_set()
    assert began_first == [False] * 20


async def test_a_thread_that_cannot_be_begun_leaves_nothing_that_is_not_settled(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    settled: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            hands.begin(int, "7", settled=lambda: settled.append(7))
    assert settled == [7]
    assert await hands.do(int, "8") == 8
