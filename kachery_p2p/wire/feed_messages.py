"""What nodes say to each other about feeds: the rows of the table, and how entries are packed.

A subfeed is named by the feed's id and the hash of its name, and always asked for in a
channel: whoever may not read there, and whoever asks for what is not, get one refusal.
Heads, fork proofs and tombstones travel as they are signed (`log.heads`, `log.forks`,
`feeds.tombstones`); empty bytes stand for none. Many entries or messages travel as one field:

    u32 length ‖ bytes, one after the other
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from kachery_p2p.errors import ProtocolError
from kachery_p2p.identity.ed25519 import SIGNATURE_BYTES
from kachery_p2p.identity.keys import KEY_BYTES, TAG_BYTES
from kachery_p2p.limits import (
    ENTRY_PAYLOAD_BYTES_MAX,
    FEED_ANSWER_ENTRIES_MAX,
    FEED_HASHES_MAX,
    FEED_NEWS_BYTES_MAX,
    LOG_ENTRIES_MAX,
    PROOF_HASHES_MAX,
    SUBMITTED_MAX,
)
from kachery_p2p.log.entries import ENTRY_BYTES_MAX
from kachery_p2p.log.forks import FORK_BYTES_MAX
from kachery_p2p.log.heads import HEAD_BYTES
from kachery_p2p.wire.message_fields import (
    CONTENT_BYTES,
    HASH_BYTES,
    Fields,
    Operation,
    boolean,
    bytes_of,
    channel_id,
    integer,
    packed,
)

LENGTH_BYTES = 4
PLACE_BYTES = 8
SUBMISSION_ID_BYTES = 16
# Feed, subfeed, u64 size, root, successor, u64 time.
TOMBSTONE_BYTES = TAG_BYTES + 2 * KEY_BYTES + 8 + HASH_BYTES + KEY_BYTES + 8 + SIGNATURE_BYTES
# One entry of any length always fits.
ANSWER_BYTES_MAX = LENGTH_BYTES + ENTRY_BYTES_MAX
# A submitted message has its submitter and its id with it, in an entry of the usual bound.
SUBMITTED_BYTES_MAX = ENTRY_PAYLOAD_BYTES_MAX - KEY_BYTES - SUBMISSION_ID_BYTES

_SIZE = integer(0, LOG_ENTRIES_MAX)
_PATH = packed(HASH_BYTES, PROOF_HASHES_MAX)
_WHICH: Fields = {
    "channel": channel_id,
    "feed": bytes_of(KEY_BYTES, KEY_BYTES),
    "name": bytes_of(CONTENT_BYTES, CONTENT_BYTES),
}
# What somebody knows of a subfeed.
_KNOWN: Fields = {
    "head": bytes_of(0, HEAD_BYTES),
    "fork": bytes_of(0, FORK_BYTES_MAX),
    # Two if they contradict each other.
    "tombstone": packed(TOMBSTONE_BYTES, 2),
}

FEED_OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        # What I know of a subfeed; the answer is what you know, with the path between the two
        # heads. With `follow` tell me news from now on, until I refuse one. `own` is empty, or
        # proves that you can append (`feeds.ownership`).
        "feed follow": Operation(
            request={**_WHICH, **_KNOWN, "follow": boolean},
            answer={**_KNOWN, "path": _PATH, "own": packed(SIGNATURE_BYTES, 1)},
        ),
        # A subfeed that you follow has changed; `path` leads from `base` entries to the head, and
        # `entries` are all that follow `base`, or none.
        "feed news": Operation(
            request={
                **_WHICH,
                **_KNOWN,
                "base": _SIZE,
                "path": _PATH,
                "entries": bytes_of(0, FEED_NEWS_BYTES_MAX),
            },
            answer={},
        ),
        # Entries from `first` on, as many as fit, with the path from where they end to `size`.
        # With `frontier` also the full subtrees before `first`: then they prove themselves.
        "feed entries": Operation(
            request={
                **_WHICH,
                "first": _SIZE,
                "count": integer(1, FEED_ANSWER_ENTRIES_MAX),
                "size": _SIZE,
                "frontier": boolean,
            },
            answer={
                "entries": bytes_of(1, ANSWER_BYTES_MAX),
                "path": _PATH,
                "frontier": packed(HASH_BYTES, PROOF_HASHES_MAX),
            },
        ),
        # Hashes at places of the stored order (`log.tree`), to find where two histories part.
        "feed hashes": Operation(
            request={**_WHICH, "places": packed(PLACE_BYTES, FEED_HASHES_MAX)},
            answer={"hashes": packed(HASH_BYTES, FEED_HASHES_MAX)},
        ),
        # Append these messages to your subfeed; an id that it has already is not appended again.
        # The positions are u64, in the order of the messages, below the size of the head.
        "feed submit": Operation(
            request={
                **_WHICH,
                "ids": packed(SUBMISSION_ID_BYTES, SUBMITTED_MAX),
                "messages": bytes_of(1, LENGTH_BYTES + SUBMITTED_BYTES_MAX),
            },
            answer={
                "positions": packed(PLACE_BYTES, SUBMITTED_MAX),
                "head": bytes_of(HEAD_BYTES, HEAD_BYTES),
            },
        ),
    }
)


def pack(items: Iterable[bytes]) -> bytes:
    """`items` as one field."""
    parts = []
    for item in items:
        parts.append(len(item).to_bytes(LENGTH_BYTES, "big"))
        parts.append(item)
    return b"".join(parts)


def unpack(data: bytes, count_max: int, bytes_max: int = ENTRY_BYTES_MAX) -> list[bytes]:
    """The items of a field; ProtocolError if it is cut off, or they are too many or too long."""
    items = []
    at, end = 0, len(data)
    while at < end:
        start = at + LENGTH_BYTES
        at = start + int.from_bytes(data[at:start], "big")
        items.append(data[start:at])
        if at > end or start > end or at - start > bytes_max or len(items) > count_max:
            raise ProtocolError("a field with items is cut off, or has more than it may")
    return items


def pack_numbers(numbers: Iterable[int]) -> bytes:
    """Positions or places as one field."""
    return b"".join(number.to_bytes(PLACE_BYTES, "big") for number in numbers)


def unpack_numbers(data: bytes) -> list[int]:
    """The numbers of a field that was checked."""
    return [
        int.from_bytes(data[at : at + PLACE_BYTES], "big")
        for at in range(0, len(data), PLACE_BYTES)
    ]


def unpack_hashes(data: bytes) -> tuple[bytes, ...]:
    """The hashes of a field that was checked."""
    return tuple(data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES))
