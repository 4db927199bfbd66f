"""Which log a subfeed is.

    name hash    SHA-1 of the subfeed's name, as every kachery computed it: of a text its UTF-8,
                 of any other JSON its compact form with sorted keys
    subfeed id   SHA-256("kachery-p2p/subfeed-name/2" ‖ 00 ‖ feed id 32 ‖ name hash 20)

The log of a subfeed is owned by the feed's key and named by the subfeed id. Names never
travel; whoever has a URI knows the name hash, and so the log, but a log does not tell it.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

from kachery_p2p.content.hashes import ContentHash, FeedId, sha1_of
from kachery_p2p.errors import InvalidNameError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import FEED_NAME_CHARS_MAX
from kachery_p2p.log.heads import LogId

HEAD_TAG = b"kp2p-feed-head/1"

_SUBFEED_ID_TAG = b"kachery-p2p/subfeed-name/2\0"


def name_hash_of(name: Any) -> ContentHash:
    """The hash of a subfeed's name: a text, or any other JSON value.

    InvalidNameError if it is not JSON, not Unicode text, or too long.
    """
    try:
        text = name if isinstance(name, str) else _compact(name)
        if len(text) <= FEED_NAME_CHARS_MAX:
            return sha1_of(text.encode())
    except (ValueError, TypeError, RecursionError):
        raise InvalidNameError("a subfeed's name must be a text or another JSON value") from None
    raise InvalidNameError(
        f"a subfeed's name has at most {FEED_NAME_CHARS_MAX:,} characters, not {len(text):,}"
    )


def subfeed_id(feed: FeedId, name_hash: ContentHash) -> bytes:
    """The 32 bytes that name the log of a subfeed."""
    return sha256(_SUBFEED_ID_TAG + feed.raw + name_hash.raw).digest()


def subfeed_log(feed: FeedId, name_hash: ContentHash) -> LogId:
    """The log of a subfeed."""
    return LogId(HEAD_TAG, NodeId(feed), subfeed_id(feed, name_hash))


def _compact(name: Any) -> str:
    return json.dumps(name, sort_keys=True, separators=(",", ":"), allow_nan=False)
