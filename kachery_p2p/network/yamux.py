"""Yamux frames as bytes: the multiplexer that libp2p peers agree on.

A frame is a 12-byte header (version, type, flags, stream, length; big-endian), and a
data frame is followed by `length` bytes. `FrameReader` takes bytes as they come and
gives a data frame out piece by piece, so that a length that a peer claims is never
allocated before the stream's window has been asked whether so much may be sent.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from kachery_p2p.errors import ProtocolError

PROTOCOL = "/yamux/1.0.0"

DATA = 0
WINDOW_UPDATE = 1
PING = 2
GO_AWAY = 3

SYN = 1
ACK = 2
FIN = 4
RST = 8

HEADER = struct.Struct("!BBHII")

# Every stream starts with this window in each direction: it is the protocol's, not ours.
WINDOW_BYTES_INITIAL = 256 * 1024


class Piece(NamedTuple):
    """A frame, or the next part of a data frame: `first` and `last` say which part."""

    kind: int
    flags: int
    stream: int
    length: int
    payload: bytes
    first: bool
    last: bool


def frame(kind: int, flags: int, stream: int, length: int) -> bytes:
    """A frame without a payload."""
    return HEADER.pack(0, kind, flags, stream, length)


def data_frame(stream: int, payload: bytes) -> bytes:
    """A data frame."""
    return HEADER.pack(0, DATA, 0, stream, len(payload)) + payload


class FrameReader:
    """Cuts what a peer sends into frames; holds at most one incomplete header."""

    def __init__(self) -> None:
        self._header = b""
        self._open: tuple[int, int, int] | None = None
        self._missing = 0

    def feed(self, data: bytes) -> Iterator[Piece]:
        """The frames and parts of frames in `data`. Raises ProtocolError for what is no frame."""
        at = 0
        while at < len(data):
            if self._open is not None:
                part = data[at : at + self._missing]
                at += len(part)
                yield self._rest_of_payload(part)
                continue
            wanted = HEADER.size - len(self._header)
            self._header += data[at : at + wanted]
            at += wanted
            if len(self._header) == HEADER.size:
                piece = self._begin(data, at)
                at += len(piece.payload)
                yield piece

    def _begin(self, data: bytes, at: int) -> Piece:
        version, kind, flags, stream, length = HEADER.unpack(self._header)
        self._header = b""
        if version != 0 or kind > GO_AWAY:
            raise ProtocolError("a peer sent a frame that is not yamux")
        if kind != DATA:
            return Piece(kind, flags, stream, length, b"", first=True, last=True)
        payload = data[at : at + length]
        self._missing = length - len(payload)
        self._open = (flags, stream, length) if self._missing else None
        return Piece(DATA, flags, stream, length, payload, first=True, last=not self._missing)

    def _rest_of_payload(self, part: bytes) -> Piece:
        assert self._open is not None
        flags, stream, length = self._open
        self._missing -= len(part)
        if not self._missing:
            self._open = None
        return Piece(DATA, flags, stream, length, part, first=False, last=not self._missing)
