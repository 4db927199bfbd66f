"""Messages of feeds at the Unix door: many of them in one field of bytes.

    to append    u32 length ‖ JSON text, one after the other
    read         u32 length ‖ u8 type ‖ u64 time in ms ‖ [submitter 32, of type 2] ‖ JSON text

Big-endian; `length` counts what follows it. A field of bytes because a list of texts costs either
side ten times as much.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from kachery_p2p.errors import DaemonProtocolError

SUBMITTED = 2

_LENGTH = struct.Struct(">I")
_RECORD = struct.Struct(">IBQ")
_PLAIN_BYTES = _RECORD.size - _LENGTH.size
_SUBMITTER_BYTES = 32


class ReadMessage(NamedTuple):
    """One message as the daemon tells it."""

    # Its JSON.
    text: str
    # 1: the owner's, 2: submitted, 3: a signed object of an older kachery.
    type: int
    # When it was appended, by the owner's clock.
    time_ms: int
    # The node that submitted it.
    submitter: str | None


def pack_texts(texts: Iterable[bytes]) -> bytes:
    """Messages to append."""
    parts: list[bytes] = []
    for text in texts:
        parts += (_LENGTH.pack(len(text)), text)
    return b"".join(parts)


def unpack_texts(data: bytes, count_max: int) -> list[str]:
    """The messages that `pack_texts` packed; DaemonProtocolError for anything else."""
    texts, at, end = [], 0, len(data)
    try:
        while at < end:
            start = at + _LENGTH.size
            at = start + _LENGTH.unpack_from(data, at)[0]
            texts.append(data[start:at].decode())
    except (struct.error, UnicodeDecodeError):
        raise DaemonProtocolError("a message is not UTF-8 text, or is cut off") from None
    if at != end or len(texts) > count_max:
        raise DaemonProtocolError("messages are cut off, or too many for one call")
    return texts


def pack_messages(messages: Iterable[ReadMessage]) -> bytes:
    """Messages that were read."""
    parts: list[bytes] = []
    for text, kind, time_ms, submitter in messages:
        payload = text.encode()
        sender = bytes.fromhex(submitter) if submitter is not None else b""
        parts += (_RECORD.pack(_PLAIN_BYTES + len(sender) + len(payload), kind, time_ms), sender)
        parts.append(payload)
    return b"".join(parts)


def unpack_messages(data: bytes) -> list[ReadMessage]:
    """The messages that `pack_messages` packed; DaemonProtocolError for anything else."""
    found, at, end = [], 0, len(data)
    try:
        while at < end:
            length, kind, time_ms = _RECORD.unpack_from(data, at)
            start = at + _RECORD.size
            at += _LENGTH.size + length
            submitter = None
            if kind == SUBMITTED:
                submitter = data[start : start + _SUBMITTER_BYTES].hex()
                start += _SUBMITTER_BYTES
            if at < start or at > end:
                raise DaemonProtocolError("the daemon told a message that is cut off")
            found.append(ReadMessage(data[start:at].decode(), kind, time_ms, submitter))
    except (struct.error, UnicodeDecodeError):
        raise DaemonProtocolError("the daemon told a message that is none") from None
    return found
