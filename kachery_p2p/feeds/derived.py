"""What is derived from a subfeed's entries, so that a million of them open at once.

    hashes        the stored hashes of the tree, 32 bytes each, in stored order (`log.tree`)
    offsets       of each entry: u64 offset ‖ u32 length in the file of entries
    checkpoint    how far both are known to be on the disk, and which head was the best then

None of them is the truth: what is missing or wrong is made anew from the entries. Hashes and
offsets are not synced with each record, only before a checkpoint says so.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import starmap
from typing import NamedTuple
from zlib import crc32

from kachery_p2p.errors import StateCorruptError
from kachery_p2p.feeds.disk import read_at, sync_data
from kachery_p2p.feeds.records import Span
from kachery_p2p.limits import LOG_ENTRIES_MAX
from kachery_p2p.log.heads import HEAD_BYTES
from kachery_p2p.log.tree import EMPTY_ROOT, HASH_BYTES, stored_count, stored_place
from kachery_p2p.store.durable import write_all

_SPAN = struct.Struct(">QI")
_CHECKPOINT = struct.Struct(f">4sQ{HASH_BYTES}sQB{HEAD_BYTES}s")
_CHECKPOINT_MAGIC = b"kpfc"
_CRC_BYTES = 4


class Derived:
    """The hashes and offsets of one subfeed, in two open files."""

    def __init__(self, hashes: int, offsets: int) -> None:
        self._hashes = hashes
        self._offsets = offsets

    def read_hash(self, place: int) -> bytes:
        """The hash at a place in stored order, as far as the disk tells the truth."""
        hashed = read_at(self._hashes, HASH_BYTES, place * HASH_BYTES)
        if len(hashed) != HASH_BYTES:
            raise StateCorruptError(f"the hashes of a feed end before the one at {place}")
        return hashed

    def leaves(self, first: int, count: int) -> list[bytes]:
        """The leaf hashes of the entries from `first` on; fewer if the file is short."""
        if not count:
            return []
        begin = stored_place(0, first)
        data = self._stored(begin, stored_place(0, first + count - 1) + 1)
        # As `stored_count`, a million times when a long log is read.
        places = [2 * n - n.bit_count() - begin for n in range(first, first + count)]
        found = [data[place * HASH_BYTES : (place + 1) * HASH_BYTES] for place in places]
        return [leaf for leaf in found if len(leaf) == HASH_BYTES]

    def stored(self, first: int, count: int) -> list[bytes]:
        """All hashes that were stored when the entries from `first` on were added."""
        data = self._stored(stored_count(first), stored_count(first + count))
        return [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]

    def spans(self, first: int, count: int) -> list[Span]:
        """Where the entries from `first` on lie; fewer if the file is short."""
        data = read_at(self._offsets, count * _SPAN.size, first * _SPAN.size)
        whole = len(data) - len(data) % _SPAN.size
        return list(_SPAN.iter_unpack(data[:whole]))

    def write(self, first: int, spans: Sequence[Span], stored: Sequence[bytes]) -> None:
        """Note the entries from `first` on. OSError."""
        write_all(self._hashes, b"".join(stored), stored_count(first) * HASH_BYTES)
        write_all(self._offsets, b"".join(starmap(_SPAN.pack, spans)), first * _SPAN.size)

    def write_leaf(self, position: int, leaf: bytes) -> None:
        """Mend one leaf hash. OSError."""
        write_all(self._hashes, leaf, stored_place(0, position) * HASH_BYTES)

    def sync(self) -> None:
        """All that was written is on the disk. OSError."""
        sync_data(self._hashes)
        sync_data(self._offsets)

    def _stored(self, begin: int, end: int) -> bytes:
        return read_at(self._hashes, (end - begin) * HASH_BYTES, begin * HASH_BYTES)


class Checkpoint(NamedTuple):
    """Where the records may be read from: what is before is in the hashes and offsets, on disk."""

    size: int = 0
    root: bytes = EMPTY_ROOT
    # The offset of the next record.
    end: int = 0
    # The last head before it.
    head: bytes | None = None

    def encode(self) -> bytes:
        """The bytes of the checkpoint file."""
        head = self.head or bytes(HEAD_BYTES)
        fields = (self.size, self.root, self.end, self.head is not None)
        data = _CHECKPOINT.pack(_CHECKPOINT_MAGIC, *fields, head)
        return data + crc32(data).to_bytes(_CRC_BYTES, "big")

    @classmethod
    def decode(cls, data: bytes | None) -> Checkpoint:
        """The checkpoint that `data` spells; the beginning of the log if none."""
        if data is None or len(data) != _CHECKPOINT.size + _CRC_BYTES:
            return cls()
        body, checksum = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
        magic, size, root, end, known, head = _CHECKPOINT.unpack(body)
        if crc32(body) != int.from_bytes(checksum, "big") or magic != _CHECKPOINT_MAGIC:
            return cls()
        if size > LOG_ENTRIES_MAX or end > LOG_ENTRIES_MAX:
            return cls()
        return cls(size, root, end, head if known else None)
