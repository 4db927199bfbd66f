"""Ed25519 (RFC 8032), by libsodium: half of the time that OpenSSL takes to verify.

Every message of a feed that is followed is signed once and verified once, on its way to somebody
who waits for it.

Which signatures are valid where RFC 8032 leaves a choice (see "Taming the many EdDSAs", 2020):
the equation without the cofactor, S below the group's order, key and R canonical and not of
small order. That is libsodium's choice; the tests notice if it ever makes another.
"""

from __future__ import annotations

PUBLIC_BYTES = 32
SIGNATURE_BYTES = 64


class Signer:
    """The secret half of a key. Never shown."""

    __slots__ = ("_secret", "public")

    # The 32 bytes of the public half.
    public: bytes

    def __init__(self, seed: bytes) -> None:
        """The key made from 32 secret bytes."""
        from nacl.bindings import crypto_sign_seed_keypair

        self.public, self._secret = crypto_sign_seed_keypair(seed)

    def sign(self, message: bytes) -> bytes:
        """The signature of `message`, 64 bytes; the same each time."""
        from nacl.bindings import crypto_sign

        return crypto_sign(message, self._secret)[:SIGNATURE_BYTES]


def is_signed(public: bytes, message: bytes, signature: bytes) -> bool:
    """True if whoever holds the secret half of `public` (32 bytes) signed `message`."""
    from nacl.bindings import crypto_sign_open
    from nacl.exceptions import BadSignatureError

    # libsodium would read on behind a key that is too short.
    if len(public) != PUBLIC_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        crypto_sign_open(signature + message, public)
    except BadSignatureError:
        return False
    return True
