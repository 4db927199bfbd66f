"""The first words of a conversation: both say hello, then both prove.

    dialler   hello >            < hello   listener
              proofs >           < proofs  (for the channels that it matched)

A hello names the versions that its side speaks, a fresh nonce and the node's X25519
key, signed. Proofs (made in `channels.membership`) are 32 bytes each and look random
to whoever lacks the channel's key. They travel padded with random bytes, and sorted,
so that neither how many channels a node is in nor which of them matched can be seen:
the dialler pads to a multiple of PROOFS_GROUP, the listener to as many as it got.

Pure: the nonce and the padding are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kachery_p2p.channels.membership import DIALLER as DIALLER
from kachery_p2p.channels.membership import LISTENER as LISTENER
from kachery_p2p.channels.membership import NONCE_BYTES as NONCE_BYTES
from kachery_p2p.channels.membership import PROOF_BYTES as PROOF_BYTES
from kachery_p2p.errors import ProtocolError, ProtocolVersionError
from kachery_p2p.limits import CHANNELS_MAX, PROOFS_GROUP
from kachery_p2p.wire.codec import Message
from kachery_p2p.wire.messages import Fields, bytes_of, check_message, integer, list_of

MAGIC = "kachery-p2p"
VERSION = 1
VERSION_MIN = 1
_VERSION_MAX = (1 << 16) - 1

EXCHANGE_BYTES = 32
EXCHANGE_SIGNATURE_BYTES = 64
# Enough random bytes for `pad_proofs`, whoever calls it.
PADDING_BYTES = CHANNELS_MAX * PROOF_BYTES


class Versions(NamedTuple):
    """The versions of the protocol that one side speaks, newest and oldest."""

    newest: int = VERSION
    oldest: int = VERSION_MIN


class Hello(NamedTuple):
    """What one side says of itself before anything is proved.

    The secure channel below already proved the node's id; whether that node signed
    `exchange` is for the session to verify (`identity.keys.verify_exchange`).
    """

    nonce: bytes
    exchange: bytes
    exchange_signature: bytes
    versions: Versions = Versions()

    def message(self) -> Message:
        return {
            "magic": MAGIC,
            "version": self.versions.newest,
            "version_min": self.versions.oldest,
            "nonce": self.nonce,
            "exchange": self.exchange,
            "exchange_signature": self.exchange_signature,
        }


_VERSION_FIELDS: Fields = {
    "version": integer(1, _VERSION_MAX),
    "version_min": integer(1, _VERSION_MAX),
}
_HELLO_FIELDS: Fields = {
    "nonce": bytes_of(NONCE_BYTES, NONCE_BYTES),
    "exchange": bytes_of(EXCHANGE_BYTES, EXCHANGE_BYTES),
    "exchange_signature": bytes_of(EXCHANGE_SIGNATURE_BYTES, EXCHANGE_SIGNATURE_BYTES),
}
_PROOFS_FIELDS: Fields = {
    "proofs": list_of(bytes_of(PROOF_BYTES, PROOF_BYTES), CHANNELS_MAX),
}


def read_versions(message: Message) -> Versions:
    """The versions in a hello, or ProtocolError.

    Read before the rest, which other versions may have changed.
    """
    if message.get("magic") != MAGIC:
        raise ProtocolError("the first message is no hello of this protocol")
    found = check_message("a hello", _VERSION_FIELDS, message)
    versions = Versions(found["version"], found["version_min"])
    if versions.oldest > versions.newest:
        raise ProtocolError("a hello with its versions the wrong way round")
    return versions


def read_hello(message: Message) -> Hello:
    """The hello in a first message whose versions are spoken here, or ProtocolError."""
    found = check_message("a hello", _HELLO_FIELDS, message)
    return Hello(**found, versions=read_versions(message))


def older_side(ours: Versions, theirs: Versions, role: str) -> str | None:
    """The role of the side to upgrade if no version is spoken by both; `role` is ours."""
    if theirs.oldest > ours.newest:
        return role
    return other(role) if ours.oldest > theirs.newest else None


def other(role: str) -> str:
    """The role of the other side."""
    return LISTENER if role == DIALLER else DIALLER


def version_error(*, upgrade_us: bool) -> ProtocolVersionError:
    """The error that says which side to upgrade."""
    if upgrade_us:
        return ProtocolVersionError(
            "the peer speaks only newer versions of the protocol than this node",
            hint="upgrade kachery-p2p on this computer",
        )
    return ProtocolVersionError(
        "the peer speaks only older versions of the protocol than this node",
        hint="ask the peer's owner to upgrade kachery-p2p",
    )


def pad_proofs(proofs: Sequence[bytes], count: int, random: bytes) -> list[bytes]:
    """`proofs` and random bytes, `count` in all, in an order that tells nothing.

    `random` is PADDING_BYTES fresh random bytes.
    """
    assert len(proofs) <= count <= CHANNELS_MAX
    assert len(random) == PADDING_BYTES
    missing = range(count - len(proofs))
    padding = [random[PROOF_BYTES * i : PROOF_BYTES * (i + 1)] for i in missing]
    # To whoever cannot check them all of these are random, so sorting shuffles them.
    return sorted([*proofs, *padding])


def padded_count(proofs: int) -> int:
    """How many proofs a dialler sends if it has this many: the next multiple, and never none."""
    return max(1, -(-proofs // PROOFS_GROUP)) * PROOFS_GROUP


def read_proofs(message: Message, count: int | None) -> tuple[bytes, ...]:
    """The proofs in a message, or ProtocolError. `count` is how many are due, if that is known."""
    found = check_message("proofs", _PROOFS_FIELDS, message)["proofs"]
    if count is None:
        if not found or len(found) % PROOFS_GROUP:
            raise ProtocolError(f"proofs that are no multiple of {PROOFS_GROUP}")
    elif len(found) != count:
        raise ProtocolError("not as many proofs back as were sent")
    return tuple(found)
