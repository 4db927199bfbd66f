"""The curve of Ed25519 in plain arithmetic (RFC 8032, section 5.1), to make signatures that no
library makes: with points of small order in them, or with numbers that are too large.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

FIELD_PRIME = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, FIELD_PRIME) % FIELD_PRIME


class Point(NamedTuple):
    x: int
    y: int

    def __add__(self, other: object) -> Point:
        assert isinstance(other, Point)
        product = _D * self.x * other.x * self.y * other.y % FIELD_PRIME
        x = (self.x * other.y + self.y * other.x) * pow(1 + product, -1, FIELD_PRIME)
        y = (self.y * other.y + self.x * other.x) * pow(1 - product, -1, FIELD_PRIME)
        return Point(x % FIELD_PRIME, y % FIELD_PRIME)

    def times(self, number: int) -> Point:
        total, power = IDENTITY, self
        while number:
            if number & 1:
                total += power
            power, number = power + power, number >> 1
        return total

    def encode(self) -> bytes:
        return (self.y | (self.x & 1) << 255).to_bytes(32, "little")


def decode(encoded: bytes) -> Point:
    number = int.from_bytes(encoded, "little")
    y, odd = number & ((1 << 255) - 1), number >> 255
    square = (y * y - 1) * pow(_D * y * y + 1, -1, FIELD_PRIME) % FIELD_PRIME
    x = pow(square, (FIELD_PRIME + 3) // 8, FIELD_PRIME)
    if x * x % FIELD_PRIME != square:
        x = x * pow(2, (FIELD_PRIME - 1) // 4, FIELD_PRIME) % FIELD_PRIME
    assert x * x % FIELD_PRIME == square, "no point of the curve"
    return Point(FIELD_PRIME - x if x & 1 != odd else x, y)


IDENTITY = Point(0, 1)
BASE = decode((4 * pow(5, -1, FIELD_PRIME) % FIELD_PRIME).to_bytes(32, "little"))
# Of order 8: it generates all eight points of small order.
TORSION = decode(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"))


def challenge(r: bytes, key: bytes, message: bytes) -> int:
    """What RFC 8032 calls k."""
    return int.from_bytes(hashlib.sha512(r + key + message).digest(), "little") % ORDER


def signature(secret: int, key: Point, nonce: int, r: Point, message: bytes) -> bytes:
    """R, and the S that whoever knows the secret number and the nonce finds for it."""
    encoded = r.encode()
    s = (nonce + challenge(encoded, key.encode(), message) * secret) % ORDER
    return encoded + s.to_bytes(32, "little")
