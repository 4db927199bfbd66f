"""Sealed frames: how the bulk plane's bytes are encrypted, counted and told apart.

    hello    magic 8 ‖ ticket id 16                                        in clear, dialler's only
    frame    u8 kind ‖ u8 flags ‖ u16 0 ‖ u32 request ‖ u32 length         header, authenticated
             ‖ length bytes, encrypted ‖ tag 16

There is no handshake here: who the two nodes are, and that only they know the ticket's
random bytes, is the work of the secure channel that the ticket was agreed on. Each
direction has a key of its own, used by one sealer and one opener, which count frames
from 0: the count is the nonce and never travels, so a frame that is lost, repeated,
moved or taken from another connection does not open. The first frame that does not open
ends an opener. A frame's end is known from its header, so a connection that ends inside
a frame, or before the frame that says so, was cut.

Pure: the time is given (seconds of any clock), the buffers are the caller's.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from kachery_p2p.errors import PeerGoneError, ProtocolError
from kachery_p2p.limits import (
    BULK_KEY_BYTES_MAX,
    BULK_KEY_FRAMES_MAX,
    BULK_KEY_S_MAX,
    BULK_PAYLOAD_BYTES_MAX,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

MAGIC = b"kp2pbulk"
TICKET_BYTES = 16
RANDOM_BYTES = 32
HELLO_BYTES = len(MAGIC) + TICKET_BYTES

HEADER_BYTES = 12
_HEADER = struct.Struct(">BBHII")
TAG_BYTES = 16
_NONCE_BYTES = 12
# What a frame has besides its payload.
OVERHEAD_BYTES = HEADER_BYTES + TAG_BYTES
SEALED_BYTES_MAX = OVERHEAD_BYTES + BULK_PAYLOAD_BYTES_MAX

AES_256_GCM = 1
CHACHA20_POLY1305 = 2
CIPHERS = (AES_256_GCM, CHACHA20_POLY1305)

_INFO_TAG = b"kp2p-bulk/1"
_KEY_BYTES = 32
_NODE_BYTES = 32
_FROM_DIALLER = b"\1"
_FROM_LISTENER = b"\2"
_REQUEST_MAX = (1 << 32) - 1
# A connection takes no new work after this part of what its keys may carry, so that the work under
# way can be finished on it.
_RETIRED_PART = 7 / 8

Buffer = bytes | bytearray | memoryview


class Agreement(NamedTuple):
    """What the two ends of a bulk connection agreed on over their control stream.

    The node ids are as the control stream's secure channel proved them, raw.
    """

    ticket: bytes
    cipher: int
    dialler: bytes
    listener: bytes
    dialler_random: bytes
    listener_random: bytes

    def keys(self) -> tuple[bytes, bytes]:
        """The keys of the dialler's frames and of the listener's (RFC 5869, no salt)."""
        assert len(self.ticket) == TICKET_BYTES
        assert len(self.dialler) == len(self.listener) == _NODE_BYTES
        assert len(self.dialler_random) == len(self.listener_random) == RANDOM_BYTES
        return self._key(_FROM_DIALLER), self._key(_FROM_LISTENER)

    def _key(self, direction: bytes) -> bytes:
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        cipher = bytes((self.cipher,))
        info = _INFO_TAG + self.dialler + self.listener + self.ticket + cipher + direction
        secret = self.dialler_random + self.listener_random
        return HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=None, info=info).derive(secret)

    def __repr__(self) -> str:
        return f"<Agreement on ticket {self.ticket.hex()}>"


def agreed_cipher(asked_for: int, preferred: int) -> int:
    """The cipher of a ticket: AES if both sides have it in hardware, else what both do fast."""
    assert asked_for in CIPHERS
    return AES_256_GCM if asked_for == preferred == AES_256_GCM else CHACHA20_POLY1305


def encode_hello(ticket: bytes) -> bytes:
    """The first bytes on a bulk connection, which say what ticket the dialler holds."""
    assert len(ticket) == TICKET_BYTES
    return MAGIC + ticket


def read_hello(hello: Buffer) -> bytes:
    """The ticket's id in HELLO_BYTES bytes, or ProtocolError."""
    if len(hello) != HELLO_BYTES or hello[: len(MAGIC)] != MAGIC:
        raise ProtocolError("not the hello of a bulk connection")
    return bytes(hello[len(MAGIC) :])


class FrameHeader(NamedTuple):
    """What a frame says before its payload is read; nothing of it is true before that opened."""

    kind: int
    flags: int
    request: int
    length: int

    def encode(self) -> bytes:
        """The header's HEADER_BYTES bytes."""
        assert 0 <= self.kind <= 255
        assert 0 <= self.flags <= 255
        assert 0 <= self.request <= _REQUEST_MAX
        assert 0 <= self.length <= BULK_PAYLOAD_BYTES_MAX
        return _HEADER.pack(self.kind, self.flags, 0, self.request, self.length)

    @classmethod
    def decode(cls, header: Buffer) -> FrameHeader:
        """The header in HEADER_BYTES bytes, its length within bounds, or ProtocolError."""
        assert len(header) == HEADER_BYTES
        kind, flags, reserved, request, length = _HEADER.unpack(header)
        if reserved:
            raise ProtocolError("a bulk frame with its reserved bytes set")
        if length > BULK_PAYLOAD_BYTES_MAX:
            raise ProtocolError(
                f"a bulk frame of {length} bytes, of at most {BULK_PAYLOAD_BYTES_MAX}"
            )
        return cls(kind, flags, request, length)

    @property
    def sealed_length(self) -> int:
        """How many bytes follow the header: the payload and its tag."""
        return self.length + TAG_BYTES


