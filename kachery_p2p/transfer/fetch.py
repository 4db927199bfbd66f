"""One blob on its way into the store: a partial on disk, a schedule, and who waits for it.

The root is known before a fetch begins (from the URI, or as somebody's claim), so that
every page and chunk is verified as it arrives and a source that lies is found at its
first wrong byte. What only the whole blob can show is whether root and SHA-1 name the
same bytes: that is checked last, and until then nothing stands under the content's name.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import trio

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.manifests import (
    Manifest,
    RootObject,
    chunk_hash,
    page_of,
    verify_page,
)
from kachery_p2p.errors import (
    InvalidRangeError,
    KacheryError,
    LoadFileError,
    UriInconsistentError,
    VerificationError,
)
from kachery_p2p.limits import BULK_PIPELINED, BULK_RANGE_CHUNKS, CHUNK_BYTES, FETCH_LINGER_S
from kachery_p2p.network.bulk_asking import BulkConnection
from kachery_p2p.network.bulk_buffers import Piece
from kachery_p2p.network.session import one_error
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.partials import Partial
from kachery_p2p.transfer.assembly import Assembly, Copy
from kachery_p2p.transfer.schedule import ChunkSchedule, Want
from kachery_p2p.transfer.sources import Source
from kachery_p2p.transfer.suppliers import FAULTS, Suppliers
from kachery_p2p.wire.bulk_messages import BulkRange

log = logging.getLogger(__name__)

# Chunks that are verified in one go when a download goes on: 8 MiB take 5 ms.
_RESUME_CHUNKS = 8


class State(NamedTuple):
    """How far a fetch is: bytes verified on disk, and in all (None until that is known)."""

    bytes: int
    size: int | None
    sources: tuple[str, ...]


class Waiter:
    """Somebody who waits for a byte range, or (None) for the whole blob."""

    def __init__(self, byte_range: tuple[int, int] | None) -> None:
        self.byte_range = byte_range
        self.want: Want | None = None
        self.descriptor: int | None = None
        self.error: KacheryError | None = None
        self.done = trio.Event()

    def fail(self, error: KacheryError) -> None:
        if not self.done.is_set():
            self.error = error
            self.done.set()


class Fetch:
    """Fetch one blob from one channel's sources, one source at a time."""

    def __init__(
        self,
        content: ContentHash,
        root: Root,
        *,
        blobs: BlobStore,
        node_id: str,
        suppliers: Suppliers,
        stored: Callable[[], Awaitable[None]],
        tell: Callable[[State], None],
    ) -> None:
        self.content = content
        self.root = root
        self.ended = trio.Event()
        self.closing = False
        self._blobs = blobs
        self._node_id = node_id
        self._suppliers = suppliers
        self._stored = stored
        self._tell = tell
        self._waiters: list[Waiter] = []
        self._object: RootObject | None = None
        self._partial: Partial | None = None
        self._assembly: Assembly | None = None
        self._schedule = ChunkSchedule(0)
        self._using: str | None = None
        self._cancel = trio.CancelScope()
        self._joined = trio.Event()
        self._finished = False

    # --- those who wait ---------------------------------------------------------------

    async def wait_for(self, byte_range: tuple[int, int] | None) -> tuple[int | None, int]:
        """(descriptor, size) once the range is on disk, or (None, size) once the blob is stored.

        The descriptor is the caller's to close. When the last who waits gives up, the
        fetch is cancelled; what was verified stays for the next one.
        """
        waiter = Waiter(byte_range)
        self._waiters.append(waiter)
        self._joined.set()
        try:
            self._enter(waiter)
            await waiter.done.wait()
        except trio.Cancelled:
            _close(waiter)
            raise
        finally:
            self._leave(waiter)
        if waiter.error is not None:
            # A copy: many may wait, and a traceback belongs to one of them.
            raise type(waiter.error)(str(waiter.error), hint=waiter.error.hint)
        assert self._object is not None
        return waiter.descriptor, self._object.size

    def _enter(self, waiter: Waiter) -> None:
        if self._object is None or waiter.want is not None or waiter.done.is_set():
            return
        size, chunks = self._object.size, range(self._object.chunk_count)
        if waiter.byte_range is not None:
            start, end = waiter.byte_range
            if not 0 <= start <= end <= size:
                waiter.fail(
                    InvalidRangeError(f"bytes {start} to {end} are not in a file of {size}")
                )
                return
            chunks = range(start // CHUNK_BYTES, -(-end // CHUNK_BYTES))
        waiter.want = self._schedule.want(chunks)
        self._notify()

    def _leave(self, waiter: Waiter) -> None:
        self._waiters.remove(waiter)
        if waiter.want is not None:
            self._schedule.unwant(waiter.want)
        # Who has what it waited for may soon want the next range: then the fetch lingers.
        if not self._waiters and not waiter.done.is_set():
            self.closing = True
            self._cancel.cancel()

    def _notify(self) -> None:
        """Let those go on whose range is on disk; the whole blob is told by `_finish`."""
        for waiter in self._waiters:
            ready = waiter.want is not None and waiter.want.satisfied and not waiter.done.is_set()
            if ready and waiter.byte_range is not None and self._partial is not None:
                try:
                    waiter.descriptor = self._partial.open_data()
                    waiter.done.set()
                except KacheryError as error:
                    waiter.fail(error)

    @property
    def _whole_wanted(self) -> bool:
        return any(w.byte_range is None and not w.done.is_set() for w in self._waiters)

    def state(self) -> State:
        held = min(
            self._schedule.held_count * CHUNK_BYTES, self._object.size if self._object else 0
        )
        sources = (self._using,) if self._using else ()
        return State(held, self._object.size if self._object else None, sources)

    # --- the work -----------------------------------------------------------------------

    async def run(self) -> None:
        """Work until nobody waits. Every waiter gets an answer; only cancellation is raised."""
        try:
            with self._cancel:
                await self._fetch()
        except KacheryError as error:
            self._fail_all(error)
        except Exception:
            log.exception("fetching %s failed", self.content)
            self._fail_all(LoadFileError("internal error while loading", hint="this is a bug"))
            raise
        finally:
            self.closing = True
            # Nobody waits any more, unless the node stops.
            self._fail_all(LoadFileError("this node is stopping", hint="what arrived is kept"))
            with trio.CancelScope(shield=True):
                await self._put_down()
            self.ended.set()

    async def _fetch(self) -> None:
        while await self._is_wanted():
            source = await self._suppliers.next()
            self._using = source.name
            try:
                await self._take_from(source)
            except UriInconsistentError:
                # No fault of who served these bytes: it is root and SHA-1 that do not agree.
                raise
            except FAULTS as error:
                self._suppliers.failed(source, error)
            finally:
                self._schedule.source_left(source.node)
                self._using = None
            if self._whole_wanted and self._object is not None and self._schedule.satisfied:
                await self._finish()

    async def _is_wanted(self) -> bool:
        """True if somebody waits; when all have theirs, the next who comes is waited for.

        A reader of many ranges would otherwise have the partial hashed again for each.
        """
        while all(waiter.done.is_set() for waiter in self._waiters):
            if self._finished:
                return False
            self._joined = trio.Event()
            with trio.move_on_after(FETCH_LINGER_S) as lingering:
                await self._joined.wait()
            if lingering.cancelled_caught:
                return False
        return True

    async def _take_from(self, source: Source) -> None:
        """Everything that is wanted, as far as this source gives it."""
        if self._object is None:
            await self._begin(source)
        bulk = await source.bulk()
        if bulk is not None:
            await self._pull(source, bulk)
            return
        await source.pull(
            self.content,
            self.root,
            lambda: self._schedule.next_for(source.node),
            self._deliver,
        )

    async def _pull(self, source: Source, bulk: BulkConnection) -> None:
        """Everything that is wanted, by a few requests at a time on a bulk connection."""
        with one_error():
            async with trio.open_nursery() as nursery:
                for _ in range(BULK_PIPELINED):
                    nursery.start_soon(self._pull_ranges, source, bulk)

    async def _pull_ranges(self, source: Source, bulk: BulkConnection) -> None:
        assert self._assembly is not None
        take, token = self._assembly.take, trio.lowlevel.current_trio_token()

        def sink(piece: Piece) -> None:
            """Called in the connection's thread, which goes on receiving."""
            number = piece.number
            take(piece)
            token.run_sync_soon(self._arrived, source, number)

        while (chunks := self._schedule.next_for(source.node, BULK_RANGE_CHUNKS)) is not None:
            await self._see_pages(source, chunks)
            wanted = BulkRange(
                source.channel, self.content.raw, self.root.raw, chunks.start, len(chunks)
            )
            await bulk.fetch(wanted, sink, urgent=not self._whole_wanted)

    async def _begin(self, source: Source) -> None:
        """Learn the root object, open the partial, and see what an earlier try left there."""
        encoded = await source.root_object(self.content, self.root)
        if chunk_hash(encoded) != self.root.raw:
            raise VerificationError("sent a root object that does not match the root")
        found = RootObject.decode(encoded)
        if found.content != self.content:
            raise UriInconsistentError(
                f"root {self.root} belongs to sha1://{found.content}, not to sha1://{self.content}",
                hint="ask whoever gave you the URI for a correct one",
            )
        self._partial = await trio.to_thread.run_sync(
            lambda: Partial.open(
                self._blobs.directory,
                self._node_id,
                found,
                reserve_bytes=self._blobs.reserve_bytes,
            )
        )
        self._object = found
        self._schedule = ChunkSchedule(found.chunk_count)
        await self._resume()
        self._assembly = Assembly(self._partial)
        for waiter in self._waiters:
            self._enter(waiter)
        self._tell(self.state())

    async def _resume(self) -> None:
        """Hash what an earlier try left, in pieces: it may be a lot, and we may be told to stop."""
        assert self._partial is not None
        left = self._partial.verified_chunks()
        while numbers := await trio.to_thread.run_sync(
            lambda: list(itertools.islice(left, _RESUME_CHUNKS))
        ):
            for number in numbers:
                self._schedule.hold(number)
            self._notify()

    async def _deliver(self, source: Source, number: int, data: bytes) -> None:
        """One chunk has come over a data stream."""
        assert self._assembly is not None
        await self._see_pages(source, range(number, number + 1))
        await trio.to_thread.run_sync(self._assembly.take, Copy(number, data))
        self._arrived(source, number)

    async def _see_pages(self, source: Source, chunks: range) -> None:
        """The pages that these chunks are verified by are in the partial when this returns."""
        assert self._object is not None
        assert self._partial is not None
        for page_number in range(page_of(chunks[0])[0], page_of(chunks[-1])[0] + 1):
            if not self._partial.has_page(page_number):
                page = await source.page(self.content, self.root, page_number)
                verify_page(self._object, page_number, page)
                await trio.to_thread.run_sync(self._partial.write_page, page_number, page)

    def _arrived(self, source: Source, number: int) -> None:
        """A verified chunk is on disk."""
        self._schedule.received(source.node, number)
        self._suppliers.progressed()
        self._notify()
        self._tell(self.state())

    async def _finish(self) -> None:
        """All chunks are here: check the SHA-1, make the partial the blob."""
        assert self._assembly is not None
        sha1 = await trio.to_thread.run_sync(self._assembly.finish)
        self._assembly = None
        # Not to be stopped half-way: the partial would be nobody's, or the blob without a grant.
        with trio.CancelScope(shield=True):
            partial, self._partial = self._partial, None
            assert partial is not None
            await trio.to_thread.run_sync(self._adopt, partial, sha1)
            await self._stored()
            opened = await trio.to_thread.run_sync(self._blobs.open_verified, self.content)
        self._finished = True
        with opened:
            for waiter in self._waiters:
                if waiter.byte_range is not None and not waiter.done.is_set():
                    waiter.descriptor = os.dup(opened.descriptor)
                waiter.done.set()

    def _adopt(self, partial: Partial, sha1: str) -> None:
        if sha1 != self.content:
            partial.discard()
            raise UriInconsistentError(
                f"the bytes with root {self.root} do not have the SHA-1 {self.content}",
                hint="ask whoever gave you the URI for a correct one",
            )
        try:
            pages = tuple(partial.page(n) for n in range(partial.root_object.page_count))
            self._blobs.adopt_partial(partial, Manifest(partial.root_object, pages))
        except VerificationError:
            # These bytes are not to become the blob: with others of this SHA-1 they collide.
            partial.discard()
            raise
        finally:
            partial.close()

    async def _put_down(self) -> None:
        if self._assembly is not None:
            await trio.to_thread.run_sync(self._assembly.close)
        if self._partial is not None:
            partial, self._partial = self._partial, None
            await trio.to_thread.run_sync(partial.close)

    def _fail_all(self, error: KacheryError) -> None:
        for waiter in self._waiters:
            waiter.fail(error)


def _close(waiter: Waiter) -> None:
    if waiter.descriptor is not None:
        os.close(waiter.descriptor)
        waiter.descriptor = None
