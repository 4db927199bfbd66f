"""The table of operations: every field missing, of a wrong type, and out of bounds."""

from __future__ import annotations

from typing import Any

import pytest

from kachery_p2p.errors import ProtocolError
from kachery_p2p.limits import (
    ADDRESSES_PER_NODE_MAX,
    ANNOUNCE_PREFIXES_MAX,
    BATCH_ANSWER_BYTES_MAX,
    BATCH_CONTENTS_MAX,
    BATCH_PIECES_BYTES_MAX,
    CHANGE_BYTES_MAX,
    CHUNK_BYTES,
    ENTRIES_ANSWER_BYTES,
    ENTRIES_ANSWER_MAX,
    FRAME_BYTES_MAX,
    INDEX_NAMES_MAX,
    NOTICE_BYTES_MAX,
    PEERS_MAX,
)
from kachery_p2p.log.forks import FORK_BYTES_MAX
from kachery_p2p.log.heads import HEAD_BYTES
from kachery_p2p.wire.codec import encode_frame
from kachery_p2p.wire.messages import (
    FAILURE_CODES,
    OPERATIONS,
    REFUSED,
    check_answer,
    check_failure,
    check_request,
    failure,
)
from tests.wire.test_wire_bucket_messages import BUCKET_ANSWERS, BUCKET_REQUESTS, BUCKET_WRONG
from tests.wire.test_wire_feed_messages import FEED_ANSWERS, FEED_REQUESTS, FEED_WRONG

