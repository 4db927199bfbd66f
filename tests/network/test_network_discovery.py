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


ME, ALICE, BOB, MALLORY = 0, 1, 2, 3


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
        made.add(node(ALICE), [address(ALICE, port=1 + packet)], teller="local network")
        for who in due(made, now):
            dials += 1
            made.failed(who, now, 1.0)
    assert dials == 4, "at 0, 1, 3 and 7 s"
    assert address(ALICE, port=160) in made.addresses_of(node(ALICE)), "it is dialled later"


def test_hearsay_of_one_way_does_not_push_out_what_came_another_way() -> None:
    made = book()
    made.add(node(ALICE), [address(ALICE, port=7)], teller="introducer")
    made.add(node(ALICE), [address(ALICE, port=8)], teller="somebody")
    lies = [address(ALICE, port=1000 + n) for n in range(100)]
    made.add(node(ALICE), lies, teller="local network")
    addresses = made.addresses_of(node(ALICE))
    assert set(addresses[:3]) == {address(ALICE, port=7), address(ALICE, port=8), lies[0]}
    assert len(addresses) == ADDRESSES_PER_NODE_MAX


def test_hearsay_of_one_member_does_not_push_out_that_of_another() -> None:
    made = book()
    made.add(node(ALICE), [address(ALICE, port=7)], teller=node(BOB))
    for liar in range(3):
        lies = [address(ALICE, port=100 * liar + 100 + n) for n in range(100)]
        made.add(node(ALICE), lies, teller=node(MALLORY + liar))
    assert address(ALICE, port=7) in made.addresses_of(node(ALICE))
    assert len(made.addresses_of(node(ALICE))) == ADDRESSES_PER_NODE_MAX


def test_a_thousand_tellers_cost_no_more_than_sixteen() -> None:
    made = book()
    for teller in range(10, 1010):
        lies = [address(ALICE, port=teller), address(ALICE, port=teller + 5000)]
        made.add(node(ALICE), lies, teller=node(teller))
    kept = made._contacts[node(ALICE)].hearsay
    assert len(kept) == ADDRESSES_PER_NODE_MAX
    assert sum(len(its) for its in kept.values()) == ADDRESSES_PER_NODE_MAX


def test_only_what_a_member_told_itself_is_known_to_the_next_run() -> None:
    """Hearsay once came back from the disk as the member's own word."""
    made = book()
    made.add(node(ALICE), [address(ALICE)], proved=True)
    made.add(node(ALICE), [address(ALICE, port=22)], teller="local network")
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


def test_a_node_that_tells_sixteen_addresses_does_not_push_out_what_the_user_named() -> None:
    made = book()
    made.add(node(ALICE), [address(ALICE, port=1)], by_user=True)
    told = [address(ALICE, port=100 + n) for n in range(ADDRESSES_PER_NODE_MAX)]
    for _ in range(2):
        made.due(0)
        made.failed(node(ALICE), 0, 1.0)
        made.add(node(ALICE), told, proved=True)
    assert made.addresses_of(node(ALICE)) == (*told[:-1], address(ALICE, port=1))
    assert due(made, 0) == [], "what there is no room for is no news"


def test_who_waits_for_its_dial_as_hearsay_and_is_vouched_for_is_dialled_at_once() -> None:
    made = book()
    made.add(node(ALICE), [address(ALICE)])
    assert due(made, 0) == [node(ALICE)]
    assert not made.is_vouched(node(ALICE))
    made.add(node(ALICE), [address(ALICE)], by_user=True)
    assert made.is_vouched(node(ALICE))
    assert due(made, 0) == [node(ALICE)]
    assert due(made, 0) == []


def test_only_as_many_are_dialled_as_there_is_room_for_and_the_others_wait_in_the_book() -> None:
    made = book()
    for number in range(10, 20):
        made.add(node(number), [address(number)], proved=True)
        made.add(node(number + 10), [address(number + 10)])
    begun = [who for who, _ in made.due(0, room=3, hearsay_room=2)]
    assert [made.is_vouched(who) for who in begun] == [True] * 3 + [False] * 2
    assert made.due(0, room=0, hearsay_room=0) == []
    assert made.next_due_at(0) == HEARSAY_AWAITED_S, "no need to look before a dial has ended"
    made.reached(node(13), 0)
    assert node(13) not in due(made, 0), "it came by itself, and is dialled no more"


def test_whom_the_user_named_goes_before_members_of_earlier_runs() -> None:
    """A bootstrap node once waited for minutes behind 200 members that were gone."""
    made = book()
    for number in range(10, 10 + 200):
        made.add(node(number), [address(number)], proved=True)
    made.add(node(ALICE), [address(ALICE)], by_user=True)
    made.failed(node(ALICE), 0, 1.0)
    assert made.due(60, room=1) == [(node(ALICE), (address(ALICE),))]


