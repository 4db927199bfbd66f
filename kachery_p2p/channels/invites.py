"""Invites: what an admin gives to somebody so that their node can enter an owned channel.

    kp2p-invite-1- ‖ base64url, without padding, of

    channel id 32 ‖ secret 16 ‖ u64 expires ‖ u8 0, or 1 ‖ node 32 ‖ u16 length ‖ name
    ‖ u8 count ‖ for each admitter: node 32 ‖ u8 count ‖ each: u16 length ‖ address
    ‖ checksum 4

Whoever has the text can enter once, so it is a secret: no error or repr shows it. It is
given by a private way, and what it names (channel, admitters) is believed for that reason.
The checksum is only for mistypers.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import NamedTuple

from kachery_p2p.channels.channel import check_channel_name
from kachery_p2p.channels.spelling import Cursor, Speller, check_address, check_time_s
from kachery_p2p.errors import InvalidNameError, InviteError, InviteExpiredError, LogFormatError
from kachery_p2p.identity.keys import KEY_BYTES, NodeId, is_sound_key
from kachery_p2p.limits import (
    ADDRESS_CHARS_MAX,
    ADDRESSES_PER_NODE_MAX,
    CHANNEL_NAME_CHARS_MAX,
    CLOCK_SLACK_S,
    INVITE_ADMITTERS_MAX,
    INVITE_CHARS_MAX,
)

INVITE_PREFIX = "kp2p-invite-1-"
INVITE_SECRET_BYTES = 16
INVITE_ID_BYTES = 16

_ID_TAG = b"kp2p-invite-id/1"
_CHECKSUM_TAG = b"kp2p-invite-1\0"
_CHECKSUM_BYTES = 4
_ASK_AGAIN = "ask for a new one: `kachery-p2p channel invite NAME` makes it"

Admitter = tuple[NodeId, tuple[str, ...]]


class Invite(NamedTuple):
    """Leave to enter a channel, once."""

    channel_id: str
    # As the channel is called where the invite was made: advice for the joiner's alias.
    name: str
    secret: bytes
    # Seconds since 1970.
    expires: int
    # Nodes that may be asked to let the bearer in, with their addresses.
    admitters: tuple[Admitter, ...]
    # The only node that may enter with it; None: whoever comes first.
    for_node: NodeId | None = None

    def __repr__(self) -> str:
        return f"<Invite to {self.name} {self.channel_id[:8]}>"

    @property
    def invite_id(self) -> bytes:
        """What an admitter finds the invite by. It tells nothing about the secret."""
        return invite_id(self.secret)

    @property
    def text(self) -> str:
        """The invite as it is given to people. InviteError if it is too long: see `fitting`."""
        from base64 import urlsafe_b64encode

        body = self._encode()
        text = INVITE_PREFIX + urlsafe_b64encode(body + _checksum(body)).decode().rstrip("=")
        if len(text) > INVITE_CHARS_MAX:
            raise InviteError(f"an invite has at most {INVITE_CHARS_MAX} characters")
        return text

    def fitting(self) -> Invite:
        """The invite with as many addresses, the first of each admitter, as it has room for."""
        for count in range(ADDRESSES_PER_NODE_MAX, -1, -1):
            shorter = tuple((node, addresses[:count]) for node, addresses in self.admitters)
            fitting = self._replace(admitters=shorter[:INVITE_ADMITTERS_MAX])
            try:
                _ = fitting.text
            except InviteError:
                continue
            break
        return fitting

    @classmethod
    def parse(cls, text: str) -> Invite:
        """The invite in `text`; white space, as mail programs add it, does not matter.

        InviteError if it was mistyped or cut off, or nobody made such a one. Whether it
        has expired is another question: `check_time`.
        """
        if len(text) > 2 * INVITE_CHARS_MAX:
            raise InviteError(f"an invite has at most {INVITE_CHARS_MAX} characters")
        text = "".join(text.split())
        if not text.startswith(INVITE_PREFIX):
            raise InviteError(
                "this is not an invite",
                hint=f"an invite is one word that begins with {INVITE_PREFIX}",
            )
        try:
            invite = _decode(_unarmored(text))
            # Writing it again also refuses what base64 would read as the same bytes.
            whole = invite.text == text
        except (LogFormatError, InvalidNameError):
            whole = False
        if not whole:
            raise InviteError(
                "the invite was mistyped or cut off",
                hint="copy all of it again, or take it from a file: "
                "`kachery-p2p channel join - < FILE`",
            )
        return invite

    def check_time(self, now: float) -> None:
        """InviteExpiredError if the invite has certainly expired. The admitter's clock decides."""
        if now > self.expires + CLOCK_SLACK_S:
            raise InviteExpiredError("the invite has expired", hint=_ASK_AGAIN)

    def check_node(self, node: NodeId) -> None:
        """InviteError if the invite is for another node than this one."""
        if self.for_node not in (None, node):
            raise InviteError(
                f"the invite is for the node {self.for_node}, not for this one", hint=_ASK_AGAIN
            )

    def _encode(self) -> bytes:
        speller = Speller()
        speller.fixed(bytes.fromhex(self.channel_id), KEY_BYTES)
        speller.fixed(self.secret, INVITE_SECRET_BYTES)
        speller.number(self.expires, 8)
        speller.number(int(self.for_node is not None), 1)
        if self.for_node is not None:
            speller.fixed(self.for_node.raw, KEY_BYTES)
        speller.text(check_channel_name(self.name))
        speller.number(len(self.admitters), 1)
        for node, addresses in self.admitters:
            speller.fixed(node.raw, KEY_BYTES)
            speller.number(len(addresses), 1)
            for address in addresses:
                speller.text(check_address(address))
        return speller.spelled()


