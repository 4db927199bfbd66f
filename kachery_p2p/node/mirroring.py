"""What this node shares goes into the buckets of its channels, in the background."""

from __future__ import annotations

import logging
from collections import defaultdict, deque

import trio

from kachery_p2p.bucket.queue import MIRRORED, Upload, UploadQueue, queue_path
from kachery_p2p.bucket.uploads import Uploads
from kachery_p2p.channels.bucket_settings import NOTHING, SHARED, BucketSettings
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import KacheryError, sole_error
from kachery_p2p.limits import (
    ANNOUNCE_GRANTS_READ_MAX,
    RESTART_S_MAX,
    UPLOADS_AT_ONCE,
    UPLOADS_LISTED,
    UPLOADS_LOOK_S,
)
from kachery_p2p.node.bucketing import Bucketing
from kachery_p2p.node.parts import Parts
from kachery_p2p.store.grants import Changes, Watch

log = logging.getLogger(__name__)


class Mirroring:
    """The queue of one node, filled by what the channels' policies say, and worked off."""

    def __init__(self, parts: Parts, bucketing: Bucketing) -> None:
        self._parts = parts
        self._bucketing = bucketing
        self._queue = UploadQueue(queue_path(parts.config.config_dir))
        self._uploads: dict[str, Uploads] = {}
        self._settings: dict[str, BucketSettings] = {}
        self._unusable: dict[str, str] = {}
        # Made with the first bucket: it remembers what changed, for as long as nobody asks.
        self._watch: Watch | None = None
        self._broken: KacheryError | None = None
        self._threads = trio.CapacityLimiter(UPLOADS_AT_ONCE)

    async def run(self) -> None:
        """For ever."""
        try:
            while True:
                wait_s = UPLOADS_LOOK_S
                if self._bucketing.settings or self._settings:
                    try:
                        await trio.to_thread.run_sync(self._refresh)
                        await self._work()
                        self._broken = None
                    except* KacheryError as errors:
                        # A queue that cannot be used is no reason to end all other work.
                        self._broken = sole_error(errors)
                        # What was to be added is looked through anew.
                        self._settings = {}
                        log.error("filling buckets failed: %s", self._broken)
                        wait_s = RESTART_S_MAX
                await trio.sleep(wait_s)
        finally:
            self._queue.close()

    def problems(self) -> list[str]:
        """What keeps things from getting there."""
        if self._broken is not None:
            return [
                f"buckets are not filled: {self._broken} ({self._broken.hint or 'see the log'})"
            ]
        try:
            return self._waiting()
        except KacheryError as error:
            return [f"buckets are not filled: {error} ({error.hint or 'see the log'})"]

    def _waiting(self) -> list[str]:
        found = list(self._unusable.values())
        for channel, uploads in self._uploads.items():
            counts = self._queue.counts(uploads.place)
            if counts.failing:
                name = self._parts.channel_name(channel)
                waiting = f"{counts.waiting} wait to be put there"
                found.append(f"bucket of channel {name}: {waiting}; {counts.said}")
        return found

    # --- what is to go there ----------------------------------------------------------------

    def _refresh(self) -> None:
        """Take the settings and the grants as they are now."""
        settings = {c: s for c, s in self._bucketing.settings.items() if s.mirror != NOTHING}
        is_new = settings != self._settings
        if is_new:
            self._open(settings)
        shared = {c: u for c, u in self._uploads.items() if u.settings.mirror == SHARED}
        if shared and self._watch is None:
            self._watch = self._parts.grants.watch()
        if shared and self._watch is not None and (is_new or self._watch.has_changed()):
            self._add(shared, self._watch.take(), everything=is_new)

    def _open(self, settings: dict[str, BucketSettings]) -> None:
        self._uploads, self._unusable = {}, {}
        for channel, told in settings.items():
            try:
                self._uploads[channel] = Uploads(told, channel, self._parts.blobs, self._queue)
            except KacheryError as error:
                name = self._parts.channel_name(channel)
                hint = f" ({error.hint})" if error.hint else ""
                self._unusable[channel] = f"bucket of channel {name}: {error}{hint}"
        self._settings = settings

    def _add(self, shared: dict[str, Uploads], changes: Changes, *, everything: bool) -> None:
        if everything or changes.unknown:
            for channel, uploads in shared.items():
                self._add_all(channel, uploads)
            return
        granted: dict[str, list[ContentHash]] = defaultdict(list)
        for content, channel in changes.touched:
            if channel in shared and self._parts.grants.is_granted(content, channel):
                granted[channel].append(content)
        for channel, contents in granted.items():
            self._queue.add(shared[channel].place, contents, MIRRORED)

    def _add_all(self, channel: str, uploads: Uploads) -> None:
        after: ContentHash | None = None
        while some := self._parts.grants.contents(channel, after, ANNOUNCE_GRANTS_READ_MAX):
            self._queue.add(uploads.place, some, MIRRORED)
            after = some[-1]

    # --- putting it there ----------------------------------------------------------------------

    async def _work(self) -> None:
        async with trio.open_nursery() as nursery:
            for uploads in list(self._uploads.values()):
                nursery.start_soon(self._work_off, uploads)

    async def _work_off(self, uploads: Uploads) -> None:
        """All that is due, UPLOADS_AT_ONCE at a time; after a failure the rest waits its turn."""
        while due := await trio.to_thread.run_sync(uploads.due, UPLOADS_LISTED):
            waiting, settled = deque(due), [True]
            async with trio.open_nursery() as nursery:
                for _ in range(UPLOADS_AT_ONCE):
                    nursery.start_soon(self._put, uploads, waiting, settled)
            if not settled[0]:
                return

    async def _put(self, uploads: Uploads, waiting: deque[Upload], settled: list[bool]) -> None:
        while waiting and settled[0]:
            upload = waiting.popleft()
            # A thread that is left alone when the node stops has put all of it there, or nothing.
            settled[0] &= await trio.to_thread.run_sync(
                uploads.put, upload, abandon_on_cancel=True, limiter=self._threads
            )
