"""The talk of joiner and admitter, honest and not."""

from __future__ import annotations

from typing import Any

import pytest

from kachery_p2p.channels.admission import (
    ADMITTER,
    JOINER,
    Admitted,
    Admitter,
    Applicant,
    Door,
    Joiner,
    Meeting,
    Waiting,
    refusal,
    wait,
)
from kachery_p2p.channels.changes import MemberRemoved, MemberSet
from kachery_p2p.channels.invites import Invite, Issued
from kachery_p2p.channels.permissions import ADMIN, READ
from kachery_p2p.errors import (
    ChannelClosedError,
    InviteError,
    InviteExpiredError,
    InviteRefusedError,
    InviteUsedError,
    NodeRemovedError,
)
from kachery_p2p.wire.admission import (
    check_application,
    check_challenge,
    check_opening,
    check_outcome,
)

READER = frozenset({READ})
ADMINS = frozenset({READ, ADMIN})
NOW = 1_760_000_000
SECRET = bytes(range(20))
INVITE_SECRET = bytes(range(100, 116))


class Talk:
    """One invite, its admitter and whoever comes with it."""

    def __init__(self, lab: Any, admitter: Any = None, **issued: Any) -> None:
        self.lab = lab
        self.admitter = admitter or lab.chief
        fields = {"for_node": None, "roles": READER, "since": lab.history.size}
        fields |= {"issued": NOW, "expires": NOW + 100} | issued
        self.issued = Issued(secret=INVITE_SECRET, **fields)
        self.invite = Invite(
            lab.id,
            "lab",
            INVITE_SECRET,
            self.issued.expires,
            ((self.admitter.node_id, ()),),
            self.issued.for_node,
        )

    def joiner(self, node: Any, **invite: Any) -> Joiner:
        given = self.invite._replace(**invite)
        return Joiner(given, node, self.admitter.node_id, self.lab.random(32), "new")

    def door(self, node: Any) -> Admitter:
        def find(wanted: bytes) -> Door | None:
            return Door(self.issued, self.lab.history) if wanted == self.issued.invite_id else None

        return Admitter(self.admitter.node_id, node.node_id, self.lab.random(32), find)

    def judged(self, node: Any, now: float = NOW) -> tuple[Joiner, Admitter, Any]:
        joiner, door = self.joiner(node), self.door(node)
        challenge = check_challenge(door.challenge(check_opening(joiner.opening())))
        return joiner, door, door.judged(check_application(joiner.application(challenge)), now)


def test_an_invited_node_is_let_in_and_told_the_entry_secret(lab: Any) -> None:
    node = lab.node()
    joiner, door, applicant = Talk(lab).judged(node)
    assert isinstance(applicant, Applicant)
    assert not applicant.is_member
    lab.record(MemberSet(applicant.member))
    assert lab.history.roster.roles_of(node.node_id) == READER
    answer = check_outcome(door.admission(applicant, SECRET))
    assert joiner.outcome(answer) == Admitted(lab.id, "lab", SECRET, READER)
    assert repr(SECRET) not in repr(joiner.outcome(answer))


def test_who_is_to_wait_is_told_for_whom(lab: Any) -> None:
    joiner, _, _ = Talk(lab).judged(lab.node())
    assert joiner.outcome(check_outcome(wait("the keeper is not connected"))) == Waiting(
        "the keeper is not connected"
    )


def test_an_admin_that_is_not_the_keeper_admits_too(lab: Any) -> None:
    admin = lab.member(ADMINS)
    _, _, applicant = Talk(lab, admin).judged(lab.node())
    assert isinstance(applicant, Applicant)


def test_a_lost_answer_is_given_again_and_changes_no_roles(lab: Any) -> None:
    node = lab.member(ADMINS)
    _, _, applicant = Talk(lab, used_by=node.node_id).judged(node, NOW + 10_000)
    assert isinstance(applicant, Applicant)
    assert applicant.is_member
    assert applicant.member.roles == ADMINS


@pytest.mark.parametrize(
    ("issued", "now", "error"),
    [
        ({}, NOW + 101, InviteExpiredError),
        ({"used_by": "ab" * 32}, NOW, InviteUsedError),
        ({"for_node": "ab" * 32}, NOW, InviteError),
        ({"expires": NOW + 9_000_000}, NOW + 1_000_001, ChannelClosedError),
    ],
)
def test_what_is_wrong_with_an_invite_is_told_to_who_has_its_secret(
    lab: Any, issued: Any, now: int, error: type[Exception]
) -> None:
    joiner, _, answer = Talk(lab, **issued).judged(lab.node(), now)
    with pytest.raises(error):
        joiner.outcome(check_outcome(answer))


