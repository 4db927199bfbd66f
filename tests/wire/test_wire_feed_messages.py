"""Messages about feeds: samples for the tests of the table, and how many entries are packed."""

from __future__ import annotations

import contextlib
from random import Random
from typing import Any

import pytest

from kachery_p2p.errors import ProtocolError
from kachery_p2p.limits import (
    FEED_ANSWER_ENTRIES_MAX,
    FEED_HASHES_MAX,
    FEED_NEWS_BYTES_MAX,
    LOG_ENTRIES_MAX,
    PROOF_HASHES_MAX,
    SUBMITTED_MAX,
)
from kachery_p2p.log.forks import FORK_BYTES_MAX
from kachery_p2p.log.heads import HEAD_BYTES
from kachery_p2p.wire.feed_messages import (
    ANSWER_BYTES_MAX,
    SUBMITTED_BYTES_MAX,
    TOMBSTONE_BYTES,
    pack,
    pack_numbers,
    unpack,
    unpack_hashes,
    unpack_numbers,
)

WHICH = {"channel": "0f" * 32, "feed": b"f" * 32, "name": b"n" * 20}
KNOWN = {"head": bytes(HEAD_BYTES), "fork": b"", "tombstone": bytes(2 * TOMBSTONE_BYTES)}
PATH = bytes(32 * PROOF_HASHES_MAX)

FEED_REQUESTS: dict[str, dict[str, Any]] = {
    "feed follow": {**WHICH, **KNOWN, "follow": True},
    "feed news": {**WHICH, **KNOWN, "base": 7, "path": bytes(64), "entries": pack([b"e"])},
    "feed entries": {**WHICH, "first": 7, "count": 1, "size": 8, "frontier": False},
    "feed hashes": {**WHICH, "places": bytes(8)},
    "feed submit": {**WHICH, "ids": bytes(16), "messages": pack([b"{}"])},
}
FEED_ANSWERS: dict[str, dict[str, Any]] = {
    "feed follow": {**KNOWN, "path": b"", "own": bytes(64)},
    "feed news": {},
    "feed entries": {"entries": bytes(ANSWER_BYTES_MAX), "path": PATH, "frontier": PATH},
    "feed hashes": {"hashes": bytes(32)},
    "feed submit": {"positions": bytes(8), "head": bytes(HEAD_BYTES)},
}
FEED_WRONG: dict[str, list[Any]] = {
    "channel": ["0f" * 31, b"0f" * 32],
    "feed": [bytes(31), bytes(33), "f" * 32],
    "name": [bytes(19), bytes(21), "n" * 20],
    "head": [bytes(HEAD_BYTES + 1), "h", None],
    "fork": [bytes(FORK_BYTES_MAX + 1), "f", None],
    "tombstone": [bytes(TOMBSTONE_BYTES - 1), bytes(3 * TOMBSTONE_BYTES), None],
    "follow": [0, 1, None],
    "own": [bytes(63), bytes(128), True, False, None],
    "frontier": [1, None, bytes(33), bytes(32 * (PROOF_HASHES_MAX + 1))],
    "base": [-1, LOG_ENTRIES_MAX + 1, 1.0],
    "first": [-1, LOG_ENTRIES_MAX + 1, True],
    "size": [-1, LOG_ENTRIES_MAX + 1, None],
    "count": [0, FEED_ANSWER_ENTRIES_MAX + 1, None],
    "path": [bytes(33), bytes(32 * (PROOF_HASHES_MAX + 1)), []],
    "entries": [bytes(ANSWER_BYTES_MAX + 1), "e", None, [b"e"]],
    "places": [bytes(7), bytes(8 * FEED_HASHES_MAX + 8), []],
    "hashes": [bytes(31), bytes(32 * FEED_HASHES_MAX + 32), []],
    "ids": [bytes(15), bytes(16 * SUBMITTED_MAX + 16), None],
    "messages": [b"", bytes(SUBMITTED_BYTES_MAX + 5), "m"],
    "positions": [bytes(7), bytes(8 * SUBMITTED_MAX + 8), None],
}


def test_news_carry_fewer_entries_than_answers() -> None:
    assert FEED_NEWS_BYTES_MAX < ANSWER_BYTES_MAX


@pytest.mark.parametrize("items", [[], [b""], [b"a", b"", b"bc"], [bytes(70_000)]])
def test_items_arrive_as_they_were_packed(items: list[bytes]) -> None:
    assert unpack(pack(items), len(items), 70_000) == items


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"\0\0\0",
        b"\0\0\0\1",
        b"\0\0\0\2a",
        pack([b"a"]) + b"\0",
        b"\xff\xff\xff\xffabc",
        pack([b"a"] * 4),
        pack([b"a" * 11]),
    ],
)
def test_a_field_that_is_cut_off_or_has_too_much_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack(data, 3, 10)


def test_random_bytes_are_items_or_refused() -> None:
    random = Random(6)
    for _ in range(20_000):
        data = random.randbytes(random.randrange(40))
        if random.random() < 0.8:
            data = bytes(byte & 3 for byte in data)
        with contextlib.suppress(ProtocolError):
            assert pack(unpack(data, 8, 16)) == data


def test_numbers_and_hashes_arrive_as_they_were_packed() -> None:
    numbers = [0, 1, (1 << 64) - 1]
    assert unpack_numbers(pack_numbers(numbers)) == numbers
    assert unpack_hashes(b"a" * 32 + b"b" * 32) == (b"a" * 32, b"b" * 32)
