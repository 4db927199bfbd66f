"""What noise has secured: packets on a TCP connection, once the handshake is done.

    u16 length, big-endian ‖ ciphertext      (libp2p's specification of noise, "Wire format")

The handshake and the cipher are libp2p's. Its reader takes forty calls for a packet, most of them
to read two bytes and then the rest, and its writer can only be waited for; news of a feed wait
for both.
"""

from __future__ import annotations

import contextlib
import os
from typing import Protocol

import trio

from kachery_p2p.errors import PeerGoneError, ProtocolError

_LENGTH_BYTES = 2
_TAG_BYTES = 16
PLAINTEXT_BYTES_MAX = (1 << 8 * _LENGTH_BYTES) - 1 - _TAG_BYTES
READ_BYTES_MAX = 1 << 16


class Cipher(Protocol):
    """Both directions of a noise session; what is decrypted wrongly ends it with an exception."""

    def encrypt(self, data: bytes, /) -> bytes: ...

    def decrypt(self, data: bytes, /) -> bytes: ...


class NoiseChannel:
    """A `multiplexer.SecureChannel`."""

    def __init__(self, tcp: trio.SocketStream, cipher: Cipher, received: bytes) -> None:
        """`received`: what came behind the handshake, and was read with it."""
        self._tcp = tcp
        self._cipher = cipher
        self._received = bytearray(received)
        self._plain = b""
        self._unsent = b""

    async def read(self, n: int | None = None) -> bytes:
        """What has come, at least one byte and at most `n`.

        PeerGoneError at the end; ProtocolError for a packet with nothing in it, which takes as
        long as any other and is counted nowhere.
        """
        while not self._plain:
            self._plain = self._decrypted()
            if not self._plain:
                data = await self._tcp.receive_some(READ_BYTES_MAX)
                if not data:
                    raise PeerGoneError("the connection to the peer ended")
                self._received += data
        found, self._plain = self._plain[:n], b"" if n is None else self._plain[n:]
        return found

    async def write(self, data: bytes) -> None:
        """Send it, waiting for the peer. Cancelled half-way, the channel is of no use any more."""
        await self.flush()
        await self._tcp.send_all(self._encrypted(data))

    def write_now(self, data: bytes) -> bool:
        """Send it as far as nothing must be waited for; False if some is left for `flush`.

        Not while `write` or `flush` is under way.
        """
        assert not self._unsent
        packets, sent = self._encrypted(data), 0
        # If it is full, or broken, that shows when the rest is sent.
        with contextlib.suppress(OSError):
            sent = os.write(self._tcp.socket.fileno(), packets)
        self._unsent = packets[sent:]
        return not self._unsent

    async def flush(self) -> None:
        """Send what is left."""
        if self._unsent:
            unsent, self._unsent = self._unsent, b""
            await self._tcp.send_all(unsent)

    def _encrypted(self, data: bytes) -> bytes:
        parts: list[bytes] = []
        for at in range(0, len(data), PLAINTEXT_BYTES_MAX):
            packet = self._cipher.encrypt(data[at : at + PLAINTEXT_BYTES_MAX])
            parts += len(packet).to_bytes(_LENGTH_BYTES, "big"), packet
        return b"".join(parts)

    def _decrypted(self) -> bytes:
        """What is in the whole packets that have come."""
        received, at, found = self._received, 0, []
        with memoryview(received) as view:
            while (start := at + _LENGTH_BYTES) <= len(received):
                end = start + int.from_bytes(view[at:start], "big")
                if end > len(received):
                    break
                plain = self._cipher.decrypt(bytes(view[start:end]))
                if not plain:
                    raise ProtocolError("a peer sent a packet with nothing in it")
                found.append(plain)
                at = end
        del received[:at]
        return b"".join(found)
