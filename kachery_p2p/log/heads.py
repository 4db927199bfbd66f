"""Heads: the owner's signed word for where a log ends.

    body    tag 16 ‖ u8 algorithm = 1 ‖ owner 32 ‖ name 32 ‖ u32 epoch = 0
                   ‖ u64 size ‖ root 32 ‖ u64 time_ms                        133 bytes
    head    body ‖ Ed25519 signature of the body 64                          197 bytes

The tag says what kind of log it is, the owner's key and the name which one: together
they are the log's id, and a head convinces nobody of anything about another log.
Algorithm 1 is Ed25519 over RFC 6962 with SHA-256. The epoch is for a log that may be cut
off one day; none may yet. Integers are big-endian and every width is fixed: exactly one
spelling exists, so what was signed is never a question.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, Protocol

from kachery_p2p.errors import HeadError, LogFormatError
from kachery_p2p.identity.ed25519 import SIGNATURE_BYTES
from kachery_p2p.identity.keys import KEY_BYTES, TAG_BYTES, NodeId, verify
from kachery_p2p.limits import LOG_ENTRIES_MAX, LOG_TIME_MS_MAX
from kachery_p2p.log.tree import EMPTY_ROOT, HASH_BYTES

NAME_BYTES = 32
ALGORITHM = 1
EPOCH = 0

# What follows the tag.
_BODY = struct.Struct(f">B{KEY_BYTES}s{NAME_BYTES}sIQ{HASH_BYTES}sQ")
BODY_BYTES = TAG_BYTES + _BODY.size
HEAD_BYTES = BODY_BYTES + SIGNATURE_BYTES


class LogId(NamedTuple):
    """Which log: its kind (the 16-byte tag of its heads), its owner's key, and a name of 32 bytes.

    The owner is a key, not a node: a feed and a channel have keys of their own.
    """

    tag: bytes
    owner: NodeId
    name: bytes


class Signer(Protocol):
    """Whoever holds an owner's key, such as `identity.keys.NodeKey`."""

    @property
    def node_id(self) -> NodeId:
        """The public key."""

    def sign(self, tag: bytes, body: bytes, /) -> bytes:
        """The signature of `tag` ‖ `body`."""


class Head(NamedTuple):
    """A log as its owner sees it at a time: its size and root."""

    log: LogId
    size: int
    root: bytes
    time_ms: int

    @property
    def statement(self) -> bytes:
        """What is signed after the log's tag."""
        log = self.log
        assert len(log.tag) == TAG_BYTES
        assert len(log.name) == NAME_BYTES
        assert len(self.root) == HASH_BYTES
        assert 0 <= self.size <= LOG_ENTRIES_MAX
        assert 0 <= self.time_ms <= LOG_TIME_MS_MAX
        numbers = (EPOCH, self.size, self.root, self.time_ms)
        return _BODY.pack(ALGORITHM, log.owner.raw, log.name, *numbers)


class SignedHead(NamedTuple):
    """A head and its signature, which may be anything until `verify` has passed."""

    head: Head
    signature: bytes

    @property
    def log(self) -> LogId:
        """The log that the head says it is about."""
        return self.head.log

    @property
    def size(self) -> int:
        """How many entries the log has."""
        return self.head.size

    @property
    def root(self) -> bytes:
        """The root of its tree."""
        return self.head.root

    @property
    def time_ms(self) -> int:
        """When the owner signed, by the owner's clock."""
        return self.head.time_ms

    def encode(self) -> bytes:
        """The 197 bytes of the head, as it is stored and sent."""
        return self.log.tag + self.head.statement + self.signature

    @classmethod
    def decode(cls, data: bytes, tag: bytes) -> SignedHead:
        """The head of a log of the kind `tag` that `data` spells; LogFormatError if none.

        The signature is not looked at: `verify` does that.
        """
        if len(data) != HEAD_BYTES:
            raise LogFormatError(f"a head has {HEAD_BYTES} bytes, not {len(data)}")
        if data[:TAG_BYTES] != tag:
            raise LogFormatError("the head is not one of this kind of log")
        algorithm, owner, name, epoch, size, root, time_ms = _BODY.unpack_from(data, TAG_BYTES)
        if (algorithm, epoch) != (ALGORITHM, EPOCH):
            raise LogFormatError(
                f"the head has algorithm {algorithm} and epoch {epoch}, which this kachery_p2p "
                "does not know",
                hint="upgrade kachery_p2p",
            )
        _check_numbers(size, root, time_ms)
        log = LogId(tag, NodeId.of_raw(owner), name)
        return cls(Head(log, size, root, time_ms), bytes(data[BODY_BYTES:]))

    def verify(self, log: LogId) -> None:
        """Pass if the owner of `log` signed this about `log`; else HeadError."""
        if self.log != log:
            raise HeadError("the head is about another log")
        if not verify(log.owner, log.tag, self.head.statement, self.signature):
            raise HeadError("the head is not signed by the owner of the log")


def sign_head(head: Head, key: Signer) -> SignedHead:
    """The head, signed. Only `rules.Writer` may decide to: it never signs two roots of one size."""
    # Signing with a key whose public half somebody else named can give the secret half away.
    assert key.node_id == head.log.owner
    return SignedHead(head, key.sign(head.log.tag, head.statement))


def _check_numbers(size: int, root: bytes, time_ms: int) -> None:
    if size > LOG_ENTRIES_MAX or time_ms > LOG_TIME_MS_MAX:
        raise LogFormatError(f"the head has an impossible size or time, {size} and {time_ms}")
    # One log without entries has one root; another would be a fork of nothing.
    if size == 0 and root != EMPTY_ROOT:
        raise LogFormatError("the head of a log without entries has another root")
