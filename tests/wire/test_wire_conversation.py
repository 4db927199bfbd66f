"""Conversations: the recorded one byte for byte, and what either side may not do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.channels.membership import DIALLER, LISTENER
from kachery_p2p.errors import (
    PeerGoneError,
    PeerTimeoutError,
    ProtocolError,
)
from kachery_p2p.limits import FRAME_BYTES_MAX, PENDING_REQUESTS_MAX
from kachery_p2p.wire.codec import FrameDecoder, encode_frame
from kachery_p2p.wire.conversation import (
    Answer,
    Bye,
    Conversation,
    Failure,
    Request,
    State,
)
from kachery_p2p.wire.handshake import PADDING_BYTES, Hello, Versions

VECTORS = json.loads((Path(__file__).parents[1] / "vectors/wire.json").read_text())
PADDING = bytes(i % 251 for i in range(PADDING_BYTES))
CHANNEL = "0f" * 32
HAVE = {"channel": CHANNEL, "content": b"c" * 20}
ROLES = (DIALLER, LISTENER)
HAS = {"size": 5, "root": b"r" * 32, "pinned": True}


def of_json(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"$hex"}:
            return bytes.fromhex(value["$hex"])
        return {key: of_json(item) for key, item in value.items()}
    return [of_json(item) for item in value] if isinstance(value, list) else value


def conversation(role: str, versions: Versions = Versions()) -> Conversation:
    nonce = role.encode().ljust(32, b".")
    return Conversation(role, Hello(nonce, b"e" * 32, b"s" * 64, versions))


def proving() -> tuple[Conversation, Conversation]:
    """Both sides have heard each other's hello."""
    dialler, listener = conversation(DIALLER), conversation(LISTENER)
    listener.receive(dialler.hello())
    dialler.receive(listener.hello())
    return dialler, listener


def opened() -> tuple[Conversation, Conversation]:
    """Both sides have proved."""
    dialler, listener = proving()
    listener.receive(dialler.prove([b"p" * 32], PADDING))
    dialler.receive(listener.prove([], PADDING))
    assert dialler.state is listener.state is State.OPEN
    return dialler, listener


def by_role(role: str) -> tuple[Conversation, Conversation]:
    """An open conversation, seen by the side in `role`: itself, the other side."""
    dialler, listener = opened()
    return (dialler, listener) if role == DIALLER else (listener, dialler)


# --- the recorded conversation -------------------------------------------------------------


def say(side: Conversation, message: dict[str, Any]) -> bytes:
    """Have `side` say what the recording says."""
    if "magic" in message:
        return side.hello()
    if "proofs" in message:
        # The recorded proofs are sorted, and so random bytes that are them come out the same.
        return side.prove([], b"".join(message["proofs"]).ljust(PADDING_BYTES, b"\0"))
    if "op" in message:
        return side.request(message["op"], message["body"])[1]
    if "ok" in message:
        return side.answer(message["id"], message["ok"])
    if "error" in message:
        return side.fail(message["id"], message["error"], message["text"])
    return side.bye(message["bye"])


def test_the_recorded_conversation_is_spoken_and_understood_byte_for_byte() -> None:
    lines = [(line["from"], of_json(line["message"]), line["frame"]) for line in VECTORS["control"]]
    sides = {}
    for role, message, _ in lines[:2]:
        hello = Hello(message["nonce"], message["exchange"], message["exchange_signature"])
        sides[role] = Conversation(role, hello)
    heard = []
    # Hellos cross: neither side waits for the other's.
    frames = [(role, say(sides[role], message)) for role, message, _ in lines[:2]]
    for place, (role, message, expected) in enumerate(lines):
        frame = frames[place][1] if place < 2 else say(sides[role], message)
        assert frame.hex() == expected, message
        heard += sides[LISTENER if role == DIALLER else DIALLER].receive(frame)
    assert len(heard) == len(lines)
    assert heard[-1] == Bye("stopping")
    assert isinstance(heard[9], Answer)
    assert heard[9].body["size"] == 1 << 44
    assert Failure(9, "refused", "absent, or not allowed") in heard
    assert all(side.state is State.CLOSED for side in sides.values())


# --- asking and answering -----------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_both_sides_ask_at_once_and_answers_may_come_in_any_order(role: str) -> None:
    us, them = by_role(role)
    asked = [us.request("have", HAVE) for _ in range(5)]
    theirs, frame = them.request("ping", {})
    assert us.receive(frame) == [Request(theirs, "ping", {})]
    requests = them.receive(b"".join(frame for _, frame in asked))
    assert requests == [Request(request_id, "have", HAVE) for request_id, _ in asked]
    for request_id, _ in reversed(asked):
        assert us.receive(them.answer(request_id, HAS)) == [Answer(request_id, HAS)]
    assert them.receive(us.answer(theirs, {})) == [Answer(theirs, {})]


@pytest.mark.parametrize("role", ROLES)
def test_an_answer_to_nothing_that_was_asked_is_refused(role: str) -> None:
    answers: list[dict[str, Any]] = [{"ok": {}}, {"error": "failed", "text": ""}]
    for message in answers:
        us, them = by_role(role)
        request_id, frame = us.request("ping", {})
        them.receive(frame)
        answer = them.answer(request_id, {})
        assert us.receive(answer) == [Answer(request_id, {})]
        with pytest.raises(ProtocolError, match="to nothing"):
            us.receive(encode_frame({"id": request_id, **message}))


def test_the_answer_to_a_cancelled_request_is_dropped_unread_and_only_once() -> None:
    us, them = opened()
    request_id, frame = us.request("have", HAVE)
    them.receive(frame)
    us.cancel(request_id)
    late = encode_frame({"id": request_id, "ok": "rubbish that nobody reads"})
    assert us.receive(late) == []
    with pytest.raises(ProtocolError):
        us.receive(late)


