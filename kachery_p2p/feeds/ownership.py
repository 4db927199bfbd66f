"""Whose a feed is: a node that can append to it shows that it has the feed's key.

    "kp2p-feed-own/1" ‖ 00 ‖ node id 32       signed by the feed's key, 64 bytes

It is the answering node's alone: the session proves its id, so nobody can say it once more. Without
it any member could say that it is the owner: others would ask no bucket while it is connected, and
give it what they submit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kachery_p2p.content.hashes import FeedId
from kachery_p2p.identity.keys import NodeId, verify

if TYPE_CHECKING:
    from kachery_p2p.feeds.keys import FeedKey

OWNERSHIP_TAG = b"kp2p-feed-own/1\0"


def claim_ownership(key: FeedKey, node: NodeId) -> bytes:
    """The proof that `node` has the key of a feed."""
    return key.sign(OWNERSHIP_TAG, node.raw)


def proves_ownership(claim: bytes, feed: FeedId, node: NodeId) -> bool:
    """True if `claim` proves that `node` has the key of `feed`."""
    return verify(NodeId(feed), OWNERSHIP_TAG, node.raw, claim)
