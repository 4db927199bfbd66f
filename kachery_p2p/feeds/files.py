"""The open files of one subfeed, shared by those who read while they are closed or written.

log         which log this is: two lines of text
entries     the records; its lock (flock) keeps other nodes out
writers     of an own log: the lock of all who append, and where (`writers`)
hashes, offsets, checkpoint      derived (`derived`)
fork, tombstone                  what ends it (`log_file`)
place, mark, mark.2              of an own log: where it was written last (`home`)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator

from kachery_p2p.content.hashes import FeedId
from kachery_p2p.errors import FeedInUseError, StateCorruptError, UriError
from kachery_p2p.feeds.derived import Derived
from kachery_p2p.feeds.disk import (
    is_remote,
    open_directory,
    open_file,
    read_at,
    read_small,
    write_small,
)
from kachery_p2p.feeds.names import HEAD_TAG
from kachery_p2p.feeds.records import Span
from kachery_p2p.feeds.room import noticed_end
from kachery_p2p.feeds.writers import Writers
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.log.heads import LogId

_HEADER = "kachery-p2p-feed-log 1"
# Between the entries of two records lies a head; a longer gap is read around.
_GAP_BYTES_MAX = 4_096
_TEMP_PREFIX = ".temp-"


class OpenFiles:
    """Closed when the last user releases it; whoever makes it is the first."""

    def __init__(self, path: str, *, shared: bool = False) -> None:
        """Open what is at `path`, as the only node. FeedInUseError, ConfigError, OSError.

        `shared`: programs of this user append too.
        """
        self.path = path
        self.writers: Writers | None = None
        self._users = 1
        self._counting = threading.Lock()
        with contextlib.ExitStack() as undo:
            directory = open_directory(path)
            undo.callback(os.close, directory)
            self.entries = self._opened(directory, "entries", undo)
            self._lock()
            self.is_remote = is_remote(self.entries)
            # Only who has the lock may look at the rest.
            self._hashes = self._opened(directory, "hashes", undo)
            self._offsets = self._opened(directory, "offsets", undo)
            if shared:
                self.writers = Writers(self._opened(directory, "writers", undo))
            self._sweep(directory)
            undo.pop_all()
        os.close(directory)
        self.derived = Derived(self._hashes, self._offsets)

    def retain(self) -> bool:
        """One more user needs it; False if it is closed by now."""
        with self._counting:
            if not self._users:
                return False
            self._users += 1
            return True

    def release(self) -> None:
        """One user needs it no more."""
        with self._counting:
            self._users -= 1
            if self._users:
                return
        for fd in (self.entries, self._hashes, self._offsets):
            os.close(fd)
        if self.writers is not None:
            self.writers.close()

    def unlock(self) -> None:
        """Let others open the log, though somebody may still read from here."""
        fcntl.flock(self.entries, fcntl.LOCK_UN)

    def read(self, spans: list[Span]) -> Iterator[bytes]:
        """The bytes in each span, whatever they are. OSError."""
        for run in _runs(spans):
            begin = run[0][0]
            data = read_at(self.entries, sum(run[-1]) - begin, begin)
            for at, length in run:
                yield data[at - begin : at - begin + length]

    def noticed_end(self, end: int) -> int:
        """How far the entries go by what their writers say, and more if something follows.

        The last that is known ends at `end`; less if the file is shorter. OSError.
        """
        said = None if self.writers is None else self.writers.glance()
        return noticed_end(self.entries, end if said is None else max(end, said.end))

    def _opened(self, directory: int, name: str, undo: contextlib.ExitStack) -> int:
        fd = open_file(directory, f"{self.path}/{name}")
        undo.callback(os.close, fd)
        return fd

    def _lock(self) -> None:
        try:
            fcntl.flock(self.entries, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FeedInUseError(
                f"another process uses the feed in {self.path}",
                hint="stop the other node that uses this configuration",
            ) from None

    def _sweep(self, directory: int) -> None:
        """Remove what a writer that was killed left."""
        for name in os.listdir(directory):
            if name.startswith(_TEMP_PREFIX):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=directory)


def write_log_id(path: str, log: LogId) -> None:
    """Note in the directory `path` which log it is of, durably. OSError."""
    write_small(f"{path}/log", f"{_HEADER}\nfeed {log.owner}\nsubfeed {log.name.hex()}\n".encode())


def read_log_id(path: str) -> LogId | None:
    """Which log the directory `path` is of; None if it is not, or not yet, one's.

    StateCorruptError, ConfigError or OSError if something else is there.
    """
    data = read_small(f"{path}/log")
    if data is None:
        return None
    lines = data.decode("ascii", "replace").splitlines()
    with contextlib.suppress(UriError, ValueError, IndexError):
        feed = FeedId.parse(lines[1].removeprefix("feed "))
        name = bytes.fromhex(lines[2].removeprefix("subfeed "))
        if lines[0] == _HEADER and len(name) == 32 and name.hex() == os.path.basename(path):
            return LogId(HEAD_TAG, NodeId(feed), name)
    raise StateCorruptError(f"{path}/log is damaged", hint="move the directory away")


def _runs(spans: list[Span]) -> Iterator[list[Span]]:
    """The spans, grouped so that each group can be read at once."""
    run: list[Span] = []
    for span in spans:
        if run and not 0 <= span[0] - sum(run[-1]) <= _GAP_BYTES_MAX:
            yield run
            run = []
        run.append(span)
    if run:
        yield run
