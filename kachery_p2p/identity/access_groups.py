"""Access groups: a key that the members hold, and short texts encrypted with it.

A group belongs to the node that made it. Its id says so: base32 (RFC 4648, lower case, no
padding) of the first 16 bytes of SHA-256("kp2p-access-grp1" ‖ owner 32 ‖ random 16), so
nobody else can sign for it. When a member is removed, the others are given the key of the
next epoch. Keys are made beforehand, from the last epoch back: the key of epoch e - 1 is
HKDF-Expand(key of epoch e, "kachery-p2p group older 1"). So whoever has a key can make
those of all epochs before it, and of none after ("Key Regression", Fu, Kamara, Kohno 2006).

    code   "kpe1" ‖ base64url, without padding, of u32 epoch ‖ salt 16 ‖ encrypted ‖ tag 16

is encrypted with ChaCha20-Poly1305 under HKDF-Expand(epoch's key, "kachery-p2p group uri 1"
‖ group 16 ‖ u32 epoch ‖ salt), with nonce 0. The salt is the first half of HMAC-SHA256 of
the same, without salt, and the text, under HKDF-Expand(epoch's key, "kachery-p2p group salt
1"): one text has one code, other texts another key (as in RFC 5297). HKDF-Expand is that of
RFC 5869, 32 bytes long. Numbers are big-endian.
"""

from __future__ import annotations

import binascii
import hmac
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from kachery_p2p.errors import (
    AccessGroupError,
    NotInAccessGroupError,
    SealError,
    UnknownSchemeError,
)
from kachery_p2p.identity.keys import KEY_BYTES, NodeId
from kachery_p2p.limits import GROUP_EPOCHS_MAX

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

GROUP_BYTES = 16
GROUP_CHARS = 26
RANDOM_BYTES = 16
EPOCH_BYTES = 4
# How a code begins that was made here. Those of kachery-cloud are hex.
CODE_START = "kpe1"

_ID_TAG = b"kp2p-access-grp1"
_OLDER = b"kachery-p2p group older 1"
_SALT = b"kachery-p2p group salt 1"
_CODE = b"kachery-p2p group uri 1"
_SALT_BYTES = 16
_TAG_BYTES = 16
_NONCE = bytes(12)
_ASK_OWNER = "ask its owner, node {owner}, for the line that `kachery-p2p group invite` prints"


class GroupId(str):
    """A group's name in URIs: 26 lower-case letters and digits."""

    __slots__ = ()

    @classmethod
    def of(cls, owner: NodeId, random: bytes) -> GroupId:
        """The id of the group that `owner` made with these RANDOM_BYTES."""
        from base64 import b32encode

        assert len(random) == RANDOM_BYTES
        digest = sha256(_ID_TAG + owner.raw + random).digest()[:GROUP_BYTES]
        return cls(b32encode(digest).decode("ascii").rstrip("=").lower())

    @property
    def raw(self) -> bytes:
        """The 16 bytes that it spells."""
        from base64 import b32decode

        return b32decode(self.upper() + "======")


