"""Putting a signed log into a bucket, from whoever has a copy, by blocking calls.

Segments go first, then the head that names them, so whoever is killed leaves what was there before.
The head is replaced only by one that says more, and only if it is still the one that was read:
of two nodes at once the later one begins again from what the other has put there. A segment that
somebody else has named is taken over only if it is what this node would have put there.

The last segments are small, and many pushes would leave many: one that is not larger than what
comes behind it is put together with that. So each entry is sent some log2(4 MiB / push) times at
most, and there are as many small segments at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from kachery_p2p.bucket.faults import AbsentError
from kachery_p2p.bucket.log_book import FEED, Kept, LogBook
from kachery_p2p.bucket.log_layout import (
    LENGTH_BYTES,
    SEGMENT_HEADER_BYTES,
    LogHead,
    Segment,
    encode_segment,
    head_key,
    log_key,
    named,
    pieces,
    segment_key,
)
from kachery_p2p.bucket.log_reading import checked_head
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.owner import take_prefix
from kachery_p2p.bucket.pushing import Throttle
from kachery_p2p.errors import BucketAnswerError, BucketBusyError, LogError, ProofError
from kachery_p2p.limits import (
    BUCKET_LOG_HEAD_BYTES_MAX,
    BUCKET_LOG_OLD_S,
    BUCKET_LOG_SEGMENT_BYTES_MAX,
    BUCKET_LOG_SEGMENT_ENTRIES_MAX,
    BUCKET_LOG_TRIES_MAX,
    BUCKET_LOG_UNNAMED_S,
    BUCKET_LOG_WRITE_S_MAX,
)
from kachery_p2p.log.forks import ForkProof
from kachery_p2p.log.heads import LogId, SignedHead
from kachery_p2p.log.tree import ReadHash, root_at, stored_place

log = logging.getLogger(__name__)

# Half of what a segment may have: from that on it is left as it is.
_FULL_BYTES = BUCKET_LOG_SEGMENT_BYTES_MAX // 2
_FULL_ENTRIES = BUCKET_LOG_SEGMENT_ENTRIES_MAX // 2


class LogCopy(NamedTuple):
    """A log as this node has it now: all entries of `head`, of which `end` can be read."""

    head: SignedHead
    end: int
    # Those from a position on, as many as fit both bounds, one at least.
    entries: Callable[[int, int, int], list[bytes]]
    read_hash: ReadHash
    fork: bytes = b""
    ending: bytes = b""
    # True for an ending that the log's owner has signed.
    is_ending: Callable[[bytes], bool] = lambda ending: not ending
    kind: str = FEED
    name: str = ""

    @property
    def log(self) -> LogId:
        """Which log it is."""
        return self.head.log

    def over(self, level: int, number: int) -> bytes:
        """The hash over a full subtree."""
        return self.read_hash(stored_place(level, number))


class Mirrored(NamedTuple):
    """What came of it."""

    # How many entries the log has in the bucket now.
    there: int
    # What lies there says something that this node does not know.
    is_news: bool


class LogMirror:
    """The way of logs into the bucket of one channel. Used by one thread at a time."""

    def __init__(
        self,
        bucket: Objects,
        channel_id: str,
        place: str,
        book: LogBook,
        throttle: Throttle = lambda byte_count: None,
    ) -> None:
        """`place` is what the book calls the bucket."""
        self.bucket = bucket
        self.place = place
        self._channel_id = channel_id
        self._book = book
        self._throttle = throttle
        self._is_ours = False
        # Logs whose segments were found there since this node has started.
        self._checked: set[str] = set()

    def put(self, copy: LogCopy) -> Mirrored:
        """Put there what of the log is not there yet. Raises BucketErrors, LogErrors, StateErrors.

        ProofError if another history of the log lies there, signed by its owner.
        """
        if not self._is_ours:
            take_prefix(self.bucket, self._channel_id)
            self._is_ours = True
        kept = self._book.known(self.place, name_of(copy.log), copy.kind, copy.name)
        known = self._known(copy.log, kept)
        for _ in range(BUCKET_LOG_TRIES_MAX):
            began = time.monotonic()
            found, version = self._found(copy.log)
            wanted = self._wanted(copy, found, known)
            if wanted == found:
                assert found is not None
                return self._settle(copy, found, kept, wanted)
            # Whoever took long looks once more: old segments are kept for a while only.
            is_late = time.monotonic() - began > BUCKET_LOG_WRITE_S_MAX
            if not is_late and self._write(copy.log, wanted, version):
                after, _ = self._found(copy.log)
                if after == wanted:
                    return self._settle(copy, found, kept, wanted)
        raise BucketBusyError(
            f"others change the head of a log in {self.bucket.name} all the time",
            hint="it is tried again later",
        )

    # --- what is there -------------------------------------------------------------------------

    def _found(self, which: LogId) -> tuple[LogHead | None, str | None]:
        """The head that lies there, None if it is worth nothing; and its version, if any does."""
        try:
            data, version = self.bucket.read_versioned(head_key(which), BUCKET_LOG_HEAD_BYTES_MAX)
        except AbsentError:
            return None, None
        try:
            return checked_head(data, self.bucket.name, which), version
        except (BucketAnswerError, LogError) as error:
            log.warning("%s: what lies there as the head of a log is replaced: %s",
                        self.bucket.name, error)  # fmt: skip
            return None, version

    def _wanted(self, copy: LogCopy, found: LogHead | None, known: set[Segment]) -> LogHead:
        """The head that is to lie there, whose segments are there when this returns.

        `known` segments are what this node would put there; others that turn out so are added.
        """
        fork, ending = copy.fork, copy.ending
        if found is not None:
            fork = _worse(copy.log, fork, found.fork)
            if not ending and copy.is_ending(found.ending):
                ending = found.ending
            if found.head.size > copy.head.size:
                # Somebody else has more: their head, and what we know of the log's end.
                return found._replace(fork=fork, ending=ending)
            self._check_history(copy, found)
        segments = self._segments(copy, self._good(copy, found, known))
        known.update(segments)
        head = copy.head
        if found is not None and found.head.size == head.size and found.head.root == head.root:
            head = max(found.head, head, key=lambda one: one.time_ms)
        end = segments[-1].end if segments else 0
        rest = tuple(copy.over(*piece) for piece in pieces(end, head.size))
        return LogHead(head, tuple(segments), rest, fork, ending)

    def _check_history(self, copy: LogCopy, found: LogHead) -> None:
        """ProofError if what lies there is of another history than a log that has not forked."""
        if not copy.fork and root_at(found.head.size, copy.read_hash) != found.head.root:
            raise ProofError("the bucket has another history of the log, signed by its owner")

    def _good(self, copy: LogCopy, found: LogHead | None, known: set[Segment]) -> list[Segment]:
        """The segments that lie there and have our entries, up to the first that has not."""
        good: list[Segment] = []
        is_checked = name_of(copy.log) in self._checked
        for first, segment in () if found is None else found.spans():
            if segment.end > copy.head.size:
                break
            if segment not in known and not self._is_what_we_have(copy, first, segment):
                break
            if not (segment in known and is_checked) and not self._is_there(copy.log, segment):
                break
            known.add(segment)
            good.append(segment)
        self._checked.add(name_of(copy.log))
        return good

    def _known(self, which: LogId, kept: Kept) -> set[Segment]:
        """The segments that this node has put there, or looked at."""
        with suppress(BucketAnswerError, LogError):
            if kept.head is not None:
                return set(checked_head(kept.head, self.bucket.name, which).segments)
        return set()

    def _is_what_we_have(self, copy: LogCopy, first: int, segment: Segment) -> bool:
        """True if the segment is what this node would have put there."""
        if segment.hashes != tuple(copy.over(*piece) for piece in pieces(first, segment.end)):
            return False
        if segment.end > copy.end:
            return True  # it was put there before the log's end was known
        data = encode_segment(first, _entries(copy, first, segment.end))
        return named(data, first, segment.end, copy.over) == segment

    def _is_there(self, which: LogId, segment: Segment) -> bool:
        try:
            return self.bucket.head(segment_key(which, segment.digest))[0] == segment.size
        except AbsentError:
            return False

    # --- what is put there ---------------------------------------------------------------------

    def _segments(self, copy: LogCopy, good: list[Segment]) -> list[Segment]:
        """All segments of the log; those behind the `good` ones are put there."""
        segments = list(good)
        while (first := segments[-1].end if segments else 0) < copy.end:
            entries = _some_entries(copy, first, copy.end)
            end = first + len(entries)
            if end < copy.end:
                end = _round_end(first, end)
            else:
                first = _absorb(segments, first, _size(entries), end)
            self._put_segment(copy, first, end, segments)
        return segments

    def _put_segment(self, copy: LogCopy, first: int, end: int, segments: list[Segment]) -> None:
        data = encode_segment(first, _entries(copy, first, end))
        segment = named(data, first, end, copy.over)
        key, until = segment_key(copy.log, segment.digest), time.time() + BUCKET_LOG_UNNAMED_S
        is_new = self._book.about_to_put(self.place, name_of(copy.log), segment.digest, until)
        if is_new or not self._is_there(copy.log, segment):
            self._throttle(len(data))
            self.bucket.put_new(key, data, {})
        segments.append(segment)

    def _write(self, which: LogId, wanted: LogHead, version: str | None) -> bool:
        data = wanted.encode()
        if len(data) > BUCKET_LOG_HEAD_BYTES_MAX:
            raise LogError("the log is too long for a bucket", hint="let it go on as a new one")
        if version is None:
            return self.bucket.put_new(head_key(which), data, {})
        return self.bucket.replace(head_key(which), data, version)

    # --- afterwards ----------------------------------------------------------------------------

    def _settle(self, copy: LogCopy, found: LogHead | None, kept: Kept, now: LogHead) -> Mirrored:
        named_now = {segment.digest for segment in now.segments}
        before = {segment.digest for segment in found.segments} if found is not None else set()
        before |= {segment.digest for segment in self._known(copy.log, kept)}
        until = time.time() + BUCKET_LOG_OLD_S
        data, old = now.encode(), before - named_now
        settled = kept._replace(here=copy.head.size, there=now.end, name=copy.name)
        # Written only when there is something to write: most looks find what was known.
        if data != kept.head or kept.tries or old or settled[:6] != kept[:6]:
            self._book.done(settled, data, named_now, old, until)
        ours = (copy.head.size, copy.fork, copy.ending)
        is_news = (now.head.size, now.fork, now.ending) != ours
        return Mirrored(now.end, is_news)

    def clean(self, which: LogId) -> int:
        """Remove segments that are named no more, and were not for a while; how many."""
        name, now = name_of(which), time.time()
        unnamed = self._book.unnamed(self.place, name)
        due = {digest for digest, until in unnamed.items() if until <= now}
        if not due:
            return 0
        found, version = self._found(which)
        if found is None and version is not None:
            return 0  # nobody can tell what it would name
        still = {segment.digest for segment in found.segments} if found is not None else set()
        for digest in due - still:
            self.bucket.delete(segment_key(which, digest))
        self._book.removed(self.place, name, due)
        return len(due - still)


def name_of(which: LogId) -> str:
    """What the book calls a log: the last part of its directory."""
    return log_key(which).rpartition("/")[2]


def _worse(which: LogId, ours: bytes, theirs: bytes) -> bytes:
    """Of two fork proofs the one that leaves fewer common entries; what proves nothing is none."""
    with suppress(LogError):
        told = ForkProof.decode(theirs, which.tag)
        told.verify(which)
        if not ours:
            return theirs
        known = ForkProof.decode(ours, which.tag)
        return theirs if told.common_entries_max < known.common_entries_max else ours
    return ours


def _absorb(segments: list[Segment], first: int, size: int, end: int) -> int:
    """Take off the last segments that are put together with `size` bytes that follow them.

    The first entry of what is then one segment.
    """
    while segments:
        last = segments[-1]
        start = segments[-2].end if len(segments) > 1 else 0
        is_full = last.size >= _FULL_BYTES or last.end - start >= _FULL_ENTRIES
        fits = (
            size + last.size <= BUCKET_LOG_SEGMENT_BYTES_MAX
            and end - start <= BUCKET_LOG_SEGMENT_ENTRIES_MAX
        )
        if is_full or not fits or last.size > size:
            break
        size += last.size
        first = start
        segments.pop()
    return first


def _round_end(first: int, end: int) -> int:
    """An end in the second half of a full segment where few subtrees meet."""
    least = first + (end - first) // 2
    level = end.bit_length()
    while (rounded := end >> level << level) <= least:
        level -= 1
    return rounded


def _size(entries: Iterable[bytes]) -> int:
    return SEGMENT_HEADER_BYTES + sum(len(entry) + LENGTH_BYTES for entry in entries)


def _some_entries(copy: LogCopy, first: int, end: int) -> list[bytes]:
    """The entries from `first` on, as many as one segment may have."""
    found: list[bytes] = []
    room = BUCKET_LOG_SEGMENT_BYTES_MAX - SEGMENT_HEADER_BYTES
    end = min(end, first + BUCKET_LOG_SEGMENT_ENTRIES_MAX)
    for entry in _read(copy, first, end):
        room -= len(entry) + LENGTH_BYTES
        if room < 0:
            break
        found.append(entry)
    return found


def _entries(copy: LogCopy, first: int, end: int) -> list[bytes]:
    return list(_read(copy, first, end))


def _read(copy: LogCopy, first: int, end: int) -> Iterator[bytes]:
    while first < end:
        some = copy.entries(first, end - first, BUCKET_LOG_SEGMENT_BYTES_MAX)
        if not some:
            raise LogError("the log has ended meanwhile", hint="it is put there as it is now")
        yield from some
        first += len(some)