CHANNEL, CONTENT, ROOT = "0f" * 32, b"c" * 20, b"r" * 32
WHAT = {"channel": CHANNEL, "content": CONTENT, "root": ROOT}
ME = {"label": "recorder µ", "addresses": ["/ip4/192.0.2.1/tcp/1"], "agent": "kachery-p2p/1"}
MEMBER = {"node": b"n" * 32, "addresses": ["/dns4/a.example.org/tcp/1/p2p/12D3"]}
NEWS = {"head": bytes(HEAD_BYTES), "fork": b"", "notice": bytes(NOTICE_BYTES_MAX)}
REQUESTS: dict[str, dict[str, Any]] = {
    "introduce": ME,
    "members": {"channel": CHANNEL},
    "have": {"channel": CHANNEL, "content": CONTENT},
    "root": WHAT,
    "page": {**WHAT, "number": 3},
    "chunks": {**WHAT, "number": 3},
    "announce": {"channel": CHANNEL, "seq": 3, "reset": True, "add": b"12345678", "drop": b""},
    "holders": {"channel": CHANNEL, "content": CONTENT},
    "history": {"channel": CHANNEL, **NEWS},
    "entries": {"channel": CHANNEL, "first": 1 << 16},
    "change": {"request": b"r"},
    "succession": {"channel": CHANNEL, "successor": CHANNEL, "head": bytes(HEAD_BYTES)},
    "bulk": {"random": bytes(32), "cipher": 2},
    "bulk back": {"ticket": bytes(16), "port": 65_535},
    "ping": {},
    "leave": {"channel": CHANNEL},
    "range": {**WHAT, "first": 0, "count": 4},
    "batch": {"channel": CHANNEL, "contents": CONTENT * 3, "bytes_max": 4 << 20},
    **FEED_REQUESTS,
    **BUCKET_REQUESTS,
}
ANSWERS: dict[str, dict[str, Any]] = {
    "introduce": ME,
    "members": {"members": [MEMBER]},
    "have": {"size": 1 << 44, "root": ROOT, "pinned": False},
    "root": {"object": bytes(524_328)},
    "page": {"page": bytes(32 << 10)},
    "chunks": {"chunks": bytes(128)},
    "announce": {},
    "holders": {"nodes": [b"n" * 32]},
    "history": NEWS,
    "entries": {"entries": [b"e"]},
    "change": {},
    "succession": {},
    "bulk": {"ticket": bytes(16), "random": bytes(32), "cipher": 1, "port": 0},
    "bulk back": {},
    "ping": {},
    "leave": {},
    "range": {"number": 0, "data": b"x"},
    "batch": {"pieces": b"p", "last": True},
    **FEED_ANSWERS,
    **BUCKET_ANSWERS,
}
WRONG: dict[str, list[Any]] = {
    "channel": ["0f" * 31, "0F" * 32, "0g" * 32, b"0f" * 32, "٠" * 64, "0f" * 33],
    "content": [b"c" * 19, b"c" * 21, "c" * 20],
    "root": [b"r" * 31, "r" * 32],
    "successor": ["0f" * 31, b"0f" * 32],
    "head": [bytes(HEAD_BYTES + 1), "h", None],
    "fork": [bytes(FORK_BYTES_MAX + 1), "f", None],
    "notice": [bytes(NOTICE_BYTES_MAX + 1), "n", None],
    "entries": [[b""], [b"e"] * (ENTRIES_ANSWER_MAX + 1), [bytes(ENTRIES_ANSWER_BYTES + 1)], b"e"],
    "request": [b"", bytes(CHANGE_BYTES_MAX + 1), "r"],
    "random": [bytes(31), bytes(33), "r" * 32],
    "cipher": [0, 3, True],
    "ticket": [bytes(15), bytes(17), None],
    "port": [-1, 65_536, 1.0],
    "number": [-1, 1 << 24, 1.0, True, "1"],
    "seq": [-1, 1 << 53, 1.0, True],
    "reset": [0, 1, None],
    "add": [b"1234567", bytes(8 * ANNOUNCE_PREFIXES_MAX + 8), "12345678", None],
    "drop": [b"123456789", bytes(8 * ANNOUNCE_PREFIXES_MAX + 1), []],
    "nodes": [[b"n" * 31], [b"n" * 32] * (INDEX_NAMES_MAX + 1), b"n" * 32],
    "first": [-1, 1 << 24, None],
    "count": [0, 5, False],
    "label": ["x" * 65, "a\nb", "a\x1b[2J", "\u202egpj.exe", b"x", 7],
    "agent": ["x" * 65, "a\0b"],
    "addresses": [
        "/ip4/1",
        ["ip4"],
        ["/ip4/1 2"],
        ["/ip4/\n"],
        ["/ünicode"],
        ["/" + "x" * 256],
        [b"/ip4"],
        ["/a"] * (ADDRESSES_PER_NODE_MAX + 1),
    ],
    "members": [[MEMBER] * (PEERS_MAX + 1), [{}], [[]], {}, [{**MEMBER, "node": b"n"}]],
    "size": [-1, (1 << 44) + 1, 1 << 63, 1.5],
    "pinned": [0, 1, None, "yes"],
    "object": [b"x" * 39, bytes(524_329), "x" * 40],
    "page": [b"", b"x" * 31, bytes((32 << 10) + 1)],
    "data": [b"", bytes(CHUNK_BYTES + 1), "x"],
    "chunks": [b"", bytes(129), "x", 1],
    "contents": [b"c" * 19, b"c" * 20 * (BATCH_CONTENTS_MAX + 1), "c" * 20, [b"c" * 20]],
    "bytes_max": [CHUNK_BYTES - 1, BATCH_ANSWER_BYTES_MAX + 1, True, None],
    "pieces": [b"", bytes(BATCH_PIECES_BYTES_MAX + 1), "p"],
    "last": [0, 1, None],
}


def wrong_of(op: str) -> dict[str, list[Any]]:
    if op in BUCKET_REQUESTS:
        return BUCKET_WRONG
    return FEED_WRONG if op in FEED_REQUESTS else WRONG


def stream_of(op: str) -> str:
    return OPERATIONS[op].stream


def test_the_tests_know_every_operation_and_field() -> None:
    assert set(REQUESTS) == set(ANSWERS) == set(OPERATIONS)
    for op, operation in OPERATIONS.items():
        assert set(REQUESTS[op]) == set(operation.request)
        assert set(ANSWERS[op]) == set(operation.answer)
        assert set(operation.request) | set(operation.answer) <= set(wrong_of(op))


