"""The table of what nodes say to each other: each operation's fields, types and bounds.

`check_request` and `check_answer` turn a map that a peer sent into one that holds
exactly the fields of the table, each of its type and within its bound, or raise
ProtocolError naming the field (never quoting the value). Fields that are not in the
table are dropped: a later version of the same protocol may add some.

The fields stay what they are on the wire, bytes and hex text; the rooms above make
`ContentHash`, `Root` and `NodeId` of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kachery_p2p.errors import ProtocolError
from kachery_p2p.limits import (
    ADDRESSES_PER_NODE_MAX,
    ANNOUNCE_PREFIXES_MAX,
    BATCH_ANSWER_BYTES_MAX,
    BATCH_CONTENTS_MAX,
    BATCH_PIECES_BYTES_MAX,
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
from kachery_p2p.wire.bucket_messages import BUCKET_OPERATIONS
from kachery_p2p.wire.codec import Message
from kachery_p2p.wire.feed_messages import FEED_OPERATIONS
from kachery_p2p.wire.message_fields import CHANNEL_CHARS as CHANNEL_CHARS
from kachery_p2p.wire.message_fields import CONTENT_BYTES as CONTENT_BYTES
from kachery_p2p.wire.message_fields import HASH_BYTES as HASH_BYTES
from kachery_p2p.wire.message_fields import Check as Check
from kachery_p2p.wire.message_fields import Fields as Fields
from kachery_p2p.wire.message_fields import Operation as Operation
from kachery_p2p.wire.message_fields import WrongValueError as WrongValueError
from kachery_p2p.wire.message_fields import address, boolean, channel_id, map_of
from kachery_p2p.wire.message_fields import bytes_of as bytes_of
from kachery_p2p.wire.message_fields import check_fields as check_fields
from kachery_p2p.wire.message_fields import check_message as check_message
from kachery_p2p.wire.message_fields import integer as integer
from kachery_p2p.wire.message_fields import list_of as list_of
from kachery_p2p.wire.message_fields import packed as packed
from kachery_p2p.wire.message_fields import printable as printable

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
# Of a part that its holder, which is loading the content itself, does not have so far.
NOT_YET = "not yet"
FAILURE_CODES = frozenset({REFUSED, BUSY, FAILED, BAD_REQUEST, NOT_YET})
REFUSED_TEXT = "absent, or not allowed"


# --- the table --------------------------------------------------------------------------


_HASH = bytes_of(HASH_BYTES, HASH_BYTES)
_CONTENT = bytes_of(CONTENT_BYTES, CONTENT_BYTES)
_ADDRESSES = list_of(address, ADDRESSES_PER_NODE_MAX)
_LABEL = printable(LABEL_CHARS_MAX)
_INTRODUCTION: Fields = {"label": _LABEL, "addresses": _ADDRESSES, "agent": _LABEL}
_MEMBER = map_of({"node": _HASH, "addresses": _ADDRESSES})
# Each may be empty: no head yet or none to be told, no fork known, not removed.
_HISTORY: Fields = {
    "head": bytes_of(0, HEAD_BYTES),
    "fork": bytes_of(0, FORK_BYTES_MAX),
    "notice": bytes_of(0, NOTICE_BYTES_MAX),
}
_PREFIXES = packed(PREFIX_BYTES, ANNOUNCE_PREFIXES_MAX)
_WHERE: Fields = {"channel": channel_id, "content": _CONTENT}
_WHAT: Fields = {**_WHERE, "root": _HASH}

OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        # Who I am; the answer is who you are.
        "introduce": Operation(request=_INTRODUCTION, answer=_INTRODUCTION),
        # The members of a channel that you are connected to, and where to find them.
        "members": Operation(
            request={"channel": channel_id},
            answer={"members": list_of(_MEMBER, PEERS_MAX)},
        ),
        # Have you this content? A claim: `pinned` says that you hashed all of it yourself; if not,
        # `chunks` tells which parts of it you have.
        "have": Operation(
            request=_WHERE,
            answer={"size": integer(0, SIZE_BYTES_MAX), "root": _HASH, "pinned": boolean},
        ),
        "root": Operation(
            request=_WHAT,
            answer={"object": bytes_of(ROOT_OBJECT_BYTES_MIN, ROOT_OBJECT_BYTES_MAX)},
        ),
        "page": Operation(
            request={**_WHAT, "number": integer(0, ROOT_PAGES_MAX - 1)},
            answer={"page": bytes_of(HASH_BYTES, HASH_BYTES * PAGE_CHUNKS_MAX)},
        ),
        # Which chunks of page `number` have you? Bit i % 8 of byte i // 8 is the page's chunk i.
        "chunks": Operation(
            request={**_WHAT, "number": integer(0, ROOT_PAGES_MAX - 1)},
            answer={"chunks": bytes_of(1, PAGE_CHUNKS_MAX // 8)},
        ),
        # First bytes of the SHA-1s of what I hold, and of what I hold no more, in a channel. Told
        # again whenever it changes; `reset` says that nothing told before counts.
        "announce": Operation(
            request={
                "channel": channel_id,
                "seq": integer(0, SEQUENCE_MAX),
                "reset": boolean,
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
        "history": Operation(request={"channel": channel_id, **_HISTORY}, answer=_HISTORY),
        # The entries of your history of an owned channel, from `first` on, as many as fit.
        "entries": Operation(
            request={"channel": channel_id, "first": integer(0, CHANNEL_ENTRIES_MAX)},
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
                "channel": channel_id,
                "successor": channel_id,
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
        **FEED_OPERATIONS,
        **BUCKET_OPERATIONS,
        "ping": Operation(request={}, answer={}),
        # I no longer serve this channel, and ask nothing in it.
        "leave": Operation(request={"channel": channel_id}, answer={}),
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
        # Many small blobs (`batches`); the answer's fields are those of each of its frames.
        "batch": Operation(
            request={
                "channel": channel_id,
                "contents": packed(CONTENT_BYTES, BATCH_CONTENTS_MAX),
                "bytes_max": integer(CHUNK_BYTES, BATCH_ANSWER_BYTES_MAX),
            },
            answer={"pieces": bytes_of(1, BATCH_PIECES_BYTES_MAX), "last": boolean},
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
