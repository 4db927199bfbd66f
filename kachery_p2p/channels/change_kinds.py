"""The kinds of changes that an owned channel's history has, and how each is spelled.

Everything is of fixed width or carries its length, integers are big-endian, texts are
UTF-8, and nothing is sorted, optional or left over: a change has one spelling (PROTOCOL.md,
"Owned channels").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from kachery_p2p.channels.channel import check_channel_name
from kachery_p2p.channels.permissions import ADMIN, PROVIDE, READ, TASK, WRITE
from kachery_p2p.channels.spelling import (
    Cursor,
    Speller,
    check_address,
    check_bucket,
    check_label,
    check_time_s,
)
from kachery_p2p.errors import InvalidNameError, LogFormatError
from kachery_p2p.identity.ed25519 import SIGNATURE_BYTES
from kachery_p2p.identity.keys import KEY_BYTES, NodeId, verify
from kachery_p2p.limits import (
    ADDRESS_CHARS_MAX,
    BOOTSTRAP_ADDRESSES_MAX,
    BUCKET_CHARS_MAX,
    CHANNEL_NAME_CHARS_MAX,
    LABEL_CHARS_MAX,
)
from kachery_p2p.log.heads import HEAD_BYTES

SECRET_CHECK_BYTES = 32
SUCCESSION_TAG = b"kp2p-succeeds/1\0"

# Bit n of a member's roles. A role keeps its bit for ever.
_ROLE_BITS = (READ, PROVIDE, WRITE, TASK, ADMIN)
# What a later version may add and an older one pass over.
OPTIONAL_TYPES_MIN = 128


class Member(NamedTuple):
    """A node in a channel, and what it may do there (`permissions`)."""

    node: NodeId
    roles: frozenset[str]
    # X25519 public key, and the node's own word that it is: `verify_exchange`.
    exchange: bytes
    exchange_signature: bytes
    label: str


class Created(NamedTuple):
    """The first entry, asked for by the keeper's node."""

    # As the keeper calls the channel: advice for others' aliases.
    name: str
    # Tells whether an entry secret is the channel's (`secret_check`).
    secret_check: bytes
    # Seconds since 1970: nobody new is admitted afterwards.
    not_after: int


class MemberSet(NamedTuple):
    """`member.node` is a member, with exactly these roles and this label."""

    member: Member


class MemberRemoved(NamedTuple):
    """`node` is a member no more, until it is set again."""

    node: NodeId


class SettingsSet(NamedTuple):
    """All settings anew."""

    bootstrap: tuple[str, ...]
    not_after: int
    # URL without credentials, or "".
    bucket: str


class SuccessorNamed(NamedTuple):
    """Who may go on with the members if the channel's key is lost; None: nobody."""

    node: NodeId | None


class KeeperMoved(NamedTuple):
    """The channel's key is now used by `node`."""

    node: NodeId


class HandedOver(NamedTuple):
    """The channel goes on under another key, and this history ends."""

    channel_id: str


class Succeeds(NamedTuple):
    """The second entry of a channel that continues another: the successor's signed word."""

    old_id: str
    # The last head of the old channel that the successor had.
    old_head: bytes
    node: NodeId
    signature: bytes

    def is_signed(self, new_id: str) -> bool:
        """True if `node` said this about the channel `new_id`."""
        return verify(self.node, SUCCESSION_TAG, self.statement(new_id), self.signature)

    def statement(self, new_id: str) -> bytes:
        """What is signed after the tag."""
        return bytes.fromhex(self.old_id) + bytes.fromhex(new_id) + self.old_head


class Unknown(NamedTuple):
    """A change of a type that a later version added, and that may be passed over."""

    type: int


Change = (
    Created
    | MemberSet
    | MemberRemoved
    | SettingsSet
    | SuccessorNamed
    | KeeperMoved
    | HandedOver
    | Succeeds
    | Unknown
)


def encode_body(change: Change) -> tuple[int, bytes]:
    """The type of `change`, and its body; LogFormatError if no reader would accept it."""
    assert not isinstance(change, Unknown), "what is not understood is not said"
    kind = _TYPES[type(change)]
    speller = Speller()
    _WRITERS[kind](speller, change)
    body = speller.spelled()
    # Reading it back holds it to every check that other members make.
    assert decode_body(kind, body) == change, "a change that has no spelling"
    return kind, body


def decode_body(kind: int, body: bytes) -> Change:
    """The change of this type that `body` spells, all of it; else LogFormatError."""
    read = _READERS.get(kind)
    if read is None:
        if kind >= OPTIONAL_TYPES_MIN:
            return Unknown(kind)
        raise LogFormatError(
            f"the channel's history has a change of a kind that is not known here ({kind})",
            hint="upgrade kachery-p2p",
        )
    cursor = Cursor(body)
    change = read(cursor)
    cursor.end()
    return change


# --- one writer and one reader for each kind ----------------------------------------------------


def _write_member(speller: Speller, change: MemberSet) -> None:
    member = change.member
    speller.fixed(member.node.raw, KEY_BYTES)
    assert member.roles <= frozenset(_ROLE_BITS), "a role that is not in the protocol"
    speller.number(sum(1 << bit for bit, role in enumerate(_ROLE_BITS) if role in member.roles), 1)
    speller.fixed(member.exchange, KEY_BYTES)
    speller.fixed(member.exchange_signature, SIGNATURE_BYTES)
    speller.text(check_label(member.label))


