"""The memory of announcements: compact sets, bounds, the index, and two sides that agree."""

from __future__ import annotations

import tracemalloc
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kachery_p2p.content.hashes import ContentHash, sha1_of
from kachery_p2p.errors import ProtocolError
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeId, NodeKey
from kachery_p2p.limits import (
    ANNOUNCE_BURST_BYTES,
    ANNOUNCE_BURST_MESSAGES,
    ANNOUNCE_PREFIXES_MAX,
    ANNOUNCED_PER_PEER_MAX,
    INDEX_ABOVE_MEMBERS,
    INDEX_KEEPERS,
    INDEX_UNTIL_MEMBERS,
)
from kachery_p2p.network.allowance import Allowance
from kachery_p2p.network.catalogue import Catalogue, Telling, differences
from kachery_p2p.network.prefixes import PrefixSet, pack, prefix_of, unpack
from kachery_p2p.network.providers import (
    ALL_SLOTS,
    Delta,
    IndexMembers,
    Providers,
    in_turn,
    slot_of,
    slot_range,
    weights,
)

LAB, FIELD = "1a" * 32, "f1" * 32
CONTENTS = [sha1_of(b"%d" % n) for n in range(400)]


def node(number: int) -> NodeId:
    return NodeKey.generate(number.to_bytes(2, "big") * (NODE_KEY_BYTES // 2)).node_id


ME, ALICE, BOB, CAROL = (node(n) for n in range(4))


def providers(**bounds: int) -> Providers:
    made = Providers(ME, **bounds)
    made.set_members({LAB: {ALICE, BOB, CAROL}})
    return made


def delta(seq: int, add: list[int], drop: list[int] | None = None, *, channel: str = LAB) -> Delta:
    return Delta(channel, seq, seq == 0, pack(add), pack(drop or []))


def announce(made: Providers, peer: NodeId, count: int, *, first: int = 0) -> None:
    """`count` prefixes in messages of the greatest size."""
    numbers = Random(first)
    for seq, start in enumerate(range(0, count, ANNOUNCE_PREFIXES_MAX)):
        size = min(ANNOUNCE_PREFIXES_MAX, count - start)
        made.hear(peer, Delta(LAB, seq, seq == 0, numbers.randbytes(8 * size), b""))


# --- sets ---------------------------------------------------------------------------------------

# Few values, so that things are added twice and dropped; great ones, so that the ends are met.
VALUES = st.one_of(st.integers(0, 3_000), st.integers((1 << 64) - 5, (1 << 64) - 1))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), VALUES), max_size=200),
    st.sampled_from([0, 300, 4_000]),
    st.integers(0, 1 << 32),
)
def test_a_compact_set_behaves_like_a_set(
    changes: list[tuple[bool, int]], many: int, seed: int
) -> None:
    random = Random(seed)
    compact, plain = PrefixSet(), set[int]()
    bulk = [(True, random.randrange(4_000)) for _ in range(many)]
    bulk += [(False, random.randrange(4_000)) for _ in range(many)]
    for adds, value in [*bulk, *changes]:
        expected = (value not in plain) if adds else (value in plain)
        assert (compact.add if adds else compact.discard)(value) == expected
        (plain.add if adds else plain.discard)(value)
    assert list(compact) == sorted(plain)
    assert len(compact) == len(plain)
    for value in random.sample(range(4_000), 50):
        assert (value in compact) == (value in plain)
    start, end, most = random.randrange(4_000), random.randrange(4_000), random.randrange(1, 900)
    assert compact.between(start, end, most) == sorted(v for v in plain if start <= v < end)[:most]
    before = len(compact)
    gone = compact.give_up_block()
    assert len(compact) == before - gone
    assert list(compact) == sorted(plain)[: len(compact)]


def test_a_prefix_costs_16_bytes_at_most_whatever_their_order() -> None:
    random = Random(1)
    for numbers in (
        [random.getrandbits(64) for _ in range(300_000)],
        range(300_000),
        range(300_000, 0, -1),
    ):
        made = PrefixSet(numbers)
        assert len(made) == 300_000
        assert made.bytes_used <= 16 * 300_000


