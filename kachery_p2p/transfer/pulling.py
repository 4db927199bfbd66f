"""Taking chunks from sources: which are asked for next, and how they come."""

from __future__ import annotations

from collections.abc import Callable

import trio

from kachery_p2p.content.manifests import page_of, verify_page
from kachery_p2p.limits import (
    BULK_PIPELINED,
    BULK_RANGE_CHUNKS,
    END_GAME_LOOK_S,
    RANGE_CHUNKS_MAX,
)
from kachery_p2p.network.bulk_asking import BulkConnection, Sink
from kachery_p2p.network.bulk_buffers import Piece
from kachery_p2p.network.session import one_error
from kachery_p2p.transfer.assembly import Assembly, Copy
from kachery_p2p.transfer.schedule import ChunkSchedule
from kachery_p2p.transfer.sources import Source
from kachery_p2p.wire.bulk_messages import BulkRange


class Pulling:
    """Brings into `assembly` what `schedule` says, from any number of sources at once.

    `arrived` is called in trio after each chunk, `is_urgent` tells whether somebody waits
    for a few bytes.
    """

    def __init__(
        self,
        schedule: ChunkSchedule,
        assembly: Assembly,
        arrived: Callable[[], None],
        *,
        is_urgent: Callable[[], bool],
    ) -> None:
        self._schedule = schedule
        self._assembly = assembly
        self._partial = assembly.partial
        self._object = assembly.partial.root_object
        self._told_arrived = arrived
        self._is_urgent = is_urgent
        self._changed = trio.Event()

    def look_again(self) -> None:
        """Something changed that decides what to ask for next."""
        self._changed.set()
        self._changed = trio.Event()

    async def take_from(self, source: Source) -> None:
        """What this source gives of all that is wanted, until there is nothing more to want.

        Raises what the source did wrong; what it owed is asked of others then.
        """
        self._schedule.source_joined(source.node)
        try:
            bulk = await source.bulk()
            if bulk is not None:
                await self._pull_in_bulk(source, bulk)
            else:
                await self._pull_by_stream(source)
        finally:
            self._schedule.source_left(source.node)

    # --- over data streams ------------------------------------------------------------------

    async def _pull_by_stream(self, source: Source) -> None:
        def next_range() -> range | None:
            return self._schedule.next_for(source.node, RANGE_CHUNKS_MAX, trio.current_time())

        while not self._schedule.satisfied:
            changed = self._changed
            await source.pull(self._object.content, self._object.root, next_range, self._deliver)
            with trio.move_on_after(END_GAME_LOOK_S):
                await changed.wait()

    async def _deliver(self, source: Source, number: int, data: bytes) -> None:
        """One chunk has come over a data stream."""
        if not self._schedule.holds(number):
            await self._see_pages(source, range(number, number + 1))
            await trio.to_thread.run_sync(self._assembly.take, Copy(number, data))
        self._arrived(source, number, len(data))

    # --- over bulk connections --------------------------------------------------------------

    async def _pull_in_bulk(self, source: Source, bulk: BulkConnection) -> None:
        """A few requests at a time."""
        under_way: dict[range, trio.CancelScope] = {}
        sink = self._sink(source)

        async def pull(chunks: range) -> None:
            try:
                with under_way[chunks]:
                    await self._see_pages(source, chunks)
                    wanted = self._bulk_range(source, chunks)
                    await bulk.fetch(wanted, sink, urgent=self._is_urgent())
            finally:
                self._schedule.given_back(source.node, chunks, trio.current_time())
                del under_way[chunks]
                self.look_again()

        with one_error():
            async with trio.open_nursery() as nursery:
                while not self._schedule.satisfied:
                    changed = self._changed
                    self._cancel_pointless(under_way)
                    asked = None
                    if len(under_way) < BULK_PIPELINED:
                        asked = self._next_in_bulk(source)
                    if asked is not None:
                        under_way[asked] = trio.CancelScope()
                        nursery.start_soon(pull, asked)
                        continue
                    with trio.move_on_after(END_GAME_LOOK_S):
                        await changed.wait()
                nursery.cancel_scope.cancel()

    def _next_in_bulk(self, source: Source) -> range | None:
        return self._schedule.next_for(source.node, BULK_RANGE_CHUNKS, trio.current_time())

    def _cancel_pointless(self, under_way: dict[range, trio.CancelScope]) -> None:
        """End requests for what others have brought by now."""
        for chunks, scope in under_way.items():
            if all(map(self._schedule.holds, chunks)):
                scope.cancel()

    def _bulk_range(self, source: Source, chunks: range) -> BulkRange:
        content, root = self._object.content.raw, self._object.root.raw
        return BulkRange(source.channel, content, root, chunks.start, len(chunks))

    def _sink(self, source: Source) -> Sink:
        """What takes the chunks of a bulk connection, in its thread, which goes on receiving."""
        token = trio.lowlevel.current_trio_token()

        def sink(piece: Piece) -> None:
            number, length = piece.number, len(piece.data)
            if self._schedule.holds(number):
                piece.release()
            else:
                self._assembly.take(piece)
            token.run_sync_soon(self._arrived, source, number, length)

        return sink

    # --- both -------------------------------------------------------------------------------

    async def _see_pages(self, source: Source, chunks: range) -> None:
        """The pages that these chunks are verified by are in the partial when this returns."""
        content, root = self._object.content, self._object.root
        for number in range(page_of(chunks[0])[0], page_of(chunks[-1])[0] + 1):
            if not self._partial.has_page(number):
                page = await source.page(content, root, number)
                verify_page(self._object, number, page)
                await trio.to_thread.run_sync(self._partial.write_page, number, page)

    def _arrived(self, source: Source, number: int, length: int) -> None:
        """A verified chunk is on disk."""
        self._schedule.received(source.node, number, trio.current_time(), length)
        self._told_arrived()
