"""Data streams: the recorded exchange, and chunks that are not the ones due."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.errors import ProtocolError
from kachery_p2p.limits import CHUNK_BYTES, RANGE_CHUNKS_MAX
from kachery_p2p.wire.codec import FrameDecoder
from kachery_p2p.wire.conversation import Failure
from kachery_p2p.wire.ranges import Chunk, RangeAnswer, RangeRequest, read_range_request

VECTORS = json.loads((Path(__file__).parents[1] / "vectors/wire.json").read_text())
REQUEST = RangeRequest(1, "0f" * 32, b"c" * 20, b"r" * 32, first=6, count=3)


def message_of(frame: bytes) -> dict[str, Any]:
    (message,) = FrameDecoder().feed(frame)
    return message


def test_the_recorded_exchange_is_spoken_and_understood_byte_for_byte() -> None:
    asked, first, second, failed = (bytes.fromhex(line["frame"]) for line in VECTORS["data"])
    request = read_range_request(message_of(asked))
    assert (request.first, request.count) == (6, 3)
    assert request.frame() == asked
    assert request.chunk_frame(6, b"first") == first
    assert request.chunk_frame(7, b"second") == second
    assert request.failure_frame("failed", "the disk failed") == failed
    answer = RangeAnswer(request)
    assert answer.receive(message_of(first)) == Chunk(6, b"first")
    assert answer.receive(message_of(second)) == Chunk(7, b"second")
    assert not answer.complete
    assert answer.receive(message_of(failed)) == Failure(1, "failed", "the disk failed")
    assert answer.complete


def test_an_answer_is_complete_when_all_chunks_came_and_then_no_more_may_come() -> None:
    answer = RangeAnswer(REQUEST)
    for number in (6, 7, 8):
        assert not answer.complete
        assert answer.receive({"id": 1, "number": number, "data": b"x"}) == Chunk(number, b"x")
    assert answer.complete
    for message in ({"number": 9, "data": b"x"}, {"error": "failed", "text": ""}):
        with pytest.raises(ProtocolError):
            answer.receive({"id": 1, **message})


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"id": 1},
        {"id": 2, "number": 6, "data": b"x"},
        {"number": 6, "data": b"x"},
        {"id": 1, "number": 7, "data": b"x"},
        {"id": 1, "number": 5, "data": b"x"},
        {"id": 1, "number": 6, "data": b""},
        {"id": 1, "number": 6, "data": bytes(CHUNK_BYTES + 1)},
        {"id": 1, "number": 6, "data": "x"},
        {"id": 1, "number": 6},
        {"id": 1, "error": "failed"},
        {"id": 1, "ok": {"number": 6, "data": b"x"}},
    ],
    ids=range(12),
)
def test_what_is_not_the_chunk_due_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        RangeAnswer(REQUEST).receive(message)


@pytest.mark.parametrize("message", [{}, {"id": 1, "op": "ping", "body": {}}, {"op": "range"}])
def test_a_request_that_is_no_range_request_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        read_range_request(message)


def test_a_range_that_the_peer_would_refuse_is_our_own_mistake() -> None:
    with pytest.raises(ValueError):
        RangeRequest(1, "0f" * 32, b"c" * 20, b"r" * 32, 0, RANGE_CHUNKS_MAX + 1).frame()
