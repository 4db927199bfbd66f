from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from kachery_p2p.errors import ConfigError
from kachery_p2p.identity.keys import (
    EXCHANGE_TAG,
    NodeId,
    NodeKey,
    is_sound_key,
    verify,
    verify_exchange,
)

TAG = b"kp2p-test/1".ljust(16, b"\0")
KEY = NodeKey.generate(bytes(range(64)))
OTHER = NodeKey.generate(bytes(range(1, 65)))

FIELD_PRIME = 2**255 - 19
# The eight torsion points and their non-canonical spellings, as libsodium lists them.
SMALL_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


def test_a_node_id_is_the_public_key_of_rfc_8032() -> None:
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    key = NodeKey(seed, bytes(32))
    assert key.node_id == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert key.seed == seed


def test_a_node_id_is_read_from_hex_in_either_case() -> None:
    assert NodeId.parse(KEY.node_id.upper()) == KEY.node_id
    assert NodeId.of_raw(KEY.node_id.raw) == KEY.node_id


def test_a_node_id_is_read_from_what_libp2p_calls_it() -> None:
    # What libp2p 0.8.1 makes of the seed 00 01 ... 1f.
    theirs = "12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB"
    assert KEY.node_id.peer_id == theirs
    assert NodeId.parse(theirs) == KEY.node_id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lab",
        KEY.node_id[:-1],
        KEY.node_id + "0",
        KEY.node_id[:-1] + "g",
        " " + KEY.node_id[:-1],
        KEY.node_id[:32] + " " + KEY.node_id[33:],
        "\uff10" * 64,
        KEY.node_id.peer_id[:-1],
        "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        "1" * 10_000,
        "0OIl",
    ],
)
def test_what_is_no_node_id_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a node id") as caught:
        NodeId.parse(text)
    assert caught.value.hint
    assert len(str(caught.value)) < 400


def test_a_signature_holds_for_its_key_tag_and_body_only() -> None:
    signature = KEY.sign(TAG, b"body")
    assert verify(KEY.node_id, TAG, b"body", signature)
    assert not verify(OTHER.node_id, TAG, b"body", signature)
    assert not verify(KEY.node_id, EXCHANGE_TAG, b"body", signature)
    assert not verify(KEY.node_id, TAG, b"bodY", signature)


def test_every_flipped_bit_of_a_signature_is_noticed() -> None:
    signature = KEY.sign(TAG, b"body")
    for bit in range(512):
        bad = bytearray(signature)
        bad[bit // 8] ^= 1 << bit % 8
        assert not verify(KEY.node_id, TAG, b"body", bytes(bad))
    assert not verify(KEY.node_id, TAG, b"body", signature[:-1])
    assert not verify(KEY.node_id, TAG, b"body", b"")


@pytest.mark.parametrize("sign_bit", [0, 0x80])
@pytest.mark.parametrize("key", SMALL_ORDER)
def test_a_key_under_which_anybody_can_sign_is_refused(key: str, sign_bit: int) -> None:
    raw = bytearray.fromhex(key)
    raw[31] |= sign_bit
    node = NodeId.of_raw(bytes(raw))
    assert not is_sound_key(node.raw)
    # R = the key itself, S = 0: valid for some body under every small-order key.
    for number in range(16):
        assert not verify(node, TAG, bytes([number]), bytes(raw) + bytes(32))


def test_a_second_spelling_of_a_key_is_refused() -> None:
    for y in range(FIELD_PRIME, 2**255):
        assert not is_sound_key(y.to_bytes(32, "little"))
    assert is_sound_key(KEY.node_id.raw)


def test_the_exchange_key_is_signed_by_its_node() -> None:
    public, signature = KEY.exchange_public, KEY.exchange_signature
    assert verify_exchange(KEY.node_id, public, signature)
    assert not verify_exchange(OTHER.node_id, public, signature)
    assert not verify_exchange(KEY.node_id, OTHER.exchange_public, signature)
    assert not verify_exchange(KEY.node_id, public[:-1], signature)


def test_a_key_is_made_of_the_random_bytes_given() -> None:
    assert NodeKey.generate(bytes(range(64))).node_id == KEY.node_id
    assert KEY.exchange_secret == bytes(range(32, 64))
    assert KEY.node_id != OTHER.node_id


def test_a_key_never_shows_its_secrets() -> None:
    shown = repr(KEY) + str(KEY)
    assert KEY.node_id in shown
    assert KEY.seed.hex() not in shown
    assert KEY.exchange_secret.hex() not in shown


def test_naming_a_node_imports_no_cryptography() -> None:
    code = (
        "import sys; from kachery_p2p.identity.keys import NodeId;"
        f"NodeId.parse('{hashlib.sha256(b'').hexdigest()}');"
        "heavy = {'cryptography', 'nacl', 'base58', 'trio', 'numpy', 'libp2p', 'sqlite3', 'json'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