def test_a_removed_node_comes_back_only_by_a_later_invite_for_it(lab: Any) -> None:
    node = lab.member()
    bound, old_size = {"for_node": node.node_id}, lab.history.size
    lab.record(MemberRemoved(node.node_id))
    for issued in ({}, {"used_by": node.node_id}, {**bound, "since": old_size}):
        joiner, _, answer = Talk(lab, **issued).judged(node)
        with pytest.raises(NodeRemovedError):
            joiner.outcome(check_outcome(answer))
    assert isinstance(Talk(lab, **bound).judged(node)[2], Applicant)


def test_a_forked_channel_admits_nobody(lab: Any) -> None:
    other = lab.copy()
    other.member()
    other.member()
    lab.member()
    lab.keeper.history = lab.history.convicted(lab.history.diverged(other.head, other.entries()))
    joiner, _, answer = Talk(lab).judged(lab.node())
    with pytest.raises(ChannelClosedError):
        joiner.outcome(check_outcome(answer))


# --- cheats ----------------------------------------------------------------------


def test_without_the_secret_every_refusal_is_the_same(lab: Any) -> None:
    talk, node = Talk(lab), lab.node()
    unknown = talk.door(node).challenge({"invite": bytes(16), "nonce": bytes(32)})
    guesser, door = talk.joiner(node, secret=bytes(16)), talk.door(node)
    challenge = door.challenge({"invite": talk.invite.invite_id, "nonce": bytes(32)})
    wrong = door.judged(guesser.application(challenge), NOW)
    # The same again for invites that would be refused by name.
    late = Talk(lab, used_by="ab" * 32).door(node)
    late.challenge({"invite": talk.invite.invite_id, "nonce": bytes(32)})
    used = late.judged(guesser.application(challenge), NOW + 10**6)
    assert unknown == wrong == used == refusal("refused")
    with pytest.raises(InviteRefusedError):
        guesser.application(check_challenge(unknown))


@pytest.mark.parametrize("role", ["reader", "removed admin", "no member"])
def test_who_is_no_admin_admits_nobody(lab: Any, role: str) -> None:
    liar = lab.node()
    if role != "no member":
        lab.member(READER if role == "reader" else ADMINS, node=liar)
    if role == "removed admin":
        lab.record(MemberRemoved(liar.node_id))
    talk = Talk(lab, liar)
    assert talk.door(liar).challenge(talk.joiner(lab.node()).opening()) == refusal("refused")


def test_an_invite_makes_nobody_an_admin(lab: Any) -> None:
    talk = Talk(lab, roles=ADMINS)
    assert talk.door(lab.node()).challenge(talk.joiner(lab.node()).opening()) == refusal("refused")


def test_a_joiner_believes_no_reader_and_nobodys_elses_proof(lab: Any) -> None:
    reader = lab.member(READER)
    proofs = [
        lab.history.membership_proof(reader.node_id),
        lab.history.membership_proof(lab.chief.node_id),
        b"x",
    ]
    for proof in proofs:
        joiner = Talk(lab, reader).joiner(lab.node())
        with pytest.raises(InviteRefusedError):
            joiner.application({"proof": proof, "nonce": bytes(32)})


def test_the_joiners_mac_sent_back_is_not_the_admitters(lab: Any) -> None:
    node = lab.node()
    joiner = Talk(lab).joiner(node)
    challenge = {
        "proof": lab.history.membership_proof(lab.chief.node_id),
        "nonce": joiner.opening()["nonce"],  # reflected too
    }
    mac = joiner.application(challenge)["mac"]
    answer = {"mac": mac, "entry_secret": SECRET, "name": "lab", "roles": ["read"]}
    with pytest.raises(InviteRefusedError, match="did not make"):
        joiner.outcome(check_outcome(answer))


def test_a_mac_is_worth_nothing_to_another_node_later_or_in_another_channel(lab: Any) -> None:
    a, b = lab.node().node_id, lab.node().node_id
    meeting = Meeting(lab.id, a, b, bytes(32), bytes([1]) * 32)
    others = [
        meeting._replace(channel_id=a),
        meeting._replace(joiner=lab.id),
        meeting._replace(admitter=lab.id),
        meeting._replace(joiner=b, admitter=a),
        meeting._replace(joiner_nonce=bytes([2]) * 32),
        meeting._replace(admitter_nonce=bytes([2]) * 32),
    ]
    macs = {one.mac(SECRET[:16], role) for one in [meeting, *others] for role in (JOINER, ADMITTER)}
    assert len(macs) == 14


def test_an_application_overheard_is_worth_nothing_to_another_node(lab: Any) -> None:
    talk, honest, thief = Talk(lab), lab.node(), lab.node()
    joiner = talk.joiner(honest)
    door = talk.door(thief)
    application = joiner.application(door.challenge(joiner.opening()))
    assert door.judged(application, NOW) == refusal("refused")


def test_a_foreign_exchange_key_is_refused(lab: Any) -> None:
    talk, node = Talk(lab), lab.node()
    joiner, door = talk.joiner(node), talk.door(node)
    application = joiner.application(door.challenge(joiner.opening()))
    application["exchange"] = lab.node().exchange_public
    assert door.judged(application, NOW) == refusal("refused")
