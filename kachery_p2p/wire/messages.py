"""The table of what nodes say to each other: each operation's fields, types and bounds.

`check_request` and `check_answer` turn a map that a peer sent into one that holds
exactly the fields of the table, each of its type and within its bound, or raise
ProtocolError naming the field (never quoting the value). Fields that are not in the
table are dropped: a later version of the same protocol may add some.

The fields stay what they are on the wire, bytes and hex text; the rooms above make
`ContentHash`, `Root` and `NodeId` of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from kachery_p2p.errors import ProtocolError
from kachery_p2p.limits import (
    ADDRESS_CHARS_MAX,
    ADDRESSES_PER_NODE_MAX,
    ANNOUNCE_PREFIXES_MAX,
    CHANGE_BYTES_MAX,
    CHANNEL_ENTRIES_MAX,
    CHUNK_BYTES,
    ENTRIES_ANSWER_BYTES,
    ENTRIES_ANSWER_MAX,
    INDEX_NAMES_MAX,
    LABEL_CHARS_MAX,
    NOTICE_BYTES_MAX,
    PAGE_CHUNKS_MAX,
    PEERS_MAX,
    RANGE_CHUNKS_MAX,
    REASON_CHARS_MAX,
    ROOT_PAGES_MAX,
)
from kachery_p2p.log.forks import FORK_BYTES_MAX
from kachery_p2p.log.heads import HEAD_BYTES
from kachery_p2p.wire.codec import Message

HASH_BYTES = 32
CONTENT_BYTES = 20
CHANNEL_CHARS = 64
# Of a bulk ticket (`wire.sealed`): random bytes of each side, its id, how many ciphers exist.
BULK_RANDOM_BYTES = 32
BULK_TICKET_BYTES = 16
BULK_CIPHERS = 2
_PORT_MAX = 65_535
PREFIX_BYTES = 8
SEQUENCE_MAX = (1 << 53) - 1
CHUNKS_MAX = ROOT_PAGES_MAX * PAGE_CHUNKS_MAX
SIZE_BYTES_MAX = CHUNKS_MAX * CHUNK_BYTES
# Magic, size, chunk size and SHA-1, then one hash a page (PROTOCOL.md, "Root objects").
ROOT_OBJECT_BYTES_MIN = 40
ROOT_OBJECT_BYTES_MAX = ROOT_OBJECT_BYTES_MIN + HASH_BYTES * ROOT_PAGES_MAX

# Why a request got no answer. "refused" is all that anybody learns of what is absent
# or not theirs: one code, one text, one shape for both.
REFUSED = "refused"
BUSY = "busy"
FAILED = "failed"
BAD_REQUEST = "bad request"
FAILURE_CODES = frozenset({REFUSED, BUSY, FAILED, BAD_REQUEST})
REFUSED_TEXT = "absent, or not allowed"

Check = Callable[[object], Any]
Fields = Mapping[str, Check]


class WrongValueError(ValueError):
    """A value is not what the table says; the message says what was expected, never what came."""


# --- types of fields ------------------------------------------------------------------


def integer(low: int, high: int) -> Check:
    def check(value: object) -> int:
        if type(value) is int and low <= value <= high:
            return value
        raise WrongValueError(f"expected an integer from {low} to {high}")

    return check


def bytes_of(low: int, high: int) -> Check:
    def check(value: object) -> bytes:
        if isinstance(value, bytes) and low <= len(value) <= high:
            return value
        raise WrongValueError(f"expected {low if low == high else f'{low} to {high}'} bytes")

    return check


def packed(item_bytes: int, items_max: int) -> Check:
    """Items of one length, one after the other."""
    short = bytes_of(0, item_bytes * items_max)

    def check(value: object) -> bytes:
        items: bytes = short(value)
        if len(items) % item_bytes == 0:
            return items
        raise WrongValueError(f"expected a multiple of {item_bytes} bytes")

    return check


def printable(chars_max: int) -> Check:
    def check(value: object) -> str:
        # isprintable() also refuses bidi and other invisible format characters.
        if isinstance(value, str) and len(value) <= chars_max and value.isprintable():
            return value
        raise WrongValueError(f"expected at most {chars_max} printable characters")

    return check


def list_of(item: Check, items_max: int) -> Check:
    def check(value: object) -> list[Any]:
        if isinstance(value, list | tuple) and len(value) <= items_max:
            return [item(one) for one in value]
        raise WrongValueError(f"expected a list of at most {items_max}")

    return check


def _map_of(fields: Fields) -> Check:
    def check(value: object) -> Message:
        return check_fields(fields, value)

    return check


def _boolean(value: object) -> bool:
    if type(value) is bool:
        return value
    raise WrongValueError("expected true or false")


def _address(value: object) -> str:
    """A multiaddr as far as its alphabet goes; whoever dials it parses it."""
    if (
        isinstance(value, str)
        and len(value) <= ADDRESS_CHARS_MAX
        and value.startswith("/")
        and value.isascii()
        and value.isprintable()
        and " " not in value
    ):
        return value
    raise WrongValueError(f"expected a multiaddr of at most {ADDRESS_CHARS_MAX} characters")


def _channel(value: object) -> str:
    if isinstance(value, str) and len(value) == CHANNEL_CHARS:  # noqa: SIM102 (one thought a line)
        if not value.strip("0123456789abcdef"):
            return value
    raise WrongValueError(f"expected a channel id of {CHANNEL_CHARS} hex digits")


# --- the table --------------------------------------------------------------------------


class Operation(NamedTuple):
    """One line of the table. `stream` is where it may be asked: "control" or "data"."""

    request: Fields
    answer: Fields
    stream: str = "control"


_HASH = bytes_of(HASH_BYTES, HASH_BYTES)
_CONTENT = bytes_of(CONTENT_BYTES, CONTENT_BYTES)
_ADDRESSES = list_of(_address, ADDRESSES_PER_NODE_MAX)
_LABEL = printable(LABEL_CHARS_MAX)
_INTRODUCTION: Fields = {"label": _LABEL, "addresses": _ADDRESSES, "agent": _LABEL}
_MEMBER = _map_of({"node": _HASH, "addresses": _ADDRESSES})
# Each may be empty: no head yet or none to be told, no fork known, not removed.
_HISTORY: Fields = {
    "head": bytes_of(0, HEAD_BYTES),
    "fork": bytes_of(0, FORK_BYTES_MAX),
    "notice": bytes_of(0, NOTICE_BYTES_MAX),
}
_PREFIXES = packed(PREFIX_BYTES, ANNOUNCE_PREFIXES_MAX)
_WHERE: Fields = {"channel": _channel, "content": _CONTENT}
_WHAT: Fields = {**_WHERE, "root": _HASH}

OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        # Who I am; the answer is who you are.
        "introduce": Operation(request=_INTRODUCTION, answer=_INTRODUCTION),
        # The members of a channel that you are connected to, and where to find them.
        "members": Operation(
            request={"channel": _channel},
            answer={"members": list_of(_MEMBER, PEERS_MAX)},
        ),
        # Have you this content? A claim: `pinned` says that you hashed all of it yourself.
        "have": Operation(
            request=_WHERE,
            answer={"size": integer(0, SIZE_BYTES_MAX), "root": _HASH, "pinned": _boolean},
        ),
        "root": Operation(
            request=_WHAT,
            answer={"object": bytes_of(ROOT_OBJECT_BYTES_MIN, ROOT_OBJECT_BYTES_MAX)},
        ),
        "page": Operation(
            request={**_WHAT, "number": integer(0, ROOT_PAGES_MAX - 1)},
            answer={"page": bytes_of(HASH_BYTES, HASH_BYTES * PAGE_CHUNKS_MAX)},
        ),
        # First bytes of the SHA-1s of what I hold, and of what I hold no more, in a channel. Told
        # again whenever it changes; `reset` says that nothing told before counts.
        "announce": Operation(
            request={
                "channel": _channel,
                "seq": integer(0, SEQUENCE_MAX),
                "reset": _boolean,
                "add": _PREFIXES,
                "drop": _PREFIXES,
            },
            answer={},
        ),
        # Who told you, as a keeper of the channel's index, that they hold this content?
        "holders": Operation(
            request=_WHERE,
            answer={"nodes": list_of(_HASH, INDEX_NAMES_MAX)},
        ),
        # What I know of who belongs to an owned channel; the answer is what you know. Told
        # again whenever it changes.
        "history": Operation(request={"channel": _channel, **_HISTORY}, answer=_HISTORY),
        # The entries of your history of an owned channel, from `first` on, as many as fit.
        "entries": Operation(
            request={"channel": _channel, "first": integer(0, CHANNEL_ENTRIES_MAX)},
            answer={"entries": list_of(bytes_of(1, ENTRIES_ANSWER_BYTES), ENTRIES_ANSWER_MAX)},
        ),
        # An admin asks the keeper for a change (a signed request, PROTOCOL.md, "Changes").
        "change": Operation(
            request={"request": bytes_of(1, CHANGE_BYTES_MAX)},
            answer={},
        ),
        # An owned channel goes on as another one, whose `entries` you may read.
        "succession": Operation(
            request={
                "channel": _channel,
                "successor": _channel,
                "head": bytes_of(HEAD_BYTES, HEAD_BYTES),
            },
            answer={},
        ),
        # A ticket for a bulk connection (PROTOCOL.md, "Bulk plane"), and: dial me with it.
        "bulk": Operation(
            request={
                "random": bytes_of(BULK_RANDOM_BYTES, BULK_RANDOM_BYTES),
                "cipher": integer(1, BULK_CIPHERS),
            },
            answer={
                "ticket": bytes_of(BULK_TICKET_BYTES, BULK_TICKET_BYTES),
                "random": bytes_of(BULK_RANDOM_BYTES, BULK_RANDOM_BYTES),
                "cipher": integer(1, BULK_CIPHERS),
                "port": integer(0, _PORT_MAX),
            },
        ),
        "bulk back": Operation(
            request={
                "ticket": bytes_of(BULK_TICKET_BYTES, BULK_TICKET_BYTES),
                "port": integer(1, _PORT_MAX),
            },
            answer={},
        ),
        "ping": Operation(request={}, answer={}),
        # I no longer serve this channel, and ask nothing in it.
        "leave": Operation(request={"channel": _channel}, answer={}),
        # `count` chunks from `first` on; the answer's fields are those of each chunk.
        "range": Operation(
            request={
                **_WHAT,
                "first": integer(0, CHUNKS_MAX - 1),
                "count": integer(1, RANGE_CHUNKS_MAX),
            },
            answer={"number": integer(0, CHUNKS_MAX - 1), "data": bytes_of(1, CHUNK_BYTES)},
            stream="data",
        ),
    }
)

_CODE_AND_TEXT: Fields = {
    "error": printable(LABEL_CHARS_MAX),
    "text": printable(REASON_CHARS_MAX),
}


def check_request(op: object, body: object, stream: str = "control") -> Message:
    """The fields of a request for `op`, or ProtocolError."""
    known = OPERATIONS.get(op) if isinstance(op, str) else None
    if known is None or known.stream != stream:
        raise ProtocolError(f"a request for no operation of the {stream} stream")
    return check_message(f"a request {op!r}", known.request, body)


def check_answer(op: str, body: object) -> Message:
    """The fields of an answer to a request for `op`, or ProtocolError."""
    return check_message(f"an answer to {op!r}", OPERATIONS[op].answer, body)


def check_failure(message: Message) -> tuple[str, str]:
    """The code and text of a failure, or ProtocolError. The text is a peer's: trust it for nothing.

    A code that we do not know reads as "failed": a later version may have more.
    """
    found = check_message("a failure", _CODE_AND_TEXT, message)
    code = found["error"]
    return (code if code in FAILURE_CODES else FAILED), found["text"]


def failure(code: str, text: str = "") -> Message:
    """What to send instead of an answer. A refusal always carries one and the same text."""
    assert code in FAILURE_CODES, code
    return {"error": code, "text": REFUSED_TEXT if code == REFUSED else fit_reason(text)}


def fit_reason(text: str) -> str:
    """`text` made short and printable enough to be sent as a reason."""
    return "".join(c if c.isprintable() else "?" for c in text[:REASON_CHARS_MAX])


def check_message(what: str, fields: Fields, body: object) -> Message:
    """The fields of `body`, or ProtocolError that begins with `what`."""
    try:
        return check_fields(fields, body)
    except WrongValueError as wrong:
        raise ProtocolError(f"{what}: {wrong}") from None


def check_fields(fields: Fields, body: object) -> Message:
    """The fields of `body`, or WrongValueError naming the first that is missing or wrong."""
    if not isinstance(body, dict):
        raise WrongValueError("expected a map")
    found = {}
    for name, check in fields.items():
        if name not in body:
            raise WrongValueError(f"{name} is missing")
        try:
            found[name] = check(body[name])
        except WrongValueError as wrong:
            raise WrongValueError(f"{name}: {wrong}") from None
    return found
