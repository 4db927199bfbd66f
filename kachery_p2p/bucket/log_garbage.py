"""Segments of logs that lie in a bucket for nothing: their node was killed, and never came back."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from kachery_p2p.bucket.faults import AbsentError
from kachery_p2p.bucket.log_layout import LOGS, LogHead, log_key, told_log
from kachery_p2p.bucket.objects import Listed, Objects
from kachery_p2p.errors import BucketAnswerError, LogFormatError
from kachery_p2p.limits import BUCKET_LOG_HEAD_BYTES_MAX

_HEAD = "/head"


def log_garbage(bucket: Objects, before: float) -> Iterator[Listed]:
    """What was put there before that time and is named by no head. Raises BucketErrors.

    Of a log whose head cannot be read everything stays: nobody can tell what it would name.
    """
    listed = (one for one in bucket.list(LOGS) if one.key.startswith(f"{LOGS}/"))
    for directory, some in groupby(listed, lambda one: one.key.rpartition("/")[0]):
        old = [one for one in some if one.modified < before and not one.key.endswith(_HEAD)]
        if not old:
            continue
        named = _named(bucket, directory)
        if named is not None:
            yield from (one for one in old if one.key.rpartition("/")[2] not in named)


def _named(bucket: Objects, directory: str) -> set[str] | None:
    """What the head in this directory names; None if there is one that cannot be read."""
    try:
        data = bucket.read_whole(f"{directory}{_HEAD}", BUCKET_LOG_HEAD_BYTES_MAX)
        log = told_log(data)
        if log_key(log) != directory:
            return None
        return {segment.digest.hex() for segment in LogHead.decode(data, log).segments}
    except AbsentError:
        return set()
    except (BucketAnswerError, LogFormatError):
        return None
