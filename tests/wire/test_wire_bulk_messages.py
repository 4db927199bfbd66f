"""What sealed frames say: the recorded layouts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.errors import ProtocolError
from kachery_p2p.limits import (
    BULK_HELLO_BYTES_MAX,
    BULK_PAYLOAD_BYTES_MAX,
    BULK_REQUEST_BYTES_MAX,
    CHUNK_BYTES,
    REASON_CHARS_MAX,
)
from kachery_p2p.wire.bulk_messages import (
    CANCEL,
    DATA,
    END,
    FAILURE,
    HELLO,
    PIECE_HEADER_BYTES,
    REQUEST,
    BulkRange,
    DueChunks,
    check_asker_header,
    check_hello_header,
    check_server_header,
    encode_failure,
    encode_hello,
    read_failure,
    read_hello,
    read_piece_header,
    read_request,
    write_piece_header,
)
from kachery_p2p.wire.messages import BUSY, FAILED, REFUSED, REFUSED_TEXT
from kachery_p2p.wire.sealed import FrameHeader

VECTORS = json.loads((Path(__file__).parents[1] / "vectors/bulk.json").read_text())
RANGE = BulkRange("0f" * 32, b"c" * 20, b"r" * 32, first=6, count=3)


def range_of(vector: dict[str, Any]) -> BulkRange:
    content, root = bytes.fromhex(vector["content"]), bytes.fromhex(vector["root"])
    return BulkRange(vector["channel"], content, root, vector["first"], vector["count"])


@pytest.mark.parametrize("vector", VECTORS["requests"], ids=lambda v: f"{v['first']}+{v['count']}")
def test_recorded_requests_are_written_and_read(vector: dict[str, Any]) -> None:
    wanted = range_of(vector)
    assert wanted.encode().hex() == vector["payload"]
    assert read_request(bytes.fromhex(vector["payload"])) == wanted


@pytest.mark.parametrize("vector", VECTORS["bad_requests"], ids=lambda v: v["what"])
def test_a_request_out_of_bounds_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        read_request(bytes.fromhex(vector["payload"]))


@pytest.mark.parametrize(("first", "count"), [(0, 0), (0, 65), (-1, 1), (16_777_216, 1)])
def test_a_request_that_would_be_refused_is_not_made(first: int, count: int) -> None:
    with pytest.raises(ValueError, match="not a range"):
        BulkRange(RANGE.channel, RANGE.content, RANGE.root, first, count).encode()


def test_a_chunk_is_told_with_its_number_and_length() -> None:
    payload = memoryview(bytearray(PIECE_HEADER_BYTES + 5))
    write_piece_header(6, 5, payload)
    payload[PIECE_HEADER_BYTES:] = b"first"
    told = VECTORS["agreements"][0]["frames"][4]
    assert told["what"].startswith("chunk 6")
    assert payload.hex() == told["payload"]
    assert read_piece_header(payload) == (6, 5)


@pytest.mark.parametrize("vector", VECTORS["bad_pieces"], ids=lambda v: v["what"])
def test_a_chunk_that_is_not_what_it_says_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        read_piece_header(memoryview(bytes.fromhex(vector["payload"])))


def test_a_chunk_longer_than_chunks_are_is_refused() -> None:
    payload = memoryview(bytearray(PIECE_HEADER_BYTES + CHUNK_BYTES + 1))
    write_piece_header(0, CHUNK_BYTES + 1, payload)
    with pytest.raises(ProtocolError):
        read_piece_header(payload)


@pytest.mark.parametrize("vector", VECTORS["failures"], ids=lambda v: v["payload"])
def test_recorded_failures_are_read(vector: dict[str, Any]) -> None:
    assert read_failure(bytes.fromhex(vector["payload"])) == (vector["code"], vector["text"])


def test_failures_are_written_as_they_are_read_and_refusals_all_alike() -> None:
    assert read_failure(encode_failure(BUSY, "later")) == (BUSY, "later")
    assert read_failure(encode_failure(FAILED)) == (FAILED, "")
    assert encode_failure(REFUSED, "never granted") == encode_failure(REFUSED, "no such thing")
    assert read_failure(encode_failure(REFUSED)) == (REFUSED, REFUSED_TEXT)


def test_the_text_of_a_failure_is_made_harmless() -> None:
    text = "\x1b[31m" + "\u202e" + "x" * 1000
    assert read_failure(b"\3" + text.encode())[1] == "?[31m?" + "x" * (REASON_CHARS_MAX - 6)
    assert read_failure(b"\3\xff\xfe")[1].isprintable()
    with pytest.raises(ProtocolError):
        read_failure(b"")
    longest = encode_failure(FAILED, "\U0001f600" * REASON_CHARS_MAX)
    check_server_header(FrameHeader(FAILURE, 0, 1, len(longest)))


def test_a_hello_says_how_many_requests_its_side_takes_and_later_ones_may_say_more() -> None:
    assert encode_hello().hex() == VECTORS["agreements"][0]["frames"][0]["payload"]
    assert read_hello(encode_hello(5)) == 5
    assert read_hello(encode_hello(5) + bytes(BULK_HELLO_BYTES_MAX - 4)) == 5
    for bad in (b"", b"\0\0\1", bytes(4), encode_hello(5) + bytes(BULK_HELLO_BYTES_MAX)):
        with pytest.raises(ProtocolError):
            read_hello(bad)


@pytest.mark.parametrize(
    "header",
    [FrameHeader(REQUEST, 0, 0, 4), FrameHeader(HELLO, 0, 1, 4), FrameHeader(HELLO, 0, 0, 65)],
)
def test_a_connection_begins_with_a_hello(header: FrameHeader) -> None:
    check_hello_header(FrameHeader(HELLO, 0, 0, 4))
    with pytest.raises(ProtocolError):
        check_hello_header(header)


ASKED = [(REQUEST, BULK_REQUEST_BYTES_MAX), (CANCEL, 0)]
SERVED = [(DATA, BULK_PAYLOAD_BYTES_MAX), (END, 0), (FAILURE, 1 + 4 * REASON_CHARS_MAX)]


@pytest.mark.parametrize(
    ("check", "sent", "not_sent"),
    [(check_asker_header, ASKED, SERVED), (check_server_header, SERVED, ASKED)],
)
def test_each_side_sends_its_own_kinds_of_frame_within_their_bounds(
    check: Any, sent: list[tuple[int, int]], not_sent: list[tuple[int, int]]
) -> None:
    for kind, length in sent:
        check(FrameHeader(kind, 0, 1, length))
        with pytest.raises(ProtocolError):
            check(FrameHeader(kind, 0, 1, length + 1))
        with pytest.raises(ProtocolError):
            check(FrameHeader(kind, 0, 0, length))
    for kind in (0, HELLO, 7, 255, *(kind for kind, _ in not_sent)):
        with pytest.raises(ProtocolError):
            check(FrameHeader(kind, 0, 1, 0))


def test_chunks_are_due_in_order_and_once_and_no_more_than_were_asked_for() -> None:
    due = DueChunks(RANGE)
    for number in (6, 7, 8):
        assert not due.complete
        for wrong in {5, 6, 7, 8, 9} - {number}:
            with pytest.raises(ProtocolError):
                due.came(wrong)
        due.came(number)
    assert due.complete
    for number in (8, 9):
        with pytest.raises(ProtocolError):
            due.came(number)
