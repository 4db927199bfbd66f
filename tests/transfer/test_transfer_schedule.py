"""Worlds are drawn one character a chunk: `#` held, `a` asked of node a, `.` missing."""

from __future__ import annotations

import tracemalloc
from collections import deque
from collections.abc import Iterator
from random import Random

import pytest

from kachery_p2p.limits import RANGE_CHUNKS_MAX, WINDOW_CHUNKS_MAX
from kachery_p2p.transfer.chunk_set import ChunkSet
from kachery_p2p.transfer.schedule import ChunkSchedule


def schedule(world: str) -> ChunkSchedule:
    """A schedule of this world; nothing is wanted yet."""
    made = ChunkSchedule(len(world))
    for number, state in enumerate(world):
        if state == "#":
            made.hold(number)
        elif state != ".":
            made.want(range(number, number + 1))
            assert made.next_for(state) == range(number, number + 1)
    for wanted in list(made._wants):
        made.unwant(wanted)
    return made


def draw(made: ChunkSchedule) -> str:
    asked = {n: node for node, queue in made._sources.items() for n in queue.outstanding}
    return "".join("#" if made.holds(n) else asked.get(n, ".") for n in range(made.chunk_count))


def test_nothing_is_asked_for_that_nobody_wants() -> None:
    assert schedule("....").next_for("a") is None


def test_chunks_are_asked_for_in_order_and_in_small_ranges() -> None:
    made = schedule("..........")
    made.want(range(10))
    assert made.next_for("a") == range(4)
    assert made.next_for("a") == range(4, 8)
    assert made.next_for("a") == range(8, 10)
    assert made.next_for("a") is None
    assert draw(made) == "aaaaaaaaaa"


def test_a_range_stops_before_what_is_held_or_asked_already() -> None:
    made = schedule("..#.b....")
    made.want(range(9))
    assert made.next_for("a") == range(2)
    assert made.next_for("a") == range(3, 4)
    assert made.next_for("a") == range(5, 9)
    assert draw(made) == "aa#abaaaa"


def test_the_newest_want_goes_first_so_that_a_reader_passes_a_download() -> None:
    made = schedule(".................")
    made.want(range(17))
    assert made.next_for("a") == range(4)
    reader = made.want(range(10, 12))
    assert made.next_for("a") == range(10, 12)
    made.unwant(reader)
    assert made.next_for("a") == range(4, 8)


def test_a_reader_who_leaves_is_not_fetched_for() -> None:
    made = schedule("........")
    made.unwant(made.want(range(2, 5)))
    assert made.next_for("a") is None
    assert made.satisfied


def test_nothing_is_asked_for_beyond_the_window_ahead_of_the_first_missing_chunk() -> None:
    made = schedule("." * (2 * WINDOW_CHUNKS_MAX))
    made.want(range(2 * WINDOW_CHUNKS_MAX))
    asked = [number for chunks in everything(made, "a") for number in chunks]
    assert asked == list(range(WINDOW_CHUNKS_MAX))
    made.received("a", 1)  # not the first missing one: the window stays where it is
    assert made.next_for("a") is None
    made.received("a", 0)
    assert made.next_for("a") == range(WINDOW_CHUNKS_MAX, WINDOW_CHUNKS_MAX + 2)


def test_a_source_that_leaves_gives_back_what_it_owes_and_only_that() -> None:
    made = schedule("........")
    made.want(range(8))
    assert made.next_for("a") == range(4)
    assert made.next_for("b") == range(4, 8)
    made.received("a", 0)
    made.received("a", 1)
    made.source_left("a")
    assert draw(made) == "##..bbbb"
    assert made.next_for("b") == range(2, 4)
    assert draw(made) == "##bbbbbb"


def test_a_source_that_leaves_twice_or_was_never_there_changes_nothing() -> None:
    made = schedule("aa..")
    made.source_left("b")
    made.source_left("a")
    made.source_left("a")
    assert draw(made) == "...."


