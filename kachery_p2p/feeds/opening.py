"""Opening a subfeed: what its files come to, after whatever happened to them.

The records behind the checkpoint are read, and the hashes and offsets of their entries made
anew. The last record may be *torn*: begun, but never whole, so nobody was ever told of it; it
is cut off. A whole record counts as signed, whether or not its writer lived to say so. One that
is damaged (a bit has flipped) is passed over where the hashes know its entries, which are then
found damaged when they are read; else an own log is refused, because what was signed may not
be signed once more, and a copy is cut, because it can be fetched again.

When programs append beside the node, a crash can leave several records half written: any of their
pages may be missing, and reads as zeros. Those are cut off too, from the first that is not whole,
if that one has such a gap itself, and no later record says that it was on the disk by then.
What follows a record says nothing about it: behind one that was acknowledged, and has a flipped
bit by now, there can be zeros of a crash as well.
"""

from __future__ import annotations

import contextlib
import os
from itertools import pairwise
from typing import NamedTuple

from kachery_p2p.errors import HeadError, LogFormatError, StateCorruptError
from kachery_p2p.feeds.derived import Checkpoint, Derived
from kachery_p2p.feeds.disk import length_of, read_at, rewrite, sync_data
from kachery_p2p.feeds.records import HEADER_BYTES, MAGIC, Header, Span, decode_body
from kachery_p2p.feeds.room import written_end
from kachery_p2p.feeds.tail import is_cut_short
from kachery_p2p.feeds.writers import Shared
from kachery_p2p.limits import FEED_IN_FLIGHT_BYTES_MAX, RECORD_ENTRIES_MAX
from kachery_p2p.log.entries import ENTRY_BYTES_MAX
from kachery_p2p.log.heads import HEAD_BYTES, LogId, SignedHead
from kachery_p2p.log.tree import Frontier, leaf_hash, root_at

_LENGTH_BYTES = 4
# So many zeros in a row are in no record: a message is text, and fields are shorter.
_UNWRITTEN_BYTES = 32
# A disk has all or nothing of so many bytes; of a record's part of them so many zeros suffice.
_SECTOR_BYTES = 512
_UNWRITTEN_PART_BYTES = 8
_HINT = "delete the feed's copy, or restore its directory; then let it be fetched from a peer"
_OWN_HINT = "restore the directory from a backup; do not delete it, which may be the only copy"


class State(NamedTuple):
    """What a subfeed's files come to."""

    frontier: Frontier = Frontier()
    signed: SignedHead | None = None
    # Where the next record begins.
    end: int = 0


class _Found(NamedTuple):
    """One record, or what takes its place."""

    end: int
    head: bytes | None
    spans: list[Span]
    stored: list[bytes]
    frontier: Frontier


