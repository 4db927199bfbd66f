"""The address book: pure, told what happened and what time it is."""

from __future__ import annotations

import pytest

from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    ADDRESSES_PER_NODE_MAX,
    HEARSAY_AWAITED_S,
    PEERS_MAX,
    REDIAL_S_MAX,
    REDIAL_S_MIN,
    STRANGER_REDIAL_S,
)
from kachery_p2p.network.discovery import AddressBook
from kachery_p2p.network.multiaddrs import address_of


def node(number: int) -> NodeId:
    return NodeId.of_raw(number.to_bytes(4, "big") * 8)


def address(number: int, port: int = 1) -> str:
    return str(address_of("10.0.0.1", port, node(number)))


ME, ALICE, BOB = 0, 1, 2


def book() -> AddressBook:
    return AddressBook(node(ME))


def due(made: AddressBook, now: float) -> list[NodeId]:
    return [who for who, _ in made.due(now)]


def test_who_is_heard_of_is_dialled_at_once_and_only_once_at_a_time() -> None:
    made = book()
    made.add(node(ALICE), [address(ALICE)])
    assert made.due(0) == [(node(ALICE), (address(ALICE),))]
    assert made.due(1000) == []


def test_a_node_never_dials_itself() -> None:
    made = book()
    made.add(node(ME), [address(ME)], by_user=True)
    assert made.due(0) == []


def test_waits_between_dials_double_up_to_a_bound() -> None:
    made = book()
    made.add(node(ALICE), [address(ALICE)], by_user=True)
    now, waits = 0.0, []
    for _ in range(20):
        assert due(made, now) == [node(ALICE)]
        made.failed(node(ALICE), now, jitter=1.0)
        waits.append(made.next_due_at(now) - now)
        now += waits[-1]
    assert waits[:4] == [REDIAL_S_MIN, 2 * REDIAL_S_MIN, 4 * REDIAL_S_MIN, 8 * REDIAL_S_MIN]
    assert max(waits) == waits[-1] == REDIAL_S_MAX


def test_jitter_takes_nodes_out_of_step() -> None:
    early, late = book(), book()
    for made, jitter in ((early, 0.0), (late, 1.0)):
        made.add(node(ALICE), [address(ALICE)])
        made.due(0)
        made.failed(node(ALICE), 0, jitter)
    assert early.next_due_at(0) < late.next_due_at(0)


def test_a_member_whose_session_lasted_is_dialled_again_soon_after_it_is_lost() -> None:
    made = book()
    made.add(node(ALICE), [address(ALICE)])
    made.due(0)
    for _ in range(8):
        made.failed(node(ALICE), 0, 1.0)
    made.reached(node(ALICE), 1000)
    assert due(made, 2000) == []
    made.lost(node(ALICE), 2000, 1.0)
    assert due(made, 2000 + REDIAL_S_MIN) == [node(ALICE)]


def test_a_member_that_hangs_up_each_time_is_dialled_more_and_more_rarely() -> None:
    made = book()
    made.add(node(ALICE), [address(ALICE)])
    now, dials = 0.0, 0
    while now < 600:
        for who in due(made, now):
            dials += 1
            made.reached(who, now)
            made.lost(who, now, 1.0)
        now = made.next_due_at(now)
    assert dials < 20


@pytest.mark.parametrize("by_user", [False, True])
def test_a_new_address_of_the_nodes_own_or_the_users_word_is_tried_at_once(by_user: bool) -> None:
    made = book()
    made.add(node(ALICE), [address(ALICE)], proved=True)
    made.due(0)
    made.failed(node(ALICE), 0, 1.0)
    made.add(node(ALICE), [address(ALICE)], proved=True)
    assert due(made, 0) == []
    made.add(node(ALICE), [address(ALICE, port=2)], by_user=by_user, proved=not by_user)
    assert made.due(0)[0][1][0] == address(ALICE, port=2)


def test_hearsay_with_ever_new_ports_does_not_undo_the_backoff() -> None:
    """A stranger on the local network, 16 packets a second, once caused as many dials."""
    made = book()
    dials = 0
    for packet in range(160):
        now = packet / 16
        made.add(node(ALICE), [address(ALICE, port=1 + packet)], way="local network")
        for who in due(made, now):
            dials += 1
            made.failed(who, now, 1.0)
    assert dials == 4, "at 0, 1, 3 and 7 s"
    assert address(ALICE, port=160) in made.addresses_of(node(ALICE)), "it is dialled later"


