"""Where a call of an older package puts what it stores.

in our store, shared in the channels of the zone           as a rule
in our store, shared with nobody                           `local=True`, `store_*_local`
in the zone `scratch`, linked, removed after some days     see `scratch`
in a sandbox, shared with nobody, and removed              see `systems.use_sandbox`
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from kachery_p2p.client import settings
from kachery_p2p.compat import zones
from kachery_p2p.content.hashes import ContentHash

if TYPE_CHECKING:
    from kachery_p2p.store.blobs import BlobStore

# What the file is called where nobody sees it: the URI that is answered is made afterwards.
_NAME = "file"


class Place(NamedTuple):
    """Where to store. The default: in our store, shared in the channels of the share list."""

    # As of `store_file`: None is the share list, [] nobody.
    channels: list[str] | None = None
    keep_days: float | None = None
    sandbox: str | None = None
    # Let the file stand for its content instead of copying it.
    linked: bool = False
    # The channel into whose bucket it is put too, before the call returns.
    bucket: str | None = None


PRIVATE = Place(channels=[])


def place_of(zone: zones.Zone) -> Place:
    """Where what is stored in a zone goes."""
    bucket = None if zone.bucket is None else zone.channel
    return Place(zone.channels, zone.keep_days, bucket=bucket)


def put_file(path: str, place: Place) -> ContentHash:
    """Store the file at `path`; its hash. Raises a StoreError or a ChannelError."""
    from kachery_p2p.client import storing

    if place.sandbox is not None:
        return sandbox_store(place.sandbox).put_file(path).content
    if place.keep_days is not None:
        from kachery_p2p.compat import scratch

        return scratch.put_file(path, place.channels, place.keep_days)
    put = storing.link_path if place.linked else storing.store_path
    return _kept(put(path, _NAME, place.channels), place)


def put_bytes(data: bytes, place: Place) -> ContentHash:
    """Store bytes that are in memory; their hash."""
    from kachery_p2p.client import storing

    if place.sandbox is not None:
        return sandbox_store(place.sandbox).put_bytes(data).content
    if place.keep_days is not None:
        from kachery_p2p.compat import scratch

        return scratch.put_bytes(data, place.channels, place.keep_days)
    return _kept(storing.store_value(data, _NAME, place.channels), place)


def _kept(uri: str, place: Place) -> ContentHash:
    from kachery_p2p.content.uris import parse_uri

    if place.bucket is not None:
        put_into_bucket([uri], place.bucket)
    return parse_uri(uri).content


def put_into_bucket(uris: Iterable[str], channel: str) -> None:
    """Put what was stored into the channel's bucket, if it has one that this computer looks after.

    Raises BucketError if it could not be put there now.
    """
    from kachery_p2p.channels.bucket_settings import read_bucket

    # The computer of a daemon that is elsewhere looks after its bucket.
    if settings.daemon_address() is not None:
        return
    if read_bucket(settings.config_dir(), channel) is None:
        return
    from kachery_p2p.client import uploading

    for uri in uris:
        uploading.upload_file(uri, channel)


def find_in_sandbox(sandbox: str, content: ContentHash) -> str | None:
    """The path of a content that was stored in a sandbox."""
    from kachery_p2p.store.paths import blob_path

    path = blob_path(sandbox, content)
    return path if os.path.isfile(path) else None


def sandbox_store(sandbox: str) -> BlobStore:
    """The store in a sandbox; its index is inside, so that both are removed together."""
    from kachery_p2p.client.local import kept_store
    from kachery_p2p.client.surroundings import Surroundings

    state = os.path.join(sandbox, ".state")
    return kept_store(Surroundings(True, sandbox, settings.config_dir(), state, None, False))
