"""Finding members through nodes that are none: tags, sealed entries, and what is asked.

A channel has a new *tag* each day, which only who has the channel's discovery key can
compute. Members leave *entries* under it with nodes that introduce, and look there for
those of others. An entry says who may be reached where, signed by that node; it is
sealed for the channel and always ENTRY_BYTES long. So an introducer learns what its own
connections show, and how many tags each asks for; not which channel, nor who else is in
it. Who has no key can neither compute a tag nor read, make or move an entry.

Pure: time and random bytes are arguments. PROTOCOL.md, "Rendezvous", shows the bytes.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from kachery_p2p.errors import PeerBusyError, PeerError, ProtocolError
from kachery_p2p.identity.ed25519 import SIGNATURE_BYTES
from kachery_p2p.identity.keys import KEY_BYTES, NodeId, NodeKey, verify
from kachery_p2p.limits import (
    ADDRESSES_PER_NODE_MAX,
    CLOCK_SLACK_S,
    RENDEZVOUS_ENTRIES_PER_TAG_MAX,
    RENDEZVOUS_MIDNIGHT_S,
    RENDEZVOUS_TTL_S_MAX,
    RENDEZVOUS_TTL_S_MIN,
)
from kachery_p2p.wire.codec import Message, encode_frame
from kachery_p2p.wire.messages import (
    BUSY,
    Operation,
    bytes_of,
    check_failure,
    check_message,
    integer,
    list_of,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

TAG_BYTES = 32
NONCE_BYTES = 12
# One size for all, so that the length of an entry tells nothing: 16 addresses of 50 characters.
ENTRY_BYTES = 1_024
DAY_S = 86_400

_SEAL_BYTES = 16
_PLAIN_BYTES = ENTRY_BYTES - NONCE_BYTES - _SEAL_BYTES
_TAG_TAG = b"kp2p-rendezvous/1\0"
_KEY_TAG = b"kp2p-rendezvous-entry/1\0"
_SIGNED_TAG = b"kp2p-meet-me/1\0\0"

# --- tags -----------------------------------------------------------------------------------


def days_at(now_s: float) -> tuple[int, ...]:
    """The days, counted from 1970 in UTC, that are used at that time; that of the clock first.

    Members register and look under each of them: under one, and within an hour of
    midnight also under the neighbouring one. So two members share a day as long as their
    clocks are not two hours apart, and an entry is found until it expires.
    """
    today = int(now_s // DAY_S)
    before = int((now_s - RENDEZVOUS_MIDNIGHT_S) // DAY_S)
    after = int((now_s + RENDEZVOUS_MIDNIGHT_S) // DAY_S)
    return tuple(dict.fromkeys([today, before, after]))


def tag_of(discovery_key: bytes, day: int) -> bytes:
    """The name under which the members of a channel meet on that day."""
    return hmac.digest(discovery_key, _TAG_TAG + _day_bytes(day), "sha256")


def _day_bytes(day: int) -> bytes:
    return day.to_bytes(4, "big")


# --- entries ----------------------------------------------------------------------------------


class Entry(NamedTuple):
    """Where a node says that it may be reached, until `expires` (seconds since 1970)."""

    node: NodeId
    # Each ends in /p2p/ and the id of `node`.
    addresses: tuple[str, ...]
    expires: int


def seal_entry(
    key: NodeKey,
    discovery_key: bytes,
    day: int,
    addresses: Iterable[str],
    expires: int,
    nonce: bytes,
) -> bytes:
    """The entry of the node with `key` for the members of a channel: ENTRY_BYTES.

    Of `addresses` (multiaddrs of that node) the first that have room are told. `nonce`
    are NONCE_BYTES fresh random bytes.
    """
    assert len(nonce) == NONCE_BYTES
    tag = tag_of(discovery_key, day)
    said = key.node_id.raw + expires.to_bytes(8, "big")
    said += _encode_places(key.node_id, addresses, _PLAIN_BYTES - SIGNATURE_BYTES - len(said))
    plain = key.sign(_SIGNED_TAG, tag + said) + said
    return nonce + _cipher(discovery_key, day).encrypt(nonce, plain.ljust(_PLAIN_BYTES, b"\0"), tag)


def open_entry(discovery_key: bytes, day: int, sealed: bytes, now_s: float) -> Entry:
    """What a member said. Raises ProtocolError for anything else, expired entries included."""
    tag = tag_of(discovery_key, day)
    plain = _unseal(_cipher(discovery_key, day), sealed, tag)
    entry, said = _decode(plain[SIGNATURE_BYTES:])
    if not verify(entry.node, _SIGNED_TAG, tag + said, plain[:SIGNATURE_BYTES]):
        raise ProtocolError("an entry that its node did not sign for this channel and day")
    if not now_s - CLOCK_SLACK_S < entry.expires <= now_s + RENDEZVOUS_TTL_S_MAX + CLOCK_SLACK_S:
        raise ProtocolError("an entry that has expired, or outlasts what entries may")
    return entry


def _cipher(discovery_key: bytes, day: int) -> ChaCha20Poly1305:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = _KEY_TAG + _day_bytes(day)
    key = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(discovery_key)
    return ChaCha20Poly1305(key)


def _unseal(cipher: ChaCha20Poly1305, sealed: bytes, tag: bytes) -> bytes:
    from cryptography.exceptions import InvalidTag

    if len(sealed) != ENTRY_BYTES:
        raise ProtocolError(f"an entry of {len(sealed)} bytes")
    try:
        return cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], tag)
    except InvalidTag:
        raise ProtocolError("an entry that no member sealed for this channel and day") from None


def _encode_places(node: NodeId, addresses: Iterable[str], bytes_max: int) -> bytes:
    """A count, then each place (an address without its /p2p/ID) after its length."""
    name = _name_of(node)
    places: list[bytes] = []
    size = 1
    for address in addresses:
        assert address.endswith(name), "an address of another node"
        place = address.removesuffix(name).encode("ascii")
        fits = len(place) <= 255 and size + 1 + len(place) <= bytes_max
        if fits and len(places) < ADDRESSES_PER_NODE_MAX:
            places.append(bytes([len(place)]) + place)
            size += len(places[-1])
    return bytes([len(places)]) + b"".join(places)


def _decode(padded: bytes) -> tuple[Entry, bytes]:
    """The entry, and the bytes of it that are signed. Raises ProtocolError."""
    node = NodeId.of_raw(padded[:KEY_BYTES])
    expires = int.from_bytes(padded[KEY_BYTES : KEY_BYTES + 8], "big")
    at = KEY_BYTES + 9
    count, addresses = padded[at - 1], []
    if count > ADDRESSES_PER_NODE_MAX:
        raise ProtocolError(f"an entry of {count} addresses")
    for _ in range(count):
        end = at + 1 + padded[at] if at < len(padded) else len(padded) + 1
        if end > len(padded):
            raise ProtocolError("an entry that is cut off")
        addresses.append(_place_in(padded[at + 1 : end]) + _name_of(node))
        at = end
    if any(padded[at:]):
        raise ProtocolError("an entry with something behind its end")
    return Entry(node, tuple(addresses), expires), padded[:at]


def _place_in(encoded: bytes) -> str:
    """A multiaddr as far as its alphabet goes; whoever dials it parses it."""
    if encoded.startswith(b"/") and all(0x21 <= byte < 0x7F for byte in encoded):
        return encoded.decode("ascii")
    raise ProtocolError("an entry with an address that is none")


def _name_of(node: NodeId) -> str:
    return f"/p2p/{node.peer_id}"


# --- requests and answers -----------------------------------------------------------------------

_TAG = bytes_of(TAG_BYTES, TAG_BYTES)
_ENTRY = bytes_of(ENTRY_BYTES, ENTRY_BYTES)

OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        # Keep my entry under this tag for `ttl` seconds, instead of the one I left before.
        "register": Operation(
            request={
                "tag": _TAG,
                "entry": _ENTRY,
                "ttl": integer(RENDEZVOUS_TTL_S_MIN, RENDEZVOUS_TTL_S_MAX),
            },
            answer={},
            stream="rendezvous",
        ),
        # The entries under this tag; of one that nobody uses none.
        "lookup": Operation(
            request={"tag": _TAG},
            answer={"entries": list_of(_ENTRY, RENDEZVOUS_ENTRIES_PER_TAG_MAX)},
            stream="rendezvous",
        ),
    }
)

# What a frame may have after its length: a request is an entry and its names, an answer as many
# entries as a tag may have, each with 3 bytes before it.
REQUEST_BYTES_MAX = ENTRY_BYTES + 256
ANSWER_BYTES_MAX = RENDEZVOUS_ENTRIES_PER_TAG_MAX * (ENTRY_BYTES + 3) + 512


def request_frame(op: str, body: Message) -> bytes:
    """One request. `body` has the fields of the table."""
    return encode_frame({"op": op, "body": body})


def read_request(message: Message) -> tuple[str, Message]:
    """The operation and its fields, or ProtocolError."""
    op = message.get("op")
    known = OPERATIONS.get(op) if isinstance(op, str) else None
    if known is None:
        raise ProtocolError("a request for no operation of the rendezvous stream")
    return str(op), check_message(f"a request {op!r}", known.request, message.get("body"))


def answer_frame(body: Message) -> bytes:
    """The answer to one request; answers come in the order of the requests."""
    return encode_frame({"ok": body})


def read_answer(op: str, message: Message) -> Message:
    """The fields of the answer to a request for `op`. Raises ProtocolError, PeerError."""
    if "error" in message:
        code, text = check_failure(message)
        raise (PeerBusyError if code == BUSY else PeerError)(f"did not answer: {text or code}")
    return check_message(f"an answer to {op!r}", OPERATIONS[op].answer, message.get("ok"))
