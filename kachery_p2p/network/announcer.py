"""Telling the members of each channel what this node holds, and hearing what they hold.

Content is announced where it is granted, and only there. Each member gets one message at
a time, with up to ANNOUNCE_PREFIXES_MAX prefixes; it begins anew on each connection. What
a member announces is noted within its allowance and bounds (`providers`), is never passed
on unasked, and is forgotten with its connection. Nothing depends on any of it: whoever is
looked for and not announced is found by asking everyone (`transfer/holders`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import trio

from kachery_p2p.channels.permissions import PROVIDE, READ
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import PeerBusyError, PeerError, PeerGoneError, PeerRefusedError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    ANNOUNCE_ALLOWANCES_MAX,
    ANNOUNCE_BATCH_S,
    ANNOUNCE_BURST_BYTES,
    ANNOUNCE_LOG_S,
    ANNOUNCE_RETRY_S_MAX,
    ANNOUNCE_RETRY_S_MIN,
    ANNOUNCE_SENT_BYTES_PER_S,
    ANNOUNCED_GRACE_S,
    INDEX_NAMES_MAX,
    REQUEST_S_MAX,
)
from kachery_p2p.network.allowance import Allowance, TokenBucket
from kachery_p2p.network.catalogue import Telling
from kachery_p2p.network.holdings import Holdings, Loading
from kachery_p2p.network.providers import Delta, Providers, in_turn
from kachery_p2p.network.session import Session
from kachery_p2p.network.sessions import Sessions
from kachery_p2p.store.grants import Grants

log = logging.getLogger(__name__)


class _Hearing:
    """How much one node may announce, and when it was last logged that it exceeded it."""

    def __init__(self, now: float) -> None:
        self.allowance = Allowance(now)
        self.logged_at: float | None = None
        # The connection on which the node announced what we know.
        self.session: Session | None = None


class Announcer:
    """The announcements of the node `node_id`. `holds` says whether a content is in the store."""

    def __init__(
        self,
        *,
        sessions: Sessions,
        grants: Grants,
        holds: Callable[[ContentHash], bool],
        node_id: NodeId,
        loading: Loading = lambda channel: (),
    ) -> None:
        """`loading`: what this node is loading in a channel, and passes on already."""
        self.providers = Providers(node_id)
        self.holdings = Holdings(grants, holds, loading=loading)
        self._sessions = sessions
        self._grants = grants
        self._node_id = node_id
        self._hearing: dict[NodeId, _Hearing] = {}
        self._telling: dict[Session, trio.CancelScope] = {}
        self._news = trio.Event()
        self._line = TokenBucket(ANNOUNCE_SENT_BYTES_PER_S, ANNOUNCE_SENT_BYTES_PER_S, 0.0)
        sessions.handle("announce", self._hear)
        sessions.handle("holders", self._name_holders)

    async def run(self) -> None:
        """Announce what this node holds, for ever. May be run again after it failed."""
        self._telling.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_holdings)
            while True:
                self._meet(nursery)
                await self._sessions.changed()
                # Many come at once when a node starts; each would be a new look at everyone.
                await trio.sleep(ANNOUNCE_BATCH_S)

    # --- asked --------------------------------------------------------------------------------

    def announced(self, content: ContentHash, channel: str) -> list[NodeId]:
        """Who announced the content in the channel to this node, in an order of its own."""
        return in_turn(content, self.providers.holders(content, channel), self._node_id)

    def keepers(self, content: ContentHash, channel: str) -> tuple[NodeId, ...]:
        """The index members who know who holds the content; none in a channel without index."""
        return self.providers.keepers(content, channel)

    async def named_by(
        self, keeper: NodeId, content: ContentHash, channel: str
    ) -> tuple[NodeId, ...]:
        """Whom an index member names as holders, within ANNOUNCED_GRACE_S; none if it fails."""
        session = self._sessions.get(keeper)
        if session is None:
            return ()
        body = {"channel": channel, "content": content.raw}
        try:
            answer = await session.request("holders", body, ANNOUNCED_GRACE_S)
        except PeerError:
            return ()
        return tuple(NodeId.of_raw(raw) for raw in answer["nodes"])

    # --- hearing ------------------------------------------------------------------------------

    async def _hear(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        delta = Delta(**body)
        hearing = self._hearing_of(session.peer)
        if not hearing.allowance.take(delta.size, trio.current_time()):
            self._log_limited(session, hearing)
            raise PeerBusyError("hears fewer announcements than you make")
        if not session.may(delta.channel, PROVIDE):
            raise PeerRefusedError("may not announce in this channel")
        if self._sessions.get(session.peer) is not session:
            raise PeerGoneError("has another connection now")
        if hearing.session is not session:
            self.providers.forget(session.peer)
            hearing.session = session
        self.providers.hear(session.peer, delta)
        return {}

    def _hearing_of(self, peer: NodeId) -> _Hearing:
        hearing = self._hearing.pop(peer, None) or _Hearing(trio.current_time())
        if len(self._hearing) >= ANNOUNCE_ALLOWANCES_MAX:
            del self._hearing[next(iter(self._hearing))]
        self._hearing[peer] = hearing
        return hearing

    def _log_limited(self, session: Session, hearing: _Hearing) -> None:
        now = trio.current_time()
        if hearing.logged_at is None or now - hearing.logged_at >= ANNOUNCE_LOG_S:
            hearing.logged_at = now
            log.warning("peer rate-limited: node %s announces too much", session.peer)

    async def _name_holders(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        content, channel = ContentHash.of_raw(body["content"]), body["channel"]
        if not session.may(channel, READ):
            raise PeerRefusedError("not available in this channel")
        holders = self.providers.holders(content, channel) - {session.peer}
        found = in_turn(content, holders, session.peer)
        if self._sessions.may(channel, PROVIDE) and self._grants.is_granted(content, channel):
            found.insert(0, self._node_id)
        return {"nodes": [node.raw for node in found[:INDEX_NAMES_MAX]]}

    # --- telling ------------------------------------------------------------------------------

    def _meet(self, nursery: trio.Nursery) -> None:
        """Forget who has gone, and begin to tell who has come."""
        present = self._sessions.all()
        for session in self._telling.keys() - set(present):
            self._telling.pop(session).cancel()
        for hearing in self._hearing.values():
            if hearing.session is not None and hearing.session not in present:
                self.providers.forget(hearing.session.peer)
                hearing.session = None
        members: dict[str, set[NodeId]] = {channel.id: set() for channel in self._sessions.channels}
        for session in present:
            for channel in session.channels & members.keys():
                members[channel].add(session.peer)
        self.providers.set_members({id: frozenset(nodes) for id, nodes in members.items()})
        for session in present:
            if session not in self._telling:
                self._telling[session] = trio.CancelScope()
                nursery.start_soon(self._tell, session, self._telling[session])
        self._tell_news()

    def _tell_news(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def _follow_holdings(self) -> None:
        while True:
            channels = [channel.id for channel in self._sessions.channels]
            if await self.holdings.look(channels):
                self._tell_news()
            await trio.sleep(ANNOUNCE_BATCH_S)

    async def _tell(self, session: Session, scope: trio.CancelScope) -> None:
        """Tell one peer, as long as it is connected."""
        tellings: dict[str, Telling] = {}
        allowance = Allowance(trio.current_time(), share=0.5)
        retry_s = ANNOUNCE_RETRY_S_MIN
        with scope:
            while True:
                news = self._news
                try:
                    taken = await self._tell_channels(session, tellings, allowance)
                except PeerGoneError:
                    return
                if taken:
                    retry_s = ANNOUNCE_RETRY_S_MIN
                    await news.wait()
                else:
                    await trio.sleep(retry_s)
                    retry_s = min(2 * retry_s, ANNOUNCE_RETRY_S_MAX)

    async def _tell_channels(
        self, session: Session, tellings: dict[str, Telling], allowance: Allowance
    ) -> bool:
        """Announce in each common channel what is new there; False if not all of it was taken."""
        taken = True
        channels = [id for id in self.holdings.channels() if self._may_tell(session, id)]
        for id in tellings.keys() - set(channels):
            del tellings[id]
        for id in channels:
            catalogue = self.holdings.catalogue(id)
            telling = tellings.setdefault(id, Telling(id, catalogue))
            telling.follow(catalogue)
            try:
                await self._tell_channel(session, telling, allowance, id)
            except PeerGoneError:
                raise
            except PeerBusyError:
                # It heard nothing of it: the same again, later.
                taken = False
            except PeerError as error:
                log.debug("node %s took no announcement: %s", session.peer, error)
                telling.restart()
                taken = False
        return taken

    async def _tell_channel(
        self, session: Session, telling: Telling, allowance: Allowance, channel: str
    ) -> None:
        while self._may_tell(session, channel):
            delta = telling.next(self.providers.slots_for(session.peer, channel))
            if delta is None:
                return
            await self._wait_for_turn(allowance, delta.size)
            # Who was removed while it waited is told nothing more.
            if self._may_tell(session, channel):
                await session.request("announce", delta._asdict(), REQUEST_S_MAX)
                telling.delivered()

    def _may_tell(self, session: Session, channel: str) -> bool:
        return session.may(channel, READ) and self._sessions.may(channel, PROVIDE)

    async def _wait_for_turn(self, allowance: Allowance, size: int) -> None:
        assert size <= ANNOUNCE_BURST_BYTES // 2
        while True:
            now = trio.current_time()
            wait_s = max(allowance.wait_s(size, now), self._line.wait_s(size, now))
            if wait_s <= 0:
                break
            # Not less: a sleep too short for the clock would be a loop that never ends.
            await trio.sleep(max(wait_s, 0.001))
        allowance.pay(size, now)
        self._line.pay(size, now)
