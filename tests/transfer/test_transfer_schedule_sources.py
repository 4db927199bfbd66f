"""Many sources: who has what, what each is given by its rate, and who is asked again."""

from __future__ import annotations

import pytest

from kachery_p2p.limits import (
    CHUNK_BYTES,
    RANGE_CHUNKS_MAX,
    SHARED_CHUNKS_MAX,
    SOURCE_PROBE_S,
    STALL_S_MAX,
    WINDOW_CHUNKS_MAX,
)
from kachery_p2p.transfer.chunk_set import ChunkSet, first_run
from kachery_p2p.transfer.rates import Rate
from kachery_p2p.transfer.schedule import ChunkSchedule

MANY = 1_000


def wanted(count: int = MANY) -> ChunkSchedule:
    made = ChunkSchedule(count)
    made.want(range(count))
    return made


def measured(made: ChunkSchedule, **chunks_per_s: float) -> float:
    """Each source delivers its first range at its rate; answers the time when the last has."""
    end = 0.0
    for source, rate in chunks_per_s.items():
        for place, number in enumerate(made.next_for(source, now=0.0) or (), start=1):
            made.received(source, number, place / rate)
            end = max(end, place / rate)
    return end


# --- who has what ---------------------------------------------------------------------------


def test_no_source_is_asked_for_what_it_lacks() -> None:
    made = wanted(10)
    made.source_has("part", range(2, 4))
    made.source_has("part", range(7, 20))
    assert made.next_for("part", 8) == range(2, 4)
    assert made.next_for("part", 8) == range(7, 10)
    assert made.next_for("part", 8) is None


def test_a_source_may_say_what_it_has_as_a_bitmap_that_is_too_short_or_too_long() -> None:
    made = wanted(10)
    made.source_has("short", b"\x06")
    made.source_has("long", b"\x00\xff\xff\xff")
    assert made.next_for("short", 8) == range(1, 3)
    assert made.next_for("long", 8) == range(8, 10)


def test_the_rarest_chunks_go_first() -> None:
    made = wanted(6)
    made.source_has("a", range(6))
    made.source_has("b", range(3))
    made.source_has("c", range(1, 2))
    # By chunk: 2 holders, 3, 2, and then 1 three times.
    assert [made.next_for("a", 8) for _ in range(4)] == [
        range(3, 6),
        range(1),
        range(2, 3),
        range(1, 2),
    ]


def test_among_whole_sources_chunks_go_in_order() -> None:
    made = wanted(20)
    made.source_joined("a")
    made.source_joined("b")
    assert made.next_for("a") == range(4)
    assert made.next_for("b") == range(4, 8)


def test_a_rare_chunk_beyond_the_window_waits() -> None:
    made = wanted(MANY)
    made.source_has("a", range(500, 501))
    made.source_joined("seed")
    assert made.next_for("a") is None
    assert made.next_for("seed") == range(4)


def test_a_source_that_no_longer_has_a_chunk_gives_it_back_and_is_not_asked_again() -> None:
    made = wanted(8)
    assert made.next_for("a") == range(4)
    made.source_lacks("a", range(2, 6))
    assert made.next_for("b") == range(2, 6)
    assert made.next_for("a") == range(6, 8)


def test_a_source_may_say_that_it_lacks_more_than_there_is() -> None:
    made = wanted(8)
    assert made.next_for("a") == range(4)
    made.source_lacks("a", range(1 << 62))
    made.source_has("a", range(7, 1 << 62))
    assert made.next_for("b", 8) == range(7)
    assert made.next_for("a", 8) == range(7, 8)


@pytest.mark.parametrize("count", [1, 5, 63, 64, 100])
def test_without_the_time_a_source_is_asked_until_the_window_is_asked_for(count: int) -> None:
    made = wanted(count)
    asked = [n for _ in range(count) for n in made.next_for("a", 1) or ()]
    assert asked == list(range(min(count, WINDOW_CHUNKS_MAX)))


def test_a_source_that_joins_again_is_as_before_until_it_left() -> None:
    made = wanted(8)
    made.source_has("a", range(2))
    made.source_joined("a")
    assert made.next_for("a") == range(2)
    made.source_left("a")
    made.source_joined("a")
    assert made.next_for("a") == range(4)


# --- by rate --------------------------------------------------------------------------------


def test_a_new_source_is_given_one_small_range() -> None:
    made = wanted()
    assert made.next_for("a", WINDOW_CHUNKS_MAX, 0.0) == range(RANGE_CHUNKS_MAX)
    assert made.next_for("a", WINDOW_CHUNKS_MAX, 0.0) is None


def test_a_fast_source_is_given_big_ranges_and_a_slow_one_single_chunks() -> None:
    made = wanted()
    now = measured(made, fast=100.0, slow=4.0)
    big = made.next_for("fast", WINDOW_CHUNKS_MAX, now)
    small = made.next_for("slow", WINDOW_CHUNKS_MAX, now)
    assert big is not None and len(big) > 40
    assert small is not None and len(small) == 2


