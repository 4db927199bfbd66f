"""How a node is let into an access group: texts that people hand over.

    kp2p-node-1-   node 32 ‖ X25519 key 32 ‖ the node's signature 64           what to send to
    kp2p-group-1-  owner 32 ‖ random 16 ‖ u32 epoch ‖ u64 time ‖ u16 length ‖ name
                   ‖ u16 count ‖ count x (enc 32 ‖ key 32, encrypted ‖ tag 16) ‖ signature 64

Both are base64url, without padding, of these bytes and a checksum of 4, which is only for
mistypers. Numbers are big-endian. Each of the `count` is the key of the epoch, wrapped for
one member by HPKE (RFC 9180), base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256,
ChaCha20-Poly1305; `info` is "kachery-p2p group key 1" ‖ group 16 ‖ u32 epoch ‖ member 32.
They stand in the order of their bytes, so nobody learns from the text who the members are,
only how many. The signature is the owner's over "kp2p-group-keys1" ‖ all that stands before
it, and the group's id says who its owner is: so nobody else invites to it, and the text may
be sent by any way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from kachery_p2p.channels.spelling import Cursor, Speller
from kachery_p2p.errors import GroupInviteError, InvalidNameError, LogFormatError
from kachery_p2p.identity.access_groups import (
    EPOCH_BYTES,
    RANDOM_BYTES,
    Group,
    GroupId,
    armoured,
    unarmoured,
)
from kachery_p2p.identity.ed25519 import SIGNATURE_BYTES
from kachery_p2p.identity.group_files import check_group_name
from kachery_p2p.identity.keys import (
    KEY_BYTES,
    NodeId,
    NodeKey,
    verify,
    verify_exchange,
)
from kachery_p2p.limits import GROUP_EPOCHS_MAX, GROUP_INVITE_CHARS_MAX, GROUP_MEMBERS_MAX

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.hpke import Suite

CARD_PREFIX = "kp2p-node-1-"
INVITE_PREFIX = "kp2p-group-1-"
KEYS_TAG = b"kp2p-group-keys1"

_WRAP_INFO = b"kachery-p2p group key 1"
_WRAPPED_BYTES = KEY_BYTES + KEY_BYTES + 16
_NAME_CHARS_MAX = 64
_CHECKSUM_BYTES = 4
_COPY_AGAIN = "copy all of it again, or give it on stdin: `kachery-p2p group accept - < FILE`"
_ASK_AGAIN = "ask the owner of the group for a new one"


class Card(NamedTuple):
    """A node, and the X25519 key that it says is its own: whom a key can be wrapped for."""

    node: NodeId
    exchange: bytes

    @classmethod
    def text_of(cls, key: NodeKey) -> str:
        """The card of the node with this key."""
        return cls.spelled(key.node_id, key.exchange_public, key.exchange_signature)

    @classmethod
    def spelled(cls, node: NodeId, exchange: bytes, signature: bytes) -> str:
        """The card of a node that said, with this signature, that `exchange` is its key."""
        return _armoured(CARD_PREFIX, node.raw + exchange + signature)

    @classmethod
    def parse(cls, text: str) -> Card:
        """The card in `text`. GroupInviteError if it is none, or the node did not sign it."""
        cursor = Cursor(_unarmoured(CARD_PREFIX, text, "the card of a node"))
        try:
            node = NodeId.of_raw(cursor.fixed(KEY_BYTES))
            exchange, signature = cursor.fixed(KEY_BYTES), cursor.fixed(SIGNATURE_BYTES)
            cursor.end()
        except LogFormatError:
            raise _mistyped("card") from None
        if not verify_exchange(node, exchange, signature):
            raise GroupInviteError(
                "the card was not signed by the node that it names",
                hint="ask its user for what `kachery-p2p group card` prints there",
            )
        return cls(node, exchange)


class GroupInvite(NamedTuple):
    """The newest key of a group, for some of its members; any, until `parse` has verified it."""

    owner: NodeId
    random: bytes
    epoch: int
    # Seconds since 1970.
    time: int
    # As the group is called by its owner: advice for the name it gets elsewhere.
    name: str
    wraps: tuple[bytes, ...]
    signature: bytes = b""

    @classmethod
    def signed(
        cls, group: Group, name: str, members: Mapping[NodeId, bytes], key: NodeKey, now: int
    ) -> GroupInvite:
        """The invitation for these members, by their X25519 keys. `key` is the owner's.

        GroupInviteError if nothing can be wrapped for a key.
        """
        assert key.node_id == group.owner
        assert len(members) <= GROUP_MEMBERS_MAX
        wraps = tuple(sorted(_wrapped(group, node, members[node]) for node in members))
        unsigned = cls(group.owner, group.random, group.epoch, now, name, wraps)
        return unsigned._replace(signature=key.sign(KEYS_TAG, unsigned._signed_bytes()))

    def __repr__(self) -> str:
        return f"<GroupInvite to {self.group_id}, epoch {self.epoch}>"

    @property
    def group_id(self) -> GroupId:
        return GroupId.of(self.owner, self.random)

    @property
    def text(self) -> str:
        """The invitation as it is given to people."""
        return _armoured(INVITE_PREFIX, self._signed_bytes() + self.signature)

    @classmethod
    def parse(cls, text: str) -> GroupInvite:
        """The invitation in `text`, signed by the owner of its group; else GroupInviteError."""
        data = _unarmoured(INVITE_PREFIX, text, "an invitation to an access group")
        try:
            invite = cls._decode(data)
        except (LogFormatError, InvalidNameError):
            raise _mistyped("invitation") from None
        if not verify(invite.owner, KEYS_TAG, invite._signed_bytes(), invite.signature):
            raise GroupInviteError(
                "the invitation was not signed by the owner of the group", hint=_ASK_AGAIN
            )
        return invite

    def opened_by(self, key: NodeKey) -> Group:
        """The group with its newest key. GroupInviteError if it is not among those for `key`."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        secret = X25519PrivateKey.from_private_bytes(key.exchange_secret)
        info = _wrap_info(self.group_id, self.epoch, key.node_id)
        for wrapped in self.wraps:
            try:
                found = _suite().decrypt(wrapped, secret, info=info)
            except (InvalidTag, ValueError):
                continue
            if len(found) == KEY_BYTES:
                return Group(self.owner, self.random, self.epoch, self.epoch, found)
        raise GroupInviteError(
            f"the invitation to the access group {self.name} is not for this node",
            hint=f"ask node {self.owner} to add this one: `kachery-p2p group card` prints what"
            " they need",
        )

    def _signed_bytes(self) -> bytes:
        speller = Speller()
        speller.fixed(self.owner.raw, KEY_BYTES)
        speller.fixed(self.random, RANDOM_BYTES)
        speller.number(self.epoch, EPOCH_BYTES)
        speller.number(self.time, 8)
        speller.text(self.name)
        speller.number(len(self.wraps), 2)
        for wrapped in self.wraps:
            speller.fixed(wrapped, _WRAPPED_BYTES)
        return speller.spelled()

    @classmethod
    def _decode(cls, data: bytes) -> GroupInvite:
        cursor = Cursor(data)
        owner, random = NodeId.of_raw(cursor.fixed(KEY_BYTES)), cursor.fixed(RANDOM_BYTES)
        epoch, time = cursor.number(EPOCH_BYTES), cursor.number(8)
        name = check_group_name(cursor.text(_NAME_CHARS_MAX))
        count = cursor.number(2)
        if not 1 <= epoch < GROUP_EPOCHS_MAX or not 1 <= count <= GROUP_MEMBERS_MAX:
            raise LogFormatError("an epoch or a count that nobody writes")
        wraps = tuple(cursor.fixed(_WRAPPED_BYTES) for _ in range(count))
        if list(wraps) != sorted(set(wraps)):
            raise LogFormatError("wrapped keys out of order")
        signature = cursor.fixed(SIGNATURE_BYTES)
        cursor.end()
        return cls(owner, random, epoch, time, name, wraps, signature)


