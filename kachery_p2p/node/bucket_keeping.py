"""On the keeper's node: whoever may read in a channel has the keys of its encrypted bucket."""

from __future__ import annotations

import logging

import trio

from kachery_p2p.bucket.sealed_reading import Keys, keys_at
from kachery_p2p.errors import KacheryError
from kachery_p2p.limits import BUCKET_REST_S_MAX, BUCKET_REST_S_MIN, UPLOADS_LOOK_S
from kachery_p2p.node.mirroring import Mirroring
from kachery_p2p.node.parts import Parts

log = logging.getLogger(__name__)


class BucketKeeping:
    """Follows the members of this node's channels: who is let in, and who is put out."""

    def __init__(self, parts: Parts, mirroring: Mirroring) -> None:
        self._parts = parts
        self._mirroring = mirroring
        # Of channels whose bucket failed: how often, and until when it is left alone.
        self._failing: dict[str, tuple[int, float]] = {}

    async def run(self) -> None:
        """For ever. Costs one look at a file each time, for a channel whose members stay."""
        while True:
            encrypted = self._encrypted()
            for channel in self._failing.keys() - encrypted.keys():
                self._settled(channel)
            for channel, keys in encrypted.items():
                if trio.current_time() >= self._failing.get(channel, (0, 0.0))[1]:
                    await self._maintain(channel, keys)
            await trio.sleep(UPLOADS_LOOK_S)

    def _encrypted(self) -> dict[str, Keys]:
        """The keys of each bucket that this node can put something into, by channel id."""
        found = {}
        for channel in self._parts.channels:
            uploads = self._mirroring.own_uploads(channel.id)
            keys = None if uploads is None else keys_at(uploads.bucket)
            if keys is not None:
                found[channel.id] = keys
        return found

    async def _maintain(self, channel: str, keys: Keys) -> None:
        try:
            await trio.to_thread.run_sync(keys.maintain, abandon_on_cancel=True)
        except KacheryError as error:
            failures, _ = self._failing.get(channel, (0, 0.0))
            rest_s = min(BUCKET_REST_S_MAX, BUCKET_REST_S_MIN * 2.0 ** min(failures, 16))
            self._failing[channel] = (failures + 1, trio.current_time() + rest_s)
            name, hint = self._parts.channel_name(channel), f" ({error.hint})" if error.hint else ""
            log.warning("the keys of the bucket of channel %s were not renewed: %s", name, error)
            self._parts.problems[_problem(channel)] = f"bucket of channel {name}: {error}{hint}"
        else:
            self._settled(channel)

    def _settled(self, channel: str) -> None:
        self._failing.pop(channel, None)
        self._parts.problems.pop(_problem(channel), None)


def _problem(channel: str) -> str:
    return f"keys of the bucket of {channel}"
