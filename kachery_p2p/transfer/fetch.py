"""One blob on its way into the store: a partial on disk, a schedule, and who waits for it.

The root is known before a fetch begins (from the URI, or as somebody's claim), so that
every page and chunk is verified as it arrives and a source that lies is found at its
first wrong byte. What only the whole blob can show is whether root and SHA-1 name the
same bytes: that is checked last, and until then nothing stands under the content's name.
"""

from __future__ import annotations

import hashlib
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
    chunk_length,
    page_of,
    verify_chunk,
    verify_page,
)
from kachery_p2p.errors import (
    AllProvidersFailedError,
    DataFormatError,
    InvalidRangeError,
    KacheryError,
    LoadFileError,
    PeerBusyError,
    PeerError,
    PeerGoneError,
    PeerTimeoutError,
    UriInconsistentError,
    VerificationError,
)
from kachery_p2p.limits import CHUNK_BYTES, SOURCE_RETURN_S_MAX
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.partials import Partial
from kachery_p2p.transfer.schedule import ChunkSchedule, Want
from kachery_p2p.transfer.sources import Source

log = logging.getLogger(__name__)

# Faults after which the same source may be used again: it went away, it did not misbehave.
_TRANSIENT = (PeerGoneError, PeerTimeoutError, PeerBusyError)
# Chunks read back from the page cache for SHA-1 in one go: 8 MiB are hashed in 5 ms.
_CATCH_UP_CHUNKS = 8