class _Count:
    """The frames and bytes that one key has carried, and its next nonce."""

    def __init__(self, now: float) -> None:
        self.frames = 0
        self.bytes = 0
        self.began = now

    def part_used(self, now: float) -> float:
        return max(
            self.frames / BULK_KEY_FRAMES_MAX,
            self.bytes / BULK_KEY_BYTES_MAX,
            (now - self.began) / BULK_KEY_S_MAX,
        )

    def next_nonce(self, length: int) -> bytes:
        nonce = self.frames.to_bytes(_NONCE_BYTES, "big")
        self.frames += 1
        self.bytes += length
        return nonce

    def is_full_for(self, length: int) -> bool:
        return self.frames >= BULK_KEY_FRAMES_MAX or self.bytes + length > BULK_KEY_BYTES_MAX


class Sealer:
    """Makes the frames of one direction. Not to be used by two threads at once."""

    def __init__(self, key: bytes, cipher: int, now: float) -> None:
        self._aead = _aead(key, cipher)
        self._count = _Count(now)

    def retired(self, now: float) -> bool:
        """True if nothing new should be begun with this key: what is under way may be finished."""
        return self._count.part_used(now) >= _RETIRED_PART

    def seal_into(
        self, kind: int, flags: int, request: int, payload: Buffer, frame: memoryview, now: float
    ) -> int:
        """Write a whole frame to the beginning of `frame`; answers how many bytes it has.

        Raises PeerGoneError when the key has carried all that it may: a new ticket is due.
        """
        length = len(payload)
        header = FrameHeader(kind, flags, request, length).encode()
        if self._count.is_full_for(length) or now - self._count.began > BULK_KEY_S_MAX:
            raise PeerGoneError("the keys of the bulk connection have carried all that they may")
        end = length + OVERHEAD_BYTES
        frame[:HEADER_BYTES] = header
        nonce = self._count.next_nonce(length)
        self._aead.encrypt_into(nonce, payload, header, frame[HEADER_BYTES:end])
        return end

    def seal(self, kind: int, flags: int, request: int, payload: bytes, now: float) -> bytes:
        """A whole frame, for those that are small."""
        frame = bytearray(len(payload) + OVERHEAD_BYTES)
        self.seal_into(kind, flags, request, payload, memoryview(frame), now)
        return bytes(frame)


class Opener:
    """Opens the frames of one direction, until one does not open."""

    def __init__(self, key: bytes, cipher: int, now: float) -> None:
        from cryptography.exceptions import InvalidTag

        self._aead = _aead(key, cipher)
        self._does_not_open = InvalidTag
        self._count = _Count(now)
        self._poisoned = False

    def retired(self, now: float) -> bool:
        """True if nothing new should be asked for with this key."""
        return self._count.part_used(now) >= _RETIRED_PART

    def open_into(self, header: Buffer, sealed: Buffer, payload: memoryview, now: float) -> int:
        """Write what the next frame carries to `payload`; answers how many bytes that are.

        `header` is the frame's, as received, `sealed` what followed it. Raises
        ProtocolError if this is not the very frame that was sent next: `payload` is then
        wiped, for the cipher leaves unauthenticated bytes there, and every later call
        raises too. Raises PeerGoneError when the key is an hour old.
        """
        if self._poisoned:
            raise ProtocolError("a frame after one that did not open")
        self._poisoned = True  # until this one has opened
        length = len(sealed) - TAG_BYTES
        if length < 0 or length != FrameHeader.decode(header).length:
            raise ProtocolError("a frame that is not as long as its header says")
        if self._count.is_full_for(length):
            raise ProtocolError("more under one key than a key may carry")
        if now - self._count.began > BULK_KEY_S_MAX:
            # No fault of the peer's: its clock and ours began at different moments.
            raise PeerGoneError("the keys of the bulk connection have grown old")
        self._open(bytes(header), sealed, payload[:length])
        self._poisoned = False
        return length

    def _open(self, header: bytes, sealed: Buffer, payload: memoryview) -> None:
        nonce = self._count.next_nonce(len(payload))
        try:
            self._aead.decrypt_into(nonce, sealed, header, payload)
        except self._does_not_open:
            payload[:] = bytes(len(payload))
            raise ProtocolError("a frame that does not open") from None

    def open(self, header: Buffer, sealed: Buffer, now: float) -> bytes:
        """What the next frame carries, for those that are small. Raises as `open_into`."""
        payload = bytearray(max(0, len(sealed) - TAG_BYTES))
        self.open_into(header, sealed, memoryview(payload), now)
        return bytes(payload)


def _aead(key: bytes, cipher: int) -> AESGCM | ChaCha20Poly1305:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

    assert cipher in CIPHERS
    assert len(key) == _KEY_BYTES
    return AESGCM(key) if cipher == AES_256_GCM else ChaCha20Poly1305(key)
