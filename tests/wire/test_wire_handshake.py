"""The handshake: versions, hellos that are none, and proofs that tell nothing and come in turn."""

from __future__ import annotations

from typing import Any

import pytest

from kachery_p2p.channels.membership import DIALLER, LISTENER
from kachery_p2p.errors import (
    ProtocolError,
    ProtocolVersionError,
)
from kachery_p2p.wire.codec import FrameDecoder, encode_frame
from kachery_p2p.wire.conversation import (
    Conversation,
    HelloReceived,
    ProofsReceived,
    Request,
    State,
)
from kachery_p2p.wire.handshake import PADDING_BYTES, Hello, Versions

PADDING = bytes(i % 251 for i in range(PADDING_BYTES))
ROLES = (DIALLER, LISTENER)


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


HELLO = conversation(DIALLER)._hello.message()


def test_both_sides_hear_the_others_hello_and_the_common_version() -> None:
    dialler = conversation(DIALLER, Versions(newest=5, oldest=1))
    listener = conversation(LISTENER, Versions(newest=3, oldest=2))
    (at_listener,) = listener.receive(dialler.hello())
    (at_dialler,) = dialler.receive(listener.hello())
    assert isinstance(at_listener, HelloReceived)
    assert isinstance(at_dialler, HelloReceived)
    assert at_listener.version == at_dialler.version == 3
    assert at_listener.hello == dialler._hello == listener.peer_hello


@pytest.mark.parametrize("old", [DIALLER, LISTENER])
def test_without_a_common_version_both_sides_say_politely_whom_to_upgrade(old: str) -> None:
    versions = {old: Versions(1, 1)}
    sides = {role: conversation(role, versions.get(role, Versions(4, 2))) for role in ROLES}
    hellos = {role: side.hello() for role, side in sides.items()}
    for role, side in sides.items():
        hello = hellos[LISTENER if role == DIALLER else DIALLER]
        with pytest.raises(ProtocolVersionError) as caught:
            side.receive(hello)
        assert ("this computer" in str(caught.value.hint)) == (role == old)
        assert side.state is State.CLOSED
        (bye,) = FrameDecoder().feed(side.last_words())
        assert bye == {"bye": f"no common version: upgrade the {old}", "upgrade": old}
        assert side.last_words() == b""


@pytest.mark.parametrize("old", [DIALLER, LISTENER])
def test_a_bye_in_place_of_a_hello_can_tell_whom_to_upgrade(old: str) -> None:
    side = conversation(DIALLER)
    with pytest.raises(ProtocolVersionError) as caught:
        side.receive(encode_frame({"bye": "no common version", "upgrade": old}))
    assert ("this computer" in str(caught.value.hint)) == (old == DIALLER)


def test_the_rest_of_a_hello_of_another_version_may_be_anything() -> None:
    with pytest.raises(ProtocolVersionError):
        conversation(LISTENER).receive(
            encode_frame({"magic": "kachery-p2p", "version": 9, "version_min": 8, "keys": []})
        )


BAD_HELLOS = [
    {},
    {"magic": "kachery-p2p"},
    {**HELLO, "magic": "kachery-p2q"},
    {**HELLO, "magic": b"kachery-p2p"},
    {**HELLO, "version": 0},
    {**HELLO, "version": True},
    {**HELLO, "version": 1 << 16},
    {**HELLO, "version": 1, "version_min": 2},
    {**HELLO, "nonce": b"n" * 31},
    {**HELLO, "nonce": "n" * 32},
    {**HELLO, "exchange": b""},
    {**HELLO, "exchange_signature": b"s" * 65},
    {"proofs": [b"p" * 32] * 16},
    {"id": 1, "op": "ping", "body": {}},
    {"id": 2, "ok": {}},
]


@pytest.mark.parametrize("message", BAD_HELLOS, ids=range(len(BAD_HELLOS)))
def test_a_first_message_that_is_no_right_hello_is_refused(message: dict[str, Any]) -> None:
    side = conversation(LISTENER)
    with pytest.raises(ProtocolError):
        side.receive(encode_frame(message))
    assert side.state is State.CLOSED


def test_our_own_hello_sent_back_to_us_is_refused() -> None:
    side = conversation(DIALLER)
    with pytest.raises(ProtocolError, match="reflected"):
        side.receive(side.hello())


@pytest.mark.parametrize(("channels", "sent"), [(0, 16), (1, 16), (16, 16), (17, 32), (64, 64)])
def test_the_number_of_proofs_tells_only_the_next_multiple_of_sixteen(
    channels: int, sent: int
) -> None:
    dialler, listener = proving()
    proofs = [bytes([200 - i]) * 32 for i in range(channels)]
    (event,) = listener.receive(dialler.prove(proofs, PADDING))
    assert isinstance(event, ProofsReceived)
    assert len(event.proofs) == sent
    assert set(proofs) <= set(event.proofs)
    assert list(event.proofs) == sorted(event.proofs)
    (answer,) = dialler.receive(listener.prove(proofs[:1], PADDING))
    assert isinstance(answer, ProofsReceived)
    assert len(answer.proofs) == sent


@pytest.mark.parametrize(
    "proofs",
    [
        [],
        [b"p" * 32] * 15,
        [b"p" * 32] * 17,
        [b"p" * 32] * 80,
        [b"p" * 31] * 16,
        ["p" * 32] * 16,
        1,
    ],
    ids=["none", "15", "17", "80", "short", "text", "no list"],
)
def test_proofs_of_a_wrong_number_or_shape_are_refused(proofs: Any) -> None:
    _, listener = proving()
    with pytest.raises(ProtocolError):
        listener.receive(encode_frame({"proofs": proofs}))


def test_the_listener_may_not_send_another_number_of_proofs_than_it_got() -> None:
    dialler, _ = proving()
    dialler.prove([], PADDING)
    with pytest.raises(ProtocolError):
        dialler.receive(encode_frame({"proofs": [b"p" * 32] * 32}))


def test_proofs_out_of_turn_or_twice_are_refused() -> None:
    proofs = encode_frame({"proofs": [b"p" * 32] * 16})
    dialler, listener = proving()
    with pytest.raises(ProtocolError, match="out of turn"):
        dialler.receive(proofs)  # before the dialler has proved
    with pytest.raises(ProtocolError, match="out of turn"):
        listener.receive(proofs + proofs)
    for side in opened():
        with pytest.raises(ProtocolError):
            side.receive(proofs)


@pytest.mark.parametrize("message", [{"id": 1, "op": "ping", "body": {}}, {"id": 1, "ok": {}}])
def test_nothing_may_be_asked_or_answered_before_both_have_proved(message: Any) -> None:
    dialler, listener = proving()
    dialler.prove([], PADDING)
    for side in (dialler, listener):
        with pytest.raises(ProtocolError):
            side.receive(encode_frame(message))


def test_what_follows_the_last_proofs_at_once_is_heard() -> None:
    dialler, listener = proving()
    listener.receive(dialler.prove([], PADDING))
    frames = listener.prove([], PADDING) + listener.request("ping", {})[1]
    proofs, ping = dialler.receive(frames)
    assert isinstance(proofs, ProofsReceived)
    assert ping == Request(2, "ping", {})