def test_what_is_dropped_gives_its_memory_back_though_a_little_stays_everywhere() -> None:
    made = PrefixSet(range(200_000))
    for number in range(200_000):
        if number % 400:
            made.discard(number)
    assert list(made) == list(range(0, 200_000, 400))
    assert made.bytes_used < 20_000


def test_prefixes_travel_as_the_first_bytes_of_the_sha1() -> None:
    assert pack([prefix_of(CONTENTS[0])]) == CONTENTS[0].raw[:8]
    assert list(unpack(CONTENTS[0].raw[:8])) == [prefix_of(CONTENTS[0])]


def test_differences_are_found_unless_there_are_too_many() -> None:
    old, new = PrefixSet(range(1_000)), PrefixSet(range(500, 1_500))
    assert sorted(differences(old, new, 1_000) or []) == [*range(500), *range(1_000, 1_500)]
    assert differences(old, new, 999) is None
    assert differences(old, old, 0) == []


# --- who announced what -------------------------------------------------------------------------


def test_who_announced_is_known_by_channel_until_it_drops_it() -> None:
    made = providers()
    wanted = prefix_of(CONTENTS[0])
    made.hear(ALICE, delta(0, [wanted]))
    made.hear(BOB, delta(0, [wanted, prefix_of(CONTENTS[1])]))
    assert made.holders(CONTENTS[0], LAB) == {ALICE, BOB}
    assert made.holders(CONTENTS[1], LAB) == {BOB}
    assert made.holders(CONTENTS[0], FIELD) == frozenset()
    made.hear(BOB, delta(1, [], [wanted]))
    assert made.holders(CONTENTS[0], LAB) == {ALICE}
    made.forget(ALICE)
    assert made.holders(CONTENTS[0], LAB) == frozenset()
    assert made.count == 1


def test_a_reset_takes_the_place_of_all_before_it() -> None:
    made = providers()
    made.hear(ALICE, delta(0, [prefix_of(content) for content in CONTENTS]))
    made.hear(ALICE, Delta(LAB, 7, True, CONTENTS[3].raw[:8], b""))
    assert made.count == made.count_of(ALICE) == 1
    made.hear(ALICE, delta(8, [prefix_of(CONTENTS[4])]))
    assert made.holders(CONTENTS[3], LAB) == made.holders(CONTENTS[4], LAB) == {ALICE}


@pytest.mark.parametrize("seq", [0, 1, 3, 1 << 52])
def test_an_announcement_out_of_sequence_is_refused_and_nothing_before_it_counts(seq: int) -> None:
    made = providers()
    made.hear(ALICE, delta(0, [1]))
    made.hear(ALICE, delta(1, [2]))
    with pytest.raises(ProtocolError, match="out of sequence"):
        made.hear(ALICE, Delta(LAB, seq, False, pack([3]), b""))
    assert made.count == made.count_of(ALICE) == 0
    with pytest.raises(ProtocolError):
        made.hear(ALICE, Delta(LAB, 2, False, pack([3]), b""))
    made.hear(ALICE, delta(0, [4]))
    assert made.count == 1


def test_nothing_can_be_announced_before_a_reset() -> None:
    made = providers()
    for seq in (0, 1):
        with pytest.raises(ProtocolError):
            made.hear(ALICE, Delta(LAB, seq, False, pack([3]), b""))
    assert made.count == 0


def test_who_is_no_member_any_more_has_announced_nothing() -> None:
    made = providers()
    made.set_members({LAB: {ALICE, BOB}, FIELD: {ALICE}})
    for channel in (LAB, FIELD):
        made.hear(ALICE, delta(0, [1, 2], channel=channel))
    made.hear(BOB, delta(0, [1]))
    made.set_members({LAB: {BOB}, FIELD: {ALICE}})
    assert (made.count, made.count_of(ALICE), made.count_of(BOB)) == (3, 2, 1)
    made.set_members({LAB: {BOB}})
    assert (made.count, made.count_of(ALICE)) == (1, 0)


