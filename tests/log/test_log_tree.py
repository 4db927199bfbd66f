"""The frontier and the stored hashes: any way of growing gives the same, and nothing is changed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kachery_p2p.log.tree import (
    EMPTY_ROOT,
    Frontier,
    leaf_hash,
    node_hash,
    root_at,
    root_over,
    stored_count,
    stored_place,
    subtrees,
)

LEAVES = [leaf_hash(number.to_bytes(4, "big")) for number in range(300)]
STORED = Frontier().extended(LEAVES).stored


def test_a_log_without_entries_has_the_root_of_nothing() -> None:
    assert Frontier().root == EMPTY_ROOT == root_at(0, STORED.__getitem__)
    assert Frontier().extended([]) == (Frontier(), [])
    assert EMPTY_ROOT.hex().startswith("e3b0c442")


def test_a_log_of_one_entry_has_its_leaf_hash_as_root() -> None:
    assert Frontier().extended(LEAVES[:1]).frontier.root == LEAVES[0]


def test_a_leaf_is_never_a_node() -> None:
    left, right = LEAVES[:2]
    assert leaf_hash(left + right) != node_hash(left, right)


@given(st.lists(st.integers(0, 90), max_size=8))
def test_batches_of_any_length_give_the_same_log(lengths: list[int]) -> None:
    frontier, stored = Frontier(), list[bytes]()
    for length in lengths:
        batch = LEAVES[frontier.size : frontier.size + length]
        frontier, more = frontier.extended(iter(batch))
        stored += more
    assert stored == STORED[: stored_count(frontier.size)]
    assert frontier == Frontier.at(frontier.size, STORED.__getitem__)
    assert frontier.root == root_at(frontier.size, STORED.__getitem__)


def test_growing_leaves_the_frontier_before_as_it_was() -> None:
    before = Frontier().extended(LEAVES[:21]).frontier
    copy = Frontier(before.size, tuple(before.hashes))
    before.extended(LEAVES[21:40])
    assert before == copy
    assert before.root == root_at(21, STORED.__getitem__)


def test_an_earlier_root_takes_few_reads_and_none_beyond_its_size() -> None:
    for size in range(len(LEAVES) + 1):
        places: list[int] = []

        def read(place: int, places: list[int] = places) -> bytes:
            places.append(place)
            return STORED[place]

        assert root_at(size, read) == Frontier().extended(LEAVES[:size]).frontier.root
        assert len(places) == size.bit_count()
        assert all(place < stored_count(size) for place in places)


def test_every_full_subtree_is_stored_once_in_the_order_of_becoming_full() -> None:
    places = {}
    for level in range(9):
        for number in range(len(LEAVES) >> level):
            place = stored_place(level, number)
            leaves = LEAVES[number << level : (number + 1) << level]
            assert STORED[place] == Frontier().extended(leaves).frontier.root
            places[place] = (level, number)
    assert sorted(places) == list(range(stored_count(len(LEAVES))))


def test_the_root_over_some_leaves_is_that_of_a_log_of_their_own() -> None:
    for first, end in ((0, 300), (256, 300), (128, 256), (296, 300), (299, 300), (288, 299)):
        alone = Frontier().extended(LEAVES[first:end]).frontier.root
        assert root_over(first, end, STORED.__getitem__) == alone


@given(st.integers(0, 2**62))
def test_the_subtrees_of_any_size_cover_it_from_the_left(size: int) -> None:
    end = 0
    for level, number in subtrees(0, size):
        assert number << level == end
        end = (number + 1) << level
    assert end == size


def test_places_are_exact_in_the_longest_log() -> None:
    assert stored_count(2**62) == 2**63 - 1
    assert stored_place(62, 0) == 2**63 - 2
    assert stored_place(0, 2**62 - 1) == 2**63 - 2 - 62