def test_what_an_earlier_try_left_is_not_asked_for_again() -> None:
    made = schedule("###.####..")
    assert made.held_count == 7
    wanted = made.want(range(10))
    assert wanted.frontier == 3
    assert list(everything(made, "a")) == [range(3, 4), range(8, 10)]


def test_a_want_is_satisfied_when_its_last_chunk_is_held() -> None:
    made = schedule("....")
    wanted = made.want(range(1, 3))
    satisfied = []
    for number in (2, 1):
        made.hold(number)
        satisfied.append((wanted.satisfied, made.satisfied))
    assert satisfied == [(False, False), (True, True)]


def test_an_empty_want_is_satisfied_at_once() -> None:
    assert schedule("").want(range(0)).satisfied
    assert schedule("..").want(range(1, 1)).satisfied


def test_a_chunk_that_comes_twice_counts_once() -> None:
    made = schedule("..")
    made.hold(0)
    made.received("a", 0)
    assert made.held_count == 1


@pytest.mark.parametrize("seed", range(40))
def test_whatever_fails_everything_wanted_is_asked_for_and_nothing_twice_at_once(seed: int) -> None:
    random = Random(seed)
    count = random.randrange(1, 200)
    made = schedule("".join(random.choice("#.") for _ in range(count)))
    made.want(range(count))
    owed: dict[str, set[int]] = {"a": set(), "b": set()}
    while not made.satisfied:
        node = random.choice("ab")
        step = random.choice(["ask"] * 8 + ["receive"] * 16 + ["leave"])
        if step == "ask":
            new = set(made.next_for(node) or ())
            assert not new & (owed["a"] | owed["b"]), "asked twice"
            assert not any(made.holds(number) for number in new)
            assert len(new) <= RANGE_CHUNKS_MAX
            owed[node] |= new
        elif step == "receive" and owed[node]:
            number = owed[node].pop()
            made.received(node, number)
        elif step == "leave":
            made.source_left(node)
            owed[node].clear()
    assert draw(made) == "#" * count


class CountingSet(ChunkSet):
    """Counts the chunks that a schedule looks at."""

    looked_at = 0

    def window(self, start: int, stop: int) -> int:
        CountingSet.looked_at += stop - start
        return super().window(start, stop)


def counting(count: int, random: Random) -> ChunkSchedule:
    """A schedule of so many chunks, of which half are held, that counts what it looks at."""
    made = ChunkSchedule(count)
    made._held = CountingSet(count, random.randbytes(-(-count // 8)))
    made._asked, made._doubled = CountingSet(count), CountingSet(count)
    CountingSet.looked_at = 0
    return made


@pytest.mark.parametrize("count", [10_000, 1_000_000])
def test_decisions_look_at_windows_and_not_at_the_blob(count: int) -> None:
    random = Random(count)
    made = counting(count, random)
    made.want(range(count))
    for part in "cd":
        made.source_has(part, random.randbytes(-(-count // 8)))
    owed: dict[str, deque[int]] = {node: deque() for node in "abcd"}
    now, decisions = 0.0, 0
    while decisions < 25_000 and not made.satisfied:
        now += 0.001
        for node, numbers in owed.items():
            decisions += 1
            numbers.extend(made.next_for(node, WINDOW_CHUNKS_MAX, now) or ())
            if numbers:
                made.received(node, numbers.popleft(), now)
    assert made.satisfied or decisions >= 25_000
    # Held, asked and doubled in a window, and the way of the frontier to the next.
    assert CountingSet.looked_at < 4 * WINDOW_CHUNKS_MAX * decisions


def test_a_schedule_of_a_tebibyte_is_small() -> None:
    tracemalloc.start()
    try:
        made = ChunkSchedule(1 << 20)
        made.want(range(1 << 20))
        made.next_for("a", WINDOW_CHUNKS_MAX, 0.0)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def everything(made: ChunkSchedule, node: str) -> Iterator[range]:
    while (chunks := made.next_for(node)) is not None:
        yield chunks
