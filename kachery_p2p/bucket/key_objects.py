"""The key object of an owned channel's encrypted bucket: its newest keys, wrapped for each reader.

    magic 6 "KPKEYS" ‖ u16 version 1 ‖ channel id 32 ‖ u32 epoch ‖ key id 16
    u64 entries of the history ‖ u64 time in ms ‖ u32 count
    count x ( tag 16 ‖ enc 32 ‖ name key 32 ‖ state 32, encrypted ‖ AEAD's tag 16 )
    signature 64, of the channel's key, over "kp2p-bucketkey/1" ‖ all that stands before it

Numbers are big-endian. Each wrap is HPKE (RFC 9180), base mode, for the reader's own X25519
key: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305; channel, epoch and reader
are its `info`. Who sent it is said by the signature. The tag, by which a reader finds its
own, is made of the X25519 key, which only members know: the bucket's operator learns how
many readers there are. Wraps stand in the order of their tags.

May be anything until `verify` has passed.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from kachery_p2p.bucket.rings import EPOCHS_MAX, Ring
from kachery_p2p.errors import SealError, StateVersionError
from kachery_p2p.identity.ed25519 import SIGNATURE_BYTES
from kachery_p2p.identity.frames import KeyId, key_id
from kachery_p2p.identity.keys import KEY_BYTES, NodeId, NodeKey, verify
from kachery_p2p.limits import BUCKET_KEYS_BYTES_MAX, MEMBERS_MAX
from kachery_p2p.log.heads import Signer

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.hpke import Suite

KEYS = "kachery-p2p-keys"
KEYS_TAG = b"kp2p-bucketkey/1"
KEYS_VERSION = 1

_MAGIC = b"KPKEYS"
_FIXED = struct.Struct(f">6sH{KEY_BYTES}sI16sQQI")
_TAG_BYTES = 16
# An X25519 key, what is wrapped, and the tag of the AEAD.
_WRAPPED_BYTES = KEY_BYTES + 2 * KEY_BYTES + 16
_ENTRY_BYTES = _TAG_BYTES + _WRAPPED_BYTES
_TAG_INFO = b"kachery-p2p bucket reader 1"
_WRAP_INFO = b"kachery-p2p bucket keys 1"


class KeyObject(NamedTuple):
    """What the keeper says: the keys are now these, for these readers."""

    channel_id: str
    epoch: int
    # Of the epoch's content key.
    key_id: KeyId
    # How long the channel's history was.
    entries: int
    time_ms: int
    # By the reader's tag.
    wraps: Mapping[bytes, bytes]
    signature: bytes = b""

    @classmethod
    def signed(
        cls,
        ring: Ring,
        readers: Mapping[NodeId, bytes],
        key: Signer,
        entries: int,
        time_ms: int,
    ) -> KeyObject:
        """The keys of `ring`, wrapped for these nodes' X25519 keys by the channel's `key`.

        A reader whose X25519 key cannot be used is left out: it has only itself harmed.
        """
        wraps = {}
        for node, exchange in readers.items():
            wrapped = _wrapped(ring, key.node_id, node, exchange)
            if wrapped is not None:
                wraps[reader_tag(key.node_id, ring.epoch, exchange)] = wrapped
        unsigned = cls(key.node_id, ring.epoch, key_id(ring.content_key), entries, time_ms, wraps)
        return unsigned._replace(signature=key.sign(KEYS_TAG, unsigned._statement()))

    def encode(self) -> bytes:
        """The bytes of the object, as they lie in the bucket."""
        assert len(self.signature) == SIGNATURE_BYTES
        return self._statement() + self.signature

    @classmethod
    def decode(cls, data: bytes) -> KeyObject:
        """What `data` spells, all of it. SealError if nothing, StateVersionError if newer."""
        if len(data) < _FIXED.size or data[: len(_MAGIC)] != _MAGIC:
            raise SealError("these are no keys of a bucket")
        _, version, channel, epoch, name, entries, time_ms, count = _FIXED.unpack_from(data)
        if version > KEYS_VERSION:
            raise StateVersionError(
                "the keys of the bucket are from a newer kachery_p2p"
                f" (format {version}, not {KEYS_VERSION})",
                hint="upgrade kachery_p2p",
            )
        end = _FIXED.size + count * _ENTRY_BYTES
        in_bounds = count <= MEMBERS_MAX and 1 <= epoch <= EPOCHS_MAX and version == KEYS_VERSION
        if not in_bounds or len(data) != end + SIGNATURE_BYTES:
            raise SealError("the keys of the bucket are damaged")
        wraps = {
            data[at : at + _TAG_BYTES]: data[at + _TAG_BYTES : at + _ENTRY_BYTES]
            for at in range(_FIXED.size, end, _ENTRY_BYTES)
        }
        if len(wraps) != count or list(wraps) != sorted(wraps):
            raise SealError("the keys of the bucket are damaged")
        told = (channel.hex(), epoch, KeyId(name), entries, time_ms)
        return cls(*told, wraps, data[end:])

    def verify(self, channel_id: str) -> None:
        """Pass if the key of that very channel signed this; else SealError."""
        if self.channel_id != channel_id:
            raise SealError("the keys are another channel's")
        if not verify(NodeId(channel_id), KEYS_TAG, self._statement(), self.signature):
            raise SealError("the keys are not signed by the channel's keeper")

    def opened(self, key: NodeKey) -> Ring | None:
        """The keys, if they are wrapped for the node with `key`; None if not for it.

        SealError if the wrap does not open.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        wrapped = self.wraps.get(reader_tag(self.channel_id, self.epoch, key.exchange_public))
        if wrapped is None:
            return None
        secret = X25519PrivateKey.from_private_bytes(key.exchange_secret)
        info = _info(self.channel_id, self.epoch, key.node_id)
        try:
            told = _suite().decrypt(wrapped, secret, info)
        except (InvalidTag, ValueError):
            raise SealError("the keys that are wrapped for this node do not open") from None
        ring = Ring(told[:KEY_BYTES], self.epoch, told[KEY_BYTES:])
        if key_id(ring.content_key) != self.key_id:
            raise SealError("the keys that are wrapped for this node are not those of the others")
        return ring

    def is_for(self, readers: Mapping[NodeId, bytes]) -> bool:
        """True if each of these, and nobody else, has a wrap here."""
        tags = (reader_tag(self.channel_id, self.epoch, key) for key in readers.values())
        return set(tags) == set(self.wraps)

    def _statement(self) -> bytes:
        channel, count = bytes.fromhex(self.channel_id), len(self.wraps)
        fixed = (channel, self.epoch, self.key_id, self.entries, self.time_ms, count)
        wraps = (tag + wrapped for tag, wrapped in sorted(self.wraps.items()))
        return _FIXED.pack(_MAGIC, KEYS_VERSION, *fixed) + b"".join(wraps)


assert _FIXED.size + MEMBERS_MAX * _ENTRY_BYTES + SIGNATURE_BYTES <= BUCKET_KEYS_BYTES_MAX


def reader_tag(channel_id: str, epoch: int, exchange: bytes) -> bytes:
    """By which the reader with this X25519 key finds what is wrapped for it."""
    told = _TAG_INFO + bytes.fromhex(channel_id) + epoch.to_bytes(4, "big") + exchange
    return hashlib.sha256(told).digest()[:_TAG_BYTES]


def _wrapped(ring: Ring, channel_id: str, node: NodeId, exchange: bytes) -> bytes | None:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    info = _info(channel_id, ring.epoch, node)
    try:
        public = X25519PublicKey.from_public_bytes(exchange)
        return bytes(_suite().encrypt(ring.name_key + ring.secret, public, info))
    except ValueError:
        # A point of small order, as nobody honest has: RFC 9180, section 7.1.4.
        return None


def _info(channel_id: str, epoch: int, node: NodeId) -> bytes:
    return _WRAP_INFO + bytes.fromhex(channel_id) + epoch.to_bytes(4, "big") + node.raw


def _suite() -> Suite:
    from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

    return Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
