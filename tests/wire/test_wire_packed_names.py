"""Thousands of hashes in one message: none is lost, and nothing else is taken for one."""

from __future__ import annotations

import pytest

from kachery_p2p.limits import FRAME_BYTES_MAX, LOAD_MANY_MAX, TEXT_CHARS_MAX
from kachery_p2p.wire.codec import decode_message, encode_frame
from kachery_p2p.wire.packed_names import NO_ROOT, pack, packed, unpack


@pytest.mark.parametrize("count", [0, 1, 101, 102, 103, 5_000])
def test_what_is_packed_comes_back_in_order(count: int) -> None:
    names = [f"{number:040x}" for number in range(count)]
    texts = pack(names, 40)
    assert unpack(texts, 40) == names
    assert packed(40).fits(texts)


def test_as_many_as_one_call_may_have_fit_one_frame_with_their_roots() -> None:
    names = [f"{number:040x}" for number in range(LOAD_MANY_MAX)]
    body = {"contents": pack(names, 40), "roots": pack([NO_ROOT] * LOAD_MANY_MAX, 64)}
    frame = encode_frame({"op": "load_many", "body": body})
    assert len(frame) <= FRAME_BYTES_MAX
    assert decode_message(frame[4:])["body"] == body


def test_names_one_by_one_are_packed_too() -> None:
    assert packed(40).fits(["12" * 20, "34" * 20])


@pytest.mark.parametrize(
    "texts",
    [
        "12" * 20,
        [""],
        ["12" * 19],
        ["12" * 21],
        ["AB" * 20],
        ["0x" + "1" * 38],
        ["12" * 20, None],
        ["1" * 40 * (TEXT_CHARS_MAX // 40 + 1)],
        [b"1" * 40],
    ],
    ids=ascii,
)
def test_what_is_no_row_of_names_is_refused(texts: object) -> None:
    assert not packed(40).fits(texts)
