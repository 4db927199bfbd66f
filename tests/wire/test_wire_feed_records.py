"""Messages of feeds as one field of bytes at the Unix door."""

from __future__ import annotations

from random import Random

import pytest

from kachery_p2p.errors import DaemonProtocolError
from kachery_p2p.wire.feed_records import (
    ReadMessage,
    pack_messages,
    pack_texts,
    unpack_messages,
    unpack_texts,
)

READ = [
    ReadMessage("1", 1, 5, None),
    ReadMessage('"ä"', 2, (1 << 63) - 1, "ab" * 32),
    ReadMessage("{}", 3, 0, None),
]


def test_messages_come_out_as_they_went_in() -> None:
    assert unpack_messages(pack_messages(READ)) == READ
    assert unpack_messages(b"") == []
    assert unpack_texts(pack_texts([b"1", "ä".encode(), b""]), 3) == ["1", "ä", ""]


def test_the_bytes_are_those_of_the_description() -> None:
    assert pack_texts([b"[]", b"7"]) == b"\0\0\0\2[]\0\0\0\0017"
    assert pack_messages(READ[:1]) == b"\0\0\0\x0a\1\0\0\0\0\0\0\0\0051"


def test_more_messages_than_allowed_are_refused() -> None:
    with pytest.raises(DaemonProtocolError):
        unpack_texts(pack_texts([b"1"] * 4), 3)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_cut_or_flipped_is_refused_or_read_within_its_bytes(seed: int) -> None:
    random = Random(seed)
    read, texts = pack_messages(READ), pack_texts([b"one", b"two"])
    for whole, unpack in ((read, unpack_messages), (texts, lambda data: unpack_texts(data, 9))):
        for cut in range(len(whole)):
            flipped = bytearray(whole[:cut] if random.random() < 0.5 else whole)
            if flipped:
                flipped[random.randrange(len(flipped))] ^= 1 << random.randrange(8)
            try:
                found = unpack(bytes(flipped))
            except DaemonProtocolError:
                continue
            assert len(found) <= len(whole)
