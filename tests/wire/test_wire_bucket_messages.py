"""Messages about buckets: samples for the table, and keys and queries that lead elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from kachery_p2p.errors import ProtocolError
from kachery_p2p.limits import (
    BUCKET_KEY_CHARS_MAX,
    BUCKET_QUERY_CHARS_MAX,
    BUCKET_RELAY_BYTES_MAX,
    BUCKET_TOLD_ATTRIBUTES_MAX,
    BUCKET_TOLD_CHARS_MAX,
)
from kachery_p2p.wire.messages import check_answer, check_request

WHERE = {"channel": "0f" * 32, "bucket": b"b" * 32}
KEY = "sha1/ab/cd/ef/abcdef"
NOTED = {"name": "root", "value": "ab" * 32}
LOOKED = {"size": 7, "attributes": [NOTED], "query": "X-Amz-Expires=300&b=%2F", "valid_s": 300}

BUCKET_REQUESTS: dict[str, dict[str, Any]] = {
    "bucket": WHERE,
    "bucket put": {**WHERE, "content": b"c" * 20, "label": "µ.csv", "wait_ms": 5_000},
    "bucket look": {**WHERE, "key": KEY},
    "bucket read": {**WHERE, "key": KEY, "start": 1 << 45, "length": BUCKET_RELAY_BYTES_MAX},
}
BUCKET_ANSWERS: dict[str, dict[str, Any]] = {
    "bucket": {"puts": True, "reads": False},
    "bucket put": {"state": 2, "said": "too large"},
    "bucket look": LOOKED,
    "bucket read": {"data": bytes(BUCKET_RELAY_BYTES_MAX)},
}
OUTSIDE = ["..", "../x", "a/../b", "a/..", "/a", "a/", "a//b", ".", "a/./b", "", "a b", "a%2fb"]
JUNK = ["a b", "a\r\nHost: x", "a#b", "a\0", "é", 'a"b', "a\\b", "<", "\u202e"]
BUCKET_WRONG: dict[str, list[Any]] = {
    "channel": ["0f" * 31, b"0f" * 32],
    "bucket": [bytes(31), bytes(33), "b" * 32],
    "content": [b"c" * 19, b"c" * 21, "c" * 20],
    "label": ["x" * 256, "a\nb", b"x", None],
    "wait_ms": [-1, 5_001, 1.0, True],
    "key": [*OUTSIDE, "a" * (BUCKET_KEY_CHARS_MAX + 1), "a\n", "µ", b"a", None, "a?b", "a#b"],
    "start": [-1, (1 << 45) + 1, None],
    "length": [0, BUCKET_RELAY_BYTES_MAX + 1, True],
    "puts": [0, 1, None],
    "reads": [0, 1, None],
    "state": [-1, 3, True],
    "said": ["x" * 257, "a\nb", None],
    "size": [-1, (1 << 45) + 1, 1.5],
    "attributes": [
        [NOTED] * (BUCKET_TOLD_ATTRIBUTES_MAX + 1),
        [{"name": "root"}],
        [{**NOTED, "value": "v" * (BUCKET_TOLD_CHARS_MAX + 1)}],
        [{**NOTED, "name": "a\nb"}],
        NOTED,
    ],
    "query": [*JUNK, "x" * (BUCKET_QUERY_CHARS_MAX + 1), b"x", None],
    "valid_s": [-1, 301, 1.5],
    "data": [b"", bytes(BUCKET_RELAY_BYTES_MAX + 1), "x"],
}


@pytest.mark.parametrize("key", OUTSIDE)
def test_no_key_leads_out_of_the_prefix(key: str) -> None:
    for op in ("bucket look", "bucket read"):
        with pytest.raises(ProtocolError, match="key: "):
            check_request(op, {**BUCKET_REQUESTS[op], "key": key})


@pytest.mark.parametrize("query", JUNK)
def test_no_query_ends_its_line(query: str) -> None:
    with pytest.raises(ProtocolError, match="query: "):
        check_answer("bucket look", {**LOOKED, "query": query})


def test_an_empty_query_says_that_the_member_reads_for_us() -> None:
    assert check_answer("bucket look", {**LOOKED, "query": ""})["query"] == ""
