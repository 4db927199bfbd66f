"""Which log a subfeed is, what its entries are, and how it ends: the vectors, and one spelling."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.content.hashes import ContentHash, FeedId
from kachery_p2p.errors import (
    HeadError,
    InvalidNameError,
    LogFormatError,
    MessageFormatError,
    MessageTooLargeError,
)
from kachery_p2p.feeds.messages import (
    LEGACY,
    MESSAGE,
    SUBMITTED,
    Submission,
    legacy_entry,
    message_entries,
    read_message,
    submitted_entry,
)
from kachery_p2p.feeds.names import HEAD_TAG, name_hash_of, subfeed_log
from kachery_p2p.feeds.records import Header, decode_body, encode_record
from kachery_p2p.feeds.tombstones import End, Tombstone
from kachery_p2p.identity.keys import NodeId, NodeKey
from kachery_p2p.limits import FEED_NAME_CHARS_MAX, MESSAGE_BYTES_MAX
from kachery_p2p.log.entries import Entry
from kachery_p2p.log.heads import SignedHead
from kachery_p2p.log.tree import leaf_hash

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors/feeds.json").read_text())
KEY = NodeKey(bytes.fromhex(VECTORS["feed"]["seed"]), bytes(32))
FEED = FeedId(VECTORS["feed"]["id"])
LOG = subfeed_log(FEED, name_hash_of("main"))


@pytest.mark.parametrize("known", VECTORS["names"])
def test_a_name_has_the_hash_and_the_log_of_the_vector(known: dict[str, Any]) -> None:
    name_hash = name_hash_of(known["name"])
    assert name_hash == known["name_hash"]
    assert subfeed_log(FEED, name_hash).name.hex() == known["subfeed_id"]
    assert subfeed_log(FEED, name_hash).owner == KEY.node_id


@pytest.mark.parametrize(
    "name",
    [float("nan"), {1, 2}, b"bytes", "\ud800", "x" * (FEED_NAME_CHARS_MAX + 1), [[]] * 9_999],
)
def test_what_is_no_name_is_refused(name: object) -> None:
    with pytest.raises(InvalidNameError):
        name_hash_of(name)


@pytest.mark.parametrize("known", VECTORS["entries"])
def test_a_message_has_the_bytes_of_the_vector(known: dict[str, Any]) -> None:
    kind, text, time_ms = known["type"], known["text"], known["time_ms"]
    submission = None
    if kind == SUBMITTED:
        submitter = NodeId(known["submitter"])
        submission = Submission(submitter, bytes.fromhex(known["submission"]))
        entry = submitted_entry(text, submission, time_ms)
    elif kind == MESSAGE:
        [entry] = message_entries([text], time_ms)
    else:
        entry = legacy_entry(text, time_ms)
    assert entry.hex() == known["entry"]
    assert leaf_hash(entry).hex() == known["leaf"]
    assert read_message(entry) == (text, time_ms, kind, submission)


@pytest.mark.parametrize(
    "entry",
    [
        b"",
        b"\1\1",
        Entry(SUBMITTED, 1, bytes(47)).encode(),
        Entry(MESSAGE, 1, b"\xff").encode(),
        Entry(LEGACY, 1, b"1").encode() + b"1",
        b"\2" + Entry(MESSAGE, 1, b"1").encode()[1:],
    ],
)
def test_what_is_no_message_is_a_typed_error(entry: bytes) -> None:
    with pytest.raises(MessageFormatError):
        read_message(entry)


def test_a_type_that_is_not_known_says_who_is_to_upgrade() -> None:
    with pytest.raises(MessageFormatError) as caught:
        read_message(Entry(4, 1, b"1").encode())
    assert caught.value.hint == "upgrade kachery_p2p"


def test_a_message_has_a_largest_size_whoever_sends_it() -> None:
    text = '"' + "x" * (MESSAGE_BYTES_MAX - 2) + '"'
    submission = Submission(KEY.node_id, bytes(16))
    for entry in (message_entries([text], 1)[0], submitted_entry(text, submission, 1)):
        assert read_message(entry).text == text
    for make in (
        lambda: message_entries(["1", text + " "], 1),
        lambda: submitted_entry(text + " ", submission, 1),
        lambda: message_entries(["é" * (MESSAGE_BYTES_MAX // 2 + 1)], 1),
    ):
        with pytest.raises(MessageTooLargeError) as caught:
            make()
        assert caught.value.hint
    with pytest.raises(MessageFormatError):
        message_entries(["\ud800"], 1)


def test_a_record_has_the_bytes_of_the_vector() -> None:
    known = bytes.fromhex(VECTORS["record"])
    entries = [bytes.fromhex(one["entry"]) for one in VECTORS["entries"]]
    head = bytes.fromhex(VECTORS["head"]["head"])
    assert encode_record(0, entries, head) == known
    header = Header.decode(known)
    assert header is not None
    body = decode_body(header, known[32:], 1_000)
    assert body is not None
    assert (body.head, body.entries) == (head, entries)
    assert [at - 1_000 for at, _ in body.spans] == [known.index(entry) for entry in entries]
    SignedHead.decode(head, HEAD_TAG).verify(LOG)


def test_a_changed_record_is_noticed() -> None:
    known = bytes.fromhex(VECTORS["record"])
    for at in range(len(known)):
        changed = known[:at] + bytes([known[at] ^ 1]) + known[at + 1 :]
        header = Header.decode(changed)
        assert header is None or decode_body(header, changed[32:], 0) is None


@pytest.mark.parametrize("known", VECTORS["tombstones"])
def test_a_tombstone_has_the_bytes_of_the_vector(known: dict[str, Any]) -> None:
    data = bytes.fromhex(known["tombstone"])
    successor = None if known["successor"] is None else FeedId(known["successor"])
    root = bytes.fromhex(known["root"])
    tombstone = Tombstone(LOG, known["size"], root, successor, known["time_ms"]).signed(KEY)
    assert tombstone.encode() == data
    assert Tombstone.decode(data) == tombstone
    Tombstone.decode(data).verify(LOG)


def test_a_changed_tombstone_convinces_nobody() -> None:
    data = bytes.fromhex(VECTORS["tombstones"][0]["tombstone"])
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises((LogFormatError, HeadError)):
            Tombstone.decode(changed).verify(LOG)
    for length in (0, 16, len(data) - 1, len(data) + 1):
        with pytest.raises(LogFormatError):
            Tombstone.decode((data + b"\0")[:length])
    with pytest.raises(HeadError):
        Tombstone.decode(data).verify(LOG._replace(name=bytes(32)))


@pytest.mark.parametrize("seed", range(20))
def test_the_end_does_not_depend_on_the_order_in_which_it_is_heard(seed: int) -> None:
    rng = random.Random(seed)
    successors = [None, FEED, FeedId("ab" * 32)]
    tombstones = [
        Tombstone(LOG, rng.randrange(1, 4), bytes(32), rng.choice(successors), rng.randrange(3))
        for _ in range(rng.randrange(1, 6))
    ]
    tombstones = [tombstone.signed(KEY) for tombstone in tombstones]
    ends = set()
    for _ in range(5):
        rng.shuffle(tombstones)
        end = End.of(tombstones[:1])
        for tombstone in tombstones[1:]:
            end = End.of([*end.tombstones, tombstone])
        ends.add((end.tombstone, end.rival is None))
    assert len(ends) == 1
    [(counting, agreed)] = ends
    assert counting.size == min(tombstone.size for tombstone in tombstones)
    assert agreed == (len({tombstone.successor for tombstone in tombstones}) == 1)


def test_names_are_hashed_as_the_older_packages_did() -> None:
    assert name_hash_of("main") == ContentHash("b28b7af69320201d1cf206ebf28373980add1451")
