"""An object of an encrypted bucket: two sealed files (`identity/frames`), note and content.

    note      1,280 bytes, a sealed file of 1,184:
              salt 32 of the content's header ‖ text key ‖ u8 count ‖ count x (text, text) ‖ zeros
    content   a sealed file of what the object holds

A text is its UTF-8 after a u16 length. The note has the key below the prefix of an
unencrypted bucket (`sha1/aa/bb/cc/HASH`), and the object's metadata, in the order of their
names. It names its content by the salt, and its place by the key: so an object under
another's name, or half of one, is noticed before anything of it is used. Whoever keeps the
bucket sees how long each object is: 1,360 bytes, and 16 for each frame, more than it holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from kachery_p2p.bucket.rings import Ring
from kachery_p2p.channels.spelling import Cursor, Speller
from kachery_p2p.errors import LogFormatError, SealError, SourceChangedError
from kachery_p2p.identity.frames import (
    FRAME_BYTES,
    HEADER_BYTES,
    SALT_BYTES,
    TAG_BYTES,
    Header,
    KeyId,
    Opener,
    Sealer,
    read_header,
    sealed_size,
)
from kachery_p2p.limits import SEALED_STREAM_FRAMES

# Room for the longest key, root and name that `layout` notes: 935 bytes; and some for others.
_NOTE_PLAIN_BYTES = 1_184
NOTE_BYTES = HEADER_BYTES + _NOTE_PLAIN_BYTES + TAG_BYTES
# What a reader needs first: the note, and the header of the content.
BEGINNING_BYTES = NOTE_BYTES + HEADER_BYTES
_CONTENT_TYPE = "Content-Type"


class UnknownKeyError(SealError):
    """It is sealed with a key that this ring has not. Never leaves this room."""


class Beginning(NamedTuple):
    """What the beginning of an object says, after all of it was opened."""

    key: str
    attributes: Mapping[str, str]
    # Of the content.
    opener: Opener

    @property
    def size(self) -> int:
        """How long the content is."""
        return self.opener.header.size


def object_size(size: int) -> int:
    """How long the object is that holds `size` bytes."""
    return NOTE_BYTES + sealed_size(size)


class SealedWriting:
    """One object as it is put there: what it begins with, then its frames."""

    def __init__(
        self,
        ring: Ring,
        key: str,
        size: int,
        attributes: Mapping[str, str],
        salts: tuple[bytes, bytes] | None = None,
    ) -> None:
        """`salts` are random; give them only to make an object a second time."""
        noted, holding = salts or (None, None)
        self._content = Sealer(ring.content_key, size, holding)
        self._size = size
        note = _spelled(read_header(self._content.header), key, attributes)
        sealer = Sealer(ring.content_key, _NOTE_PLAIN_BYTES, noted)
        self.beginning = sealer.header + sealer.seal(0, note) + self._content.header

    def pieces(self, plain: Iterable[bytes]) -> Iterator[bytes]:
        """All of the object, a MiB at a time; SourceChangedError if `plain` is not as long."""
        yield self.beginning
        step, number, buffer = SEALED_STREAM_FRAMES * FRAME_BYTES, 0, bytearray()
        left = self._size
        for piece in plain:
            left -= len(piece)
            if left < 0:
                raise SourceChangedError("it became longer while it was put into the bucket")
            buffer += piece
            while len(buffer) >= step:
                yield self._content.seal_frames(number, memoryview(bytes(buffer[:step])))
                del buffer[:step]
                number += SEALED_STREAM_FRAMES
        if left:
            raise SourceChangedError("it became shorter while it was put into the bucket")
        if buffer or not self._size:
            yield self._content.seal_frames(number, bytes(buffer))


def opened_beginning(ring: Ring, data: bytes, key: str | None = None) -> Beginning:
    """What the first BEGINNING_BYTES of an object say; if a key is given, it must be that one.

    UnknownKeyError if the ring has not its key; SealError for whatever nobody sealed so.
    """
    noted, holds = read_header(data), read_header(data[NOTE_BYTES:])
    if noted.size != _NOTE_PLAIN_BYTES or len(data) != BEGINNING_BYTES:
        raise SealError("the object does not begin as one of an encrypted bucket")
    note = Opener(_key(ring, noted.key_id), noted).open(0, data[HEADER_BYTES:NOTE_BYTES])
    salt, told, attributes = _read(note)
    if salt != holds.salt or noted.key_id != holds.key_id:
        raise SealError("the object was put together of two others")
    if key is not None and told != key:
        raise SealError("the object is another one than its name says")
    return Beginning(told, attributes, Opener(_key(ring, holds.key_id), holds))


def _key(ring: Ring, name: KeyId) -> bytes:
    found = ring.key_named(name)
    if found is None:
        raise UnknownKeyError("the object was sealed with a key that this node has not")
    return found


def _spelled(header: Header, key: str, attributes: Mapping[str, str]) -> bytes:
    speller = Speller()
    speller.fixed(header.salt, SALT_BYTES)
    speller.text(key)
    # How a browser is to show it is of no use to anybody who sees it so.
    told = sorted((name, value) for name, value in attributes.items() if name != _CONTENT_TYPE)
    speller.number(len(told), 1)
    for name, value in told:
        speller.text(name)
        speller.text(value)
    data = speller.spelled()
    assert len(data) <= _NOTE_PLAIN_BYTES, "more metadata than there is room for"
    return data.ljust(_NOTE_PLAIN_BYTES, b"\0")


def _read(note: bytes) -> tuple[bytes, str, dict[str, str]]:
    cursor = Cursor(note)
    try:
        salt, key = cursor.fixed(SALT_BYTES), cursor.text(_NOTE_PLAIN_BYTES)
        count = cursor.number(1)
        attributes = {
            cursor.text(_NOTE_PLAIN_BYTES): cursor.text(_NOTE_PLAIN_BYTES) for _ in range(count)
        }
        rest = cursor.rest()
    except LogFormatError:
        raise SealError("the note of the object is damaged") from None
    if len(attributes) != count or any(rest):
        raise SealError("the note of the object is damaged")
    return salt, key, attributes
