"""A roster is what all entries come to, however they are replayed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kachery_p2p.channels.changes import (
    Change,
    Created,
    HandedOver,
    KeeperMoved,
    Member,
    MemberRemoved,
    MemberSet,
    Recorded,
    SettingsSet,
    Succeeds,
    SuccessorNamed,
    Unknown,
)
from kachery_p2p.channels.permissions import ACTIONS, ADMIN, READ
from kachery_p2p.channels.roster import Roster
from kachery_p2p.errors import LogFormatError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import MEMBERS_MAX

NODES = [NodeId(f"{number:064x}") for number in range(1, 6)]
CREATED = Created("lab", bytes(32), 99)

_nodes = st.sampled_from(NODES)
_roles = st.frozensets(st.sampled_from(sorted(ACTIONS)), min_size=1)
_changes = st.one_of(
    st.builds(lambda node, roles: member(node, roles), _nodes, _roles),
    st.builds(MemberRemoved, _nodes),
    st.builds(SuccessorNamed, st.none() | _nodes),
    st.builds(KeeperMoved, _nodes),
    st.just(SettingsSet(("/a",), 7, "s3://b")),
    st.just(Unknown(200)),
)


def member(node: NodeId, roles: frozenset[str]) -> MemberSet:
    return MemberSet(Member(node, roles, bytes(32), bytes(64), ""))


def recorded(changes: list[Change]) -> list[Recorded]:
    return [Recorded(one, NODES[0], n.to_bytes(16, "big"), n) for n, one in enumerate(changes)]


def replayed(*changes: Change) -> Roster:
    return Roster().replayed(recorded([CREATED, *changes]), 0)


@given(st.lists(_changes, max_size=12), st.integers(0, 12))
@settings(max_examples=150, deadline=None)
def test_one_by_one_in_two_parts_and_at_once_come_to_the_same(
    changes: list[Change], cut: int
) -> None:
    entries = recorded([CREATED, *changes])
    at_once = Roster().replayed(entries, 0)
    in_parts = Roster().replayed(entries[:cut], 0).replayed(entries[cut:], len(entries[:cut]))
    one_by_one = Roster()
    for number, entry in enumerate(entries):
        one_by_one = one_by_one.applied(entry, number)
    assert at_once == in_parts == one_by_one
    assert set(at_once.since) == set(at_once.members)
    assert not set(at_once.removed) & set(at_once.members)
    for node, number in at_once.since.items():
        assert entries[number].change == MemberSet(at_once.members[node])


def test_a_roster_that_was_given_out_does_not_change(lab: Any) -> None:
    first = replayed(member(NODES[1], frozenset({READ})))
    before = dict(first.members)
    first.applied(Recorded(MemberRemoved(NODES[1]), NODES[0], bytes([9]) * 16, 5), 2)
    assert first.members == before
    with pytest.raises(TypeError):
        first.members[NODES[2]] = before[NODES[1]]  # type: ignore[index]


def test_who_was_never_a_member_is_not_removed() -> None:
    assert replayed(MemberRemoved(NODES[1])).removed == {}


def test_a_channel_has_its_bound_of_members() -> None:
    many = [member(NodeId(f"{n:064x}"), frozenset({READ})) for n in range(MEMBERS_MAX)]
    full = replayed(*many)
    assert len(full.members) == MEMBERS_MAX
    extra = member(NodeId("f" * 64), frozenset({READ}))
    with pytest.raises(LogFormatError, match="more than"):
        full.applied(Recorded(extra, NODES[0], b"x" * 16, 1), MEMBERS_MAX + 1)


def test_the_same_request_is_not_recorded_twice_nor_a_creation() -> None:
    roster = replayed()
    with pytest.raises(LogFormatError, match="second time"):
        roster.applied(Recorded(MemberRemoved(NODES[1]), NODES[0], bytes(16), 1), 1)
    with pytest.raises(LogFormatError, match="creation"):
        roster.applied(Recorded(CREATED, NODES[0], b"y" * 16, 1), 1)
    late = Succeeds("ab" * 32, bytes(197), NODES[1], bytes(64))
    with pytest.raises(LogFormatError, match="beginning"):
        roster.applied(Recorded(late, NODES[0], b"z" * 16, 1), 2)


def test_only_what_both_rosters_give_is_left() -> None:
    one = replayed(member(NODES[1], frozenset({READ, ADMIN})), member(NODES[2], ACTIONS))
    other = replayed(member(NODES[1], frozenset({READ})), HandedOver(NODES[3]))
    both = one.only_as_in(other)
    assert {node: both.roles_of(node) for node in both.members} == {NODES[1]: frozenset({READ})}
