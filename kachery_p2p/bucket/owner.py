"""Whose a prefix is: one channel keeps its files there, and a second one is refused.

Otherwise what is pushed in one channel could be loaded by the members of another, and what
one cleans away would be missing in the other.
"""

from __future__ import annotations

from kachery_p2p.bucket.faults import AbsentError
from kachery_p2p.bucket.layout import MARKER
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.errors import BucketTakenError

# A channel's id and a line end.
_BYTES_MAX = 128


def take_prefix(bucket: Objects, channel_id: str) -> None:
    """Mark the prefix as this channel's, unless it is. Raises BucketTakenError, BucketErrors.

    Of two that mark it at once the one wins whose marker was there first.
    """
    for _ in range(2):
        owner = owner_of(bucket)
        if owner is None:
            bucket.put_new(MARKER, f"{channel_id}\n".encode(), {"Content-Type": "text/plain"})
            owner = owner_of(bucket)
        if owner == channel_id:
            return
        if owner is not None:
            break
    raise BucketTakenError(
        f"{bucket.name} belongs to another channel ({(owner or 'unknown')[:16]})",
        hint="use another prefix in the URL for this channel, such as .../NAME",
    )


def check_prefix(bucket: Objects, channel_id: str) -> None:
    """BucketTakenError if another channel's marker is there; none at all is fine for reading."""
    owner = owner_of(bucket)
    if owner not in (None, channel_id):
        raise BucketTakenError(
            f"{bucket.name} belongs to another channel ({owner[:16] if owner else ''})",
            hint="correct the prefix in the URL",
        )


def owner_of(bucket: Objects) -> str | None:
    """The id of the channel whose prefix this is; None if nobody has marked it."""
    try:
        data = bucket.read_whole(MARKER, _BYTES_MAX)
    except AbsentError:
        return None
    text = data.decode("ascii", "replace").strip()
    is_id = len(text) == 64 and not text.strip("0123456789abcdef")
    return text if is_id else "unreadable"
