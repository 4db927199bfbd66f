"""A bucket as one more source of chunks: one range or several at a time, a thread each.

The thread verifies and writes what it reads, as that of a bulk connection does; trio is told
of several chunks at once.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator

import trio

from kachery_p2p.bucket.layout import key_of, page_span, root_object_span, tables_key
from kachery_p2p.bucket.reading import OF_WORDS, Readable, Whose
from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.manifests import RootObject, chunk_count, chunk_length, page_count
from kachery_p2p.errors import (
    BucketAnswerError,
    BucketBusyError,
    BucketError,
    KacheryError,
    PeerBusyError,
    PeerError,
    PeerGoneError,
    PeerRefusedError,
    PeerTimeoutError,
    VerificationError,
)
from kachery_p2p.limits import (
    ASSEMBLY_CHUNKS_MAX,
    BUCKET_NEAR_RANGE_CHUNKS,
    BUCKET_RANGE_CHUNKS,
    BUCKET_READS_MAX,
    CHUNK_BYTES,
    REQUEST_S_MAX,
    STALL_S_MAX,
)
from kachery_p2p.network.failures import one_error
from kachery_p2p.transfer.assembly import Piece
from kachery_p2p.transfer.bucket_pace import Nearness, Pace
from kachery_p2p.transfer.buckets import Buckets, Kept
from kachery_p2p.transfer.ranged import Ranged, Sink
from kachery_p2p.transfer.sources import Deliver
from kachery_p2p.wire.bulk_messages import BulkRange


class BucketSource:
    """One bucket, for one content of which it told a root."""

    def __init__(self, kept: Kept, content: ContentHash, buckets: Buckets) -> None:
        self._place = kept.place
        self._channel = kept.channel
        self._size = kept.meta.size
        self._root = kept.meta.root
        self._content = content
        self._buckets = buckets
        # What `disbelieve` has answered.
        self._whose: Whose | None = None

    @property
    def name(self) -> str:
        return self._place.name

    @property
    def node(self) -> str:
        return self._place.node

    @property
    def channel(self) -> str:
        return self._channel

    @property
    def size(self) -> int:
        return self._size

    async def root_object(self, content: ContentHash, root: Root) -> bytes:
        start, end = root_object_span(self._size)
        return await self._tables(content, root, start, end)

    def disbelieve(self) -> Whose:
        """As of `LentSource`. What is noticed later is about what was handed over before."""
        if self._whose is None:
            keys = [key_of(self._content)]
            if self._root is not None:
                keys.append(tables_key(self._root))
            self._buckets.forget(self._place, self._content)
            self._whose = self._place.disbelieve(keys)
        return self._whose

    def check_told(self, found: RootObject) -> None:
        """Pass if that is the size by which it is read. Raises VerificationError."""
        if found.size != self._size:
            self._buckets.forget(self._place, found.content)
            raise _wrong_size(self._size)

    async def page(self, content: ContentHash, root: Root, number: int) -> bytes:
        if number >= page_count(self._size):
            raise _wrong_size(self._size)
        start, end = page_span(self._size, number)
        return await self._tables(content, root, start, end)

    async def bulk(self) -> Ranged:
        """What reads it by threads: there is no other way."""
        return _Reads(self, self._place, self._size, self._buckets)

    async def pull(
        self,
        content: ContentHash,
        root: Root,
        next_range: Callable[[], range | None],
        deliver: Deliver,
    ) -> None:
        """Never called: `bulk` has what a bucket is asked by."""
        raise AssertionError("a bucket is no stream")

    async def _tables(self, content: ContentHash, root: Root, start: int, end: int) -> bytes:
        try:
            with trio.fail_after(REQUEST_S_MAX):
                return await self._buckets.run(lambda: self._place.read_tables(root, start, end))
        except trio.TooSlowError:
            raise PeerTimeoutError("did not answer in time") from None
        except BucketError as error:
            raise self.failure(error) from None

    def failure(self, error: BucketError) -> KacheryError:
        """A fault of the bucket, or of whoever was asked about it, as that of any source."""
        self._buckets.forget(self._place, self._content)
        is_busy = isinstance(error, BucketBusyError)
        # A size that was made up makes reading fail, whoever reads: others may say another.
        is_new = not is_busy and self.disbelieve() is Whose.NEW_MEMBERS
        if is_new and isinstance(error, OF_WORDS):
            return VerificationError(str(error))
        # Whoever is away for a moment is waited for, as any source is.
        return as_peer_error(error)


def _wrong_size(size: int) -> VerificationError:
    return VerificationError(f"told a size of {size} bytes, which is not the content's")


def as_peer_error(error: BucketError) -> PeerError:
    """A bucket's fault as that of any source, which other sources make good."""
    kind = PeerGoneError
    if isinstance(error, BucketBusyError):
        kind = PeerBusyError  # type: ignore[assignment]
    elif isinstance(error, BucketAnswerError):
        kind = PeerRefusedError  # type: ignore[assignment]
    return kind(str(error), hint=error.hint)


