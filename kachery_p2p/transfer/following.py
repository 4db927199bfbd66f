"""Keeping up with a source that is loading the blob itself: what it has of what is missing here."""

from __future__ import annotations

from collections.abc import Callable

import trio

from kachery_p2p.content.manifests import RootObject
from kachery_p2p.errors import NotYetError, PeerBusyError, ProtocolError
from kachery_p2p.limits import (
    NOT_YET_MAX,
    PAGE_CHUNKS_MAX,
    PART_IDLE_S,
    PART_LOOK_S_MAX,
    PART_LOOK_S_MIN,
)
from kachery_p2p.transfer.partial_serving import chunks_in
from kachery_p2p.transfer.schedule import ChunkSchedule
from kachery_p2p.transfer.sources import PartialSource


class Following:
    """One such source. `told` is called when it has more than before."""

    def __init__(
        self,
        source: PartialSource,
        schedule: ChunkSchedule,
        root_object: RootObject,
        told: Callable[[], None],
    ) -> None:
        self._source = source
        self._schedule = schedule
        self._object = root_object
        self._told = told
        # How often in a row, and what it had delivered then.
        self._not_yet = self._delivered = 0
        self._useful_at = trio.current_time()

    async def run(self) -> None:
        """Ask again and again, as long as it is of use: it never returns.

        Raises NotYetError when the source has had nothing that is missing here for
        PART_IDLE_S, ProtocolError when it answers nonsense, and other PeerErrors.
        """
        look_s = PART_LOOK_S_MIN
        while True:
            if await self._look():
                look_s = max(look_s / 2, PART_LOOK_S_MIN)
                self._told()
            else:
                look_s = min(2 * look_s, PART_LOOK_S_MAX)
            now = trio.current_time()
            if self._schedule.is_useful(self._source.node):
                self._useful_at = now
            elif now - self._useful_at >= PART_IDLE_S:
                raise NotYetError("has nothing of it that is missing here")
            await trio.sleep(look_s)

    async def _look(self) -> bool:
        """Ask about the pages that are due; True if it has more than before."""
        news = False
        for page in self._schedule.unknown_pages(self._source.node):
            content, root = self._object.content, self._object.root
            bits = await self._source.chunks(content, root, page)
            count = chunks_in(self._object, page)
            if len(bits) != -(-count // 8) or int.from_bytes(bits, "little") >> count:
                raise ProtocolError(f"told of chunks that page {page} does not have")
            news |= self._schedule.source_has(self._source.node, bits, page * PAGE_CHUNKS_MAX)
        return news

    def not_yet(self, chunks: range) -> None:
        """It does not have what it said it had. Raises PeerBusyError if that goes on."""
        self._schedule.source_lacks(self._source.node, chunks)
        delivered = self._schedule.delivered_bytes(self._source.node)
        self._not_yet = self._not_yet + 1 if delivered == self._delivered else 1
        self._delivered = delivered
        if self._not_yet >= NOT_YET_MAX:
            raise PeerBusyError("does not have what it says it has")
