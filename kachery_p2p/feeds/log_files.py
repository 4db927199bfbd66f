"""All subfeeds on this node's disk: CONFIG/feeds/xx/SUBFEEDID, xx its first two digits.

Only so many are open at once; those that were used least lately are closed, and opened again
when they are used. A deleted one is gone at once, even if the node is killed meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator
from weakref import WeakValueDictionary

from kachery_p2p.errors import KacheryError, StateCorruptError
from kachery_p2p.feeds.derived import Checkpoint
from kachery_p2p.feeds.disk import make_directories, read_small, using
from kachery_p2p.feeds.files import read_log_id, write_log_id
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.room import noticed_end_of
from kachery_p2p.feeds.writers import shut_for_good
from kachery_p2p.limits import FEED_DESCRIPTORS_PART, FEED_FILES_OPEN_MAX
from kachery_p2p.log.heads import NAME_BYTES, LogId, Signer
from kachery_p2p.store.durable import sync_directory

_DELETED = ".deleted-"
_DIGITS = frozenset("0123456789abcdef")
_DESCRIPTORS_EACH = 4


class LogFiles:
    """The subfeeds below `directory`. Safe in any thread; one `LogFile` for each subfeed."""

    def __init__(self, directory: str, open_max: int | None = None) -> None:
        """Not so many are open as would take other users' descriptors, unless `open_max` is set."""
        self.directory = directory
        self._open_max = _open_max() if open_max is None else open_max
        self._lock = threading.RLock()
        self._known: WeakValueDictionary[LogId, LogFile] = WeakValueDictionary()
        # The open ones, those used last at the end. Nothing is waited for with this lock held.
        self._using = threading.Lock()
        self._open: OrderedDict[LogId, LogFile] = OrderedDict()
        self._sweep()

    def own(self, log: LogId, key: Signer, *, away: bool = False) -> LogFile:
        """The log that this node signs with `key`, made if it is not here.

        `away`: the key is not where it was made, so a log that is not here may be elsewhere; one
        that is made now counts as restored. Raises what `LogFile.open` raises.
        """
        assert key.node_id == log.owner
        found = self._found(log) or self._made(log, key, away=away)
        found.take_key(key, away=away)
        return self._opened(found)

    def copy(self, log: LogId) -> LogFile:
        """The copy of somebody's log, made if it is not here; an own log if it is open as one.

        Raises what `LogFile.open` raises.
        """
        return self._opened(self._found(log) or self._made(log, None))

    def get(self, log: LogId) -> LogFile | None:
        """The log if it is here, as a copy unless it is open as an own one; None if not."""
        return self.copy(log) if self.has(log) else None

    def has(self, log: LogId) -> bool:
        """True if the log is here."""
        return self._found(log) is not None or self._is_here(log)

    def has_grown(self, log: LogId, size: int) -> bool:
        """True if an own log, open or not, has come to more than the `size` it had once."""
        found = self._found(log)
        if found is not None:
            return found.size > size or found.has_grown()
        # One that was closed says in its checkpoint how far it came.
        path = self._path(log)
        with contextlib.suppress(OSError, KacheryError):
            end = Checkpoint.decode(read_small(f"{path}/checkpoint")).end
            return noticed_end_of(f"{path}/entries", end) != end
        return False

    def known(self) -> Iterator[LogId]:
        """The logs that are here, in no order. One whose directory is damaged is left out."""
        with using(self.directory), contextlib.suppress(FileNotFoundError):
            for part in sorted(os.listdir(self.directory)):
                if len(part) == 2 and set(part) <= _DIGITS:
                    yield from self._known_below(f"{self.directory}/{part}")

    def shut(self, log: LogId) -> None:
        """Programs append to the log no more, until it is opened as an own one. FeedBusyError."""
        path = self._path(log)
        with using(path), shut_for_good(path):
            pass

    def delete(self, log: LogId) -> None:
        """Remove the log from this disk, for good; whoever uses it gets UnknownFeedError."""
        path, aside = self._path(log), f"{self.directory}/{_DELETED}{os.urandom(8).hex()}"
        with using(self.directory), contextlib.suppress(FileNotFoundError):
            while not self._put_aside(log, aside):
                pass
            sync_directory(os.path.dirname(path))
            sync_directory(self.directory)
            # What is left (NFS keeps what is open under another name) is swept another time.
            shutil.rmtree(aside, ignore_errors=True)

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            known = list(self._known.values())
        for log_file in known:
            log_file.close()
        with self._using:
            self._open.clear()

    def _found(self, log: LogId) -> LogFile | None:
        with self._lock:
            return self._known.get(log)

    def _put_aside(self, log: LogId, aside: str) -> bool:
        """Move the log's directory; False if somebody has just opened it anew. FeedBusyError."""
        found = self._found(log)
        try:
            # Others are not kept from their logs while this waits for who uses this one.
            if found is not None:
                found.forget()
            with shut_for_good(self._path(log)), self._lock:
                if self._known.get(log) is not found:
                    return False
                os.rename(self._path(log), aside)
                return True
        finally:
            with self._lock, self._using:
                for known in (self._known, self._open):
                    if found is not None and known.get(log) is found:
                        del known[log]

    def _made(self, log: LogId, key: Signer | None, *, away: bool = False) -> LogFile:
        path = self._path(log)
        with self._lock, using(path):
            if not self._is_here(log):
                make_directories(self.directory, log.name.hex()[:2], log.name.hex())
                write_log_id(path, log)
            elif read_log_id(path) != log:
                raise StateCorruptError(f"{path} is of another feed", hint="move it away")
            # Another thread may have been faster.
            made = LogFile(path, log, key, away=away, opened=self._note_use)
            return self._known.setdefault(log, made)

    def _opened(self, log_file: LogFile) -> LogFile:
        """The same, open; not while locked, because a long log takes a second."""
        log_file.open()
        self._note_use(log_file)
        return log_file

    def _note_use(self, log_file: LogFile) -> None:
        """Close those that were used least lately, if there are too many."""
        with self._using:
            self._open[log_file.log] = log_file
            self._open.move_to_end(log_file.log)
            surplus = len(self._open) - self._open_max
            closing = [self._open.popitem(last=False)[1] for _ in range(surplus)]
        for oldest in closing:
            # Not waited for: its user may be about to close this one.
            if not oldest.close_if_idle():
                with self._using:
                    self._open.setdefault(oldest.log, oldest)

    def _is_here(self, log: LogId) -> bool:
        with using(self._path(log)):
            return os.path.lexists(f"{self._path(log)}/log")

    def _path(self, log: LogId) -> str:
        assert len(log.name) == NAME_BYTES
        name = log.name.hex()
        return f"{self.directory}/{name[:2]}/{name}"

    def _known_below(self, path: str) -> Iterator[LogId]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for name in sorted(os.listdir(path)):
                with contextlib.suppress(KacheryError, OSError):
                    log = read_log_id(f"{path}/{name}")
                    if log is not None:
                        yield log

    def _sweep(self) -> None:
        """Remove what a delete that was killed left."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self.directory):
                if name.startswith(_DELETED):
                    shutil.rmtree(f"{self.directory}/{name}", ignore_errors=True)


def _open_max() -> int:
    """How many subfeeds may be open in this process."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return FEED_FILES_OPEN_MAX
    return max(1, min(FEED_FILES_OPEN_MAX, allowed // FEED_DESCRIPTORS_PART // _DESCRIPTORS_EACH))
