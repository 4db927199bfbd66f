"""The buckets of this node's channels: opened as their settings say, and anew when these change."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from kachery_p2p.bucket.opening import open_places
from kachery_p2p.channels.bucket_settings import BucketSettings, read_bucket
from kachery_p2p.channels.channel import Channel
from kachery_p2p.channels.joined import channels_dir
from kachery_p2p.errors import KacheryError
from kachery_p2p.limits import BUCKET_REST_S_MAX, UPLOADS_LOOK_S
from kachery_p2p.node.parts import Parts
from kachery_p2p.transfer.buckets import Buckets

if TYPE_CHECKING:
    from kachery_p2p.bucket.mirror import Mirror
    from kachery_p2p.bucket.objects import Objects

log = logging.getLogger(__name__)


class Bucketing:
    """What of the buckets a running node knows. Made before the network, run beside it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._seen: object = None
        self._again_at = math.inf
        self._unusable: dict[str, str] = {}
        self._opened: list[Objects | Mirror] = []
        self.buckets = Buckets(self.look)
        # By channel id; of those that could be opened.
        self.settings: dict[str, BucketSettings] = {}

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
        settings, places, unusable = await trio.to_thread.run_sync(
            self._open_all, self._parts.channels
        )
        self._seen, self._unusable, self.settings = seen, unusable, settings
        # A directory may be mounted later, a file of credentials be put in its place.
        self._again_at = trio.current_time() + BUCKET_REST_S_MAX if unusable else math.inf
        self.buckets.put(places)
        for place in self._opened:
            place.close()
        self._opened = [place for some in places.values() for place in some]

    def _open_all(
        self, channels: Sequence[Channel]
    ) -> tuple[dict[str, BucketSettings], dict[str, list[Objects | Mirror]], dict[str, str]]:
        config_dir = self._parts.config.config_dir
        settings: dict[str, BucketSettings] = {}
        places: dict[str, list[Objects | Mirror]] = {}
        unusable: dict[str, str] = {}
        for channel in channels:
            try:
                told = read_bucket(config_dir, channel.name)
                if told is not None:
                    places[channel.id] = open_places(told)
                    settings[channel.id] = told
            except KacheryError as error:
                log.warning("the bucket of channel %s cannot be used: %s", channel.name, error)
                hint = f" ({error.hint})" if error.hint else ""
                unusable[channel.name] = f"bucket of channel {channel.name}: {error}{hint}"
        return settings, places, unusable

    def problems(self) -> list[str]:
        """What is wrong with the buckets, and what mends it."""
        return [*self._unusable.values(), *self.buckets.problems().values()]


def _changed_at(directory: str) -> int | None:
    """When something was put into the directory, or taken out."""
    try:
        return os.stat(directory).st_mtime_ns
    except OSError:
        return None
