"""A bucket as one more source of chunks: several ranges at a time, handed on in order."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator

import trio

from kachery_p2p.bucket.layout import page_span, root_object_span
from kachery_p2p.bucket.reading import Readable
from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.manifests import chunk_length
from kachery_p2p.errors import (
    BucketAnswerError,
    BucketBusyError,
    BucketError,
    PeerBusyError,
    PeerError,
    PeerGoneError,
    PeerRefusedError,
    PeerTimeoutError,
)
from kachery_p2p.limits import BUCKET_READS_MAX, CHUNK_BYTES, REQUEST_S_MAX, STALL_S_MAX
from kachery_p2p.network.bulk_asking import BulkConnection
from kachery_p2p.network.session import one_error
from kachery_p2p.transfer.buckets import Buckets, Kept
from kachery_p2p.transfer.sources import Deliver


class BucketSource:
    """One bucket, for one content of which it told a root."""

    def __init__(self, kept: Kept, buckets: Buckets) -> None:
        self._place = kept.place
        self._channel = kept.channel
        self._size = kept.meta.size
        self._buckets = buckets

    @property
    def name(self) -> str:
        return self._place.name

    @property
    def node(self) -> str:
        return self._place.node

    @property
    def channel(self) -> str:
        return self._channel

    async def root_object(self, content: ContentHash, root: Root) -> bytes:
        start, end = root_object_span(self._size)
        return await self._tables(content, root, start, end)

    async def page(self, content: ContentHash, root: Root, number: int) -> bytes:
        start, end = page_span(self._size, number)
        return await self._tables(content, root, start, end)

    async def bulk(self) -> BulkConnection | None:
        """None: a bucket has no bulk plane."""
        return None

    async def pull(
        self,
        content: ContentHash,
        root: Root,
        next_range: Callable[[], range | None],
        deliver: Deliver,
    ) -> None:
        """As of any source; up to BUCKET_READS_MAX ranges are under way."""
        reading: deque[_Reading] = deque()
        with one_error():
            async with trio.open_nursery() as nursery:
                while True:
                    while len(reading) < BUCKET_READS_MAX:
                        asked = next_range()
                        if asked is None:
                            break
                        reading.append(_Reading(self._place, content, self._size, asked))
                        nursery.start_soon(reading[-1].run, self._buckets)
                    if not reading:
                        return
                    first = reading.popleft()
                    for number in first.chunks:
                        await deliver(self, number, await self._chunk(first, content))

    async def _chunk(self, reading: _Reading, content: ContentHash) -> bytes:
        try:
            data = await reading.next_chunk()
        except BucketError as error:
            self._buckets.forget(self._place, content)
            raise as_peer_error(error) from None
        self._buckets.worked(self._place)
        return data

    async def _tables(self, content: ContentHash, root: Root, start: int, end: int) -> bytes:
        try:
            with trio.fail_after(REQUEST_S_MAX):
                return await self._buckets.run(lambda: self._place.read_tables(root, start, end))
        except trio.TooSlowError:
            raise PeerTimeoutError("did not answer in time") from None
        except BucketError as error:
            self._buckets.forget(self._place, content)
            raise as_peer_error(error) from None


def as_peer_error(error: BucketError) -> PeerError:
    """A bucket's fault as that of any source, which other sources make good."""
    kind = PeerGoneError
    if isinstance(error, BucketBusyError):
        kind = PeerBusyError  # type: ignore[assignment]
    elif isinstance(error, BucketAnswerError):
        kind = PeerRefusedError  # type: ignore[assignment]
    return kind(str(error), hint=error.hint)


class _Reading:
    """One range on its way: a thread reads, trio takes chunk after chunk."""

    def __init__(self, place: Readable, content: ContentHash, size: int, chunks: range) -> None:
        self.chunks = chunks
        self._place = place
        self._content = content
        self._size = size
        self._ready: deque[bytes] = deque()
        self._error: BucketError | None = None
        self._given_up = False
        self._changed = trio.Event()
        # When something came last, on a clock that the thread can read; waiting for a thread is
        # nobody's fault.
        self._moved_at = math.inf

    async def run(self, buckets: Buckets) -> None:
        token = trio.lowlevel.current_trio_token()

        def hand_on(chunk: bytes) -> None:
            self._ready.append(chunk)
            self._tell()

        def read() -> None:
            self._moved_at = time.monotonic()
            # A node that stops does not wait for the thread.
            with contextlib.suppress(trio.RunFinishedError):
                for chunk in self._chunks():
                    token.run_sync_soon(hand_on, chunk)

        try:
            await buckets.run(read)
        except BucketError as error:
            self._error = error
            self._tell()
        finally:
            self._given_up = True

    async def next_chunk(self) -> bytes:
        while not self._ready:
            if self._error is not None:
                raise self._error
            changed = self._changed
            with trio.move_on_after(STALL_S_MAX):
                await changed.wait()
            # The server's retries begin anew, once.
            if time.monotonic() - self._moved_at > 2 * STALL_S_MAX:
                raise PeerTimeoutError(f"sent nearly nothing for {2 * STALL_S_MAX:g} s")
        return self._ready.popleft()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _chunks(self) -> Iterator[bytes]:
        start = self.chunks.start * CHUNK_BYTES
        end = min(self.chunks.stop * CHUNK_BYTES, self._size)
        lengths = iter([chunk_length(self._size, number) for number in self.chunks])
        length, buffer = next(lengths), bytearray()
        for piece in self._place.read(self._content, start, end):
            self._moved_at = time.monotonic()
            if self._given_up:
                return
            buffer += piece
            while len(buffer) >= length:
                yield bytes(buffer[:length])
                del buffer[:length]
                length = next(lengths, end + 1)