# --- bounds -------------------------------------------------------------------------------------


def test_a_member_announces_a_million_and_no_more() -> None:
    made = providers()
    announce(made, ALICE, ANNOUNCED_PER_PEER_MAX + 50_000)
    assert made.count == made.count_of(ALICE) == ANNOUNCED_PER_PEER_MAX
    assert made.bytes_used <= 16_000_000
    made.forget(ALICE)
    assert made.count == made.bytes_used == 0


def test_connecting_flooding_and_leaving_costs_no_memory_that_stays() -> None:
    made = providers()
    tracemalloc.start()
    try:
        for turn in range(10):
            announce(made, ALICE, 10_000, first=turn)
            full, _ = tracemalloc.get_traced_memory()
            assert full < 16 * 10_000 + 50_000
            made.forget(ALICE)
            left, _ = tracemalloc.get_traced_memory()
            assert left < 50_000
    finally:
        tracemalloc.stop()


def test_a_flood_gives_way_to_others_and_not_they_to_it() -> None:
    made = providers(per_peer_max=30_000, total_max=40_000)
    announce(made, ALICE, 5_000, first=1)
    announce(made, BOB, 30_000, first=2)
    assert made.count_of(ALICE) == 5_000
    announce(made, CAROL, 30_000, first=3)
    assert made.count == sum(map(made.count_of, (ALICE, BOB, CAROL)))
    assert made.count <= 40_000
    assert made.count_of(ALICE) == 5_000
    # What two of them want more than is left is shared.
    assert abs(made.count_of(BOB) - made.count_of(CAROL)) < 1_000
    assert made.count > 39_000


def test_two_members_that_both_announce_too_much_do_not_displace_each_other_for_ever() -> None:
    made = providers(per_peer_max=30_000, total_max=10_000)
    for turn in range(6):
        announce(made, ALICE if turn % 2 else BOB, 9_000, first=turn)
    assert made.count <= 10_000
    assert min(made.count_of(ALICE), made.count_of(BOB)) > 4_000


def test_a_sender_that_keeps_to_half_of_the_allowance_is_never_refused() -> None:
    random = Random(5)
    sender, receiver = Allowance(0.0, share=0.5), Allowance(0.0)
    now, arrived = 0.0, 0.0
    for _ in range(3_000):
        size = random.choice([0, 8, 1_000, 65_536])
        now += sender.wait_s(size, now) + 1e-9
        sender.pay(size, now)
        # The next is sent when this one was answered, so delays add up to nothing.
        arrived = max(arrived, now + random.random() * 0.5)
        assert receiver.take(size, arrived)
        now = arrived + random.random() * 0.1


