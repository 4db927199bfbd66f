"""The records behind the last one that is known: what other writers of an own subfeed appended.

Only a record that is there as a whole counts. One that was begun and never finished is that of a
writer that was killed, or whose disk was full; nobody was told of it, so the next one who holds
the lock cuts it off. Anything else that is no record is damage, and for the node to judge.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from kachery_p2p.feeds.disk import length_of, read_at
from kachery_p2p.feeds.records import HEADER_BYTES, Body, Header, decode_body

_BLOCK_BYTES = 1 << 18


class Record(NamedTuple):
    """One whole record: where it is, and what is in it."""

    offset: int
    header: Header
    body: Body

    @property
    def end(self) -> int:
        """Where the next one begins."""
        return self.offset + HEADER_BYTES + self.header.body_bytes


def whole_records(entries: int, size: int, offset: int, length: int) -> Iterator[Record]:
    """The records from `offset` on, before which there are `size` entries; none behind `length`.

    They end before the first one that is not there as a whole. OSError.
    """
    window = _Window(entries, length)
    while offset < length:
        header = Header.decode(window.bytes(offset, HEADER_BYTES))
        if header is None or header.first != size:
            return
        data = window.bytes(offset + HEADER_BYTES, header.body_bytes)
        body = decode_body(header, data, offset)
        if body is None:
            return
        record = Record(offset, header, body)
        yield record
        offset, size = record.end, header.end


def is_cut_short(entries: int, offset: int, length: int) -> bool:
    """True if what begins at `offset` is a record of which the end is missing. OSError."""
    data = read_at(entries, min(HEADER_BYTES, length - offset), offset)
    header = Header.decode(data)
    if header is None:
        return len(data) < HEADER_BYTES
    return offset + HEADER_BYTES + header.body_bytes > length


def caught_up(entries: int, size: int, end: int, written: int) -> tuple[int, int] | None:
    """The size, and where the last record ends, with what a writer left who did not say so.

    Without it there are `size` entries up to `end`; the file is written up to `written`. What was
    begun and is not whole is cut off. None if something else is there. OSError.
    """
    # A whole record may end in zeros, as a head can.
    for record in whole_records(entries, size, end, length_of(entries)):
        size, end = record.header.end, record.end
    if end < written:
        if not is_cut_short(entries, end, written):
            return None
        os.ftruncate(entries, end)
    return size, end


class _Window:
    """The bytes of a file up to `length`, read in blocks: most records are much shorter."""

    def __init__(self, descriptor: int, length: int) -> None:
        self._descriptor = descriptor
        self._length = length
        self._at = 0
        self._data = b""

    def bytes(self, offset: int, count: int) -> bytes:
        """So many bytes at `offset`; fewer at the end."""
        if not self._at <= offset <= offset + count <= self._at + len(self._data):
            wanted = min(max(count, _BLOCK_BYTES), self._length - offset)
            self._at, self._data = offset, read_at(self._descriptor, wanted, offset)
        start = offset - self._at
        return self._data[start : start + count]
