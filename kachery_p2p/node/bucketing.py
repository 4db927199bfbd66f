"""The buckets of this node's channels: opened as their settings say, and anew when these change."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import trio

from kachery_p2p.bucket.home import Home
from kachery_p2p.bucket.opening import open_places
from kachery_p2p.bucket.through import MemberObjects
from kachery_p2p.bucket.urls import CLOUDS
from kachery_p2p.channels.bucket_settings import BucketSettings, read_bucket
from kachery_p2p.channels.channel import Channel
from kachery_p2p.channels.joined import channels_dir
from kachery_p2p.errors import KacheryError
from kachery_p2p.limits import BUCKET_REST_S_MAX, UPLOADS_LOOK_S
from kachery_p2p.node.parts import Parts
from kachery_p2p.transfer.bucket_members import BlockingMembers, BucketMembers
from kachery_p2p.transfer.buckets import Buckets

if TYPE_CHECKING:
    from kachery_p2p.bucket.mirror import Mirror
    from kachery_p2p.bucket.objects import Objects
    from kachery_p2p.bucket.urls import BucketUrl
    from kachery_p2p.network.sessions import Sessions

log = logging.getLogger(__name__)


class _Opened(NamedTuple):
    """The buckets of all channels, by channel id."""

    settings: dict[str, BucketSettings]
    places: dict[str, list[Objects | Mirror]]
    # What this node opens with credentials of its own, and whom it asks who has others.
    own: dict[str, Objects]
    members: dict[str, BucketMembers]
    # By the channel's name, of those that could not be opened.
    unusable: dict[str, str]


class Bucketing:
    """What of the buckets a running node knows. Made before the network, run beside it."""

    def __init__(self, parts: Parts, sessions: Sessions) -> None:
        self._parts = parts
        self._sessions = sessions
        self._token = trio.lowlevel.current_trio_token()
        self._seen: object = None
        self._again_at = math.inf
        self._unusable: dict[str, str] = {}
        self._opened: list[Objects | Mirror] = []
        self.buckets = Buckets(self.look)
        # By channel id; of those that could be opened.
        self.settings: dict[str, BucketSettings] = {}
        self.own: dict[str, Objects] = {}
        self.members: dict[str, BucketMembers] = {}

    async def run(self) -> None:
        """Follow the settings, which commands write, for ever."""
        while True:
            await self.look()
            await trio.sleep(UPLOADS_LOOK_S)

    async def look(self) -> None:
        """Take what the settings say now."""
        seen = (self._parts.channels, _changed_at(channels_dir(self._parts.config.config_dir)))
        if seen == self._seen and trio.current_time() < self._again_at:
            return
        opened = await trio.to_thread.run_sync(self._open_all, self._parts.channels)
        self._seen, self._unusable, self.settings = seen, opened.unusable, opened.settings
        self.own, self.members = opened.own, opened.members
        # A directory may be mounted later, a file of credentials be put in its place.
        rests = bool(opened.unusable)
        self._again_at = trio.current_time() + BUCKET_REST_S_MAX if rests else math.inf
        self.buckets.put(opened.places)
        for place in self._opened:
            place.close()
        self._opened = [place for some in opened.places.values() for place in some]

    def _open_all(self, channels: Sequence[Channel]) -> _Opened:
        opened = _Opened({}, {}, {}, {}, {})
        for channel in channels:
            try:
                told = read_bucket(self._parts.config.config_dir, channel.name)
                if told is not None:
                    self._open(channel.id, channel.name, told, opened)
            except KacheryError as error:
                log.warning("the bucket of channel %s cannot be used: %s", channel.name, error)
                hint = f" ({error.hint})" if error.hint else ""
                opened.unusable[channel.name] = f"bucket of channel {channel.name}: {error}{hint}"
        return opened

    def _open(self, channel: str, name: str, told: BucketSettings, opened: _Opened) -> None:
        def through(url: BucketUrl, own: Objects | None) -> Objects:
            if own is not None:
                opened.own[channel] = own
                if url.scheme not in CLOUDS:
                    return own
            members = BucketMembers(self._sessions, channel, url)
            opened.members[channel] = members
            return MemberObjects(url, BlockingMembers(members, self._token), own)

        home = Home(self._parts.config.config_dir, name)
        opened.places[channel] = open_places(told, through=through, home=home)
        opened.settings[channel] = told

    def problems(self) -> list[str]:
        """What is wrong with the buckets, and what mends it."""
        return [*self._unusable.values(), *self.buckets.problems().values()]


def _changed_at(directory: str) -> int | None:
    """When something was put into the directory, or taken out."""
    try:
        return os.stat(directory).st_mtime_ns
    except OSError:
        return None
