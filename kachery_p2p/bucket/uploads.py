"""Working off the queue of one bucket, by blocking calls: what the daemon and commands share."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from kachery_p2p.bucket.home import Home
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.opening import open_for_writing
from kachery_p2p.bucket.owner import take_prefix
from kachery_p2p.bucket.pushing import Pace, push
from kachery_p2p.bucket.queue import MIRRORED, Upload, UploadQueue, place_of
from kachery_p2p.channels.bucket_settings import BucketSettings
from kachery_p2p.errors import (
    BucketBusyError,
    BucketError,
    BucketRefusedError,
    CorruptObjectError,
    HashCollisionError,
    KacheryError,
    NotFoundError,
    SourceChangedError,
)
from kachery_p2p.limits import BUCKET_PROVIDER_S
from kachery_p2p.store.blobs import BlobStore

log = logging.getLogger(__name__)

# With these it is the content that cannot be sent, now or later; with others the bucket.
_LEFT_OUT = (NotFoundError, CorruptObjectError, HashCollisionError, SourceChangedError)


class Uploads:
    """The way into the bucket of one channel. Safe in several threads."""

    def __init__(
        self,
        settings: BucketSettings,
        channel_id: str,
        blobs: BlobStore,
        queue: UploadQueue,
        environ: Mapping[str, str] | None = None,
        *,
        home: Home | None = None,
    ) -> None:
        """Raises BucketReadOnlyError, and what opening a bucket raises; asks no server."""
        self.settings = settings
        self.bucket: Objects = open_for_writing(settings, environ, home=home)
        self.channel_id = channel_id
        self._blobs = blobs
        self._queue = queue
        self.pace = Pace(settings.max_upload)
        self._is_ours = False
        self._refused_until = 0.0

    @property
    def place(self) -> str:
        """What the rows of the queue call this bucket."""
        return place_of(self.bucket.node, self.channel_id)

    @property
    def is_refused(self) -> bool:
        """True for a while after what this node has did not open the bucket.

        Not for ever: credentials are renewed, and nothing else may be there to be tried with.
        """
        return time.monotonic() < self._refused_until

    def due(self, count_max: int) -> list[Upload]:
        """What may be tried now."""
        return self._queue.due(self.place, time.time(), count_max)

    def put(self, upload: Upload) -> bool:
        """Try one; True if it is settled, one way or the other. Raises nothing but StateErrors."""
        try:
            if not self._takes(upload):
                return True
            if not self._is_ours:
                take_prefix(self.bucket, self.channel_id)
                self._is_ours = True
            pushed = push(self.bucket, self._blobs, upload.content, upload.label, self.pace)
        except _LEFT_OUT as error:
            self._queue.left_out(upload, str(error))
            return True
        except KacheryError as error:
            is_refused = isinstance(error, BucketRefusedError)
            self._refused_until = time.monotonic() + BUCKET_PROVIDER_S if is_refused else 0.0
            rest_s = error.retry_after_s if isinstance(error, BucketBusyError) else 0.0
            hint = f" ({error.hint})" if error.hint and isinstance(error, BucketError) else ""
            self._queue.failed(upload, f"{error}{hint}", time.time(), rest_s)
            log.info("sha1://%s was not put there: %s", upload.content, error)
            return False
        self._refused_until = 0.0
        self._queue.done(upload, pushed.size)
        return True

    def _takes(self, upload: Upload) -> bool:
        """False for what the limits of size leave out; what a person asked for is put there."""
        if upload.why != MIRRORED:
            return True
        with self._blobs.open_verified(upload.content) as opened:
            size = opened.root_object.size
        if self.settings.takes(size):
            return True
        self._queue.left_out(upload, f"{size} bytes are outside the limits of this bucket")
        return False
