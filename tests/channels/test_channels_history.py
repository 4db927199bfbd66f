"""What a node learns of a channel from peers that may lie, be behind, or show two histories."""

from __future__ import annotations

import random
from typing import Any

import pytest

from kachery_p2p.channels.changes import MemberRemoved, MemberSet
from kachery_p2p.channels.history import History, check_membership, check_notice
from kachery_p2p.channels.keeper import Keeper, self_member
from kachery_p2p.channels.permissions import ADMIN, READ
from kachery_p2p.errors import (
    ChannelForkedError,
    HeadError,
    KacheryError,
    LogError,
    LogFormatError,
    ProofError,
    StateCorruptError,
    StateVersionError,
)
from kachery_p2p.identity.channel_keys import ChannelKey
from kachery_p2p.limits import CHANNEL_ENTRIES_MAX, HISTORY_BYTES_MAX, HISTORY_FRESH_S
from kachery_p2p.log.entries import Entry
from kachery_p2p.log.forks import ForkProof
from kachery_p2p.log.heads import Head, sign_head

READER = frozenset({READ})


def members(history: History) -> set[str]:
    return set(history.roster.members)


# --- learning ----------------------------------------------------------------------------------


def test_a_history_is_learnt_in_steps_and_says_who_is_a_member(lab: Any) -> None:
    first = lab.learnt()
    assert members(first) == {lab.chief.node_id}
    node = lab.member(READER)
    assert first.missing(lab.head) == range(2, 3)
    second = lab.learnt(first)
    assert second.roster.roles_of(node.node_id) == READER
    assert first.roster.roles_of(node.node_id) == frozenset()
    lab.record(MemberRemoved(node.node_id))
    assert lab.learnt(second).roster.removed == {node.node_id: 3}
    assert lab.learnt().roster == lab.history.roster


def test_an_older_head_and_the_same_head_change_nothing(lab: Any) -> None:
    old = lab.head
    lab.member()
    known = lab.learnt()
    for head in (old, lab.head):
        assert known.missing(head) == range(0)
        assert known.extended(head, []) is known
        assert known.renewed_by(head) is known


def test_a_head_signed_again_later_makes_the_history_fresh(lab: Any) -> None:
    known = lab.learnt()
    assert known.head is not None
    lab.keeper.renewed(known.head.time_ms + 5)
    for renewed in (known.renewed_by(lab.head), known.extended(lab.head, [])):
        assert renewed.head.time_ms == known.head.time_ms + 5
        assert renewed.roster == known.roster
    now = known.head.time_ms
    assert known.fresh(now + 1000 * HISTORY_FRESH_S)
    assert not known.fresh(now + 1000 * HISTORY_FRESH_S + 1000)
    assert known.age_s(now - 5) == 0
    assert not History.empty(lab.id).fresh(now)


def test_a_head_by_another_key_or_of_another_log_is_refused(lab: Any) -> None:
    stranger = ChannelKey(bytes(range(32)))
    head = lab.history.head.head
    for log in (head.log._replace(owner=stranger.node_id), head.log._replace(name=bytes([1]) * 32)):
        key = stranger if log.owner == stranger.node_id else lab.key
        with pytest.raises(HeadError):
            lab.learnt().missing(sign_head(head._replace(log=log), key).encode())
    with pytest.raises(LogFormatError):
        lab.learnt().missing(lab.head[:-1])
    with pytest.raises(LogFormatError):
        lab.learnt().missing(b"kp2p-feed-head/1" + lab.head[16:])


def test_entries_with_another_root_than_was_signed_are_refused(lab: Any) -> None:
    known = lab.learnt()
    nodes = [lab.member() for _ in range(3)]
    entries = lab.entries(2)
    evil = Entry.decode(entries[0])
    swapped = evil.payload.replace(nodes[0].node_id.raw, lab.node().node_id.raw)
    for lie in (
        [*entries[:-1]],
        [*entries, entries[-1]],
        entries[::-1],
        [entries[1], *entries[1:]],
        [evil._replace(payload=swapped).encode(), *entries[1:]],
        [b"", *entries[1:]],
        [],
    ):
        with pytest.raises(ProofError):
            known.extended(lab.head, lie)
    assert members(lab.learnt(known)) > members(known)


