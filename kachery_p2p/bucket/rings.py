"""The keys of an encrypted bucket: one for the names of its objects, one for each epoch.

In an owned channel an epoch has a *state* of 32 bytes, from which its content key is made,
and from which the state of the epoch before it follows, but not that of the next (Fu, Kamara
and Kohno, "Key Regression", NDSS 2006). So whoever is given the newest state can open
all that was ever put there, and whoever lost access goes on to open what it could open
then, and nothing newer. The states follow from the channel's own key: what the bucket
loses, the keeper makes again.

In a channel with a shared secret both keys follow from the secret, and stay: epoch 0.
"""

from __future__ import annotations

import hmac
import threading
from typing import Protocol

from kachery_p2p.identity.frames import KeyId, key_id
from kachery_p2p.identity.keys import KEY_BYTES
from kachery_p2p.limits import CHANNEL_ENTRIES_MAX

SHARED_EPOCH = 0
# More than a history can have entries, each of which begins one at most.
EPOCHS_MAX = CHANNEL_ENTRIES_MAX + 1
STORED = "e"

_STATE_INFO = b"kachery-p2p bucket state 1"
_CONTENT_INFO = b"kachery-p2p bucket content 1"
_LAST_STATE_INFO = b"kachery-p2p bucket last state 1"
_NAME_INFO = b"kachery-p2p bucket name 1"


class Deriving(Protocol):
    """A secret key from which others are made: a channel's."""

    def derive(self, info: bytes) -> bytes:
        """32 bytes for the purpose `info`, which tell nothing of the key."""


class Ring:
    """The keys that this node has of one bucket. Safe in several threads; shows nothing."""

    def __init__(self, name_key: bytes, epoch: int, secret: bytes) -> None:
        """`secret` is the state of `epoch`, or the content key itself in SHARED_EPOCH."""
        assert len(name_key) == len(secret) == KEY_BYTES
        assert SHARED_EPOCH <= epoch <= EPOCHS_MAX
        self.name_key = name_key
        self.epoch = epoch
        self.secret = secret
        # With which new objects are sealed.
        self.content_key = secret if epoch == SHARED_EPOCH else _content_key(secret)
        self._known = {key_id(self.content_key): self.content_key}
        self._older = (epoch, secret)
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Ring of epoch {self.epoch}>"

    def key_named(self, name: KeyId) -> bytes | None:
        """The content key of this id, of this epoch or one before; None if it is none of them."""
        with self._lock:
            epoch, state = self._older
            while name not in self._known and epoch > 1:
                epoch, state = epoch - 1, _state_before(state)
                key = _content_key(state)
                self._known[key_id(key)] = key
            self._older = (epoch, state)
            return self._known.get(name)

    def stored_name(self, key: str) -> str:
        """Under which name an object of that key lies in the bucket."""
        name = hmac.digest(self.name_key, key.encode(), "sha256").hex()
        return f"{STORED}/{name[:2]}/{name}"


def ring_of_secret(secret: bytes, name: str) -> Ring:
    """The keys of the channel `name` of those who share `secret`."""
    label = b"\0" + name.encode("ascii")
    name_key, content_key = (_hkdf(secret, info + label) for info in (_NAME_INFO, _CONTENT_INFO))
    return Ring(name_key, SHARED_EPOCH, content_key)


def ring_of_keeper(channel_key: Deriving, epoch: int) -> Ring:
    """The keys that an owned channel has in `epoch`. Takes 0.1 s."""
    assert 1 <= epoch <= EPOCHS_MAX
    state = channel_key.derive(_LAST_STATE_INFO)
    for _ in range(EPOCHS_MAX - epoch):
        state = _state_before(state)
    return Ring(channel_key.derive(_NAME_INFO), epoch, state)


def _state_before(state: bytes) -> bytes:
    """HKDF-Expand (RFC 5869) of one block, for which `cryptography` takes ten times as long."""
    return hmac.digest(state, _STATE_INFO + b"\1", "sha256")


def _content_key(state: bytes) -> bytes:
    return hmac.digest(state, _CONTENT_INFO + b"\1", "sha256")


def _hkdf(secret: bytes, info: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)