class Recovery:
    """Reads the open files of the subfeed `log` at `path`, alone, and mends what may be mended."""

    def __init__(self, path: str, log: LogId, entries: int, derived: Derived, owned: bool) -> None:
        self._path = path
        self._log = log
        self._entries = entries
        self._derived = derived
        self._owned = owned
        self._floor = 0
        self._shared: Shared | None = None
        # How long the file is, and up to where it is written: behind that is room for more.
        self._length = 0
        self._written = 0
        self._is_known = False

    def state(
        self, checkpoint: Checkpoint, *, shared: Shared | None = None, known: int | None = None
    ) -> State:
        """What the files come to, on disk. StateCorruptError or OSError.

        `shared`: what writers said, if others wrote since the computer started.
        `known`: read so far only, all of which is on the disk. An own log is never shorter than
        that, or than the `checkpoint` says: what was signed may not be signed once more.
        """
        self._is_known = known is not None
        self._floor = max(checkpoint.end, known or 0) if self._owned else 0
        self._shared = shared
        length = length_of(self._entries)
        if self._floor > length:
            raise self._corrupt("the last of them are missing")
        self._length = length if known is None else known
        written = written_end(self._entries, min(checkpoint.end, length))
        self._written = written if known is None else known
        if checkpoint != Checkpoint():
            # What it says of a copy may be of another time than the entries.
            with contextlib.suppress(StateCorruptError):
                return self._state(checkpoint)
        return self._state(Checkpoint())

    def _state(self, checkpoint: Checkpoint) -> State:
        length = self._length
        if checkpoint.end > length:
            raise self._corrupt("they are shorter than they were")
        frontier = Frontier.at(checkpoint.size, self._derived.read_hash)
        if frontier.root != checkpoint.root:
            raise self._corrupt("their hashes are")
        end, head, last = checkpoint.end, checkpoint.head, checkpoint.end
        while end < self._written:
            found = self._record(end, frontier, length)
            if found is None:
                self._cut(end, length)
                break
            if found.stored:
                self._derived.write(frontier.size, found.spans, found.stored)
            frontier, last, end, head = found.frontier, end, found.end, found.head or head
        signed = self._checked(frontier, head)
        if not self._is_known:
            self._rewrite(last, end)
        return State(frontier, signed, end)

    def _record(self, offset: int, frontier: Frontier, length: int) -> _Found | None:
        """The record at `offset`; None if it is damaged or torn."""
        header = Header.decode(read_at(self._entries, HEADER_BYTES, offset))
        if header is not None and header.first == frontier.size:
            end = offset + HEADER_BYTES + header.body_bytes
            data = read_at(self._entries, header.body_bytes, offset + HEADER_BYTES)
            body = decode_body(header, data, offset)
            if body is not None:
                extended, stored = frontier.extended(map(leaf_hash, body.entries))
                return _Found(end, body.head, body.spans, stored, extended)
            if end > length:
                return None
        return self._passed_over(offset, frontier, length)

    def _passed_over(self, offset: int, frontier: Frontier, length: int) -> _Found | None:
        """A damaged record whose entries the hashes and offsets know; None if they do not."""
        spans = self._spans_in_record(offset, frontier.size)
        if not spans:
            return None
        first, count = frontier.size, len(spans)
        end = spans[-1][0] + spans[-1][1]
        following = Header.decode(read_at(self._entries, HEADER_BYTES, end))
        if end > length or not self._may_be_passed(offset, first, end, length):
            return None
        # Behind the last one may be room.
        if end < self._written and (following is None or following.first != first + count):
            return None
        stored = self._derived.stored(first, count)
        leaves = self._derived.leaves(first, count)
        if len(leaves) != count:
            return None
        extended, expected = frontier.extended(leaves)
        # Hashes that were never synced may be anything; only ours fit their parents.
        if stored != expected:
            return None
        before = spans[0][0] - offset - HEADER_BYTES - _LENGTH_BYTES * count
        head = read_at(self._entries, HEAD_BYTES, offset + HEADER_BYTES) if before else None
        return _Found(end, head, spans, stored, extended)

    def _may_be_passed(self, offset: int, first: int, end: int, length: int) -> bool:
        """False if what the hashes know to end at `end` is another record, or was only begun."""
        # Hashes stay of a record that was withdrawn: they are not about what took its place.
        header = Header.decode(read_at(self._entries, HEADER_BYTES, offset))
        if header is None:
            if end > self._written and end != length:
                return False
        elif (header.first, offset + HEADER_BYTES + header.body_bytes) != (first, end):
            return False
        # The node writes the hashes before the record, and takes in what is not synced yet.
        is_unsaid = self._shared is None or self._shared.end <= offset
        is_last = self._written < end or self._written == end < length
        return not (self._owned and is_unsaid and is_last and self._is_torn(offset, length))

    def _spans_in_record(self, offset: int, first: int) -> list[Span]:
        """The spans of one record that begins at `offset`, if the offsets are right about it."""
        spans = self._derived.spans(first, RECORD_ENTRIES_MAX)
        count = 0
        for at, size in spans:
            if size > ENTRY_BYTES_MAX or (count and at != sum(spans[count - 1])):
                break
            count += 1
        before = HEADER_BYTES + _LENGTH_BYTES * count
        fits = count and spans[0][0] - offset - before in (0, HEAD_BYTES)
        return spans[:count] if fits else []

    def _cut(self, offset: int, length: int) -> None:
        """Cut off what follows the last good record, if nobody was ever told of it."""
        if self._owned and (offset < self._floor or not self._is_torn(offset, length)):
            raise self._corrupt(f"the record at {offset} is damaged")
        os.ftruncate(self._entries, offset)

    def _is_torn(self, offset: int, length: int) -> bool:
        """True if the record at `offset` was begun and never whole, so nobody was told of it."""
        if is_cut_short(self._entries, offset, length):
            return True
        # A writer that was killed has left the begin of a record, and behind it there is room.
        said = self._shared
        is_unsaid = said is not None and said.end <= offset
        if is_unsaid and is_cut_short(self._entries, offset, self._written):
            return True
        # The file can become longer before its bytes are on the disk.
        if length - offset > FEED_IN_FLIGHT_BYTES_MAX:
            return False
        data = read_at(self._entries, length - offset, offset)
        return _has_gap(data, offset) and not self._was_on_disk(data, offset)

    def _was_on_disk(self, data: bytes, offset: int) -> bool:
        """True if a record in `data` says that what is at `offset` was there before it."""
        at = data.find(MAGIC)
        while at >= 0:
            header = Header.decode(data[at : at + HEADER_BYTES])
            if header is not None and at - header.doubtful > 0:
                start = at + HEADER_BYTES
                body = data[start : start + header.body_bytes]
                if decode_body(header, body, offset + at) is not None:
                    return True
            at = data.find(MAGIC, at + 1)
        return False

    def _checked(self, frontier: Frontier, head: bytes | None) -> SignedHead | None:
        """The best head, which fits the entries. StateCorruptError if it does not.

        The last entries of an own log need not be under it yet.
        """
        if head is None:
            if frontier.size and not self._owned:
                raise self._corrupt("no signed head follows them")
            return None
        try:
            signed = SignedHead.decode(head, self._log.tag)
            signed.verify(self._log)
        except (HeadError, LogFormatError) as error:
            raise self._corrupt(str(error)) from None
        if signed.size < frontier.size and not self._owned:
            raise self._corrupt("the last of them are not signed")
        if signed.size <= frontier.size and signed.root != self._root_at(signed.size, frontier):
            raise self._corrupt("they are not those that were signed")
        return signed

    def _root_at(self, size: int, frontier: Frontier) -> bytes:
        return frontier.root if size == frontier.size else root_at(size, self._derived.read_hash)

    def _rewrite(self, last: int, end: int) -> None:
        """What follows `last` is on the disk, whatever became of the sync of it.

        After a failed sync its pages look as if they had been written, and are not: so they
        are written once more. Nothing that follows can be, because its writer stopped there.
        """
        begin = last if self._shared is None else min(last, self._shared.synced)
        rewrite(self._entries, begin, end)
        sync_data(self._entries)

    def _corrupt(self, why: str) -> StateCorruptError:
        # One that knows where it was written last was an own one, whatever it is opened as.
        is_own = self._owned or os.path.lexists(f"{self._path}/place")
        hint = _OWN_HINT if is_own else _HINT
        return StateCorruptError(f"the entries in {self._path} are damaged: {why}", hint=hint)


