"""Appending to an own subfeed from a program of the node's user, which needs no node for it.

The files are this user's alone, and the node would do the same: so a program may write the record
itself, and be spared the way to the node and back. It takes the lock of `writers`, sees there
where the next record goes, writes it, lets others go on, and syncs. It never mends anything, never
signs, and leaves hashes and offsets to the node, which takes in what it finds (`shared_log`).
Where anything is not as usual it writes nothing: the node has to do it, or says why it cannot be.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar
from weakref import WeakSet

from kachery_p2p.errors import FeedBusyError, KacheryError
from kachery_p2p.feeds import refusals
from kachery_p2p.feeds.disk import (
    NOT_WRITTEN,
    feed_error,
    open_directory,
    open_file,
    read_at,
    rewrite,
    sync_data,
)
from kachery_p2p.feeds.home import is_at_home
from kachery_p2p.feeds.records import HEADER_BYTES, Header, Packed, pack
from kachery_p2p.feeds.room import begun_end, make_room, written_end
from kachery_p2p.feeds.tail import caught_up, whole_records
from kachery_p2p.feeds.writers import Shared, Standing, Writers, busy, lock_deadline
from kachery_p2p.limits import (
    FEED_IN_FLIGHT_BYTES_MAX,
    FEED_PLACE_S,
    FEED_REWRITTEN_BYTES,
)
from kachery_p2p.store.durable import start_write_back, write_all

Result = TypeVar("Result")

# Then a sync is waited for, which leaves as much again to those who write at this moment.
_UNSYNCED_BYTES_MAX = FEED_IN_FLIGHT_BYTES_MAX // 2


class NotHere(Exception):
    """The node has to append; `why` is what it will say if nothing else is wrong."""

    def __init__(self, why: KacheryError | None = None) -> None:
        super().__init__()
        self.why = why


class OpenedAnew(NotHere):
    """The node has opened the subfeed since it was opened here, so it is to be opened once more."""


class DirectLog:
    """The own subfeed in the directory `path`. Safe in any thread, but not in a forked process."""

    # Of its files `entries` and `writers`.
    _entries = _lock = -1

    def __init__(self, path: str) -> None:
        """Open its files. NotHere if they are not there, or not as the node left them."""
        self._directory, self._path = path, f"{path}/entries"
        # A signal handler may append: its thread has the locks then, of what it interrupts.
        self._using = threading.RLock()
        self._is_inside = False
        self._syncing = threading.RLock()
        # Up to where everything was written that it knows of, and up to where it is on the disk.
        self._written = self._synced = 0
        # Up to where the file had room when it was looked at last.
        self._room = 0
        # Nothing was written yet through this descriptor: it was not told of failed syncs before.
        self._is_new = True
        self._is_stopped = False
        self._looked_at = -math.inf
        _opened.add(self)
        try:
            self._open(path)
        except BaseException as error:
            self.close()
            if isinstance(error, KacheryError) or (isinstance(error, OSError) and _is_real(error)):
                raise NotHere from None
            raise

    def _open(self, path: str) -> None:
        """Open the files. NotHere, OSError, KacheryError."""
        directory = open_directory(path)
        try:
            self._lock = open_file(directory, f"{path}/writers", make=False)
            self._writers = Writers(self._lock)
            # First: what happens to the entries before they are open, nobody says to us.
            shared = self._writers.read()
            self._entries = open_file(directory, self._path, make=False)
        finally:
            os.close(directory)
        if not is_at_home(path, self._entries):
            raise NotHere(refusals.restored())
        self._inodes = os.fstat(self._entries).st_ino, os.fstat(self._lock).st_ino
        self._generation = None if shared is None else shared.generation

    def __del__(self) -> None:
        # Another thread may be at work when it is not remembered any more.
        self.close()

    def close(self) -> None:
        """Close the files; in a forked process, which may not use them."""
        # No signal comes between forgetting a number and closing it.
        entries, self._entries = self._entries, -1
        try:
            if entries >= 0:
                os.close(entries)
        finally:
            lock, self._lock = self._lock, -1
            if lock >= 0:
                os.close(lock)

    def append(self, entries: Sequence[bytes], written: Callable[[], None] | None = None) -> int:
        """The position of the first of the entries, which are on the disk when it returns.

        `written` is called when the node finds them, while the disk has yet to take them: it
        syncs them itself before it shows them, so it need not come after our sync.

        NotHere if the node has to do it, and nothing was appended; then this is not to be used any
        more. FeedStoppedError, after which nobody knows whether they are there; FeedBusyError,
        StorageFullError.
        """
        is_first = self._is_new
        # Now: others wait for who has the lock.
        packed = pack(entries)
        try:
            while self._is_new:
                self._alone(self._rewrite)
            said = self._alone(lambda: self._write(packed))
        except OSError as error:
            if _is_real(error):
                raise feed_error(error, self._directory) from error
            raise
        if written is not None:
            written()
        self._sync(said.end)
        if is_first or said.end - said.synced > FEED_REWRITTEN_BYTES:
            # Else it is said with the next record. It is on the disk, whether it is said or not.
            with contextlib.suppress(OSError, FeedBusyError):
                self._alone(self._vouch)
        return said.size - len(entries)

    def _alone(self, do: Callable[[], Result]) -> Result:
        """What `do` returns, while nobody else writes. FeedBusyError, OSError, what `do` raises.

        Signals come before the first line of any method and behind each call, but not before a
        built-in: so what comes first in a `finally` is always done.
        """
        deadline = lock_deadline()
        patience = max(0.0, deadline - time.monotonic())
        try:
            if not self._using.acquire(timeout=patience):
                raise busy()
            if self._is_inside:
                raise _interrupting()
            try:
                self._is_inside = True
                self._writers.take(deadline)
                return do()
            finally:
                self._is_inside = False
                fcntl.flock(self._lock, fcntl.LOCK_UN)
        finally:
            try:  # noqa: SIM105 - `suppress` is no built-in
                self._using.release()
            except RuntimeError:
                pass  # it was never had

    # --- inside; by who holds the lock ----------------------------------------------------------

    def _current(self) -> Shared:
        """Where the next record goes. NotHere, OSError."""
        shared = self._writers.read()
        if shared is None or self._is_stopped:
            raise NotHere
        if shared.standing is not Standing.OPEN:
            raise NotHere(_why_not(shared.standing))
        if shared.generation != self._generation:
            # It may have been mended while we slept: what we know of it, and what the system has
            # yet to tell us, is about what it was.
            raise OpenedAnew
        self._check_place()
        # What a disk lost that was away and is back may have later pages than the first.
        written = (written_end if self._is_new else begun_end)(self._entries, shared.end)
        if written < shared.end:
            raise NotHere
        if written > shared.end:
            known = caught_up(self._entries, shared.size, shared.end, written)
            if known is None:
                raise NotHere
            shared = shared._replace(size=known[0], end=known[1])
            self._room = 0  # it may have been cut off
        self._written = shared.end
        return shared

    def _check_place(self) -> None:
        """Others may have put another file there, a backup, say, or deleted `writers`, which the
        node makes anew: then the lock is no longer that of the others. NotHere, OSError.
        """
        now = time.monotonic()
        if now >= self._looked_at + FEED_PLACE_S:
            try:
                inodes = os.stat(self._path).st_ino, os.stat(f"{self._directory}/writers").st_ino
            except (FileNotFoundError, NotADirectoryError):
                raise NotHere from None
            if inodes != self._inodes:
                raise NotHere
            self._looked_at = now

    def _rewrite(self) -> None:
        """Write once more what nobody vouches for, a part of it at a time, until it is not new.

        If a sync failed before the file was opened here, nobody says so to us; then pages look as
        if they were on the disk.
        """
        if not self._is_new:
            return  # another thread has done it
        shared = self._current()
        begin = min(shared.synced, shared.end)
        end = self._whole_until(begin, shared)
        rewrite(self._entries, begin, end)
        if end < shared.end:
            # Nobody else syncs here yet: only what has been written once more is vouched for.
            with self._stopping(shared):
                sync_data(self._entries)
            self._writers.write(shared._replace(synced=end))
        else:
            self._is_new = False

    def _whole_until(self, begin: int, shared: Shared) -> int:
        """Where the records end that begin there: all, or some. NotHere if they are not whole.

        A disk that was away may be there again with zeros for what it was never given: written
        once more, they would look like what is on the disk, and what follows them as well.
        """
        if begin == shared.end:
            return begin
        header = Header.decode(read_at(self._entries, HEADER_BYTES, begin))
        size, end = (-1 if header is None else header.first), begin
        for record in whole_records(self._entries, size, begin, shared.end):
            size, end = record.header.end, record.end
            if end - begin >= FEED_REWRITTEN_BYTES:
                break
        is_part = end < shared.end and end - begin >= FEED_REWRITTEN_BYTES
        if not is_part and (end, size) != (shared.end, shared.size):
            raise NotHere
        return end

    def _write(self, packed: Packed) -> Shared:
        """Write the record; what is said behind it. OSError if nothing of it is there."""
        shared = self._current()
        size, end = shared.size, shared.end
        synced = max(shared.synced, self._synced)
        if end - synced > _UNSYNCED_BYTES_MAX:
            # More than a crash may leave half written.
            with self._stopping(shared):
                self._flush(end)
            synced = end
        record = packed.record(size, end - synced)
        try:
            write_all(self._entries, record, end)
        except OSError as error:
            if not _is_real(error):
                raise
            if error.errno not in NOT_WRITTEN:
                self._stop(shared)
                raise refusals.stopped() from error
            os.ftruncate(self._entries, end)
            self._room = 0
            raise
        self._written = end + len(record)
        if self._written > self._room:
            self._room = make_room(self._entries, self._written, len(record))
        if not self._writers.has_waited:
            # The disk takes it while the next one is told where to write. Who waits for that has
            # more of it if the disk is asked once less.
            start_write_back(self._entries, end, len(record))
        size += packed.entry_count
        following = Shared(shared.standing, size, self._written, synced, shared.generation)
        # If it cannot be said, the next one who writes finds the record behind what is said.
        try:
            self._writers.write(following)
        except OSError as error:
            if not _is_real(error):
                raise
        return following

    def _vouch(self) -> None:
        """Say what is on the disk, so that who comes next need not write it once more."""
        shared = self._of_now()
        if shared is not None and shared.synced < self._synced <= shared.end:
            self._writers.write(shared._replace(synced=self._synced))

    def _of_now(self) -> Shared | None:
        """What is said, if others append and the node has not opened the log since. OSError."""
        shared = self._writers.read()
        if shared is None or self._is_stopped or shared.standing is not Standing.OPEN:
            return None
        return shared if shared.generation == self._generation else None

    @contextlib.contextmanager
    def _stopping(self, shared: Shared) -> Iterator[None]:
        """If a sync fails: FeedStoppedError for all."""
        try:
            yield
        except OSError as error:
            if not _is_real(error):
                raise
            self._stop(shared)
            raise refusals.stopped() from error

    def _stop(self, shared: Shared) -> None:
        """Nobody knows what is on the disk: nobody appends until the node has opened it anew."""
        self._is_stopped = True
        with contextlib.suppress(OSError):
            self._writers.write(shared._replace(standing=Standing.STOPPED))

    # --- the disk ---------------------------------------------------------------------------------

    def _sync(self, end: int) -> None:
        """All before `end` is on the disk. FeedStoppedError."""
        try:
            self._flush(end)
        except OSError as error:
            if not _is_real(error):
                raise
            with contextlib.suppress(OSError, FeedBusyError):
                self._alone(self._tell_stopped)
            raise refusals.stopped() from error

    def _flush(self, end: int) -> None:
        """The same. FeedStoppedError if it failed already; OSError if it fails now."""
        # One thread at a time: the system says only once through a descriptor that it failed.
        with self._syncing:
            if self._is_stopped:
                raise refusals.stopped()
            written = self._written
            if self._synced < end:
                try:
                    sync_data(self._entries)
                except OSError as error:
                    # Before anything is called, which Ctrl-C could come before: it is told once.
                    self._is_stopped = self._is_stopped or error.errno is not None
                    raise
                if self._is_stopped:
                    # A signal handler has synced meanwhile, and was told.
                    raise refusals.stopped()
                self._synced = max(self._synced, written)

    def _tell_stopped(self) -> None:
        """Unless the node has seen to it meanwhile: it is not to be stopped once more."""
        shared = self._writers.read()
        if shared is not None and shared.generation == self._generation:
            self._stop(shared)


def _is_real(error: OSError) -> bool:
    """False for the TimeoutError of a signal handler, say, which interrupts as Ctrl-C does."""
    return error.errno is not None


def _interrupting() -> FeedBusyError:
    """To a signal handler: also where it surfaces in what was interrupted, it has to be true."""
    return FeedBusyError(
        "a signal handler cannot append to the feed that the program is just writing to; what the"
        " handler had to append was not appended",
        hint="let the handler only note what is to be appended, and append it outside",
    )


def _why_not(standing: Standing) -> KacheryError | None:
    """What the node would say."""
    if standing is Standing.STOPPED:
        return refusals.stopped()
    if standing is Standing.RESTORED:
        return refusals.restored()
    if standing in (Standing.BEHIND, Standing.FORKED, Standing.ENDED):
        return refusals.shut(standing)
    return None


# With what is open, a forked process would hold its parent's locks, also when the parent is gone.
_opened: WeakSet[DirectLog] = WeakSet()


def _close_all() -> None:
    for log in list(_opened):
        with contextlib.suppress(OSError):
            log.close()


os.register_at_fork(after_in_child=_close_all)