def _wrapped(group: Group, node: NodeId, exchange: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    info = _wrap_info(group.id, group.epoch, node)
    try:
        public = X25519PublicKey.from_public_bytes(exchange)
        return _suite().encrypt(group.key_of(group.epoch), public, info=info)
    except ValueError:
        # Of small order: the secret would be known to everybody.
        raise GroupInviteError(f"nothing can be encrypted for the key of node {node}") from None


def _wrap_info(group_id: GroupId, epoch: int, node: NodeId) -> bytes:
    return _WRAP_INFO + group_id.raw + epoch.to_bytes(EPOCH_BYTES, "big") + node.raw


def _suite() -> Suite:
    from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

    return Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


def _armoured(prefix: str, body: bytes) -> str:
    return prefix + armoured(body + _checksum(prefix, body))


def _unarmoured(prefix: str, text: str, what: str) -> bytes:
    """The bytes of a text that begins so; white space, as mail programs add it, is dropped."""
    if len(text) > 2 * GROUP_INVITE_CHARS_MAX:
        raise GroupInviteError(f"{what} has at most {GROUP_INVITE_CHARS_MAX} characters")
    text = "".join(text.split())
    if not text.startswith(prefix):
        raise GroupInviteError(f"this is not {what}", hint=f"it begins with {prefix}")
    data = unarmoured(text[len(prefix) :])
    if data is None or len(data) < _CHECKSUM_BYTES:
        raise _mistyped("text")
    body, check = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if check != _checksum(prefix, body):
        raise _mistyped("text")
    return body


def _checksum(prefix: str, body: bytes) -> bytes:
    return hashlib.sha256(prefix.encode("ascii") + body).digest()[:_CHECKSUM_BYTES]


def _mistyped(what: str) -> GroupInviteError:
    return GroupInviteError(f"the {what} was mistyped or cut off", hint=_COPY_AGAIN)
