"""Who waits for a download."""

from __future__ import annotations

import os

import trio

from kachery_p2p.content.manifests import RootObject
from kachery_p2p.errors import InvalidRangeError, KacheryError
from kachery_p2p.limits import CHUNK_BYTES
from kachery_p2p.store.objects import Opened
from kachery_p2p.store.partials import Partial
from kachery_p2p.transfer.schedule import Want


class Waiter:
    """Somebody who waits for a byte range, or (None) for the whole blob."""

    def __init__(self, byte_range: tuple[int, int] | None) -> None:
        self.byte_range = byte_range
        self.want: Want | None = None
        self.descriptor: int | None = None
        self.error: KacheryError | None = None
        self.done = trio.Event()

    def chunks_of(self, blob: RootObject) -> range:
        """The chunks it waits for. Raises InvalidRangeError."""
        if self.byte_range is None:
            return range(blob.chunk_count)
        start, end = self.byte_range
        if not 0 <= start <= end <= blob.size:
            raise InvalidRangeError(f"bytes {start} to {end} are not in a file of {blob.size}")
        return range(start // CHUNK_BYTES, -(-end // CHUNK_BYTES))

    def reads(self, chunks: range) -> bool:
        """True if it waits for a few bytes, some of them in these chunks."""
        if self.byte_range is None or self.want is None or self.done.is_set():
            return False
        return self.want.chunks.start < chunks.stop and chunks.start < self.want.chunks.stop

    @property
    def has_its_range(self) -> bool:
        """True if what it waits for is a range that is on disk, and it has not been told."""
        if self.byte_range is None or self.want is None or self.done.is_set():
            return False
        return self.want.satisfied

    def take_part(self, partial: Partial) -> None:
        """Its range is verified in there: it goes on."""
        try:
            self.descriptor = partial.open_data()
            self.done.set()
        except KacheryError as error:
            self.fail(error)

    def take_blob(self, opened: Opened) -> None:
        """All of the blob is here: it goes on."""
        if self.byte_range is not None and not self.done.is_set():
            self.descriptor = os.dup(opened.descriptor)
        self.done.set()

    def drop_descriptor(self) -> None:
        """Nobody takes what it was given."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def check(self) -> None:
        """Pass, or raise what it failed with."""
        if self.error is not None:
            # A copy: many may wait, and a traceback belongs to one of them.
            raise type(self.error)(str(self.error), hint=self.error.hint)

    def fail(self, error: KacheryError) -> None:
        if not self.done.is_set():
            self.error = error
            self.done.set()
