"""Many small blobs in one question: the second kind of bulk request, and `batch` on data streams.

    asker    contents 0 ... n >
    server         < 0: bytes, 1: refused, 2: bytes ... | 57: bytes, 58: large ...   END

A question names contents of one channel and how many bytes its answer may have. The answer
goes through them in order: of each the bytes, or that it is refused (absent and not granted
are one), or has more than one chunk, or cannot be had just now. It may end behind any of
them but not before the first: when the bytes are used up, the rest is to be asked for
again. Many pieces travel in a frame, and none of them is cut.

No roots travel: who gets all the bytes of a blob computes both hashes itself, and a blob
counts only when they are right. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kachery_p2p.errors import ProtocolError
from kachery_p2p.limits import (
    BATCH_ANSWER_BYTES_MAX,
    BATCH_CONTENTS_MAX,
    CHUNK_BYTES,
)
from kachery_p2p.wire.codec import Message, encode_frame
from kachery_p2p.wire.conversation import ID_MAX
from kachery_p2p.wire.messages import (
    CONTENT_BYTES,
    Fields,
    check_answer,
    check_failure,
    check_message,
    check_request,
    failure,
    integer,
)

# The first byte of such a bulk request.
KIND = 2

# What is answered of a content: its bytes follow; absent or not allowed; of more than one chunk;
# not to be had at the moment, though it may be in a while.
BYTES = 0
REFUSED = 1
LARGE = 2
BUSY = 3

# Bytes in front of what a piece brings.
PIECE_BYTES = 8

_REQUEST = struct.Struct(">B3x32sI")
_PIECE = struct.Struct(">HBBI")
_ID_FIELDS: Fields = {"id": integer(1, ID_MAX)}


class BulkBatch(NamedTuple):
    """A question for small blobs of a channel, and the most bytes that the answer may have."""

    channel: str
    contents: tuple[bytes, ...]
    bytes_max: int = BATCH_ANSWER_BYTES_MAX

    def encode(self) -> bytes:
        """The payload of the REQUEST. Raises ValueError for what the peer would refuse."""
        assert all(len(content) == CONTENT_BYTES for content in self.contents)
        if not self._is_sound():
            raise ValueError("not a batch that may be asked for at once")
        head = _REQUEST.pack(KIND, bytes.fromhex(self.channel), self.bytes_max)
        return head + b"".join(self.contents)

    @classmethod
    def decode(cls, payload: bytes) -> BulkBatch:
        """What a REQUEST of this kind asks for, or ProtocolError."""
        names = payload[_REQUEST.size :]
        if len(payload) < _REQUEST.size or payload[1:4] != bytes(3) or len(names) % CONTENT_BYTES:
            raise ProtocolError("a request for a batch that is not laid out as one")
        _, channel, bytes_max = _REQUEST.unpack_from(payload)
        return cls.checked(channel.hex(), names, bytes_max)

    @classmethod
    def checked(cls, channel: str, names: bytes, bytes_max: int) -> BulkBatch:
        """The question for these contents, one name after the other, or ProtocolError."""
        # Before any of them is cut out: there may be three times as many as are taken.
        if len(names) > BATCH_CONTENTS_MAX * CONTENT_BYTES:
            raise ProtocolError("a request for more contents than are taken")
        places = range(0, len(names), CONTENT_BYTES)
        found = cls(channel, tuple(names[at : at + CONTENT_BYTES] for at in places), bytes_max)
        if not found._is_sound():
            raise ProtocolError("a request for a batch that may not be asked for")
        return found

    def _is_sound(self) -> bool:
        fits = CHUNK_BYTES <= self.bytes_max <= BATCH_ANSWER_BYTES_MAX
        return fits and 1 <= len(self.contents) <= BATCH_CONTENTS_MAX


# --- pieces -------------------------------------------------------------------------------


class Told(NamedTuple):
    """What is answered of the content at this place of the question; unverified."""

    place: int
    outcome: int
    # A view into the frame, good as long as that is; empty unless the outcome is BYTES.
    data: memoryview


def write_piece(place: int, outcome: int, length: int, payload: memoryview) -> None:
    """Write what stands in front of the `length` bytes of a piece."""
    assert outcome == BYTES or not length
    _PIECE.pack_into(payload, 0, place, outcome, 0, length)


def read_pieces(payload: memoryview) -> Iterator[Told]:
    """The pieces of a frame, one after the other; ProtocolError at the first that is none."""
    at = 0
    while at < len(payload):
        if len(payload) - at < PIECE_BYTES:
            raise ProtocolError("a piece that is cut off")
        place, outcome, reserved, length = _PIECE.unpack_from(payload, at)
        at += PIECE_BYTES
        if reserved or outcome > BUSY or length > CHUNK_BYTES or (length and outcome != BYTES):
            raise ProtocolError("a piece that no small blob has")
        if length > len(payload) - at:
            raise ProtocolError("a piece that is longer than its frame")
        yield Told(place, outcome, payload[at : at + length])
        at += length


class DueBatch:
    """What of one answer has not come: told frames, refuses all but the next pieces due."""

    def __init__(self, wanted: BulkBatch) -> None:
        # Those of the last frame.
        self.pieces: list[Told] = []
        self._count = len(wanted.contents)
        self._left = wanted.bytes_max
        self._next = 0

    @property
    def may_end(self) -> bool:
        """True if the answer may end here."""
        return self._next > 0

    def receive(self, payload: memoryview) -> tuple[int, int]:
        """Take the next frame into `pieces`, at least one; the first place, and where it begins.

        Raises ProtocolError.
        """
        pieces = []
        for told in read_pieces(payload):
            if told.place != self._next or self._next == self._count:
                raise ProtocolError("a piece that is not the next one due")
            self._left -= len(told.data)
            if self._left < 0:
                raise ProtocolError("more bytes than were asked for")
            self._next += 1
            pieces.append(told)
        if not pieces:
            raise ProtocolError("a frame with no piece in it")
        self.pieces = pieces
        return pieces[0].place, 0


# --- on data streams ------------------------------------------------------------------------


class BatchRequest(NamedTuple):
    """A question for small blobs on a data stream."""

    id: int
    wanted: BulkBatch

    def frame(self) -> bytes:
        """The bytes to send."""
        wanted = self.wanted
        body = {
            "channel": wanted.channel,
            "contents": b"".join(wanted.contents),
            "bytes_max": wanted.bytes_max,
        }
        return encode_frame({"id": self.id, "op": "batch", "body": body})

    def pieces_frame(self, pieces: bytes | memoryview, *, last: bool) -> bytes:
        """The bytes that answer with these pieces; `last` ends the answer."""
        return encode_frame({"id": self.id, "pieces": bytes(pieces), "last": last})

    def failure_frame(self, code: str, text: str = "") -> bytes:
        """The bytes that say why nothing, or nothing more, comes."""
        return encode_frame({"id": self.id, **failure(code, text)})


def is_batch_request(message: Message) -> bool:
    """True for a message of a data stream that asks for a batch, and not for a range."""
    return message.get("op") == "batch"


def read_batch_request(message: Message) -> BatchRequest:
    """The question in a message from a data stream, or ProtocolError."""
    request_id = check_message("a request", _ID_FIELDS, message)["id"]
    body = check_request("batch", message.get("body"), stream="data")
    wanted = BulkBatch.checked(body["channel"], body["contents"], body["bytes_max"])
    return BatchRequest(request_id, wanted)


class BatchAnswer:
    """What comes back for one question on a data stream: told messages, answers pieces."""

    def __init__(self, request: BatchRequest) -> None:
        self._id = request.id
        self._due = DueBatch(request.wanted)
        self.ended = False

    def receive(self, message: Message) -> Sequence[Told] | tuple[str, str]:
        """Its pieces, or (code, text) of a failure. ProtocolError if it is not what is due."""
        found = check_message("a batch answer", _ID_FIELDS, message)
        if self.ended or found["id"] != self._id:
            raise ProtocolError("a batch answer to nothing that was asked")
        if "error" in message:
            self.ended = True
            return check_failure(message)
        answer = check_answer("batch", message)
        self.ended = answer["last"]
        self._due.receive(memoryview(answer["pieces"]))
        return self._due.pieces