def _has_gap(data: bytes, offset: int) -> bool:
    """True if something is missing of the record at `offset`, with which `data` begins.

    That is zeros in the place of a sector's part of it, or so many as are in no record.
    """
    header = Header.decode(data)
    if header is None:
        return _has_gap_in_header(data, offset)
    record = data[: HEADER_BYTES + header.body_bytes]
    if bytes(_UNWRITTEN_BYTES) in record:
        return True
    parts = _parts(record, offset)
    # No record begins with a zero, and no entry ends with one. A head that comes alone may, and is
    # signed again if it is taken for torn.
    least = [_UNWRITTEN_PART_BYTES] * len(parts)
    least[:1] = [1]
    if not (header.has_head and header.entry_count):
        least[-1:] = [1]
    return any(
        len(part) >= length and not any(part) for part, length in zip(parts, least, strict=True)
    )


def _has_gap_in_header(data: bytes, offset: int) -> bool:
    """The same of a record whose header cannot be read, so nobody knows how long it is.

    It has a body, which is not shorter than this: so what follows the record is not looked at.
    """
    begin = data[: HEADER_BYTES + _UNWRITTEN_BYTES]
    if bytes(_UNWRITTEN_BYTES) in begin or len(begin) <= HEADER_BYTES + _LENGTH_BYTES:
        return True
    # The header's last part goes on in the length of an entry, which is not zero.
    parts = _parts(begin, offset)
    return not any(parts[0]) or (len(parts[0]) < HEADER_BYTES and not any(parts[1]))


def _parts(record: bytes, offset: int) -> list[bytes]:
    """What each sector has of a record at `offset`."""
    edges = [0, *range(-offset % _SECTOR_BYTES, len(record), _SECTOR_BYTES), len(record)]
    return [record[begin:end] for begin, end in pairwise(edges) if begin < end]
