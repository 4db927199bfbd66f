"""Taking chunks from sources: which are asked for next, and how they come."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import trio

from kachery_p2p.content.manifests import page_of, verify_page
from kachery_p2p.errors import NotYetError, VerificationError
from kachery_p2p.limits import (
    BULK_PASSING,
    END_GAME_LOOK_S,
    RANGE_CHUNKS_MAX,
)
from kachery_p2p.network.failures import one_error
from kachery_p2p.transfer.arrivals import Arrival, Arrivals
from kachery_p2p.transfer.assembly import Assembly, Copy, Piece
from kachery_p2p.transfer.crew import Crew
from kachery_p2p.transfer.following import Following
from kachery_p2p.transfer.progress import TransferProgress
from kachery_p2p.transfer.ranged import Ranged, Sink
from kachery_p2p.transfer.schedule import ChunkSchedule
from kachery_p2p.transfer.sources import PartialSource, SizedSource, Source
from kachery_p2p.transfer.suppliers import LIES, ToldLie
from kachery_p2p.wire.bulk_messages import BulkRange


class Pulling:
    """Brings into `assembly` what `schedule` says, from any number of sources at once.

    `arrived` is called in trio after each chunk, `is_urgent` tells whether somebody waits
    for a few bytes of some chunks.
    """

    def __init__(
        self,
        schedule: ChunkSchedule,
        assembly: Assembly,
        progress: TransferProgress,
        arrived: Callable[[], None],
        *,
        crew: Crew,
        is_urgent: Callable[[range], bool],
        lied: ToldLie,
    ) -> None:
        """`lied` is told who sent what no honest node sends, also of one that is cancelled."""
        self._crew = crew
        self._schedule = schedule
        self._assembly = assembly
        self._partial = assembly.partial
        self._object = assembly.partial.root_object
        self._progress = progress
        self._told_arrived = arrived
        self._is_urgent = is_urgent
        self._lied = lied
        self._changed = trio.Event()

    def look_again(self) -> None:
        """Something changed that decides what to ask for next."""
        self._changed.set()
        self._changed = trio.Event()

    async def take_from(self, source: Source) -> None:
        """What this source gives of all that is wanted, until there is nothing more to want.

        Raises what the source did wrong; what it owed is asked of others then.
        """
        if isinstance(source, SizedSource):
            source.check_told(self._object)
        following: Following | None = None
        if isinstance(source, PartialSource):
            following = Following(source, self._schedule, self._object, self.look_again)
        self._schedule.source_joined(source.node, has_all=following is None)
        try:
            with one_error():
                async with trio.open_nursery() as nursery:
                    if following is not None:
                        nursery.start_soon(self._follow, source, following)
                    bulk = await source.bulk()
                    if bulk is not None:
                        await self._pull_in_bulk(source, bulk, following)
                    else:
                        await self._pull_by_stream(source, following)
                    nursery.cancel_scope.cancel()
        finally:
            self._schedule.source_left(source.node)

    async def _follow(self, source: Source, following: Following) -> None:
        with self._telling_lies(source):
            await following.run()

    @contextlib.contextmanager
    def _telling_lies(self, source: Source) -> Iterator[None]:
        """Tell of a lie where it is found: of a task that is being cancelled nobody hears it."""
        try:
            yield
        except LIES as error:
            self._lied(source, str(error))
            raise

    # --- over data streams ------------------------------------------------------------------

    async def _pull_by_stream(self, source: Source, following: Following | None) -> None:
        def next_range() -> range | None:
            if not self._crew.may_ask(source.node):
                return None
            return self._schedule.next_for(source.node, RANGE_CHUNKS_MAX, trio.current_time())

        while not self._schedule.satisfied:
            changed = self._changed
            try:
                with self._telling_lies(source):
                    content, root = self._object.content, self._object.root
                    await source.pull(content, root, next_range, self._deliver)
            except NotYetError:
                if following is None:
                    raise
                following.not_yet(self._schedule.owed(source.node))
            with trio.move_on_after(END_GAME_LOOK_S):
                await changed.wait()

    async def _deliver(self, source: Source, number: int, data: bytes) -> None:
        """One chunk has come over a data stream."""
        if not self._schedule.holds(number):
            await self._see_pages(source, range(number, number + 1))
            try:
                await trio.to_thread.run_sync(self._assembly.take, Copy(number, data))
            except VerificationError as error:
                self._wrong(source, len(data), str(error))
                raise
        self._arrived(source, [Arrival(number, len(data))])

    # --- over bulk connections --------------------------------------------------------------

    async def _pull_in_bulk(
        self, source: Source, bulk: Ranged, following: Following | None
    ) -> None:
        """A few requests at a time."""
        under_way: dict[range, trio.CancelScope] = {}

        async def pull(chunks: range) -> None:
            arrivals = self._arrivals(source, chunks)
            try:
                with under_way[chunks], self._telling_lies(source):
                    await self._see_pages(source, chunks)
                    wanted = self._bulk_range(source, chunks)
                    sink = self._sink(source, arrivals)
                    await bulk.fetch(wanted, sink, urgent=self._is_urgent(chunks))
            except NotYetError:
                if following is None:
                    raise
                following.not_yet(chunks)
            finally:
                arrivals.settle()
                self._schedule.given_back(source.node, chunks, trio.current_time())
                del under_way[chunks]
                self.look_again()

        with one_error(), self._telling_end(source, bulk):
            async with trio.open_nursery() as nursery:
                while not self._schedule.satisfied:
                    changed = self._changed
                    self._cancel_pointless(under_way)
                    asked = self._next_in_bulk(source, bulk, len(under_way))
                    if asked is not None:
                        under_way[asked] = trio.CancelScope()
                        nursery.start_soon(pull, asked)
                        continue
                    with trio.move_on_after(END_GAME_LOOK_S):
                        await changed.wait()
                nursery.cancel_scope.cancel()

    @contextlib.contextmanager
    def _telling_end(self, source: Source, bulk: Ranged) -> Iterator[None]:
        """Tell of a lie that ended the connection, though all of its requests were cancelled."""
        try:
            yield
        finally:
            if isinstance(bulk.error, LIES):
                self._lied(source, str(bulk.error))

    def _next_in_bulk(self, source: Source, bulk: Ranged, under_way: int) -> range | None:
        if under_way >= bulk.pipelined + BULK_PASSING or not self._crew.may_ask(source.node):
            return None
        # Whoever reads a few bytes does not wait for a place behind a download.
        passing = under_way >= bulk.pipelined
        now = trio.current_time()
        return self._schedule.next_for(source.node, bulk.range_chunks, now, passing=passing)

    def _cancel_pointless(self, under_way: dict[range, trio.CancelScope]) -> None:
        """End requests for what others have brought by now."""
        for chunks, scope in under_way.items():
            if all(map(self._schedule.holds, chunks)):
                scope.cancel()

    def _bulk_range(self, source: Source, chunks: range) -> BulkRange:
        content, root = self._object.content.raw, self._object.root.raw
        return BulkRange(source.channel, content, root, chunks.start, len(chunks))

    def _arrivals(self, source: Source, chunks: range) -> Arrivals:
        return Arrivals(chunks[-1], functools.partial(self._arrived, source))

    def _sink(self, source: Source, arrivals: Arrivals) -> Sink:
        """What takes the chunks of a bulk connection, in its thread, which goes on receiving."""
        token = trio.lowlevel.current_trio_token()

        def sink(piece: Piece) -> None:
            number, length = piece.number, len(piece.data)
            if self._schedule.holds(number):
                piece.release()
            else:
                try:
                    self._assembly.take(piece)
                except VerificationError as error:
                    token.run_sync_soon(self._wrong, source, length, str(error))
                    raise
            arrivals.add(number, length)

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

    def _wrong(self, source: Source, length: int, what: str) -> None:
        """Bytes came that do not match their hash."""
        self._progress.lost(source.node, length)
        self._lied(source, what)

    def _arrived(self, source: Source, came: Sequence[Arrival]) -> None:
        """Verified chunks are on disk."""
        now = trio.current_time()
        for number, length in came:
            needed = not self._schedule.holds(number)
            self._progress.came(source.node, length, now, needed=needed)
            self._schedule.received(source.node, number, now, length)
        self._told_arrived()
