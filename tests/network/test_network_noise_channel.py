"""Packets behind a noise handshake: whole, in order, however they are cut up and whatever waits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from hashlib import sha256

import pytest
import trio

from kachery_p2p.errors import PeerGoneError, ProtocolError
from kachery_p2p.network.noise_channel import PLAINTEXT_BYTES_MAX, NoiseChannel


class _Numbered:
    """A cipher that notices what is missing, changed, or out of order."""

    def __init__(self) -> None:
        self._sent = self._received = 0

    def _tag(self, number: int, data: bytes) -> bytes:
        return sha256(number.to_bytes(8, "big") + data).digest()[:16]

    def encrypt(self, data: bytes, /) -> bytes:
        self._sent += 1
        return data + self._tag(self._sent, data)

    def decrypt(self, data: bytes, /) -> bytes:
        self._received += 1
        if self._tag(self._received, data[:-16]) != data[-16:]:
            raise ValueError("not what was sent")
        return data[:-16]


def packet(cipher: _Numbered, data: bytes) -> bytes:
    encrypted = cipher.encrypt(data)
    return len(encrypted).to_bytes(2, "big") + encrypted


@pytest.fixture
async def ends() -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream]]:
    one, other = (trio.SocketStream(end) for end in _pair())
    async with one, other:
        yield one, other


def _pair() -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
    # Of TCP, as the stream sets options of it.
    with trio.socket.socket() as listening:
        raw = listening._sock  # type: ignore[attr-defined]
        raw.bind(("127.0.0.1", 0))
        raw.listen(1)
        here = trio.socket.socket()
        here._sock.setblocking(True)  # type: ignore[attr-defined]
        here._sock.connect(raw.getsockname())  # type: ignore[attr-defined]
        here._sock.setblocking(False)  # type: ignore[attr-defined]
        raw.setblocking(True)
        there, _ = raw.accept()
    return here, trio.socket.from_stdlib_socket(there)


Ends = tuple[trio.SocketStream, trio.SocketStream]


async def all_of(channel: NoiseChannel, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += await channel.read()
    return data


@pytest.mark.parametrize("size", [1, 2, 3, 17, 18, 19, 40, 1_000])
async def test_packets_may_come_in_any_pieces(ends: Ends, size: int) -> None:
    theirs = _Numbered()
    sent = b"".join(packet(theirs, data) for data in (b"one", b"two", b"x" * 300, b"3"))
    behind, rest = sent[:5], sent[5:]
    channel = NoiseChannel(ends[0], _Numbered(), behind)
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            for at in range(0, len(rest), size):
                await ends[1].send_all(rest[at : at + size])

        nursery.start_soon(send)
        expected = b"onetwo" + b"x" * 300 + b"3"
        assert await all_of(channel, len(expected)) == expected


async def test_who_wants_few_bytes_finds_the_rest_later(ends: Ends) -> None:
    theirs = _Numbered()
    channel = NoiseChannel(ends[0], _Numbered(), packet(theirs, b"abcdef") + packet(theirs, b"g"))
    assert [await channel.read(n) for n in (1, 2, 9)] == [b"a", b"bc", b"defg"]
    await ends[1].send_all(packet(theirs, b"h"))
    assert await channel.read() == b"h"


async def test_what_was_changed_or_cut_off_is_never_read(ends: Ends) -> None:
    theirs = _Numbered()
    good, bad = packet(theirs, b"good"), bytearray(packet(theirs, b"evil"))
    bad[3] ^= 1
    channel = NoiseChannel(ends[0], _Numbered(), good)
    assert await channel.read() == b"good"
    await ends[1].send_all(bytes(bad))
    with pytest.raises(ValueError, match="not what was sent"):
        await channel.read()
    cut = NoiseChannel(ends[0], _Numbered(), good[:-1])
    await ends[1].send_eof()
    with pytest.raises(PeerGoneError):
        await cut.read()


async def test_packets_with_nothing_in_them_end_it(ends: Ends) -> None:
    theirs = _Numbered()
    channel = NoiseChannel(ends[0], _Numbered(), packet(theirs, b"") * 2)
    with pytest.raises(ProtocolError):
        await channel.read()


async def test_what_the_system_does_not_take_at_once_is_sent_before_what_follows(
    ends: Ends,
) -> None:
    mine, theirs = NoiseChannel(ends[0], _Numbered(), b""), NoiseChannel(ends[1], _Numbered(), b"")
    long = b"y" * (2 * PLAINTEXT_BYTES_MAX + 1)
    expected = b""
    assert mine.write_now(b"first")
    expected += b"first"
    is_sent = True
    while is_sent:
        is_sent = mine.write_now(long)
        expected += long
    async with trio.open_nursery() as nursery:

        async def go_on() -> None:
            await mine.flush()
            await mine.flush()
            assert mine.write_now(b"then")
            await mine.write(b"last")

        nursery.start_soon(go_on)
        expected += b"thenlast"
        assert await all_of(theirs, len(expected)) == expected


async def test_on_a_broken_connection_nothing_is_lost_in_silence(ends: Ends) -> None:
    channel = NoiseChannel(ends[0], _Numbered(), b"")
    await ends[0].aclose()
    assert not channel.write_now(b"x")
    with pytest.raises(trio.ClosedResourceError):
        await channel.flush()
