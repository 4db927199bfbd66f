"""One blob on its way into the store: a partial on disk, a schedule, and who waits for it.

The root is known before a fetch begins (from the URI, or as somebody's claim), so that
every page and chunk is verified as it arrives and a source that lies is found at its
first wrong byte. What only the whole blob can show is whether root and SHA-1 name the
same bytes: that is checked last, and until then nothing stands under the content's name.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Awaitable, Callable

import trio

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.manifests import RootObject, chunk_length
from kachery_p2p.errors import InvalidRangeError, KacheryError, LoadFileError, UriInconsistentError
from kachery_p2p.limits import CREW_LOOK_S, FETCH_LINGER_S, SOURCES_MAX
from kachery_p2p.network.failures import one_error
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.objects import Opened
from kachery_p2p.store.partials import Partial
from kachery_p2p.transfer.assembly import Assembly
from kachery_p2p.transfer.crew import Crew
from kachery_p2p.transfer.partial_serving import Offers, PassingOn
from kachery_p2p.transfer.progress import (
    FETCHING,
    FINISHING,
    HASHING,
    Snapshot,
    TransferProgress,
    state_after,
)
from kachery_p2p.transfer.pulling import Pulling
from kachery_p2p.transfer.schedule import ChunkSchedule
from kachery_p2p.transfer.small import comes_whole, fetch_small
from kachery_p2p.transfer.sources import Source
from kachery_p2p.transfer.suppliers import FAULTS, Suppliers
from kachery_p2p.transfer.verdicts import adopt, ask_root_object
from kachery_p2p.transfer.waiters import Waiter

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
        tell: Callable[[], None],
        is_small: bool = False,
        passing_on: PassingOn | None = None,
    ) -> None:
        """`is_small`: it is said to have one chunk. `tell` is called for every chunk, `stored` in
        the end, unless some of it came in another channel.
        """
        self.content = content
        self.root = root
        self.ended = trio.Event()
        self.closing = False
        self.progress = TransferProgress()
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
        self._crew = Crew()
        self._changed = trio.Event()
        self._cancel = trio.CancelScope()
        self._joined = trio.Event()
        self._is_small = is_small
        self._passing_on = passing_on or PassingOn(Offers(), "")
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
        waiter.check()
        assert self._object is not None
        return waiter.descriptor, self._object.size

    def _enter(self, waiter: Waiter) -> None:
        if self._object is None or waiter.want is not None or waiter.done.is_set():
            return
        try:
            waiter.want = self._schedule.want(waiter.chunks_of(self._object))
            self._pass_on()
            self._notify()
        except InvalidRangeError as error:
            waiter.fail(error)

    def _leave(self, waiter: Waiter) -> None:
        self._waiters.remove(waiter)
        if waiter.want is not None:
            self._schedule.unwant(waiter.want)
        self._pass_on()
        # Who has what it waited for may soon want the next range: then the fetch lingers.
        if not self._waiters and not waiter.done.is_set():
            self.closing = True
            self._cancel.cancel()

    def _pass_on(self) -> None:
        """Let other members have what is verified, while somebody here wants all of it."""
        # Not before what an earlier try left was hashed again: until then the bitmap is a hint.
        if self._partial is not None and self._pulling is not None:
            self._passing_on.update(self._partial, self._whole_wanted)

    def _notify(self) -> None:
        """Let those go on whose range is on disk; the whole blob is told by `_finish`."""
        for waiter in self._waiters:
            if self._partial is not None and waiter.has_its_range:
                waiter.take_part(self._partial)

    @property
    def _whole_wanted(self) -> bool:
        return any(w.byte_range is None and not w.done.is_set() for w in self._waiters)

    def snapshot(self, now: float, byte_range: tuple[int, int] | None = None) -> Snapshot:
        """How far it is; for whoever waits for that range, how far with the range."""
        shown = self.progress.snapshot(now)
        if byte_range is None or self._object is None:
            return shown
        start, end = byte_range
        end = min(end, self._object.size)
        return shown.of_part(self._schedule.held_bytes(start, end), max(end - start, 0))

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
        """All that is wanted, from as many sources as there are, also those that have rested."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._suppliers.look_for_ever, self._schedule_changed)
            while not (self._finished or (self._object and self._schedule.satisfied)):
                source = await self._recruit()
                if source is not None:
                    if not self._active:
                        self._crew.begins(self.progress.received, trio.current_time())
                    self._at_work(source)
                    nursery.start_soon(self._take_from, source)
                    continue
                if not self._active:
                    # Who was to begin could not, or brought everything.
                    continue
                self._crew.has_parts = self._suppliers.has_parts
                came, now = self.progress.received, trio.current_time()
                if self._crew.look(self._active, self._schedule.delivered_bytes, came, now):
                    continue
                with trio.move_on_after(CREW_LOOK_S):
                    await self._changed.wait()
            # What slower sources still owe is here already.
            nursery.cancel_scope.cancel()

    async def _recruit(self) -> Source | None:
        """A source that is not at work yet; None if nobody more is to be had just now.

        With nobody at work, the next one is waited for. Raises AllProvidersFailedError.
        """
        if self._active:
            full = len(self._active) >= SOURCES_MAX or not self._crew.asks_all
            return None if full else self._suppliers.another(self._active)
        source = await self._suppliers.next()
        if self._object is None:
            self._at_work(source)
            try:
                if comes_whole(source, self._is_small):
                    await self._take_small(source)
                    return None
                await self._begin(source)
            except UriInconsistentError:
                # No fault of who served these bytes: it is root and SHA-1 that do not agree.
                raise
            except FAULTS as error:
                self._failed(source, error)
                return None
            finally:
                self._at_rest(source)
        return source

    def _at_work(self, source: Source) -> None:
        self._active[source.node] = source
        self.progress.joined(source.node, source.name, source.channel, trio.current_time())

    def _at_rest(self, source: Source) -> None:
        self._active.pop(source.node, None)
        self.progress.left(source.node)

    def _failed(self, source: Source, error: KacheryError) -> None:
        self._suppliers.failed(source, error)
        self.progress.left(source.node, state_after(error))

    async def _take_small(self, source: Source) -> None:
        """The whole blob, in one piece."""
        # Whoever said so may have lied: the next attempt, if there must be one, goes the long way.
        self._is_small = False
        self.progress.entered(FETCHING)
        data, manifest = await fetch_small(source, self.content, self.root)
        self.progress.size = len(data)
        self.progress.came(source.node, len(data), trio.current_time(), needed=True)
        self.progress.entered(FINISHING)
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
        self._tell()

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
            self._failed(source, error)
        finally:
            self._at_rest(source)
            self._schedule_changed()
            self._tell()

    async def _begin(self, source: Source) -> None:
        """Learn the root object, open the partial, and see what an earlier try left there."""
        found = await ask_root_object(source, self.content, self.root)
        store, reserve_bytes = self._blobs.directory, self._blobs.reserve_bytes
        self._partial = await trio.to_thread.run_sync(
            Partial.open, store, self._node_id, found, reserve_bytes, self._passing_on.channel
        )
        self._object = found
        self._schedule = ChunkSchedule(found.chunk_count, self._node_id)
        self.progress.size = found.size
        await self._resume()
        self._assembly = Assembly(self._partial)
        self._pulling = Pulling(
            self._schedule,
            self._assembly,
            self.progress,
            self._arrived,
            crew=self._crew,
            is_urgent=lambda chunks: any(waiter.reads(chunks) for waiter in self._waiters),
            lied=self._suppliers.lied,
        )
        for waiter in self._waiters:
            self._enter(waiter)
        self._pass_on()
        self.progress.entered(FETCHING)
        self._tell()

    async def _resume(self) -> None:
        """Hash what an earlier try left, in pieces: it may be a lot, and we may be told to stop."""
        assert self._partial is not None
        size = self._partial.root_object.size
        self.progress.entered(HASHING)
        left = self._partial.verified_chunks()
        while numbers := await trio.to_thread.run_sync(
            lambda: list(itertools.islice(left, _RESUME_CHUNKS))
        ):
            for number in numbers:
                self._schedule.hold(number)
                self.progress.found(chunk_length(size, number))
            self._notify()
            self._tell()

    def _arrived(self) -> None:
        """A verified chunk is on disk."""
        self._suppliers.progressed()
        self._notify()
        if self._schedule.satisfied:
            self._schedule_changed()
        elif self._pulling is not None:
            self._pulling.look_again()
        self._tell()

    def _schedule_changed(self) -> None:
        """Wake whoever decides what to ask for next, and of whom."""
        self._changed.set()
        self._changed = trio.Event()
        if self._pulling is not None:
            self._pulling.look_again()

    async def _finish(self) -> None:
        """All chunks are here: check the SHA-1, make the partial the blob."""
        assert self._assembly is not None
        self.progress.entered(FINISHING)
        self._tell()
        sha1 = await trio.to_thread.run_sync(self._assembly.finish)
        self._assembly = None
        # Not to be stopped half-way: the partial would be nobody's, or the blob without a grant.
        with trio.CancelScope(shield=True):
            partial, self._partial = self._partial, None
            assert partial is not None
            await trio.to_thread.run_sync(adopt, self._blobs, partial, sha1)
            if partial.is_of_channel:
                await self._stored()
            else:
                log.info("%s is not shared: parts of it came in another channel", self.content)
            self._passing_on.end(stored=True)
            opened = await trio.to_thread.run_sync(self._blobs.open_verified, self.content)
        self._hand_out(opened)

    def _hand_out(self, opened: Opened) -> None:
        """The blob is in the store: everybody who waits gets it."""
        self._finished = self.closing = True
        with opened:
            for waiter in self._waiters:
                waiter.take_blob(opened)

    async def _put_down(self) -> None:
        self._passing_on.end(stored=False)
        if self._assembly is not None:
            await trio.to_thread.run_sync(self._assembly.close)
        if self._partial is not None:
            partial, self._partial = self._partial, None
            await trio.to_thread.run_sync(partial.close)

    def _fail_all(self, error: KacheryError) -> None:
        for waiter in self._waiters:
            waiter.fail(error)
