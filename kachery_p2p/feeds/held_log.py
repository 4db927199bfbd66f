"""What one subfeed on the disk has: its entries and hashes, read back, and its best head.

An own log signs only what is on the disk, and only when somebody asks for the head: a whole
record counts as signed, so the head can wait, and a crash loses nothing by it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from kachery_p2p.errors import StateCorruptError, UnknownFeedError
from kachery_p2p.feeds import reading, refusals
from kachery_p2p.feeds.disk import feed_error, using
from kachery_p2p.feeds.ending import Ending
from kachery_p2p.feeds.opened import OpenLog
from kachery_p2p.feeds.opening import State
from kachery_p2p.feeds.shared_log import SharedLog
from kachery_p2p.feeds.tombstones import End
from kachery_p2p.limits import FEED_DAMAGED_MAX, FEED_READ_BYTES_MAX, FEED_READ_ENTRIES_MAX
from kachery_p2p.log.forks import ForkProof
from kachery_p2p.log.heads import LogId, SignedHead, Signer
from kachery_p2p.log.rules import sign_durable
from kachery_p2p.log.tree import Frontier


class HeldLog:
    """The part of `LogFile` that changes nothing."""

    def __init__(
        self, path: str, log: LogId, key: Signer | None = None, *, away: bool = False
    ) -> None:
        """With the owner's `key` it is an own log; one that begins while the key is `away` from
        where it was made counts as restored. To be opened before it is used.
        """
        self.log = log
        self.path = path
        # True for an own log whose files are not where they were written: see `settle`.
        self.restored = False
        self._key = key
        self._away = away
        self._ending = Ending()
        # The last head of an own log, which need not be on the disk, and when that was appended.
        self._head: SignedHead | None = None
        self._appended_ms: int | None = None
        self._signing = threading.Lock()
        self._gone = False
        self._damaged: set[int] = set()
        # As it was last: it stays when the files are closed.
        self._state = State()
        self._opened: OpenLog | None = None
        self._changing = threading.RLock()

    def open(self) -> None:
        """Open the files, and mend what a crash left.

        StateCorruptError, ConfigError, FeedInUseError, UnknownFeedError or a StoreError.
        """
        with self._changing, using(self.path):
            if self._gone:
                raise UnknownFeedError("the feed was deleted")
            if self._opened is not None:
                return
            opened = (SharedLog if self.owned else OpenLog)(self.path, self.log)
            try:
                self._ending = Ending.load(self.path, self.log)
                self._state = opened.state
                self._begin(opened)
            except BaseException:
                opened.close()
                raise
            self._opened = opened
            self._note_opened()

    # --- what is known -----------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """True while the files are open."""
        return self._opened is not None

    @property
    def is_quick(self) -> bool:
        """True while `LogFile.has_grown` waits for no disk, here or elsewhere."""
        opened = self._opened
        return opened is not None and not opened.files.is_remote

    @property
    def owned(self) -> bool:
        """True if this node signs the log."""
        return self._key is not None

    @property
    def size(self) -> int:
        """How many entries are here, all from the first on."""
        return self._state.frontier.size

    @property
    def readable(self) -> int:
        """How many of them may be read: a fork or a tombstone may end the log before."""
        return self._ending.readable(self.size)

    @property
    def signed(self) -> SignedHead | None:
        """The best head that is known, which is never forgotten; it may be of more entries than
        are here. That of an own log, which is signed now if it has grown, is of all of them.
        """
        known = self._head or self._state.signed
        if self._key is None or (known is not None and known.size >= self.size):
            return known
        return self._signed_here(self._key)

    @property
    def signed_size(self) -> int:
        """How many entries `signed` has; asking for it signs nothing, and so takes no time."""
        known = self._head or self._state.signed
        size = 0 if known is None else known.size
        return size if self._key is None or self.fork is not None else max(size, self.size)

    @property
    def fork(self) -> ForkProof | None:
        """The proof that the owner signed two histories, if there is one."""
        return self._ending.fork

    @property
    def tombstone(self) -> End | None:
        """The owner's word that the log ends, if there is one."""
        return self._ending.end

    @property
    def damaged(self) -> tuple[int, ...]:
        """Positions of entries that were found damaged, and are to be mended."""
        return tuple(sorted(self._damaged))

    def frontier(self) -> Frontier:
        """What a log must remember of its entries to grow."""
        return self._state.frontier

    # --- reading -----------------------------------------------------------------------------

    def read_hash(self, place: int) -> bytes:
        """The stored hash at a place, for proofs (`log.tree.ReadHash`).

        It is what the disk says: whoever tells others of it verifies the proof first.
        """
        with self._using() as opened:
            return opened.files.derived.read_hash(place)

    def root_at(self, size: int) -> bytes:
        """The root that the log had with `size` entries, at most those that are here."""
        with self._changing, self._using() as opened:
            return opened.root_at(size)

    def entries(self, first: int, count_max: int, bytes_max: int) -> list[bytes]:
        """The readable entries from `first` on, each as it was signed; none if there are none.

        As many as fit both bounds (and those of `limits`), but at least one.
        EntryDamagedError if the first is not what was signed.
        """
        assert first >= 0
        count = min(self.readable - first, count_max, FEED_READ_ENTRIES_MAX)
        if count <= 0:
            return []
        bytes_max = min(bytes_max, FEED_READ_BYTES_MAX)
        with self._using() as opened:
            found, _ = reading.read_entries(opened.files, first, count, bytes_max)
            if not found and self._is_mended(opened, first):
                found, _ = reading.read_entries(opened.files, first, count, bytes_max)
        if not found:
            self._note_damage(first)
            raise refusals.damaged(first)
        return found

    def check(self) -> tuple[int, ...]:
        """Read everything; the positions of all entries that are damaged. Takes seconds."""
        with self._changing, self._using() as opened:
            opened.is_derived_anew = False
            try:
                wrong = list(reading.wrong_entries(opened.files, self.frontier()))
            except StateCorruptError:
                self._derive_anew(opened)
                wrong = list(reading.wrong_entries(opened.files, self.frontier()))
            self._damaged.clear()
            for position in wrong:
                if not self._is_mended(opened, position):
                    self._note_damage(position)
        return self.damaged

    # --- inside ------------------------------------------------------------------------------

    def _begin(self, opened: OpenLog) -> None:
        """The files are open; what follows of that for an own log."""

    def _note_opened(self) -> None:
        """The files are open from now on, and count."""

    @contextlib.contextmanager
    def _using(self) -> Iterator[OpenLog]:
        """The log while it is open, however often it is closed meanwhile."""
        opened = self._opened
        while opened is None or not opened.files.retain():
            with self._changing:
                self.open()
                opened = self._opened
        try:
            yield opened
        except OSError as error:
            raise feed_error(error, self.path) from error
        finally:
            opened.files.release()

    def _signed_here(self, key: Signer) -> SignedHead | None:
        """The head of all entries, signed if it has not been yet."""
        with self._signing:
            state, known = self._state, self._head or self._state.signed
            size = state.frontier.size
            if not size or (known is not None and known.size >= size) or self.fork is not None:
                return known
            time_ms = self._appended_ms or int(time.time() * 1000)
            self._head = sign_durable(self.log, key, state.frontier, known, time_ms)
            return self._head

    def _signing_at(self, time_ms: int) -> Callable[[Frontier], SignedHead]:
        """What signs the head of an own log."""
        key = self._key
        assert key is not None

        def sign(frontier: Frontier) -> SignedHead:
            return sign_durable(self.log, key, frontier, self._head or self._state.signed, time_ms)

        return sign

    def _is_mended(self, opened: OpenLog, position: int) -> bool:
        """True if the entry is sound after all, and what is derived was wrong."""
        if reading.judge(opened.files, self.frontier(), position) is reading.Verdict.LEAF:
            return True
        if opened.is_derived_anew:
            return False
        # Its offset may be wrong, or the hashes that it is judged by.
        self._derive_anew(opened)
        _, is_sound = reading.read_entries(opened.files, position, 1, 1)
        return position < self.size and is_sound

    def _derive_anew(self, opened: OpenLog) -> None:
        """Make hashes and offsets anew from the entries."""
        with self._changing:
            if self._opened is opened and not opened.is_derived_anew:
                opened.derive_anew()
                self._state = opened.state

    def _note_damage(self, position: int) -> None:
        if len(self._damaged) < FEED_DAMAGED_MAX:
            self._damaged.add(position)
