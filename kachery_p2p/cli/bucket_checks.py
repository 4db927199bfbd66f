"""What `doctor` says of the buckets of this node's channels. Nothing is written there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kachery_p2p.cli.checks import BAD, OK, Check
from kachery_p2p.errors import KacheryError

if TYPE_CHECKING:
    from kachery_p2p.client.uploading import KnownBucket


def look_at_buckets() -> Iterator[Check]:
    """One line for each bucket that answers, one for each fault of the others; none without any."""
    from kachery_p2p.client.uploading import buckets

    for known in buckets():
        try:
            yield from _look_at(known)
        except KacheryError as error:
            yield _check(known, BAD, str(error), error.hint)


def _look_at(known: KnownBucket) -> Iterator[Check]:
    from kachery_p2p.bucket.opening import open_places
    from kachery_p2p.bucket.probe import check_place
    from kachery_p2p.channels.bucket_settings import MEMBERS
    from kachery_p2p.client.uploading import home_of

    if known.settings.credentials == MEMBERS:
        yield _check(known, OK, f"{known.settings.urls[0]}, through members with its credentials")
        return
    for place in open_places(known.settings, home=home_of(known)):
        found = list(check_place(place, known.channel.id, writes=False))
        wrong = [probe for probe in found if probe.state == "fail"]
        for probe in wrong:
            yield _check(known, BAD, probe.said, probe.hint)
        if not wrong:
            yield _check(known, OK, f"{place.name} answers")


def _check(known: KnownBucket, state: str, what: str, mend: str | None = None) -> Check:
    return Check("bucket", state, f"of channel {known.channel.name}: {what}", mend)
