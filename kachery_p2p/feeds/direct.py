"""Appending to an own subfeed from a program of the node's user, which needs no node for it.

The files are this user's alone, and the node would do the same: so a program may write the record
itself, and be spared the way to the node and back. It takes the lock of `writers`, sees there
where the next record goes, writes it, lets others go on, and syncs. It never mends anything, never
signs, and leaves hashes and offsets to the node, which takes in what it finds (`shared_log`).
Where anything is not as usual it writes nothing: the node has to do it, or says why it cannot be.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Sequence

from kachery_p2p.errors import FeedBusyError, KacheryError
from kachery_p2p.feeds import refusals
from kachery_p2p.feeds.disk import (
    NOT_WRITTEN,
    feed_error,
    length_of,
    open_directory,
    open_file,
    place_of,
    read_small,
    rewrite,
    sync_data,
)
from kachery_p2p.feeds.records import DOUBTFUL_BYTES_MAX, encode_record
from kachery_p2p.feeds.tail import is_cut_short, whole_records
from kachery_p2p.feeds.writers import Shared, Standing, Writers
from kachery_p2p.limits import FEED_PLACE_S, RECORD_BYTES_MAX, RECORD_ENTRIES_MAX
from kachery_p2p.store.durable import write_all


class NotHere(Exception):
    """The node has to append; `why` is what it will say if nothing else is wrong."""

    def __init__(self, why: KacheryError | None = None) -> None:
        super().__init__()
        self.why = why


class DirectLog:
    """The own subfeed in the directory `path`. Safe in any thread, but not in a forked process."""

    def __init__(self, path: str) -> None:
        """Open its files. NotHere if they are not there, or not as the node left them."""
        self._directory, self._path = path, f"{path}/entries"
        self._using = threading.Lock()
        self._syncing = threading.Lock()
        # Up to where this process wrote, and up to where everything is on the disk, as it knows.
        self._written = self._synced = 0
        # Nothing was written yet through this descriptor: it was not told of failed syncs before.
        self._is_new = True
        self._is_stopped = False
        self._is_open = False
        with contextlib.ExitStack() as undo:
            try:
                directory = open_directory(path)
                undo.callback(os.close, directory)
                self._entries = open_file(directory, self._path, make=False)
                undo.callback(os.close, self._entries)
                lock = open_file(directory, f"{path}/writers", make=False)
                undo.callback(os.close, lock)
                is_at_home = read_small(f"{path}/place") == place_of(self._entries)
            except (OSError, KacheryError):
                raise NotHere from None
            if not is_at_home:
                raise NotHere(refusals.restored())
            self._looked_at = -math.inf
            self._inode = os.fstat(self._entries).st_ino
            self._writers = Writers(lock)
            self._is_open = True
            undo.pop_all()
        os.close(directory)

    def __del__(self) -> None:
        # Another thread may be at work when it is not remembered any more.
        if getattr(self, "_is_open", False):
            self.close()

    def close(self) -> None:
        """Close the files; in a forked process, which may not use them."""
        if self._is_open:
            self._is_open = False
            os.close(self._entries)
            self._writers.close()

    def append(self, entries: Sequence[bytes]) -> int:
        """The position of the first of the entries, which are on the disk when it returns.

        NotHere if the node has to do it, and nothing was appended; then this is not to be used any
        more. FeedStoppedError, FeedBusyError, StorageFullError.
        """
        size = sum(map(len, entries))
        assert size <= RECORD_BYTES_MAX
        assert len(entries) <= RECORD_ENTRIES_MAX
        try:
            with self._using, self._writers:
                shared = self._current()
                end = self._write(shared, entries)
        except OSError as error:
            raise feed_error(error, self._directory) from error
        self._sync(end)
        return shared.size

    # --- inside; by who holds the lock ----------------------------------------------------------

    def _current(self) -> Shared:
        """Where the next record goes. NotHere, OSError."""
        shared = self._writers.read()
        if shared is None or self._is_stopped:
            raise NotHere
        if shared.standing is not Standing.OPEN:
            raise NotHere(_why_not(shared.standing))
        self._check_place()
        length = length_of(self._entries)
        if length < shared.end:
            raise NotHere
        if length > shared.end:
            shared = self._caught_up(shared, length)
        if self._is_new:
            # If a sync failed before the file was opened here, nobody says so to us; then pages
            # look as if they were on the disk. What nobody vouches for is written once more.
            rewrite(self._entries, min(shared.synced, shared.end), shared.end)
            self._is_new = False
        return shared

    def _check_place(self) -> None:
        """Somebody may have put another file there: a backup, say. NotHere, OSError."""
        now = time.monotonic()
        if now >= self._looked_at + FEED_PLACE_S:
            if os.stat(self._path).st_ino != self._inode:
                raise NotHere
            self._looked_at = now

    def _caught_up(self, shared: Shared, length: int) -> Shared:
        """With what a writer left that was killed before it could say so."""
        size, end = shared.size, shared.end
        for record in whole_records(self._entries, size, end, length):
            size, end = record.header.end, record.end
        if end < length:
            if not is_cut_short(self._entries, end, length):
                raise NotHere
            os.ftruncate(self._entries, end)
        return shared._replace(size=size, end=end)

    def _write(self, shared: Shared, entries: Sequence[bytes]) -> int:
        """Write the record; where it ends. OSError if nothing of it is there."""
        size, end = shared.size, shared.end
        synced = max(shared.synced, self._synced)
        if end - synced > DOUBTFUL_BYTES_MAX:
            raise NotHere
        record = encode_record(size, entries, None, end - synced)
        try:
            write_all(self._entries, record, end)
        except OSError as error:
            if error.errno not in NOT_WRITTEN:
                self._stop(shared)
                raise refusals.stopped() from error
            os.ftruncate(self._entries, end)
            raise
        self._written = end + len(record)
        following = Shared(Standing.OPEN, size + len(entries), self._written, synced)
        # If it cannot be said, the next one who writes finds the record behind what is said.
        with contextlib.suppress(OSError):
            self._writers.write(following)
        return following.end

    def _stop(self, shared: Shared) -> None:
        """Nobody knows what is on the disk: nobody appends until the node has opened it anew."""
        self._is_stopped = True
        with contextlib.suppress(OSError):
            self._writers.write(shared._replace(standing=Standing.STOPPED))

    # --- the disk ---------------------------------------------------------------------------------

    def _sync(self, end: int) -> None:
        # One thread at a time: the system says only once through a descriptor that it failed.
        with self._syncing:
            if self._is_stopped:
                raise refusals.stopped()
            written = self._written
            if self._synced < end:
                try:
                    sync_data(self._entries)
                except OSError as error:
                    self._is_stopped = True
                    self._tell_stopped()
                    raise refusals.stopped() from error
                self._synced = written

    def _tell_stopped(self) -> None:
        with contextlib.suppress(OSError, FeedBusyError), self._using, self._writers:
            shared = self._writers.read()
            if shared is not None:
                self._stop(shared)


def _why_not(standing: Standing) -> KacheryError | None:
    """What the node would say."""
    if standing is Standing.STOPPED:
        return refusals.stopped()
    if standing is Standing.RESTORED:
        return refusals.restored()
    if standing in (Standing.BEHIND, Standing.FORKED, Standing.ENDED):
        return refusals.shut(standing)
    return None
