"""From what a channel's settings say to what can be read, and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kachery_p2p.bucket.credentials import environment, find_credentials
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.urls import parse_bucket_url
from kachery_p2p.channels.bucket_settings import NONE, NOTHING, BucketSettings
from kachery_p2p.errors import BucketReadOnlyError, BucketUrlError

if TYPE_CHECKING:
    from kachery_p2p.bucket.mirror import Mirror


def check_urls(settings: BucketSettings) -> BucketSettings:
    """`settings` with each URL written in our way, or BucketUrlError."""
    urls = [parse_bucket_url(text) for text in settings.urls]
    if len(urls) > 1 and not all(url.is_mirror for url in urls):
        raise BucketUrlError(
            "a channel has one bucket, or several mirrors on the web (https://)",
            hint="add one bucket only; a second one can be that of another channel",
        )
    is_read_only = urls[0].is_mirror or settings.credentials == NONE
    mirror = NOTHING if is_read_only else settings.mirror
    return settings._replace(urls=tuple(str(url) for url in urls), mirror=mirror)


def open_places(
    settings: BucketSettings, environ: Mapping[str, str] | None = None
) -> list[Objects | Mirror]:
    """What the settings name, to be read. Raises BucketErrors, ConfigError; asks no server."""
    opened: list[Objects | Mirror] = []
    for text in settings.urls:
        url = parse_bucket_url(text)
        if url.is_mirror:
            # With its modules 30 ms that a node without mirrors need not spend.
            from kachery_p2p.bucket.mirror import Mirror

            opened.append(Mirror(url))
        else:
            given = environment() if environ is None else environ
            found = find_credentials(settings.credentials, url.scheme, given)
            opened.append(Objects(url, found))
    return opened


def open_for_writing(settings: BucketSettings, environ: Mapping[str, str] | None = None) -> Objects:
    """The bucket that the settings name. Raises BucketReadOnlyError for what is only read."""
    place = open_places(settings, environ)[0]
    if not isinstance(place, Objects):
        raise BucketReadOnlyError(
            f"{place.name} is a mirror on the web, which is only read",
            hint="add the bucket behind it by its s3://, gs:// or az:// URL",
        )
    if settings.mirror == NOTHING or not place.credentials.writes:
        raise BucketReadOnlyError(
            f"nothing is put into {place.name} from this node",
            hint="`kachery-p2p bucket add CHANNEL URL --mirror requested` changes that, with"
            " credentials",
        )
    return place