class Group(NamedTuple):
    """A group, and the keys of it that this node holds."""

    owner: NodeId
    random: bytes
    # The newest epoch that things are encrypted for.
    epoch: int
    # The key of epoch `top`, from which those of all before follow. Who made the group has
    # that of the last epoch there will be.
    top: int
    key: bytes

    @classmethod
    def new(cls, owner: NodeId, random: bytes, key: bytes) -> Group:
        """A group in its first epoch, made of RANDOM_BYTES and KEY_BYTES random bytes."""
        assert len(random) == RANDOM_BYTES
        assert len(key) == KEY_BYTES
        return cls(owner, random, 1, GROUP_EPOCHS_MAX, key)

    def __repr__(self) -> str:
        return f"<Group {self.id}, epoch {self.epoch}>"

    @property
    def id(self) -> GroupId:
        return GroupId.of(self.owner, self.random)

    @property
    def is_own(self) -> bool:
        """Whether later keys can be made of this one, which only who made the group has."""
        return self.top == GROUP_EPOCHS_MAX

    def key_of(self, epoch: int) -> bytes:
        """The key of an epoch up to the newest one."""
        assert 1 <= epoch <= self.top
        return older_key(self.key, self.top - epoch)

    def next_epoch(self) -> Group:
        """The group after a member was removed. AccessGroupError if that was once too often."""
        assert self.is_own
        if self.epoch + 1 >= self.top:
            raise AccessGroupError(
                f"a group can have {GROUP_EPOCHS_MAX - 2} members removed, and this one had",
                hint="make a new group",
            )
        return self._replace(epoch=self.epoch + 1)

    def encrypt(self, text: bytes) -> str:
        """The code of `text`, for all who hold the key of the newest epoch."""
        epoch, key = self.epoch, self.key_of(self.epoch)
        about = self.id.raw + epoch.to_bytes(EPOCH_BYTES, "big")
        salt = hmac.digest(expand(key, _SALT), about + text, "sha256")[:_SALT_BYTES]
        sealed = _cipher(key, about + salt).encrypt(_NONCE, text, None)
        return CODE_START + armoured(about[GROUP_BYTES:] + salt + sealed)

    def decrypt(self, code: str) -> bytes:
        """What the code says.

        NotInAccessGroupError if it was made in a later epoch; SealError if it was changed,
        or made for another group; UnknownSchemeError if it is none of ours.
        """
        epoch, salt, sealed = _read(code)
        if epoch > self.epoch:
            raise NotInAccessGroupError(
                f"this was encrypted with a newer key of the access group {self.id} "
                f"(epoch {epoch}; this node holds those up to {self.epoch})",
                hint=_ASK_OWNER.format(owner=self.owner),
            )
        from cryptography.exceptions import InvalidTag

        about = self.id.raw + epoch.to_bytes(EPOCH_BYTES, "big") + salt
        try:
            return _cipher(self.key_of(epoch), about).decrypt(_NONCE, sealed, None)
        except InvalidTag:
            raise _damaged() from None


def is_code(code: str) -> bool:
    """Whether a code says that it is one of ours."""
    return code.startswith(CODE_START)


def code_epoch(code: str) -> int:
    """In which epoch the code was made. Raises as `Group.decrypt`."""
    return _read(code)[0]


def older_key(key: bytes, epochs: int) -> bytes:
    """The key of so many epochs before that of `key`."""
    for _ in range(epochs):
        key = expand(key, _OLDER)
    return key


def expand(key: bytes, info: bytes) -> bytes:
    """32 bytes for the purpose `info`: HKDF-Expand of RFC 5869 with SHA-256."""
    assert len(key) == KEY_BYTES
    return hmac.digest(key, info + b"\x01", "sha256")


def armoured(data: bytes) -> str:
    """base64url without padding."""
    from base64 import urlsafe_b64encode

    return urlsafe_b64encode(data).decode("ascii").rstrip("=")


def unarmoured(text: str) -> bytes | None:
    """The bytes that `text` armours; None if no bytes are spelled so."""
    from base64 import b64decode

    try:
        data = b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    # Unused bits at the end would let one content have several spellings.
    return data if armoured(data) == text else None


def _read(code: str) -> tuple[int, bytes, bytes]:
    if not is_code(code):
        raise UnknownSchemeError(
            "the URI was encrypted by another program, or a newer kachery_p2p",
            hint="upgrade kachery_p2p, or ask its author for the sha1:// URI",
        )
    data = unarmoured(code[len(CODE_START) :])
    if data is None or len(data) < EPOCH_BYTES + _SALT_BYTES + _TAG_BYTES:
        raise _damaged()
    epoch = int.from_bytes(data[:EPOCH_BYTES], "big")
    if not 1 <= epoch < GROUP_EPOCHS_MAX:
        raise _damaged()
    salted = EPOCH_BYTES + _SALT_BYTES
    return epoch, data[EPOCH_BYTES:salted], data[salted:]


def _damaged() -> SealError:
    return SealError(
        "the encrypted URI was mistyped, cut off or changed", hint="copy the whole URI again"
    )


def _cipher(key: bytes, about: bytes) -> ChaCha20Poly1305:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    return ChaCha20Poly1305(expand(key, _CODE + about))