def test_tellers_take_turns() -> None:
    """One member that told of 200 nodes once made those of others wait for ten minutes."""
    made = book()
    for number in range(10, 10 + 200):
        made.add(node(number), [address(number)], teller=node(MALLORY))
    begun = [who for who, _ in made.due(0, hearsay_room=16)]
    made.add(node(BOB), [address(BOB)], teller=node(ALICE))
    made.failed(begun[0], 1, 1.0)
    assert made.due(1, hearsay_room=1) == [(node(BOB), (address(BOB),))]


def test_behind_the_best_address_each_dial_begins_one_further() -> None:
    """Three addresses that swallow packets once used up the time of every dial."""
    made = book()
    ports = [address(ALICE, port=n) for n in (1, 2, 3)]
    made.add(node(ALICE), ports, proved=True)
    tried = []
    for dial in range(3):
        tried.append(made.due(100 * dial)[0][1])
        made.failed(node(ALICE), 100 * dial, 1.0)
    one, two, three = ports
    assert tried == [(one, two, three), (one, three, two), (one, two, three)], (
        "the best may be back"
    )
    made.add(node(ALICE), [address(ALICE, port=4), *ports], proved=True)
    assert made.due(400)[0][1][0] == address(ALICE, port=4)
    made.failed(node(ALICE), 400, 1.0)
    made.reached(node(ALICE), 500)
    made.lost(node(ALICE), 600, 1.0)
    assert made.due(700)[0][1][0] == address(ALICE, port=4), "it was reached there"


def test_who_waits_longest_is_dialled_first_when_all_have_failed_as_often() -> None:
    """Once the first of the book had all the room, and one behind them that was back none."""
    made = book()
    names = [ALICE + number for number in range(6)]
    for name in names:
        made.add(node(name), [address(name)], proved=True)
    now, dialled = 0.0, []
    for _ in range(40 * len(names)):
        for who, _ in made.due(now, 2, 0):
            dialled.append(who)
            made.failed(who, now, 1.0)
        now += 30.0
    latest = dialled[-2 * len(names) :]
    assert set(latest) == {node(name) for name in names}


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


def test_in_a_full_book_whoever_told_of_most_gives_way() -> None:
    """One member that invented as many nodes as fit once kept out all that others told of."""
    made = book()
    for number in range(10, 10 + PEERS_MAX):
        made.add(node(number), [address(number)], teller=node(MALLORY))
    made.add(node(BOB), [address(BOB)], teller=node(ALICE))
    assert made.addresses_of(node(BOB))
    made.add(node(9), [address(9)], teller=node(MALLORY))
    assert not made.addresses_of(node(9)), "not for one more of its own"
    for number in range(1000, 1000 + PEERS_MAX):
        made.add(node(number), [address(number)], teller=node(ALICE))
    of_mallory = [n for n in range(10, 10 + PEERS_MAX) if made.addresses_of(node(n))]
    assert len(of_mallory) == PEERS_MAX // 2, "until both have told of as many"


def test_whom_a_second_teller_knows_too_is_not_of_the_firsts_crowd() -> None:
    made, both = book(), 5000
    made.add(node(both), [address(both)], teller=node(MALLORY))
    for number in range(10, 10 + PEERS_MAX):
        made.add(node(number), [address(number)], teller=node(MALLORY))
    made.add(node(both), [address(both)], teller=node(ALICE))
    for number in range(1000, 1000 + PEERS_MAX):
        made.add(node(number), [address(number)], teller=node(number))
    assert made.addresses_of(node(both))


def gone_members(count: int) -> AddressBook:
    """A book of members that were reached one after the other, and never again."""
    made = book()
    for number in range(10, 10 + count):
        made.add(node(number), [address(number)], proved=True)
        made.reached(node(number), number)
        made.lost(node(number), number, 1.0)
        for _ in range(16):
            made.failed(node(number), 2000, 1.0)
    return made


def test_members_that_are_gone_give_way_to_new_ones_the_longest_gone_first() -> None:
    """256 members that came and went once filled the book for ever."""
    made = gone_members(PEERS_MAX)
    made.reached(node(10), 3000)
    made.add(node(11), [], by_user=True)
    made.add(node(ALICE), [address(ALICE)], proved=True)
    assert made.addresses_of(node(ALICE))
    gone = [n for n in range(10, 10 + PEERS_MAX) if not made.addresses_of(node(n))]
    assert gone == [12], "neither who is here, nor whom the user named"


def test_who_was_reached_of_late_does_not_give_way() -> None:
    made = book()
    for number in range(10, 10 + PEERS_MAX):
        made.add(node(number), [address(number)], proved=True)
        made.failed(node(number), 0, 1.0)
    made.add(node(ALICE), [address(ALICE)], proved=True)
    assert not made.addresses_of(node(ALICE))


def test_hearsay_has_one_place_in_a_book_full_of_members_that_are_gone() -> None:
    """Otherwise whoever invents nodes would make the others forget each other."""
    made = gone_members(PEERS_MAX)
    for number in (ALICE, BOB):
        made.add(node(number), [address(number)])
    assert made.addresses_of(node(ALICE)) and not made.addresses_of(node(BOB))
    assert len(made.known()) == PEERS_MAX - 1


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
