"""Putting a blob together: chunks are verified and written as they come, and hashed in order.

Whichever thread brings a chunk verifies and writes it; SHA-1, which can only be computed in
order, follows in a thread of its own, from memory when chunks come in order, else from the
page cache. All of it releases the interpreter lock, so it overlaps with receiving. What was
written starts on its way to the disk at once, so that little is left for the last sync.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
from typing import Protocol

from kachery_p2p.content.manifests import RootObject, chunk_length, page_of, verify_chunk
from kachery_p2p.errors import KacheryError, LoadFileError, VerificationError
from kachery_p2p.limits import ASSEMBLY_CHUNKS_MAX, CHUNK_BYTES, WRITE_BACK_CHUNKS
from kachery_p2p.store.durable import start_write_back
from kachery_p2p.store.partials import Partial

log = logging.getLogger(__name__)


class Piece(Protocol):
    """A chunk in a buffer that is to be given back."""

    @property
    def number(self) -> int: ...

    @property
    def data(self) -> bytes | memoryview: ...

    def release(self) -> None:
        """The buffer is not needed any more."""


class Copy:
    """A chunk in memory of its own."""

    def __init__(self, number: int, data: bytes | memoryview) -> None:
        self.number = number
        self.data = data

    def release(self) -> None:
        """Nothing to give back."""


class Assembly:
    """One blob on its way into `partial`, whose chunks were all verified by now."""

    def __init__(self, partial: Partial) -> None:
        self.partial = partial
        self._object: RootObject = partial.root_object
        self._sha1 = hashlib.sha1(usedforsecurity=False)
        self._hashed = 0
        self._written_back = 0
        self._error: KacheryError | None = None
        # Chunks to be hashed, each in one of so many places; None ends the thread. Both in C: a
        # `Queue` runs sixty lines of Python a chunk, with caches that the chunk has emptied.
        self._handed: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        self._places: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(ASSEMBLY_CHUNKS_MAX):
            self._places.put(None)
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def take(self, piece: Piece) -> None:
        """Verify the chunk, write it to its place, hash it when its turn comes; in any thread.

        The page that it belongs to must be in the partial. Raises VerificationError and
        StoreError, and has then not kept the piece.
        """
        data = piece.data
        if len(data) != chunk_length(self._object.size, piece.number):
            raise VerificationError(f"sent {len(data)} bytes as chunk {piece.number}")
        page_number, position = page_of(piece.number)
        verify_chunk(self.partial.page(page_number), position, data)
        self.partial.write_chunk(piece.number, data)
        if self._thread is None:
            self._start()
        # Who brings more waits.
        self._places.get()
        self._handed.put(piece)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._hash, name="sha1", daemon=True)
                self._thread.start()

    def finish(self) -> str:
        """The SHA-1 of the blob, all of whose chunks are on disk. Waits for the hashing.

        Raises what went wrong with it.
        """
        self.close()
        if self._error is not None:
            raise self._error
        self._catch_up(self._object.chunk_count)
        assert self._hashed == self._object.chunk_count, "chunks are missing"
        return self._sha1.hexdigest()

    def close(self) -> None:
        """End the thread; every piece is released when this returns. Harmless twice."""
        with self._starting:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._handed.put(None)
            thread.join()

    # --- the thread ----------------------------------------------------------------------------

    def _hash(self) -> None:
        while (piece := self._handed.get()) is not None:
            try:
                self._hash_one(piece)
            except KacheryError as error:
                self._error = self._error or error
            except Exception:
                log.exception("hashing a download failed")
                self._error = self._error or LoadFileError("internal error while hashing")
            finally:
                piece.release()
                self._places.put(None)

    def _hash_one(self, piece: Piece) -> None:
        self._catch_up(piece.number)
        if piece.number == self._hashed:
            self._sha1.update(piece.data)
            self._hashed += 1
        if self._hashed - self._written_back >= WRITE_BACK_CHUNKS:
            self._write_back()

    def _catch_up(self, stop: int) -> None:
        """Hash what came before its turn, from the page cache, as far as nothing is missing."""
        while self._hashed < stop and self._hashed in self.partial.have:
            self._sha1.update(self.partial.read_chunk(self._hashed))
            self._hashed += 1

    def _write_back(self) -> None:
        first, self._written_back = self._written_back, self._hashed
        length = (self._hashed - first) * CHUNK_BYTES
        start_write_back(self.partial.data_fd, first * CHUNK_BYTES, length)
