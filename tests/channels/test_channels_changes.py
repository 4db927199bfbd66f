"""Changes have one spelling, and what is not one is refused; requests are their signer's alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kachery_p2p.channels.changes import (
    Change,
    Created,
    HandedOver,
    KeeperMoved,
    Member,
    MemberRemoved,
    MemberSet,
    SettingsSet,
    SignedRequest,
    Succeeds,
    SuccessorNamed,
    Unknown,
    decode_change,
    encode_change,
)
from kachery_p2p.channels.keeper import self_member
from kachery_p2p.channels.permissions import ACTIONS, READ
from kachery_p2p.errors import LogFormatError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import ADMIN_REQUEST_S_MAX, CHANGE_BYTES_MAX
from kachery_p2p.log.entries import Entry

NOW_MS = 1_760_000_000_000
READER = frozenset({READ})
BY = NodeId("ab" * 32)
REQUEST = bytes(range(16))

_bytes32 = st.binary(min_size=32, max_size=32)
_bytes64 = st.binary(min_size=64, max_size=64)
_nodes = _bytes32.map(NodeId.of_raw)
_labels = st.text(max_size=64).filter(str.isprintable)
_names = st.from_regex(r"[0-9A-Za-z_-]{1,64}", fullmatch=True)
_times = st.integers(0, 2**50)
_addresses = st.from_regex(r"/[0-9a-z/.:-]{0,255}", fullmatch=True)
_roles = st.frozensets(st.sampled_from(sorted(ACTIONS)), min_size=1)
CHANGES = st.one_of(
    st.builds(Created, _names, _bytes32, _times),
    st.builds(MemberSet, st.builds(Member, _nodes, _roles, _bytes32, _bytes64, _labels)),
    st.builds(MemberRemoved, _nodes),
    st.builds(
        SettingsSet,
        st.lists(_addresses, max_size=64).map(tuple),
        _times,
        st.sampled_from(["", "s3://bucket/prefix", "https://host.example/b"]),
    ),
    st.builds(SuccessorNamed, st.none() | _nodes),
    st.builds(KeeperMoved, _nodes),
    st.builds(HandedOver, _nodes),
    st.builds(Succeeds, _nodes, st.binary(min_size=197, max_size=197), _nodes, _bytes64),
)


@given(CHANGES, _nodes, st.integers(0, 2**62))
@settings(max_examples=150, deadline=None)
def test_a_change_is_read_as_it_was_written_and_has_one_spelling(
    change: Change, by: NodeId, time_ms: int
) -> None:
    kind, payload = encode_change(change, by, REQUEST)
    recorded = decode_change(Entry(kind, time_ms, payload))
    assert recorded == (change, by, REQUEST, time_ms)
    for wrong in (payload[:-1], payload + b"\0"):
        with pytest.raises(LogFormatError):
            # A successor may be none: 32 bytes fewer would be right, one is not.
            decode_change(Entry(kind, time_ms, wrong))


@given(st.integers(1, 8), st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_what_can_be_read_is_spelled_just_so(kind: int, body: bytes) -> None:
    payload = BY.raw + REQUEST + body
    try:
        recorded = decode_change(Entry(kind, 5, payload))
    except LogFormatError:
        return
    assert encode_change(recorded.change, BY, REQUEST) == (kind, payload)


def test_mutated_changes_are_refused_or_say_just_what_their_bytes_say(lab: Any) -> None:
    rng = random.Random(1)
    settings_ = SettingsSet(("/ip4/192.0.2.1/tcp/1",) * 3, 7, "s3://b")
    whole = [
        encode_change(change, BY, REQUEST)
        for change in (Created("lab", bytes(32), 9), MemberSet(self_member(lab.chief, "é")))
    ] + [encode_change(settings_, BY, REQUEST)]
    refused = 0
    for _ in range(20_000):
        kind, payload = rng.choice(whole)
        data = bytearray(payload)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(48, len(data))] = rng.randrange(256)
        try:
            found = decode_change(Entry(kind, 1, bytes(data)))
        except LogFormatError:
            refused += 1
            continue
        assert encode_change(found.change, BY, REQUEST) == (kind, bytes(data))
    assert refused > 1_000


@pytest.mark.parametrize("kind", [0, 9, 100, 127])
def test_an_unknown_change_is_refused_with_the_advice_to_upgrade(kind: int) -> None:
    with pytest.raises(LogFormatError) as caught:
        decode_change(Entry(kind, 1, BY.raw + REQUEST))
    assert "upgrade" in str(caught.value.hint)


@pytest.mark.parametrize("kind", [128, 255])
def test_an_unknown_change_that_may_be_passed_over_is(kind: int) -> None:
    assert decode_change(Entry(kind, 1, BY.raw + REQUEST + b"later")).change == Unknown(kind)


@pytest.mark.parametrize("size", [0, 47, CHANGE_BYTES_MAX + 1])
def test_a_change_has_its_bounds(size: int) -> None:
    with pytest.raises(LogFormatError, match="bytes"):
        decode_change(Entry(200, 1, bytes(size)))


@pytest.mark.parametrize(
    "change",
    [
        SettingsSet(("/a",) * 65, 0, ""),
        SettingsSet(("ip4",), 0, ""),
        SettingsSet(("/a b",), 0, ""),
        SettingsSet(("/" + "a" * 256,), 0, ""),
        SettingsSet((), 0, "s3://key:secret@bucket"),
        SettingsSet((), 0, "bucket"),
        SettingsSet((), 0, "s3://" + "b" * 1_100),
        SettingsSet((), 2**63, ""),
        Created("../evil", bytes(32), 0),
        Created("", bytes(32), 0),
    ],
)
def test_what_no_reader_would_accept_is_not_written(change: Change) -> None:
    with pytest.raises(LogFormatError):
        encode_change(change, BY, REQUEST)


@pytest.mark.parametrize("label", ["x" * 65, "a\x1b[2J", "a\u202eb", "\ud800"])
def test_a_label_that_could_steer_a_terminal_is_not_written(lab: Any, label: str) -> None:
    with pytest.raises(LogFormatError):
        encode_change(MemberSet(self_member(lab.chief, label)), BY, REQUEST)


# --- requests --------------------------------------------------------------------------------


def request(lab: Any, time_ms: int = NOW_MS) -> SignedRequest:
    change = MemberSet(self_member(lab.node(), "new", READER))
    return SignedRequest.signed(lab.id, change, lab.chief, REQUEST, time_ms)


def test_a_request_is_read_as_it_was_signed(lab: Any) -> None:
    asked = request(lab)
    assert SignedRequest.decode(asked.encode()) == asked
    asked.verify(lab.id, NOW_MS)


def test_a_request_for_another_channel_or_by_another_node_is_refused(lab: Any) -> None:
    asked = request(lab)
    with pytest.raises(LogFormatError, match="another channel"):
        asked.verify(lab.node().node_id, NOW_MS)
    forged = asked._replace(by=lab.node().node_id)
    with pytest.raises(LogFormatError, match="not signed"):
        forged.verify(lab.id, NOW_MS)


@pytest.mark.parametrize("age_s", [-700, ADMIN_REQUEST_S_MAX + 700])
def test_an_old_request_and_one_from_the_future_are_refused(lab: Any, age_s: int) -> None:
    with pytest.raises(LogFormatError, match="too long ago"):
        request(lab).verify(lab.id, NOW_MS + age_s * 1000)


def test_no_changed_bit_of_a_request_is_accepted(lab: Any) -> None:
    whole, rng = request(lab).encode(), random.Random(2)
    for at in range(len(whole) * 8):
        data = bytearray(whole)
        data[at // 8] ^= 1 << at % 8
        with pytest.raises(LogFormatError):
            SignedRequest.decode(bytes(data)).verify(lab.id, NOW_MS)
    for _ in range(500):
        with pytest.raises(LogFormatError):
            SignedRequest.decode(rng.randbytes(rng.randrange(400))).verify(lab.id, NOW_MS)
    with pytest.raises(LogFormatError):
        SignedRequest.decode(whole[:-1])
