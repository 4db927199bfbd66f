"""What sealed frames say: somebody asks for chunks, the other side sends them.

    asker    HELLO >        REQUEST 1 >  REQUEST 2 >                        CANCEL 2 >
    server         < HELLO               < DATA 1 ... DATA 1  END 1  DATA 2           END 2

Who asked for the ticket asks for chunks, whoever of the two dialled. Requests are
numbered from 1 upwards and never twice on one connection. Each is answered by DATA
frames, in order, and then by one END, or by one FAILURE instead of what is missing; answers
to different requests may be mixed, frame by frame. After a CANCEL the END comes early.

A request begins with its kind, and what it is about follows. Here is that for chunks, whose
DATA frames carry one each, with its number and length in front; for many small blobs, whose
frames carry several, see `batches`.

Fixed layouts, big-endian. Pure.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from kachery_p2p.errors import ProtocolError
from kachery_p2p.limits import (
    BULK_HELLO_BYTES_MAX,
    BULK_PAYLOAD_BYTES_MAX,
    BULK_REQUEST_BYTES_MAX,
    BULK_REQUEST_CHUNKS_MAX,
    BULK_REQUESTS_MAX,
    CHUNK_BYTES,
    REASON_CHARS_MAX,
)
from kachery_p2p.wire import batches
from kachery_p2p.wire.batches import BulkBatch
from kachery_p2p.wire.messages import (
    BAD_REQUEST,
    BUSY,
    CHUNKS_MAX,
    CONTENT_BYTES,
    FAILED,
    HASH_BYTES,
    NOT_YET,
    REFUSED,
    failure,
    fit_reason,
)
from kachery_p2p.wire.sealed import FrameHeader

HELLO = 1
REQUEST = 2
DATA = 3
END = 4
FAILURE = 5
CANCEL = 6

# The flag of a REQUEST that is served before those without it: somebody looks at a screen.
URGENT = 1

# Bytes in front of a chunk in a DATA frame.
PIECE_HEADER_BYTES = 8
REQUEST_NUMBER_MAX = (1 << 32) - 1

_UTF8_BYTES_MAX = 4
_RANGE = 1
_RANGE_LAYOUT = struct.Struct(f">B3x32s{CONTENT_BYTES}s{HASH_BYTES}sII")
_PIECE_LAYOUT = struct.Struct(">II")
_HELLO_LAYOUT = struct.Struct(">I")
_CODES = {1: REFUSED, 2: BUSY, 3: FAILED, 4: BAD_REQUEST, 5: NOT_YET}
_CODE_NUMBERS = {code: number for number, code in _CODES.items()}
_FAILURE_BYTES_MAX = 1 + _UTF8_BYTES_MAX * REASON_CHARS_MAX

# The kinds of frame that each side sends after its HELLO, and the most bytes in one.
_ASKER_SENDS = {REQUEST: BULK_REQUEST_BYTES_MAX, CANCEL: 0}
_SERVER_SENDS = {DATA: BULK_PAYLOAD_BYTES_MAX, END: 0, FAILURE: _FAILURE_BYTES_MAX}


@dataclass(frozen=True, slots=True)  # a tuple could not have a field `count`
class BulkRange:
    """`count` chunks from `first` on, of a content in a channel."""

    channel: str
    content: bytes
    root: bytes
    first: int
    count: int

    @property
    def end(self) -> int:
        """The number behind the last chunk."""
        return self.first + self.count

    def encode(self) -> bytes:
        """The payload of the REQUEST. Raises ValueError for what the peer would refuse."""
        assert len(self.content) == CONTENT_BYTES
        assert len(self.root) == HASH_BYTES
        if not _is_range(self.first, self.count):
            raise ValueError("not a range of chunks that may be asked for at once")
        channel = bytes.fromhex(self.channel)
        return _RANGE_LAYOUT.pack(_RANGE, channel, self.content, self.root, self.first, self.count)


def _is_range(first: int, count: int) -> bool:
    return 1 <= count <= BULK_REQUEST_CHUNKS_MAX and first >= 0 and first + count <= CHUNKS_MAX


def read_request(payload: bytes) -> BulkRange | BulkBatch:
    """What a REQUEST asks for, or ProtocolError."""
    if payload[:1] == bytes((batches.KIND,)):
        return BulkBatch.decode(payload)
    if not payload or payload[0] != _RANGE:
        raise ProtocolError("a bulk request of a kind that is not spoken here")
    if len(payload) != _RANGE_LAYOUT.size or payload[1:4] != bytes(3):
        raise ProtocolError("a bulk request that is not laid out as one")
    _, channel, content, root, first, count = _RANGE_LAYOUT.unpack(payload)
    if not _is_range(first, count):
        raise ProtocolError("a bulk request for chunks that may not be asked for")
    return BulkRange(channel.hex(), content, root, first, count)


def encode_hello(requests_max: int = BULK_REQUESTS_MAX) -> bytes:
    """The payload of a HELLO: how many unanswered requests its sender takes."""
    return _HELLO_LAYOUT.pack(requests_max)


def read_hello(payload: bytes) -> int:
    """How many unanswered requests the sender of a HELLO takes, or ProtocolError.

    What follows in the payload is for later versions.
    """
    if not _HELLO_LAYOUT.size <= len(payload) <= BULK_HELLO_BYTES_MAX:
        raise ProtocolError("a bulk hello that is not laid out as one")
    (requests_max,) = _HELLO_LAYOUT.unpack_from(payload)
    if not requests_max:
        raise ProtocolError("a bulk hello of a side that takes no requests")
    return int(requests_max)


def check_hello_header(header: FrameHeader) -> None:
    """Pass if this is the header of a HELLO, else ProtocolError."""
    if header.kind != HELLO or header.request or header.length > BULK_HELLO_BYTES_MAX:
        raise ProtocolError("a bulk connection that does not begin with a hello")


def check_asker_header(header: FrameHeader) -> None:
    """Pass if an asker may send a frame with this header, else ProtocolError."""
    _check_header(header, _ASKER_SENDS)


def check_server_header(header: FrameHeader) -> None:
    """Pass if a server may send a frame with this header, else ProtocolError."""
    _check_header(header, _SERVER_SENDS)


def _check_header(header: FrameHeader, sent: dict[int, int]) -> None:
    if header.kind not in sent:
        raise ProtocolError("a bulk frame of a kind that this side does not send")
    if header.length > sent[header.kind]:
        raise ProtocolError("a bulk frame that is too long for its kind")
    if not header.request:
        raise ProtocolError("a bulk frame that belongs to no request")


def write_piece_header(number: int, length: int, payload: memoryview) -> None:
    """Write what stands in front of a chunk of `length` bytes in a DATA frame."""
    _PIECE_LAYOUT.pack_into(payload, 0, number, length)


class PieceHeader(NamedTuple):
    """Which chunk a DATA frame carries; whether these are its bytes is still to be verified."""

    number: int
    length: int


def read_piece_header(payload: memoryview) -> PieceHeader:
    """What a DATA frame carries, or ProtocolError unless it is one chunk and nothing else."""
    if len(payload) < PIECE_HEADER_BYTES:
        raise ProtocolError("a bulk frame with no chunk in it")
    found = PieceHeader(*_PIECE_LAYOUT.unpack_from(payload))
    if not 1 <= found.length <= CHUNK_BYTES:
        raise ProtocolError("a chunk of a length that no chunk has")
    if found.length != len(payload) - PIECE_HEADER_BYTES:
        raise ProtocolError("a chunk that is not as long as it says")
    return found


def encode_failure(code: str, text: str = "") -> bytes:
    """The payload of a FAILURE. A refusal always carries one and the same text."""
    told: str = failure(code, text)["text"]
    return bytes((_CODE_NUMBERS[code],)) + told.encode("utf-8", "replace")


def read_failure(payload: bytes) -> tuple[str, str]:
    """The code and text of a FAILURE, or ProtocolError. The text is a peer's: trust it for nothing.

    A code that we do not know reads as "failed": a later version may have more.
    """
    if not payload:
        raise ProtocolError("a bulk failure without a code")
    return _CODES.get(payload[0], FAILED), fit_reason(payload[1:].decode("utf-8", "replace"))


class DueChunks:
    """The chunks of one request that have not come: told numbers and the end, refuses others."""

    def __init__(self, wanted: BulkRange) -> None:
        self._next = wanted.first
        self._end = wanted.end

    @property
    def complete(self) -> bool:
        """True if every chunk has come."""
        return self._next == self._end

    # The answer may end when all of it is there.
    may_end = complete

    def receive(self, payload: memoryview) -> tuple[int, int]:
        """Take a DATA frame; the number of its chunk, and where that begins. ProtocolError."""
        found = read_piece_header(payload)
        self.came(found.number)
        return found.number, PIECE_HEADER_BYTES

    def came(self, number: int) -> None:
        """Chunk `number` came. Raises ProtocolError unless it is the one that is due."""
        if self.complete or number != self._next:
            raise ProtocolError("a chunk that is not the next one due")
        self._next += 1
