"""Giving many small blobs in one answer, each judged by itself when its frame is made.

Absent, not granted in the channel and not allowed to this member are one outcome, in the
place of the content that was asked for; it stops no other. So a batch tells nobody more
than as many single questions would.

What is granted, and which file it was that was hashed, is looked up for as many contents
at once as a frame is likely to hold.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import KacheryError, NotFoundError
from kachery_p2p.limits import (
    BATCH_FILL_S,
    BATCH_LOOKED_UP_MAX,
    BATCH_LOOKED_UP_MIN,
    BATCH_PIECES_BYTES_MAX,
    CHUNK_BYTES,
)
from kachery_p2p.network.bulk_serving import ServedBatch
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.grants import Grants
from kachery_p2p.store.index import FileState
from kachery_p2p.store.paths import blob_path
from kachery_p2p.wire.batches import (
    BUSY,
    BYTES,
    LARGE,
    PIECE_BYTES,
    REFUSED,
    BulkBatch,
    write_piece,
)

log = logging.getLogger(__name__)

# An open file and its size.
_Open = tuple[int, int]


class ServedBlobs(ServedBatch):
    """The answer to one question: told memory to fill, as often as there is more to say.

    `may_serve` says whether at this moment the peer may read in the channel, and this node
    provide there. Blocks; one thread at a time.
    """

    def __init__(
        self, wanted: BulkBatch, blobs: BlobStore, grants: Grants, may_serve: Callable[[], bool]
    ) -> None:
        self._wanted = wanted
        self._contents = [ContentHash.of_raw(name) for name in wanted.contents]
        self._may_serve = may_serve
        self._blobs = blobs
        self._lookup = _Lookup(self._contents, wanted.channel, blobs, grants)
        self._next = 0
        self._bytes_left = wanted.bytes_max
        self._full = False
        # Of the next content, from when it is opened until it is written.
        self._waiting: _Open | int | None = None

    @property
    def finished(self) -> bool:
        return self._full or self._next == len(self._contents)

    def revoked(self) -> bool:
        return not self._may_serve()

    def close(self) -> None:
        if isinstance(self._waiting, tuple):
            os.close(self._waiting[0])
        self._waiting = None

    def fill(self, payload: memoryview) -> int:
        assert len(payload) >= BATCH_PIECES_BYTES_MAX
        assert not self.finished
        filled = 0
        send_at = time.monotonic() + BATCH_FILL_S
        self._lookup.forget()
        self._judge_waiting()
        while not self.finished and self._next_fits(len(payload) - filled):
            if filled and time.monotonic() > send_at:
                break
            filled += self._write_next(payload[filled:])
        assert filled, "no frame is without a piece"
        return filled

    def _judge_waiting(self) -> None:
        """What was opened for the frame before this one may not be granted any more."""
        if self._waiting is not None and not self._may_have_next():
            self.close()
            self._waiting = REFUSED

    def _next_fits(self, room: int) -> bool:
        """Have the next piece ready: whether it is for this frame.

        A frame is not sent before this is known of the piece behind it, as it may be the last one:
        what the question has no bytes left for ends the answer.
        """
        if self._waiting is None:
            self._waiting = self._open_next()
        size = self._waiting[1] if isinstance(self._waiting, tuple) else 0
        self._full = size > self._bytes_left
        return not self._full and PIECE_BYTES + size <= room

    def _write_next(self, payload: memoryview) -> int:
        """The bytes of the next piece, which is ready and fits."""
        assert self._waiting is not None
        opened, self._waiting = self._waiting, None
        if isinstance(opened, int):
            return self._tell(opened, payload)
        descriptor, size = opened
        try:
            is_read = _is_read(descriptor, payload[PIECE_BYTES : PIECE_BYTES + size])
        finally:
            os.close(descriptor)
        if not is_read:
            return self._tell(BUSY, payload)
        self._bytes_left -= size
        return self._tell(BYTES, payload, size)

    def _tell(self, outcome: int, payload: memoryview, size: int = 0) -> int:
        write_piece(self._next, outcome, size, payload)
        self._next += 1
        return PIECE_BYTES + size

    def _may_have_next(self) -> bool:
        return self._may_serve() and self._lookup.is_granted(self._next)

    def _open_next(self) -> _Open | int:
        """The next blob, or what to answer instead of its bytes."""
        number = self._next
        if not self._may_have_next():
            return REFUSED
        content = self._contents[number]
        opened = self._blobs.known_files.open(content, self._lookup.state(number))
        if opened is None:
            return self._open_unknown(content)
        if opened[1] > CHUNK_BYTES:
            os.close(opened[0])
            return LARGE
        return opened

    def _open_unknown(self, content: ContentHash) -> _Open | int:
        """A blob that is not an object which was hashed before."""
        try:
            # A large one is not hashed here for the first time: that may take minutes.
            if self._is_large(content):
                return LARGE
            opened = self._blobs.open_verified(content)
        except (NotFoundError, FileNotFoundError):
            return REFUSED
        except (KacheryError, OSError) as error:
            log.warning("cannot serve %s: %s", content, error)
            return REFUSED
        if opened.root_object.size > CHUNK_BYTES:
            opened.close()
            return LARGE
        return opened.descriptor, opened.root_object.size

    def _is_large(self, content: ContentHash) -> bool:
        try:
            # An object's own place first: of linked files there are few.
            return os.stat(blob_path(self._blobs.directory, content)).st_size > CHUNK_BYTES
        except OSError:
            path = self._blobs.find(content)
            return path is not None and os.stat(path).st_size > CHUNK_BYTES


class _Lookup:
    """What is granted of the contents of a question, and known of their files: some at a time."""

    def __init__(
        self, contents: list[ContentHash], channel: str, blobs: BlobStore, grants: Grants
    ) -> None:
        self._contents = contents
        self._channel = channel
        self._blobs = blobs
        self._grants = grants
        self._granted: set[ContentHash] = set()
        self._states: dict[ContentHash, FileState] = {}
        # Those from `first` on, below `end`, were looked up, and so many were used.
        self._first = self._end = self._used = 0

    def forget(self) -> None:
        """A new frame begins: what was looked up for the one before it is old."""
        self._end = 0

    def is_granted(self, number: int) -> bool:
        if number >= self._end:
            self._look_up(number)
        self._used = number
        return self._contents[number] in self._granted

    def state(self, number: int) -> FileState | None:
        """Of the file of a content that is granted."""
        return self._states.get(self._contents[number])

    def _look_up(self, number: int) -> None:
        # As many as the last time were used; twice as many if all of them were.
        count = 2 * max(1, self._used + 1 - self._first)
        count = min(max(count, BATCH_LOOKED_UP_MIN), BATCH_LOOKED_UP_MAX)
        self._first, self._end = number, number + count
        some = self._contents[number : self._end]
        self._granted = self._grants.granted_of(some, self._channel)
        self._states = self._blobs.known_files.states(self._granted)


def _is_read(descriptor: int, view: memoryview) -> bool:
    """True if the file filled the view. It was verified, so it is another one if it did not."""
    read = 0
    try:
        while read < len(view):
            count = os.preadv(descriptor, [view[read:]], read)
            if not count:
                return False
            read += count
    except OSError as error:
        log.warning("cannot read what is served: %s", error)
        return False
    return True
