"""Feeds in a node: begun when there are some, or with the first call about one.

A node without feeds imports nothing of them, and answers members as if it had none.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import trio

from kachery_p2p.errors import PeerRefusedError
from kachery_p2p.feeds import moving
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import REQUEST_S_MAX
from kachery_p2p.network.session import Handler, Session
from kachery_p2p.network.sessions import Sessions

if TYPE_CHECKING:
    from kachery_p2p.feeds.bucket_member import Places
    from kachery_p2p.feeds.service import FeedService

_OPERATIONS = ("feed follow", "feed news", "feed entries", "feed hashes", "feed submit")

KeepRunning = Callable[[str, Callable[[], Awaitable[None]]], None]


class Feeding:
    """The feeds of the node whose state lies below `config_dir`."""

    def __init__(
        self,
        config_dir: str,
        node_id: NodeId,
        sessions: Sessions,
        keep_running: KeepRunning,
        places: Places | None = None,
    ) -> None:
        """`places`: the buckets in which feeds are looked for too."""
        self._config_dir = config_dir
        self._node_id = node_id
        self._sessions = sessions
        self._keep_running = keep_running
        self._places = places
        self._begun = False
        self._has_feeds = os.path.exists(f"{config_dir}/state/feeds.db")
        self._service: FeedService | None = None
        self._running = trio.Event()
        for op in _OPERATIONS:
            sessions.handle(op, self._answerer(op))

    async def begin(self) -> None:
        """Begin if this node has, or follows, feeds."""
        if self._has_feeds:
            await self.service()

    async def service(self) -> FeedService:
        """The feeds, begun now if they are not running yet."""
        if not self._begun:
            self._begun = self._has_feeds = True
            self._keep_running("feeds", self._run)
        await self._running.wait()
        assert self._service is not None
        return self._service

    @property
    def service_now(self) -> FeedService | None:
        """The feeds if they are running."""
        return self._service

    async def move_channel(self, old_id: str, new_id: str) -> None:
        """What is served in the old channel is served in the one that continues it."""
        if self._service is not None:
            await self._service.move_channel(old_id, new_id)
        elif self._has_feeds:
            await trio.to_thread.run_sync(moving.move_channel, self._config_dir, old_id, new_id)

    async def _run(self) -> None:
        make = await trio.to_thread.run_sync(_import_service)
        arguments = (self._config_dir, self._node_id, self._sessions, self._places)
        service = await trio.to_thread.run_sync(make, *arguments)
        async with service.running():
            self._service = service
            self._running.set()
            try:
                await trio.sleep_forever()
            finally:
                self._service = None
                self._running = trio.Event()

    def _answerer(self, op: str) -> Handler:
        def answer(session: Session, body: dict[str, Any]) -> Awaitable[dict[str, Any]]:
            if self._service is None:
                return self._answer_later(op, session, body)
            # Now: some begin before they are waited for.
            return self._service.handlers[op](session, body)

        return answer

    async def _answer_later(
        self, op: str, session: Session, body: dict[str, Any]
    ) -> dict[str, Any]:
        if self._has_feeds:
            # Members ask as soon as they are connected, and would not ask again.
            with trio.move_on_after(REQUEST_S_MAX / 2):
                await self._running.wait()
        if self._service is None:
            raise PeerRefusedError("not available in this channel")
        return await self._service.handlers[op](session, body)


def _import_service() -> type[FeedService]:
    # Here and not above: a node that starts has other things to do first.
    from kachery_p2p.feeds.service import FeedService

    return FeedService