def test_hearsay_of_one_way_does_not_push_out_what_came_another_way() -> None:
    made = book()
    made.add(node(ALICE), [address(ALICE, port=7)], way="introducer")
    made.add(node(ALICE), [address(ALICE, port=8)], way="members")
    lies = [address(ALICE, port=1000 + n) for n in range(100)]
    made.add(node(ALICE), lies, way="local network")
    addresses = made.addresses_of(node(ALICE))
    assert set(addresses[:3]) == {address(ALICE, port=7), address(ALICE, port=8), lies[0]}
    assert len(addresses) == ADDRESSES_PER_NODE_MAX


def test_only_what_a_member_told_itself_is_known_to_the_next_run() -> None:
    """Hearsay once came back from the disk as the member's own word."""
    made = book()
    made.add(node(ALICE), [address(ALICE)], proved=True)
    made.add(node(ALICE), [address(ALICE, port=22)], way="local network")
    made.add(node(BOB), [address(BOB)])
    made.reached(node(BOB), 0)
    assert made.known() == {node(ALICE): (address(ALICE),), node(BOB): ()}


def test_what_a_member_tells_of_itself_replaces_what_it_told_but_not_what_the_user_named() -> None:
    made = book()
    made.add(node(ALICE), [address(ALICE, port=1), address(ALICE, port=2)], proved=True)
    made.add(node(ALICE), [address(ALICE, port=3)], by_user=True)
    made.add(node(ALICE), [address(ALICE, port=4)], proved=True)
    assert made.addresses_of(node(ALICE)) == (address(ALICE, port=4), address(ALICE, port=3))
    made.add(node(ALICE), [], proved=True)
    assert made.known()[node(ALICE)] == (address(ALICE, port=4), address(ALICE, port=3))


def test_what_an_invite_told_stays_and_is_no_wish_of_the_user() -> None:
    made = book()
    made.add(node(ALICE), [address(ALICE, port=1)], proved=True, by_invite=True)
    made.add(node(ALICE), [address(ALICE, port=2)], proved=True)
    assert made.addresses_of(node(ALICE)) == (address(ALICE, port=2), address(ALICE, port=1))
    made.due(0)
    made.failed(node(ALICE), 0, jitter=1.0)
    assert made.unreached_by_user() == ()


def test_who_waits_for_its_dial_as_hearsay_and_is_vouched_for_is_dialled_at_once() -> None:
    made = book()
    made.add(node(ALICE), [address(ALICE)])
    assert due(made, 0) == [node(ALICE)]
    assert not made.is_vouched(node(ALICE))
    made.add(node(ALICE), [address(ALICE)], by_user=True)
    assert made.is_vouched(node(ALICE))
    assert due(made, 0) == [node(ALICE)]
    assert due(made, 0) == []


def test_hearsay_is_not_awaited_for_long_and_who_is_vouched_for_is() -> None:
    made = book()
    made.add(node(ALICE), [address(ALICE)])
    made.due(0)
    assert made.next_due_at(0) == HEARSAY_AWAITED_S, "whoever waits is told"
    assert not made.settled(HEARSAY_AWAITED_S - 0.1)
    assert made.settled(HEARSAY_AWAITED_S)
    made.add(node(BOB), [address(BOB)], by_user=True)
    made.due(10)
    assert not made.settled(10 + 2 * HEARSAY_AWAITED_S)


def test_a_liar_cannot_displace_the_address_that_a_member_told_of_itself() -> None:
    made = book()
    made.add(node(ALICE), [address(ALICE)], proved=True)
    made.add(node(ALICE), [address(ALICE, port=1000 + n) for n in range(100)])
    addresses = made.addresses_of(node(ALICE))
    assert addresses[0] == address(ALICE)
    assert len(addresses) == ADDRESSES_PER_NODE_MAX


def test_an_address_that_names_another_node_is_dropped() -> None:
    made = book()
    made.add(node(ALICE), [address(BOB), "", "/", "x" * 10_000, address(ALICE)])
    assert made.addresses_of(node(ALICE)) == (address(ALICE),)