def test_an_entry_whose_exchange_key_another_made_is_refused(lab: Any) -> None:
    node = lab.node()
    member = self_member(node, "")._replace(exchange_signature=bytes(64))
    lab.keeper.history = lab.history
    kind, payload = 2, _payload(lab, member)
    entry = Entry(kind, lab.tick(), payload).encode()
    head = _signed_by_hand(lab, [entry])
    with pytest.raises(LogFormatError, match="exchange key"):
        lab.learnt().extended(head, [entry])


def _payload(lab: Any, member: Any) -> bytes:
    from kachery_p2p.channels.changes import encode_change

    return encode_change(MemberSet(member), lab.chief.node_id, lab.random(16))[1]


def _signed_by_hand(lab: Any, entries: list[bytes]) -> bytes:
    """What a keeper that keeps to no rule signs."""
    from kachery_p2p.log.tree import leaf_hash

    frontier, _ = lab.history.frontier.extended(map(leaf_hash, entries))
    log = lab.history.log
    return bytes(sign_head(Head(log, frontier.size, frontier.root, lab.tick()), lab.key).encode())


def test_a_history_that_says_nonsense_is_refused_though_it_is_signed(lab: Any) -> None:
    again = Entry.decode(lab.entries()[0])
    request = Entry.decode(lab.entries()[1]).payload[32:48]
    member = _payload(lab, self_member(lab.node(), ""))
    replayed = member[:32] + request + member[48:]
    for entry in (again.encode(), Entry(2, 1, replayed).encode(), Entry(8, 1, member).encode()):
        with pytest.raises(LogFormatError):
            lab.learnt().extended(_signed_by_hand(lab, [entry]), [entry])


def test_a_history_begins_with_its_creation(lab: Any) -> None:
    empty = Keeper(History.empty(lab.id), lab.key)
    entry = lab.entries()[1]
    lab.keeper = empty
    head = _signed_by_hand(lab, [entry])
    with pytest.raises(LogFormatError, match="creation"):
        History.empty(lab.id).extended(head, [entry])


def test_a_history_has_its_bounds(lab: Any) -> None:
    known = lab.learnt()
    long = Head(known.log, CHANNEL_ENTRIES_MAX + 1, bytes(32), 1)
    with pytest.raises(LogFormatError, match="at most"):
        known.missing(sign_head(long, lab.key).encode())
    longest = sign_head(long._replace(size=CHANNEL_ENTRIES_MAX), lab.key).encode()
    assert known.missing(longest) == range(2, CHANNEL_ENTRIES_MAX)
    huge = [bytes(1 << 20)] * (HISTORY_BYTES_MAX >> 20)
    head = sign_head(long._replace(size=2 + len(huge)), lab.key).encode()
    with pytest.raises(LogFormatError, match="bytes"):
        known.extended(head, huge)
    assert not known.has_room_for(CHANNEL_ENTRIES_MAX - 1, 0)
    assert not known.has_room_for(1, HISTORY_BYTES_MAX)


def test_entries_are_given_in_pieces_that_fit_and_at_least_one(lab: Any) -> None:
    for _ in range(5):
        lab.member()
    everything = lab.entries()
    assert lab.history.entries(0, 1) == everything[:1]
    two = len(everything[3]) + len(everything[4])
    assert lab.history.entries(3, two) == everything[3:5]
    assert lab.history.entries(3, two - 1) == everything[3:4]
    assert lab.history.entries(7, 1 << 20) == []
    assert lab.history.entries(-4, 1 << 20) == everything


# --- forks ---------------------------------------------------------------------------------------


def forked(lab: Any, ours: int, theirs: int) -> tuple[Any, Any]:
    """Two copies of the key that recorded so many members each, after one in common."""
    lab.member()
    other = lab.copy()
    for _ in range(ours):
        lab.member()
    for _ in range(theirs):
        other.member()
    return lab, other


