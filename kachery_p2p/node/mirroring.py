"""What this node shares goes into the buckets of its channels, in the background."""

from __future__ import annotations

import logging
import time
from collections import defaultdict

import trio

from kachery_p2p.bucket.home import Home
from kachery_p2p.bucket.queue import MIRRORED, UploadQueue, queue_path
from kachery_p2p.bucket.uploads import Uploads
from kachery_p2p.channels.bucket_settings import MEMBERS, NOTHING, SHARED, BucketSettings
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import KacheryError
from kachery_p2p.limits import (
    ANNOUNCE_GRANTS_READ_MAX,
    BUCKET_OPEN_AGAIN_S,
    RESTART_S_MAX,
    UPLOADS_AT_ONCE,
    UPLOADS_LOOK_S,
)
from kachery_p2p.node.asked_uploads import AskedUploads
from kachery_p2p.node.bucketing import Bucketing
from kachery_p2p.node.parts import Parts
from kachery_p2p.node.upload_line import UploadLine
from kachery_p2p.store.grants import Changes, Watch

log = logging.getLogger(__name__)


class Mirroring:
    """The queue of one node, filled by what the channels' policies say, and worked off."""

    def __init__(self, parts: Parts, bucketing: Bucketing) -> None:
        self._parts = parts
        self._bucketing = bucketing
        self.queue = UploadQueue(queue_path(parts.config.config_dir))
        self._lines: dict[str, UploadLine] = {}
        self._under_way: dict[str, set[ContentHash]] = defaultdict(set)
        self._woken = trio.Event()
        self._settings: dict[str, BucketSettings] = {}
        self._unusable: dict[str, str] = {}
        self._open_again_at = 0.0
        # Made with the first bucket: it remembers what changed, for as long as nobody asks.
        self._watch: Watch | None = None
        self._broken: KacheryError | None = None
        self._threads = trio.CapacityLimiter(UPLOADS_AT_ONCE)

    async def run(self) -> None:
        """For ever."""
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    wait_s = UPLOADS_LOOK_S
                    if self._bucketing.settings or self._settings:
                        await self._look(nursery)
                        wait_s = RESTART_S_MAX if self._broken is not None else wait_s
                    with trio.move_on_after(wait_s):
                        await self._woken.wait()
                    self._woken = trio.Event()
        finally:
            self.queue.close()

    async def _look(self, nursery: trio.Nursery) -> None:
        try:
            await trio.to_thread.run_sync(self._refresh)
            self._broken = None
            for line in list(self._lines.values()):
                await line.look(nursery)
        except KacheryError as error:
            self._broke(error)

    def _broke(self, error: KacheryError) -> None:
        """A queue that cannot be used is no reason to end all other work."""
        self._broken = error
        # What was to be added is looked through anew.
        self._settings = {}
        log.error("filling buckets failed: %s", error)

    def look_now(self) -> None:
        """Something was put into the queue that somebody waits for."""
        self._woken.set()

    def own_uploads(self, channel: str) -> Uploads | None:
        """The way into a channel's bucket with this node's own credentials, if there is one."""
        line = self._lines.get(channel)
        return line.uploads if line is not None and isinstance(line.uploads, Uploads) else None

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
        for channel, line in self._lines.items():
            counts = self.queue.counts(line.uploads.place)
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
        else:
            self._open_again(settings)
        ways = {channel: line.uploads for channel, line in self._lines.items()}
        shared = {c: uploads for c, uploads in ways.items() if uploads.settings.mirror == SHARED}
        if shared and self._watch is None:
            self._watch = self._parts.grants.watch()
        if shared and self._watch is not None and (is_new or self._watch.has_changed()):
            self._add(shared, self._watch.take(), everything=is_new)

    def _open(self, settings: dict[str, BucketSettings]) -> None:
        for line in self._lines.values():
            line.stop()
        self._unusable = {}
        lines: dict[str, UploadLine] = {}
        for channel, told in settings.items():
            self._open_one(channel, told, lines)
        # At once: to who asks meanwhile a bucket that goes on is never one that is gone.
        self._lines, self._settings = lines, settings

    def _open_again(self, settings: dict[str, BucketSettings]) -> None:
        """What could not be opened may be by now: the keys of an encrypted bucket are made anew."""
        if time.monotonic() < self._open_again_at:
            return
        # Settings that a failure made us forget may be gone by now: then so is the problem.
        for channel in list(self._unusable):
            del self._unusable[channel]
            if channel not in settings:
                continue
            self._open_one(channel, settings[channel], self._lines)
            line = self._lines.get(channel)
            if line is not None and line.uploads.settings.mirror == SHARED:
                self._add_all(channel, line.uploads)

    def _open_one(self, channel: str, told: BucketSettings, lines: dict[str, UploadLine]) -> None:
        try:
            lines[channel] = self._line(channel, told)
        except KacheryError as error:
            name = self._parts.channel_name(channel)
            hint = f" ({error.hint})" if error.hint else ""
            self._unusable[channel] = f"bucket of channel {name}: {error}{hint}"
            self._open_again_at = time.monotonic() + BUCKET_OPEN_AGAIN_S

    def _line(self, channel: str, told: BucketSettings) -> UploadLine:
        members, asked = self._bucketing.members.get(channel), None
        if members is not None:
            asked = AskedUploads(told, channel, self._parts, members, self.queue)
        if asked is not None and told.credentials == MEMBERS:
            uploads: Uploads | AskedUploads = asked
            asked = None
        else:
            home = Home(self._parts.config.config_dir, self._parts.channel_name(channel))
            uploads = Uploads(told, channel, self._parts.blobs, self.queue, home=home)
        under_way = self._under_way[uploads.place]
        return UploadLine(uploads, asked, self.queue, self._threads, under_way, self._broke)

    def _add(
        self, shared: dict[str, Uploads | AskedUploads], changes: Changes, *, everything: bool
    ) -> None:
        if everything or changes.unknown:
            for channel, uploads in shared.items():
                self._add_all(channel, uploads)
            return
        granted: dict[str, list[ContentHash]] = defaultdict(list)
        for content, channel in changes.touched:
            if channel in shared and self._parts.grants.is_granted(content, channel):
                granted[channel].append(content)
        for channel, contents in granted.items():
            self.queue.add(shared[channel].place, contents, MIRRORED)

    def _add_all(self, channel: str, uploads: Uploads | AskedUploads) -> None:
        after: ContentHash | None = None
        while some := self._parts.grants.contents(channel, after, ANNOUNCE_GRANTS_READ_MAX):
            self.queue.add(uploads.place, some, MIRRORED)
            after = some[-1]
