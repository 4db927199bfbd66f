"""Both hashes of a file, read through the page cache while the file is still being written.

SHA-1 cannot be cut into parallel pieces and is the slowest part of storing (0.6 to 1.3 s a
GiB), so it runs in a thread of its own and does nothing else: the writer's thread reads what it
has written, computes the chunk hashes, and hands the chunks on in memory. It is the *copy* that
is read: a source that changes meanwhile cannot come between the bytes and their name.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from types import TracebackType

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.content.manifests import ChunkHashes, Manifest, ManifestBuilder, chunk_hashes
from kachery_p2p.limits import CHUNK_BYTES, HASH_BUFFERS_MAX, HASH_BUFFERS_SPARE_MAX

# How much is copied in one call.
STEP_BYTES = 8 * CHUNK_BYTES
# What each has: one that is read into while the other is hashed.
_BUFFERS_MIN = 2
# All others, for whoever is first.
_spare_buffers = threading.BoundedSemaphore(HASH_BUFFERS_SPARE_MAX)


class FileHashes:
    """The hashes of the file behind `fd`, which grows from 0; a context manager."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._chunks = ManifestBuilder()
        self._chunked = 0
        self._sha1 = _Sha1()

    def __enter__(self) -> FileHashes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # An error that is kept keeps this as well, but not the buffers.
        sha1, self._sha1 = self._sha1, _Sha1()
        sha1.stop()

    def grown(self, size: int) -> None:
        """The first `size` bytes are written. Waits while SHA-1 is too far behind."""
        while size - self._chunked >= CHUNK_BYTES:
            self._take_chunk(CHUNK_BYTES)

    def finish(self, size: int) -> Manifest:
        """The manifest of the file, which has `size` bytes. Raises OSError if it cannot be read."""
        self.grown(size)
        if size > self._chunked:
            self._take_chunk(size - self._chunked)
        return self._chunks.finish(self._sha1.finish())

    def _take_chunk(self, length: int) -> None:
        buffer = self._sha1.buffer()
        chunk = read_exactly(self._fd, memoryview(buffer)[:length], self._chunked)
        self._chunks.update(chunk)
        self._sha1.take(buffer, length)
        self._chunked += length


class _Sha1:
    """SHA-1 of chunks in order, in a thread as soon as they are worth one.

    Of each chunk first a `buffer` is asked for, which is used again when it has been hashed.
    """

    def __init__(self) -> None:
        self._sha1 = hashlib.sha1(usedforsecurity=False)
        self._buffers = self._spares = 0
        self._taken = self._hashed = 0
        # Both in C: a `Queue` runs sixty lines of Python a chunk.
        self._free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        self._handed: queue.SimpleQueue[tuple[bytearray, int] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._stopped = False

    def buffer(self) -> bytearray:
        """For the next chunk. Waits while too many are still to be hashed."""
        if self._free.empty() and self._may_have_more():
            self._buffers += 1
            return bytearray(CHUNK_BYTES)
        if self._thread is None:
            self._begin()
        return self._free.get()

    def take(self, buffer: bytearray, length: int) -> None:
        """The next chunk, at the begin of its buffer, which is not the caller's any more."""
        self._taken += length
        self._handed.put((buffer, length))

    def finish(self) -> ContentHash:
        """The SHA-1 of all chunks."""
        self._end()
        if self._failure is not None:
            raise self._failure
        assert self._hashed == self._taken, "chunks were not hashed"
        return ContentHash(self._sha1.hexdigest())

    def stop(self) -> None:
        """End the thread, whatever is left to hash. Harmless twice."""
        self._stopped = True
        self._end()
        for _ in range(self._spares):
            _spare_buffers.release()
        self._spares = 0

    def _may_have_more(self) -> bool:
        if self._buffers < _BUFFERS_MIN:
            return True
        if self._buffers >= HASH_BUFFERS_MAX or not _spare_buffers.acquire(blocking=False):
            return False
        self._spares += 1
        return True

    def _begin(self) -> None:
        thread = threading.Thread(target=self._follow, name="sha1", daemon=True)
        try:
            thread.start()
            self._thread = thread
        except RuntimeError:  # no more threads to be had: now, and again when the buffers are full
            self._handed.put(None)
            self._follow()

    def _end(self) -> None:
        self._handed.put(None)
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        elif not self._stopped:
            self._follow()

    def _follow(self) -> None:
        """Hash what is handed on, until None. Goes on taking after a failure: nobody waits long."""
        while (handed := self._handed.get()) is not None:
            buffer, length = handed
            try:
                if not self._stopped and self._failure is None:
                    self._sha1.update(memoryview(buffer)[:length])
                    self._hashed += length
            except BaseException as error:
                self._failure = error
            self._free.put(buffer)


def hash_file(fd: int, size: int) -> Manifest:
    """The manifest of the first `size` bytes of a finished file. Raises OSError."""
    if size <= CHUNK_BYTES:
        return hash_bytes(read_exactly(fd, memoryview(bytearray(size)), 0))
    with FileHashes(fd) as hashes:
        for offset in range(0, size, STEP_BYTES):
            hashes.grown(min(offset + STEP_BYTES, size))
        return hashes.finish(size)


def hash_bytes(data: bytes | memoryview) -> Manifest:
    """The manifest of bytes that are in memory."""
    if 0 < len(data) <= CHUNK_BYTES:
        return hash_chunk(data).manifest
    content = ContentHash(hashlib.sha1(data, usedforsecurity=False).hexdigest())
    chunks = ManifestBuilder()
    view = memoryview(data)
    for offset in range(0, len(data), CHUNK_BYTES):
        chunks.update(view[offset : offset + CHUNK_BYTES])
    return chunks.finish(content)


def hash_chunk(data: bytes | memoryview) -> ChunkHashes:
    """The hashes of a content of 1 byte to 1 MiB that is in memory."""
    content, sha1 = sha1_of_chunk(data)
    return chunk_hashes(content, sha1, data)


def sha1_of_chunk(data: bytes | memoryview) -> tuple[ContentHash, bytes]:
    """Its SHA-1, as a name and as a digest."""
    sha1 = hashlib.sha1(data, usedforsecurity=False)
    return ContentHash(sha1.hexdigest()), sha1.digest()


def read_exactly(fd: int, buffer: memoryview, offset: int) -> memoryview:
    """`buffer`, filled from `offset` on. Raises OSError if the file ends before it is full."""
    filled = 0
    while filled < len(buffer):
        count = os.preadv(fd, [buffer[filled:]], offset + filled)
        if not count:
            raise EndedEarlyError(f"the file ends at byte {offset + filled}")
        filled += count
    return buffer


class EndedEarlyError(OSError):
    """A file became shorter while it was read."""
