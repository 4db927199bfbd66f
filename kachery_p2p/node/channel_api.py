"""What the daemon does about channels for its user: the operations of `wire.channel_operations`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import trio

from kachery_p2p.channels.changes import (
    MemberRemoved,
    MemberSet,
    SettingsSet,
    SuccessorNamed,
)
from kachery_p2p.channels.channel import OWNED, Channel
from kachery_p2p.channels.files import leave, load_channel
from kachery_p2p.channels.history import History
from kachery_p2p.channels.invite_book import InviteBook
from kachery_p2p.channels.invites import INVITE_SECRET_BYTES, Invite
from kachery_p2p.channels.owned import create_owned, load_history
from kachery_p2p.channels.permissions import ACTIONS, ADMIN, SHARED_MEMBER_ROLES
from kachery_p2p.channels.roster import Roster
from kachery_p2p.errors import (
    ChannelError,
    NotAllowedError,
    PeerError,
    UnknownChannelError,
)
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import INVITE_LIFE_S, REQUEST_S_MAX
from kachery_p2p.network.session import Session
from kachery_p2p.node.doors import Call, Handlers
from kachery_p2p.node.parts import Parts


class ChannelApi:
    """The operations, on the parts of one node."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._config_dir = parts.config.config_dir

    def handlers(self) -> Handlers:
        return {
            "channel_create": self._create,
            "channel_invite": self._invite,
            "channel_join": self._join,
            "channel_remove": self._remove,
            "channel_roles": self._roles,
            "channel_set": self._set,
            "channel_successor": self._successor,
            "channel_leave": self._leave,
        }

    async def _create(self, call: Call) -> dict[str, Any]:
        name = call.body["name"]

        def create() -> tuple[Channel, History]:
            key, label = self._parts.key, self._parts.config.label
            create_owned(self._config_dir, name, key, label, int(time.time()))
            return load_channel(self._config_dir, name), load_history(self._config_dir, name)

        channel, history = await trio.to_thread.run_sync(create)
        self._parts.memberships.add(channel, history)
        return {"name": name, "id": channel.id}

    # --- entering -----------------------------------------------------------------------------

    async def _invite(self, call: Call) -> dict[str, Any]:
        channel, roster = self._owned(call.body["name"])
        roles = _roles(call.body["roles"]) or SHARED_MEMBER_ROLES
        self._check_may_invite(channel, roster, roles)
        valid_s, node = call.body["valid_s"] or INVITE_LIFE_S, call.body["node"]
        network = await self._parts.network()
        now = int(time.time())
        invite = Invite(
            channel_id=channel.id,
            name=channel.name,
            secret=os.urandom(INVITE_SECRET_BYTES),
            expires=now + int(valid_s),
            admitters=((self._parts.node_id, tuple(network.link.addresses)),),
            for_node=None if node is None else NodeId.parse(node),
        ).fitting()

        history = self._parts.memberships.history(channel.id)
        since = 0 if history is None else history.size

        def issue() -> None:
            InviteBook(self._config_dir, channel.name).issue(invite, roles, now, since=since)

        await trio.to_thread.run_sync(issue)
        return {"invite": invite.text, "expires": invite.expires}

    def _check_may_invite(self, channel: Channel, roster: Roster, roles: frozenset[str]) -> None:
        if ADMIN not in roster.roles_of(self._parts.node_id):
            raise NotAllowedError(
                f"this node is no admin of {channel.name}",
                hint=f"`kachery-p2p channel members {channel.name}` says who is",
            )
        if ADMIN in roles:
            raise NotAllowedError(
                "nobody becomes an admin by an invite",
                hint=f"afterwards: `kachery-p2p channel roles {channel.name} NODE admin ...`",
            )

    async def _join(self, call: Call) -> dict[str, Any]:
        network = await self._parts.network()
        invite = Invite.parse(call.body["invite"])
        name = await network.joining.begin(invite, call.body["alias"])
        with trio.move_on_after(call.body["timeout_s"] or 0):
            await network.joining.ended(name)
        awaiting = network.joining.awaited(name)
        return {
            "name": name,
            "id": invite.channel_id,
            "joined": awaiting is None,
            "awaiting": awaiting,
        }

    async def _leave(self, call: Call) -> dict[str, Any]:
        name = call.body["name"]
        network = await self._parts.network()
        if network.joining.awaited(name) is not None:
            await network.joining.give_up(name)
            return {}
        channel = self._channel(name)
        force = bool(call.body["force"])
        await trio.to_thread.run_sync(lambda: leave(self._config_dir, name, force=force))
        sessions = [s for s in network.sessions.all() if s.has_proved(channel.id)]
        self._parts.memberships.drop(channel.id)
        async with trio.open_nursery() as nursery:
            for session in sessions:
                nursery.start_soon(_say_goodbye, session, channel.id)
        return {}

    # --- changing who is in ---------------------------------------------------------------------

    async def _remove(self, call: Call) -> dict[str, Any]:
        channel, _ = self._owned(call.body["name"])
        network = await self._parts.network()
        await network.keeping.record(channel.id, MemberRemoved(NodeId.parse(call.body["node"])))
        return {}

    async def _roles(self, call: Call) -> dict[str, Any]:
        channel, roster = self._owned(call.body["name"])
        member = roster.members.get(NodeId.parse(call.body["node"]))
        if member is None:
            raise ChannelError(
                f"the node is not a member of {channel.name}",
                hint=f"`kachery-p2p channel invite {channel.name}` lets it in",
            )
        changed = member._replace(roles=_roles(call.body["roles"]))
        network = await self._parts.network()
        await network.keeping.record(channel.id, MemberSet(changed))
        return {}

    async def _set(self, call: Call) -> dict[str, Any]:
        channel, roster = self._owned(call.body["name"])
        given = {name: call.body[name] for name in ("bootstrap", "bucket", "not_after")}
        known = SettingsSet(roster.bootstrap, roster.not_after, roster.bucket)
        changed = known._replace(**{k: v for k, v in given.items() if v is not None})
        network = await self._parts.network()
        await network.keeping.record(
            channel.id, changed._replace(bootstrap=tuple(changed.bootstrap))
        )
        return {}

    async def _successor(self, call: Call) -> dict[str, Any]:
        channel, _ = self._owned(call.body["name"])
        network = await self._parts.network()
        if call.body["take_over"]:
            return {"id": await network.succession.take_over(channel.id)}
        node = call.body["node"]
        named = SuccessorNamed(None if node is None else NodeId.parse(node))
        await network.keeping.record(channel.id, named)
        return {"id": channel.id}

    # --- which channel ---------------------------------------------------------------------------

    def _channel(self, name: str) -> Channel:
        for channel in self._parts.channels:
            if channel.name == name:
                return channel
        raise UnknownChannelError(
            f"this node is not in a channel named {name!r}",
            hint="`kachery-p2p channel list` names the channels it is in",
        )

    def _owned(self, name: str) -> tuple[Channel, Roster]:
        channel = self._channel(name)
        history = self._parts.memberships.history(channel.id)
        if channel.kind != OWNED or history is None:
            raise ChannelError(
                f"{name} is entered with a shared secret: nobody is in charge of it",
                hint="give the secret to who shall enter; to put somebody out, change it everywhere"
                " with `kachery-p2p channel rekey`",
            )
        return channel, history.roster


def _roles(names: Sequence[str] | None) -> frozenset[str]:
    roles = frozenset(names or ())
    unknown = roles - ACTIONS
    if unknown:
        raise ChannelError(
            f"{sorted(unknown)[0]!a} is no role", hint=f"roles are {', '.join(sorted(ACTIONS))}"
        )
    return roles


async def _say_goodbye(session: Session, channel_id: str) -> None:
    """The other members learn at once that this node serves the channel no more."""
    try:
        await session.request("leave", {"channel": channel_id}, REQUEST_S_MAX)
    except PeerError:
        pass
    finally:
        if not session.channels:
            session.end()
