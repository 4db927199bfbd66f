"""Both hashes of a file, read through the page cache while the file is still being written.

SHA-1 cannot be cut into parallel pieces and is the slowest part of storing (0.6 s a
GiB), so it runs in a thread of its own, a bounded distance behind the writer, while
the writer's thread computes the chunk hashes. It is the *copy* that is read: a source
that changes meanwhile cannot come between the bytes and their name.
"""

from __future__ import annotations

import hashlib
import os
import threading
from types import TracebackType

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.content.manifests import ChunkHashes, Manifest, ManifestBuilder, chunk_hashes
from kachery_p2p.limits import CHUNK_BYTES, COPY_BUFFERS_MAX

# How much is copied in one call. Below this a thread costs more than it saves.
STEP_BYTES = 8 * CHUNK_BYTES
# What lies between the writer and SHA-1 must still be in the page cache: 64 MiB.
BEHIND_BYTES_MAX = COPY_BUFFERS_MAX * STEP_BYTES


class FileHashes:
    """The hashes of the file behind `fd`, which grows from 0; a context manager."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._chunks = ManifestBuilder()
        self._chunked = 0
        self._buffer = bytearray()
        self._sha1 = _Sha1Thread(fd)

    def __enter__(self) -> FileHashes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sha1.stop()

    def grown(self, size: int) -> None:
        """The first `size` bytes are written. Waits while SHA-1 is too far behind."""
        while size - self._chunked >= CHUNK_BYTES:
            self._take_chunk(CHUNK_BYTES)
        self._sha1.grown(size)

    def finish(self, size: int) -> Manifest:
        """The manifest of the file, which has `size` bytes. Raises OSError if it cannot be read."""
        self.grown(size)
        if size > self._chunked:
            self._take_chunk(size - self._chunked)
        return self._chunks.finish(self._sha1.finish())

    def _take_chunk(self, length: int) -> None:
        if len(self._buffer) < length:
            self._buffer = bytearray(length)
        self._chunks.update(
            read_exactly(self._fd, memoryview(self._buffer)[:length], self._chunked)
        )
        self._chunked += length


class _Sha1Thread:
    """SHA-1 of a growing file. The thread starts when the file has become worth one."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._sha1 = hashlib.sha1(usedforsecurity=False)
        self._buffer = bytearray()
        self._changed = threading.Condition()
        self._written = 0
        self._hashed = 0
        self._ended = False
        self._failure: Exception | None = None
        self._thread: threading.Thread | None = None

    def grown(self, size: int) -> None:
        if self._thread is None and size > STEP_BYTES:
            self._thread = threading.Thread(target=self._follow, name="sha1", daemon=True)
            self._thread.start()
        with self._changed:
            self._written = size
            self._changed.notify_all()
            while self._thread and not self._failure and size - self._hashed > BEHIND_BYTES_MAX:
                self._changed.wait()
        self._check()

    def finish(self) -> ContentHash:
        if self._thread is None:
            self._hash_to(self._written)
        else:
            self._end()
            self._check()
        return ContentHash(self._sha1.hexdigest())

    def stop(self) -> None:
        """End the thread, whatever is left to hash."""
        with self._changed:
            self._written = min(self._written, self._hashed)
        self._end()

    def _end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _follow(self) -> None:
        try:
            while (target := self._wait_for_more()) is not None:
                self._hash_to(target)
        except Exception as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _wait_for_more(self) -> int | None:
        with self._changed:
            while self._written <= self._hashed:
                if self._ended:
                    return None
                self._changed.wait()
            # One chunk at a time, so that `stop` and a waiting writer are noticed soon.
            return min(self._written, self._hashed + CHUNK_BYTES)

    def _hash_to(self, target: int) -> None:
        while self._hashed < target:
            length = min(CHUNK_BYTES, target - self._hashed)
            if len(self._buffer) < length:
                self._buffer = bytearray(length)
            self._sha1.update(
                read_exactly(self._fd, memoryview(self._buffer)[:length], self._hashed)
            )
            with self._changed:
                self._hashed += length
                self._changed.notify_all()


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
    sha1 = hashlib.sha1(data, usedforsecurity=False)
    return chunk_hashes(ContentHash(sha1.hexdigest()), sha1.digest(), data)


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
