"""One entry of a channel's history, shown to somebody who does not have the history.

    head 197 ‖ u64 number ‖ u32 length ‖ entry ‖ path        the path's length follows from the rest

Whoever knows the channel's id can check that its key signed a history with that entry at
that place. It shows a joiner that its admitter is an admin, and a node that it was
removed. It shows nothing about what came afterwards.
"""

from __future__ import annotations

from typing import NamedTuple

from kachery_p2p.channels.changes import Change, Member, MemberRemoved, MemberSet, decode_change
from kachery_p2p.channels.spelling import Cursor, Speller
from kachery_p2p.errors import LogFormatError, ProofError
from kachery_p2p.identity.keys import NodeId, verify_exchange
from kachery_p2p.limits import CHANNEL_ENTRIES_MAX, NOTICE_BYTES_MAX
from kachery_p2p.log.entries import Entry
from kachery_p2p.log.heads import HEAD_BYTES, LogId, SignedHead
from kachery_p2p.log.proofs import Path, decode_path, inclusion_length, verify_inclusion
from kachery_p2p.log.tree import HASH_BYTES, leaf_hash

# 16 bytes: the kind of log that a channel's history is.
LOG_TAG = b"kp2p-chan-head/1"
_ONLY_LOG = bytes(32)


def log_id(channel_id: str) -> LogId:
    """The log that is this channel's history: the only one of the channel's key."""
    return LogId(LOG_TAG, NodeId(channel_id), _ONLY_LOG)


class Shown(NamedTuple):
    """An entry and what proves it. May be anything until `verify` has passed."""

    head: SignedHead
    number: int
    entry: bytes
    path: Path

    def encode(self) -> bytes:
        """The bytes of it, as they are sent."""
        speller = Speller()
        speller.fixed(self.head.encode(), HEAD_BYTES)
        speller.number(self.number, 8)
        speller.number(len(self.entry), 4)
        speller.fixed(self.entry, len(self.entry))
        speller.fixed(b"".join(self.path), len(self.path) * HASH_BYTES)
        return speller.spelled()

    @classmethod
    def decode(cls, data: bytes) -> Shown:
        """What `data` spells, all of it; LogFormatError if nothing. Nothing is verified yet."""
        if len(data) > NOTICE_BYTES_MAX:
            raise LogFormatError(f"an entry is shown in at most {NOTICE_BYTES_MAX} bytes")
        cursor = Cursor(data)
        head = SignedHead.decode(cursor.fixed(HEAD_BYTES), LOG_TAG)
        number = cursor.number(8)
        if not number < head.size <= CHANNEL_ENTRIES_MAX:
            raise LogFormatError("an entry is shown that the history does not have")
        entry = cursor.fixed(cursor.number(4))
        path = decode_path(cursor.fixed(inclusion_length(number, head.size) * HASH_BYTES))
        cursor.end()
        return cls(head, number, entry, path)

    def verify(self, channel_id: str) -> Change:
        """What the entry says, if the channel's key signed it; else HeadError or ProofError."""
        self.head.verify(log_id(channel_id))
        leaf = leaf_hash(self.entry)
        verify_inclusion(self.number, self.head.size, leaf, self.path, self.head.root)
        return decode_change(Entry.decode(self.entry)).change


def check_membership(channel_id: str, node: NodeId, data: bytes) -> Member:
    """What the channel's key once said that `node` may do. It may have been removed since.

    LogFormatError, HeadError or ProofError if `data` does not show it.
    """
    change = Shown.decode(data).verify(channel_id)
    if not isinstance(change, MemberSet) or change.member.node != node:
        raise ProofError("the entry is not about this node's membership")
    member = change.member
    if not verify_exchange(node, member.exchange, member.exchange_signature):
        raise ProofError("the member's exchange key is not its own")
    return member


def check_notice(channel_id: str, node: NodeId, data: bytes, not_before_entry: int) -> int:
    """The number of the entry that removed `node`, if the channel's key signed it.

    `not_before_entry`: the first that can be news, because `node` was a member after all
    earlier ones. LogFormatError, HeadError or ProofError if `data` does not show it.
    """
    shown = Shown.decode(data)
    change = shown.verify(channel_id)
    if not isinstance(change, MemberRemoved) or change.node != node:
        raise ProofError("the entry does not remove this node")
    if shown.number < not_before_entry:
        raise ProofError("the node was made a member again after that entry")
    return shown.number