FindSources = Callable[[], Awaitable[list[Source]]]
WaitForSources = Callable[[float], Awaitable[None]]


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
        find_sources: FindSources,
        wait_for_sources: WaitForSources,
        stored: Callable[[], Awaitable[None]],
        tell: Callable[[State], None],
    ) -> None:
        self.content = content
        self.root = root
        self.ended = trio.Event()
        self.closing = False
        self.faults: dict[str, str] = {}
        self.liars: set[str] = set()
        self._blobs = blobs
        self._node_id = node_id
        self._find_sources = find_sources
        self._wait_for_sources = wait_for_sources
        self._stored = stored
        self._tell = tell
        self._waiters: list[Waiter] = []
        self._object: RootObject | None = None
        self._partial: Partial | None = None
        self._schedule = ChunkSchedule(0)
        self._sha1 = hashlib.sha1(usedforsecurity=False)
        self._hashed = 0
        self._using: str | None = None
        self._cancel = trio.CancelScope()
        self._failed_since: float | None = None

    # --- those who wait ---------------------------------------------------------------

    async def wait_for(self, byte_range: tuple[int, int] | None) -> tuple[int | None, int]:
        """(descriptor, size) once the range is on disk, or (None, size) once the blob is stored.

        The descriptor is the caller's to close. When nobody waits any longer the
        fetch is cancelled; what was verified stays for the next one.
        """
        waiter = Waiter(byte_range)
        self._waiters.append(waiter)
        try:
            self._enter(waiter)
            await waiter.done.wait()
        except trio.Cancelled:
            _close(waiter)
            raise
        finally:
            self._leave(waiter)
        if waiter.error is not None:
            raise type(waiter.error)(str(waiter.error), hint=waiter.error.hint)
        assert self._object is not None
        return waiter.descriptor, self._object.size

    def _enter(self, waiter: Waiter) -> None:
        if self._object is None or waiter.done.is_set():
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
        if not self._waiters:
            self.closing = True
            self._cancel.cancel()

    def _notify(self) -> None:
        """Let those go on whose range is on disk; the whole blob is told by `_finish`."""
        for waiter in self._waiters:
            ready = waiter.want is not None and waiter.want.satisfied and not waiter.done.is_set()
            if ready and waiter.byte_range is not None and self._partial is not None:
                waiter.descriptor = self._partial.open_data()
                waiter.done.set()

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
            # For whoever joined between the last chunk and here.
            self._fail_all(PeerGoneError("the transfer ended"))
            with trio.CancelScope(shield=True):
                await self._put_down()
            self.ended.set()

    async def _fetch(self) -> None:
        while True:
            source = await self._next_source()
            self._using = source.name
            try:
                if self._object is None:
                    await self._begin(source)
                await source.pull(self.content, self.root, self._request_for(source), self._deliver)
                if self._whole_wanted and self._schedule.satisfied:
                    await self._finish()
                if all(w.done.is_set() for w in self._waiters):
                    return
            except _TRANSIENT as error:
                self._note_fault(source, error)
            except (PeerError, VerificationError, DataFormatError) as error:
                if isinstance(error, UriInconsistentError):
                    raise
                self._note_fault(source, error)
                self.liars.add(source.name)
            finally:
                self._schedule.source_left(source.name)
                self._using = None

    async def _next_source(self) -> Source:
        """A source that has not misbehaved; waits a while for one to come back."""
        while True:
            fresh = [s for s in await self._find_sources() if s.name not in self.liars]
            # Who failed least recently, if anyone failed: dicts keep the order of failures.
            order = list(self.faults)
            fresh.sort(key=lambda s: order.index(s.name) + 1 if s.name in self.faults else 0)
            patience_s = self._patience_s()
            if fresh and patience_s > 0:
                return fresh[0]
            if patience_s <= 0 or not (self.faults.keys() - self.liars):
                raise self._nobody_delivers()
            await self._wait_for_sources(patience_s)

    def _patience_s(self) -> float:
        """How much longer sources that went away are waited for: counted from the last progress."""
        if self._failed_since is None:
            return SOURCE_RETURN_S_MAX
        return self._failed_since + SOURCE_RETURN_S_MAX - trio.current_time()

    def _note_fault(self, source: Source, error: KacheryError) -> None:
        self.faults.pop(source.name, None)
        self.faults[source.name] = str(error)
        if self._failed_since is None:
            self._failed_since = trio.current_time()
        log.warning("source %s failed for %s: %s", source.name, self.content, error)

    def _nobody_delivers(self) -> KacheryError:
        told = "; ".join(f"{name}: {why}" for name, why in self.faults.items())
        return AllProvidersFailedError(
            f"no provider delivered sha1://{self.content} ({told or 'all went away'})",
            hint="what arrived is kept: run it again when a provider is back",
        )

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
        await trio.to_thread.run_sync(self._resume)
        for waiter in self._waiters:
            self._enter(waiter)
        self._tell(self.state())

    def _resume(self) -> None:
        assert self._partial is not None
        for number in self._partial.verified_chunks():
            self._schedule.hold(number)

    def _request_for(self, source: Source) -> Callable[[], range | None]:
        return lambda: self._schedule.next_for(source.name)

    async def _deliver(self, source: Source, number: int, data: bytes) -> None:
        """One chunk has arrived: verify, write and hash it in a thread, then tell."""
        assert self._object is not None
        assert self._partial is not None
        if len(data) != chunk_length(self._object.size, number):
            raise VerificationError(f"sent {len(data)} bytes as chunk {number}")
        page_number, _ = page_of(number)
        if not self._partial.has_page(page_number):
            page = await source.page(self.content, self.root, page_number)
            verify_page(self._object, page_number, page)
            await trio.to_thread.run_sync(self._partial.write_page, page_number, page)
        await trio.to_thread.run_sync(self._accept, number, data)
        self._schedule.received(source.name, number)
        self._failed_since = None
        self._notify()
        self._tell(self.state())

    def _accept(self, number: int, data: bytes) -> None:
        assert self._partial is not None
        page_number, position = page_of(number)
        verify_chunk(self._partial.page(page_number), position, data)
        self._partial.write_chunk(number, data)
        if number == self._hashed:
            self._sha1.update(data)
            self._hashed += 1
        self._catch_up()

    def _catch_up(self) -> None:
        """Hash what was here before its turn, from the page cache, a bounded piece at a time."""
        assert self._partial is not None
        for _ in range(_CATCH_UP_CHUNKS):
            if not self._schedule.holds(self._hashed):
                return
            self._sha1.update(self._partial.read_chunk(self._hashed))
            self._hashed += 1

    async def _finish(self) -> None:
        """All chunks are here: check the SHA-1, make the partial the blob."""
        assert self._object is not None
        assert self._partial is not None
        while self._hashed < self._object.chunk_count:
            await trio.to_thread.run_sync(self._catch_up)
        partial, self._partial = self._partial, None
        if self._sha1.hexdigest() != self.content:
            await trio.to_thread.run_sync(partial.discard)
            raise UriInconsistentError(
                f"the bytes with root {self.root} do not have the SHA-1 {self.content}",
                hint="ask whoever gave you the URI for a correct one",
            )
        pages = tuple(partial.page(n) for n in range(self._object.page_count))
        manifest = Manifest(self._object, pages)
        await trio.to_thread.run_sync(self._blobs.adopt_partial, partial, manifest)
        await self._stored()
        for waiter in self._waiters:
            if waiter.byte_range is not None and not waiter.done.is_set():
                waiter.descriptor = self._blobs.open_verified(self.content).descriptor
            waiter.done.set()

    async def _put_down(self) -> None:
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
