"""How a program tells the node that it has appended to an own subfeed: a datagram, no answer.

    "kpg1" ‖ feed id 32 ‖ name hash 20          56 bytes, to CONFIG/feeds.sock

Nothing hangs on it: the node looks by itself, only later. So nobody waits to be heard, and what is
no such datagram, or about no feed of this node, is passed over.
"""

from __future__ import annotations

import functools

from kachery_p2p.content.hashes import ContentHash, FeedId

SOCKET_NAME = "feeds.sock"
POKE_BYTES = 56

_MAGIC = b"kpg1"
_FEED_BYTES = 32


def encode_poke(feed: FeedId, name_hash: ContentHash) -> bytes:
    """The datagram about a subfeed."""
    return _MAGIC + feed.raw + name_hash.raw


# Who appends often says the same often.
@functools.lru_cache(maxsize=64)
def decode_poke(data: bytes) -> tuple[FeedId, ContentHash] | None:
    """Which subfeed a datagram is about; None if it is none."""
    if len(data) != POKE_BYTES or not data.startswith(_MAGIC):
        return None
    rest = data[len(_MAGIC) :]
    return FeedId.of_raw(rest[:_FEED_BYTES]), ContentHash.of_raw(rest[_FEED_BYTES:])
