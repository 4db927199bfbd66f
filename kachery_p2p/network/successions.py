"""Telling members that their channel goes on under another key, and following when told so.

The successor's node stays in the old channel and tells whoever it meets there. Members take
the new channel's history from it, as they would any history, and follow if their own old
history says that they may (`channels.succession`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakSet

import trio

from kachery_p2p.channels.history import History
from kachery_p2p.errors import ChannelError, LogError, PeerError, PeerRefusedError, ProtocolError
from kachery_p2p.limits import HISTORY_S_MAX
from kachery_p2p.network.histories import fetch_entries
from kachery_p2p.network.meeting import Me
from kachery_p2p.network.session import Session
from kachery_p2p.network.sessions import Sessions

log = logging.getLogger(__name__)

# Follow, durably, the channel with this history in place of the one with this id.
# Raises SuccessionError if it may not be.
Follow = Callable[[str, History], Awaitable[None]]


class Successions:
    """What this node tells of channels that go on elsewhere, and what it is told."""

    def __init__(self, me: Me, sessions: Sessions, follow: Follow) -> None:
        self._memberships = me.memberships
        self._sessions = sessions
        self._follow = follow
        self._following = trio.Lock()
        sessions.handle("succession", self._hear)

    async def tell_for_ever(self) -> None:
        """Tell each member of an old channel once, when it is met."""
        told: WeakSet[Session] = WeakSet()
        while True:
            for session in self._sessions.all():
                if session not in told and await self._tell(session):
                    told.add(session)
            await self._sessions.changed()

    async def _tell(self, session: Session) -> bool:
        """True if there was something to tell, and it was heard."""
        heard = False
        for channel in self._memberships.channels:
            history = self._memberships.history(channel.id)
            if history is None or history.head is None or history.roster.succeeds is None:
                continue
            old_id = history.roster.succeeds.old_id
            if old_id not in session.channels or session.has_proved(channel.id):
                continue
            news = {"channel": old_id, "successor": channel.id, "head": history.head.encode()}
            try:
                await session.request("succession", news, HISTORY_S_MAX)
                heard = True
            except PeerError as error:
                log.info("node %s: %s", session.peer[:16], error)
        return heard

    async def _hear(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        old_id, new_id = body["channel"], body["successor"]
        if old_id not in session.channels:
            raise PeerRefusedError("not available in this channel")
        async with self._following:
            if self._memberships.channel(new_id) is None:
                await self._learn(session, old_id, new_id, body["head"])
        return {}

    async def _learn(self, session: Session, old_id: str, new_id: str, head: bytes) -> None:
        nothing = History.empty(new_id)
        try:
            entries = await fetch_entries(session, new_id, nothing.missing(head))
            await self._follow(old_id, nothing.extended(head, entries))
        except LogError as error:
            raise ProtocolError(f"what it told of a successor is wrong: {error}")
        except ChannelError as error:
            # Not now, or never: the user of this node may want to know who says so.
            log.warning(
                "node %s says that channel %s goes on: %s", session.name, old_id[:16], error
            )
            raise PeerError(str(error)) from error
