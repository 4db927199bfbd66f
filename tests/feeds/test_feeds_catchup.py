"""Whom to ask for which entries: order, several sources, liars, gaps and bounds."""

from __future__ import annotations

from random import Random

import pytest

from kachery_p2p.feeds.catchup import CatchUp, Wanted
from kachery_p2p.limits import (
    FEED_AHEAD_MAX,
    FEED_ANSWER_BYTES,
    FEED_ANSWER_ENTRIES_MAX,
    FEED_ASKED_PER_SOURCE_MAX,
    FEED_LATE_S,
)

TARGET = 100_000


def entries(wanted: Wanted, count: int | None = None, size: int = 214) -> list[bytes]:
    """The entries of a log in which each is its number, padded."""
    end = wanted.end if count is None else min(wanted.first + count, wanted.end)
    return [number.to_bytes(8, "big").ljust(size, b".") for number in range(wanted.first, end)]


def plan(*sources: str, first: int = 0, size: int = TARGET) -> CatchUp[str]:
    made: CatchUp[str] = CatchUp(first)
    for source in sources:
        made.offer(source, size)
    return made


def ask(catch_up: CatchUp[str], source: str, now: float = 0.0, target: int = TARGET) -> Wanted:
    wanted = catch_up.next_for(source, target, now)
    assert wanted is not None
    return wanted


def test_the_first_question_is_for_what_is_missing_and_fills_one_answer() -> None:
    wanted = ask(plan("a", first=7), "a")
    assert wanted.first == 7
    assert 0 < wanted.length * 214 <= FEED_ANSWER_BYTES


def test_two_sources_are_asked_for_different_parts() -> None:
    catch_up = plan("a", "b")
    one, other = ask(catch_up, "a"), ask(catch_up, "b")
    assert one.end == other.first


def test_what_comes_out_of_order_waits_for_what_is_before_it() -> None:
    catch_up = plan("a", "b")
    one, other = ask(catch_up, "a"), ask(catch_up, "b")
    catch_up.received("b", other, entries(other), ())
    assert catch_up.take() is None
    catch_up.received("a", one, entries(one), ())
    assert [taken.first for taken in (catch_up.take(), catch_up.take()) if taken] == [0, one.end]


def test_the_rest_of_a_short_answer_is_asked_for_before_what_is_further_on() -> None:
    catch_up = plan("a", "b")
    one = ask(catch_up, "a")
    ask(catch_up, "a")
    catch_up.received("a", one, entries(one, count=10), ())
    assert ask(catch_up, "b").first == 10