def test_a_million_told_addresses_cost_no_more_than_a_full_book() -> None:
    made = book()
    made.add(node(ALICE), [address(ALICE)], proved=True)
    for number in range(BOB, BOB + 1_000_000 // ADDRESSES_PER_NODE_MAX):
        peer = f"/p2p/{node(number).peer_id}"
        made.add(node(number), [f"/ip4/10.0.0.1/tcp/{n}{peer}" for n in range(1, 17)])
        if number > 2 * PEERS_MAX and number % 1000:
            continue
        kept = made._contacts
        assert len(kept) <= PEERS_MAX
        assert all(len(c.addresses) <= ADDRESSES_PER_NODE_MAX for c in kept.values())
    assert node(ALICE) in made._contacts


def test_in_a_book_full_of_hearsay_there_is_room_for_a_member_and_for_whom_the_user_names() -> None:
    made = book()
    for number in range(10, 10 + 2 * PEERS_MAX):
        made.add(node(number), [address(number)])
    made.add(node(ALICE), [address(ALICE)], proved=True)
    made.add(node(BOB), [address(BOB)], by_user=True)
    assert made.addresses_of(node(ALICE)) and made.addresses_of(node(BOB))
    assert set(due(made, 0)[:2]) == {node(ALICE), node(BOB)}, "and they are dialled first"


def test_hearsay_that_failed_makes_room_for_other_hearsay() -> None:
    made = book()
    for number in range(10, 10 + PEERS_MAX):
        made.add(node(number), [address(number)])
    made.add(node(ALICE), [address(ALICE)])
    assert not made.addresses_of(node(ALICE)), "whom nobody has tried yet is kept"
    made.due(0)
    made.failed(node(10), 0, 1.0)
    made.add(node(ALICE), [address(ALICE)])
    assert made.addresses_of(node(ALICE))


def test_hopeless_hearsay_is_forgotten_and_a_member_never() -> None:
    made = book()
    made.add(node(ALICE), [address(ALICE)])
    made.add(node(BOB), [address(BOB)], proved=True)
    for _ in range(50):
        made.failed(node(ALICE), 0, 1.0)
        made.failed(node(BOB), 0, 1.0)
    assert made.addresses_of(node(ALICE)) == ()
    assert made.addresses_of(node(BOB)) != ()
    assert list(made.known()) == [node(BOB)]


def test_a_stranger_is_dropped_unless_the_user_named_it() -> None:
    made = book()
    made.add(node(ALICE), [address(ALICE)])
    made.add(node(BOB), [address(BOB)], by_user=True)
    for who in due(made, 0):
        made.drop(who)
        made.failed(who, 0, 1.0)
    assert made.addresses_of(node(ALICE)) == ()
    assert made.unreached_by_user() == (node(BOB),)


def test_the_book_is_settled_when_everyone_was_tried_once() -> None:
    made = book()
    settled = [made.settled(0)]
    made.add(node(ALICE), [address(ALICE)])
    made.add(node(BOB), [address(BOB)])
    settled.append(made.settled(0))
    made.due(0)
    made.failed(node(ALICE), 0, 1.0)
    settled.append(made.settled(0))
    made.reached(node(BOB), 0)
    settled.append(made.settled(0))
    assert settled == [True, False, False, True]


def strangers_book(*, introduces: bool) -> AddressBook:
    """Alice, whom the user named, said that she is no member."""
    made = book()
    made.add(node(ALICE), [address(ALICE)], by_user=True)
    made.introduces(node(ALICE), introduces)
    made.due(0)
    made.drop(node(ALICE))
    made.failed(node(ALICE), 0, 1.0)
    return made


def test_an_introducer_that_is_no_member_is_no_problem_as_long_as_it_introduces() -> None:
    assert strangers_book(introduces=False).unreached_by_user() == (node(ALICE),)
    made = strangers_book(introduces=True)
    assert made.unreached_by_user() == ()
    made.introduces(node(ALICE), False)
    assert made.unreached_by_user() == (node(ALICE),)
    assert due(made, 1) == [node(ALICE)], "why it is not reached is found out at once"


def test_an_introducer_that_is_no_member_is_rarely_dialled_as_one() -> None:
    made = strangers_book(introduces=True)
    assert due(made, STRANGER_REDIAL_S - 1) == []
    assert due(made, STRANGER_REDIAL_S) == [node(ALICE)]


def test_an_introducer_that_was_only_out_of_reach_is_dialled_again_soon() -> None:
    made = book()
    made.add(node(ALICE), [address(ALICE)], by_user=True)
    made.introduces(node(ALICE), True)
    made.due(0)
    made.failed(node(ALICE), 0, 1.0)
    assert due(made, REDIAL_S_MIN) == [node(ALICE)]


def test_an_introducer_that_the_user_names_again_is_dialled_at_once() -> None:
    made = strangers_book(introduces=True)
    made.add(node(ALICE), [address(ALICE)])
    assert due(made, 1) == [], "hearsay changes nothing"
    made.add(node(ALICE), [address(ALICE)], by_user=True)
    assert due(made, 1) == [node(ALICE)]


def test_an_introducer_that_became_a_member_is_redialled_like_one() -> None:
    made = strangers_book(introduces=True)
    assert due(made, STRANGER_REDIAL_S) == [node(ALICE)]
    made.reached(node(ALICE), STRANGER_REDIAL_S)
    made.lost(node(ALICE), 2 * STRANGER_REDIAL_S, 1.0)
    assert due(made, 2 * STRANGER_REDIAL_S + REDIAL_S_MIN) == [node(ALICE)]


def test_whoever_introduces_and_is_not_in_the_book_stays_out_of_it() -> None:
    made = book()
    made.introduces(node(BOB), True)
    assert made.due(0) == []
