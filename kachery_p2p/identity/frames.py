"""Sealed files: a content encrypted under a key, of which any range can be opened by itself.

    header   magic 6 "KPSEAL" ‖ u16 version 1 ‖ key id 16 ‖ salt 32 ‖ u64 size ‖ 16 zero bytes
    frame    up to 64 KiB of the content, encrypted ‖ tag 16      one after the other

Numbers are big-endian, `size` is that of the content. Every frame but the last holds
64 KiB; an empty content has one empty frame. The file key is HKDF-SHA256 (RFC 5869) of
the content key, with the file's salt and the whole header in `info`; a frame is sealed
with ChaCha20-Poly1305 (RFC 8439), its number in the file as the nonce. So no header fits
other frames; a frame that was changed, moved, or taken from another file does not open;
and a file that was cut or made longer is not as long as its header says. The key id names
the content key without telling anything about it, and whoever opens a file checks it:
ChaCha20-Poly1305 alone could be made to open under two keys.

Whoever reads a range learns that these bytes were sealed at this place of this file; that
the rest is whole it learns from the rest, or from a hash of the sealed file.

The caller reads and writes; nothing here touches a file. The cryptography is imported by
the first Sealer or Opener.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, NewType

from kachery_p2p.errors import SealError, SourceChangedError, StateVersionError
from kachery_p2p.limits import SEALED_CONTENT_BYTES_MAX, SEALED_STREAM_FRAMES

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

FRAME_BYTES = 65536
HEADER_BYTES = 80
TAG_BYTES = 16
CONTENT_KEY_BYTES = 32
KEY_ID_BYTES = 16
SALT_BYTES = 32
SEAL_VERSION = 1

_MAGIC = b"KPSEAL"
_HEADER = struct.Struct(">6sH16s32sQ16s")
_RESERVED = bytes(16)
_SEALED_FRAME_BYTES = FRAME_BYTES + TAG_BYTES
_NONCE_BYTES = 12
_FILE_INFO = b"kachery-p2p sealed file 1"
_KEY_ID_INFO = b"kachery-p2p key id 1"

Buffer = bytes | bytearray | memoryview
KeyId = NewType("KeyId", bytes)


class Header(NamedTuple):
    """What a sealed file says in clear: by which key, and how long the content is."""

    key_id: KeyId
    salt: bytes
    size: int

    def encode(self) -> bytes:
        """The first HEADER_BYTES bytes of the file."""
        assert len(self.key_id) == KEY_ID_BYTES
        assert len(self.salt) == SALT_BYTES
        assert 0 <= self.size <= SEALED_CONTENT_BYTES_MAX
        return _HEADER.pack(_MAGIC, SEAL_VERSION, *self, _RESERVED)


class Span(NamedTuple):
    """Which bytes of a sealed file hold a range of its content."""

    first_frame: int
    # Of the sealed file, its header included.
    offset: int
    length: int
    # How much of the first frame's content comes before the range.
    skip: int


def key_id(content_key: bytes) -> KeyId:
    """The name of a content key, which tells nothing about it."""
    return KeyId(_hkdf(content_key, None, _KEY_ID_INFO, KEY_ID_BYTES))


def frame_count(size: int) -> int:
    """How many frames a content of `size` bytes takes."""
    return max(1, -(-size // FRAME_BYTES))


def sealed_size(plain_size: int) -> int:
    """How many bytes the sealed file of a content of `plain_size` bytes has."""
    assert 0 <= plain_size <= SEALED_CONTENT_BYTES_MAX
    return HEADER_BYTES + plain_size + frame_count(plain_size) * TAG_BYTES


def is_sealed(head: bytes) -> bool:
    """True if a file that begins so (8 bytes are enough) says that it is a sealed one."""
    return head[: len(_MAGIC)] == _MAGIC


def read_header(head: bytes) -> Header:
    """The header in the first HEADER_BYTES bytes of a sealed file.

    SealError if it is none, StateVersionError if a newer version made it.
    """
    if len(head) < HEADER_BYTES or not is_sealed(head):
        raise SealError("this is not a sealed file, or its beginning is missing")
    _, version, key, salt, size, reserved = _HEADER.unpack(head[:HEADER_BYTES])
    if version > SEAL_VERSION:
        raise StateVersionError(
            f"the file was sealed by a newer kachery_p2p (format {version}, not {SEAL_VERSION})",
            hint="upgrade kachery_p2p",
        )
    if version != SEAL_VERSION or reserved != _RESERVED or size > SEALED_CONTENT_BYTES_MAX:
        raise SealError("the header of the sealed file is damaged")
    return Header(KeyId(key), salt, size)


def span(size: int, start: int, end: int) -> Span:
    """Which bytes of the sealed file hold the bytes [start, end) of a content of `size` bytes.

    Whole frames; none for an empty range.
    """
    assert 0 <= start <= end <= size
    first = start // FRAME_BYTES
    offset = HEADER_BYTES + first * _SEALED_FRAME_BYTES
    if start == end:
        return Span(first, offset, 0, start % FRAME_BYTES)
    last = (end - 1) // FRAME_BYTES
    stop = min(HEADER_BYTES + (last + 1) * _SEALED_FRAME_BYTES, sealed_size(size))
    return Span(first, offset, stop - offset, start % FRAME_BYTES)


class _Frames:
    """What sealer and opener share: the cipher of one file, and how long each frame is."""

    def __init__(self, content_key: bytes, header: Header) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        info = _FILE_INFO + header.encode()
        file_key = _hkdf(content_key, header.salt, info, CONTENT_KEY_BYTES)
        self._aead: ChaCha20Poly1305 = ChaCha20Poly1305(file_key)
        self._size = header.size
        self.count = frame_count(header.size)

    def _length(self, number: int) -> int:
        """How much of the content is in the frame."""
        assert 0 <= number < self.count
        return min(FRAME_BYTES, self._size - number * FRAME_BYTES)


class Sealer(_Frames):
    """Seals one file, frame by frame, each once and in order.

    `salt` is random; give one only to make a sealed file a second time. Two contents sealed
    with one key and one salt give each other away.
    """

    def __init__(self, content_key: bytes, size: int, salt: bytes | None = None) -> None:
        header = Header(key_id(content_key), os.urandom(SALT_BYTES) if salt is None else salt, size)
        super().__init__(content_key, header)
        # What the file begins with.
        self.header = header.encode()
        self._next = 0

    def seal(self, number: int, plaintext: Buffer) -> bytes:
        """The frame with this number, of FRAME_BYTES bytes or what is left of the content."""
        # Sealed twice with different bytes, a frame would give away what they differ in.
        assert number >= self._next
        assert len(plaintext) == self._length(number)
        self._next = number + 1
        return self._aead.encrypt(_nonce(number), plaintext, None)

    def seal_frames(self, first: int, plaintext: Buffer) -> bytes:
        """Whole frames from number `first` on, one after the other."""
        view = memoryview(plaintext)
        starts = range(0, max(1, len(view)), FRAME_BYTES)
        return b"".join(
            self.seal(number, view[start : start + FRAME_BYTES])
            for number, start in enumerate(starts, first)
        )


class Opener(_Frames):
    """Opens the frames of one sealed file, in any order and from several threads.

    SealError if the file was not sealed with this key.
    """

    def __init__(self, content_key: bytes, header: Header) -> None:
        from cryptography.exceptions import InvalidTag

        if key_id(content_key) != header.key_id:
            raise SealError("the file was sealed with another key")
        super().__init__(content_key, header)
        self._does_not_open = InvalidTag
        self.header = header

    def open(self, number: int, sealed: Buffer) -> bytes:
        """The content of the frame with this number. SealError if it is not that very frame."""
        if len(sealed) != self._length(number) + TAG_BYTES:
            raise SealError(f"frame {number} of the sealed file is not as long as it should be")
        try:
            return self._aead.decrypt(_nonce(number), sealed, None)
        except self._does_not_open:
            raise SealError(f"frame {number} of the sealed file was changed or damaged") from None

    def open_span(self, start: int, end: int, sealed: Buffer) -> bytes:
        """The bytes [start, end) of the content, from the bytes that `span` names.

        SealError if any of their frames does not open.
        """
        at = span(self._size, start, end)
        if len(sealed) != at.length:
            raise SealError("the sealed file ends too early, or is longer than it should be")
        view, number, parts = memoryview(sealed), at.first_frame, []
        for offset in range(0, at.length, _SEALED_FRAME_BYTES):
            parts.append(self.open(number, view[offset : offset + _SEALED_FRAME_BYTES]))
            number += 1
        return b"".join(parts)[at.skip : at.skip + end - start]


def seal_stream(
    read: Callable[[int], bytes], write: Callable[[bytes], object], content_key: bytes, size: int
) -> Header:
    """Write the sealed file of the `size` bytes that `read` gives; a MiB in memory at a time.

    `read(n)` gives up to n bytes, none at the end; `write` takes all it is given.
    SourceChangedError if there are fewer or more than `size`: then what was written is void.
    """
    sealer = Sealer(content_key, size)
    write(sealer.header)
    for first in range(0, sealer.count, SEALED_STREAM_FRAMES):
        wanted = min(SEALED_STREAM_FRAMES * FRAME_BYTES, size - first * FRAME_BYTES)
        plain = _read_whole(read, wanted)
        if len(plain) < wanted:
            raise SourceChangedError("the content became shorter while it was sealed")
        write(sealer.seal_frames(first, plain))
    if read(1):
        raise SourceChangedError("the content became longer while it was sealed")
    return read_header(sealer.header)


def open_stream(
    read: Callable[[int], bytes], write: Callable[[bytes], object], content_key: bytes
) -> Header:
    """Write the content of the sealed file that `read` gives; a MiB in memory at a time.

    Nothing is written that was not opened, but the file is known to be whole only when this
    returns: on SealError (cut, longer, changed, or another key's), what was written is void.
    """
    header = read_header(_read_whole(read, HEADER_BYTES))
    opener = Opener(content_key, header)
    step = SEALED_STREAM_FRAMES * FRAME_BYTES
    for start in range(0, header.size, step):
        end = min(start + step, header.size)
        write(opener.open_span(start, end, _read_whole(read, span(header.size, start, end).length)))
    if not header.size:
        opener.open(0, _read_whole(read, TAG_BYTES))
    if read(1):
        raise SealError("something follows the end of the sealed file")
    return header


def _read_whole(read: Callable[[int], bytes], length: int) -> bytes:
    """`length` bytes, or fewer at the end."""
    parts: list[bytes] = []
    while length:
        part = read(length)
        if not part:
            break
        assert len(part) <= length
        parts.append(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _nonce(number: int) -> bytes:
    return number.to_bytes(_NONCE_BYTES, "big")


def _hkdf(content_key: bytes, salt: bytes | None, info: bytes, length: int) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    assert len(content_key) == CONTENT_KEY_BYTES
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(content_key)
