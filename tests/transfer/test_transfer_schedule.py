"""Worlds are drawn one character a chunk: `#` held, `a` asked of node a, `.` missing."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from kachery_p2p.limits import RANGE_CHUNKS_MAX, WINDOW_CHUNKS_MAX
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
    asked = {number: node for node, numbers in made._asked.items() for number in numbers}
    return "".join("#" if made.holds(n) else asked.get(n, ".") for n in range(len(made._states)))


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


class CountingBytes(bytearray):
    """Counts the bytes that a schedule looks at."""

    looked_at = 0

    def find(self, sub: object, start: object = 0, end: object = None) -> int:
        assert isinstance(sub, bytes) and isinstance(start, int) and isinstance(end, int)
        found = super().find(sub, start, end)
        CountingBytes.looked_at += (end if found < 0 else found) - start + 1
        return found

    def __getitem__(self, key: object) -> int:  # type: ignore[override]
        CountingBytes.looked_at += 1
        return super().__getitem__(key)  # type: ignore[call-overload,no-any-return]


def test_a_decision_in_a_terabyte_looks_at_a_window_and_not_at_the_blob() -> None:
    count = 1_000_000
    made = ChunkSchedule(count)
    made._states = CountingBytes(made._states)
    made.want(range(count))
    CountingBytes.looked_at = decisions = 0
    for number in range(10_000):
        while made.next_for("a") is not None:
            decisions += 1
        decisions += 1
        made.received("a", number)
    assert CountingBytes.looked_at < 2 * WINDOW_CHUNKS_MAX * decisions


def everything(made: ChunkSchedule, node: str) -> Iterator[range]:
    while (chunks := made.next_for(node)) is not None:
        yield chunks