def test_as_many_entries_are_asked_for_as_fit_an_answer_by_the_size_of_those_that_came() -> None:
    catch_up = plan("a")
    wanted = ask(catch_up, "a")
    catch_up.received("a", wanted, entries(wanted, size=14), ())
    assert ask(catch_up, "a").length == min(FEED_ANSWER_BYTES // 18, FEED_ANSWER_ENTRIES_MAX)


def test_large_entries_are_asked_for_one_by_one() -> None:
    catch_up = plan("a")
    wanted = ask(catch_up, "a")
    catch_up.received("a", wanted, entries(wanted, count=1, size=1 << 20), ())
    assert ask(catch_up, "a").length == 1


def test_one_source_is_asked_for_a_few_parts_at_once() -> None:
    catch_up = plan("a")
    for _ in range(FEED_ASKED_PER_SOURCE_MAX):
        ask(catch_up, "a")
    assert catch_up.next_for("a", TARGET, 0.0) is None


def test_all_sources_together_are_asked_for_no_more_than_is_held_in_memory() -> None:
    names = [str(number) for number in range(100)]
    catch_up = plan(*names, size=10**9)
    asked = [catch_up.next_for(name, 10**9, 0.0) for name in names for _ in range(9)]
    assert sum(wanted is not None for wanted in asked) == catch_up.held == FEED_AHEAD_MAX


def test_with_memory_full_what_is_next_in_order_is_still_asked_for() -> None:
    names = [str(number) for number in range(FEED_AHEAD_MAX)]
    catch_up = plan(*names, size=10**9)
    wanted = {name: ask(catch_up, name, target=10**9) for name in names}
    for name in names[1:]:
        catch_up.received(name, wanted[name], entries(wanted[name]), ())
    catch_up.failed("0", wanted["0"])
    assert ask(catch_up, "1", target=10**9).first == 0


def test_a_source_is_asked_for_nothing_beyond_what_it_has() -> None:
    catch_up = plan("a", size=10)
    assert ask(catch_up, "a") == Wanted(0, 10)
    assert catch_up.next_for("a", TARGET, 0.0) is None
    assert catch_up.next_for("stranger", TARGET, 0.0) is None


def test_a_source_that_leaves_gives_back_what_it_owed() -> None:
    catch_up = plan("a", "b")
    wanted = ask(catch_up, "a")
    catch_up.drop("a")
    assert ask(catch_up, "b") == wanted
    assert catch_up.sources == {"b"}


def test_what_all_wait_for_is_asked_of_another_when_it_is_late_and_of_one_other_only() -> None:
    catch_up = plan("a", "b", "c")
    wanted = ask(catch_up, "a")
    assert ask(catch_up, "b", now=FEED_LATE_S - 0.1) != wanted
    assert ask(catch_up, "b", now=FEED_LATE_S) == wanted
    assert ask(catch_up, "c", now=FEED_LATE_S) != wanted


def test_the_first_of_two_answers_counts_and_the_second_is_dropped() -> None:
    catch_up = plan("a", "b")
    wanted = ask(catch_up, "a")
    assert ask(catch_up, "b", now=FEED_LATE_S) == wanted
    catch_up.received("b", wanted, entries(wanted), ())
    catch_up.received("a", wanted, [b"late"], ())
    taken = catch_up.take()
    assert taken is not None
    assert taken.source == "b"
    assert catch_up.take() is None


def test_a_liar_is_dropped_with_all_it_brought_and_others_bring_it_again() -> None:
    catch_up = plan("liar", "b")
    first, second, third = ask(catch_up, "liar"), ask(catch_up, "b"), ask(catch_up, "liar")
    catch_up.received("liar", first, entries(first), ())
    catch_up.received("b", second, entries(second), ())
    catch_up.received("liar", third, entries(third), ())
    taken = [catch_up.take(), catch_up.take()]
    assert taken[0] is not None and taken[1] is not None
    catch_up.put_back(taken[1])
    catch_up.wrong(taken[0])
    assert catch_up.sources == {"b"}
    assert [ask(catch_up, "b"), ask(catch_up, "b")] == [first, third]


def test_what_came_in_another_way_is_not_asked_for_again() -> None:
    catch_up = plan("a")
    one, other = ask(catch_up, "a"), ask(catch_up, "a")
    catch_up.skip_to(one.end + 5)
    catch_up.received("a", one, entries(one), ())
    assert catch_up.take() is None
    assert ask(catch_up, "a") == Wanted(one.end + 5, other.end)


@pytest.mark.parametrize("seed", range(100))
def test_whatever_happens_every_entry_is_taken_once_and_in_order(seed: int) -> None:
    random = Random(seed)
    target = random.randrange(1, 30_000)
    catch_up = plan(*"abc", size=target)
    liars = set(random.sample("abc", random.randrange(3)))
    owed: list[tuple[str, Wanted]] = []
    position, now = 0, 0.0
    for _ in range(20_000):
        if catch_up.is_done(target):
            break
        now += random.choice((0.0, 0.1, FEED_LATE_S))
        assert catch_up.held <= FEED_AHEAD_MAX + 2
        source = random.choice(sorted(catch_up.sources))
        if wanted := catch_up.next_for(source, target, now):
            owed.append((source, wanted))
        if owed and random.random() < 0.7:
            who, what = owed.pop(random.randrange(len(owed)))
            if random.random() < 0.2:
                catch_up.failed(who, what)
            else:
                size = random.choice((14, 214, 5_000))
                catch_up.received(who, what, entries(what, random.randrange(1, 2_000), size), ())
        if random.random() < 0.02:
            position = max(position, min(target, position + random.randrange(300)))
            catch_up.skip_to(position)
        while (taken := catch_up.take()) is not None:
            if taken.source in liars:
                catch_up.wrong(taken)
                liars.discard(taken.source)
                owed = [(who, what) for who, what in owed if who != taken.source]
                continue
            assert taken.first == position
            numbers = [int.from_bytes(entry[:8], "big") for entry in taken.entries]
            assert numbers == list(range(position, position + len(numbers)))
            position += len(numbers)
    assert position == target