def _read_member(cursor: Cursor) -> MemberSet:
    node = NodeId(cursor.fixed(KEY_BYTES).hex())
    roles = _ROLES.get(cursor.number(1))
    if roles is None:
        raise LogFormatError(
            "a member has no role, or one that is not known here", hint="upgrade kachery-p2p"
        )
    exchange = cursor.fixed(KEY_BYTES)
    signature = cursor.fixed(SIGNATURE_BYTES)
    return MemberSet(
        Member(node, roles, exchange, signature, check_label(cursor.text(LABEL_CHARS_MAX)))
    )


def _write_created(speller: Speller, change: Created) -> None:
    speller.number(check_time_s(change.not_after), 8)
    speller.fixed(change.secret_check, SECRET_CHECK_BYTES)
    speller.text(_check_name(change.name))


def _read_created(cursor: Cursor) -> Created:
    not_after = check_time_s(cursor.number(8))
    check = cursor.fixed(SECRET_CHECK_BYTES)
    return Created(_check_name(cursor.text(CHANNEL_NAME_CHARS_MAX)), check, not_after)


def _write_settings(speller: Speller, change: SettingsSet) -> None:
    speller.number(check_time_s(change.not_after), 8)
    speller.text(check_bucket(change.bucket))
    if len(change.bootstrap) > BOOTSTRAP_ADDRESSES_MAX:
        raise LogFormatError(f"more than {BOOTSTRAP_ADDRESSES_MAX} bootstrap addresses")
    speller.number(len(change.bootstrap), 1)
    for address in change.bootstrap:
        speller.text(check_address(address))


def _read_settings(cursor: Cursor) -> SettingsSet:
    not_after = check_time_s(cursor.number(8))
    bucket = check_bucket(cursor.text(BUCKET_CHARS_MAX))
    count = cursor.number(1)
    if count > BOOTSTRAP_ADDRESSES_MAX:
        raise LogFormatError(f"more than {BOOTSTRAP_ADDRESSES_MAX} bootstrap addresses")
    addresses = tuple(check_address(cursor.text(ADDRESS_CHARS_MAX)) for _ in range(count))
    return SettingsSet(addresses, not_after, bucket)


def _write_node(speller: Speller, change: MemberRemoved | KeeperMoved) -> None:
    speller.fixed(change.node.raw, KEY_BYTES)


def _write_successor(speller: Speller, change: SuccessorNamed) -> None:
    if change.node is not None:
        speller.fixed(change.node.raw, KEY_BYTES)


def _read_successor(cursor: Cursor) -> SuccessorNamed:
    raw = cursor.rest()
    if len(raw) not in (0, KEY_BYTES):
        raise LogFormatError("a successor is one node or none")
    return SuccessorNamed(NodeId(raw.hex()) if raw else None)


def _write_handed_over(speller: Speller, change: HandedOver) -> None:
    speller.fixed(bytes.fromhex(change.channel_id), KEY_BYTES)


def _write_succeeds(speller: Speller, change: Succeeds) -> None:
    speller.fixed(bytes.fromhex(change.old_id), KEY_BYTES)
    speller.fixed(change.old_head, HEAD_BYTES)
    speller.fixed(change.node.raw, KEY_BYTES)
    speller.fixed(change.signature, SIGNATURE_BYTES)


def _read_succeeds(cursor: Cursor) -> Succeeds:
    old_id, old_head = cursor.fixed(KEY_BYTES).hex(), cursor.fixed(HEAD_BYTES)
    node = NodeId(cursor.fixed(KEY_BYTES).hex())
    return Succeeds(old_id, old_head, node, cursor.fixed(SIGNATURE_BYTES))


def _check_name(name: str) -> str:
    try:
        return check_channel_name(name)
    except InvalidNameError:
        raise LogFormatError("the channel has a name that cannot be one") from None


_ROLES = {
    bits: frozenset(role for bit, role in enumerate(_ROLE_BITS) if bits >> bit & 1)
    for bits in range(1, 1 << len(_ROLE_BITS))
}
_TYPES: dict[type, int] = {
    Created: 1,
    MemberSet: 2,
    MemberRemoved: 3,
    SettingsSet: 4,
    SuccessorNamed: 5,
    KeeperMoved: 6,
    HandedOver: 7,
    Succeeds: 8,
}
_WRITERS: dict[int, Callable[[Speller, Any], None]] = {
    1: _write_created,
    2: _write_member,
    3: _write_node,
    4: _write_settings,
    5: _write_successor,
    6: _write_node,
    7: _write_handed_over,
    8: _write_succeeds,
}
_READERS: dict[int, Callable[[Cursor], Change]] = {
    1: _read_created,
    2: _read_member,
    3: lambda cursor: MemberRemoved(NodeId(cursor.fixed(KEY_BYTES).hex())),
    4: _read_settings,
    5: _read_successor,
    6: lambda cursor: KeeperMoved(NodeId(cursor.fixed(KEY_BYTES).hex())),
    7: lambda cursor: HandedOver(cursor.fixed(KEY_BYTES).hex()),
    8: _read_succeeds,
}
