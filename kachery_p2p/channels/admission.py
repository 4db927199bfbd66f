"""The talk by which a node enters an owned channel with an invite. Four messages, in noise:

    joiner                                          admitter (a node that the invite names)
    {invite: id 16, nonce 32}               >
                                            <       {proof, nonce 32}      | {error, text}
    {mac, exchange, exchange_signature, label} >
                                            <       {mac, entry_secret, name, roles}
                                                    | {wait: why}          | {error, text}

    mac    HMAC-SHA256(invite's secret, tag ‖ role ‖ channel ‖ joiner ‖ admitter ‖ both nonces)

The invite's secret is never sent. The admitter first shows, by an entry that the channel's
key signed, that it is an admin, and at the end that it made the invite: so the entry secret
is believed only from whom the invite is from. The macs cover both node ids as noise proved
them, both nonces and the role: one is worth nothing to another node, later, or sent back.

Until the joiner has shown that it has the secret it gets one and the same refusal for
everything; after that it is told what is wrong with its invite. Both sides are *told* the
messages, which `wire.admission` has checked, and *answer* them; a talk ends with the
first error.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Any, NamedTuple

from kachery_p2p.channels.changes import Member
from kachery_p2p.channels.history import History, check_membership
from kachery_p2p.channels.invites import Invite, Issued
from kachery_p2p.channels.permissions import ADMIN
from kachery_p2p.errors import (
    ChannelClosedError,
    ChannelError,
    InviteError,
    InviteExpiredError,
    InviteRefusedError,
    InviteUsedError,
    LogError,
    NodeRemovedError,
)
from kachery_p2p.identity.keys import NodeId, NodeKey, verify_exchange

Message = dict[str, Any]

MAC_TAG = b"kp2p-admission/1"
NONCE_BYTES = 32
JOINER = "joiner"
ADMITTER = "admitter"

# Why somebody is not let in. "refused" is all that is said to who has not shown the secret.
REFUSED = "refused"
EXPIRED = "expired"
USED = "used"
OTHER_NODE = "other node"
REMOVED = "removed"
CLOSED = "closed"
REFUSED_TEXT = "no such invite, or not from this node"

_ASK_AGAIN = "ask for a new one: `kachery-p2p channel invite NAME` makes it"
_REFUSALS: dict[str, tuple[type[ChannelError], str]] = {
    EXPIRED: (InviteExpiredError, "the invite has expired"),
    USED: (InviteUsedError, "another node has entered with this invite"),
    OTHER_NODE: (InviteError, "the invite is for another node"),
    REMOVED: (NodeRemovedError, "this node was removed: an admin has to invite it by its id"),
    CLOSED: (
        ChannelClosedError,
        "the channel admits nobody new: it is past its end, full or split",
    ),
}


class Meeting(NamedTuple):
    """Two nodes that talk about one channel, and the nonce that each chose for it."""

    channel_id: str
    joiner: NodeId
    admitter: NodeId
    joiner_nonce: bytes
    admitter_nonce: bytes

    def mac(self, secret: bytes, role: str) -> bytes:
        """What shows that the side in `role` has the invite's secret."""
        assert role in (JOINER, ADMITTER)
        assert len(self.joiner_nonce) == len(self.admitter_nonce) == NONCE_BYTES
        statement = (
            MAC_TAG,
            role.encode("ascii"),
            bytes.fromhex(self.channel_id),
            self.joiner.raw,
            self.admitter.raw,
            self.joiner_nonce,
            self.admitter_nonce,
        )
        return hmac.digest(secret, b"".join(statement), hashlib.sha256)


class Admitted(NamedTuple):
    """What a node that was let in needs to be a member."""

    channel_id: str
    name: str
    entry_secret: bytes
    roles: frozenset[str]

    def __repr__(self) -> str:
        return f"<Admitted to {self.name} {self.channel_id[:8]}>"


class Waiting(NamedTuple):
    """Not let in yet: try again later. The reason is another node's text: escape it."""

    reason: str


class Joiner:
    """The side that wants to enter: `opening`, then `application`, then `outcome`."""

    def __init__(
        self, invite: Invite, me: NodeKey, admitter: NodeId, nonce: bytes, label: str = ""
    ) -> None:
        """`admitter` is who answers, as noise proved it; `nonce` 32 fresh random bytes."""
        assert len(nonce) == NONCE_BYTES
        assert admitter in dict(invite.admitters), "only those are asked whom the invite names"
        self._invite = invite
        self._me = me
        self._admitter = admitter
        self._nonce = nonce
        self._label = label
        self._meeting: Meeting | None = None

    def opening(self) -> Message:
        """The first message."""
        return {"invite": self._invite.invite_id, "nonce": self._nonce}

    def application(self, challenge: Message) -> Message:
        """The third message, after the answer to the first.

        InviteRefusedError if the admitter refuses, or does not show that the channel's key
        made it an admin.
        """
        if "error" in challenge:
            raise _refusal(challenge["error"])
        channel = self._invite.channel_id
        try:
            member = check_membership(channel, self._admitter, challenge["proof"])
        except LogError as error:
            raise InviteRefusedError(
                f"the node that the invite names does not belong to its channel: {error}"
            ) from None
        if ADMIN not in member.roles:
            raise InviteRefusedError("the node that the invite names may not admit anybody")
        nonces = (self._nonce, challenge["nonce"])
        self._meeting = Meeting(channel, self._me.node_id, self._admitter, *nonces)
        return {
            "mac": self._meeting.mac(self._invite.secret, JOINER),
            "exchange": self._me.exchange_public,
            "exchange_signature": self._me.exchange_signature,
            "label": self._label,
        }

    def outcome(self, answer: Message) -> Admitted | Waiting:
        """What came of it. InviteError, NodeRemovedError or ChannelClosedError if nothing did."""
        assert self._meeting is not None, "the outcome follows the application"
        if "error" in answer:
            raise _refusal(answer["error"])
        if "wait" in answer:
            return Waiting(answer["wait"])
        expected = self._meeting.mac(self._invite.secret, ADMITTER)
        if not hmac.compare_digest(expected, answer["mac"]):
            raise InviteRefusedError("who answered did not make this invite")
        roles = frozenset(answer["roles"])
        return Admitted(self._invite.channel_id, answer["name"], answer["entry_secret"], roles)


