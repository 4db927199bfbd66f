"""A subfeed whose files are open: what they come to, and how one more record gets to the disk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

from kachery_p2p.errors import ProofError, StateCorruptError
from kachery_p2p.feeds import refusals
from kachery_p2p.feeds.derived import Checkpoint
from kachery_p2p.feeds.disk import NOT_WRITTEN, read_small, sync_data, write_small
from kachery_p2p.feeds.files import OpenFiles
from kachery_p2p.feeds.opening import Recovery
from kachery_p2p.feeds.records import encode_record, entry_spans
from kachery_p2p.feeds.writers import Shared, shut_for_good
from kachery_p2p.limits import FEED_CHECKPOINT_BYTES, FEED_CHECKPOINT_ENTRIES
from kachery_p2p.log.heads import LogId, SignedHead
from kachery_p2p.log.proofs import prove_consistency, verify_consistency
from kachery_p2p.log.tree import Frontier, root_at
from kachery_p2p.store.durable import write_all

# A copy that grew by less since its last checkpoint is quickly read again.
_CLOSING_CHECKPOINT_BYTES = 1 << 20


class Withdrawn(Exception):
    """Nothing of the record is on the disk, and the log is as it was."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class OpenLog:
    """The open files of the subfeed `log` at `path`. All changes are made by one at a time.

    For an own log there is `shared_log.SharedLog`, because others append to it too.
    """

    def __init__(self, path: str, log: LogId, *, owned: bool = False) -> None:
        """Open and mend them. StateCorruptError, ConfigError, FeedInUseError, OSError.

        To a copy no program appends any more, should the log have been an own one: FeedBusyError.
        """
        self.path = path
        self._owned = owned
        self.files = OpenFiles(path, shared=owned)
        self._recovery = Recovery(path, log, self.files.entries, self.files.derived, owned)
        # None when what is derived can no longer be synced.
        self._checkpoint: Checkpoint | None
        # True after a failure that leaves unknown what is on the disk.
        self.is_stopped = False
        # True when hashes and offsets were made of all entries since the files were opened.
        self.is_derived_anew = False
        try:
            if not owned:
                # It may have been an own one, whose writers were told to go on.
                with shut_for_good(path):
                    pass
            self._recover()
        except BaseException:
            self._release()
            raise

    def _recover(self, shared: Shared | None = None) -> None:
        checkpoint = Checkpoint.decode(read_small(f"{self.path}/checkpoint"))
        self.state = self._recovery.state(checkpoint, shared=shared)
        valid = checkpoint.end <= self.state.end
        self._checkpoint = checkpoint if valid else Checkpoint()

    def write(
        self,
        entries: Sequence[bytes],
        frontier: Frontier,
        stored: Sequence[bytes],
        head: SignedHead | None,
    ) -> None:
        """One record, on the disk when it returns; then the log has it.

        Withdrawn if nothing of it is there; FeedStoppedError if nobody knows.
        """
        if self.is_stopped:
            raise refusals.stopped()
        first, end = self.state.frontier.size, self.state.end
        record = encode_record(first, entries, None if head is None else head.encode())
        spans = entry_spans(entries, has_head=head is not None, offset=end)
        try:
            # These first: should the disk be full, nothing has happened yet.
            self.files.derived.write(first, spans, stored)
        except OSError as error:
            raise Withdrawn(error) from error
        with self._stopping():
            write_record(self.files.entries, record, end)
            sync_data(self.files.entries)
        signed = head or self.state.signed
        self.state = self.state._replace(frontier=frontier, signed=signed, end=end + len(record))
        self._note_progress()

    def overwrite(self, entry: bytes, offset: int) -> None:
        """Put a damaged entry back where it was, on the disk when it returns. As `write`."""
        if self.is_stopped:
            raise refusals.stopped()
        # The sync is of everything else too: should it fail, nobody knows what is on the disk.
        with self._stopping():
            try:
                write_all(self.files.entries, entry, offset)
            except OSError as error:
                if error.errno in NOT_WRITTEN:
                    raise Withdrawn(error) from error
                raise
            sync_data(self.files.entries)

    def derive_anew(self) -> None:
        """Make hashes and offsets anew from the entries. StateCorruptError or OSError."""
        self.state = self._recovery.state(Checkpoint(), known=self.state.end)
        self.is_derived_anew = True

    def root_at(self, size: int) -> bytes:
        """The root that the log had with `size` entries, on which its hashes agree."""
        for _ in range(2):
            frontier, read = self.state.frontier, self.files.derived.read_hash
            with contextlib.suppress(ProofError, StateCorruptError):
                root = root_at(size, read)
                path = prove_consistency(size, frontier.size, read)
                verify_consistency(size, root, frontier.size, frontier.root, path)
                return root
            self.derive_anew()
        raise StateCorruptError(f"the hashes in {self.path} are damaged")

    def close(self) -> None:
        """Close the files, as soon as nobody reads from them."""
        last = self._checkpoint
        grown = 0 if last is None else self.state.end - last.end
        # That an own log was once so long is never forgotten.
        if not self.is_stopped and grown > (0 if self._owned else _CLOSING_CHECKPOINT_BYTES):
            self._save_checkpoint()
        self._release()

    def discard(self) -> None:
        """Close the files of a log that is about to be deleted: nothing more is written."""
        self._release()

    def _release(self) -> None:
        self.files.unlock()
        self.files.release()

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[None]:
        """Unless all goes well, or nothing has happened, nobody knows what is on the disk."""
        # Not stopped meanwhile: others look at it, and would not wait for what is on its way.
        try:
            yield
        except Withdrawn:
            raise
        except BaseException as error:
            self.is_stopped = True
            if isinstance(error, OSError):
                raise refusals.stopped() from error
            raise

    def _note_progress(self) -> None:
        """Save a checkpoint if it is time to."""
        last = self._checkpoint
        if last is not None and (
            self.state.frontier.size - last.size >= FEED_CHECKPOINT_ENTRIES
            or self.state.end - last.end >= FEED_CHECKPOINT_BYTES
        ):
            self._save_checkpoint()

    def _save_checkpoint(self) -> None:
        """What is derived is on the disk; should that fail, the next opening takes longer."""
        frontier, signed, end = self.state
        head = None if signed is None else signed.encode()
        try:
            self.files.derived.sync()
            checkpoint = Checkpoint(frontier.size, frontier.root, end, head)
            write_small(f"{self.path}/checkpoint", checkpoint.encode())
            self._checkpoint = checkpoint
        except OSError:
            self._checkpoint = None  # a second sync would succeed and mean nothing


def write_record(entries: int, record: bytes, end: int) -> None:
    """Write a record at the `end` of the entries. Withdrawn if nothing of it is there; OSError."""
    try:
        write_all(entries, record, end)
    except OSError as error:
        if error.errno in NOT_WRITTEN:
            os.ftruncate(entries, end)
            raise Withdrawn(error) from error
        raise
