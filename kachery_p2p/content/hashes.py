"""Names of contents: the SHA-1, which people see, and the root, which the protocol trusts.

Every older kachery package named content by SHA-1, so `ContentHash` is what URIs
and the store directory carry. SHA-1 collisions can be made, so a content is also
named by its `Root`: the BLAKE3 of its root object (see `manifests`). Both are
plain `str` subclasses: lower-case hex of a fixed length, checked once, at the edge.
The other names are those of older packages, which this one reads but never writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kachery_p2p.errors import UriError

if TYPE_CHECKING:
    from typing import Self

HEX_DIGITS = "0123456789abcdef"
# Bitcoin's, which IPFS took over: no 0, O, I or l.
BASE58_DIGITS = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
# In front of the 32 bytes of a SHA-256: CID version 1, codec, hash function, length.
CID_RAW = bytes.fromhex("01551220")
CID_DAG_PB = bytes.fromhex("01701220")
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


class Md5(_HexName):
    """The MD5 of a content, as the first kachery could be told to use: 32 lower-case hex."""

    __slots__ = ()
    KIND = "md5 hash"
    CHARS = 32


class FeedId(_HexName):
    """The public key of a feed of kachery-p2p or kachery-client: 64 lower-case hex characters."""

    __slots__ = ()
    KIND = "feed id"
    CHARS = 64


class Cid(str):
    """The IPFS name of a content, which the first kachery-cloud used: `bafkrei...` or `Qm...`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Cid:
        """The name that `text` spells, or `UriError`: version 0, or 1 with SHA-256 in base32."""
        if len(text) == 46 and text.startswith("Qm") and not text.strip(BASE58_DIGITS):
            return cls(text)
        if (name := text.lower()) and _cid_bytes(name)[:4] in (CID_RAW, CID_DAG_PB):
            return cls(name)
        raise UriError(f"{quoted(text)} is not an IPFS hash", hint="copy the whole URI again")

    @property
    def sha256(self) -> bytes | None:
        """The SHA-256 of the content itself, or None where the name is that of a list of blocks."""
        raw = _cid_bytes(self)
        return raw[4:] if raw[:4] == CID_RAW else None


def _cid_bytes(name: str) -> bytes:
    """What a CID in lower-case base32 spells, if it has the length of ours; else nothing."""
    if len(name) != 59 or name[0] != "b":
        return b""
    import base64  # only for URIs of kachery-cloud's first year

    try:
        raw = base64.b32decode(name[1:].upper() + "======")
    except ValueError:
        return b""
    # Two bits are left over: were they not zero, one content would have four names.
    return raw if base64.b32encode(raw).rstrip(b"=").lower() == name[1:].encode() else b""


def sha1_of(data: bytes | bytearray | memoryview) -> ContentHash:
    """The content hash of bytes that are in memory."""
    import hashlib  # 1 ms that a client which only parses a URI need not spend

    return ContentHash(hashlib.sha1(data, usedforsecurity=False).hexdigest())
