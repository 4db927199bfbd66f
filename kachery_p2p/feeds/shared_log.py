"""An own subfeed whose files are open in the node, while programs of its user append to it too.

Whoever appends writes one record behind the last one, alone, and syncs when others may go on; so
a sync serves all who wrote before it, and nobody waits for the disk of another. The node takes in
what others have written when it is told, or looks: it reads the records, syncs them itself, adds
them to the tree, and only then shows or signs them. It says in `writers` when nobody may append
any more, before it does anything that this depends on.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence

from kachery_p2p.errors import FeedBusyError, StateCorruptError
from kachery_p2p.feeds import refusals
from kachery_p2p.feeds.disk import sync_data
from kachery_p2p.feeds.opened import OpenLog, Withdrawn, write_record
from kachery_p2p.feeds.opening import State
from kachery_p2p.feeds.records import DOUBTFUL_BYTES_MAX, Span, encode_record, entry_spans
from kachery_p2p.feeds.room import begun_end
from kachery_p2p.feeds.tail import caught_up, whole_records
from kachery_p2p.feeds.writers import Shared, Standing, Writers
from kachery_p2p.limits import FEED_LOCK_S_MAX, FEED_TAKEN_ALONE_BYTES, FEED_TAKEN_BYTES
from kachery_p2p.log.heads import LogId, SignedHead
from kachery_p2p.log.tree import Frontier, leaf_hashes


class Overtaken(FeedBusyError):
    """Others have appended meanwhile: what was verified is to be compared anew."""

    def __init__(self) -> None:
        super().__init__("programs have appended to the feed meanwhile", hint="try it again")


# What may be forgotten with a disk that is lost: a log that is open or unknown is no less then, and
# one that was stopped is what is on the disk. Also, a sync after one that failed means nothing.
_FORGOTTEN = frozenset((Standing.OPEN, Standing.UNKNOWN, Standing.STOPPED))
# What others may say too; everything else only this one.
_OF_OTHERS = frozenset((Standing.STOPPED, Standing.GONE))


class SharedLog(OpenLog):
    """The open files of the own subfeed `log` at `path`."""

    def __init__(self, path: str, log: LogId) -> None:
        """Open and mend them. Nobody else appends before `say` lets them. As `OpenLog`."""
        # What is in the file, of which `state` is on the disk.
        self._written = State()
        # What was said last, should it not be there any more.
        self._said = Standing.UNKNOWN
        super().__init__(path, log, owned=True)

    @property
    def _writers(self) -> Writers:
        assert self.files.writers is not None
        return self.files.writers

    def _recover(self, shared: Shared | None = None) -> None:
        with self._writers:
            shared = self._writers.read()
            if shared is not None:
                # From now on they ask the node: a long log is not read with the lock held.
                self._writers.write(shared._replace(standing=Standing.UNKNOWN))
        super()._recover(shared)
        self._written = self.state
        with self._writers:
            self._tell(Shared(Standing.UNKNOWN, 0, 0, 0))

    def say(self, standing: Standing) -> None:
        """Let others append, or say why they may not; a stopped log stays so. OSError."""
        with self._writers:
            self._say(standing)

    @contextlib.contextmanager
    def shut(self, standing: Standing, otherwise: Callable[[], Standing]) -> Iterator[None]:
        """Alone, with all that others appended taken in; if all goes well, they may no more.

        If not, the log's standing is what `otherwise` says. FeedBusyError, FeedStoppedError,
        StateCorruptError or OSError.
        """
        self._catch_up()
        with self._writers:
            before = self._look()
            # After a failure, also of another's sync, one would succeed and mean nothing.
            self.is_stopped |= before.standing is Standing.STOPPED
            try:
                self._say(standing)
                if not self.is_stopped and self._take_rest(before):
                    self._sync()
                yield
            except BaseException:
                with contextlib.suppress(OSError, StateCorruptError):
                    self._say(Standing.STOPPED if self.is_stopped else otherwise())
                raise

    # --- growing --------------------------------------------------------------------------------

    def absorb(self) -> list[bytes]:
        """The next entries that others appended, which the log has by now; none if there are none.

        FeedStoppedError, StateCorruptError, FeedBusyError or OSError.
        """
        taken: list[bytes] = []
        self._absorb(taken)
        return taken

    def append(
        self, entries: Sequence[bytes], sign: Callable[[Frontier], SignedHead] | None = None
    ) -> int:
        """The position of the first of the entries, which are on the disk when it returns.

        With `sign` the head of all of them comes along. Raises as `write`, and FeedBusyError.
        """
        self._catch_up()
        with self._telling_if_stopped(), self._withdrawing():
            with self._writers:
                shared = self._look()
                self._check_not_stopped(shared)
                if self._take_rest(shared) and sign is not None:
                    self._sync()  # only what is on the disk is signed
                first = self._written.frontier.size
                self._write(shared, entries, sign)
            self._sync()
        self._note_progress()
        return first

    def write(
        self,
        entries: Sequence[bytes],
        frontier: Frontier,
        stored: Sequence[bytes],
        head: SignedHead | None,
        standing: Standing | None = None,
    ) -> None:
        """As `OpenLog.write`; `standing` is that of the log with it, if it changes. Overtaken."""
        with self._telling_if_stopped(), self._writers:
            shared = self._look()
            self._check_not_stopped(shared)
            if shared.end != self.state.end:
                raise Overtaken
            if standing is not None:
                self._say(standing)
                shared = shared._replace(standing=standing)
            super().write(entries, frontier, stored, head)
            self._written = self.state
            self._tell(shared)

    def overwrite(self, entry: bytes, offset: int) -> None:
        """As `OpenLog.overwrite`."""
        with self._telling_if_stopped(), self._writers:
            self._check_not_stopped(self._look())
            super().overwrite(entry, offset)

    def derive_anew(self) -> None:
        """As `OpenLog.derive_anew`."""
        super().derive_anew()
        # What others appended since is taken in again.
        self._written = self.state

    # --- taking in ------------------------------------------------------------------------------

    def _catch_up(self) -> None:
        """Take in nearly all that there is, so that nobody has to wait long for the lock.

        FeedBusyError if that is not possible.
        """
        deadline = time.monotonic() + FEED_LOCK_S_MAX
        before, alone = math.inf, False
        while left := self.files.noticed_end(self._written.end) - self._written.end:
            # Who appends faster than this reads waits meanwhile; between two pieces they write.
            alone |= left >= before
            self._absorb(alone=alone)
            if left < FEED_TAKEN_BYTES or self.is_stopped:
                return
            if time.monotonic() > deadline:
                raise FeedBusyError(
                    f"for {FEED_LOCK_S_MAX:.0f} s programs have appended more than was taken in",
                    hint="try it again; nothing was appended",
                )
            before = left

    def _absorb(self, taken: list[bytes] | None = None, *, alone: bool = False) -> None:
        """Take in a piece of what others appended; the entries are put into `taken`."""
        if self.is_stopped:
            return
        begin = self._written.end
        with self._telling_if_stopped():
            with self._writers:
                shared = self._look()
                self.is_stopped = shared.standing is Standing.STOPPED
                if alone and not self.is_stopped:
                    self._take(shared, FEED_TAKEN_ALONE_BYTES, taken)
            if not alone and not self.is_stopped:
                self._take(shared, FEED_TAKEN_BYTES, taken)
            if self._written.end != begin:
                self._sync()
                self._note_progress()

    def _take_rest(self, shared: Shared) -> bool:
        """Take in all that others wrote, which is not synced yet; False if that is nothing."""
        begin = self._written.end
        while self._written.end != shared.end:
            self._take(shared, FEED_TAKEN_BYTES)
        return begin != shared.end

    def _take(self, shared: Shared, bytes_max: int, taken: list[bytes] | None = None) -> None:
        """Take in what others wrote, `bytes_max` or a little more; it is not synced yet.

        The entries are put into `taken`.
        """
        frontier, signed, end = self._written
        if shared.end == end:
            return
        leaves: list[bytes] = []
        spans: list[Span] = []
        records = whole_records(self.files.entries, frontier.size, end, shared.end)
        for record in records:
            leaves += leaf_hashes(record.body.entries)
            spans += record.body.spans
            end = record.end
            if taken is not None:
                taken += record.body.entries
            if end - self._written.end >= bytes_max:
                break
        if end == self._written.end:
            raise self._corrupt(f"are damaged: the record at {end} is")
        extended, stored = frontier.extended(leaves)
        self.files.derived.write(frontier.size, spans, stored)
        self._written = State(extended, signed, end)

    # --- inside; all of these by who holds the lock ---------------------------------------------

    def _look(self) -> Shared:
        """Where the log ends by now. What a writer that was killed has not finished is cut off."""
        written, entries = self._written, self.files.entries
        shared = self._writers.read() or Shared(self._said, 0, 0, self.state.end)
        if shared.standing not in _OF_OTHERS:
            # It may not have been possible to say it.
            shared = shared._replace(standing=self._said)
        if shared.end < written.end:
            # It could not be said.
            shared = shared._replace(size=written.frontier.size, end=written.end)
        length = begun_end(entries, shared.end)
        if length < shared.end:
            raise self._corrupt("are fewer than they were")
        if length == shared.end:
            return shared
        known = caught_up(entries, shared.size, shared.end, length)
        if known is None:
            raise self._corrupt(f"are damaged behind {shared.end}")
        return shared._replace(size=known[0], end=known[1])

    def _write(
        self,
        shared: Shared,
        entries: Sequence[bytes],
        sign: Callable[[Frontier], SignedHead] | None,
    ) -> None:
        """Put a record into the file, to be synced. Withdrawn if nothing of it is there."""
        frontier, signed, end = self._written
        extended, stored = frontier.extended(leaf_hashes(entries))
        head = None if sign is None else sign(extended)
        synced = max(shared.synced, self.state.end)
        if end - synced > DOUBTFUL_BYTES_MAX:
            self._sync()
            synced = end
        encoded = None if head is None else head.encode()
        record = encode_record(frontier.size, entries, encoded, end - synced)
        spans = entry_spans(entries, has_head=head is not None, offset=end)
        try:
            # These first: should the disk be full, nothing has happened yet.
            self.files.derived.write(frontier.size, spans, stored)
        except OSError as error:
            raise Withdrawn(error) from error
        with self._stopping():
            write_record(self.files.entries, record, end)
        self._written = State(extended, head or signed, end + len(record))
        self._tell(shared._replace(synced=synced))

    def _sync(self) -> None:
        """All that was taken or written is on the disk. FeedStoppedError."""
        with self._stopping():
            sync_data(self.files.entries)
        self.state = self._written

    def _tell(self, shared: Shared) -> None:
        """Say where the log ends, as far as it is known here."""
        size, end = self._written.frontier.size, self._written.end
        synced = max(shared.synced, self.state.end)
        # If it cannot be said, the next one who writes finds the record behind what is said.
        with contextlib.suppress(OSError):
            self._writers.write(Shared(shared.standing, size, end, synced))

    def _say(self, standing: Standing) -> None:
        shared = self._look()
        if shared.standing is not Standing.STOPPED:
            self._said = standing
            self._writers.write(shared._replace(standing=standing))
            if standing not in _FORGOTTEN and standing is not shared.standing:
                # What follows may be on the disk when the disk is lost, and mounted again.
                self._writers.sync()

    def _check_not_stopped(self, shared: Shared) -> None:
        # Others may have failed to sync. What is on the disk is found out when it is opened anew.
        if self.is_stopped or shared.standing is Standing.STOPPED:
            self.is_stopped = True
            raise refusals.stopped()

    @contextlib.contextmanager
    def _withdrawing(self) -> Iterator[None]:
        """If nothing comes of it, what was taken in on the way is taken in again, and synced."""
        try:
            yield
        except BaseException:
            if not self.is_stopped:
                self._written = self.state
            raise

    @contextlib.contextmanager
    def _telling_if_stopped(self) -> Iterator[None]:
        """Not to be used by who holds the lock. Nobody appends any more when this node stopped."""
        try:
            yield
        finally:
            if self.is_stopped:
                self._tell_stopped()

    def _tell_stopped(self) -> None:
        with contextlib.suppress(OSError, FeedBusyError, StateCorruptError), self._writers:
            self._say(Standing.STOPPED)

    def _corrupt(self, how: str) -> StateCorruptError:
        return StateCorruptError(
            f"the entries in {self.path} {how}", hint="restart the node, which looks at all of them"
        )
