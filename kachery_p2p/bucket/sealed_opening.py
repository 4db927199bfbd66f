"""Laying the encryption of a channel's bucket over the place where it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from kachery_p2p.bucket.home import Home
from kachery_p2p.bucket.member_keys import keys_of
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.owner import take_prefix
from kachery_p2p.bucket.sealed_objects import SealedObjects
from kachery_p2p.channels.bucket_settings import NOTHING, BucketSettings
from kachery_p2p.channels.joined import joined_one

if TYPE_CHECKING:
    from kachery_p2p.bucket.mirror import Mirror


@overload
def sealed(plain: Objects, settings: BucketSettings, home: Home) -> SealedObjects: ...
@overload
def sealed(plain: Mirror, settings: BucketSettings, home: Home) -> Mirror: ...
def sealed(plain: Objects | Mirror, settings: BucketSettings, home: Home) -> Objects | Mirror:
    """The same place, whose objects are sealed with the channel's keys. Asks no server.

    Raises UnknownChannelError, KeyFileError.
    """
    if isinstance(plain, Objects):
        return _sealed_objects(plain, settings, home)
    from kachery_p2p.bucket.sealed_mirror import SealedMirror

    return SealedMirror(plain, keys_of(home, plain))


def _sealed_objects(plain: Objects, settings: BucketSettings, home: Home) -> SealedObjects:
    channel_id = joined_one(home.config_dir, home.channel).id
    writes = settings.mirror != NOTHING and plain.credentials.writes

    def put(key: str, data: bytes) -> None:
        # The keys may be the first that anybody puts there.
        take_prefix(place, channel_id)
        plain.put(key, data)

    place = SealedObjects(plain, keys_of(home, plain, put if writes else None))
    return place
