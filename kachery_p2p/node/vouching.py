"""Granting only what this node has hashed: the steps between a wish to share and the grants.

All of it blocks, for as long as it takes to hash what was never hashed here; for threads.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import CorruptObjectError
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.grants import PENDING_LISTED_MAX, Grants
from kachery_p2p.store.shares import Share

log = logging.getLogger(__name__)


def corrupt_among(blobs: BlobStore, contents: Iterable[ContentHash]) -> set[ContentHash]:
    """Those that turn out not to be what their names say; they are in quarantine by then."""
    vouched = blobs.vouch(contents)
    return {content for content, why in vouched.items() if isinstance(why, CorruptObjectError)}


def keep_shares(blobs: BlobStore, grants: Grants, shares: Sequence[Share]) -> None:
    """Grant what clients wrote into shares.log, but nothing corrupt."""
    corrupt = corrupt_among(blobs, [share.content for share in shares])
    for content in corrupt:
        log.warning("sha1://%s is corrupt and not shared", content)
    grants.keep([share for share in shares if share.content not in corrupt])


def grant_pending(
    blobs: BlobStore, grants: Grants, channels: Sequence[str], why: str, time: float
) -> int:
    """Grant all that waits for a channel, but nothing corrupt, which waits no more; how many."""
    skipped = 0
    while contents := grants.pending(skipped):
        corrupt = corrupt_among(blobs, contents)
        for content in corrupt:
            log.warning("sha1://%s is corrupt and not shared", content)
            grants.forget(content)
        skipped += len(contents) - len(corrupt)
        if len(contents) < PENDING_LISTED_MAX:
            break
    return grants.grant_pending(channels, why, time)