def test_a_source_alone_leaves_a_part_of_the_window_for_the_next_range() -> None:
    made = wanted()
    now = measured(made, fast=1000.0)
    assert made.next_for("fast", WINDOW_CHUNKS_MAX, now) == range(4, 4 + SHARED_CHUNKS_MAX)
    made.received("fast", 4, now + 0.001)
    assert made.next_for("fast", WINDOW_CHUNKS_MAX, now + 0.001) is None, "no single chunks"
    for number in range(5, 16):
        made.received("fast", number, now + 0.012)
    assert made.next_for("fast", WINDOW_CHUNKS_MAX, now + 0.012) == range(52, 64)


def test_a_reader_is_served_though_the_download_has_used_up_the_allowance() -> None:
    made = wanted()
    now = measured(made, fast=1000.0)
    made.next_for("fast", WINDOW_CHUNKS_MAX, now)
    assert made.next_for("fast", WINDOW_CHUNKS_MAX, now) is None
    made.want(range(900, 902))
    assert made.next_for("fast", WINDOW_CHUNKS_MAX, now) == range(900, 902)


def test_a_source_that_would_hold_up_the_window_is_left_out_and_tried_again() -> None:
    made = wanted()
    now = measured(made, fast=200.0, slow=1.0)
    made.next_for("fast", 8, now)
    assert made.next_for("slow", 8, now) is None
    made.received("fast", 8, now + SOURCE_PROBE_S)
    tried = made.next_for("slow", 8, now + SOURCE_PROBE_S)
    assert tried is not None and len(tried) == 1


def test_a_slow_source_is_asked_for_what_it_alone_has() -> None:
    made = wanted(20)
    made.source_has("fast", range(16))
    assert made.next_for("slow", 1, 0.0) == range(16, 17)
    now = measured(made, fast=200.0)
    made.received("slow", 16, now + 1)
    made.next_for("fast", 2, now + 1)
    assert made.next_for("slow", 8, now + 1) == range(17, 18)


def test_the_rate_is_right_from_the_first_chunk_and_falls_in_silence() -> None:
    rate = Rate()
    assert rate.at(0.0) is None
    rate.resume(10.0)
    rate.add(500, 10.5)
    assert rate.at(10.5) == rate.until_last() == pytest.approx(1000)
    silent = [rate.at(10.5 + s) or 0.0 for s in (0.5, 1.0, 5.0)]
    assert silent == sorted(silent, reverse=True)
    assert silent[-1] < 100


def test_idle_time_does_not_count_against_a_source() -> None:
    rate = Rate()
    rate.resume(0.0)
    rate.add(1000, 1.0)
    rate.resume(100.0)
    rate.add(1000, 101.0)
    assert rate.at(101.0) == pytest.approx(1000)


def test_a_rate_follows_a_change_within_seconds() -> None:
    rate = Rate()
    rate.resume(0.0)
    for tick in range(1, 101):
        rate.add(100, tick / 10)
    for tick in range(101, 201):
        rate.add(1000, tick / 10)
    assert rate.at(20.0) == pytest.approx(10_000, rel=0.05)


# --- the end game ---------------------------------------------------------------------------


def ending() -> tuple[ChunkSchedule, float]:
    """A blob of 12 chunks: `slow` delivered the first and owes three, `fast` brought the rest."""
    made, now = wanted(12), 1.0
    assert made.next_for("slow", 4, 0.0) == range(4)
    made.received("slow", 0, now)
    while (chunks := made.next_for("fast", 4, now)) is not None:
        for number in chunks:
            now += 0.01
            made.received("fast", number, now)
    return made, now


def test_what_a_slow_source_owes_is_asked_again_when_nothing_else_is_left() -> None:
    made, now = ending()
    assert made.satisfied
    assert made.total.wasted_bytes == 0
    assert sum(len(chunks) for chunks in made.pointless("slow", now)) == 3
    made.received("slow", 1, now + 1)
    assert made.total.wasted_bytes == CHUNK_BYTES
    assert made.held_count == 12
    slow = next(state for state in made.sources(now + 1) if state.source == "slow")
    assert (slow.received_bytes, slow.wasted_bytes) == (CHUNK_BYTES, CHUNK_BYTES)


def test_what_is_cancelled_is_owed_no_more() -> None:
    made, now = ending()
    for chunks in made.pointless("slow", now):
        made.given_back("slow", chunks, now)
    assert made.pointless("slow", now) == ()
    assert all(state.outstanding_chunks == 0 for state in made.sources(now))


