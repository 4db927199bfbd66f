"""Looking after what is in a bucket: is it what its name says, and what is there for nothing."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator
from typing import NamedTuple

from kachery_p2p.bucket.faults import AbsentError
from kachery_p2p.bucket.layout import CONTENTS, content_of, key_of
from kachery_p2p.bucket.objects import Listed, Objects
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.content.manifests import HEADER_BYTES

# What is younger may belong to an upload that goes on just now.
_YOUNG_S = 86_400.0
_TABLES, _PROBES = "root", ".kachery-p2p-probe"


class Verified(NamedTuple):
    """One content that was read whole."""

    content: ContentHash
    size: int
    good: bool


def verify(
    bucket: Objects, sample: float = 1.0, rng: random.Random | None = None
) -> Iterator[Verified]:
    """Read all contents, or that share of them which `rng` picks. Raises BucketErrors."""
    rng = rng or random.Random()  # noqa: S311 - a sample, not a secret
    for listed in bucket.list(CONTENTS):
        content = content_of(listed.key)
        if content is not None and (sample >= 1 or rng.random() < sample):
            yield Verified(content, listed.size, _has_bytes_of_name(bucket, listed, content))


def _has_bytes_of_name(bucket: Objects, listed: Listed, content: ContentHash) -> bool:
    sha1 = hashlib.sha1(usedforsecurity=False)
    for piece in bucket.read_key(listed.key, 0, listed.size):
        sha1.update(piece)
    return sha1.hexdigest() == content


def garbage(bucket: Objects) -> Iterator[Listed]:
    """Chunk hashes whose content is not there, and what interrupted checks have left.

    Contents are never garbage: no node knows what all other members need.
    """
    before = time.time() - _YOUNG_S
    for below in (_TABLES, _PROBES):
        for listed in bucket.list(below):
            if listed.modified < before and (below == _PROBES or _is_orphan(bucket, listed)):
                yield listed


def _is_orphan(bucket: Objects, listed: Listed) -> bool:
    if listed.size < HEADER_BYTES:
        return True
    header = b"".join(bucket.read_key(listed.key, 0, HEADER_BYTES))
    try:
        bucket.head(key_of(ContentHash.of_raw(header[20:HEADER_BYTES])))
    except AbsentError:
        return True
    return False
