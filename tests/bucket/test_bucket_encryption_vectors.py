"""The bytes of encrypted buckets, made without kachery_p2p (PROTOCOL.md, "Encrypted buckets")."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.bucket.key_objects import KeyObject, reader_tag
from kachery_p2p.bucket.rings import Ring, ring_of_keeper, ring_of_secret
from kachery_p2p.bucket.sealing import (
    BEGINNING_BYTES,
    SealedWriting,
    object_size,
    opened_beginning,
)
from kachery_p2p.errors import SealError
from kachery_p2p.identity.channel_keys import ChannelKey
from kachery_p2p.identity.frames import key_id
from kachery_p2p.identity.keys import NodeKey

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors/bucket_encryption.json").read_text("utf-8")
)
OWNED, OBJECT, KEYS = VECTORS["owned"], VECTORS["object"], VECTORS["keys"]


def raw(text: str) -> bytes:
    return bytes.fromhex(text)


@pytest.fixture(scope="module")
def ring() -> Ring:
    return ring_of_keeper(ChannelKey(raw(OWNED["channel_seed"])), OBJECT["epoch"])


def test_the_keys_of_a_secret_are_these() -> None:
    told = VECTORS["shared"]
    ring = ring_of_secret(raw(told["secret"]), told["name"])
    assert (ring.epoch, ring.name_key.hex()) == (0, told["name_key"])
    assert ring.content_key.hex() == told["content_key"]
    assert key_id(ring.content_key).hex() == told["key_id"]


def test_the_keys_of_a_channels_epochs_are_these() -> None:
    key = ChannelKey(raw(OWNED["channel_seed"]))
    assert key.node_id == OWNED["channel"]
    for told in OWNED["epochs"]:
        ring = ring_of_keeper(key, told["epoch"])
        assert ring.name_key.hex() == OWNED["name_key"]
        assert ring.secret.hex() == told["state"]
        assert ring.content_key.hex() == told["content_key"]
        assert key_id(ring.content_key).hex() == told["key_id"]


def test_an_object_is_spelled_and_opened_so(ring: Ring) -> None:
    content, sealed = raw(OBJECT["content"]), raw(OBJECT["object"])
    salts = (raw(OBJECT["note_salt"]), raw(OBJECT["content_salt"]))
    attributes = {**OBJECT["attributes"], "Content-Type": "text/plain"}
    writing = SealedWriting(ring, OBJECT["key"], len(content), attributes, salts)
    assert b"".join(writing.pieces([content])) == sealed
    assert ring.stored_name(OBJECT["key"]) == OBJECT["path"]
    assert opened(ring, sealed) == content
    found = opened_beginning(ring, sealed[:BEGINNING_BYTES])
    assert (found.key, found.attributes) == (OBJECT["key"], OBJECT["attributes"])


def opened(ring: Ring, sealed: bytes) -> bytes:
    found = opened_beginning(ring, sealed[:BEGINNING_BYTES], OBJECT["key"])
    if len(sealed) != object_size(found.size):
        raise SealError("the length")
    return found.opener.open_span(0, found.size, sealed[BEGINNING_BYTES:])


@pytest.mark.parametrize("bad", OBJECT["bad"], ids=[bad["why"] for bad in OBJECT["bad"]])
def test_a_bad_object_is_refused(ring: Ring, bad: dict[str, Any]) -> None:
    with pytest.raises(SealError):
        opened(ring, raw(bad["object"]))


def test_the_key_object_is_spelled_and_opened_so(ring: Ring) -> None:
    made = KeyObject.decode(raw(KEYS["object"]))
    made.verify(OWNED["channel"])
    assert made.encode() == raw(KEYS["object"])
    told = (KEYS["epoch"], KEYS["entries"], KEYS["time_ms"])
    assert (made.epoch, made.entries, made.time_ms) == told
    for reader in KEYS["readers"]:
        key = NodeKey(raw(reader["seed"]), raw(reader["exchange_secret"]))
        assert key.node_id == reader["node"]
        tag = reader_tag(OWNED["channel"], KEYS["epoch"], raw(reader["exchange_public"]))
        assert tag.hex() == reader["tag"]
        found = made.opened(key)
        assert found is not None
        assert (found.name_key, found.secret) == (ring.name_key, ring.secret)


@pytest.mark.parametrize("bad", KEYS["bad"], ids=[bad["why"] for bad in KEYS["bad"]])
def test_a_bad_key_object_is_refused(bad: dict[str, Any]) -> None:
    reader = KEYS["readers"][0]
    with pytest.raises(SealError):
        made = KeyObject.decode(raw(bad["keys"]))
        made.verify(OWNED["channel"])
        made.opened(NodeKey(raw(reader["seed"]), raw(reader["exchange_secret"])))


def test_a_key_object_has_one_spelling() -> None:
    (swapped,) = (bad for bad in KEYS["bad"] if bad["why"] == "wraps in another order")
    with pytest.raises(SealError):
        KeyObject.decode(raw(swapped["keys"]))
