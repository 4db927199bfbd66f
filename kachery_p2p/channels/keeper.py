"""The keeper of an owned channel: whoever holds the channel's key, and alone signs its history.

`recorded` judges, signs and gives the new history; the caller makes it durable before
anybody hears of it, or tells `failed`. What another copy of the key has signed is heard
of from members (`heard`): nothing is signed from then on, because two histories of one
channel can never be made one again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from kachery_p2p.channels.changes import (
    Change,
    Created,
    KeeperMoved,
    Member,
    MemberRemoved,
    MemberSet,
    Recorded,
    SignedRequest,
    decode_change,
    encode_change,
)
from kachery_p2p.channels.history import FORK_HINT, LOG_TAG, History
from kachery_p2p.channels.permissions import ACTIONS
from kachery_p2p.channels.roster import Roster
from kachery_p2p.errors import (
    ChannelClosedError,
    ChannelError,
    ChannelForkedError,
    LogForkedError,
    NotAllowedError,
)
from kachery_p2p.identity.keys import NodeId, NodeKey, verify_exchange
from kachery_p2p.limits import (
    HISTORY_RENEWAL_S,
    MEMBERS_MAX,
)
from kachery_p2p.log.entries import Entry
from kachery_p2p.log.heads import SignedHead, Signer
from kachery_p2p.log.rules import Writer
from kachery_p2p.log.tree import leaf_hash

# Room that admins cannot fill with members, so that these can still be removed.
_KEPT_ENTRIES = 4_096
_KEPT_BYTES = 1 << 20
# A change, the node that asks for it, and 16 random bytes.
Asked = tuple[Change, NodeId, bytes]


class Keeper:
    """Signs one channel's history, in the only process of this node that does.

    `history` is the newest; what other copies of the key sign is only known by `heard`.
    """

    def __init__(self, history: History, key: Signer) -> None:
        assert key.node_id == history.channel_id
        self.history = history
        self._writer = Writer(history.log, key, history.frontier, history.head)
        # Signed last, and neither found to be durable nor `failed` yet.
        self._unsettled = False

    def recorded(self, changes: Sequence[Asked], time_ms: int) -> History:
        """The history with these changes, asked for on this node or by requests that were verified.

        All or nothing. NotAllowedError if one may not be made by whom it names;
        ChannelClosedError past the channel's end or bounds; ChannelError if one makes no
        sense; ChannelForkedError, LogBehindError or LogStoppedError if nothing may be signed.
        """
        roster = self.history.roster
        for number, asked in enumerate(changes, self.history.size):
            roster = self._judged(roster, asked, number, time_ms)
        return self._signed(changes, time_ms)

    def founded(self, changes: Sequence[Asked], time_ms: int) -> History:
        """The history of a new channel, which begins with these changes."""
        assert self.history.size == 0
        assert isinstance(changes[0][0], Created)
        return self._signed(changes, time_ms)

    def fulfilled(self, asked: SignedRequest, time_ms: int) -> History:
        """The history with the change that another node asked for; itself if that is in it already.

        Raises as `recorded` does, and LogFormatError if the request is not that node's, for
        this channel, and new enough.
        """
        asked.verify(self.history.channel_id, time_ms)
        if not isinstance(asked.change, MemberSet | MemberRemoved):
            raise NotAllowedError("this is changed on the keeper's own node only")
        if asked.request in self.history.roster.requests:
            return self.history
        return self.recorded([(asked.change, asked.by, asked.request)], time_ms)

    def taken_over(self, key: NodeKey, label: str, request: bytes, time_ms: int) -> History:
        """The history after the channel's key came to the node with `key`, which has it here.

        `request` is 32 random bytes.
        """
        node = key.node_id
        member = self_member(key, label)
        changes: list[Asked] = [
            (KeeperMoved(node), node, request[:16]),
            (MemberSet(member), node, request[16:]),
        ]
        return self._signed(changes, time_ms)

    def renewed(self, time_ms: int) -> History:
        """The history signed once more as it is: still so."""
        return self._signed([], time_ms)

    def renewal_due(self, time_ms: int) -> bool:
        """True once a day."""
        return self.history.age_s(time_ms) >= HISTORY_RENEWAL_S

    def heard(self, head_bytes: bytes) -> None:
        """Compare with a head that somebody else showed us.

        HeadError or LogFormatError if the channel's key did not sign it. LogBehindError or
        ChannelForkedError if another copy of the key has signed what is not known here;
        `recorded` and `renewed` raise it from then on.
        """
        signed = SignedHead.decode(head_bytes, LOG_TAG)
        self._settle()
        with _forks_of_channels():
            self._writer.heard(signed, self.history.stored_hash)

    def failed(self) -> None:
        """The last history could not be made durable: sign nothing more before a restart."""
        assert self._unsettled
        self._unsettled = False
        self._writer.failed()

    def _judged(self, roster: Roster, asked: Asked, number: int, time_ms: int) -> Roster:
        """The roster after what is asked, if it may be asked for and makes sense."""
        change, by, request = asked
        roster.allowed(by, change, is_keeper=by == roster.keeper)
        if isinstance(change, MemberRemoved) and change.node not in roster.members:
            raise ChannelError(f"{change.node} is not a member of the channel")
        if isinstance(change, MemberSet):
            self._check_member(roster, change.member, time_ms)
        return roster.applied(Recorded(change, by, request, time_ms), number)

    def _check_member(self, roster: Roster, member: Member, time_ms: int) -> None:
        if not verify_exchange(member.node, member.exchange, member.exchange_signature):
            raise ChannelError("the exchange key of the node is not signed by it")
        if member.node not in roster.members and time_ms > 1000 * roster.not_after:
            raise ChannelClosedError(
                "the channel is past the end that its keeper set, so nobody new is admitted",
                hint="its keeper can set a later one",
            )
        full = not self.history.has_room_for(_KEPT_ENTRIES, _KEPT_BYTES)
        if full or (len(roster.members) >= MEMBERS_MAX and member.node not in roster.members):
            raise ChannelClosedError(
                f"the channel is full: {len(roster.members)} members, {self.history.size} changes",
                hint="remove members, or let the channel go on as a new one",
            )

    def _signed(self, changes: Sequence[Asked], time_ms: int) -> History:
        if self.history.fork is not None:
            raise _forked(self.history.fork.encode())
        spelled = [encode_change(*asked) for asked in changes]
        entries = [Entry(kind, time_ms, payload) for kind, payload in spelled]
        # Whatever readers would refuse is found out before it is signed.
        self.history.roster.replayed(map(decode_change, entries), self.history.size)
        encoded = [entry.encode() for entry in entries]
        if not self.history.has_room_for(len(encoded), sum(map(len, encoded))):
            raise ChannelClosedError(
                "the channel's history is full", hint="let the channel go on as a new one"
            )
        self._settle()
        with _forks_of_channels():
            batch = self._writer.sign(map(leaf_hash, encoded), time_ms)
        self._unsettled = True
        self.history = self.history.extended(batch.signed.encode(), encoded)
        return self.history

    def _settle(self) -> None:
        """Whoever comes again has made the last history durable, or would have said `failed`."""
        if self._unsettled:
            self._unsettled = False
            self._writer.written()


def self_member(key: NodeKey, label: str, roles: frozenset[str] = ACTIONS) -> Member:
    """The node with `key` as a member; the keeper's has all roles."""
    return Member(key.node_id, roles, key.exchange_public, key.exchange_signature, label)


def _forked(evidence: bytes) -> ChannelForkedError:
    return ChannelForkedError(
        "the channel's key has signed two histories, so nothing more is signed",
        hint=FORK_HINT,
        evidence=evidence,
    )


@contextlib.contextmanager
def _forks_of_channels() -> Iterator[None]:
    """Say of a channel what the log says of any log."""
    try:
        yield
    except LogForkedError as error:
        raise _forked(error.evidence) from None