class Door(NamedTuple):
    """An invite that this node made, and the channel that it leads to."""

    issued: Issued
    history: History


class Applicant(NamedTuple):
    """Who has shown the secret of a good invite: `member` is to be recorded.

    Unless it `is_member` already: then its roles stay, and it only gets its answer again.
    """

    member: Member
    is_member: bool
    door: Door


class Admitter:
    """The side that lets in: `challenge`, then `judged`, then `admission` or `wait`."""

    def __init__(
        self, me: NodeId, joiner: NodeId, nonce: bytes, find: Callable[[bytes], Door | None]
    ) -> None:
        """`joiner` is who asks, as noise proved it; `nonce` 32 fresh random bytes.

        `find` gives the invite with an id, of any channel.
        """
        assert len(nonce) == NONCE_BYTES
        self._me = me
        self._joiner = joiner
        self._nonce = nonce
        self._find = find
        self._door: Door | None = None
        self._meeting: Meeting | None = None

    def challenge(self, opening: Message) -> Message:
        """The answer to the first message; a refusal ends the talk."""
        door = self._find(opening["invite"])
        if door is None or not self._may_admit(door):
            return refusal(REFUSED)
        self._door = door
        nonces = (opening["nonce"], self._nonce)
        self._meeting = Meeting(door.history.channel_id, self._joiner, self._me, *nonces)
        return {"proof": door.history.membership_proof(self._me), "nonce": self._nonce}

    def judged(self, application: Message, now: float) -> Applicant | Message:
        """Who applies, if it is to be let in; else the refusal to send, which ends the talk.

        Nothing is recorded yet, and the invite not used.
        """
        door, meeting = self._door, self._meeting
        assert door is not None, "there is no application without a challenge"
        assert meeting is not None
        expected = meeting.mac(door.issued.secret, JOINER)
        if not hmac.compare_digest(expected, application["mac"]):
            return refusal(REFUSED)
        exchange, signature = application["exchange"], application["exchange_signature"]
        if not verify_exchange(self._joiner, exchange, signature):
            return refusal(REFUSED)
        wrong = self._wrong_with(door, now)
        if wrong is not None:
            return refusal(wrong)
        known = door.history.roster.members.get(self._joiner)
        label = application["label"]
        asked = Member(self._joiner, door.issued.roles, exchange, signature, label)
        return Applicant(known or asked, known is not None, door)

    def admission(self, applicant: Applicant, entry_secret: bytes) -> Message:
        """The last message to who was let in: recorded durably, and the invite used, before."""
        assert self._meeting is not None
        return {
            "mac": self._meeting.mac(applicant.door.issued.secret, ADMITTER),
            "entry_secret": entry_secret,
            "name": applicant.door.history.roster.name,
            "roles": sorted(applicant.member.roles),
        }

    def _may_admit(self, door: Door) -> bool:
        roster = door.history.roster
        # Admins are made by the keeper alone, never by an invite of whoever it may be.
        return ADMIN in roster.roles_of(self._me) and ADMIN not in door.issued.roles

    def _wrong_with(self, door: Door, now: float) -> str | None:
        """What keeps the joiner, who has the secret, from entering; None if nothing does."""
        issued, roster = door.issued, door.history.roster
        if issued.for_node not in (None, self._joiner):
            return OTHER_NODE
        if issued.used_by not in (None, self._joiner):
            return USED
        if self._joiner in roster.members:
            # Its answer was lost: the invite is answered again, also a little late.
            return None if issued.used_by == self._joiner or now <= issued.expires else EXPIRED
        removed = roster.removed.get(self._joiner)
        # Who was removed comes back by an invite that was made for it, afterwards.
        if removed is not None and (issued.for_node is None or removed >= issued.since):
            return REMOVED
        if now > issued.expires:
            return EXPIRED
        if now > roster.not_after or door.history.fork is not None:
            return CLOSED
        return None


def wait(reason: str) -> Message:
    """The last message to who is to try again, because the keeper cannot be reached."""
    return {"wait": reason}


def refusal(code: str) -> Message:
    """The message that ends a talk."""
    text = REFUSED_TEXT if code == REFUSED else _REFUSALS[code][1]
    return {"error": code, "text": text}


def _refusal(code: str) -> ChannelError:
    """What a refusal means here, in words of our own."""
    kind, text = _REFUSALS.get(
        code, (InviteRefusedError, "the node that the invite names does not accept it")
    )
    # Who was removed does not come back with just any invite.
    hint = (
        "ask an admin for an invite that is for this node alone" if code == REMOVED else _ASK_AGAIN
    )
    return kind(text, hint=hint)
