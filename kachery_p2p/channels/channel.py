"""A channel as a member holds it: its name here, its id, and its keys.

An *owned* channel's id is the public key of its owner, and its history says who is a
member (`history`). Its keys come from an entry secret that every member was given; so
whoever lacks it cannot even tell which channel two nodes meet in.

In a *shared-secret* channel whoever has the secret is a member; there is no owner. The
secret is 160 random bits that kachery-p2p generated, never words that a person chose:
the proofs of membership could otherwise be guessed at offline by any node that dials
us. It is written as

    kp2p-secret-1- ‖ base32 (lower case) of 20 random bytes ‖ 4 bytes of checksum

so that a mistyped secret is noticed here, and not as a channel with nobody in it.
Id and keys are HKDF-SHA256 of secret and name (PROTOCOL.md, "Membership"). No part of
a secret or key ever appears in an error or a repr.

Imports little: the client reads this node's channels each time it stores a file.
"""

from __future__ import annotations

from typing import NamedTuple

from kachery_p2p.errors import InvalidNameError, WeakSecretError
from kachery_p2p.limits import CHANNEL_NAME_CHARS_MAX, SECRET_BITS

SECRET_PREFIX = "kp2p-secret-1-"  # noqa: S105 (not a secret)
SECRET_BYTES = SECRET_BITS // 8
KEY_BYTES = 32

_CHECKSUM_BYTES = 4
_CHECKSUM_TAG = b"kp2p-secret-1\0"
_KEY_TAG = b"kp2p-channel-key/1"
_ID_TAG = b"kp2p-channel-id/1"
_DISCOVERY_TAG = b"kp2p-channel-discovery/1"
_ENTRY_CHECK_TAG = b"kp2p-entry-check/1"
_NAME_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_.-"
_CREATE_HINT = (
    "generate one with `kachery-p2p channel create NAME --shared`, "
    "and give all of it to every member"
)


SHARED = "shared-secret"
OWNED = "owned"


class Channel(NamedTuple):
    """What a member of a channel holds."""

    # Shared-secret: part of the channel. Owned: an alias of this node's own.
    name: str
    # 64 hex digits, the same on every member.
    id: str
    # Proves that its holder knows the secret (`membership`); never sent.
    key: bytes
    # For finding other members through nodes that are none (rendezvous tags); never sent.
    discovery_key: bytes
    kind: str = SHARED

    def __repr__(self) -> str:
        return f"<Channel {self.name} {self.id[:8]}>"

    @classmethod
    def shared(cls, secret: bytes, name: str) -> Channel:
        """The channel of that name among those who share `secret` (from `parse_secret`)."""
        check_channel_name(name)
        assert len(secret) == SECRET_BYTES
        return cls(
            name=name,
            id=_derive(secret, _ID_TAG, name).hex(),
            key=_derive(secret, _KEY_TAG, name),
            discovery_key=_derive(secret, _DISCOVERY_TAG, name),
        )

    @classmethod
    def owned(cls, channel_id: str, entry_secret: bytes, name: str) -> Channel:
        """The channel of that id (its owner's public key), called `name` by this node."""
        check_channel_name(name)
        assert len(entry_secret) == SECRET_BYTES
        return cls(
            name=name,
            id=channel_id,
            key=_derive(entry_secret, _KEY_TAG, channel_id),
            discovery_key=_derive(entry_secret, _DISCOVERY_TAG, channel_id),
            kind=OWNED,
        )


def check_channel_name(name: str) -> str:
    """`name` if it can name a channel, and a file, anywhere; else InvalidNameError."""
    sized = 0 < len(name) <= CHANNEL_NAME_CHARS_MAX
    if sized and not name.strip(_NAME_ALPHABET) and name not in (".", ".."):
        return name
    raise InvalidNameError(
        f"{name[:CHANNEL_NAME_CHARS_MAX]!a} cannot name a channel",
        hint=f"use 1 to {CHANNEL_NAME_CHARS_MAX} of the letters a-z and A-Z, digits, and _ . -",
    )


def entry_check(channel_id: str, entry_secret: bytes) -> bytes:
    """32 bytes that tell whether an entry secret is that of the owned channel, and nothing else.

    The channel's history has them.
    """
    return _derive(entry_secret, _ENTRY_CHECK_TAG, channel_id)


def generate_secret(random: bytes) -> str:
    """The secret text made of SECRET_BYTES fresh random bytes (as `os.urandom` gives)."""
    assert len(random) == SECRET_BYTES
    from base64 import b32encode

    encoded = b32encode(random + _checksum(random)).decode("ascii")
    return SECRET_PREFIX + encoded.rstrip("=").lower()


def parse_secret(text: str) -> bytes:
    """The SECRET_BYTES of a generated secret; white space around it is ignored.

    Raises WeakSecretError for anything that kachery-p2p did not generate.
    """
    text = text.strip()
    if not text.startswith(SECRET_PREFIX):
        raise WeakSecretError("the channel secret is not a generated one", hint=_CREATE_HINT)
    secret = _decode(text.removeprefix(SECRET_PREFIX))[:SECRET_BYTES]
    # Encoding again also refuses the spellings that base32 would read as the same bytes.
    if len(secret) != SECRET_BYTES or generate_secret(secret) != text:
        raise WeakSecretError(
            "the channel secret was mistyped or cut off: its checksum is wrong",
            hint="copy the whole secret again: it is one word that begins with " + SECRET_PREFIX,
        )
    return secret


def _decode(encoded: str) -> bytes:
    from base64 import b32decode

    try:
        return b32decode(encoded.upper() + "=" * (-len(encoded) % 8))
    except ValueError:
        return b""


def _checksum(random: bytes) -> bytes:
    import hashlib

    return hashlib.sha256(_CHECKSUM_TAG + random).digest()[:_CHECKSUM_BYTES]


def _derive(secret: bytes, tag: bytes, name: str) -> bytes:
    """HKDF-SHA256 without salt; the info is the tag, a zero byte and the name."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = tag + b"\0" + name.encode("ascii")
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)