class Issued(NamedTuple):
    """What the node that made an invite remembers of it, until `INVITE_MEMORY_S` after its end."""

    secret: bytes
    # Seconds since 1970.
    issued: int
    expires: int
    for_node: NodeId | None
    # What its bearer will be allowed to do.
    roles: frozenset[str]
    # How many entries the channel's history had: a node removed later does not come back with it.
    since: int
    used_by: NodeId | None = None

    def __repr__(self) -> str:
        return f"<Issued {self.invite_id.hex()}>"

    @property
    def invite_id(self) -> bytes:
        """What the invite is found by."""
        return invite_id(self.secret)

    def state(self, now: float) -> str:
        """`used`, `expired` or `pending`."""
        if self.used_by is not None:
            return "used"
        return "expired" if now > self.expires else "pending"


def invite_id(secret: bytes) -> bytes:
    """The name of the invite with this secret: unguessable, and no help to guess the secret."""
    return hmac.digest(secret, _ID_TAG, hashlib.sha256)[:INVITE_ID_BYTES]


def is_invite(text: str) -> bool:
    """True for what is meant as an invite, whole or not."""
    return text.lstrip().startswith("kp2p-invite-")


def _decode(body: bytes) -> Invite:
    cursor = Cursor(body)
    channel = cursor.fixed(KEY_BYTES)
    secret = cursor.fixed(INVITE_SECRET_BYTES)
    expires = check_time_s(cursor.number(8))
    flag = cursor.number(1)
    for_node = _sound_node(cursor.fixed(KEY_BYTES)) if flag else None
    name = check_channel_name(cursor.text(CHANNEL_NAME_CHARS_MAX))
    admitters = tuple(_admitter(cursor) for _ in _count(cursor, 1, INVITE_ADMITTERS_MAX))
    cursor.end()
    return Invite(_sound_node(channel), name, secret, expires, admitters, for_node)


def _admitter(cursor: Cursor) -> Admitter:
    node = _sound_node(cursor.fixed(KEY_BYTES))
    count = _count(cursor, 0, ADDRESSES_PER_NODE_MAX)
    return node, tuple(check_address(cursor.text(ADDRESS_CHARS_MAX)) for _ in count)


def _count(cursor: Cursor, low: int, high: int) -> range:
    count = cursor.number(1)
    if not low <= count <= high:
        raise LogFormatError("an invite with too many or too few of something")
    return range(count)


def _sound_node(raw: bytes) -> NodeId:
    # Under a key of small order anybody can sign.
    if not is_sound_key(raw):
        raise LogFormatError("a key that nobody honest has")
    return NodeId.of_raw(raw)


def _unarmored(text: str) -> bytes:
    """The bytes of the text before the checksum, if that is right; else LogFormatError."""
    from base64 import urlsafe_b64decode

    encoded = text.removeprefix(INVITE_PREFIX)
    try:
        data = urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    except ValueError:
        raise LogFormatError("not base64") from None
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if checksum != _checksum(body):
        raise LogFormatError("the checksum is wrong")
    return body


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(_CHECKSUM_TAG + body).digest()[:_CHECKSUM_BYTES]
