"""Entries and heads: the vectors, one spelling each, and whom a signature convinces of what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kachery_p2p.errors import HeadError, LogFormatError
from kachery_p2p.identity.keys import NodeId, NodeKey
from kachery_p2p.limits import ENTRY_PAYLOAD_BYTES_MAX, LOG_ENTRIES_MAX, LOG_TIME_MS_MAX
from kachery_p2p.log.entries import ENTRY_BYTES_MAX, HEADER_BYTES, Entry
from kachery_p2p.log.heads import HEAD_BYTES, Head, LogId, SignedHead, sign_head
from kachery_p2p.log.tree import EMPTY_ROOT, leaf_hash

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors/log.json").read_text())
TAG = bytes.fromhex(VECTORS["log"]["tag"])
KEY = NodeKey(bytes.fromhex(VECTORS["log"]["seed"]), bytes(32))
LOG = LogId(TAG, NodeId(VECTORS["log"]["owner"]), bytes.fromhex(VECTORS["log"]["name"]))
ROOT = bytes(range(32))
GOOD = bytes.fromhex(VECTORS["heads"][1]["head"])


def why(case: dict[str, str]) -> str:
    return case["why"]


# --- entries -----------------------------------------------------------------------------


@pytest.mark.parametrize("known", VECTORS["entries"], ids=lambda known: str(known["type"]))
def test_an_entry_has_the_bytes_of_the_vector(known: dict[str, Any]) -> None:
    entry = Entry(known["type"], known["time_ms"], bytes.fromhex(known["payload"]))
    assert entry.encode().hex() == known["bytes"]
    assert Entry.decode(bytes.fromhex(known["bytes"])) == entry
    assert entry.leaf.hex() == known["leaf"]
    assert entry.leaf == leaf_hash(entry.encode())


@pytest.mark.parametrize("bad", VECTORS["bad_entries"], ids=why)
def test_bytes_that_are_no_entry_are_refused(bad: dict[str, str]) -> None:
    with pytest.raises(LogFormatError):
        Entry.decode(bytes.fromhex(bad["bytes"]))


@given(st.integers(0, 255), st.integers(0, LOG_TIME_MS_MAX), st.binary(max_size=300))
def test_every_entry_is_read_as_it_was_written(kind: int, time_ms: int, payload: bytes) -> None:
    entry = Entry(kind, time_ms, payload)
    assert Entry.decode(entry.encode()) == entry


@given(st.binary(max_size=60))
def test_an_entry_has_one_spelling(data: bytes) -> None:
    for spelled in (data, b"\x01" + data):
        try:
            entry = Entry.decode(spelled)
        except LogFormatError:
            continue
        assert entry.encode() == spelled


def test_the_longest_payload_is_a_mebibyte() -> None:
    longest = Entry(1, 1, bytes(ENTRY_PAYLOAD_BYTES_MAX)).encode()
    assert len(longest) == ENTRY_BYTES_MAX == HEADER_BYTES + (1 << 20)
    assert len(Entry.decode(longest).payload) == ENTRY_PAYLOAD_BYTES_MAX
    longer = longest[:10] + (ENTRY_PAYLOAD_BYTES_MAX + 1).to_bytes(4, "big") + longest[14:] + b"\0"
    with pytest.raises(LogFormatError):
        Entry.decode(longer)
    with pytest.raises(AssertionError):
        Entry(1, 1, bytes(ENTRY_PAYLOAD_BYTES_MAX + 1)).encode()


def test_an_entry_of_a_newer_version_asks_for_an_upgrade() -> None:
    with pytest.raises(LogFormatError, match="version 2") as caught:
        Entry.decode(b"\x02" + Entry(1, 1, b"").encode()[1:])
    assert caught.value.hint == "upgrade kachery_p2p"


# --- heads --------------------------------------------------------------------------------


@pytest.mark.parametrize("known", VECTORS["heads"], ids=lambda known: str(known["size"]))
def test_a_head_has_the_bytes_of_the_vector(known: dict[str, Any]) -> None:
    head = Head(LOG, known["size"], bytes.fromhex(known["root"]), known["time_ms"])
    signed = sign_head(head, KEY)
    assert signed.encode().hex() == known["head"]
    assert len(signed.encode()) == HEAD_BYTES == 197
    again = SignedHead.decode(bytes.fromhex(known["head"]), TAG)
    assert again == signed
    again.verify(LOG)


@pytest.mark.parametrize("bad", VECTORS["bad_heads"], ids=why)
def test_bytes_that_are_no_head_are_refused(bad: dict[str, str]) -> None:
    with pytest.raises(LogFormatError):
        SignedHead.decode(bytes.fromhex(bad["head"]), TAG)


@pytest.mark.parametrize("bad", VECTORS["refused_heads"], ids=why)
def test_a_head_that_the_owner_did_not_sign_is_not_believed(bad: dict[str, str]) -> None:
    signed = SignedHead.decode(bytes.fromhex(bad["head"]), TAG)
    with pytest.raises(HeadError):
        signed.verify(LOG)


def test_an_owner_of_small_order_convinces_nobody_even_of_its_own_log() -> None:
    case = next(c for c in VECTORS["refused_heads"] if "small order" in c["why"])
    signed = SignedHead.decode(bytes.fromhex(case["head"]), TAG)
    with pytest.raises(HeadError, match="not signed"):
        signed.verify(signed.log)


def test_every_flipped_bit_of_a_head_is_noticed() -> None:
    for bit in range(8 * HEAD_BYTES):
        bad = bytearray(GOOD)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises((LogFormatError, HeadError)):
            SignedHead.decode(bytes(bad), TAG).verify(LOG)


@given(st.binary(min_size=HEAD_BYTES - len(TAG), max_size=HEAD_BYTES - len(TAG)))
def test_a_head_has_one_spelling(data: bytes) -> None:
    # Random bytes are never a head; with its fixed fields right they nearly always are.
    fixed = TAG + b"\x01" + data[:64] + bytes(4) + b"\0" + data[69:108] + b"\0" + data[109:]
    for spelled in (TAG + data, fixed[:HEAD_BYTES]):
        try:
            signed = SignedHead.decode(spelled, TAG)
        except LogFormatError:
            continue
        assert signed.encode() == spelled


@given(st.integers(0, LOG_ENTRIES_MAX), st.integers(0, LOG_TIME_MS_MAX))
def test_every_head_is_read_as_it_was_signed(size: int, time_ms: int) -> None:
    signed = sign_head(Head(LOG, size, ROOT if size else EMPTY_ROOT, time_ms), KEY)
    again = SignedHead.decode(signed.encode(), TAG)
    assert (again.size, again.time_ms, again.root) == (size, time_ms, signed.root)
    again.verify(LOG)


@pytest.mark.parametrize(
    "other",
    [
        LOG._replace(tag=b"kp2p-chan-head/1"),
        LOG._replace(name=bytes(32)),
        LOG._replace(owner=NodeKey(bytes(32), bytes(32)).node_id),
    ],
    ids=["tag", "name", "owner"],
)
def test_a_head_says_nothing_about_any_other_log(other: LogId) -> None:
    signed = SignedHead.decode(GOOD, TAG)
    with pytest.raises(HeadError, match="another log"):
        signed.verify(other)
    # Not even when it is put into its words, under the signature that it has.
    moved = signed._replace(head=signed.head._replace(log=other))
    with pytest.raises(HeadError, match="not signed"):
        moved.verify(other)


def test_nobody_signs_a_head_of_another_owner() -> None:
    with pytest.raises(AssertionError):
        sign_head(Head(LOG, 3, ROOT, 1), NodeKey(bytes(32), bytes(32)))
