"""Looking after what is in a bucket: is it what its name says, and what is there for nothing."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator
from typing import NamedTuple

from kachery_p2p.bucket.faults import AbsentError
from kachery_p2p.bucket.layout import CONTENTS, content_of, key_of
from kachery_p2p.bucket.log_garbage import log_garbage
from kachery_p2p.bucket.objects import Listed, Objects
from kachery_p2p.bucket.rings import STORED
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.content.manifests import HEADER_BYTES
from kachery_p2p.errors import BucketAnswerError

# What is younger may belong to an upload that goes on just now.
_YOUNG_S = 86_400.0
_TABLES, _PROBES = "root", ".kachery-p2p-probe"


class Verified(NamedTuple):
    """One object that was read whole."""

    # None for one that the keys of an encrypted bucket do not open.
    content: ContentHash | None
    size: int
    good: bool
    key: str


def verify(
    bucket: Objects, sample: float = 1.0, rng: random.Random | None = None
) -> Iterator[Verified]:
    """Read all contents, or that share of them which `rng` picks. Raises BucketErrors."""
    rng = rng or random.Random()  # noqa: S311 - a sample, not a secret
    for listed in bucket.list(CONTENTS):
        content = content_of(listed.key)
        if content is None and not _is_unopened(bucket, listed):
            continue
        if sample >= 1 or rng.random() < sample:
            good = content is not None and _has_bytes_of_name(bucket, listed, content)
            yield Verified(content, listed.size, good, listed.key)


def _has_bytes_of_name(bucket: Objects, listed: Listed, content: ContentHash) -> bool:
    sha1 = hashlib.sha1(usedforsecurity=False)
    try:
        for piece in bucket.read_key(listed.key, 0, listed.size):
            sha1.update(piece)
    except BucketAnswerError:
        if bucket.is_encrypted:
            return False  # what was changed does not open
        raise
    return sha1.hexdigest() == content


def _is_unopened(bucket: Objects, listed: Listed) -> bool:
    return bucket.is_encrypted and listed.key.startswith(f"{STORED}/")


def garbage(bucket: Objects) -> Iterator[Listed]:
    """Chunk hashes whose content is not there, segments of logs that no head names, and what
    interrupted checks have left.

    Contents are never garbage: no node knows what all other members need.
    """
    before = time.time() - _YOUNG_S
    for listed in bucket.plain.list(_PROBES):
        if listed.modified < before:
            yield listed
    for listed in bucket.list(_TABLES):
        # What does not open may be somebody's whose keys are newer.
        is_old = listed.modified < before and not _is_unopened(bucket, listed)
        if is_old and _is_orphan(bucket, listed):
            yield listed
    yield from log_garbage(bucket, before)


def remove(bucket: Objects, found: Listed) -> None:
    """Remove one of those. Raises BucketErrors."""
    is_probe = found.key.startswith(f"{_PROBES}/")
    (bucket.plain if is_probe else bucket).delete(found.key)


def _is_orphan(bucket: Objects, listed: Listed) -> bool:
    if listed.size < HEADER_BYTES:
        return True
    header = b"".join(bucket.read_key(listed.key, 0, HEADER_BYTES))
    try:
        bucket.head(key_of(ContentHash.of_raw(header[20:HEADER_BYTES])))
    except AbsentError:
        return True
    return False
