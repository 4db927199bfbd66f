"""The way into a bucket for a node without its credentials: members that have them are asked.

The queue is the same as for uploads of one's own, so a wish survives restarts, is repeated
with the same patience, and is settled when a member says that the content is in the bucket
and it is seen there: whoever believes that it is may delete the only other copy.
"""

from __future__ import annotations

import logging
import time

import trio

from kachery_p2p.bucket.home import Home
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.opening import open_places
from kachery_p2p.bucket.pushing import is_seen
from kachery_p2p.bucket.queue import MIRRORED, Upload, UploadQueue, place_of
from kachery_p2p.bucket.through import MemberObjects
from kachery_p2p.bucket.urls import BucketUrl, parse_bucket_url
from kachery_p2p.channels.bucket_settings import BucketSettings
from kachery_p2p.errors import (
    BucketBusyError,
    BucketError,
    BucketUnreachableError,
    KacheryError,
)
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    BUCKET_WISH_S_MIN,
    BUCKET_WISH_S_PER_MIB,
    BUCKET_WISH_WAIT_S_MAX,
    BUCKET_WITNESSES_MAX,
    CHUNK_BYTES,
    UPLOADS_AT_ONCE,
    UPLOADS_LOOK_S,
)
from kachery_p2p.node.parts import Parts
from kachery_p2p.transfer.bucket_members import BlockingMembers, BucketMembers
from kachery_p2p.wire.bucket_messages import LEFT_OUT, THERE

log = logging.getLogger(__name__)


class AskedUploads:
    """The way into the bucket of one channel, through members."""

    def __init__(
        self,
        settings: BucketSettings,
        channel_id: str,
        parts: Parts,
        members: BucketMembers,
        queue: UploadQueue,
    ) -> None:
        self.settings = settings
        self.place = place_of(parse_bucket_url(settings.urls[0]).node, channel_id)
        self._channel_id = channel_id
        self._parts = parts
        self._members = members
        self._queue = queue
        # Threads of its own: a bucket that does not answer must not take those of the node.
        self._looking = trio.CapacityLimiter(UPLOADS_AT_ONCE)

    def due(self, count_max: int) -> list[Upload]:
        """What may be asked for now."""
        return self._queue.due(self.place, time.time(), count_max)

    async def can_ask(self) -> bool:
        """True if a member is connected that puts things there."""
        return await self._members.is_there()

    async def put(self, upload: Upload) -> bool:
        """Ask for one; True if it is settled, one way or the other. Raises nothing but StateErrors.

        Returns when it is in the bucket, or when there is no point in waiting.
        """
        size, left_out = await trio.to_thread.run_sync(self._looked_at, upload)
        if left_out is not None:
            await trio.to_thread.run_sync(self._queue.left_out, upload, left_out)
            return True
        try:
            with trio.fail_after(2 * fetch_s(size)):
                return await self._ask(upload, size)
        except trio.TooSlowError:
            error: KacheryError = BucketUnreachableError("a member takes too long to put it there")
        except KacheryError as failed:
            error = failed
        rest_s = error.retry_after_s if isinstance(error, BucketBusyError) else 0.0
        hint = f" ({error.hint})" if error.hint else ""
        await self._failed(upload, f"{error}{hint}", rest_s)
        return False

    async def _ask(self, upload: Upload, size: int) -> bool:
        while True:
            # Who says that it tries for ever is not the only one who is asked.
            wish, by = await self._members.put(
                upload.content, upload.label, BUCKET_WISH_WAIT_S_MAX, upload.tries
            )
            if wish.state == THERE:
                if not await self._is_seen(upload, by):
                    if self._members.disbelieve(upload.content, by):
                        continue  # another may have put it there, or do so
                    await self._failed(upload, "it is not there, as a member said it was", 0.0)
                    return False
                await trio.to_thread.run_sync(self._queue.done, upload, size)
                return True
            if wish.state == LEFT_OUT:
                said = wish.said or "the member that was asked does not put it there"
                await trio.to_thread.run_sync(self._queue.left_out, upload, said)
                return True
            if wish.said:
                # It goes on trying, and so do we: what keeps it is to be seen meanwhile.
                await self._failed(upload, wish.said, 0.0)
                return False
            # Members answer late when there is nothing new; one that does not is asked no faster.
            await trio.sleep(UPLOADS_LOOK_S)

    async def _is_seen(self, upload: Upload, by: NodeId) -> bool:
        """True if the content is in the bucket, where `by` says that it is. Raises BucketErrors.

        Other members are asked for a look at it. `by` itself shows it if what it lends leads to
        the bucket; what it hands on itself counts if nobody else can be asked.
        """
        if not self._members.may_look():
            # A node that may only put things there has no way to see any of them.
            return True
        others = [node for node in await self._members.readers() if node != by]
        failure: BucketError | None = None
        seen = denied = 0
        for node in [*others[:BUCKET_WITNESSES_MAX], by]:
            try:
                is_there, is_relayed = await self._looked(upload, node)
            except BucketError as error:
                failure = error
                continue
            # It may hand on what it has itself, and was not put there.
            if is_there and not (denied and is_relayed):
                return True
            seen, denied = seen + is_there, denied + (not is_there)
        if failure is not None and not denied:
            raise failure
        # One who denies it does not outweigh those who show it.
        return seen > denied

    async def _looked(self, upload: Upload, node: NodeId) -> tuple[bool, bool]:
        """(whether it is there, whether that is the word of the member `node`). BucketErrors."""
        token = trio.lowlevel.current_trio_token()
        lent: list[MemberObjects] = []

        def through(url: BucketUrl, own: Objects | None) -> Objects:
            lent.append(MemberObjects(url, BlockingMembers(self._members, token, node), own))
            return lent[0]

        def look() -> bool:
            home = Home(self._parts.config.config_dir, self._parts.channel_name(self._channel_id))
            bucket = open_places(self.settings, through=through, home=home)[0]
            assert isinstance(bucket, Objects), "nothing is put into a mirror"
            try:
                with self._parts.blobs.open_verified(upload.content) as opened:
                    return is_seen(bucket, opened)
            finally:
                bucket.close()

        is_there = await trio.to_thread.run_sync(
            look, abandon_on_cancel=True, limiter=self._looking
        )
        return is_there, lent[0].relays

    async def _failed(self, upload: Upload, said: str, rest_s: float) -> None:
        log.info("sha1://%s was not put there: %s", upload.content, said)
        await trio.to_thread.run_sync(self._queue.failed, upload, said, time.time(), rest_s)

    def _looked_at(self, upload: Upload) -> tuple[int, str | None]:
        """(its size, why it cannot be asked for)."""
        content = upload.content
        if not self._parts.grants.is_granted(content, self._channel_id):
            name = self._parts.channel_name(self._channel_id)
            return 0, (
                f"it is not shared in channel {name}, so no member can fetch it"
                f" (`kachery-p2p share sha1://{content} --channel {name}`)"
            )
        try:
            with self._parts.blobs.open_verified(content) as opened:
                size = opened.root_object.size
        except KacheryError as error:
            return 0, str(error)
        if upload.why == MIRRORED and not self.settings.takes(size):
            return size, f"{size} bytes are outside the limits of this bucket"
        return size, None


def fetch_s(size: int) -> float:
    """How long a member may take for a content of this size before it is given up."""
    return BUCKET_WISH_S_MIN + BUCKET_WISH_S_PER_MIB * size / CHUNK_BYTES
