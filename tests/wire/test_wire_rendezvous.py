"""Tags only members can compute, entries only members can read, and requests that are none."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kachery_p2p.errors import PeerBusyError, PeerError, ProtocolError
from kachery_p2p.identity.keys import NodeKey
from kachery_p2p.limits import (
    ADDRESSES_PER_NODE_MAX,
    CLOCK_SLACK_S,
    RENDEZVOUS_ENTRIES_PER_TAG_MAX,
    RENDEZVOUS_TTL_S,
    RENDEZVOUS_TTL_S_MAX,
)
from kachery_p2p.wire.codec import FrameDecoder, Message
from kachery_p2p.wire.messages import failure
from kachery_p2p.wire.rendezvous import (
    ANSWER_BYTES_MAX,
    DAY_S,
    ENTRY_BYTES,
    NONCE_BYTES,
    REQUEST_BYTES_MAX,
    TAG_BYTES,
    _cipher,
    answer_frame,
    days_at,
    open_entry,
    read_answer,
    read_request,
    request_frame,
    seal_entry,
    tag_of,
)

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors/rendezvous.json").read_text()
)
KEY = NodeKey(bytes.fromhex(VECTORS["seed"]), b"x" * 32)
DISCOVERY = bytes.fromhex(VECTORS["discovery_key"])
DAY: int = VECTORS["day"]
NOW: int = VECTORS["now"]
NONCE = bytes.fromhex(VECTORS["nonce"])


def message_of(frame: str) -> Message:
    (message,) = FrameDecoder().feed(bytes.fromhex(frame))
    return message


def sealed(addresses: list[str], expires: int = NOW + RENDEZVOUS_TTL_S) -> bytes:
    return seal_entry(KEY, DISCOVERY, DAY, addresses, expires, NONCE)


def address(place: str) -> str:
    return f"{place}/p2p/{KEY.node_id.peer_id}"


# --- tags -----------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["tags"])
def test_tags_are_those_of_the_vectors(vector: dict[str, Any]) -> None:
    assert tag_of(bytes.fromhex(vector["discovery_key"]), vector["day"]).hex() == vector["tag"]


@pytest.mark.parametrize("vector", VECTORS["days"])
def test_around_midnight_the_neighbouring_day_is_used_too(vector: dict[str, Any]) -> None:
    assert list(days_at(vector["now"])) == vector["days"]


@pytest.mark.parametrize("away_s", [1, 1_800, 3_600, 7_199])
def test_members_whose_clocks_are_not_two_hours_apart_always_share_a_day(away_s: int) -> None:
    for now in range(DAY * DAY_S, (DAY + 1) * DAY_S, 97):
        assert set(days_at(now)) & set(days_at(now + away_s))


def test_an_entry_is_found_until_it_expires_whenever_it_was_left() -> None:
    for left in range(DAY * DAY_S, (DAY + 1) * DAY_S, 97):
        for later in (left, left + RENDEZVOUS_TTL_S + CLOCK_SLACK_S):
            assert set(days_at(left)) & set(days_at(later))


# --- entries ----------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["entries"], ids=lambda v: str(v["what"]))
def test_entries_are_those_of_the_vectors(vector: dict[str, Any]) -> None:
    made = sealed(vector["addresses"], vector["expires"])
    assert made.hex() == vector["sealed"]
    entry = open_entry(DISCOVERY, DAY, made, NOW)
    assert entry == (KEY.node_id, tuple(vector["addresses"]), vector["expires"])


@pytest.mark.parametrize("vector", VECTORS["bad_entries"], ids=lambda v: str(v["what"]))
def test_what_no_member_said_for_this_channel_and_day_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        open_entry(DISCOVERY, DAY, bytes.fromhex(vector["sealed"]), vector["now"])


def test_an_entry_counts_until_it_expires_by_a_clock_that_is_a_little_off() -> None:
    made = sealed([], expires=NOW + RENDEZVOUS_TTL_S_MAX)
    for now in (NOW - CLOCK_SLACK_S, NOW + RENDEZVOUS_TTL_S_MAX + CLOCK_SLACK_S - 1):
        assert open_entry(DISCOVERY, DAY, made, now).node == KEY.node_id
    for now in (NOW - CLOCK_SLACK_S - 1, NOW + RENDEZVOUS_TTL_S_MAX + CLOCK_SLACK_S):
        with pytest.raises(ProtocolError, match="expired"):
            open_entry(DISCOVERY, DAY, made, now)


@pytest.mark.parametrize("count", [0, 1, 3, 16, 40])
@pytest.mark.parametrize("chars", [20, 60, 190])
def test_every_entry_has_one_size_and_holds_the_first_addresses_that_have_room(
    count: int, chars: int
) -> None:
    addresses = [address(f"/dns/{n}".ljust(chars, "a")) for n in range(count)]
    made = sealed(addresses)
    assert len(made) == ENTRY_BYTES
    told = list(open_entry(DISCOVERY, DAY, made, NOW).addresses)
    assert told == addresses[: len(told)]
    assert len(told) >= min(count, ADDRESSES_PER_NODE_MAX, 880 // (chars + 1))


def test_an_address_too_long_for_an_entry_does_not_keep_out_the_others() -> None:
    short = address("/ip4/192.0.2.7/tcp/20432")
    made = sealed([address("/dns/" + "a" * 300), short])
    assert open_entry(DISCOVERY, DAY, made, NOW).addresses == (short,)


def test_an_entry_shows_an_introducer_neither_name_nor_id_nor_address() -> None:
    place = "/ip4/192.0.2.7/tcp/20432"
    made = sealed([address(place)])
    body: Message = {"tag": tag_of(DISCOVERY, DAY), "entry": made, "ttl": RENDEZVOUS_TTL_S}
    frame = request_frame("register", body)
    for secret in (KEY.node_id.raw, KEY.node_id.encode(), place.encode(), DISCOVERY):
        assert secret not in frame


def test_two_entries_of_one_node_have_nothing_in_common() -> None:
    one, other = (
        seal_entry(KEY, DISCOVERY, DAY, [], NOW, os.urandom(NONCE_BYTES)) for _ in range(2)
    )
    same = sum(a == b for a, b in zip(one, other, strict=True))
    # Of 1,024 random bytes 4 are equal by chance; 40 never.
    assert same < 40


def test_every_bit_of_an_entry_counts() -> None:
    made = sealed([address("/ip4/192.0.2.7/tcp/20432")])
    for place in range(0, ENTRY_BYTES, 7):
        broken = bytearray(made)
        broken[place] ^= 1 << place % 8
        with pytest.raises(ProtocolError):
            open_entry(DISCOVERY, DAY, bytes(broken), NOW)


def test_whatever_a_member_seals_is_an_entry_or_a_protocol_error() -> None:
    cipher, tag = _cipher(DISCOVERY, DAY), tag_of(DISCOVERY, DAY)
    random = Random(7)
    honest = cipher.decrypt(NONCE, sealed([address("/ip4/192.0.2.7/tcp/1")])[NONCE_BYTES:], tag)
    for number in range(3_000):
        plain = bytearray(honest if number % 2 else random.randbytes(len(honest)))
        plain[random.randrange(64, 160)] = random.randrange(256)
        said = bytes(plain[64:]).rstrip(b"\0")
        forged = KEY.sign(b"kp2p-meet-me/1\0\0", tag + said) + said
        made = NONCE + cipher.encrypt(NONCE, forged.ljust(len(honest), b"\0"), tag)
        with contextlib.suppress(ProtocolError):
            entry = open_entry(DISCOVERY, DAY, made, NOW)
            assert len(entry.addresses) <= ADDRESSES_PER_NODE_MAX
            assert all(a.isprintable() and a.startswith("/") for a in entry.addresses)


# --- requests and answers -----------------------------------------------------------------------


def test_requests_are_those_of_the_vectors() -> None:
    entry = bytes.fromhex(VECTORS["entries"][0]["sealed"])
    tag = tag_of(DISCOVERY, DAY)
    register: Message = {"tag": tag, "entry": entry, "ttl": 1800}
    made = [request_frame("register", register), request_frame("lookup", {"tag": tag})]
    assert [frame.hex() for frame in made] == [v["frame"] for v in VECTORS["requests"]]
    read = [read_request(message_of(v["frame"])) for v in VECTORS["requests"]]
    assert read == [("register", register), ("lookup", {"tag": tag})]


@pytest.mark.parametrize("vector", VECTORS["bad_requests"], ids=lambda v: str(v["what"]))
def test_requests_that_are_none_are_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        read_request(message_of(vector["frame"]))


def test_answers_are_those_of_the_vectors() -> None:
    entry = bytes.fromhex(VECTORS["entries"][0]["sealed"])
    for vector, body in zip(VECTORS["answers"], ({}, {"entries": [entry]}), strict=True):
        assert answer_frame(body).hex() == vector["frame"]
        assert read_answer(vector["op"], message_of(vector["frame"])) == body


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"ok": None},
        {"ok": {}},
        {"ok": {"entries": b"x"}},
        {"ok": {"entries": [b"x"]}},
        {"ok": {"entries": [bytes(ENTRY_BYTES)] * (RENDEZVOUS_ENTRIES_PER_TAG_MAX + 1)}},
        {"error": 1, "text": ""},
    ],
)
def test_answers_that_are_none_are_refused(message: Message) -> None:
    with pytest.raises(ProtocolError):
        read_answer("lookup", message)


def test_a_failure_is_raised_as_what_it_is() -> None:
    with pytest.raises(PeerBusyError):
        read_answer("lookup", failure("busy"))
    with pytest.raises(PeerError, match="disk"):
        read_answer("register", failure("failed", "its disk is full"))


def test_the_largest_request_and_answer_fit_their_bounds() -> None:
    entry = bytes(ENTRY_BYTES)
    largest: Message = {"tag": bytes(TAG_BYTES), "entry": entry, "ttl": RENDEZVOUS_TTL_S_MAX}
    assert len(request_frame("register", largest)) <= REQUEST_BYTES_MAX
    full = answer_frame({"entries": [entry] * RENDEZVOUS_ENTRIES_PER_TAG_MAX})
    assert len(full) <= ANSWER_BYTES_MAX
