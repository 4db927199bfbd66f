"""The messages of PROTOCOL.md, "Feeds between nodes", byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.feeds.keys import FeedKey
from kachery_p2p.feeds.names import HEAD_TAG, subfeed_id
from kachery_p2p.feeds.ownership import claim_ownership, proves_ownership
from kachery_p2p.feeds.replica import Replica, Standing
from kachery_p2p.feeds.told import SubfeedName, Told
from kachery_p2p.feeds.tombstones import Tombstone
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.log.forks import ForkProof
from kachery_p2p.log.heads import SignedHead
from kachery_p2p.log.tree import Frontier, leaf_hashes
from kachery_p2p.wire.codec import FrameDecoder, encode_frame
from kachery_p2p.wire.feed_messages import FEED_OPERATIONS, unpack, unpack_hashes
from kachery_p2p.wire.messages import check_answer, check_request
from tests.feeds.feed_parts import MemoryLog

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "feed_messages.json").read_text("utf-8")
)
ENTRIES = [bytes.fromhex(entry) for entry in VECTORS["entries"]]
NAME = SubfeedName.of(
    {"feed": bytes.fromhex(VECTORS["feed"]), "name": bytes.fromhex(VECTORS["name_hash"])}
)
CLAIM = bytes.fromhex(VECTORS["ownership"])
HEAD = SignedHead.decode(bytes.fromhex(VECTORS["head"]), HEAD_TAG)


def of_json(value: Any) -> Any:
    if isinstance(value, dict):
        if "$hex" in value:
            return bytes.fromhex(value["$hex"])
        return {name: of_json(one) for name, one in value.items()}
    return value


MESSAGES = {
    one["what"]: (one["op"], of_json(one["request"]), of_json(one["answer"]), one["frames"])
    for one in VECTORS["messages"]
}


def whole_log() -> MemoryLog:
    log = MemoryLog(NAME.log)
    frontier, stored = Frontier().extended(leaf_hashes(ENTRIES))
    log.keep(ENTRIES, frontier, stored, HEAD)
    return log


def test_every_message_about_feeds_has_a_vector() -> None:
    assert {op for op, *_ in MESSAGES.values()} == FEED_OPERATIONS.keys()
    assert subfeed_id(NAME.feed, NAME.name).hex() == VECTORS["subfeed"]


@pytest.mark.parametrize("what", MESSAGES)
def test_messages_are_spelled_so(what: str) -> None:
    op, request, answer, frames = MESSAGES[what]
    sent = [{"id": 7, "op": op, "body": request}, {"id": 7, "ok": answer}]
    assert [encode_frame(message).hex() for message in sent] == frames
    assert [FrameDecoder().feed(bytes.fromhex(frame)) for frame in frames] == [[m] for m in sent]
    assert check_request(op, request) == request
    assert check_answer(op, answer) == answer


def test_the_answer_to_who_has_seven_entries_is_this() -> None:
    _, request, answer, _ = MESSAGES["follow, from one who has 7 entries"]
    told = Replica(whole_log()).tell(Told.of(request).head)
    assert {**told.known, "path": b"".join(told.path), "own": CLAIM} == answer


def test_the_claim_of_ownership_is_this() -> None:
    key, node = FeedKey(bytes.fromhex(VECTORS["key_seed"])), NodeId(VECTORS["answering_node"])
    assert claim_ownership(key, node) == CLAIM
    assert proves_ownership(CLAIM, NAME.feed, node)


@pytest.mark.parametrize("what", ["news with their entries", "news without"])
def test_news_convince_who_has_seven_entries(what: str) -> None:
    _, request, _, _ = MESSAGES["follow, from one who has 7 entries"]
    log = MemoryLog(NAME.log)
    frontier, stored = Frontier().extended(leaf_hashes(ENTRIES[:7]))
    log.keep(ENTRIES[:7], frontier, stored, Told.of(request).head)
    reader = Replica(log)
    assert reader.hear(Told.of(MESSAGES[what][1])).standing is Standing.AGREES
    assert reader.best == HEAD
    assert reader.readable == (9 if "with their" in what else 7)


def test_entries_that_prove_themselves_fold_to_the_signed_root() -> None:
    _, request, answer, _ = MESSAGES["entries that prove themselves"]
    entries = unpack(answer["entries"], 1)
    before = Frontier(request["first"], unpack_hashes(answer["frontier"]))
    Replica(whole_log()).grown(before, entries, unpack_hashes(answer["path"]), HEAD)


@pytest.mark.parametrize("what", ["one size, exact", "two sizes"])
def test_fork_proofs_say_where_the_histories_part(what: str) -> None:
    data = bytes.fromhex(VECTORS["forks"][what])
    fork = ForkProof.decode(data, HEAD_TAG)
    fork.verify(NAME.log)
    assert fork.encode() == data
    assert fork.common_entries_max == VECTORS["forks"]["common"]


def test_the_tombstone_is_the_owners() -> None:
    tombstone = Tombstone.decode(bytes.fromhex(VECTORS["tombstone"]))
    tombstone.verify(NAME.log)
    assert tombstone.size == 7
    log = whole_log()
    log.end(tombstone)
    assert Replica(log).readable == 7
