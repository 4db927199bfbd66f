"""Who a node is: its public key as a name, and the secret keys behind the name.

A node's name is its Ed25519 public key in 64 hex digits, as in every kachery. The
same key is its libp2p identity, so the secure channel proves the very name that
channels list as a member. Everything signed carries a 16-byte tag in front of its
body, one tag per kind of statement: a signature given for one purpose can never be
shown for another.

Naming nodes is light (the client does it); the cryptography is imported by the
first signature.
"""

from __future__ import annotations

from functools import lru_cache

from kachery_p2p.errors import ConfigError
from kachery_p2p.identity.ed25519 import Signer, is_signed

KEY_BYTES = 32
TAG_BYTES = 16
# Random bytes behind one NodeKey: the seed of its signing key, then its exchange secret.
NODE_KEY_BYTES = 2 * KEY_BYTES

EXCHANGE_TAG = b"kp2p-exchange/1\0"

# libp2p writes an Ed25519 peer id as base58 of the identity multihash (00, 36 bytes)
# of the key's protobuf (field 1 type: 1 = Ed25519; field 2 data: 32 bytes).
_PEER_ID_PREFIX = bytes.fromhex("002408011220")
_PEER_ID_CHARS_MAX = 64

_FIELD_PRIME = 2**255 - 19
# The y coordinates of the eight points whose order divides 8 (RFC 7748, section 7, and
# "Taming the many EdDSAs", table 1). With such a key some signatures verify for anybody.
_SMALL_ORDER_Y = frozenset(
    (
        0,
        1,
        _FIELD_PRIME - 1,
        0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
        0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
    )
)


class NodeId(str):
    """A node's name: its Ed25519 public key as 64 lower-case hex digits."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> NodeId:
        """The node named by 64 hex digits or by a libp2p peer id (`12D3Koo...`).

        Raises ConfigError for anything else.
        """
        raw = _of_hex(text) or _of_peer_id(text)
        if raw is None:
            raise ConfigError(
                f"{text[:80]!r} is not a node id",
                hint="a node id is 64 hex digits: `kachery-p2p node-id` prints a node's own",
            )
        return cls.of_raw(raw)

    @classmethod
    def of_raw(cls, raw: bytes) -> NodeId:
        """The name of the node with these 32 bytes of public key."""
        if len(raw) != KEY_BYTES:
            raise ConfigError(f"a node's public key has {KEY_BYTES} bytes, not {len(raw)}")
        return cls(raw.hex())

    @property
    def raw(self) -> bytes:
        """The 32 bytes of the public key."""
        return bytes.fromhex(self)

    @property
    def peer_id(self) -> str:
        """The same name as libp2p writes it, in base58."""
        import base58

        return str(base58.b58encode(_PEER_ID_PREFIX + self.raw).decode("ascii"))


def _of_hex(text: str) -> bytes | None:
    if len(text) != 2 * KEY_BYTES or not text.isascii() or not text.isalnum():
        return None
    try:
        return bytes.fromhex(text)
    except ValueError:
        return None


def _of_peer_id(text: str) -> bytes | None:
    import base58

    # base58 decoding is quadratic, so its input is bounded before it is read.
    if not 0 < len(text) <= _PEER_ID_CHARS_MAX or not text.isascii():
        return None
    try:
        decoded = bytes(base58.b58decode(text))
    except ValueError:
        return None
    if len(decoded) != len(_PEER_ID_PREFIX) + KEY_BYTES or not decoded.startswith(_PEER_ID_PREFIX):
        return None
    return decoded[len(_PEER_ID_PREFIX) :]


class NodeKey:
    """The two secret keys of one node: Ed25519 to sign, X25519 to be sent secrets.

    Never shown: `repr` gives the public name only.
    """

    __slots__ = ("_exchange_secret", "_seed", "_signer", "node_id")

    node_id: NodeId

    def __init__(self, seed: bytes, exchange_secret: bytes) -> None:
        assert len(seed) == len(exchange_secret) == KEY_BYTES
        self._seed = seed
        self._exchange_secret = exchange_secret
        self._signer = Signer(seed)
        self.node_id = NodeId.of_raw(self._signer.public)

    @classmethod
    def generate(cls, random: bytes) -> NodeKey:
        """The key made from NODE_KEY_BYTES secret random bytes (as `os.urandom` gives)."""
        assert len(random) == NODE_KEY_BYTES
        return cls(random[:KEY_BYTES], random[KEY_BYTES:])

    def __repr__(self) -> str:
        return f"<NodeKey of {self.node_id}>"

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes of the signing key, as libp2p wants them."""
        return self._seed

    @property
    def exchange_secret(self) -> bytes:
        """The 32 secret bytes of the X25519 key."""
        return self._exchange_secret

    @property
    def exchange_public(self) -> bytes:
        """The 32 public bytes of the X25519 key: what others encrypt to."""
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        secret = X25519PrivateKey.from_private_bytes(self._exchange_secret)
        return secret.public_key().public_bytes_raw()

    @property
    def exchange_signature(self) -> bytes:
        """This node's word that `exchange_public` is its own; see `verify_exchange`."""
        return self.sign(EXCHANGE_TAG, self.exchange_public)

    def sign(self, tag: bytes, body: bytes) -> bytes:
        """The 64-byte signature of `body` as a statement of the kind `tag` (16 bytes)."""
        assert len(tag) == TAG_BYTES
        return self._signer.sign(tag + body)


def verify(node_id: NodeId, tag: bytes, body: bytes, signature: bytes) -> bool:
    """True if `node_id` signed `body` as a statement of the kind `tag` (16 bytes)."""
    assert len(tag) == TAG_BYTES
    key = _sound_key(node_id)
    return key is not None and is_signed(key, tag + body, signature)


# Each message of a feed that is followed is verified with the same key; one takes 0.3 KB.
@lru_cache(maxsize=256)
def _sound_key(node_id: NodeId) -> bytes | None:
    """The key behind the name; None if it is one under which anybody could sign."""
    raw = node_id.raw
    return raw if is_sound_key(raw) else None


def verify_exchange(node_id: NodeId, exchange_public: bytes, signature: bytes) -> bool:
    """True if `node_id` says that `exchange_public` is its X25519 key."""
    return len(exchange_public) == KEY_BYTES and verify(
        node_id, EXCHANGE_TAG, exchange_public, signature
    )


def is_sound_key(raw: bytes) -> bool:
    """False for a public key that nobody honest has: of small order, or not canonical.

    Under a small-order key a signature can be made without any secret; a non-canonical key
    is a second spelling of another node's name. Not left to the library: OpenSSL takes both.
    """
    y = int.from_bytes(raw, "little") & ((1 << 255) - 1)
    return len(raw) == KEY_BYTES and y < _FIELD_PRIME and y not in _SMALL_ORDER_Y
