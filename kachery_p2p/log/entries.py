"""Entries: what a log is a list of. The log looks at nothing but their bytes.

    u8 version = 1 ‖ u8 type ‖ u64 time_ms ‖ u32 length ‖ payload      big-endian

`type` and payload belong to whoever keeps the log, the time is what the owner's clock
said. Fixed widths: one entry has one spelling, so there is no question what was hashed.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from kachery_p2p.errors import LogFormatError
from kachery_p2p.limits import ENTRY_PAYLOAD_BYTES_MAX, LOG_TIME_MS_MAX
from kachery_p2p.log.tree import leaf_hash

ENTRY_VERSION = 1

_HEADER = struct.Struct(">BBQI")
HEADER_BYTES = _HEADER.size
ENTRY_BYTES_MAX = HEADER_BYTES + ENTRY_PAYLOAD_BYTES_MAX


class Entry(NamedTuple):
    """One entry: a kind of its owner's choosing, a time, and bytes."""

    type: int
    time_ms: int
    payload: bytes

    @property
    def leaf(self) -> bytes:
        """The hash of this entry in the tree. Whoever has the bytes takes `tree.leaf_hash`."""
        return leaf_hash(self.encode())

    def encode(self) -> bytes:
        """The bytes of the entry, as they are stored, sent and hashed."""
        assert 0 <= self.time_ms <= LOG_TIME_MS_MAX
        assert len(self.payload) <= ENTRY_PAYLOAD_BYTES_MAX, "what is bigger goes to the store"
        header = _HEADER.pack(ENTRY_VERSION, self.type, self.time_ms, len(self.payload))
        return header + self.payload

    @classmethod
    def decode(cls, data: bytes) -> Entry:
        """The entry that `data` spells, all of it; LogFormatError if any byte is wrong."""
        if len(data) < HEADER_BYTES:
            raise LogFormatError(f"the entry is cut off: {len(data)} bytes")
        version, kind, time_ms, length = _HEADER.unpack_from(data)
        if version != ENTRY_VERSION:
            raise LogFormatError(
                f"the entry has version {version}, this kachery_p2p reads {ENTRY_VERSION}",
                hint="upgrade kachery_p2p",
            )
        if length > ENTRY_PAYLOAD_BYTES_MAX or len(data) != HEADER_BYTES + length:
            raise LogFormatError(f"the entry of {len(data)} bytes claims a payload of {length}")
        if time_ms > LOG_TIME_MS_MAX:
            raise LogFormatError(f"the entry has an impossible time, {time_ms}")
        return cls(kind, time_ms, bytes(data[HEADER_BYTES:]))
