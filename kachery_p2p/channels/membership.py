"""Proving to each other, inside the secure channel, which channels both are in.

A proof is HMAC-SHA256 under the channel's key of everything that makes this meeting
unlike any other: who dialled whom, both node ids as the secure channel authenticated
them, and both sides' fresh nonces; and of the role of whoever proves. So a proof is
worth nothing to another node (other ids), later (other nonces), or sent back to its
maker (other role). It tells nothing to who lacks the key, not even the channel.

The dialler proves every channel it is in; the listener only those that it matched.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import NamedTuple

from kachery_p2p.channels.channel import Channel
from kachery_p2p.errors import ProtocolError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import CHANNELS_MAX

PROOF_TAG = b"kp2p-member/1\0"
NONCE_BYTES = 32
PROOF_BYTES = 32

DIALLER = "dialler"
LISTENER = "listener"


class Meeting(NamedTuple):
    """Two nodes on one connection, and the nonce that each chose for it."""

    dialler: NodeId
    listener: NodeId
    dialler_nonce: bytes
    listener_nonce: bytes

    def statement(self, role: str) -> bytes:
        """What the side in `role` authenticates when it proves."""
        assert role in (DIALLER, LISTENER)
        assert len(self.dialler_nonce) == len(self.listener_nonce) == NONCE_BYTES
        return b"".join(
            (
                PROOF_TAG,
                role.encode("ascii"),
                self.dialler_nonce,
                self.listener_nonce,
                self.dialler.raw,
                self.listener.raw,
            )
        )


def proofs_for(channels: Sequence[Channel], role: str, meeting: Meeting) -> list[bytes]:
    """Proofs that the side in `role` is in these channels, 32 bytes each, in their order."""
    assert len(channels) <= CHANNELS_MAX
    statement = meeting.statement(role)
    return [hmac.digest(channel.key, statement, hashlib.sha256) for channel in channels]


def matching(
    channels: Sequence[Channel],
    received: Sequence[bytes],
    role: str,
    meeting: Meeting,
) -> tuple[Channel, ...]:
    """Those of `channels` that the other side, in `role`, proved with what was `received`.

    Padding matches nothing. Takes the same time whichever proof matches: each is
    compared with each, in constant time. Raises ProtocolError for more proofs than
    there can be channels.
    """
    if len(received) > CHANNELS_MAX:
        raise ProtocolError(f"more than {CHANNELS_MAX} proofs of membership")
    expected = proofs_for(channels, role, meeting)
    return tuple(
        channel
        for channel, proof in zip(channels, expected, strict=True)
        # sum, not any: any would stop at the first match.
        if sum(hmac.compare_digest(proof, other) for other in received)
    )
