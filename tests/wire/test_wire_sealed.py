"""Sealed frames: the recorded keys and frames, and frames that somebody touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.errors import PeerGoneError, ProtocolError
from kachery_p2p.limits import (
    BULK_KEY_BYTES_MAX,
    BULK_KEY_FRAMES_MAX,
    BULK_KEY_S_MAX,
    BULK_PAYLOAD_BYTES_MAX,
)
from kachery_p2p.wire.sealed import (
    AES_256_GCM,
    CHACHA20_POLY1305,
    CIPHERS,
    HEADER_BYTES,
    OVERHEAD_BYTES,
    TAG_BYTES,
    Agreement,
    FrameHeader,
    Opener,
    Sealer,
    agreed_cipher,
    encode_hello,
    read_hello,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors/bulk.json").read_text())
KEY = bytes(range(32))
DATA = 3


def agreement_of(vector: dict[str, Any]) -> Agreement:
    names = ("ticket", "dialler", "listener", "dialler_random", "listener_random")
    given = {name: bytes.fromhex(vector[name]) for name in names}
    return Agreement(cipher=vector["cipher"], **given)


def sealer_and_opener(cipher: int = AES_256_GCM) -> tuple[Sealer, Opener]:
    return Sealer(KEY, cipher, 0.0), Opener(KEY, cipher, 0.0)


def opened(opener: Opener, frame: bytes, now: float = 0.0) -> bytes:
    return opener.open(frame[:HEADER_BYTES], frame[HEADER_BYTES:], now)


@pytest.mark.parametrize("vector", VECTORS["agreements"], ids=lambda v: f"cipher {v['cipher']}")
def test_the_recorded_frames_are_sealed_and_opened_byte_for_byte(vector: dict[str, Any]) -> None:
    agreement = agreement_of(vector)
    keys = dict(zip(("dialler", "listener"), agreement.keys(), strict=True))
    assert keys["dialler"].hex() == vector["key_of_dialler"]
    assert keys["listener"].hex() == vector["key_of_listener"]
    assert encode_hello(agreement.ticket).hex() == vector["hello"]
    assert read_hello(bytes.fromhex(vector["hello"])) == agreement.ticket
    sealers = {who: Sealer(key, agreement.cipher, 0.0) for who, key in keys.items()}
    openers = {who: Opener(key, agreement.cipher, 0.0) for who, key in keys.items()}
    for one in vector["frames"]:
        payload, frame = bytes.fromhex(one["payload"]), bytes.fromhex(one["frame"])
        sealer, opener = sealers[one["from"]], openers[one["from"]]
        assert sealer.seal(one["kind"], one["flags"], one["request"], payload, 0.0) == frame
        assert opened(opener, frame) == payload


@pytest.mark.parametrize(
    "change",
    [
        {"ticket": b"x" * 16},
        {"cipher": CHACHA20_POLY1305},
        {"dialler": b"x" * 32},
        {"listener": b"x" * 32},
        {"dialler_random": b"x" * 32},
        {"listener_random": b"x" * 32},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_is_agreed_otherwise_makes_other_keys(change: dict[str, Any]) -> None:
    agreement = agreement_of(VECTORS["agreements"][0])
    assert not set(agreement.keys()) & set(agreement._replace(**change).keys())


def test_the_two_directions_and_the_two_roles_never_share_a_key() -> None:
    one = agreement_of(VECTORS["agreements"][0])
    back = one._replace(
        dialler=one.listener,
        listener=one.dialler,
        dialler_random=one.listener_random,
        listener_random=one.dialler_random,
    )
    assert len({*one.keys(), *back.keys()}) == 4


def test_an_agreement_does_not_show_what_its_keys_are_made_of() -> None:
    agreement = agreement_of(VECTORS["agreements"][0])
    assert agreement.dialler_random.hex() not in repr(agreement)
    assert str(agreement.dialler_random) not in repr(agreement)


def test_aes_is_agreed_on_only_if_both_sides_prefer_it() -> None:
    assert agreed_cipher(AES_256_GCM, AES_256_GCM) == AES_256_GCM
    assert agreed_cipher(AES_256_GCM, CHACHA20_POLY1305) == CHACHA20_POLY1305
    assert agreed_cipher(CHACHA20_POLY1305, AES_256_GCM) == CHACHA20_POLY1305


@pytest.mark.parametrize(
    "hello", [b"", b"kp2pbulk", b"kp2pbulk" + b"x" * 15, b"GET / HT" + b"x" * 16]
)
def test_a_hello_that_is_none_is_refused(hello: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_hello(hello)


@pytest.mark.parametrize("vector", VECTORS["headers"], ids=lambda v: v["header"])
def test_recorded_headers_are_written_and_read(vector: dict[str, Any]) -> None:
    header = FrameHeader(*(vector[name] for name in FrameHeader._fields))
    assert header.encode().hex() == vector["header"]
    assert FrameHeader.decode(bytes.fromhex(vector["header"])) == header
    assert header.sealed_length == header.length + TAG_BYTES


@pytest.mark.parametrize("vector", VECTORS["bad_headers"], ids=lambda v: v["what"])
def test_a_header_out_of_bounds_is_refused_before_anything_is_read(vector: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        FrameHeader.decode(bytes.fromhex(vector["header"]))


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("length", [0, 1, 100_000, BULK_PAYLOAD_BYTES_MAX])
def test_frames_of_any_length_go_through_buffers_of_the_caller(cipher: int, length: int) -> None:
    sealer, opener = sealer_and_opener(cipher)
    payload = bytes(number % 251 for number in range(length))
    frame = memoryview(bytearray(length + OVERHEAD_BYTES + 10))
    end = sealer.seal_into(DATA, 0, 7, payload, frame, 0.0)
    assert end == length + OVERHEAD_BYTES
    buffer = memoryview(bytearray(length + 10))
    assert opener.open_into(frame[:HEADER_BYTES], frame[HEADER_BYTES:end], buffer, 0.0) == length
    assert buffer[:length] == payload
    assert not any(buffer[length:])


# --- attacks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 4, 7, 11, HEADER_BYTES, HEADER_BYTES + 4, -TAG_BYTES, -1])
def test_a_frame_with_one_bit_flipped_does_not_open(place: int) -> None:
    sealer, opener = sealer_and_opener()
    frame = bytearray(sealer.seal(DATA, 0, 7, b"recorded", 0.0))
    frame[place] ^= 1
    with pytest.raises(ProtocolError):
        opened(opener, bytes(frame))


def test_a_replayed_frame_does_not_open() -> None:
    sealer, opener = sealer_and_opener()
    frame = sealer.seal(DATA, 0, 7, b"once", 0.0)
    assert opened(opener, frame) == b"once"
    with pytest.raises(ProtocolError):
        opened(opener, frame)


def test_frames_in_another_order_do_not_open() -> None:
    sealer, opener = sealer_and_opener()
    first, second = (sealer.seal(DATA, 0, 7, text, 0.0) for text in (b"first", b"second"))
    with pytest.raises(ProtocolError):
        opened(opener, second)
    with pytest.raises(ProtocolError):
        opened(opener, first)


def test_a_frame_left_out_is_noticed_at_the_next_one() -> None:
    sealer, opener = sealer_and_opener()
    sealer.seal(DATA, 0, 7, b"lost", 0.0)
    with pytest.raises(ProtocolError):
        opened(opener, sealer.seal(DATA, 0, 7, b"next", 0.0))


def test_a_frame_of_the_other_direction_or_of_another_connection_does_not_open() -> None:
    agreement = agreement_of(VECTORS["agreements"][0])
    other = agreement._replace(ticket=b"x" * 16)
    for key in (agreement.keys()[1], other.keys()[0]):
        opener = Opener(agreement.keys()[0], AES_256_GCM, 0.0)
        with pytest.raises(ProtocolError):
            opened(opener, Sealer(key, AES_256_GCM, 0.0).seal(DATA, 0, 7, b"x", 0.0))


def test_the_header_of_one_frame_with_the_payload_of_another_does_not_open() -> None:
    sealer, opener = sealer_and_opener()
    frame = sealer.seal(DATA, 0, 7, b"of seven", 0.0)
    with pytest.raises(ProtocolError):
        opener.open(FrameHeader(DATA, 0, 8, 8).encode(), frame[HEADER_BYTES:], 0.0)


@pytest.mark.parametrize("cut", [1, TAG_BYTES, TAG_BYTES + 1, TAG_BYTES + 8])
def test_a_truncated_frame_does_not_open(cut: int) -> None:
    sealer, opener = sealer_and_opener()
    frame = sealer.seal(DATA, 0, 7, b"recorded", 0.0)
    with pytest.raises(ProtocolError):
        opened(opener, frame[:-cut])


def test_two_frames_spliced_into_one_do_not_open() -> None:
    sealer, opener = sealer_and_opener()
    first, second = (sealer.seal(DATA, 0, 7, text, 0.0) for text in (b"first", b"second"))
    sealed = first[HEADER_BYTES:] + second[HEADER_BYTES:]
    header = FrameHeader(DATA, 0, 7, len(sealed) - TAG_BYTES).encode()
    with pytest.raises(ProtocolError):
        opener.open(header, sealed, 0.0)


def test_after_one_frame_that_did_not_open_no_frame_opens() -> None:
    sealer, opener = sealer_and_opener()
    with pytest.raises(ProtocolError):
        opened(opener, FrameHeader(DATA, 0, 7, 0).encode() + bytes(TAG_BYTES))
    with pytest.raises(ProtocolError, match="after one that did not open"):
        opened(opener, sealer.seal(DATA, 0, 7, b"good", 0.0))


@pytest.mark.parametrize("cipher", CIPHERS)
def test_what_the_cipher_leaves_of_a_forged_frame_is_wiped(cipher: int) -> None:
    sealer, opener = sealer_and_opener(cipher)
    frame = bytearray(sealer.seal(DATA, 0, 7, b"secret" * 1000, 0.0))
    frame[-1] ^= 1
    buffer = memoryview(bytearray(b"\xff" * 6000))
    with pytest.raises(ProtocolError):
        opener.open_into(frame[:HEADER_BYTES], frame[HEADER_BYTES:], buffer, 0.0)
    assert not any(buffer)


# --- how much one key carries ---------------------------------------------------------------------


def test_a_key_is_retired_and_then_used_up_by_its_frames() -> None:
    sealer, opener = sealer_and_opener()
    for one in (sealer, opener):
        one._count.frames = BULK_KEY_FRAMES_MAX * 7 // 8 - 1
        assert not one.retired(0.0)
    opened(opener, sealer.seal(DATA, 0, 7, b"", 0.0))
    assert sealer.retired(0.0)
    assert opener.retired(0.0)
    for one in (sealer, opener):
        one._count.frames = BULK_KEY_FRAMES_MAX - 1
    frame = sealer.seal(DATA, 0, 7, b"the last", 0.0)
    assert opened(opener, frame) == b"the last"
    with pytest.raises(PeerGoneError):
        sealer.seal(DATA, 0, 7, b"", 0.0)
    with pytest.raises(ProtocolError, match="than a key may carry"):
        opened(opener, frame)


def test_a_key_is_used_up_by_its_bytes() -> None:
    sealer, opener = sealer_and_opener()
    for one in (sealer, opener):
        one._count.bytes = BULK_KEY_BYTES_MAX - 4
    with pytest.raises(PeerGoneError):
        sealer.seal(DATA, 0, 7, b"12345", 0.0)
    assert opened(opener, sealer.seal(DATA, 0, 7, b"1234", 0.0)) == b"1234"


def test_a_key_is_used_up_by_its_age_which_is_nobodys_fault() -> None:
    sealer, opener = sealer_and_opener()
    assert not sealer.retired(BULK_KEY_S_MAX * 0.87)
    assert sealer.retired(BULK_KEY_S_MAX * 0.88)
    frame = sealer.seal(DATA, 0, 7, b"in time", BULK_KEY_S_MAX)
    with pytest.raises(PeerGoneError):
        sealer.seal(DATA, 0, 7, b"too late", BULK_KEY_S_MAX + 1)
    with pytest.raises(PeerGoneError):
        opened(opener, frame, BULK_KEY_S_MAX + 1)


def test_a_nonce_is_never_used_twice() -> None:
    sealer, _ = sealer_and_opener()
    frames = {sealer.seal(DATA, 0, 7, b"the same", 0.0) for _ in range(100)}
    assert len(frames) == 100
