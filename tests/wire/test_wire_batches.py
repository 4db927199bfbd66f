"""Many small blobs in one question: the recorded layouts, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.errors import ProtocolError
from kachery_p2p.limits import (
    BATCH_ANSWER_BYTES_MAX,
    BATCH_CONTENTS_MAX,
    BATCH_PIECES_BYTES_MAX,
    BULK_PAYLOAD_BYTES_MAX,
    BULK_REQUEST_BYTES_MAX,
    CHUNK_BYTES,
)
from kachery_p2p.wire.batches import (
    BUSY,
    BYTES,
    LARGE,
    PIECE_BYTES,
    REFUSED,
    BatchAnswer,
    BatchRequest,
    BulkBatch,
    DueBatch,
    Told,
    is_batch_request,
    read_batch_request,
    read_pieces,
    write_piece,
)
from kachery_p2p.wire.bulk_messages import check_server_header, read_request
from kachery_p2p.wire.codec import FrameDecoder
from kachery_p2p.wire.messages import FAILED
from kachery_p2p.wire.messages import REFUSED as REFUSED_CODE
from kachery_p2p.wire.sealed import FrameHeader

VECTORS = json.loads((Path(__file__).parents[1] / "vectors/batches.json").read_text())
CHANNEL = "0f" * 32


def batch_of(count: int, bytes_max: int = CHUNK_BYTES) -> BulkBatch:
    names = tuple(number.to_bytes(20, "big") for number in range(count))
    return BulkBatch(CHANNEL, names, bytes_max)


def frame(*pieces: tuple[int, int, bytes]) -> memoryview:
    payload = memoryview(bytearray(sum(PIECE_BYTES + len(data) for _, _, data in pieces)))
    at = 0
    for place, outcome, data in pieces:
        write_piece(place, outcome, len(data), payload[at:])
        payload[at + PIECE_BYTES : at + PIECE_BYTES + len(data)] = data
        at += PIECE_BYTES + len(data)
    return payload


def plain(told: list[Told]) -> list[tuple[int, int, bytes]]:
    return [(one.place, one.outcome, bytes(one.data)) for one in told]


@pytest.mark.parametrize("vector", VECTORS["requests"], ids=lambda v: v["what"])
def test_recorded_requests_are_written_and_read(vector: dict[str, Any]) -> None:
    names = tuple(map(bytes.fromhex, vector["contents"]))
    wanted = BulkBatch(vector["channel"], names, vector["bytes_max"])
    assert wanted.encode().hex() == vector["payload"]
    assert read_request(bytes.fromhex(vector["payload"])) == wanted


@pytest.mark.parametrize("vector", VECTORS["bad_requests"], ids=lambda v: v["what"])
def test_a_request_that_is_no_batch_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        read_request(bytes.fromhex(vector["payload"]))


def test_the_longest_request_fits_and_a_longer_one_is_not_made() -> None:
    assert len(batch_of(BATCH_CONTENTS_MAX).encode()) <= BULK_REQUEST_BYTES_MAX
    for bad in (
        batch_of(0),
        batch_of(BATCH_CONTENTS_MAX + 1),
        batch_of(1, CHUNK_BYTES - 1),
        batch_of(1, BATCH_ANSWER_BYTES_MAX + 1),
    ):
        with pytest.raises(ValueError, match="not a batch"):
            bad.encode()


@pytest.mark.parametrize("vector", VECTORS["frames"], ids=lambda v: v["what"])
def test_recorded_pieces_are_written_and_read(vector: dict[str, Any]) -> None:
    pieces = [(p["place"], p["outcome"], bytes.fromhex(p["data"])) for p in vector["pieces"]]
    assert frame(*pieces).hex() == vector["payload"]
    due = DueBatch(batch_of(vector["asked"]))
    may_end = [due.may_end]
    assert due.receive(memoryview(bytes.fromhex(vector["payload"]))) == (0, 0)
    assert [*may_end, due.may_end] == [False, True]
    assert plain(due.pieces) == pieces


@pytest.mark.parametrize("vector", VECTORS["bad_frames"], ids=lambda v: v["what"])
def test_pieces_that_are_not_what_is_due_are_refused(vector: dict[str, Any]) -> None:
    due = DueBatch(batch_of(vector["asked"]))
    with pytest.raises(ProtocolError):
        due.receive(memoryview(bytes.fromhex(vector["payload"])))


def test_pieces_go_on_where_the_last_frame_ended() -> None:
    due = DueBatch(batch_of(4))
    assert due.receive(frame((0, BYTES, b"a"), (1, REFUSED, b""))) == (0, 0)
    for again in (0, 1, 3, 65_535):
        with pytest.raises(ProtocolError):
            due.receive(frame((again, REFUSED, b"")))
    assert due.receive(frame((2, LARGE, b""), (3, BUSY, b""))) == (2, 0)
    with pytest.raises(ProtocolError):
        due.receive(frame((4, REFUSED, b"")))


def test_an_answer_has_no_more_bytes_than_were_asked_for() -> None:
    due = DueBatch(batch_of(3))
    due.receive(frame((0, BYTES, bytes(CHUNK_BYTES))))
    with pytest.raises(ProtocolError, match="more bytes"):
        due.receive(frame((1, BYTES, b"x")))


def test_one_blob_of_a_chunk_fits_a_frame_of_either_plane() -> None:
    assert PIECE_BYTES + CHUNK_BYTES <= BATCH_PIECES_BYTES_MAX <= BULK_PAYLOAD_BYTES_MAX
    check_server_header(FrameHeader(3, 0, 1, BATCH_PIECES_BYTES_MAX))
    request = BatchRequest(1, batch_of(1, BATCH_ANSWER_BYTES_MAX))
    assert FrameDecoder().feed(request.pieces_frame(bytes(BATCH_PIECES_BYTES_MAX), last=True))


@pytest.mark.parametrize("seed", range(200))
def test_junk_is_read_as_pieces_or_refused_and_never_beyond_its_end(seed: int) -> None:
    junk = random.Random(seed)
    whole = bytearray(frame(*((n, n % 4, b"x" * (9 if n % 4 == BYTES else 0)) for n in range(6))))
    for _ in range(junk.randrange(1, 4)):
        whole[junk.randrange(len(whole))] = junk.randrange(256)
    payload = memoryview(whole[: junk.randrange(len(whole) + 1)])
    try:
        read = sum(PIECE_BYTES + len(one.data) for one in read_pieces(payload))
    except ProtocolError:
        return
    assert read == len(payload)


# --- on data streams ------------------------------------------------------------------------


def message(data: bytes) -> dict[str, Any]:
    (only,) = FrameDecoder().feed(data)
    return only


def test_a_batch_is_asked_for_and_answered_on_a_data_stream() -> None:
    request = BatchRequest(7, batch_of(3))
    asked = message(request.frame())
    assert is_batch_request(asked)
    assert read_batch_request(asked) == request
    answer = BatchAnswer(request)
    first = message(request.pieces_frame(frame((0, BYTES, b"a")), last=False))
    assert plain(list(answer.receive(first))) == [(0, BYTES, b"a")]  # type: ignore[arg-type]
    ended = [answer.ended]
    answer.receive(message(request.pieces_frame(frame((1, REFUSED, b"")), last=True)))
    assert [*ended, answer.ended] == [False, True]
    with pytest.raises(ProtocolError, match="nothing that was asked"):
        answer.receive(first)


def test_a_failure_ends_an_answer() -> None:
    request = BatchRequest(1, batch_of(1))
    answer = BatchAnswer(request)
    assert answer.receive(message(request.failure_frame(FAILED, "later"))) == (FAILED, "later")
    assert answer.ended
    refused = BatchAnswer(request).receive(message(request.failure_frame(REFUSED_CODE, "x")))
    assert refused == (REFUSED_CODE, "absent, or not allowed")


@pytest.mark.parametrize(
    "change",
    [
        {"contents": b""},
        {"contents": bytes(19)},
        {"contents": bytes(20 * (BATCH_CONTENTS_MAX + 1))},
        {"contents": bytes(20 * 50_000)},
        {"contents": "00" * 20},
        {"bytes_max": 0},
        {"bytes_max": BATCH_ANSWER_BYTES_MAX + 1},
        {"channel": "lab"},
    ],
    ids=str,
)
def test_a_question_out_of_bounds_is_refused_on_a_data_stream(change: dict[str, Any]) -> None:
    asked = message(BatchRequest(1, batch_of(1)).frame())
    asked["body"] |= change
    with pytest.raises(ProtocolError):
        read_batch_request(asked)


def test_an_answer_that_is_not_what_was_asked_is_refused() -> None:
    request = BatchRequest(1, batch_of(2))
    good = frame((0, BYTES, b"a"))
    for bad in (
        {"id": 2, "pieces": bytes(good), "last": True},
        {"id": 1, "pieces": b"", "last": True},
        {"id": 1, "pieces": bytes(good) + bytes(good), "last": True},
        {"id": 1, "pieces": bytes(good)},
        {"id": 1, "last": True},
    ):
        with pytest.raises(ProtocolError):
            BatchAnswer(request).receive(bad)
