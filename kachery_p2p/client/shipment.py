"""A shipment: contents that belong together, stored in groups and shared by one wish.

Nobody is to find one of them shared and the others not: they are all stored before the
first is shared. A daemon that has a store directory of its own shares each as it takes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from kachery_p2p.client.files import Channels
from kachery_p2p.client.local import open_store
from kachery_p2p.client.progress import STORING, Reporter
from kachery_p2p.client.spooling import spooled
from kachery_p2p.client.storing import (
    check_channels,
    running_daemon,
    share_new,
    shares_our_store,
)
from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.errors import KacheryError
from kachery_p2p.limits import CHUNK_BYTES

if TYPE_CHECKING:
    from kachery_p2p.client.daemon import Daemon


class Kept(NamedTuple):
    """A content that is stored, durably."""

    size: int
    content: ContentHash
    # None for a content of at most one chunk, of which it says no more than the hash.
    root: Root | None


class Shipment:
    """Stores for one call with these `channels`; `share` ends it."""

    def __init__(self, channels: Channels, reporter: Reporter) -> None:
        check_channels(channels)
        self._channels = channels
        self._reporter = reporter
        self._running = running_daemon()
        self._keeper: Daemon | None = None
        if self._running is not None and not shares_our_store(self._running):
            self._keeper = self._running.daemon
        # Each once, in the order of storing.
        self._contents: dict[ContentHash, None] = {}

    def store_files(self, descriptors: Iterable[int], size: int) -> Iterator[Kept | KacheryError]:
        """Store a copy of each file, `size` bytes in all; what became of each, in their order.

        A descriptor is used until GROUP_OBJECTS_MIN more have been taken, or all.
        """
        self._reporter.begin(STORING, size)
        if self._keeper is not None:
            for descriptor in descriptors:
                kept = self._handed_over(self._keeper, descriptor)
                self._reporter.count(kept.size)
                self._reporter.file_done()
                yield kept
            return
        with open_store() as store:
            for outcome in store.put_many(descriptors, self._reporter.count):
                self._reporter.file_done()
                if isinstance(outcome, KacheryError):
                    yield outcome
                else:
                    yield self._noted(outcome.content, outcome.root, outcome.size)

    def store_value(self, data: bytes) -> Kept:
        """Store bytes that are in memory."""
        if self._keeper is None:
            with open_store() as store:
                stored = store.put_bytes(data)
            return self._noted(stored.content, stored.root, stored.size)
        descriptor = spooled([data])
        try:
            return self._handed_over(self._keeper, descriptor)
        finally:
            os.close(descriptor)

    def share(self) -> None:
        """Share all that was stored, as `channels` says."""
        if self._keeper is None:
            with open_store() as store:
                store.flush_index()
            share_new(list(self._contents), self._channels, self._running, self._reporter)

    def _handed_over(self, keeper: Daemon, descriptor: int) -> Kept:
        listed = None if self._channels is None else list(self._channels)
        body = {"label": None, "channels": listed}
        stored, _ = keeper.call("store", body, descriptor=descriptor)
        root = stored["root"]
        return self._noted(
            ContentHash.parse(stored["content"]),
            Root.parse(root) if root is not None else None,
            stored["size"],
        )

    def _noted(self, content: ContentHash, root: Root | None, size: int) -> Kept:
        self._contents[content] = None
        return Kept(size, content, root if size > CHUNK_BYTES else None)
