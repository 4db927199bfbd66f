"""Mutated frames by the hundred thousand: nothing but a ProtocolError ever comes out.

With `test_wire_fuzz_fields` these are a million frames; `make fuzz` tries FUZZ_ROUNDS more of
each kind, from another seed each time.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kachery_p2p.channels.membership import DIALLER, LISTENER
from kachery_p2p.errors import PeerError, ProtocolError, ProtocolVersionError
from kachery_p2p.wire.codec import FrameDecoder, decode_message, encode_frame
from kachery_p2p.wire.conversation import Conversation, State
from kachery_p2p.wire.handshake import PADDING_BYTES, Hello
from kachery_p2p.wire.ranges import Chunk, RangeAnswer, RangeRequest, read_range_request

VECTORS = json.loads((Path(__file__).parents[1] / "vectors/wire.json").read_text())
FRAMES = [
    bytes.fromhex(line["frame"])
    for part in ("frames", "control", "data")
    for line in VECTORS[part]
    if len(line["frame"]) < 2_000
]
# First bytes of msgpack's types, and lengths that somebody might forget to check.
SPICE = [bytes([i]) for i in (0x80, 0x90, 0xA0, 0xC0, 0xC1, 0xC4, 0xC7, 0xCB, 0xD6, 0xD9, 0xDC)]
SPICE += [b"\xdd\xff\xff\xff\xff", b"\xdf\x00\x00\x00\x02", b"\xc6\x7f\xff\xff\xff", b"\xa2id"]
SPICE += [b"\xa2op", b"\xa2ok", b"\xa5error", b"\xa3bye", b"\xa4body", b"\xc3", b"\x01", b"\x02"]
SEED = 20_432
FUZZ_ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "1000000"))
# Longer frames than this are hashes for the greater part.
CHANGED_FRAME_BYTES_MAX = 220
HELLOS = {role: Hello(role.encode().ljust(32), b"e" * 32, b"s" * 64) for role in "dl"}
PADDING = bytes(PADDING_BYTES)
HELLO_FRAME = encode_frame(HELLOS["d"].message())
PROOFS_FRAME = encode_frame({"proofs": [b"p" * 32] * 16})


def mutated(frame: bytes, rng: random.Random) -> bytes:
    """`frame` with one to four changes; its length usually made right again."""
    body = bytearray(frame[4:])
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(body) + 1)
        change = rng.random()
        if change < 0.4 and place < len(body):
            body[place] ^= 1 << rng.randrange(8)
        elif change < 0.6:
            del body[place : place + rng.randint(1, 9)]
        elif change < 0.9:
            body[place:place] = rng.choice(SPICE)
        else:
            other = rng.choice(FRAMES)
            body[place:place] = other[rng.randrange(4, len(other)) :]
    length = len(body) if rng.random() < 0.95 else rng.choice((0, len(body) + 1, 1 << 31))
    return length.to_bytes(4, "big") + body


def fuzz(rounds: int, listen: Callable[[bytes], object], seed: int = SEED) -> int:
    """How many of `rounds` mutated frames were refused; any error but PeerError fails."""
    rng, refused = random.Random(seed), 0
    for number in range(rounds):
        frame = mutated(rng.choice(FRAMES), rng)
        try:
            listen(frame)
        except (ProtocolError, ProtocolVersionError):
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, frame {number}: {frame.hex()}") from error
    return refused


def every_change_of_one_byte(frame: bytes) -> tuple[int, int]:
    """How many frames differ from this one in a single byte, and how many of them were refused."""
    body, tried, refused = bytearray(frame[4:]), 0, 0
    for place, right in enumerate(frame[4:]):
        for value in range(256):
            if value == right:
                continue
            body[place] = value
            tried += 1
            try:
                message = decode_message(body)
            except ProtocolError:
                refused += 1
                continue
            except Exception as error:
                raise AssertionError(f"{frame.hex()}: byte {place} is {value}") from error
            # What is understood could have been sent so; each 16th, to save time.
            assert tried % 16 or encode_frame(message)
        body[place] = right
    return tried, refused


def test_four_hundred_thousand_frames_with_one_byte_changed_are_decoded_or_refused() -> None:
    frames = {frame for frame in FRAMES if len(frame) <= CHANGED_FRAME_BYTES_MAX}
    counts = [every_change_of_one_byte(frame) for frame in frames]
    assert sum(tried for tried, _ in counts) > 400_000
    assert sum(refused for _, refused in counts) > 150_000


def test_a_hundred_and_forty_thousand_mutated_frames_are_decoded_or_refused() -> None:
    assert 70_000 < fuzz(140_000, lambda frame: FrameDecoder().feed(frame)) < 140_000


def in_hello() -> Conversation:
    return Conversation(LISTENER, HELLOS["l"])


def in_prove() -> Conversation:
    side = in_hello()
    side.receive(HELLO_FRAME)
    return side


def in_open() -> Conversation:
    side = in_prove()
    side.receive(PROOFS_FRAME)
    side.prove([], PADDING)
    for _ in range(2):
        side.request("ping", {})
    side.request("have", {"channel": "0" * 64, "content": bytes(20)})
    return side


class Listening:
    """A conversation that is begun anew once a frame has ended it, or a hundred have not."""

    def __init__(self, begin: Callable[[], Conversation]) -> None:
        self._begin = begin
        self._side, self._heard = begin(), 0

    def __call__(self, frame: bytes) -> None:
        if self._side.state is State.CLOSED or self._heard == 100:
            self._side, self._heard = self._begin(), 0
        self._heard += 1
        self._side.receive(frame)


def test_fifty_thousand_mutated_frames_in_every_state_of_a_conversation() -> None:
    assert fuzz(10_000, Listening(in_hello)) > 6_000
    assert fuzz(10_000, Listening(in_prove)) > 6_000
    assert fuzz(30_000, Listening(in_open)) > 6_000


REQUEST = RangeRequest(1, "0f" * 32, b"c" * 20, b"r" * 32, 6, 3)


def test_ten_thousand_mutated_frames_on_a_data_stream() -> None:
    def serve(frame: bytes) -> None:
        for message in FrameDecoder().feed(frame):
            read_range_request(message)

    def ask(frame: bytes) -> None:
        answer = RangeAnswer(REQUEST)
        for message in FrameDecoder().feed(frame):
            chunk = answer.receive(message)
            assert not isinstance(chunk, Chunk) or chunk.number == 6

    assert fuzz(5_000, serve) > 4_000
    assert fuzz(5_000, ask) > 4_000


@pytest.mark.fuzz
@pytest.mark.parametrize("begin", [None, in_hello, in_prove, in_open])
def test_many_more_mutated_frames(begin: Callable[[], Conversation] | None) -> None:
    def decode(frame: bytes) -> None:
        FrameDecoder().feed(frame)

    listen = decode if begin is None else Listening(begin)
    seed = random.SystemRandom().randrange(1 << 32)
    assert fuzz(FUZZ_ROUNDS, listen, seed) > FUZZ_ROUNDS // 5


@given(
    st.lists(st.binary(max_size=200), max_size=5), st.sampled_from([in_hello, in_prove, in_open])
)
def test_bytes_of_any_kind_are_events_or_a_typed_error(
    pieces: list[bytes], begin: Callable[[], Conversation]
) -> None:
    side = begin()
    try:
        for piece in pieces:
            side.receive(piece)
    except PeerError:
        assert side.state is State.CLOSED
    assert side.role in (DIALLER, LISTENER)