def test_beyond_its_allowance_a_peer_gets_what_time_brings_and_no_more() -> None:
    for size, burst in ((0, ANNOUNCE_BURST_MESSAGES), (65_536, ANNOUNCE_BURST_BYTES // 65_536)):
        allowance = Allowance(0.0)
        assert sum(allowance.take(size, 0.0) for _ in range(1_000)) == burst
        assert not allowance.take(size, 0.01)
        assert allowance.take(size, 1.0)
        assert sum(allowance.take(size, 1e6) for _ in range(1_000)) == burst


# --- the index ----------------------------------------------------------------------------------

CROWD = [node(n) for n in range(120)]


def index_of(members: list[NodeId]) -> IndexMembers:
    index = IndexMembers(LAB)
    index.update(frozenset(members))
    return index


def test_in_a_small_channel_everyone_is_told_everything() -> None:
    index = index_of(CROWD[:INDEX_ABOVE_MEMBERS])
    assert not index.indexed
    assert index.slots(CROWD[0]) == ALL_SLOTS
    assert index.keepers(5) == ()


def test_in_a_large_channel_each_slot_has_its_keepers_and_all_agree() -> None:
    index, other = index_of(CROWD), index_of(CROWD[::-1])
    told = {member: index.slots(member) for member in CROWD}
    assert sum(map(len, told.values())) == INDEX_KEEPERS * len(ALL_SLOTS)
    for slot in ALL_SLOTS:
        assert len(set(index.keepers(slot))) == INDEX_KEEPERS
        assert index.keepers(slot) == other.keepers(slot)
        assert all(slot in told[member] for member in index.keepers(slot))
    average = INDEX_KEEPERS * len(ALL_SLOTS) / len(CROWD)
    assert max(map(len, told.values())) < 3 * average


def test_a_member_that_leaves_moves_its_own_slots_only() -> None:
    before, after = index_of(CROWD), index_of(CROWD[1:])
    for slot in ALL_SLOTS:
        stay = [member for member in before.keepers(slot) if member != CROWD[0]]
        assert list(after.keepers(slot))[: len(stay)] == stay
    assert index_of(CROWD[1:]).slots(CROWD[0]) == frozenset()


def test_the_mode_does_not_change_with_one_member_that_comes_and_goes() -> None:
    index = IndexMembers(LAB)
    seen = []
    for count in (64, 65, 64, 65, 49, 48, 49, 64, 65):
        index.update(frozenset(CROWD[:count]))
        seen.append(index.indexed)
    assert seen == [False, True, True, True, True, False, False, False, True]
    assert (INDEX_ABOVE_MEMBERS, INDEX_UNTIL_MEMBERS) == (64, 48)


def test_weights_and_slots_are_as_the_protocol_says() -> None:
    # Computed apart from the program: SHAKE-128 of the tag, the channel's id and the node's id.
    import hashlib

    stream = hashlib.shake_128(b"kp2p-index/1\0" + bytes.fromhex(LAB) + ME.raw).digest(8_192)
    assert [int.from_bytes(stream[8 * n : 8 * n + 8], "big") for n in (0, 1, 1023)] == [
        weights(LAB, ME)[n] for n in (0, 1, 1023)
    ]
    raw = bytes.fromhex("ffc0" + "00" * 18)
    assert slot_of(prefix_of(ContentHash.of_raw(raw))) == 1023
    assert slot_range(1023)[1] == 1 << 64


def test_seekers_ask_the_keepers_and_not_themselves() -> None:
    made = Providers(CROWD[0])
    made.set_members({LAB: set(CROWD[1:])})
    for content in CONTENTS:
        keepers = made.keepers(content, LAB)
        assert CROWD[0] not in keepers
        assert len(keepers) in (INDEX_KEEPERS - 1, INDEX_KEEPERS)
        assert all(slot_of(prefix_of(content)) in made.slots_for(k, LAB) for k in keepers)
    assert made.keepers(CONTENTS[0], FIELD) == ()
    assert made.slots_for(CROWD[1], FIELD) == frozenset()


def test_not_all_contents_ask_the_same_holder_first() -> None:
    firsts = {in_turn(content, CROWD[:8], CROWD[9])[0] for content in CONTENTS}
    assert firsts == set(CROWD[:8])


def test_not_all_who_look_for_one_content_ask_the_same_holder_first() -> None:
    firsts = {in_turn(CONTENTS[0], CROWD[:4], asker)[0] for asker in CROWD}
    assert firsts == set(CROWD[:4])


# --- telling ------------------------------------------------------------------------------------


def tell(telling: Telling, made: Providers, slots: frozenset[int] = ALL_SLOTS) -> int:
    """Deliver all there is to tell; how many announcements it took."""
    count = 0
    while (told := telling.next(slots)) is not None:
        made.hear(ALICE, told)
        telling.delivered()
        count += 1
    return count


def told_of(made: Providers) -> set[ContentHash]:
    return {content for content in CONTENTS if ALICE in made.holders(content, LAB)}


def test_who_holds_nothing_says_nothing() -> None:
    assert tell(Telling(LAB, Catalogue()), providers()) == 0


def test_a_peer_is_told_all_in_pieces_and_then_what_changes() -> None:
    catalogue, made = Catalogue(), providers()
    for content in CONTENTS[:250]:
        catalogue.set(prefix_of(content), True)
    telling = Telling(LAB, catalogue, prefixes_max=100)
    assert tell(telling, made) == 3
    assert told_of(made) == set(CONTENTS[:250])
    assert tell(telling, made) == 0
    catalogue.set(prefix_of(CONTENTS[0]), False)
    catalogue.set(prefix_of(CONTENTS[300]), True)
    catalogue.set(prefix_of(CONTENTS[1]), True)
    assert tell(telling, made) == 1
    assert told_of(made) == {*CONTENTS[1:250], CONTENTS[300]}


def test_the_same_is_said_until_it_is_delivered() -> None:
    catalogue = Catalogue()
    catalogue.set(1, True)
    telling = Telling(LAB, catalogue)
    first = telling.next(ALL_SLOTS)
    catalogue.set(2, True)
    assert telling.next(ALL_SLOTS) is first
    telling.delivered()
    later = telling.next(ALL_SLOTS)
    assert later is not None
    assert (later.seq, later.reset, later.add) == (1, False, pack([2]))


def test_a_peer_too_far_behind_begins_anew() -> None:
    catalogue, made = Catalogue(changes_max=10), providers()
    telling = Telling(LAB, catalogue)
    for number in range(3):
        catalogue.set(prefix_of(CONTENTS[number]), True)
    tell(telling, made)
    for content in CONTENTS[:300]:
        catalogue.set(prefix_of(content), content != CONTENTS[1])
    told = telling.next(ALL_SLOTS)
    assert told is not None
    assert told.reset
    tell(telling, made)
    assert told_of(made) == set(CONTENTS[:300]) - {CONTENTS[1]}


def test_all_that_is_gone_is_taken_back_though_nothing_is_left_to_say() -> None:
    catalogue, made = Catalogue(), providers()
    telling = Telling(LAB, catalogue)
    catalogue.set(prefix_of(CONTENTS[0]), True)
    tell(telling, made)
    catalogue.replace(PrefixSet())
    assert tell(telling, made) == 1
    assert told_of(made) == set()


def test_another_catalogue_of_the_channel_is_told_anew() -> None:
    old, new, made = Catalogue(), Catalogue(), providers()
    old.set(prefix_of(CONTENTS[0]), True)
    new.set(prefix_of(CONTENTS[1]), True)
    telling = Telling(LAB, old)
    tell(telling, made)
    telling.follow(new)
    tell(telling, made)
    assert told_of(made) == {CONTENTS[1]}


@pytest.mark.parametrize("seed", range(60))
def test_whatever_changes_meanwhile_the_peer_ends_up_with_what_it_is_to_know(seed: int) -> None:
    random = Random(seed)
    catalogue, made = Catalogue(changes_max=40), providers()
    telling = Telling(LAB, catalogue, prefixes_max=random.choice([1, 7, 100]))
    half = frozenset(slot for slot in ALL_SLOTS if slot % 2)
    slots = ALL_SLOTS
    for _ in range(random.randrange(40)):
        for _ in range(random.choice([1, 5, 100])):
            catalogue.set(prefix_of(random.choice(CONTENTS)), random.random() < 0.7)
        slots = random.choice([ALL_SLOTS, half, ALL_SLOTS - half, frozenset[int]()])
        told = telling.next(slots)
        if told is not None and random.random() < 0.8:
            made.hear(ALICE, told)
            telling.delivered()
        elif random.random() < 0.3:
            telling.restart()
    tell(telling, made, slots)
    assert told_of(made) == {
        c for c in CONTENTS if prefix_of(c) in catalogue.held and slot_of(prefix_of(c)) in slots
    }


def test_the_index_after_many_changes_is_that_of_a_new_look() -> None:
    random, index = Random(3), IndexMembers(LAB)
    for _ in range(12):
        members = random.sample(CROWD, random.randrange(66, 100))
        index.update(frozenset(members))
        fresh = index_of(members)
        assert [index.keepers(s) for s in ALL_SLOTS] == [fresh.keepers(s) for s in ALL_SLOTS]
        assert all(index.slots(member) == fresh.slots(member) for member in CROWD)
