"""The board of an introducer: bounded, and nobody can crowd out others."""

from __future__ import annotations

import tracemalloc

from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    RENDEZVOUS_ENTRIES_MAX,
    RENDEZVOUS_ENTRIES_PER_NODE_MAX,
    RENDEZVOUS_ENTRIES_PER_TAG_MAX,
    RENDEZVOUS_SWEEP_S,
    RENDEZVOUS_TTL_S_MAX,
)
from kachery_p2p.network.noticeboard import Crowd, Notice, Noticeboard
from kachery_p2p.wire.rendezvous import ENTRY_BYTES


def node(number: int) -> NodeId:
    return NodeId(f"{number:064x}")


def tag(number: int) -> bytes:
    return number.to_bytes(32, "big")


def notice(words: str, place: str = "here", expires_at: float = 1e9) -> Notice:
    return Notice(words.encode(), expires_at, place)


HONEST, ABUSER = "198.51.100.1", "203.0.113.9"


def test_who_looks_under_a_tag_finds_all_that_is_there_and_nothing_else() -> None:
    board = Noticeboard()
    board.put(tag(1), node(1), notice("one"), 0)
    board.put(tag(1), node(2), notice("two"), 0)
    board.put(tag(2), node(1), notice("elsewhere"), 0)
    assert board.under(tag(1), 0) == [b"one", b"two"]
    assert board.under(tag(3), 0) == []


def test_a_node_replaces_its_own_entry_and_nobody_elses() -> None:
    board = Noticeboard()
    board.put(tag(1), node(1), notice("one"), 0)
    board.put(tag(1), node(2), notice("two"), 0)
    board.put(tag(1), node(1), notice("newer"), 0)
    assert board.under(tag(1), 0) == [b"two", b"newer"]
    assert len(board) == 2


def test_an_expired_entry_is_not_found_and_its_memory_comes_back() -> None:
    board = Noticeboard()
    for number in range(100):
        board.put(tag(number), node(number), notice("old", expires_at=10), 0)
    board.put(tag(1), node(200), notice("longer", expires_at=500), 0)
    assert board.under(tag(1), 9.9) == [b"old", b"longer"]
    assert board.under(tag(1), 10) == [b"longer"]
    board.put(tag(7), node(7), notice("new"), 10 + RENDEZVOUS_SWEEP_S)
    assert len(board) == 2


def test_a_node_that_leaves_too_many_loses_its_own_oldest() -> None:
    board = Noticeboard()
    board.put(tag(0), node(2), notice("other"), 0)
    for number in range(RENDEZVOUS_ENTRIES_PER_NODE_MAX + 10):
        board.put(tag(number), node(1), notice(str(number)), 0)
    assert len(board) == RENDEZVOUS_ENTRIES_PER_NODE_MAX + 1
    assert board.under(tag(0), 0) == [b"other"]
    assert board.under(tag(9), 0) == []
    assert board.under(tag(10), 0) == [b"10"]


def test_under_a_full_tag_a_member_with_a_thousand_keys_displaces_one_other_at_most() -> None:
    board = Noticeboard()
    for number in range(RENDEZVOUS_ENTRIES_PER_TAG_MAX):
        board.put(tag(1), node(number), notice("honest", f"198.51.100.{number}"), 0)
    for number in range(1000, 2000):
        board.put(tag(1), node(number), notice("flood", ABUSER), 0)
    found = board.under(tag(1), 0)
    assert len(found) == RENDEZVOUS_ENTRIES_PER_TAG_MAX
    assert found.count(b"honest") == RENDEZVOUS_ENTRIES_PER_TAG_MAX - 1


def test_of_a_channel_behind_one_address_the_newest_are_kept() -> None:
    board = Noticeboard()
    for number in range(200):
        board.put(tag(1), node(number), notice(str(number)), 0)
    newest = range(200 - RENDEZVOUS_ENTRIES_PER_TAG_MAX, 200)
    assert board.under(tag(1), 0) == [str(number).encode() for number in newest]


def test_a_million_registrations_are_bounded_and_take_away_nothing_of_others() -> None:
    board = Noticeboard()
    labs = range(50)
    for lab in labs:
        for member in range(4):
            place = f"198.51.100.{4 * lab + member}"
            board.put(tag(lab), node(1000 + 4 * lab + member), notice("honest", place), 0)
    entry = notice("x" * ENTRY_BYTES, ABUSER)
    for number in range(1_000_000):
        board.put(tag(10_000 + number), node(10_000 + number), entry, number / 1000)
    assert len(board) == RENDEZVOUS_ENTRIES_MAX
    assert all(board.under(tag(lab), 1000) == [b"honest"] * 4 for lab in labs)


def test_a_full_board_takes_no_more_memory_than_its_limit_says() -> None:
    tracemalloc.start()
    try:
        board = Noticeboard()
        for number in range(RENDEZVOUS_ENTRIES_MAX + 1000):
            entry = Notice(bytes(ENTRY_BYTES), RENDEZVOUS_TTL_S_MAX, f"2001:db8:{number:x}::/64")
            board.put(tag(number), node(number), entry, 0)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 24 << 20
    board.put(tag(1), node(1), notice("new"), RENDEZVOUS_TTL_S_MAX)
    assert len(board) == 1


def test_an_abuser_of_many_places_gets_no_more_than_the_others_of_each() -> None:
    board = Noticeboard()
    for number in range(1000):
        board.put(tag(number), node(number), notice("honest", f"honest {number}"), 0)
    for number in range(5 * RENDEZVOUS_ENTRIES_MAX):
        place = f"2001:db8:0:{number % 1000:x}::/64"
        board.put(tag(10_000 + number), node(10_000 + number), notice("flood", place), 0)
    assert all(board.under(tag(number), 0) == [b"honest"] for number in range(1000))


def test_the_oldest_of_the_most_crowded_place_goes_first() -> None:
    crowd: Crowd[str] = Crowd()
    for item, place in (("a1", "a"), ("b1", "b"), ("b2", "b"), ("c1", "c"), ("c2", "c")):
        crowd.add(item, place)
    gone = []
    while len(crowd):
        gone.append(crowd.oldest_of_most_crowded())
        crowd.remove(gone[-1])
    assert gone == ["b1", "c1", "a1", "b2", "c2"]
