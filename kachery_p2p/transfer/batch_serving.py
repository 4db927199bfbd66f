"""Giving many small blobs in one answer, each judged by itself at the moment it is given.

Absent, not granted in the channel and not allowed to this member are one outcome, in the
place of the content that was asked for; it stops no other. So a batch tells nobody more
than as many single questions would.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import KacheryError, NotFoundError
from kachery_p2p.limits import BATCH_FILL_S, BATCH_PIECES_BYTES_MAX, CHUNK_BYTES
from kachery_p2p.network.bulk_serving import ServedBatch
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.grants import Grants
from kachery_p2p.store.objects import Opened
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


class ServedBlobs(ServedBatch):
    """The answer to one question: told memory to fill, as often as there is more to say.

    `may_serve` says whether at this moment the peer may read in the channel, and this node
    provide there. Blocks; one thread at a time.
    """

    def __init__(
        self, wanted: BulkBatch, blobs: BlobStore, grants: Grants, may_serve: Callable[[], bool]
    ) -> None:
        self._wanted = wanted
        self._blobs = blobs
        self._grants = grants
        self._may_serve = may_serve
        self._next = 0
        self._bytes_left = wanted.bytes_max
        self._full = False
        # Of the next content, when it did not fit what was to be filled.
        self._waiting: Opened | int | None = None

    @property
    def finished(self) -> bool:
        return self._full or self._next == len(self._wanted.contents)

    def revoked(self) -> bool:
        return not self._may_serve()

    def close(self) -> None:
        if isinstance(self._waiting, Opened):
            self._waiting.close()
        self._waiting = None

    def fill(self, payload: memoryview) -> int:
        assert len(payload) >= BATCH_PIECES_BYTES_MAX
        assert not self.finished
        filled = 0
        send_at = time.monotonic() + BATCH_FILL_S
        while not self.finished and (written := self._write_next(payload[filled:])):
            filled += written
            if time.monotonic() > send_at:
                break
        return filled

    def _write_next(self, payload: memoryview) -> int:
        """The bytes of the next piece; 0 if it has to wait for the next frame, or question."""
        if self._waiting is None:
            self._waiting = self._open(self._wanted.contents[self._next])
        opened = self._waiting
        size = opened.root_object.size if isinstance(opened, Opened) else 0
        self._full = size > self._bytes_left
        if self._full or PIECE_BYTES + size > len(payload):
            return 0
        self._waiting = None
        if not isinstance(opened, Opened):
            return self._tell(opened, payload)
        with opened:
            if not _is_read(opened.descriptor, payload[PIECE_BYTES : PIECE_BYTES + size]):
                return self._tell(BUSY, payload)
        self._bytes_left -= size
        return self._tell(BYTES, payload, size)

    def _tell(self, outcome: int, payload: memoryview, size: int = 0) -> int:
        write_piece(self._next, outcome, size, payload)
        self._next += 1
        return PIECE_BYTES + size

    def _open(self, name: bytes) -> Opened | int:
        """The blob, or what to answer instead of its bytes."""
        content = ContentHash.of_raw(name)
        if not self._may_serve() or not self._grants.is_granted(content, self._wanted.channel):
            return REFUSED
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
        return opened

    def _is_large(self, content: ContentHash) -> bool:
        try:
            # An object's own place first: of linked files there are few.
            return os.stat(blob_path(self._blobs.directory, content)).st_size > CHUNK_BYTES
        except OSError:
            path = self._blobs.find(content)
            return path is not None and os.stat(path).st_size > CHUNK_BYTES


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
