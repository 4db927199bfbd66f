"""Records: how entries lie in the file of a subfeed. One record is written and synced at once.

    header    "kpfr" ‖ u32 flags ‖ u64 first ‖ u32 count ‖ u32 bytes of the entries
              ‖ u32 CRC-32 of the body ‖ u32 CRC-32 of the 28 bytes before          32 bytes
    body      signed head 197, if flags is odd ‖ u32 length of each entry ‖ the entries

The other 31 bits of the flags say how many bytes right before the record were not known to be on
the disk when it was written, because others were writing too: what is before those bytes was, so
if it is damaged, no crash did it (`opening`). `first` is the position of the first entry, so the
records of a file count without a gap. An own log writes no head with its entries, because it can
sign them again; in a copy it comes with the last entries under it, or in a record without entries
when it is known before they are here. Integers are big-endian. The checksums only tell a record
that a power cut left half written from a whole one: what entries are worth, the tree says.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple
from zlib import crc32

from kachery_p2p.limits import LOG_ENTRIES_MAX, RECORD_BYTES_MAX, RECORD_ENTRIES_MAX
from kachery_p2p.log.entries import ENTRY_BYTES_MAX
from kachery_p2p.log.heads import HEAD_BYTES

MAGIC = b"kpfr"
_HEAD = 1
# What the flags can say; who would have to say more waits for the disk first.
DOUBTFUL_BYTES_MAX = (1 << 31) - 1
_FIELDS = struct.Struct(">4sIQIII")
_CRC = struct.Struct(">I")
HEADER_BYTES = _FIELDS.size + _CRC.size
_LENGTH_BYTES = 4
RECORD_TOTAL_BYTES_MAX = (
    HEADER_BYTES + HEAD_BYTES + RECORD_ENTRIES_MAX * _LENGTH_BYTES + RECORD_BYTES_MAX
)

# Where an entry lies: the offset in the file, and the length.
Span = tuple[int, int]


class Header(NamedTuple):
    """What the header of a record says about its body."""

    has_head: bool
    first: int
    entry_count: int
    entries_bytes: int
    checksum: int
    # Bytes before the record that were not known to be on the disk when it was written.
    doubtful: int

    @property
    def end(self) -> int:
        """The position behind the last entry."""
        return self.first + self.entry_count

    @property
    def body_bytes(self) -> int:
        """How long the body is."""
        head = HEAD_BYTES if self.has_head else 0
        return head + _LENGTH_BYTES * self.entry_count + self.entries_bytes

    @classmethod
    def decode(cls, data: bytes) -> Header | None:
        """The header that `data` begins with; None if it is damaged or was never one."""
        if len(data) < HEADER_BYTES or data[:4] != MAGIC:
            return None
        _, flags, first, count, entries_bytes, checksum = _FIELDS.unpack_from(data)
        if _CRC.unpack_from(data, _FIELDS.size)[0] != crc32(data[: _FIELDS.size]):
            return None
        if first + count > LOG_ENTRIES_MAX:
            return None
        if count > RECORD_ENTRIES_MAX or entries_bytes > RECORD_BYTES_MAX:
            return None
        return cls(bool(flags & _HEAD), first, count, entries_bytes, checksum, flags >> 1)


class Body(NamedTuple):
    """What follows the header of a record at an offset of the file."""

    head: bytes | None
    spans: list[Span]
    entries: list[bytes]


class Packed(NamedTuple):
    """The entries of a record, and the head after them, before it is known where they go."""

    has_head: bool
    entry_count: int
    entries_bytes: int
    checksum: int
    body: bytes

    def record(self, first: int, doubtful: int = 0) -> bytes:
        """The bytes of the record whose first entry has the position `first`.

        `doubtful`: how many bytes before it are not known to be on the disk.
        """
        assert 0 <= doubtful <= DOUBTFUL_BYTES_MAX
        has_head, count, entries_bytes, checksum, body = self
        flags = doubtful << 1 | has_head
        fields = _FIELDS.pack(MAGIC, flags, first, count, entries_bytes, checksum)
        return b"".join((fields, _CRC.pack(crc32(fields)), body))


def pack(entries: Sequence[bytes], head: bytes | None = None) -> Packed:
    """A record with these entries, and the signed head after them, if any."""
    assert len(entries) <= RECORD_ENTRIES_MAX
    lengths = list(map(len, entries))
    count, entries_bytes = len(lengths), sum(lengths)
    assert entries_bytes <= RECORD_BYTES_MAX
    body = b"".join((head or b"", _lengths(count).pack(*lengths), *entries))
    return Packed(head is not None, count, entries_bytes, crc32(body), body)


def encode_record(
    first: int, entries: Sequence[bytes], head: bytes | None, doubtful: int = 0
) -> bytes:
    """The bytes of the record with these entries, and the signed head after them, if any."""
    return pack(entries, head).record(first, doubtful)


def entry_spans(entries: Sequence[bytes], *, has_head: bool, offset: int) -> list[Span]:
    """Where the entries of the record at `offset` lie."""
    return _spans(list(map(len, entries)), has_head=has_head, offset=offset)


def decode_body(header: Header, body: bytes, offset: int) -> Body | None:
    """The body of the record at `offset`; None if it is not as the writer left it."""
    if len(body) != header.body_bytes or crc32(body) != header.checksum:
        return None
    return framed_body(header, body, offset)


def framed_body(header: Header, body: bytes, offset: int) -> Body | None:
    """As `decode_body`, whatever the checksum says; None if the lengths do not fit."""
    start = HEAD_BYTES if header.has_head else 0
    lengths = _lengths(header.entry_count).unpack_from(body, start)
    if sum(lengths) != header.entries_bytes or max(lengths, default=0) > ENTRY_BYTES_MAX:
        return None
    spans = _spans(lengths, has_head=header.has_head, offset=offset)
    behind = offset + HEADER_BYTES
    entries = [body[at - behind : at - behind + length] for at, length in spans]
    return Body(body[:start] if start else None, spans, entries)


def _spans(lengths: Sequence[int], *, has_head: bool, offset: int) -> list[Span]:
    before = HEADER_BYTES + (HEAD_BYTES if has_head else 0) + _LENGTH_BYTES * len(lengths)
    ends = accumulate(lengths, initial=offset + before)
    return list(zip(ends, lengths, strict=False))


@functools.lru_cache(maxsize=256)
def _lengths(count: int) -> struct.Struct:
    return struct.Struct(f">{count}I")
