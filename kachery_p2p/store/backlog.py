"""What the index has yet to be told: small objects just stored, written to it many at a time.

A commit takes as long as the rest of storing a small value. So what is known of small
objects waits here, in the memory of the process that stored them, and is answered from
here meanwhile. A kill or a power cut loses it without harm: the objects themselves are
durable, and one that the index does not know is hashed before it is first served.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.manifests import Hashes
from kachery_p2p.limits import INDEX_WAIT_S_MAX, INDEX_WAITING_MAX


class Remembered(NamedTuple):
    """A file with this status was read whole and has the hashes of the manifest."""

    content: ContentHash
    manifest: Hashes
    root: Root
    status: os.stat_result


class SourceSeen(NamedTuple):
    """The user's file with this status was stored under these names."""

    status: os.stat_result
    content: ContentHash
    root: Root


Write = Callable[[list[Remembered], list[SourceSeen]], None]


class Backlog:
    """Objects and sources that wait to be written with `write`. Safe in threads and forks."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._since = 0.0
        self._objects: dict[ContentHash, Remembered] = {}
        self._sources: dict[tuple[int, int], SourceSeen] = {}

    def add_object(self, one: Remembered) -> None:
        """Keep what is known of a stored object. Raises a StoreError if it was time to write."""
        self._check_process()
        with self._lock:
            self._objects[one.content] = one
        self._written_when_due()

    def add_source(self, seen: SourceSeen) -> None:
        """Keep what was stored from a user's file. Raises as `add_object`."""
        self._check_process()
        with self._lock:
            self._sources[(seen.status.st_dev, seen.status.st_ino)] = seen
        self._written_when_due()

    def object(self, content: ContentHash) -> Remembered | None:
        """What waits about an object."""
        self._check_process()
        return self._objects.get(content)

    def source(self, status: os.stat_result) -> SourceSeen | None:
        """What waits about the user's file with this device and inode."""
        self._check_process()
        return self._sources.get((status.st_dev, status.st_ino))

    def write(self) -> None:
        """Write all that waits. Raises a StoreError; what could not be written is dropped."""
        self._check_process()
        if not self._objects and not self._sources:
            return
        with self._lock:
            try:
                # Not taken out before it is written: who asks meanwhile must find it somewhere.
                self._write(list(self._objects.values()), list(self._sources.values()))
            finally:
                self._objects, self._sources = {}, {}
                self._since = 0.0

    def _written_when_due(self) -> None:
        now = time.monotonic()
        self._since = self._since or now
        waiting = len(self._objects) + len(self._sources)
        if waiting >= INDEX_WAITING_MAX or now - self._since > INDEX_WAIT_S_MAX:
            self.write()

    def _check_process(self) -> None:
        """In a forked process what waited is the parent's to write, and its lock may be held."""
        if self._pid != os.getpid():
            self._forget()
