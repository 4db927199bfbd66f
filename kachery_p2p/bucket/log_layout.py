"""A signed log in a bucket: segments of its entries, and a head that names them.

    log/aa/bb/cc/KEY/SEGMENT   entries, one after the other; SEGMENT is the SHA-256 of the bytes
    log/aa/bb/cc/KEY/head      the newest signed head, what ends the log, and its segments

KEY is a hash of which log it is. A segment never changes, and has one name and one spelling: two
nodes that put the same entries there put the same object. Only the head is replaced, by one that
says more. With each segment it has the hashes of the full subtrees over its entries; all of them
together fold into the root that the owner signed. So a head is believed or not before anything
else is read, and each segment can then be verified alone, in any order.

    segment   "kp2pseg1" ‖ u64 first ‖ u32 count ‖ (u32 length ‖ entry) for each
    head      "kp2plog1" ‖ tag 16 ‖ owner 32 ‖ name 32 ‖ signed head 197
              ‖ u16 length ‖ fork proof ‖ u16 length ‖ ending
              ‖ u32 segments ‖ (u64 end ‖ u32 bytes ‖ SHA-256 32 ‖ hashes) for each
              ‖ hashes of the rest ‖ SHA-256 of all before 32
    hashes    as many as the numbers of the entries demand, 32 bytes each

Segments begin with entry 0 and leave no gaps. Where a fork or a tombstone ends a log before its
head does, what follows has hashes and no segments. The ending is for whoever keeps such logs
(tombstones of a feed). Integers are big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple

from kachery_p2p.errors import LogFormatError, ProofError
from kachery_p2p.identity.keys import TAG_BYTES, NodeId
from kachery_p2p.limits import (
    BUCKET_LOG_HEAD_BYTES_MAX,
    BUCKET_LOG_SEGMENT_BYTES_MAX,
    BUCKET_LOG_SEGMENT_ENTRIES_MAX,
    LOG_ENTRIES_MAX,
)
from kachery_p2p.log.entries import ENTRY_BYTES_MAX
from kachery_p2p.log.forks import FORK_BYTES_MAX
from kachery_p2p.log.heads import HEAD_BYTES, LogId, SignedHead
from kachery_p2p.log.tree import HASH_BYTES, Frontier, node_hash, subtrees

LOGS = "log"
HEAD = "head"
SEGMENT_MAGIC = b"kp2pseg1"
HEAD_MAGIC = b"kp2plog1"
_KEY_TAG = b"kachery-p2p/bucket-log/1\0"
_SEGMENT_HEADER = struct.Struct(">8sQI")
_ROW = struct.Struct(f">QI{HASH_BYTES}s")
_LENGTH = struct.Struct(">I")
_SHORT = struct.Struct(">H")
# Two tombstones of a feed take 448; whoever reads them judges them.
_ENDING_BYTES_MAX = 1 << 10
LENGTH_BYTES = _LENGTH.size
SEGMENT_HEADER_BYTES = _SEGMENT_HEADER.size

# The hash over the full subtree (level, number).
HashOver = Callable[[int, int], bytes]


class Segment(NamedTuple):
    """Entries from the end of the segment before up to `end`, as a head names them."""

    end: int
    # Of the object.
    size: int
    digest: bytes
    # Over the subtrees that `pieces` gives, in that order.
    hashes: tuple[bytes, ...]


class LogHead(NamedTuple):
    """What a bucket says of one log. Nothing of it is verified but its spelling."""

    head: SignedHead
    segments: tuple[Segment, ...] = ()
    # Hashes over the entries behind the last segment.
    rest: tuple[bytes, ...] = ()
    fork: bytes = b""
    ending: bytes = b""

    @property
    def end(self) -> int:
        """How many entries can be had from its segments."""
        return self.segments[-1].end if self.segments else 0

    def spans(self) -> Iterator[tuple[int, Segment]]:
        """Each segment with the number of its first entry."""
        first = 0
        for segment in self.segments:
            yield first, segment
            first = segment.end

    def subtrees(self) -> Iterator[tuple[tuple[int, int], bytes]]:
        """All hashes that it has, by (level, number)."""
        for first, segment in self.spans():
            yield from zip(pieces(first, segment.end), segment.hashes, strict=True)
        yield from zip(pieces(self.end, self.head.size), self.rest, strict=True)

    def verify(self, log: LogId) -> None:
        """Pass if the owner signed a log with these hashes; HeadError or ProofError if not."""
        self.head.verify(log)
        if not self.head.size:
            return
        known = dict(self.subtrees())
        hashes = tuple(hash_over(known, *one) for one in subtrees(0, self.head.size))
        if Frontier(self.head.size, hashes).root != self.head.root:
            raise ProofError("the segments are not those of the log that was signed")

    def encode(self) -> bytes:
        """The bytes of the object."""
        log = self.head.log
        parts = [HEAD_MAGIC, log.tag, log.owner.raw, log.name, self.head.encode()]
        for part in (self.fork, self.ending):
            parts += [_SHORT.pack(len(part)), part]
        parts.append(_LENGTH.pack(len(self.segments)))
        for segment in self.segments:
            parts += [_ROW.pack(segment.end, segment.size, segment.digest), *segment.hashes]
        body = b"".join([*parts, *self.rest])
        return body + sha256(body).digest()

    @classmethod
    def decode(cls, data: bytes, log: LogId) -> LogHead:
        """The head of this log that `data` spells; LogFormatError if none."""
        body, check = data[:-HASH_BYTES], data[-HASH_BYTES:]
        if len(data) > BUCKET_LOG_HEAD_BYTES_MAX or sha256(body).digest() != check:
            raise LogFormatError("the object is damaged, or no head of a log")
        cursor = _Cursor(body)
        if cursor.take(len(HEAD_MAGIC)) != HEAD_MAGIC:
            raise LogFormatError("the object is no head of a log")
        if cursor.take(len(log.tag)) + cursor.take(2 * HASH_BYTES) != _spelled(log):
            raise LogFormatError("the object is the head of another log")
        head = SignedHead.decode(cursor.take(HEAD_BYTES), log.tag)
        fork = cursor.take(cursor.number(_SHORT, FORK_BYTES_MAX))
        ending = cursor.take(cursor.number(_SHORT, _ENDING_BYTES_MAX))
        segments = _segments(cursor, head.size)
        end = segments[-1].end if segments else 0
        rest = cursor.hashes(sum(1 for _ in pieces(end, head.size)))
        cursor.finish()
        return cls(head, segments, rest, fork, ending)


def log_key(log: LogId) -> str:
    """The directory of a log, below the prefix of its channel."""
    key = sha256(_KEY_TAG + _spelled(log)).hexdigest()
    return f"{LOGS}/{key[:2]}/{key[2:4]}/{key[4:6]}/{key}"


def head_key(log: LogId) -> str:
    """Where the head of a log lies."""
    return f"{log_key(log)}/{HEAD}"


def segment_key(log: LogId, digest: bytes) -> str:
    """Where the segment with this SHA-256 lies."""
    return f"{log_key(log)}/{digest.hex()}"


def told_log(data: bytes) -> LogId:
    """Which log the head of a log says it is about. LogFormatError if it is none."""
    cursor = _Cursor(data)
    if cursor.take(len(HEAD_MAGIC)) != HEAD_MAGIC:
        raise LogFormatError("the object is no head of a log")
    tag, owner = cursor.take(TAG_BYTES), cursor.take(HASH_BYTES)
    return LogId(tag, NodeId.of_raw(owner), cursor.take(HASH_BYTES))


def pieces(first: int, end: int) -> Iterator[tuple[int, int]]:
    """The largest full subtrees (level, number) that together are the entries `first` to `end`."""
    while first < end:
        level = (end - first).bit_length() - 1
        if first:
            level = min(level, (first & -first).bit_length() - 1)
        yield level, first >> level
        first += 1 << level


class UnknownHashError(Exception):
    """The hash over this entry, or a subtree below, is not known: its segment has it."""

    def __init__(self, entry: int) -> None:
        super().__init__(entry)
        self.entry = entry


def hash_over(known: dict[tuple[int, int], bytes], level: int, number: int) -> bytes:
    """The hash over a full subtree, of those over its parts, and remember it. UnknownHashError."""
    found = known.get((level, number))
    if found is not None:
        return found
    if not level:
        raise UnknownHashError(number)
    left = hash_over(known, level - 1, 2 * number)
    right = hash_over(known, level - 1, 2 * number + 1)
    known[level, number] = node_hash(left, right)
    return known[level, number]


def encode_segment(first: int, entries: Sequence[bytes]) -> bytes:
    """The bytes of a segment."""
    parts = [_SEGMENT_HEADER.pack(SEGMENT_MAGIC, first, len(entries))]
    for entry in entries:
        parts += [_LENGTH.pack(len(entry)), entry]
    return b"".join(parts)


def named(data: bytes, first: int, end: int, over: HashOver) -> Segment:
    """How a head names the segment with these bytes."""
    hashes = tuple(over(*piece) for piece in pieces(first, end))
    return Segment(end, len(data), sha256(data).digest(), hashes)


def decode_segment(data: bytes, first: int, segment: Segment) -> list[bytes]:
    """The entries in the object of a segment. LogFormatError if it is another, or damaged."""
    if len(data) != segment.size or sha256(data).digest() != segment.digest:
        raise LogFormatError("the object is damaged, or another segment")
    cursor = _Cursor(data)
    told = _SEGMENT_HEADER.unpack(cursor.take(_SEGMENT_HEADER.size))
    if told != (SEGMENT_MAGIC, first, segment.end - first):
        raise LogFormatError("the object is another segment than its name says")
    entries = [
        cursor.take(cursor.number(_LENGTH, ENTRY_BYTES_MAX)) for _ in range(segment.end - first)
    ]
    cursor.finish()
    return entries


def _segments(cursor: _Cursor, size: int) -> tuple[Segment, ...]:
    found: list[Segment] = []
    first = 0
    for _ in range(cursor.number(_LENGTH, len(cursor.data) // _ROW.size)):
        end, length, digest = _ROW.unpack(cursor.take(_ROW.size))
        if not first < end <= min(size, first + BUCKET_LOG_SEGMENT_ENTRIES_MAX):
            raise LogFormatError("the segments of the log are in the wrong order, or too large")
        if length > BUCKET_LOG_SEGMENT_BYTES_MAX:
            raise LogFormatError("a segment of the log is too large")
        hashes = cursor.hashes(sum(1 for _ in pieces(first, end)))
        found.append(Segment(end, length, digest, hashes))
        first = end
    return tuple(found)


def _spelled(log: LogId) -> bytes:
    return log.tag + log.owner.raw + log.name


class _Cursor:
    """Takes bytes from the front; LogFormatError when there are not enough."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        if self._at > len(self.data):
            raise LogFormatError("the object is cut off")
        return self.data[start : self._at]

    def number(self, spelling: struct.Struct, number_max: int) -> int:
        found: int = spelling.unpack(self.take(spelling.size))[0]
        if found > min(number_max, LOG_ENTRIES_MAX):
            raise LogFormatError("the object has an impossible number")
        return found

    def hashes(self, count: int) -> tuple[bytes, ...]:
        return tuple(self.take(HASH_BYTES) for _ in range(count))

    def finish(self) -> None:
        if self._at != len(self.data):
            raise LogFormatError("the object has more bytes than it should")
