"""Signatures that everybody makes, and those that only somebody odd would."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kachery_p2p.identity.ed25519 import Signer, is_signed
from tests.identity.edwards import (
    BASE,
    IDENTITY,
    ORDER,
    TORSION,
    Point,
    challenge,
    decode,
    signature,
)

SEED = bytes(range(32))
MESSAGE = b"a message"
NONCE = 0x5EED
# What the seed stands for (RFC 8032, section 5.1.5).
SECRET = int.from_bytes(hashlib.sha512(SEED).digest()[:32], "little") & ((1 << 254) - 8) | 1 << 254
KEY = BASE.times(SECRET)
# Section 7.1: seed, public key, message, signature.
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]


@pytest.mark.parametrize("vector", RFC_8032)
def test_the_vectors_of_the_standard(vector: tuple[str, str, str, str]) -> None:
    seed, public, message, expected = (bytes.fromhex(part) for part in vector)
    signer = Signer(seed)
    assert signer.public == public
    assert signer.sign(message) == expected
    assert is_signed(public, message, expected)
    assert not is_signed(public, message + b"\0", expected)


def test_what_openssl_signs_is_the_same() -> None:
    signer, theirs = Signer(SEED), Ed25519PrivateKey.from_private_bytes(SEED)
    for size in (0, 1, 133, 100_000):
        message = bytes(size)
        made = signer.sign(message)
        assert made == theirs.sign(message)
        theirs.public_key().verify(made, message)
        assert is_signed(signer.public, message, made)


def test_a_signature_of_another_length_is_none() -> None:
    signer = Signer(SEED)
    made = signer.sign(MESSAGE)
    # Read as one string, each of these would be a signature and its message.
    assert not is_signed(signer.public, MESSAGE[1:], made + MESSAGE[:1])
    assert not is_signed(signer.public, made[63:] + MESSAGE, made[:63])
    assert not is_signed(signer.public, made + MESSAGE, b"")


def test_what_is_no_point_of_the_curve_is_nobodys_key() -> None:
    made = Signer(SEED).sign(MESSAGE)
    off = (2).to_bytes(32, "little")
    with pytest.raises(AssertionError):
        decode(off)
    assert not is_signed(off, MESSAGE, made)
    assert not is_signed(KEY.encode(), MESSAGE, off + made[32:])


def test_the_arithmetic_here_makes_signatures_that_hold() -> None:
    """Or the refusals below would show nothing."""
    assert KEY.encode() == Signer(SEED).public
    assert TORSION.times(8) == IDENTITY != TORSION.times(4)
    assert is_signed(KEY.encode(), MESSAGE, honest())


def test_a_second_s_for_the_same_signature_is_refused() -> None:
    made = honest()
    s = int.from_bytes(made[32:], "little")
    for more in range(ORDER, 2**256 - s, ORDER):
        assert not is_signed(KEY.encode(), MESSAGE, made[:32] + (s + more).to_bytes(32, "little"))


@pytest.mark.parametrize("turns", range(1, 8))
def test_a_point_of_small_order_does_not_hide_in_r(turns: int) -> None:
    """It would hold if both sides of the equation were multiplied by eight."""
    r = BASE.times(NONCE) + TORSION.times(turns)
    assert not is_signed(KEY.encode(), MESSAGE, signature(SECRET, KEY, NONCE, r, MESSAGE))


def test_an_r_of_small_order_is_refused() -> None:
    made = signature(SECRET, KEY, 0, IDENTITY, MESSAGE)
    # Without that rule it would hold: S times the base point is k times the key.
    s = int.from_bytes(made[32:], "little")
    assert BASE.times(s) == KEY.times(challenge(made[:32], KEY.encode(), MESSAGE))
    assert not is_signed(KEY.encode(), MESSAGE, made)


def test_a_key_of_small_order_is_refused() -> None:
    for turns in range(8):
        key = TORSION.times(turns)
        for number in range(16):
            made = signature(0, key, NONCE, BASE.times(NONCE), bytes([number]))
            assert not is_signed(key.encode(), bytes([number]), made)


@pytest.mark.parametrize("turns", [1, 2, 4])
def test_of_a_key_with_a_part_of_small_order_the_equation_has_no_cofactor(turns: int) -> None:
    """Its owner alone can make such a key; both outcomes are the ones of RFC 8032's equation."""
    part = TORSION.times(turns)
    key = KEY + part
    outcomes = set()
    for number in range(24):
        message = bytes([number])
        made = signature(SECRET, key, NONCE, BASE.times(NONCE), message)
        holds = holds_without_cofactor(key, message, made)
        assert is_signed(key.encode(), message, made) == holds
        outcomes.add(holds)
    assert outcomes == {True, False}


def honest() -> bytes:
    return signature(SECRET, KEY, NONCE, BASE.times(NONCE), MESSAGE)


def holds_without_cofactor(key: Point, message: bytes, made: bytes) -> bool:
    s = int.from_bytes(made[32:], "little")
    k = challenge(made[:32], key.encode(), message)
    return BASE.times(s) == decode(made[:32]) + key.times(k)
