"""One subfeed on the disk: an own one, which grows by signing, or a copy of somebody's.

What is acknowledged is on the disk: the entries of one call are one record, written and synced
at once (`records`). To an own log programs of the node's user append as well (`shared_log`): the
log has what they wrote once it has taken it in (`absorb`). After a failed sync nobody knows what
is on the disk, so nothing more is taken until the log is opened anew. Methods are safe in any
thread: changes wait for each other, reading waits for nobody. They block, so the node calls them
in threads.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from kachery_p2p.content.hashes import FeedId
from kachery_p2p.errors import FeedBusyError, KacheryError, ProofError, StateCorruptError
from kachery_p2p.feeds import reading, refusals
from kachery_p2p.feeds.disk import feed_error
from kachery_p2p.feeds.ending import Ending
from kachery_p2p.feeds.held_log import HeldLog
from kachery_p2p.feeds.home import is_at_home, is_noted, note_home
from kachery_p2p.feeds.opened import OpenLog, Withdrawn
from kachery_p2p.feeds.opening import State
from kachery_p2p.feeds.room import noticed_end_of
from kachery_p2p.feeds.shared_log import Overtaken, SharedLog
from kachery_p2p.feeds.tombstones import Tombstone
from kachery_p2p.feeds.writers import Standing
from kachery_p2p.log.forks import ForkProof
from kachery_p2p.log.heads import LogId, SignedHead, Signer
from kachery_p2p.log.tree import Frontier, leaf_hash


class LogFile(HeldLog):
    """The subfeed `log` in the directory `path`. Made by `LogFiles`, one for each subfeed."""

    def __init__(
        self,
        path: str,
        log: LogId,
        key: Signer | None = None,
        *,
        away: bool = False,
        opened: Callable[[LogFile], None] = lambda log: None,
    ) -> None:
        """As `HeldLog`. `opened` is called whenever the files were, by whoever needed them; it may
        wait for no other log.
        """
        super().__init__(path, log, key, away=away)
        self._on_opened = opened

    # --- growing -----------------------------------------------------------------------------

    def append(self, entries: Sequence[bytes], time_ms: int) -> int:
        """Put `entries` behind the last one, on the disk when it returns.

        The position of the first. Without entries the head is signed anew. FeedReadOnlyError,
        FeedForkedError, FeedEndedError, FeedRestoredError, FeedBehindError, FeedStoppedError,
        UnknownFeedError if nothing may be appended; StorageFullError if there is no space, and
        then nothing has changed.
        """
        with self._changing, self._using() as opened:
            self._check_appendable(opened)
            assert isinstance(opened, SharedLog)
            sign = None if entries else self._signing_at(time_ms)
            try:
                with self._explaining():
                    first = opened.append(entries, sign)
            finally:
                # Also if nothing was appended: what others did was taken in.
                self._took(opened, time_ms)
            if sign is not None:
                self._head = opened.state.signed
            return first

    def has_grown(self) -> bool:
        """True if others have appended to an own log what it has not taken in yet.

        As quick as `untaken`.
        """
        return self.untaken() != 0

    def untaken(self) -> int:
        """How many bytes others have appended to an own log that it has not taken in yet; in 5 us.

        At least one for what no writer has said yet; less than none if the file is shorter.
        Unless it `is_quick` it takes longer, and the disk may be waited for.
        """
        if not self.owned:
            return 0
        opened = self._opened
        with contextlib.suppress(OSError):
            if opened is None or not opened.files.retain():
                return noticed_end_of(f"{self.path}/entries", self._state.end) - self._state.end
            try:
                end = self._state.end
                return 0 if opened.is_stopped else opened.files.noticed_end(end) - end
            finally:
                opened.files.release()
        return 0

    def absorb(self) -> tuple[int, list[bytes]]:
        """Take in what others appended to an own log: the position of the first, and the entries.

        Not all at once, if they are many; all has come when it answers none. What was there when
        the files had to be opened comes with that, before the first. FeedStoppedError,
        StateCorruptError, FeedBusyError, UnknownFeedError, a StoreError.
        """
        # Where it is quick to see whoever calls has seen it, or was told.
        if not self.is_quick and not self.has_grown():
            return self.size, []
        with self._changing, self._using() as opened:
            first = self.size
            if not isinstance(opened, SharedLog):
                return first, []
            return first, self._absorbed(opened)

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
        tombstone; FeedStoppedError, StorageFullError as in `append`; Overtaken if programs have
        appended to an own log meanwhile, which it has taken in, or `frontier` is no more that of
        the log with the entries: nothing of this is kept.
        """
        with self._changing, self._using() as opened:
            if self.size + len(entries) != frontier.size:
                # The files were opened anew after a sync that failed, and come to more, or less.
                raise Overtaken
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

        ProofError if it is not that entry; FeedStoppedError, StorageFullError as in `append`.
        """
        with self._changing, self._using() as opened:
            files = opened.files
            if not reading.belongs(files, self.frontier(), position, leaf_hash(entry)):
                raise ProofError(f"the entry is not the one that was signed at {position}")
            spans = files.derived.spans(position, 1)
            if not spans or spans[0][1] != len(entry):
                raise StateCorruptError(f"the place of entry {position} in {self.path} is unknown")
            with self._explaining():
                opened.overwrite(entry, spans[0][0])
            files.derived.write_leaf(position, leaf_hash(entry))
            self._damaged.discard(position)

    # --- how it ends, and where it lies ------------------------------------------------------

    def convict(self, fork: ForkProof) -> None:
        """Keep a fork proof, on the disk when it returns: the log is read to where both agree.

        HeadError or ProofError if it proves nothing.
        """
        fork.verify(self.log)
        with self._changing, self._using() as opened, self._shut(opened, Standing.FORKED):
            self._keep_ending(self._ending.with_fork(fork))

    def end(self, tombstone: Tombstone) -> None:
        """Keep a tombstone, on the disk when it returns: the log is read to where it says.

        HeadError if the owner did not sign it; ProofError if the entries here are others.
        """
        tombstone.verify(self.log)
        with self._changing, self._using() as opened, self._shut(opened, Standing.ENDED):
            if tombstone.size <= self.size and opened.root_at(tombstone.size) != tombstone.root:
                raise ProofError("the tombstone is about another history of the feed")
            self._keep_ending(self._ending.with_tombstone(tombstone))

    def finish(self, successor: FeedId | None, time_ms: int) -> None:
        """End an own log for good, with all that is in it; the tombstone is on the disk then.

        FeedStoppedError if nobody knows what is in it.
        """
        with self._changing, self._using() as opened, self._shut(opened, Standing.ENDED):
            assert self._key is not None
            if opened.is_stopped:
                raise refusals.stopped()
            root = opened.root_at(self.size)
            tombstone = Tombstone(self.log, self.size, root, successor, time_ms)
            self._keep_ending(self._ending.with_tombstone(tombstone.signed(self._key)))

    def settle(self) -> None:
        """This is the only copy with the key, somebody has made sure: append here from now on."""
        with self._changing, self._using() as opened:
            note_home(self.path, opened.files.entries)
            self.restored = False
            if isinstance(opened, SharedLog):
                self._say_standing(opened)

    def close(self) -> None:
        """Close the files; they are opened again when they are needed."""
        with self._changing:
            opened, self._opened = self._opened, None
            if opened is not None:
                self._note_head(opened)
                with self._signing:
                    self._state = opened.state
                opened.close()

    def close_if_idle(self) -> bool:
        """Close the files if nobody is changing the log at this moment; False if somebody is."""
        if not self._changing.acquire(blocking=False):
            return False
        try:
            self.close()
        finally:
            self._changing.release()
        return True

    def forget(self) -> None:
        """Close the files for good: they are about to be deleted."""
        with self._changing:
            self._gone = True
            opened, self._opened = self._opened, None
            if opened is not None:
                opened.discard()

    def take_key(self, key: Signer, *, away: bool) -> None:
        """From now on this is an own log."""
        assert key.node_id == self.log.owner
        with self._changing:
            if self._key is None:
                self._key, self._away = key, away
                self.close()

    # --- inside ------------------------------------------------------------------------------

    def _begin(self, opened: OpenLog) -> None:
        if isinstance(opened, SharedLog):
            self._check_place(opened)
            self._say_standing(opened)

    def _note_opened(self) -> None:
        self._on_opened(self)

    def _check_place(self, opened: OpenLog) -> None:
        entries = opened.files.entries
        if self._state == State() and not self._away and not is_noted(self.path):
            note_home(self.path, entries)
        self.restored = not is_at_home(self.path, entries)
        if not self.restored:
            # As it is noted now, should it have been an older version. If it cannot be: next time.
            with contextlib.suppress(OSError, KacheryError):
                note_home(self.path, entries)

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
        with self._explaining():
            if isinstance(opened, SharedLog):
                self._write_shared(opened, entries, frontier, stored, head)
            else:
                opened.write(entries, frontier, stored, head)
        with self._signing:
            self._state = opened.state
            # That of a copy is in its state, and nowhere else: it may come to less when it is
            # opened anew.
            self._head = (head or self._head) if self.owned else None

    def _write_shared(
        self,
        opened: SharedLog,
        entries: Sequence[bytes],
        frontier: Frontier,
        stored: Sequence[bytes],
        head: SignedHead | None,
    ) -> None:
        """As `OpenLog.write`; nobody appends to a log of which a longer copy is known."""
        try:
            opened.write(entries, frontier, stored, head, self._standing(head, frontier.size))
            self._state = opened.state
        except Overtaken:
            # So that it is there when this is compared anew.
            self._absorbed(opened)
            raise
        finally:
            with contextlib.suppress(OSError, FeedBusyError, StateCorruptError):
                opened.say(self._standing())

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except Withdrawn as error:
            raise feed_error(error.reason, self.path) from error.reason

    def _took(self, opened: SharedLog, time_ms: int) -> None:
        """The own log may have grown."""
        with self._signing:
            if self._state is not opened.state:
                self._state = opened.state
                self._appended_ms = time_ms

    def _absorbed(self, opened: SharedLog) -> list[bytes]:
        try:
            return opened.absorb()
        finally:
            self._took(opened, int(time.time() * 1000))

    def _note_head(self, opened: OpenLog) -> None:
        """Put the head of an own log on the disk that was shown last, if it was since the last."""
        head = self._head
        if head is None or head == opened.state.signed or opened.is_stopped:
            return
        # What others append at this moment is signed later.
        with contextlib.suppress(Withdrawn, Overtaken, KacheryError, OSError):
            opened.write([], opened.state.frontier, [], head)

    # --- others who append -------------------------------------------------------------------

    def _standing(self, head: SignedHead | None = None, size: int | None = None) -> Standing:
        """Whether others may append to the own log, with this head and size if they are given."""
        best = head or self._state.signed
        if self.fork is not None:
            return Standing.FORKED
        if self.tombstone is not None:
            return Standing.ENDED
        if self.restored:
            return Standing.RESTORED
        if best is not None and best.size > (self.size if size is None else size):
            return Standing.BEHIND
        return Standing.OPEN

    @contextlib.contextmanager
    def _shut(self, opened: OpenLog, standing: Standing) -> Iterator[None]:
        """Nobody appends any more, and what was appended is here, before what follows is done."""
        if not isinstance(opened, SharedLog):
            yield
            return
        with opened.shut(standing, self._standing):
            self._took(opened, int(time.time() * 1000))
            yield

    def _say_standing(self, opened: SharedLog) -> None:
        # If there is no space to say it, programs leave it to the node until it can be said.
        with contextlib.suppress(OSError):
            opened.say(self._standing())

    def _keep_ending(self, ending: Ending) -> None:
        """Keep what ends the log; only what is on the disk counts."""
        try:
            ending.save(self.path)
        except OSError:
            # It may be there all the same, as the next who opens the log would see it.
            with contextlib.suppress(OSError, KacheryError):
                self._ending = Ending.load(self.path, self.log)
            raise
        self._ending = ending


def _is_better(head: SignedHead, best: SignedHead | None) -> bool:
    return best is None or (head.size, head.time_ms) > (best.size, best.time_ms)
