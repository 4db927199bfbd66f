"""The two names of a content: its SHA-1, which people see, and its root, which the protocol trusts.

Every older kachery package named content by SHA-1, so `ContentHash` is what URIs
and the store directory carry. SHA-1 collisions can be made, so a content is also
named by its `Root`: the BLAKE3 of its root object (see `manifests`). Both are
plain `str` subclasses: lower-case hex of a fixed length, checked once, at the edge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kachery_p2p.errors import UriError

if TYPE_CHECKING:
    from typing import Self

HEX_DIGITS = "0123456789abcdef"
# What an error message quotes of a text that somebody else wrote.
QUOTED_CHARS_MAX = 80


def quoted(text: str) -> str:
    """`text` between quotes, escaped and shortened, fit for an error message or a terminal."""
    return ascii(text if len(text) <= QUOTED_CHARS_MAX else text[: QUOTED_CHARS_MAX - 3] + "...")


class _HexName(str):
    """Lower-case hex of a fixed length; the subclasses say of what."""

    __slots__ = ()
    KIND: ClassVar[str]
    CHARS: ClassVar[int]

    @classmethod
    def parse(cls, text: str) -> Self:
        """The name that `text` spells, in either case, or `UriError` saying what is wrong."""
        if len(text) != cls.CHARS:
            what = "cut off" if len(text) < cls.CHARS else "too long"
            raise UriError(
                f"the {cls.KIND} {quoted(text)} is {what}: "
                f"it has {len(text)} characters, not {cls.CHARS}",
                hint="copy the whole URI again",
            )
        name = text.lower()
        if name.strip(HEX_DIGITS):
            raise UriError(
                f"the {cls.KIND} {quoted(text)} has characters that are not 0-9 or a-f",
                hint="copy the whole URI again",
            )
        return cls(name)

    @classmethod
    def of_raw(cls, raw: bytes) -> Self:
        """The name whose bytes are `raw`."""
        if len(raw) * 2 != cls.CHARS:
            raise UriError(f"a {cls.KIND} has {cls.CHARS // 2} bytes, not {len(raw)}")
        return cls(raw.hex())

    @property
    def raw(self) -> bytes:
        """The name's bytes, half as many as it has characters."""
        return bytes.fromhex(self)


class ContentHash(_HexName):
    """The SHA-1 of a content: 40 lower-case hex characters."""

    __slots__ = ()
    KIND = "sha1 hash"
    CHARS = 40


class Root(_HexName):
    """The BLAKE3 of a content's root object: 64 lower-case hex characters."""

    __slots__ = ()
    KIND = "root"
    CHARS = 64


def sha1_of(data: bytes) -> ContentHash:
    """The content hash of bytes that are in memory."""
    import hashlib  # 1 ms that a client which only parses a URI need not spend

    return ContentHash(hashlib.sha1(data, usedforsecurity=False).hexdigest())
