"""Chunks on a data stream: who asks sends a range request, who serves one frame a chunk.

    asker    {id, op: "range", body} >
             < {id, number, data} for each chunk, in order    or    < {id, error, text}

A data stream serves one request after the other, so that its reader never has to sort
answers; for more at once there are more streams. A failure may also come after some
of the chunks, and ends the answer to that request alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

from kachery_p2p.errors import ProtocolError
from kachery_p2p.wire.codec import Message, encode_frame
from kachery_p2p.wire.conversation import ID_MAX, Failure
from kachery_p2p.wire.messages import (
    Fields,
    check_answer,
    check_failure,
    check_message,
    check_request,
    failure,
    integer,
)

_ID_FIELDS: Fields = {"id": integer(1, ID_MAX)}


@dataclass(frozen=True, slots=True)  # a tuple could not have a field `count`
class RangeRequest:
    """A request for `count` chunks from `first` on, of a content in a channel."""

    id: int
    channel: str
    content: bytes
    root: bytes
    first: int
    count: int

    def frame(self) -> bytes:
        """The bytes to send. Raises ValueError for what the peer would refuse."""
        body = asdict(self)
        request_id = body.pop("id")
        try:
            read_range_request({"id": request_id, "op": "range", "body": body})
        except ProtocolError as wrong:
            raise ValueError(f"not a request that may be sent: {wrong}") from None
        return encode_frame({"id": request_id, "op": "range", "body": body})

    def chunk_frame(self, number: int, data: bytes) -> bytes:
        """The bytes that answer with one chunk."""
        assert self.first <= number < self.first + self.count
        return encode_frame({"id": self.id, "number": number, "data": data})

    def failure_frame(self, code: str, text: str = "") -> bytes:
        """The bytes that say why no chunk, or no further chunk, comes."""
        return encode_frame({"id": self.id, **failure(code, text)})


class Chunk(NamedTuple):
    """One chunk as a peer sent it: whether these are its bytes is still to be verified."""

    number: int
    data: bytes


def read_range_request(message: Message) -> RangeRequest:
    """The request in a message from a data stream, or ProtocolError."""
    request_id = check_message("a request", _ID_FIELDS, message)["id"]
    body = check_request(message.get("op"), message.get("body"), stream="data")
    return RangeRequest(id=request_id, **body)


class RangeAnswer:
    """What comes back for one range request: told messages, answers chunks in order."""

    def __init__(self, request: RangeRequest) -> None:
        self._request = request
        self._due = request.first
        self._failed = False

    @property
    def complete(self) -> bool:
        """True if nothing more comes for this request."""
        return self._failed or self._due == self._request.first + self._request.count

    def receive(self, message: Message) -> Chunk | Failure:
        """The next chunk, or why there is none. ProtocolError if it is not what is due."""
        found = check_message("a range answer", _ID_FIELDS, message)
        if self.complete or found["id"] != self._request.id:
            raise ProtocolError("a range answer to nothing that was asked")
        if "error" in message:
            self._failed = True
            return Failure(self._request.id, *check_failure(message))
        chunk = Chunk(**check_answer("range", message))
        if chunk.number != self._due:
            raise ProtocolError("a chunk that is not the next one due")
        self._due += 1
        return chunk
