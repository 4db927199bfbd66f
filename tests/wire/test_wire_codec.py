"""Frames: the vectors, every split of the stream, and what msgpack would let through."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kachery_p2p.errors import ProtocolError
from kachery_p2p.limits import (
    FRAME_BYTES_MAX,
    MESSAGE_DEPTH_MAX,
    MESSAGE_ITEMS_MAX,
    MESSAGE_ITEMS_TOTAL_MAX,
    TEXT_CHARS_MAX,
)
from kachery_p2p.wire.codec import FrameDecoder, decode_message, encode_frame


def of_json(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"$hex"}:
            return bytes.fromhex(value["$hex"])
        return {key: of_json(item) for key, item in value.items()}
    return [of_json(item) for item in value] if isinstance(value, list) else value


VECTORS = json.loads((Path(__file__).parents[1] / "vectors/wire.json").read_text())
BIG = {"number": 1, "data": bytes(range(256)) * 4096}

scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.text(max_size=40),
    st.binary(max_size=40),
    st.floats(allow_nan=False, allow_infinity=False),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


messages = st.dictionaries(st.text(max_size=8), values, max_size=5).filter(
    lambda message: depth(message) <= MESSAGE_DEPTH_MAX
)


def frame_of(encoded: bytes) -> bytes:
    return len(encoded).to_bytes(4, "big") + encoded


@pytest.mark.parametrize("vector", VECTORS["frames"], ids=lambda v: v["what"])
def test_a_message_has_the_bytes_of_its_vector(vector: dict[str, Any]) -> None:
    message, frame = of_json(vector["message"]), bytes.fromhex(vector["frame"])
    assert encode_frame(message) == frame
    assert FrameDecoder().feed(frame) == [message]


@pytest.mark.parametrize("vector", VECTORS["bad_frames"], ids=lambda v: v["why"])
def test_a_bad_frame_is_refused_and_so_is_all_that_follows(vector: dict[str, Any]) -> None:
    decoder = FrameDecoder()
    with pytest.raises(ProtocolError):
        decoder.feed(bytes.fromhex(vector["frame"]))
    with pytest.raises(ProtocolError):
        decoder.feed(encode_frame({}))


@given(messages)
def test_any_message_comes_back_as_it_was(message: dict[str, Any]) -> None:
    assert FrameDecoder().feed(encode_frame(message)) == [message]


@given(st.lists(messages, max_size=5), st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_messages_come_out_in_order_however_the_stream_is_split(
    sent: list[dict[str, Any]], sizes: list[int]
) -> None:
    stream = b"".join(map(encode_frame, sent))
    decoder, received, place = FrameDecoder(), list[dict[str, Any]](), 0
    while place < len(stream):
        size = sizes[place % len(sizes)]
        received += decoder.feed(stream[place : place + size])
        place += size
    assert received == sent
    assert decoder.at_boundary


def test_a_stream_that_ends_inside_a_frame_is_not_at_a_boundary() -> None:
    decoder = FrameDecoder()
    assert decoder.at_boundary
    assert decoder.feed(encode_frame({"a": 1})[:-1]) == []
    assert not decoder.at_boundary


def test_a_length_is_judged_before_anything_of_its_frame_is_kept() -> None:
    decoder = FrameDecoder()
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="4294967295"):
            decoder.feed(memoryview(b"\xff" * 4 + bytes(8 << 20))[:])
        before = tracemalloc.get_traced_memory()[0]
        with pytest.raises(ProtocolError):
            decoder.feed(bytes(1 << 16))
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert kept < 1 << 16


def test_a_large_frame_in_small_pieces_is_copied_a_bounded_number_of_times() -> None:
    frame = encode_frame(BIG)
    decoder = FrameDecoder()
    tracemalloc.start()
    try:
        for place in range(0, len(frame) - (1 << 14), 1 << 14):
            assert decoder.feed(frame[place : place + (1 << 14)]) == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * FRAME_BYTES_MAX + (1 << 16)
    assert decoder.feed(frame[(len(frame) - 1) // (1 << 14) * (1 << 14) :]) == [BIG]


def test_containers_alone_cannot_take_more_memory_than_their_budget() -> None:
    # 1 MiB of empty lists would become 60 MiB.
    bomb = b"\x81\xa1a\xdc\x01\x00" + (b"\xdc\x10\x00" + b"\x90" * 4096) * 256
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match=f"more than {MESSAGE_ITEMS_TOTAL_MAX}"):
            decode_message(bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize(
    "message",
    [
        {"a": float("nan")},
        {"a": 1 << 64},
        {"a": "\ud800"},
        {"a": "x" * (TEXT_CHARS_MAX + 1)},
        {"a": [None] * (MESSAGE_ITEMS_MAX + 1)},
        {"a": object()},
        {"a": {1: 2}},
        {"a": bytes(FRAME_BYTES_MAX)},
        {"a": [[[[[[[[]]]]]]]]},
    ],
    ids=lambda message: repr(message)[:20],
)
def test_a_message_that_the_other_side_would_refuse_is_not_encoded(message: Any) -> None:
    with pytest.raises(ValueError):
        encode_frame(message)


def test_the_longest_text_may_have_four_bytes_a_character() -> None:
    message = {"a": "\U0001f600" * TEXT_CHARS_MAX}
    assert FrameDecoder().feed(encode_frame(message)) == [message]
    too_long = msgpack.packb({"a": "x" * (TEXT_CHARS_MAX + 1)})
    with pytest.raises(ProtocolError):
        decode_message(too_long)


def test_an_error_never_quotes_what_the_peer_sent() -> None:
    for bad in (b"\x81\xa6SECRET\xc1", b"\x82\xa6SECRET\x01\xa6SECRET\x02"):
        with pytest.raises(ProtocolError) as caught:
            FrameDecoder().feed(frame_of(bad))
        assert "SECRET" not in str(caught.value)
        assert caught.value.__cause__ is None
