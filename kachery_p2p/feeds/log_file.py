"""One subfeed on the disk: an own one, which grows by signing, or a copy of somebody's.

What is acknowledged is on the disk: the entries of one call are one record, written and synced
at once (`records`). An own log signs only what is on the disk, and only when somebody asks for
the head: a whole record counts as signed, so the head can wait, and a crash loses nothing by it.
After a failed sync nobody knows what is on the disk, so nothing more is taken until the log is
opened anew. Methods are safe in any thread: changes wait for each other,
reading waits for nobody. They block, so the node calls them in threads.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence

from kachery_p2p.errors import (
    FeedStoppedError,
    ProofError,
    StateCorruptError,
    UnknownFeedError,
)
from kachery_p2p.feeds import reading, refusals
from kachery_p2p.feeds.disk import (
    feed_error,
    place_of,
    read_small,
    sync_data,
    using,
    write_small,
)
from kachery_p2p.feeds.ending import Ending
from kachery_p2p.feeds.opened import OpenLog, Withdrawn
from kachery_p2p.feeds.opening import State
from kachery_p2p.feeds.tombstones import End, Tombstone
from kachery_p2p.limits import FEED_DAMAGED_MAX, FEED_READ_BYTES_MAX, FEED_READ_ENTRIES_MAX
from kachery_p2p.log.forks import ForkProof
from kachery_p2p.log.heads import LogId, SignedHead, Signer
from kachery_p2p.log.rules import sign_durable
from kachery_p2p.log.tree import Frontier, leaf_hash
from kachery_p2p.store.durable import write_all


class LogFile:
    """The subfeed `log` in the directory `path`. Made by `LogFiles`, one for each subfeed."""

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
            opened = OpenLog(self.path, self.log, owned=self.owned)
            try:
                self._ending = Ending.load(self.path, self.log)
                self._state = opened.state
                if self.owned:
                    self._check_place(opened)
            except BaseException:
                opened.close()
                raise
            self._opened = opened

    # --- what is known ------------------------------------------------------------------------

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

    # --- growing ------------------------------------------------------------------------------

    def append(self, entries: Sequence[bytes], time_ms: int) -> int:
        """Put `entries` behind the last one, on the disk when it returns.

        The position of the first. Without entries the head is signed anew. FeedReadOnlyError,
        FeedForkedError, FeedEndedError, FeedRestoredError, FeedBehindError, FeedStoppedError,
        UnknownFeedError if nothing may be appended; StorageFullError if there is no space, and
        then nothing has changed.
        """
        with self._changing, self._using() as opened:
            self._check_appendable(opened)
            first, head = self.size, None
            frontier, stored = self._state.frontier.extended(map(leaf_hash, entries))
            if not entries and self._key is not None:
                head = sign_durable(self.log, self._key, frontier, self.signed, time_ms)
            self._write(opened, entries, frontier, stored, head)
            self._appended_ms = time_ms
            return first

    def keep(
        self,
        entries: Sequence[bytes],
        frontier: Frontier,
        stored: Sequence[bytes],
        head: SignedHead | None,
    ) -> None:
        """Put `entries` that the owner signed behind the last one, on the disk when it returns.

        The caller has verified all of it: `frontier` and `stored` are those of the log with the
        entries, and `head`, if it is a better one, continues `signed`. What is kept is always
        within what the best head says. FeedForkedError or FeedEndedError beyond a fork or a
        tombstone; FeedStoppedError, StorageFullError as in `append`.
        """
        with self._changing, self._using() as opened:
            assert self.size + len(entries) == frontier.size, "entries leave no gap"
            self._check_open_end(frontier.size)
            head = head if head is not None and _is_better(head, self.signed) else None
            if not entries and head is None:
                return
            best = head or self.signed
            assert best is not None, "entries need a head that says so"
            assert best.size >= frontier.size, "entries need a head that says so"
            self._write(opened, entries, frontier, stored, head)

    def mend(self, position: int, entry: bytes) -> None:
        """Put the entry back that was signed at `position`, on the disk when it returns.

        ProofError if it is not that entry.
        """
        with self._changing, self._using() as opened:
            files = opened.files
            if not reading.belongs(files, self.frontier(), position, leaf_hash(entry)):
                raise ProofError(f"the entry is not the one that was signed at {position}")
            spans = files.derived.spans(position, 1)
            if not spans or spans[0][1] != len(entry):
                raise StateCorruptError(f"the place of entry {position} in {self.path} is unknown")
            write_all(files.entries, entry, spans[0][0])
            sync_data(files.entries)
            files.derived.write_leaf(position, leaf_hash(entry))
            self._damaged.discard(position)

    # --- how it ends, and where it lies -----------------------------------------------------

    def convict(self, fork: ForkProof) -> None:
        """Keep a fork proof, on the disk when it returns: the log is read to where both agree.

        HeadError or ProofError if it proves nothing.
        """
        fork.verify(self.log)
        with self._changing, self._using():
            self._ending = self._ending.with_fork(fork)
            self._ending.save(self.path)

    def end(self, tombstone: Tombstone) -> None:
        """Keep a tombstone, on the disk when it returns: the log is read to where it says.

        HeadError if the owner did not sign it; ProofError if the entries here are others.
        """
        tombstone.verify(self.log)
        with self._changing, self._using() as opened:
            if tombstone.size <= self.size and opened.root_at(tombstone.size) != tombstone.root:
                raise ProofError("the tombstone is about another history of the feed")
            self._ending = self._ending.with_tombstone(tombstone)
            self._ending.save(self.path)

    def settle(self) -> None:
        """This is the only copy with the key, somebody has made sure: append here from now on."""
        with self._changing, self._using() as opened:
            write_small(f"{self.path}/place", place_of(opened.files.entries))
            self.restored = False

    def close(self) -> None:
        """Close the files; they are opened again when they are needed."""
        with self._changing:
            opened, self._opened = self._opened, None
            if opened is not None:
                self._note_head(opened)
                opened.close()

    def forget(self) -> None:
        """Close the files for good: they are about to be deleted."""
        with self._changing:
            self._gone = True
            self.close()

    def take_key(self, key: Signer, *, away: bool) -> None:
        """From now on this is an own log."""
        assert key.node_id == self.log.owner
        with self._changing:
            if self._key is None:
                self._key, self._away = key, away
                self.close()

    # --- inside -----------------------------------------------------------------------------

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

    def _check_place(self, opened: OpenLog) -> None:
        known, here = read_small(f"{self.path}/place"), place_of(opened.files.entries)
        if known is None and self._state == State() and not self._away:
            write_small(f"{self.path}/place", here)
            known = here
        self.restored = known != here

    def _check_appendable(self, opened: OpenLog) -> None:
        if self._key is None:
            raise refusals.read_only()
        self._check_open_end(self.size + 1)
        if self.restored:
            raise refusals.restored()
        if opened.is_stopped:
            raise refusals.stopped()
        best = self._state.signed
        if best is not None and best.size > self.size:
            raise refusals.behind(best.size, self.size)

    def _check_open_end(self, size: int) -> None:
        """Raise if the log has ended before `size` entries."""
        if self._ending.readable(size) < size:
            raise self._ending.error()

    def _write(
        self,
        opened: OpenLog,
        entries: Sequence[bytes],
        frontier: Frontier,
        stored: Sequence[bytes],
        head: SignedHead | None,
    ) -> None:
        try:
            opened.write(entries, frontier, stored, head)
        except Withdrawn as error:
            raise feed_error(error.reason, self.path) from error.reason
        with self._signing:
            self._state = opened.state
            self._head = head or self._head

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

    def _note_head(self, opened: OpenLog) -> None:
        """Put the head of an own log on the disk, where nobody needs the key to believe it."""
        head = self.signed
        if head is not None and head != opened.state.signed and not opened.is_stopped:
            with contextlib.suppress(Withdrawn, FeedStoppedError):
                opened.write([], opened.state.frontier, [], head)

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


def _is_better(head: SignedHead, best: SignedHead | None) -> bool:
    return best is None or (head.size, head.time_ms) > (best.size, best.time_ms)