class _Reads:
    """Ranges of one object: one after the other from a server that is near, else many at once."""

    # No fault of a bucket ends it for good: the next range is another request.
    error: PeerError | None = None

    def __init__(self, source: BucketSource, place: Readable, size: int, buckets: Buckets) -> None:
        self._source = source
        self._place = place
        self._size = size
        self._buckets = buckets
        # Chunks on their way to the hash, and those that are being filled.
        self._buffers: deque[bytearray] = deque(maxlen=BUCKET_READS_MAX + ASSEMBLY_CHUNKS_MAX)
        self._nearness = Nearness()

    @property
    def range_chunks(self) -> int:
        return BUCKET_NEAR_RANGE_CHUNKS if self._nearness.is_near() else BUCKET_RANGE_CHUNKS

    @property
    def pipelined(self) -> int:
        return 1 if self._nearness.is_near() else BUCKET_READS_MAX

    async def fetch(self, wanted: BulkRange, sink: Sink, *, urgent: bool = False) -> None:
        """As `BulkConnection.fetch`; a thread each."""
        if wanted.end > chunk_count(self._size):
            raise _wrong_size(self._size)
        content = ContentHash.of_raw(wanted.content)
        chunks = range(wanted.first, wanted.end)
        reading = _Reading(self._place, content, self._size, chunks, sink, self._buffers)
        self._nearness.began(reading.pace)
        try:
            with one_error():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(reading.give_up_when_stalled)
                    await self._buckets.run(reading.read)
                    nursery.cancel_scope.cancel()
        except BucketError as error:
            raise self._source.failure(error) from None
        finally:
            self._nearness.ended(reading.pace)
            with trio.CancelScope(shield=True):
                await reading.leave()
        self._buckets.worked(self._place)


class _Chunk:
    """A chunk in a buffer that is used again: a new one costs more than to fill it."""

    def __init__(self, number: int, length: int, buffers: deque[bytearray]) -> None:
        self.number = number
        self._buffers = buffers
        try:
            self._buffer: bytearray | None = buffers.pop()
        except IndexError:
            self._buffer = bytearray(CHUNK_BYTES)
        self.data = memoryview(self._buffer)[:length]

    def release(self) -> None:
        if self._buffer is not None:
            self._buffers.append(self._buffer)
            self._buffer = None


class _Reading:
    """One range on its way, in a thread."""

    def __init__(
        self,
        place: Readable,
        content: ContentHash,
        size: int,
        chunks: range,
        sink: Sink,
        buffers: deque[bytearray],
    ) -> None:
        self._chunks = chunks
        self._buffers = buffers
        self._place = place
        self._content = content
        self._size = size
        self._sink = sink
        self._token = trio.lowlevel.current_trio_token()
        self._lock = threading.Lock()
        self._left = False
        self._in_sink = False
        self._out_of_sink = trio.Event()
        # On a clock that the thread can read. Waiting for a thread, or for the disk, is not the
        # server's fault.
        self.pace = Pace()

    def read(self) -> None:
        """In a thread: hand every chunk to the sink. Raises BucketErrors, and what that raises."""
        for chunk in self._read_chunks():
            if not self._hand_on(chunk):
                return

    def _hand_on(self, chunk: Piece) -> bool:
        """False if nobody wants it any more."""
        if not self._enter_sink():
            return False
        try:
            self._sink(chunk)
        finally:
            self._leave_sink()
        return True

    def _enter_sink(self) -> bool:
        with self._lock:
            self._in_sink = not self._left
            return self._in_sink

    def _leave_sink(self) -> None:
        with self._lock:
            self._in_sink = False
            if self._left:
                # A node that has stopped does not wait for the thread.
                with contextlib.suppress(trio.RunFinishedError):
                    self._token.run_sync_soon(self._out_of_sink.set)

    async def leave(self) -> None:
        """No chunk reaches the sink any more when this returns."""
        with self._lock:
            self._left, in_sink = True, self._in_sink
        if in_sink:
            await self._out_of_sink.wait()

    async def give_up_when_stalled(self) -> None:
        """Raises PeerTimeoutError. The server's retries begin anew, once."""
        while True:
            await trio.sleep(STALL_S_MAX / 2)
            if self.pace.waits_s > 2 * STALL_S_MAX:
                raise PeerTimeoutError(f"sent nearly nothing for {2 * STALL_S_MAX:g} s")

    def _read_chunks(self) -> Iterator[_Chunk]:
        """Each piece is copied once, to its place in a chunk."""
        start = self._chunks.start * CHUNK_BYTES
        end = min(self._chunks.stop * CHUNK_BYTES, self._size)
        numbers = iter(self._chunks)
        chunk, at = self._new_chunk(next(numbers)), 0
        if not len(chunk.data):
            yield chunk
            return
        for piece in self.pace.timed(self._place.read(self._content, start, end)):
            rest = memoryview(piece)
            while len(rest):
                count = min(len(rest), len(chunk.data) - at)
                chunk.data[at : at + count], rest = rest[:count], rest[count:]
                at += count
                if at == len(chunk.data):
                    yield chunk
                    if (number := next(numbers, None)) is None:
                        break
                    chunk, at = self._new_chunk(number), 0

    def _new_chunk(self, number: int) -> _Chunk:
        return _Chunk(number, chunk_length(self._size, number), self._buffers)
