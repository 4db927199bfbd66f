"""Tombstones: the owner's signed word that a subfeed ends, and where it goes on.

    body        tag 16 ‖ feed id 32 ‖ subfeed id 32 ‖ u64 size ‖ root 32
                       ‖ successor 32 ‖ u64 time_ms                         160 bytes
    tombstone   body ‖ Ed25519 signature of the body 64                     224 bytes

Readers read on to `size` and not beyond. The successor is the id of the feed that goes on, or
zeros. An owner whose key was stolen can end the feed with it, and so can the thief: of several
tombstones the smallest size counts, and that they name different successors is said.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from kachery_p2p.content.hashes import FeedId
from kachery_p2p.errors import HeadError, LogFormatError
from kachery_p2p.feeds.names import HEAD_TAG
from kachery_p2p.identity.ed25519 import SIGNATURE_BYTES
from kachery_p2p.identity.keys import KEY_BYTES, TAG_BYTES, NodeId, verify
from kachery_p2p.limits import LOG_ENTRIES_MAX, LOG_TIME_MS_MAX
from kachery_p2p.log.heads import NAME_BYTES, LogId, Signer
from kachery_p2p.log.tree import EMPTY_ROOT, HASH_BYTES

TAG = b"kp2p-tombstone/1"

_BODY = struct.Struct(f">{KEY_BYTES}s{NAME_BYTES}sQ{HASH_BYTES}s{KEY_BYTES}sQ")
TOMBSTONE_BYTES = TAG_BYTES + _BODY.size + SIGNATURE_BYTES
_NOBODY = bytes(KEY_BYTES)


class Tombstone(NamedTuple):
    """The end of a subfeed. May be anything until `verify` has passed."""

    log: LogId
    size: int
    root: bytes
    successor: FeedId | None
    time_ms: int
    signature: bytes = b""

    @property
    def statement(self) -> bytes:
        """What is signed after the tag."""
        log, successor = self.log, self.successor
        assert log.tag == HEAD_TAG
        assert 0 <= self.size <= LOG_ENTRIES_MAX
        assert 0 <= self.time_ms <= LOG_TIME_MS_MAX
        raw = _NOBODY if successor is None else successor.raw
        return _BODY.pack(log.owner.raw, log.name, self.size, self.root, raw, self.time_ms)

    def signed(self, key: Signer) -> Tombstone:
        """The same, signed."""
        # Signing with a key whose public half somebody else named can give the secret half away.
        assert key.node_id == self.log.owner
        return self._replace(signature=key.sign(TAG, self.statement))

    def encode(self) -> bytes:
        """The bytes of the tombstone, as it is stored and sent."""
        assert len(self.signature) == SIGNATURE_BYTES
        return TAG + self.statement + self.signature

    @classmethod
    def decode(cls, data: bytes) -> Tombstone:
        """The tombstone that `data` spells; LogFormatError if none. Nothing is verified yet."""
        if len(data) != TOMBSTONE_BYTES or data[:TAG_BYTES] != TAG:
            raise LogFormatError("the bytes are not a tombstone")
        owner, name, size, root, successor, time_ms = _BODY.unpack_from(data, TAG_BYTES)
        if size > LOG_ENTRIES_MAX or time_ms > LOG_TIME_MS_MAX:
            raise LogFormatError("the tombstone has an impossible size or time")
        if size == 0 and root != EMPTY_ROOT:
            raise LogFormatError("the tombstone of a log without entries has another root")
        log = LogId(HEAD_TAG, NodeId.of_raw(owner), name)
        following = None if successor == _NOBODY else FeedId.of_raw(successor)
        return cls(log, size, root, following, time_ms, bytes(data[-SIGNATURE_BYTES:]))

    def verify(self, log: LogId) -> None:
        """Pass if the owner of `log` signed this about `log`; else HeadError."""
        if self.log != log:
            raise HeadError("the tombstone is about another feed")
        if not verify(log.owner, TAG, self.statement, self.signature):
            raise HeadError("the tombstone is not signed by the owner of the feed")


class End(NamedTuple):
    """What the tombstones of one subfeed come to."""

    tombstone: Tombstone
    # One that names another successor.
    rival: Tombstone | None = None

    @classmethod
    def of(cls, tombstones: Iterable[Tombstone]) -> End:
        """The end that verified tombstones (one at least) agree on, or contradict each other in.

        The same, whatever order they were heard in.
        """
        ordered = sorted(set(tombstones), key=_rank)
        first = ordered[0]
        return cls(first, next((t for t in ordered if t.successor != first.successor), None))

    @property
    def tombstones(self) -> tuple[Tombstone, ...]:
        """Those that are to be kept, and told."""
        return (self.tombstone,) if self.rival is None else (self.tombstone, self.rival)


def _rank(tombstone: Tombstone) -> tuple[int, int, bytes]:
    return tombstone.size, tombstone.time_ms, tombstone.encode()
