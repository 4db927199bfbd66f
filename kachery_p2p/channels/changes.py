"""The entries of an owned channel's history: one change each, and who asked for it.

    payload   by 32 ‖ request 16 ‖ body          the body as the entry's type has it

`by` is the node that asked, `request` 16 random bytes which the history has once, so that
an admin's signed request cannot be played back to the keeper. `change_kinds` has the bodies.

Only the holder of the channel's key adds entries, so what is in a history is believed
because that key signed it; the checks here keep what is said within what everybody can
read, show and store.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from kachery_p2p.channels.change_kinds import Change as Change
from kachery_p2p.channels.change_kinds import Created as Created
from kachery_p2p.channels.change_kinds import HandedOver as HandedOver
from kachery_p2p.channels.change_kinds import KeeperMoved as KeeperMoved
from kachery_p2p.channels.change_kinds import Member as Member
from kachery_p2p.channels.change_kinds import MemberRemoved as MemberRemoved
from kachery_p2p.channels.change_kinds import MemberSet as MemberSet
from kachery_p2p.channels.change_kinds import SettingsSet as SettingsSet
from kachery_p2p.channels.change_kinds import Succeeds as Succeeds
from kachery_p2p.channels.change_kinds import SuccessorNamed as SuccessorNamed
from kachery_p2p.channels.change_kinds import Unknown as Unknown
from kachery_p2p.channels.change_kinds import decode_body, encode_body
from kachery_p2p.errors import LogFormatError
from kachery_p2p.identity.ed25519 import SIGNATURE_BYTES
from kachery_p2p.identity.keys import KEY_BYTES, TAG_BYTES, NodeId, verify
from kachery_p2p.limits import (
    ADMIN_REQUEST_S_MAX,
    CHANGE_BYTES_MAX,
    CLOCK_SLACK_S,
    LOG_TIME_MS_MAX,
)
from kachery_p2p.log.entries import Entry
from kachery_p2p.log.heads import Signer

REQUEST_BYTES = 16
REQUEST_TAG = b"kp2p-chan-req/1\0"

_ORIGIN_BYTES = KEY_BYTES + REQUEST_BYTES
# Channel, request, time, who asks, type, and the length of the body, after the tag.
_REQUEST = struct.Struct(f">{KEY_BYTES}s{REQUEST_BYTES}sQ{KEY_BYTES}sBI")


class Recorded(NamedTuple):
    """One entry: the change, who asked for it, with which request, and when it was signed."""

    change: Change
    by: NodeId
    request: bytes
    time_ms: int


def encode_change(change: Change, by: NodeId, request: bytes) -> tuple[int, bytes]:
    """The type and payload of the entry that records `change`.

    LogFormatError if it says what no reader would accept (a label with control characters,
    too many addresses, ...): part of it may come from a user or an admin.
    """
    assert len(request) == REQUEST_BYTES
    kind, body = encode_body(change)
    return kind, by.raw + request + body


def decode_change(entry: Entry) -> Recorded:
    """What the entry of a history says. LogFormatError if it says nothing that we can read."""
    payload = entry.payload
    if not _ORIGIN_BYTES <= len(payload) <= CHANGE_BYTES_MAX:
        raise LogFormatError(f"a change cannot have {len(payload)} bytes")
    by = NodeId(payload[:KEY_BYTES].hex())
    request = payload[KEY_BYTES:_ORIGIN_BYTES]
    change = decode_body(entry.type, payload[_ORIGIN_BYTES:])
    return Recorded(change, by, request, entry.time_ms)


# --- an admin's signed request -----------------------------------------------------------------


class SignedRequest(NamedTuple):
    """A change that a node asks the keeper for. May be anything until `verify` has passed."""

    channel_id: str
    request: bytes
    time_ms: int
    by: NodeId
    change: Change
    signature: bytes

    @classmethod
    def signed(
        cls, channel_id: str, change: Change, key: Signer, request: bytes, time_ms: int
    ) -> SignedRequest:
        """The request of the node with `key`; `request` is 16 fresh random bytes."""
        unsigned = cls(channel_id, request, time_ms, key.node_id, change, b"")
        return unsigned._replace(signature=key.sign(REQUEST_TAG, unsigned._statement()))

    def encode(self) -> bytes:
        """The bytes of the request, as it is sent and kept."""
        return REQUEST_TAG + self._statement() + self.signature

    @classmethod
    def decode(cls, data: bytes) -> SignedRequest:
        """The request that `data` spells, all of it; LogFormatError if none."""
        fixed = TAG_BYTES + _REQUEST.size
        if not fixed + SIGNATURE_BYTES <= len(data) <= CHANGE_BYTES_MAX:
            raise LogFormatError(f"a request for a change cannot have {len(data)} bytes")
        if data[:TAG_BYTES] != REQUEST_TAG:
            raise LogFormatError("the bytes are not a request for a change")
        channel, request, time_ms, by, kind, length = _REQUEST.unpack_from(data, TAG_BYTES)
        if time_ms > LOG_TIME_MS_MAX or len(data) != fixed + length + SIGNATURE_BYTES:
            raise LogFormatError("a request for a change with an impossible time or length")
        change = decode_body(kind, data[fixed : fixed + length])
        if isinstance(change, Unknown):
            raise LogFormatError(
                f"a request for a change of a kind that is not known here ({kind})",
                hint="upgrade kachery-p2p on the keeper's computer",
            )
        signature = data[fixed + length :]
        return cls(channel.hex(), request, time_ms, NodeId(by.hex()), change, signature)

    def verify(self, channel_id: str, now_ms: int) -> None:
        """Pass if `by` asked this of the channel's keeper, not long ago; else LogFormatError.

        Whether `by` may ask for it is another question: `Roster.allowed`.
        """
        if self.channel_id != channel_id:
            raise LogFormatError("the request is about another channel")
        if not verify(self.by, REQUEST_TAG, self._statement(), self.signature):
            raise LogFormatError("the request is not signed by the node that it names")
        age_ms = now_ms - self.time_ms
        if not -CLOCK_SLACK_S * 1000 <= age_ms <= (ADMIN_REQUEST_S_MAX + CLOCK_SLACK_S) * 1000:
            raise LogFormatError(
                "the request was signed too long ago, or in the future",
                hint="compare the clocks of both computers, and ask again",
            )

    def _statement(self) -> bytes:
        kind, body = encode_body(self.change)
        assert len(self.request) == REQUEST_BYTES
        channel = bytes.fromhex(self.channel_id)
        fixed = (channel, self.request, self.time_ms, self.by.raw, kind, len(body))
        return _REQUEST.pack(*fixed) + body