@pytest.mark.parametrize(("ours", "theirs"), [(1, 1), (1, 3), (3, 1), (2, 5)])
def test_two_histories_are_found_out_proved_and_frozen(lab: Any, ours: int, theirs: int) -> None:
    lab, other = forked(lab, ours, theirs)
    known = lab.learnt()
    wanted = known.missing(other.head)
    with pytest.raises(LogError) as caught:
        known.extended(other.head, other.entries(wanted.start) if wanted else [])
    assert isinstance(caught.value, ProofError | ChannelForkedError)
    proof = known.diverged(other.head, other.entries())
    assert ForkProof.decode(proof.encode(), known.log.tag) == proof
    convicted = known.convicted(proof)
    common = 3 if ours != theirs else proof.common_entries_max
    assert proof.common_entries_max == common
    assert len(members(convicted)) <= common
    assert members(convicted) <= members(known)
    # Nothing is believed any more that one of the two says.
    lab.member()
    assert convicted.missing(lab.head) == range(0)
    assert convicted.extended(lab.head, lab.entries(convicted.size)) is convicted


def test_a_fork_of_one_size_is_certain_at_once(lab: Any) -> None:
    lab, other = forked(lab, 1, 1)
    with pytest.raises(ChannelForkedError) as caught:
        lab.learnt().extended(other.head, [])
    proof = ForkProof.decode(caught.value.evidence, lab.history.log.tag)
    proof.verify(lab.history.log)


def test_a_fork_brings_back_nobody_who_was_removed_or_demoted(lab: Any) -> None:
    removed, demoted = lab.member(), lab.member(frozenset({READ, ADMIN}))
    other = lab.copy()
    lab.record(MemberRemoved(removed.node_id))
    lab.member(READER, node=demoted)
    for _ in range(4):
        other.member()
    known = lab.learnt()
    convicted = known.convicted(known.diverged(other.head, other.entries()))
    assert convicted.roster.roles_of(removed.node_id) == frozenset()
    assert convicted.roster.roles_of(demoted.node_id) == READER
    assert convicted.removal_notice(removed.node_id) is not None


def test_who_is_behind_a_fork_still_learns_what_both_histories_share(lab: Any) -> None:
    start = lab.learnt()
    lab, other = forked(lab, 1, 3)
    known = lab.learnt()
    late = start.convicted(known.diverged(other.head, other.entries()))
    assert members(late) == {lab.chief.node_id}
    grown = late.extended(other.head, other.entries(late.size))
    assert len(members(grown)) == 2
    assert grown.missing(lab.head) == range(0)


def test_of_two_fork_proofs_the_one_that_leaves_less_counts(lab: Any) -> None:
    early = lab.copy()
    for _ in range(5):
        early.member()
    lab, other = forked(lab, 1, 3)
    known = lab.learnt()
    late_proof = known.diverged(other.head, other.entries())
    early_proof = known.diverged(early.head, early.entries())
    assert early_proof.common_entries_max < late_proof.common_entries_max
    convicted = known.convicted(late_proof).convicted(early_proof)
    assert convicted.fork == early_proof
    assert convicted.convicted(late_proof) is convicted


def test_an_innocent_keeper_is_not_convicted(lab: Any) -> None:
    known = lab.learnt()
    lab.member()
    with pytest.raises(ProofError, match="contradict"):
        known.diverged(lab.head, lab.entries())
    _, other = forked(lab, 1, 2)
    lies = other.entries()
    for wrong in (lies[:-1], [*lies[:-1], lies[0]], lab.entries()[: len(lies)]):
        with pytest.raises(ProofError):
            lab.learnt().diverged(other.head, wrong)
    proof = lab.learnt().diverged(other.head, other.entries())
    with pytest.raises((HeadError, ProofError)):
        History.empty(ChannelKey(bytes(range(32))).node_id).convicted(proof)
    same = proof._replace(second=proof.first, parting=None)
    with pytest.raises(ProofError):
        known.convicted(same)


# --- what is shown to others ------------------------------------------------------------


def test_a_removal_is_shown_to_who_was_removed(lab: Any) -> None:
    node = lab.member()
    assert lab.history.removal_notice(node.node_id) is None
    known = lab.learnt()
    lab.record(MemberRemoved(node.node_id))
    notice = lab.history.removal_notice(node.node_id)
    assert known.check_notice(node.node_id, notice) == 3
    assert check_notice(lab.id, node.node_id, notice, 0) == 3


