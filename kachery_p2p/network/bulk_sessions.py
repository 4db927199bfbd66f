"""Bulk connections to the members that are connected: made when needed, ended with the session."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import Any, Protocol

import trio

from kachery_p2p.errors import PeerBusyError, PeerError, PeerUnreachableError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    BULK_AGAIN_S,
    BULK_TICKET_S_MAX,
    BULK_WATCH_S,
    KEEPALIVE_IDLE_S,
    PEERS_MAX,
)
from kachery_p2p.network.bulk import Ask, BulkPlane
from kachery_p2p.network.bulk_asking import BulkConnection
from kachery_p2p.network.multiaddrs import parse_address
from kachery_p2p.network.session import Session
from kachery_p2p.network.sessions import Sessions

log = logging.getLogger(__name__)


class Bulk(Protocol):
    """Where a fast connection to a member is to be had."""

    async def connection(self, session: Session) -> BulkConnection | None:
        """A connection on which the member can be asked for chunks; None if there is none."""


class BulkSessions:
    """The bulk plane of a node, for its sessions."""

    def __init__(self, plane: BulkPlane, sessions: Sessions) -> None:
        self._plane = plane
        self._sessions = sessions
        # Why there was no bulk connection to a peer, and when that was.
        self._failed: dict[NodeId, tuple[float, str]] = {}
        sessions.handle("bulk", self._offer)
        sessions.handle("bulk back", self._dial_back)

    async def connection(self, session: Session) -> BulkConnection | None:
        """A connection on which the member can be asked for chunks.

        None if neither side can reach the other's bulk port: then data streams do it, and
        another attempt is made in a while.
        """
        failed = self._failed.get(session.peer)
        if failed is not None and trio.current_time() - failed[0] < BULK_AGAIN_S:
            return None
        try:
            found = await self._plane.connect(session.peer, _asking(session), _hosts(session))
        except (PeerUnreachableError, PeerBusyError) as error:
            self._note_failure(session, error)
            return None
        self._failed.pop(session.peer, None)
        return found

    def _note_failure(self, session: Session, error: PeerError) -> None:
        log.info("no bulk connection to node %s: %s", session.peer[:16], error)
        self._failed.pop(session.peer, None)
        if len(self._failed) >= PEERS_MAX:
            del self._failed[next(iter(self._failed))]
        self._failed[session.peer] = (trio.current_time(), str(error))

    @property
    def bytes_sent(self) -> int:
        """Bytes of chunks sent since the node's start."""
        return self._plane.bytes_sent

    def sent_to(self) -> dict[NodeId, int]:
        """Bytes of chunks sent on the connections that are open, by node."""
        return self._plane.sent_to()

    def problems(self) -> list[str]:
        """Each connected member that is only reached by the slow way."""
        return [
            f"{session.name} is reached by the slower control connection only: "
            + self._failed[session.peer][1]
            for session in self._sessions.all()
            if session.peer in self._failed
        ]

    async def watch_for_ever(self) -> None:
        """End connections with their sessions, and let a busy line count as a living peer."""
        while True:
            for peer in self._plane.peers():
                session = self._sessions.get(peer)
                if session is None or not session.channels:
                    self._plane.forget(peer)
                elif (self._plane.silence_s(peer) or KEEPALIVE_IDLE_S) < BULK_WATCH_S:
                    session.noticed()
            with trio.move_on_after(BULK_WATCH_S):
                await self._sessions.changed()

    async def _offer(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        return self._plane.offer(session.peer, body)

    async def _dial_back(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        return await self._plane.dial_back(session.peer, body, _hosts(session))


def _asking(session: Session) -> Ask:
    def ask(op: str, body: dict[str, Any]) -> Awaitable[dict[str, Any]]:
        return session.request(op, body, BULK_TICKET_S_MAX)

    return ask


def _hosts(session: Session) -> list[str]:
    """Where the peer may be: the hosts of the addresses that it told, and where it comes from."""
    # Of an IPv6 address only the network is known.
    found = [session.place] if session.place and "/" not in session.place else []
    for address in session.addresses:
        try:
            found.append(parse_address(address).host)
        except PeerUnreachableError:
            continue
    return list(dict.fromkeys(found))