@pytest.mark.parametrize("op", OPERATIONS)
def test_a_right_request_and_answer_pass_and_unknown_fields_are_dropped(op: str) -> None:
    request, answer = REQUESTS[op], ANSWERS[op]
    assert check_request(op, {**request, "later": 1}, stream_of(op)) == request
    assert check_answer(op, {**answer, "later": 1}) == answer


@pytest.mark.parametrize("op", OPERATIONS)
def test_a_missing_or_wrong_field_is_named(op: str) -> None:
    def as_request(body: dict[str, Any]) -> dict[str, Any]:
        return check_request(op, body, stream_of(op))

    def as_answer(body: dict[str, Any]) -> dict[str, Any]:
        return check_answer(op, body)

    for body, check in ((REQUESTS[op], as_request), (ANSWERS[op], as_answer)):
        for name in body:
            with pytest.raises(ProtocolError, match=f"{name} is missing"):
                check({key: value for key, value in body.items() if key != name})
            for wrong in wrong_of(op)[name]:
                with pytest.raises(ProtocolError, match=f"{name}: "):
                    check({**body, name: wrong})


@pytest.mark.parametrize("body", [None, [], "x", 1, b"", [("channel", CHANNEL)]])
def test_a_body_that_is_no_map_is_refused(body: object) -> None:
    for op in OPERATIONS:
        with pytest.raises(ProtocolError):
            check_request(op, body, stream_of(op))
        with pytest.raises(ProtocolError):
            check_answer(op, body)


@pytest.mark.parametrize("op", ["", "evil", "PING", None, 7, b"ping", ["ping"], {"ping": 1}])
def test_an_operation_that_is_not_in_the_table_is_refused(op: object) -> None:
    with pytest.raises(ProtocolError):
        check_request(op, {})


def test_each_operation_has_its_stream() -> None:
    with pytest.raises(ProtocolError):
        check_request("range", REQUESTS["range"])
    with pytest.raises(ProtocolError):
        check_request("ping", {}, stream="data")


def test_the_largest_answers_fit_a_frame() -> None:
    many = [{"node": b"n" * 32, "addresses": ["/" + "x" * 255] * ADDRESSES_PER_NODE_MAX}]
    for op, answer in {
        **ANSWERS,
        "members": {"members": many * PEERS_MAX},
        "range": {"number": (1 << 24) - 1, "data": bytes(CHUNK_BYTES)},
    }.items():
        frame = encode_frame({"id": (1 << 63) - 1, "ok": check_answer(op, answer)})
        assert len(frame) - 4 <= FRAME_BYTES_MAX


def test_refusals_look_the_same_whatever_the_reason() -> None:
    assert failure(REFUSED, "no such file") == failure(REFUSED, "not in your channel")
    assert check_failure(failure(REFUSED)) == ("refused", "absent, or not allowed")


def test_the_text_of_a_failure_is_made_short_and_printable_before_it_is_sent() -> None:
    sent = failure("failed", "disk\n\x1b[31m" + "x" * 1000)
    assert check_failure(sent) == ("failed", ("disk??[31m" + "x" * 1000)[:256])


@pytest.mark.parametrize("code", sorted(FAILURE_CODES))
def test_every_code_of_ours_is_understood(code: str) -> None:
    assert check_failure(failure(code))[0] == code


def test_a_failure_code_of_a_later_version_reads_as_failed() -> None:
    assert check_failure({"error": "quota", "text": "later"}) == ("failed", "later")


@pytest.mark.parametrize(
    "message",
    [
        {"error": 5, "text": ""},
        {"error": "failed"},
        {"error": "failed", "text": "x" * 257},
        {"error": "failed", "text": "\x1b[2J"},
        {"error": "x" * 65, "text": ""},
        {"error": ["failed"], "text": ""},
    ],
)
def test_a_failure_out_of_bounds_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        check_failure(message)