def test_an_old_notice_does_not_remove_who_came_back(lab: Any) -> None:
    node = lab.member()
    lab.record(MemberRemoved(node.node_id))
    notice = lab.history.removal_notice(node.node_id)
    lab.member(node=node)
    assert lab.history.removal_notice(node.node_id) is None
    with pytest.raises(ProofError, match="again"):
        lab.learnt().check_notice(node.node_id, notice)


def test_a_notice_for_another_node_channel_or_kind_of_entry_is_refused(lab: Any) -> None:
    node = lab.member()
    known = lab.learnt()
    membership = lab.history.membership_proof(node.node_id)
    lab.record(MemberRemoved(node.node_id))
    notice = lab.history.removal_notice(node.node_id)
    for check in (
        lambda: check_notice(lab.id, lab.chief.node_id, notice, 0),
        lambda: check_notice(ChannelKey(bytes(range(32))).node_id, node.node_id, notice, 0),
        lambda: known.check_notice(node.node_id, membership),
        lambda: check_membership(lab.id, node.node_id, notice),
        lambda: check_membership(lab.id, lab.chief.node_id, membership),
        lambda: check_notice(lab.id, node.node_id, notice, 4),
        lambda: check_notice(lab.id, node.node_id, bytes(9_000), 0),
    ):
        with pytest.raises(LogError):
            check()
    with pytest.raises(ProofError):
        lab.history.membership_proof(node.node_id)


def test_no_changed_bit_of_a_shown_entry_is_accepted(lab: Any) -> None:
    node = lab.member(READER, "label")
    for _ in range(4):
        lab.member()
    proof = lab.history.membership_proof(node.node_id)
    assert check_membership(lab.id, node.node_id, proof).roles == READER
    for at in range(0, len(proof) * 8, 3):
        data = bytearray(proof)
        data[at // 8] ^= 1 << at % 8
        with pytest.raises(LogError):
            check_membership(lab.id, node.node_id, bytes(data))


# --- on disk ------------------------------------------------------------


def test_a_history_is_decoded_as_it_was_encoded_with_its_fork(lab: Any) -> None:
    lab, other = forked(lab, 1, 3)
    whole = lab.learnt()
    convicted = whole.convicted(whole.diverged(other.head, other.entries()))
    for history in (History.empty(lab.id), whole, convicted):
        again = History.decode(history.encode(), lab.id)
        assert (again.roster, again.head, again.fork) == (
            history.roster,
            history.head,
            history.fork,
        )
        assert again.encode() == history.encode()


def test_a_newer_or_another_channels_history_is_refused(lab: Any) -> None:
    data = lab.history.encode()
    with pytest.raises(StateVersionError, match="newer"):
        History.decode(data[:8] + b"\0\2" + data[10:], lab.id)
    with pytest.raises(StateCorruptError):
        History.decode(data, lab.node().node_id)


def test_100_000_mutated_histories_are_never_accepted(lab: Any) -> None:
    """Each is cut, or has bytes changed, moved or repeated."""
    lab.member()
    whole, rng = lab.history.encode(), random.Random(20)
    for _ in range(100_000):
        data = mutated(whole, rng)
        if data == whole:
            continue
        try:
            found = History.decode(data, lab.id)
        except KacheryError:
            continue
        # Cut off after the head would be entries without it, and the other way round.
        assert found.size == 0, data.hex()
        assert found.head is None


def mutated(whole: bytes, rng: random.Random) -> bytes:
    data = bytearray(whole)
    kind = rng.randrange(5)
    at = rng.randrange(len(data))
    if kind == 0:
        del data[at:]
    elif kind == 1:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 2:
        data[at : at + rng.randrange(1, 40)] = rng.randbytes(rng.randrange(40))
    elif kind == 3:
        data[at:at] = data[rng.randrange(len(data)) :][: rng.randrange(1, 200)]
    else:
        del data[at : at + rng.randrange(1, 200)]
    return bytes(data)