def test_equal_sources_do_not_ask_for_each_others_last_chunks() -> None:
    made = wanted(16)
    now = measured(made, a=100.0, b=100.0)
    assert made.next_for("a", 4, now) == range(8, 12)
    assert made.next_for("b", 4, now) == range(12, 16)
    for place in range(4):
        now += 0.01
        made.received("b", 12 + place, now)
        assert made.next_for("b", 4, now) is None
        if place % 2:  # of late only half as fast
            made.received("a", 8 + place // 2, now)


def test_a_chunk_has_at_most_two_askers() -> None:
    made = wanted(4)
    assert made.next_for("dead", 4, 0.0) == range(4)
    now = 4.0
    again = [set(made.next_for(source, 4, now) or ()) for source in ("b", "c", "d")]
    assert again[0] and not again[0] & again[1]
    assert not again[1] & again[2]


def test_when_one_of_two_askers_leaves_the_other_still_owes_the_chunk() -> None:
    made = wanted(1)
    assert made.next_for("a", 4, 0.0) == range(1)
    assert made.next_for("b", 4, 4.0) == range(1)
    made.source_left("a")
    assert made.next_for("c", 4, 4.1) is None
    made.source_left("b")
    assert made.next_for("c", 4, 4.2) == range(1)


def test_a_late_source_is_not_cancelled_so_that_its_stall_is_seen() -> None:
    made = wanted(1)
    made.next_for("dead", 4, 0.0)
    assert made.next_for("b", 4, 4.0) == range(1)
    made.received("b", 0, 4.1)
    assert made.pointless("dead", 4.1) == ()
    assert made.stalled(STALL_S_MAX) == ["dead"]


# --- stalls ---------------------------------------------------------------------------------


def test_a_source_that_delivers_nothing_while_asked_is_stalled() -> None:
    made = wanted()
    made.source_joined("idle")
    made.next_for("a", now=1.0)
    assert made.stalled(0.9 + STALL_S_MAX) == []
    assert made.stalled(1.0 + STALL_S_MAX) == ["a"]
    made.received("a", 0, 1.0 + STALL_S_MAX)
    assert made.stalled(1.0 + STALL_S_MAX) == []


def test_a_source_that_sends_a_chunk_slowly_is_not_stalled_but_one_that_drips_is() -> None:
    made = wanted()
    made.next_for("slow", now=0.0)
    made.next_for("drips", now=0.0)
    for second in range(1, 9):
        made.moved("slow", CHUNK_BYTES // 8, float(second))
        made.moved("drips", 1, float(second))
    assert made.stalled(8.0) == ["drips"]
    made.received("slow", 0, 8.0)
    slow = next(state for state in made.sources(8.0) if state.source == "slow")
    assert slow.rate == pytest.approx(CHUNK_BYTES / 8), "no byte counts twice"


def test_silence_goes_on_across_a_cancelled_range() -> None:
    made = wanted()
    made.next_for("a", now=0.0)
    made.given_back("a", range(4), now=3.0)
    assert made.stalled(30.0) == []
    made.next_for("a", now=30.0)
    left_s = STALL_S_MAX - 3.0
    assert made.stalled(30.0 + left_s - 0.1) == []
    assert made.stalled(30.0 + left_s) == ["a"]


def test_progress_is_told_in_all_and_by_source_also_of_those_who_left() -> None:
    made, now = wanted(8), 0.0
    asked = [made.next_for(source, 4, now) or () for source in "ab"]
    for both in zip(*asked):
        now += 0.1
        for source, number in zip("ab", both):
            made.received(source, number, now)
    made.source_left("b")
    assert made.total.received_bytes == 8 * CHUNK_BYTES
    told = {state.source: state for state in made.sources(now)}
    assert told["a"].rate == pytest.approx(10 * CHUNK_BYTES)
    assert (told["b"].rate, told["b"].received_bytes) == (None, 4 * CHUNK_BYTES)
    assert made.rate(now) == pytest.approx(20 * CHUNK_BYTES)


def test_the_last_chunk_counts_with_its_own_length() -> None:
    made = wanted(1)
    made.next_for("a", now=0.0)
    made.received("a", 0, 1.0, byte_count=100)
    assert made.total.received_bytes == 100


def test_those_who_want_the_same_share_a_want_until_the_last_leaves() -> None:
    made = ChunkSchedule(4)
    first, second = made.want(range(4)), made.want(range(4))
    assert first is second
    made.unwant(first)
    assert made.next_for("a") == range(4)
    made.source_left("a")
    made.unwant(second)
    assert made.next_for("a") is None


# --- sets of chunks -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start,stop", [(0, 0), (0, 1), (3, 11), (7, 8), (8, 16), (-5, 3), (15, 99)]
)
def test_a_range_in_a_set_is_what_its_chunks_are_one_by_one(start: int, stop: int) -> None:
    found, expected = ChunkSet(20), set(range(max(start, 0), min(stop, 20)))
    found.add_range(range(start, stop))
    assert set(found) == expected and len(found) == len(expected)
    assert found.window(5, 20) == sum(1 << (n - 5) for n in expected if n >= 5)
    assert found.first_missing(start if start >= 0 else 0, 20) == max(min(stop, 20), 0)
    found.remove_range(range(start, stop))
    assert not len(found) and not set(found)


def test_the_first_missing_chunk_is_found_however_far_it_is() -> None:
    found = ChunkSet(100_000)
    found.add_range(range(90_000))
    assert found.first_missing(3, 100_000) == 90_000
    assert found.first_missing(3, 80_000) == 80_000


def test_the_first_run_is_the_lowest_and_no_longer_than_allowed() -> None:
    assert first_run(0b1110110, 100, 8) == range(101, 103)
    assert first_run(0b1110000, 100, 2) == range(104, 106)
