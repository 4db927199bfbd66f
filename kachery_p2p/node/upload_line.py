"""The uploads of one channel: what is due is under way, UPLOADS_AT_ONCE at a time.

A long one holds up only its own place. After a failure the rest waits until the line is
looked at again, so that a bucket that is down is not asked for each content.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

import trio

from kachery_p2p.bucket.queue import Upload, UploadQueue
from kachery_p2p.bucket.uploads import Uploads
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import KacheryError
from kachery_p2p.limits import UPLOADS_AT_ONCE, UPLOADS_LISTED
from kachery_p2p.node.asked_uploads import AskedUploads

log = logging.getLogger(__name__)


class UploadLine:
    """One way into one bucket, and what goes it now."""

    def __init__(
        self,
        uploads: Uploads | AskedUploads,
        others: AskedUploads | None,
        queue: UploadQueue,
        threads: trio.CapacityLimiter,
        under_way: set[ContentHash],
        broke: Callable[[KacheryError], None],
    ) -> None:
        """`others`: members, asked when this node's own credentials are refused.

        `under_way` is shared with the line that was there before the settings changed. `broke`
        is told when the queue cannot be used.
        """
        self.uploads = uploads
        self._others = others
        self._queue = queue
        self._threads = threads
        self._broke = broke
        self._due: deque[Upload] = deque()
        self._under_way = under_way
        self._is_stopped = False

    async def look(self, nursery: trio.Nursery) -> None:
        """Start what is due, in `nursery`. Raises StateErrors."""
        self._is_stopped = False
        if not self._due and len(self._under_way) < UPLOADS_AT_ONCE:
            self._due.extend(await trio.to_thread.run_sync(self.uploads.due, UPLOADS_LISTED))
        self._start(nursery)

    def stop(self) -> None:
        """Start nothing more; what is under way goes on."""
        self._due.clear()
        self._is_stopped = True

    def _start(self, nursery: trio.Nursery) -> None:
        while self._due and not self._is_stopped and len(self._under_way) < UPLOADS_AT_ONCE:
            upload = self._due.popleft()
            if upload.content not in self._under_way:
                self._under_way.add(upload.content)
                nursery.start_soon(self._run, upload, nursery)

    async def _run(self, upload: Upload, nursery: trio.Nursery) -> None:
        try:
            if not await self._put_or_fail(upload):
                self.stop()
        except KacheryError as error:
            self.stop()
            self._broke(error)
        finally:
            self._under_way.discard(upload.content)
        if not self._due and not self._is_stopped:
            try:
                due = await trio.to_thread.run_sync(self.uploads.due, UPLOADS_LISTED)
            except KacheryError as error:
                self._broke(error)
                return
            self._due.extend(due)
        self._start(nursery)

    async def _put_or_fail(self, upload: Upload) -> bool:
        """True if it is settled. Raises StateErrors."""
        try:
            return await self._put(upload)
        except KacheryError:
            raise
        except Exception as error:
            # A mistake of ours in one content must not cost the others, nor end the node.
            log.exception("sha1://%s was not put there", upload.content)
            why = f"a mistake in this program ({type(error).__name__}): see the daemon's log"
            await trio.to_thread.run_sync(self._queue.failed, upload, why, time.time())
            return False

    async def _put(self, upload: Upload) -> bool:
        """True if it is settled."""
        if isinstance(self.uploads, AskedUploads):
            return await self.uploads.put(upload)
        # A thread that is left alone when the node stops has put all of it there, or nothing.
        is_settled = await trio.to_thread.run_sync(
            self.uploads.put, upload, abandon_on_cancel=True, limiter=self._threads
        )
        others = self._others
        if self.uploads.is_refused and others is not None and await others.can_ask():
            return await others.put(upload)
        return is_settled
