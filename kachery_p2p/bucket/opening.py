"""From what a channel's settings say to what can be read, and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from kachery_p2p.bucket.credentials import environment, find_credentials
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.urls import BucketUrl, parse_bucket_url
from kachery_p2p.channels.bucket_settings import MEMBERS, NONE, NOTHING, BucketSettings
from kachery_p2p.errors import BucketProviderError, BucketReadOnlyError, BucketUrlError

if TYPE_CHECKING:
    from kachery_p2p.bucket.home import Home
    from kachery_p2p.bucket.mirror import Mirror

# Of a bucket, and what opens it here (None: nothing does): how it is read with the members' help.
Through = Callable[[BucketUrl, Objects | None], Objects]


def check_urls(settings: BucketSettings) -> BucketSettings:
    """`settings` with each URL written in our way, or BucketUrlError."""
    urls = [parse_bucket_url(text) for text in settings.urls]
    if len(urls) > 1 and not all(url.is_mirror for url in urls):
        raise BucketUrlError(
            "a channel has one bucket, or several mirrors on the web (https://)",
            hint="add one bucket only; a second one can be that of another channel",
        )
    if settings.encrypt and any(url.is_template for url in urls):
        raise BucketUrlError(
            "a layout of others ({hash} in the URL) has nothing that this channel encrypts",
            hint="leave out --encrypt, or give the address below which the bucket itself lies",
        )
    is_read_only = urls[0].is_mirror or settings.credentials == NONE
    mirror = NOTHING if is_read_only else settings.mirror
    return settings._replace(urls=tuple(str(url) for url in urls), mirror=mirror)


def open_places(
    settings: BucketSettings,
    environ: Mapping[str, str] | None = None,
    through: Through | None = None,
    *,
    home: Home | None = None,
) -> list[Objects | Mirror]:
    """What the settings name, to be read. Raises BucketErrors, ConfigError; asks no server.

    `through` is what a running node can do where it has no credentials itself; `home` says
    whose bucket it is, which an encrypted one needs.
    """
    opened = _opened(settings, environ, through)
    if not settings.encrypt:
        return opened
    from kachery_p2p.bucket.sealed_opening import sealed

    assert home is not None, "nobody can say with whose keys it is encrypted"
    return [sealed(place, settings, home) for place in opened]


def _opened(
    settings: BucketSettings, environ: Mapping[str, str] | None, through: Through | None
) -> list[Objects | Mirror]:
    opened: list[Objects | Mirror] = []
    for text in settings.urls:
        url = parse_bucket_url(text)
        if url.is_mirror:
            # With its modules 30 ms that a node without mirrors need not spend.
            from kachery_p2p.bucket.mirror import Mirror

            opened.append(Mirror(url))
        else:
            own = _own(settings, url, environ)
            if through is not None:
                opened.append(through(url, own))
            elif own is not None:
                opened.append(own)
            else:
                raise _needs_members(url)
    return opened


def _own(
    settings: BucketSettings, url: BucketUrl, environ: Mapping[str, str] | None
) -> Objects | None:
    """What this node opens itself; None if members are to be asked."""
    if settings.credentials == MEMBERS:
        return None
    given = environment() if environ is None else environ
    return Objects(url, find_credentials(settings.credentials, url.scheme, given))


def _needs_members(url: BucketUrl) -> BucketProviderError:
    return BucketProviderError(
        f"the bucket {url} is used through members that have its credentials",
        hint="start the node, which asks them; or do it on the node of such a member",
    )


def open_for_writing(
    settings: BucketSettings,
    environ: Mapping[str, str] | None = None,
    *,
    home: Home | None = None,
) -> Objects:
    """The bucket that the settings name. Raises BucketReadOnlyError for what is only read."""
    place = open_places(settings, environ, home=home)[0]
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