def test_cancelling_what_was_answered_does_nothing() -> None:
    us, them = opened()
    request_id, frame = us.request("ping", {})
    them.receive(frame)
    us.receive(them.answer(request_id, {}))
    us.cancel(request_id)
    us.withdraw(request_id)
    assert us.request("ping", {})[0] == request_id + 2


def test_a_peer_that_answers_nothing_is_asked_a_bounded_number_of_times() -> None:
    us, _ = opened()
    for _ in range(PENDING_REQUESTS_MAX):
        us.cancel(us.request("ping", {})[0])
    with pytest.raises(PeerTimeoutError):
        us.request("ping", {})


def test_a_request_that_was_never_sent_can_be_withdrawn() -> None:
    us, _ = opened()
    for _ in range(PENDING_REQUESTS_MAX + 1):
        us.withdraw(us.request("ping", {})[0])


def test_a_peer_that_does_not_wait_for_answers_is_stopped() -> None:
    us, _ = opened()
    pings = [encode_frame({"id": 2 * i, "op": "ping", "body": {}}) for i in range(1, 130)]
    assert len(us.receive(b"".join(pings[:PENDING_REQUESTS_MAX]))) == PENDING_REQUESTS_MAX
    with pytest.raises(ProtocolError, match="unanswered"):
        us.receive(pings[PENDING_REQUESTS_MAX])


BAD_MESSAGES = [
    {},
    {"id": 2},
    {"id": 2, "op": "ping"},
    {"id": 2, "op": "evil", "body": {}},
    {"id": 2, "op": None, "body": {}},
    {"id": 2, "op": ["ping"], "body": {}},
    {"id": 2, "op": "range", "body": {}},
    {"id": 2, "op": "have", "body": {"channel": CHANNEL}},
    {"op": "ping", "body": {}},
    {"id": 3, "op": "ping", "body": {}},
    {"id": 0, "op": "ping", "body": {}},
    {"id": -2, "op": "ping", "body": {}},
    {"id": True, "op": "ping", "body": {}},
    {"id": 2.0, "op": "ping", "body": {}},
    {"id": "2", "op": "ping", "body": {}},
    {"id": [], "op": "ping", "body": {}},
    {"id": 1 << 63, "op": "ping", "body": {}},
    {"id": 1},
    {"id": 1, "ok": {}, "error": "failed", "text": ""},
    {"id": 1, "ok": None},
    {"id": 1, "ok": {"size": 5}},
    {"id": 1, "error": "failed"},
    {"id": 1, "error": "failed", "text": "\x07"},
    {"bye": None},
    {"bye": "x" * 257},
    {"bye": "\x1b[2J"},
    {"magic": "kachery-p2p", "version": 1, "version_min": 1},
]


@pytest.mark.parametrize("message", BAD_MESSAGES, ids=range(len(BAD_MESSAGES)))
def test_a_message_that_the_protocol_does_not_allow_ends_the_conversation(message: Any) -> None:
    us, _ = opened()
    us.request("have", HAVE)
    with pytest.raises(ProtocolError):
        us.receive(encode_frame(message))
    assert us.state is State.CLOSED
    assert us.receive(encode_frame({"id": 2, "op": "ping", "body": {}})) == []
    (bye,) = FrameDecoder().feed(us.last_words())
    assert bye["bye"].startswith("protocol error: ")


def test_an_id_may_not_be_used_again_before_it_is_answered() -> None:
    us, _ = opened()
    ping = encode_frame({"id": 2, "op": "ping", "body": {}})
    us.receive(ping)
    us.answer(2, {})
    us.receive(ping)
    with pytest.raises(ProtocolError):
        us.receive(ping)


def test_what_we_may_not_say_is_our_own_mistake() -> None:
    us, them = opened()
    for op, body in (("have", {}), ("evil", {}), ("range", {}), ("introduce", {"label": "\n"})):
        with pytest.raises(ValueError):
            us.request(op, body)
    request_id, frame = us.request("have", HAVE)
    them.receive(frame)
    with pytest.raises(ValueError):
        them.answer(request_id, {"size": -1})
    assert us.receive(them.answer(request_id, HAS)) == [Answer(request_id, HAS)]


def test_refusals_of_absent_and_of_forbidden_are_the_same_bytes() -> None:
    frames = set[bytes]()
    for why in ("", "no such content", "not a member of that channel"):
        us, them = opened()
        them.receive(us.request("have", HAVE)[1])
        frames.add(them.fail(1, "refused", why))
    assert len(frames) == 1


# --- the end -----------------------------------------------------------------------------------


def test_after_a_bye_nothing_is_heard_and_nothing_said() -> None:
    us, them = opened()
    us.receive(them.request("ping", {})[1])
    frame = us.bye("stopping\n")
    assert them.receive(frame + b"\xff\xff\xff\xff") == [Bye("stopping?")]
    for side in (us, them):
        assert side.state is State.CLOSED
        assert side.receive(b"") == side.receive(b"\xff" * 9) == []
        assert side.bye() == side.fail(2, "failed") == side.last_words() == b""
        with pytest.raises(PeerGoneError):
            side.request("ping", {})
    assert us.answer(2, {}) == b""


@pytest.mark.parametrize("prepare", [proving, opened])
def test_the_end_of_the_stream_without_a_bye_is_a_peer_gone(
    prepare: Callable[[], tuple[Conversation, Conversation]],
) -> None:
    for side in prepare():
        with pytest.raises(PeerGoneError):
            side.receive(b"")
        assert side.state is State.CLOSED


def test_a_frame_too_long_ends_it_before_its_bytes_come() -> None:
    us, _ = opened()
    with pytest.raises(ProtocolError):
        us.receive((FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
