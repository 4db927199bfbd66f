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

import trio

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.manifests import (
    Manifest,
    RootObject,
    chunk_hash,
)
from kachery_p2p.errors import (
    InvalidRangeError,
    KacheryError,
    LoadFileError,
    UriInconsistentError,
    VerificationError,
)
from kachery_p2p.limits import (
    CHUNK_BYTES,
    FETCH_LINGER_S,
    SOURCES_LOOK_S,
    SOURCES_MAX,
)
from kachery_p2p.network.session import one_error
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.objects import Opened
from kachery_p2p.store.partials import Partial
from kachery_p2p.transfer.assembly import Assembly
from kachery_p2p.transfer.pulling import Pulling
from kachery_p2p.transfer.schedule import ChunkSchedule
from kachery_p2p.transfer.small import fetch_small
from kachery_p2p.transfer.sources import Source
from kachery_p2p.transfer.suppliers import FAULTS, Suppliers
from kachery_p2p.transfer.waiters import State, Waiter

log = logging.getLogger(__name__)

# Chunks that are verified in one go when a download goes on: 8 MiB take 5 ms.
_RESUME_CHUNKS = 8


class Fetch:
    """Fetch one blob from all of one channel's sources at once."""

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
        is_small: bool = False,
    ) -> None:
        """`is_small`: somebody says that it has one chunk."""
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
        self._pulling: Pulling | None = None
        self._schedule = ChunkSchedule(0)
        # The sources at work, by node.
        self._active: dict[str, Source] = {}
        self._changed = trio.Event()
        self._cancel = trio.CancelScope()
        self._joined = trio.Event()
        self._is_small = is_small
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
            waiter.drop_descriptor()
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
        sources = tuple(source.name for source in self._active.values())
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
            with one_error():
                await self._gather()
            if self._whole_wanted and not self._finished:
                await self._finish()

    async def _gather(self) -> None:
        """All that is wanted, from as many sources as there are."""
        async with trio.open_nursery() as nursery:
            looked_at = trio.current_time()
            while not self._has_all:
                source = await self._recruit()
                if source is not None:
                    self._active[source.node] = source
                    nursery.start_soon(self._take_from, source)
                    continue
                if not self._active:
                    # Who was to begin could not, or brought everything.
                    continue
                with trio.move_on_after(SOURCES_LOOK_S):
                    await self._changed.wait()
                if trio.current_time() - looked_at >= SOURCES_LOOK_S:
                    looked_at = trio.current_time()
                    nursery.start_soon(self._suppliers.look)
            # What slower sources still owe is here already.
            nursery.cancel_scope.cancel()

    @property
    def _has_all(self) -> bool:
        return self._finished or (self._object is not None and self._schedule.satisfied)

    async def _recruit(self) -> Source | None:
        """A source that is not at work yet; None if nobody more is to be had just now.

        With nobody at work, the next one is waited for, and begins. Raises
        AllProvidersFailedError.
        """
        if self._active:
            full = len(self._active) >= SOURCES_MAX
            return None if full else self._suppliers.another(self._active)
        source = await self._suppliers.next()
        if self._object is None:
            self._active[source.node] = source
            try:
                if self._is_small:
                    await self._take_small(source)
                    return None
                await self._begin(source)
            except UriInconsistentError:
                # No fault of who served these bytes: it is root and SHA-1 that do not agree.
                raise
            except FAULTS as error:
                self._suppliers.failed(source, error)
                return None
            finally:
                del self._active[source.node]
        return source

    async def _take_small(self, source: Source) -> None:
        """The whole blob, in one piece."""
        # Whoever said so may have lied: the next attempt, if there must be one, goes the long way.
        self._is_small = False
        data, manifest = await fetch_small(source, self.content, self.root)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._blobs.put_bytes, data)
            await self._stored()
            opened = await trio.to_thread.run_sync(self._blobs.open_verified, self.content)
        self._object = manifest.root_object
        self._schedule = ChunkSchedule(1)
        self._schedule.hold(0)
        for waiter in self._waiters:
            self._enter(waiter)
        self._hand_out(opened)
        self._suppliers.progressed()
        self._tell(self.state())

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
        """What this source gives of all that is wanted, until there is nothing more to want."""
        assert self._pulling is not None
        try:
            await self._pulling.take_from(source)
        except UriInconsistentError:
            raise
        except FAULTS as error:
            self._suppliers.failed(source, error)
        finally:
            self._active.pop(source.node, None)
            self._schedule_changed()

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
        self._pulling = Pulling(
            self._schedule, self._assembly, self._arrived, is_urgent=lambda: not self._whole_wanted
        )
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

    def _arrived(self) -> None:
        """A verified chunk is on disk."""
        self._suppliers.progressed()
        self._notify()
        self._schedule_changed()
        self._tell(self.state())

    def _schedule_changed(self) -> None:
        """Wake whoever decides what to ask for next, and of whom."""
        self._changed.set()
        self._changed = trio.Event()
        if self._pulling is not None:
            self._pulling.look_again()

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
        self._hand_out(opened)

    def _hand_out(self, opened: Opened) -> None:
        """The blob is in the store: everybody who waits gets it."""
        self._finished = self.closing = True
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
