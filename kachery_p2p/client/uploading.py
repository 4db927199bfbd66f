"""Putting what is stored here into the cloud bucket of a channel, and seeing how far that is.

What is to go there is noted in the node's queue, on the disk. The daemon works it off; when
none runs, the caller does. So it is there once, whoever was killed meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from kachery_p2p.client import settings

if TYPE_CHECKING:
    from kachery_p2p.bucket.home import Home
    from kachery_p2p.bucket.objects import Objects
    from kachery_p2p.bucket.queue import Counts, UploadQueue
    from kachery_p2p.channels.bucket_settings import BucketSettings
    from kachery_p2p.channels.joined import Joined
    from kachery_p2p.content.uris import Uri

# How often it is looked how far the daemon is.
_LOOK_S = 0.1
# A daemon that says nothing of an upload for so long does not work any more.
_SILENT_S_MAX = 3_600.0


class UploadState(NamedTuple):
    """What became of one content: "done", "waiting" or "left out", and why."""

    uri: str
    state: str
    said: str | None


def upload_file(path_or_uri: str | os.PathLike[str], channel: str | None = None) -> str:
    """Put a file into the bucket of `channel` (None: the only one with a bucket); its URI.

    A path is stored and shared in the channel first; a URI must be stored here. It is in the
    bucket when this returns. A node without the bucket's credentials asks a member that has
    them. Raises BucketProviderError if none of those is there, BucketError if it could not be
    put there now (it stays in the queue), NotFoundError, ConfigError, and what storing raises.
    """
    from kachery_p2p.errors import BucketError, BucketProviderError

    known = bucket_of(channel)
    uri = os.fspath(path_or_uri)
    if not _is_uri(uri):
        from kachery_p2p.client.files import store_file

        uri = store_file(uri, channels=[known.channel.name])
    for one in push([uri], known.channel.name):
        if one.state != "done":
            from kachery_p2p.bucket.faults import NO_PROVIDER

            said = one.said or "nobody has put it there yet"
            kind = BucketProviderError if said.startswith(NO_PROVIDER) else BucketError
            raise kind(
                f"{one.uri} is not in the bucket: {said}",
                hint="the daemon tries again; `kachery-p2p bucket status` shows how it goes",
            )
    return uri


def _is_uri(text: str) -> bool:
    return "://" in text or text.startswith("kachery:")


class KnownBucket(NamedTuple):
    """The bucket of a channel, as this node knows it."""

    channel: Joined
    settings: BucketSettings


def buckets() -> list[KnownBucket]:
    """All that this node knows, in the order of joining the channels."""
    from kachery_p2p.channels.bucket_settings import read_bucket
    from kachery_p2p.channels.joined import joined

    config_dir, found = settings.config_dir(), []
    for channel in joined(config_dir):
        told = read_bucket(config_dir, channel.name)
        if told is not None:
            found.append(KnownBucket(channel, told))
    return found


def bucket_of(channel: str | None) -> KnownBucket:
    """That of `channel`, or of the only channel that has one. UnknownChannelError, ConfigError."""
    from kachery_p2p.channels.joined import joined_one
    from kachery_p2p.errors import ConfigError

    if channel is not None:
        joined_one(settings.config_dir(), channel)
    found = [one for one in buckets() if channel in (None, one.channel.name)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(one.channel.name for one in found)
        raise ConfigError(f"more than one channel has a bucket ({names})", hint="name the channel")
    raise ConfigError(
        f"channel {channel} has no bucket here" if channel else "no channel has a bucket here",
        hint=f"add one with `kachery-p2p bucket add {channel or 'CHANNEL'} URL`",
    )


def push(uris: Iterable[str], channel: str | None, *, wait: bool = True) -> list[UploadState]:
    """Put what is stored here into the bucket; what became of each content.

    The URI of a directory stands for its list and all files in it. Without `wait` it is noted
    for the daemon. Raises NotFoundError for what is not stored here, BucketReadOnlyError,
    BucketSupportMissingError and ConfigError.
    """
    from kachery_p2p.bucket.queue import REQUESTED
    from kachery_p2p.client.directory_lists import contents_of
    from kachery_p2p.client.storing import running_daemon

    _check_is_here()
    known = bucket_of(channel)
    wanted = [one for uri in uris for one in contents_of(uri)]
    _check_stored(wanted)
    queue = _queue()
    try:
        place = _place_to_fill(known)
        for one in wanted:
            queue.add(place, [one.content], REQUESTED, one.name)
        if wait and running_daemon() is None:
            _work_off(known, queue, wanted)
        elif wait:
            _wait_for_daemon(queue, place, wanted)
        return [_state(queue, place, one) for one in wanted]
    finally:
        queue.close()


def _place_to_fill(known: KnownBucket) -> str:
    """What the queue calls the bucket, if anything may be put there. BucketReadOnlyError."""
    from kachery_p2p.bucket.opening import open_for_writing
    from kachery_p2p.bucket.queue import place_of
    from kachery_p2p.bucket.urls import parse_bucket_url
    from kachery_p2p.channels.bucket_settings import MEMBERS, NOTHING

    told = known.settings
    if told.credentials == MEMBERS and told.mirror != NOTHING:
        return place_of(parse_bucket_url(told.urls[0]).node, known.channel.id)
    return place_of(open_for_writing(told, home=home_of(known)).node, known.channel.id)


def counts_of(known: KnownBucket) -> Counts:
    """How far the queue of a bucket is."""
    from kachery_p2p.bucket.queue import place_of
    from kachery_p2p.bucket.urls import parse_bucket_url

    _check_is_here()
    queue = _queue()
    try:
        node = parse_bucket_url(known.settings.urls[0]).node
        return queue.counts(place_of(node, known.channel.id))
    finally:
        queue.close()


def opened_objects(known: KnownBucket) -> Objects:
    """The bucket itself. BucketReadOnlyError for a mirror on the web, which cannot be listed."""
    from kachery_p2p.bucket.objects import Objects
    from kachery_p2p.bucket.opening import open_places
    from kachery_p2p.errors import BucketReadOnlyError

    place = open_places(known.settings, home=home_of(known))[0]
    if not isinstance(place, Objects):
        raise BucketReadOnlyError(
            f"{place.name} is a mirror on the web, which cannot be listed",
            hint="ask whoever keeps it",
        )
    return place


def epoch_of(known: KnownBucket) -> int | None:
    """In which epoch the keys of an encrypted bucket have to be; None if it is not encrypted."""
    from kachery_p2p.bucket.member_keys import epoch_here

    return epoch_here(home_of(known)) if known.settings.encrypt else None


def home_of(known: KnownBucket) -> Home:
    """Whose bucket it is."""
    from kachery_p2p.bucket.home import Home

    return Home(settings.config_dir(), known.channel.name)


def _check_is_here() -> None:
    if settings.daemon_address() is not None or settings.is_offline():
        from kachery_p2p.errors import ConfigError

        raise ConfigError(
            "buckets are looked after on the computer of their node, with its configuration",
            hint="unset KACHERY_DAEMON_HOST and KACHERY_OFFLINE_STORAGE_DIR, or go there",
        )


def _check_stored(wanted: Sequence[Uri]) -> None:
    from kachery_p2p.client.files import find_local
    from kachery_p2p.content.uris import format_uri
    from kachery_p2p.errors import NotFoundError

    for one in wanted:
        if find_local(one) is None:
            raise NotFoundError(
                f"{format_uri(one)} is not stored here",
                hint="only what is stored here can be put there: load it first",
            )


def _queue() -> UploadQueue:
    from kachery_p2p.bucket.queue import UploadQueue, queue_path

    config_dir = settings.config_dir()
    os.makedirs(os.path.join(config_dir, "state"), mode=0o700, exist_ok=True)
    return UploadQueue(queue_path(config_dir))


def _work_off(known: KnownBucket, queue: UploadQueue, wanted: Sequence[Uri]) -> None:
    """No daemon does it: each once, now."""
    from kachery_p2p.bucket.queue import WAITING
    from kachery_p2p.bucket.uploads import Uploads
    from kachery_p2p.client.local import open_store

    with open_store() as store:
        home = home_of(known)
        uploads = Uploads(known.settings, known.channel.id, store, queue, home=home)
        for one in wanted:
            upload = queue.of(uploads.place, one.content)
            if upload is not None and upload.state == WAITING and not uploads.put(upload):
                return


def _wait_for_daemon(queue: UploadQueue, place: str, wanted: Sequence[Uri]) -> None:
    """Until each is there, or was tried in vain."""
    from kachery_p2p.bucket.queue import WAITING
    from kachery_p2p.errors import DaemonTimeoutError

    until = time.monotonic() + _SILENT_S_MAX
    for one in wanted:
        while (upload := queue.of(place, one.content)) is not None:
            if upload.state != WAITING or upload.tries:
                break
            if time.monotonic() > until:
                raise DaemonTimeoutError(
                    "the daemon has put nothing into the bucket for an hour",
                    hint="see `kachery-p2p bucket status` and `kachery-p2p status`",
                )
            time.sleep(_LOOK_S)
        until = time.monotonic() + _SILENT_S_MAX


def _state(queue: UploadQueue, place: str, one: Uri) -> UploadState:
    from kachery_p2p.content.uris import format_uri

    upload = queue.of(place, one.content)
    assert upload is not None, "a row is never taken away"
    return UploadState(format_uri(one), upload.state, upload.said)
