"""The bytes of owned channels are those of the vectors, which another implementation made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.channels.admission import ADMITTER, JOINER, Meeting
from kachery_p2p.channels.changes import (
    MemberRemoved,
    SignedRequest,
    Succeeds,
    decode_change,
    encode_change,
)
from kachery_p2p.channels.channel import Channel, entry_check
from kachery_p2p.channels.history import History, check_membership, check_notice
from kachery_p2p.channels.invites import Invite
from kachery_p2p.channels.notices import Shown
from kachery_p2p.errors import InviteError
from kachery_p2p.identity.keys import NodeId, NodeKey
from kachery_p2p.log.entries import Entry

VECTORS = json.loads((Path(__file__).parents[1] / "vectors/channels.json").read_text())
CHANNEL = VECTORS["keys"]["channel"]["id"]
ENTRIES = [bytes.fromhex(vector["entry"]) for vector in VECTORS["entries"]]
HEAD = bytes.fromhex(VECTORS["head"])


@pytest.mark.parametrize("vector", VECTORS["entries"], ids=lambda v: v["change"])
def test_an_entry_is_that_of_the_vector(vector: dict[str, Any]) -> None:
    entry = Entry.decode(bytes.fromhex(vector["entry"]))
    recorded = decode_change(entry)
    assert type(recorded.change).__name__ == vector["change"].split()[0]
    assert (recorded.by, recorded.request.hex()) == (vector["by"], vector["request"])
    spelled = encode_change(recorded.change, recorded.by, recorded.request)
    assert spelled == (vector["type"], entry.payload)
    assert entry.payload.hex() == vector["by"] + vector["request"] + vector["body"]


def test_the_history_of_the_vectors_is_accepted() -> None:
    history = History.empty(CHANNEL).extended(HEAD, ENTRIES)
    keys = VECTORS["keys"]
    assert set(history.roster.members) == {keys["keeper"]["id"]}
    assert history.roster.removed == {keys["node"]["id"]: 6}
    assert history.roster.keeper == keys["heir"]["id"]
    assert history.roster.handed_over == keys["new"]["id"]
    notice = history.removal_notice(NodeId(keys["node"]["id"]))
    assert notice == bytes.fromhex(VECTORS["removal_notice"]["bytes"])


def test_what_is_shown_is_that_of_the_vectors() -> None:
    for kind in ("membership_proof", "removal_notice"):
        data = bytes.fromhex(VECTORS[kind]["bytes"])
        shown = Shown.decode(data)
        assert shown.number == VECTORS[kind]["number"]
        assert shown.encode() == data
    proof, notice = VECTORS["membership_proof"], VECTORS["removal_notice"]
    check_membership(CHANNEL, NodeId(proof["node"]), bytes.fromhex(proof["bytes"]))
    check_notice(CHANNEL, NodeId(notice["node"]), bytes.fromhex(notice["bytes"]), 6)


def test_the_keys_from_an_entry_secret_are_those_of_the_vector() -> None:
    vector = VECTORS["entry_secret"]
    secret = bytes.fromhex(vector["secret"])
    channel = Channel.owned(CHANNEL, secret, "alias")
    assert (channel.key.hex(), channel.discovery_key.hex()) == (
        vector["key"],
        vector["discovery_key"],
    )
    assert entry_check(CHANNEL, secret).hex() == vector["check"]


def test_a_request_is_that_of_the_vector() -> None:
    vector = VECTORS["request"]
    keeper = NodeKey(
        *(bytes.fromhex(VECTORS["keys"]["keeper"][k]) for k in ("seed", "exchange_seed"))
    )
    change = MemberRemoved(NodeId(vector["node"]))
    request = bytes.fromhex(vector["request"])
    asked = SignedRequest.signed(CHANNEL, change, keeper, request, vector["time_ms"])
    assert asked.encode().hex() == vector["bytes"]
    SignedRequest.decode(asked.encode()).verify(CHANNEL, vector["time_ms"])


def test_an_invite_is_that_of_the_vector() -> None:
    vector = VECTORS["invite"]
    invite = Invite(
        CHANNEL,
        vector["name"],
        bytes.fromhex(vector["secret"]),
        vector["expires"],
        ((NodeId(vector["admitter"]), (vector["address"],)),),
        NodeId(vector["for_node"]),
    )
    assert invite.text == vector["text"]
    assert Invite.parse(vector["text"]) == invite
    assert invite.invite_id.hex() == vector["id"]


@pytest.mark.parametrize("text", VECTORS["invite"]["bad"])
def test_a_bad_invite_is_refused(text: str) -> None:
    with pytest.raises(InviteError):
        Invite.parse(text)


def test_the_macs_of_an_admission_are_those_of_the_vector() -> None:
    vector = VECTORS["admission"]
    nodes = (NodeId(vector[name]) for name in ("joiner", "admitter"))
    nonces = (bytes.fromhex(vector[name]) for name in ("joiner_nonce", "admitter_nonce"))
    joiner, admitter = nodes
    meeting = Meeting(CHANNEL, joiner, admitter, *nonces)
    secret = bytes.fromhex(VECTORS["invite"]["secret"])
    assert meeting.mac(secret, JOINER).hex() == vector["joiner_mac"]
    assert meeting.mac(secret, ADMITTER).hex() == vector["admitter_mac"]


def test_a_successors_word_is_that_of_the_vector() -> None:
    vector = VECTORS["succession"]
    said = Succeeds(
        vector["old_id"],
        bytes.fromhex(vector["old_head"]),
        NodeId(vector["node"]),
        bytes.fromhex(vector["signature"]),
    )
    assert said.is_signed(vector["new_id"])
    assert not said.is_signed(vector["old_id"])
    _, payload = encode_change(said, NodeId(vector["node"]), bytes(16))
    assert payload[48:].hex() == vector["body"]
