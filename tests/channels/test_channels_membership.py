"""Proofs of membership: the vectors, and every way to cheat with somebody else's proof."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kachery_p2p.channels.channel import Channel
from kachery_p2p.channels.membership import DIALLER, LISTENER, Meeting, matching, proofs_for
from kachery_p2p.channels.permissions import (
    ACTIONS,
    ADMIN,
    SHARED_MEMBER_ROLES,
    may,
    remove_from_shared,
    shared_membership,
)
from kachery_p2p.errors import ChannelError, ProtocolError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import CHANNELS_MAX

VECTORS = json.loads((Path(__file__).parents[1] / "vectors/membership.json").read_text())
MEETING = Meeting(
    NodeId(VECTORS["meeting"]["dialler"]),
    NodeId(VECTORS["meeting"]["listener"]),
    bytes.fromhex(VECTORS["meeting"]["dialler_nonce"]),
    bytes.fromhex(VECTORS["meeting"]["listener_nonce"]),
)
CHANNELS = {
    vector["id"]: Channel.shared(bytes.fromhex(vector["random"]), vector["name"])
    for vector in VECTORS["channels"]
}
LAB, OTHER, ELSEWHERE, FOURTH = CHANNELS.values()


def proof(role: str, meeting: Meeting = MEETING, channel: Channel = LAB) -> list[bytes]:
    return proofs_for([channel], role, meeting)


@pytest.mark.parametrize(
    "vector", VECTORS["proofs"], ids=lambda v: f"{v['channel'][:4]} {v['role']}"
)
def test_a_proof_is_that_of_the_vector(vector: dict[str, str]) -> None:
    channel = CHANNELS[vector["channel"]]
    assert proof(vector["role"], channel=channel) == [bytes.fromhex(vector["proof"])]


@pytest.mark.parametrize("role", [DIALLER, LISTENER])
def test_only_channels_that_both_are_in_match_among_padding_and_in_any_order(role: str) -> None:
    padding = [bytes([i]) * 32 for i in range(13)]
    received = sorted([*padding, *proofs_for([FOURTH, LAB, OTHER], role, MEETING)])
    assert matching([ELSEWHERE, OTHER, LAB], received, role, MEETING) == (OTHER, LAB)


def test_nothing_matches_nothing() -> None:
    assert matching([], proof(DIALLER), DIALLER, MEETING) == ()
    assert matching([LAB], [], DIALLER, MEETING) == ()
    assert matching([LAB], [b"", b"short", bytes(32)], DIALLER, MEETING) == ()


def test_the_same_name_with_another_secret_does_not_match() -> None:
    assert LAB.name == ELSEWHERE.name
    assert matching([ELSEWHERE], proof(DIALLER), DIALLER, MEETING) == ()


def test_a_proof_sent_back_to_its_maker_proves_nothing() -> None:
    """Reflection: a listener without the key answers with the dialler's own proof."""
    assert matching([LAB], proof(DIALLER), LISTENER, MEETING) == ()
    assert matching([LAB], proof(LISTENER), DIALLER, MEETING) == ()


def test_a_proof_reflected_into_a_second_connection_the_other_way_proves_nothing() -> None:
    """The attacker dials its victim back and shows what the victim proved as dialler."""
    back = Meeting(MEETING.listener, MEETING.dialler, MEETING.dialler_nonce, MEETING.listener_nonce)
    crossed = back._replace(
        dialler_nonce=MEETING.listener_nonce, listener_nonce=MEETING.dialler_nonce
    )
    for meeting in (back, crossed):
        for role in (DIALLER, LISTENER):
            assert matching([LAB], proof(DIALLER), role, meeting) == ()


@pytest.mark.parametrize(
    "later",
    [MEETING._replace(dialler_nonce=b"n" * 32), MEETING._replace(listener_nonce=b"n" * 32)],
    ids=["dialler", "listener"],
)
def test_a_proof_replayed_under_another_nonce_proves_nothing(later: Meeting) -> None:
    assert matching([LAB], proof(DIALLER), DIALLER, later) == ()
    assert matching([LAB], proof(LISTENER), LISTENER, later) == ()


@pytest.mark.parametrize(
    "relayed",
    [MEETING._replace(dialler=NodeId("ab" * 32)), MEETING._replace(listener=NodeId("ab" * 32))],
    ids=["dialler", "listener"],
)
def test_a_proof_relayed_for_another_node_proves_nothing(relayed: Meeting) -> None:
    """A man in the middle holds two secure channels, each under an id of its own."""
    assert matching([LAB], proof(DIALLER), DIALLER, relayed) == ()
    assert matching([LAB], proof(LISTENER), LISTENER, relayed) == ()


def test_swapping_ids_and_nonces_between_their_places_changes_the_proof() -> None:
    fields = (MEETING.dialler.raw, MEETING.listener.raw, *MEETING[2:])
    a, b, c, d = fields
    swapped = [(b, a, c, d), (a, b, d, c), (b, a, d, c), (c, d, a, b)]
    meetings = [Meeting(NodeId.of_raw(w), NodeId.of_raw(x), y, z) for w, x, y, z in swapped]
    proofs = [proof(role, m)[0] for m in [MEETING, *meetings] for role in (DIALLER, LISTENER)]
    assert len(set(proofs)) == len(proofs)


def test_more_proofs_than_there_can_be_channels_are_refused_before_any_is_compared() -> None:
    assert matching([LAB], [bytes(32)] * CHANNELS_MAX, DIALLER, MEETING) == ()
    with pytest.raises(ProtocolError):
        matching([LAB], [bytes(32)] * (CHANNELS_MAX + 1), DIALLER, MEETING)


def test_a_member_of_a_shared_channel_may_do_all_but_decide_who_is_in() -> None:
    roles = shared_membership(LAB.id).roles
    assert {action for action in ACTIONS if may(roles, action)} == ACTIONS - {ADMIN}
    assert roles == SHARED_MEMBER_ROLES


def test_nobody_may_do_anything_without_a_role_of_that_name() -> None:
    assert not any(may(frozenset(), action) for action in ACTIONS)
    assert not any(may(frozenset({"owner", "READ", ""}), action) for action in ACTIONS)
    with pytest.raises(AssertionError):
        may(ACTIONS, "delete")


def test_removing_from_a_shared_channel_says_to_change_the_secret() -> None:
    with pytest.raises(ChannelError, match="shared secret") as caught:
        remove_from_shared("lab")
    assert "channel rekey lab" in str(caught.value.hint)
