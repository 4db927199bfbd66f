"""Whose a prefix is: one channel keeps its files there, and a second one is refused.

Otherwise what is pushed in one channel could be loaded by the members of another, and what
one cleans away would be missing in the other. The marker also says whether the files are
encrypted: all below one prefix are, or none.

    kachery-p2p-channel    the channel's id, a line end; if encrypted "encrypted 1", a line end
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, NamedTuple, Protocol

from kachery_p2p.bucket.faults import AbsentError
from kachery_p2p.bucket.layout import CONTENTS, MARKER
from kachery_p2p.bucket.rings import STORED
from kachery_p2p.bucket.urls import FILE, BucketUrl
from kachery_p2p.errors import BucketEncryptionError, BucketError, BucketTakenError

if TYPE_CHECKING:
    from kachery_p2p.bucket.objects import Objects

# A channel's id, one more word and a number, and line ends.
_BYTES_MAX = 128
_MARKER = re.compile(r"([0-9a-f]{64})(\nencrypted 1)?", re.ASCII)


class Marker(NamedTuple):
    """What is said of a prefix."""

    # The channel's id, or "unreadable".
    owner: str
    is_encrypted: bool


class Marked(Protocol):
    """A place whose marker can be read: `Objects`, or a mirror of them."""

    @property
    def name(self) -> str:
        """How people know it."""

    @property
    def is_encrypted(self) -> bool:
        """True if what is read there is opened."""

    @property
    def plain(self) -> Marked:
        """The objects as they lie there."""

    def read_whole(self, key: str, bytes_max: int) -> bytes:
        """All of a small object. Raises AbsentError and BucketErrors."""


def take_prefix(bucket: Objects, channel_id: str) -> None:
    """Mark the prefix as this channel's, unless it is.

    Raises BucketTakenError, BucketEncryptionError, BucketErrors. Of two that mark it at once
    the one wins whose marker was there first.
    """
    marker = marker_of(bucket)
    if marker is None:
        _check_unmixed(bucket)
        text = f"{channel_id}\nencrypted 1\n" if bucket.is_encrypted else f"{channel_id}\n"
        bucket.plain.put_new(MARKER, text.encode(), {"Content-Type": "text/plain"})
        marker = marker_of(bucket)
    if marker is None or marker.owner != channel_id:
        raise BucketTakenError(
            f"{bucket.name} belongs to another channel ({marker.owner[:16] if marker else '?'})",
            hint=_apart(bucket.url),
        )
    _check_alike(bucket, marker)


def check_prefix(bucket: Marked, channel_id: str) -> None:
    """Pass unless the marker says that it is another channel's, or sealed otherwise than here.

    None at all is fine for reading. BucketTakenError, BucketEncryptionError, BucketErrors.
    """
    marker = marker_of(bucket)
    if marker is None:
        return
    if marker.owner != channel_id:
        raise BucketTakenError(
            f"{bucket.name} belongs to another channel ({marker.owner[:16]})",
            hint="correct the prefix in the URL",
        )
    _check_alike(bucket, marker)


def check_encryption(bucket: Marked) -> None:
    """BucketEncryptionError if the marker says that it is encrypted and this node does not know.

    Or the other way round. Whatever else is wrong with the marker is said to those who write.
    """
    marker = None
    with contextlib.suppress(BucketError):
        marker = marker_of(bucket)
    if marker is not None:
        _check_alike(bucket, marker)


def owner_of(bucket: Marked) -> str | None:
    """The id of the channel whose prefix this is; None if nobody has marked it."""
    marker = marker_of(bucket)
    return None if marker is None else marker.owner


def marker_of(bucket: Marked) -> Marker | None:
    """What the marker says; None if there is none."""
    try:
        data = bucket.plain.read_whole(MARKER, _BYTES_MAX)
    except AbsentError:
        return None
    found = _MARKER.fullmatch(data.decode("ascii", "replace").strip())
    return Marker("unreadable", False) if found is None else Marker(found[1], bool(found[2]))


def _apart(url: BucketUrl) -> str:
    """Where the files of a second channel go.

    Never below those of the first, whose credentials would open them.
    """
    if url.scheme == FILE:
        return "use another directory for this channel, beside that one and not below it"
    if url.prefix:
        return "use another prefix in the URL for this channel, beside that one and not below it"
    return "use another bucket for this channel: any prefix here lies below the other channel's"


def _check_alike(bucket: Marked, marker: Marker) -> None:
    if marker.is_encrypted and not bucket.is_encrypted:
        raise BucketEncryptionError(
            f"what is in {bucket.name} is encrypted",
            hint="on this node too: `kachery-p2p bucket add CHANNEL URL --encrypt`",
        )
    if bucket.is_encrypted and not marker.is_encrypted:
        raise BucketEncryptionError(
            f"what is in {bucket.name} is not encrypted",
            hint="add the bucket without --encrypt, or with another prefix in the URL",
        )


def _check_unmixed(bucket: Objects) -> None:
    """Nobody has marked it, but older tools may have put files there, which they leave in clear."""
    other = CONTENTS if bucket.is_encrypted else STORED
    if next(bucket.plain.list(other), None) is not None:
        how = "not encrypted" if bucket.is_encrypted else "encrypted"
        raise BucketEncryptionError(
            f"there are files in {bucket.name} that are {how}",
            hint="use another prefix in the URL for this channel, such as .../NAME",
        )
