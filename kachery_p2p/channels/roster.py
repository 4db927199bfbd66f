"""Who is in an owned channel, and what they may do: what all entries of its history come to.

A roster never changes; `applied` gives the next one, and `replayed` the one after a whole
list of entries in the same time as that of one. Entries are believed as they are: the
channel's key signed them. What the key should sign, `allowed` decides on the keeper's
node:

    anybody     may leave
    an admin    sets and removes members, but no admins
    the keeper  does everything, but never puts itself out: it hands the channel over first
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

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
)
from kachery_p2p.channels.permissions import ADMIN
from kachery_p2p.errors import LogFormatError, NotAllowedError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import MEMBERS_MAX

_NOBODY: Mapping[NodeId, Member] = MappingProxyType({})
_NOWHERE: Mapping[NodeId, int] = MappingProxyType({})
_NOTHING: frozenset[str] = frozenset()


class Roster(NamedTuple):
    """A channel as its history says it is."""

    # As the keeper calls it; "" before the first entry.
    name: str = ""
    members: Mapping[NodeId, Member] = _NOBODY
    # Number of the entry that removed a node; gone when it is set again.
    removed: Mapping[NodeId, int] = _NOWHERE
    bootstrap: tuple[str, ...] = ()
    # Seconds since 1970: nobody new is admitted afterwards.
    not_after: int = 0
    bucket: str = ""
    successor: NodeId | None = None
    # The ids of all requests that were recorded.
    requests: frozenset[bytes] = frozenset()
    # Number of the entry that last set each member.
    since: Mapping[NodeId, int] = _NOWHERE
    # The node that uses the channel's key.
    keeper: NodeId | None = None
    secret_check: bytes = b""
    # The channel that goes on for this one, and the word by which this one goes on for another.
    handed_over: str | None = None
    succeeds: Succeeds | None = None

    def roles_of(self, node: NodeId) -> frozenset[str]:
        """What `node` may do; nothing if it is not a member."""
        member = self.members.get(node)
        return _NOTHING if member is None else member.roles

    def applied(self, recorded: Recorded, number: int) -> Roster:
        """The roster after entry `number`. LogFormatError if a history cannot have it there."""
        return self.replayed([recorded], number)

    def replayed(self, entries: Iterable[Recorded], first: int) -> Roster:
        """The roster after these entries, the first of which has the number `first`."""
        draft = _Draft(self)
        for number, recorded in enumerate(entries, first):
            draft.apply(recorded, number)
        return draft.roster()

    def only_as_in(self, other: Roster) -> Roster:
        """This roster without what `other` does not have: members in both, with roles of both."""
        members = {
            node: member._replace(roles=member.roles & other.roles_of(node))
            for node, member in self.members.items()
            if member.roles & other.roles_of(node)
        }
        return self._replace(members=MappingProxyType(members))

    def allowed(self, by: NodeId, change: Change, *, is_keeper: bool) -> None:
        """Pass if the channel's key may sign `change`, which `by` asks for; else NotAllowedError.

        `is_keeper` is true for what is asked on the keeper's own node.
        """
        if self.handed_over is not None:
            raise NotAllowedError(
                "the channel was handed over and goes on under another key",
                hint="ask the keeper of the new channel",
            )
        self._refuse_keeper_out(change)
        if is_keeper:
            return
        if isinstance(change, MemberRemoved) and change.node == by and by in self.members:
            return
        if ADMIN not in self.roles_of(by):
            raise NotAllowedError("only an admin of the channel may ask for this")
        self._refuse_beyond_admin(change)

    def _refuse_keeper_out(self, change: Change) -> None:
        removed = isinstance(change, MemberRemoved) and change.node == self.keeper
        demoted = (
            isinstance(change, MemberSet)
            and change.member.node == self.keeper
            and ADMIN not in change.member.roles
        )
        if removed or demoted:
            raise NotAllowedError(
                "the keeper's own node stays an admin of its channel",
                hint="move the key to another node with `kachery-p2p channel export-key` "
                "and `import-key` first",
            )

    def _refuse_beyond_admin(self, change: Change) -> None:
        if isinstance(change, MemberSet):
            node, roles = change.member.node, change.member.roles
        elif isinstance(change, MemberRemoved):
            node, roles = change.node, _NOTHING
        else:
            raise NotAllowedError("only the keeper of the channel may change this")
        if ADMIN in roles | self.roles_of(node) or node == self.keeper:
            raise NotAllowedError("only the keeper of the channel may make or change admins")


class _Draft:
    """A roster while it is replayed: copied once, not once an entry."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._fields: dict[str, Any] = {}
        self._members = dict(roster.members)
        self._removed = dict(roster.removed)
        self._since = dict(roster.since)
        self._requests = set(roster.requests)

    def roster(self) -> Roster:
        return self._roster._replace(
            members=MappingProxyType(self._members),
            removed=MappingProxyType(self._removed),
            since=MappingProxyType(self._since),
            requests=frozenset(self._requests),
            **self._fields,
        )

    def apply(self, recorded: Recorded, number: int) -> None:
        if recorded.request in self._requests:
            raise LogFormatError(f"entry {number} records a request a second time")
        self._requests.add(recorded.request)
        change = recorded.change
        if isinstance(change, Created) != (number == 0):
            raise LogFormatError("a history begins with its channel's creation, and only once")
        if isinstance(change, MemberSet):
            self._set(change.member, number)
        elif isinstance(change, MemberRemoved):
            self._remove(change.node, number)
        else:
            self._describe(recorded, number)

    def _set(self, member: Member, number: int) -> None:
        self._members[member.node] = member
        if len(self._members) > MEMBERS_MAX:
            raise LogFormatError(f"the channel has more than {MEMBERS_MAX} members")
        self._since[member.node] = number
        self._removed.pop(member.node, None)

    def _remove(self, node: NodeId, number: int) -> None:
        if self._members.pop(node, None) is not None:
            del self._since[node]
            self._removed[node] = number

    def _describe(self, recorded: Recorded, number: int) -> None:
        change, fields = recorded.change, self._fields
        if isinstance(change, Created):
            fields.update(name=change.name, secret_check=change.secret_check)
            fields.update(not_after=change.not_after, keeper=recorded.by)
        elif isinstance(change, SettingsSet):
            fields.update(change._asdict())
        elif isinstance(change, SuccessorNamed):
            fields["successor"] = change.node
        elif isinstance(change, KeeperMoved):
            fields["keeper"] = change.node
        elif isinstance(change, HandedOver):
            fields["handed_over"] = change.channel_id
        elif isinstance(change, Succeeds):
            if number != 1:
                raise LogFormatError("a channel says at its beginning which one it continues")
            fields["succeeds"] = change
