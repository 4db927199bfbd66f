"""Which of many small contents is asked of which source: the work is shared, nothing is lost."""

from __future__ import annotations

import random

import pytest

from kachery_p2p.limits import BATCH_LATE_S, BATCH_SHARE_MAX, BATCH_SHARE_MIN
from kachery_p2p.transfer.batch_schedule import BatchSchedule, GivenUp

Schedule = BatchSchedule[str]


def schedule(count: int, *tiers: str) -> Schedule:
    """`count` contents, each of which may be had from the letters of the first tier, ..."""
    made = Schedule()
    for number in range(count):
        made.add(number, [list(tier) for tier in tiers])
    return made


def test_who_announced_a_content_is_asked_first() -> None:
    one = schedule(3, "a", "bc")
    assert one.next_for("b", 0) == []
    assert one.next_for("a", 0) == [0, 1, 2]
    assert one.next_for("a", 0) == []


def test_what_the_announcer_refuses_is_asked_of_the_others() -> None:
    one = schedule(2, "a", "bc")
    one.next_for("a", 0)
    one.refused("a", 0)
    assert one.next_for("b", 0) == [0]
    one.refused("b", 0)
    assert one.next_for("b", 0) == []
    assert one.next_for("c", 0) == [0]
    one.refused("c", 0)
    assert one.given_up() == [GivenUp(0, dropped=False)]
    assert one.given_up() == []
    assert one.came(1)
    assert one.done


def test_several_sources_share_the_work_and_get_different_parts() -> None:
    one = schedule(1000, "ab")
    asked: list[int] = []
    for source in "abab":
        numbers = one.next_for(source, 0)
        assert BATCH_SHARE_MIN <= len(numbers) <= BATCH_SHARE_MAX
        asked += numbers
    assert len(set(asked)) == len(asked)


def test_parts_become_smaller_so_that_nobody_holds_the_end_alone() -> None:
    one = schedule(400, "ab")
    sizes: list[int] = []
    while numbers := one.next_for("ab"[len(sizes) % 2], 0):
        sizes.append(len(numbers))
    assert sizes[0] == 100
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= BATCH_SHARE_MIN
    assert sum(sizes) == 400


def test_what_an_answer_did_not_bring_is_asked_for_again() -> None:
    one = schedule(3, "ab")
    assert one.next_for("a", 0) == [0, 1, 2]
    assert one.came(0)
    one.put_back("a", [0, 1, 2])
    assert one.next_for("b", 0) == [1, 2]


def test_a_source_that_is_dropped_gives_back_all_that_it_owes() -> None:
    one = schedule(40, "ab")
    asked = one.next_for("a", 0)
    one.drop("a")
    assert not one.is_used("a")
    assert one.next_for("a", 0) == []
    assert sorted(one.next_for("b", 0) + one.next_for("b", 0)) == list(range(40))
    assert asked
    one.put_back("a", asked)  # its task ends after that
    one.drop("b")
    assert one.given_up() == [GivenUp(n, dropped=True) for n in one_by_one(40)]
    assert one.done


def one_by_one(count: int) -> list[int]:
    return list(range(count))


def test_what_is_late_is_asked_of_who_has_nothing_else_to_do() -> None:
    one = schedule(2, "ab")
    assert one.next_for("a", 0) == [0, 1]
    assert one.next_for("b", BATCH_LATE_S / 2) == []
    assert one.next_for("b", BATCH_LATE_S) == [0, 1]
    assert one.came(0)
    assert not one.came(0), "the second copy counted"
    one.refused("b", 1)
    assert one.next_for("b", 2 * BATCH_LATE_S) == []
    one.refused("a", 1)
    assert one.given_up() == [GivenUp(1, dropped=False)]


def test_a_content_that_nobody_can_be_asked_for_is_given_up_at_once() -> None:
    one = schedule(1, "", "")
    assert one.given_up() == [GivenUp(0, dropped=False)]
    assert one.done


@pytest.mark.parametrize("seed", range(50))
def test_whatever_sources_do_everything_comes_or_is_given_up_once(seed: int) -> None:
    chance = random.Random(seed)
    sources = "abcd"[: chance.randrange(1, 5)]
    one = Schedule()
    count = chance.randrange(1, 300)
    for number in range(count):
        first = "".join(source for source in sources if chance.random() < 0.3)
        one.add(number, [first, sources])
    ended: list[int] = [given.number for given in one.given_up()]
    due: list[tuple[str, list[int]]] = []
    now = 0.0
    while not one.done:
        now += 0.3
        source = chance.choice(sources)
        if numbers := one.next_for(source, now):
            due.append((source, numbers))
        elif due:
            source, numbers = due.pop(chance.randrange(len(due)))
            for number in numbers[: chance.randrange(1, len(numbers) + 1)]:
                if chance.random() < 0.2:
                    one.refused(source, number)
                elif one.came(number):
                    ended.append(number)
            if chance.random() < 0.05 and sources[0] != source:
                one.drop(source)
            one.put_back(source, numbers)
        ended += [given.number for given in one.given_up()]
    assert sorted(ended) == list(range(count))
