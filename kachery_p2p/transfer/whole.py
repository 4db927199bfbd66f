"""Blobs that only a bucket has which tells no root: loaded in one piece, judged by the SHA-1.

Buckets and mirrors that older tools have filled are like that, and directories. Nothing of
such a blob can be used before all of it has come.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterator

import trio

from kachery_p2p.bucket.faults import wrong_answer
from kachery_p2p.bucket.layout import key_of
from kachery_p2p.bucket.reading import Readable, Whose
from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.manifests import CONTENT_BYTES_MAX
from kachery_p2p.errors import (
    BucketBusyError,
    BucketError,
    BucketUnreachableError,
    KacheryError,
    StoreError,
    UriInconsistentError,
    VerificationError,
)
from kachery_p2p.limits import BUCKET_WHOLE_TRIES_MAX, CHUNK_BYTES, STALL_S_MAX
from kachery_p2p.network.failures import one_error
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.transfer.buckets import Buckets, Kept
from kachery_p2p.transfer.only import Only
from kachery_p2p.transfer.progress import FETCHING, Tell, TransferProgress

# (content, channel): the blob is in the store now.
Stored = Callable[[ContentHash, str], Awaitable[None]]


class Wholes:
    """Loads of whole blobs into this node's store; one for each content at a time."""

    def __init__(self, buckets: Buckets, blobs: BlobStore, stored: Stored) -> None:
        self._buckets = buckets
        self._blobs = blobs
        self._stored = stored
        self._loading: dict[ContentHash, trio.Event] = {}

    async def bring(
        self, content: ContentHash, root: Root | None, only: Only, tell: Tell
    ) -> str | None:
        """None: it is in the store now. Else why no bucket brought it ("": none has it).

        Raises StoreError, and UriInconsistentError if `root` is not that of these bytes.
        """
        # Where no bucket may be used, nothing comes of what is here already.
        if not self._buckets.names(only):
            return ""
        while (running := self._loading.get(content)) is not None:
            await running.wait()
        if self._blobs.find(content) is None:
            running = self._loading[content] = trio.Event()
            try:
                why = await self._bring(content, only, tell)
            finally:
                del self._loading[content]
                running.set()
            if why is not None:
                return why
        await self._check_root(content, root)
        return None

    async def _bring(self, content: ContentHash, only: Only, tell: Tell) -> str | None:
        failures: list[str] = []
        is_again = True
        while is_again:
            kept: list[Kept] = []
            await self._buckets.look(content, only, kept)
            is_again, failures = False, []
            for one in kept:
                try:
                    await self._load(one, content, tell)
                    await self._stored(content, one.channel)
                    return None
                except StoreError:
                    raise
                except KacheryError as error:
                    is_misled = self._is_misled(one, content, error)
                    is_again |= is_misled
                    failures.append(self._noted(one, error, is_misled))
        return "; ".join([*failures, *self._silent(only)])

    def _is_misled(self, one: Kept, content: ContentHash, error: KacheryError) -> bool:
        """True if the bucket was read through a member, who told it wrong: another may be asked."""
        self._buckets.forget(one.place, content)
        # A size that was made up makes reading fail, whoever reads: others may say another.
        is_busy = isinstance(error, BucketBusyError)
        return not is_busy and one.place.disbelieve([key_of(content)]) is Whose.NEW_MEMBERS

    def _noted(self, one: Kept, error: KacheryError, is_misled: bool) -> str:
        """What is wrong with the bucket, for people to read."""
        if isinstance(error, VerificationError):
            return f"{one.place.name}: has other bytes under this name"
        if not is_misled:
            self._buckets.failed(one.place, error)
        return str(error)

    def _silent(self, only: Only) -> list[str]:
        problems = self._buckets.problems()
        return [problems[name] for name in self._buckets.names(only) if name in problems]

    async def _load(self, one: Kept, content: ContentHash, tell: Tell) -> None:
        place, channel, meta = one
        if meta.size > CONTENT_BYTES_MAX:
            raise wrong_answer(place.name, f"says that it has {meta.size} bytes")
        progress = TransferProgress()
        progress.size = meta.size
        progress.entered(FETCHING)
        progress.joined(place.node, place.name, channel, trio.current_time())
        tell(progress.snapshot)
        token = trio.lowlevel.current_trio_token()

        def came(byte_count: int) -> None:
            progress.came(place.node, byte_count, trio.current_time(), needed=True)
            tell(progress.snapshot)

        reading = _Reading(
            place, content, meta.size, lambda count: token.run_sync_soon(came, count)
        )
        with one_error():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._give_up_when_stalled, reading)
                try:
                    await self._buckets.run(
                        lambda: self._blobs.put_stream(reading.pieces(), content, meta.size)
                    )
                finally:
                    reading.given_up.set()
                nursery.cancel_scope.cancel()
        self._buckets.worked(place)

    async def _give_up_when_stalled(self, reading: _Reading) -> None:
        # The thread notes when something came; to look sometimes costs less than to be told.
        while time.monotonic() - reading.moved_at < 2 * STALL_S_MAX:  # noqa: ASYNC110
            await trio.sleep(STALL_S_MAX / 2)
        raise BucketUnreachableError(
            f"{reading.place.name} sent nearly nothing for {2 * STALL_S_MAX:g} s",
            hint="try again later",
        )

    async def _check_root(self, content: ContentHash, root: Root | None) -> None:
        if root is None:
            return
        opened = await trio.to_thread.run_sync(self._blobs.open_verified, content)
        with opened:
            if opened.root_object.root != root:
                raise UriInconsistentError(
                    f"the bytes with the SHA-1 {content} do not have the root {root}",
                    hint="ask whoever gave you the URI for a correct one",
                )


class _Reading:
    """The bytes of one object, with what was missing asked for again when the line broke."""

    def __init__(
        self, place: Readable, content: ContentHash, size: int, came: Callable[[int], object]
    ) -> None:
        self.place = place
        self.moved_at = time.monotonic()
        # Nobody wants it any more: the thread ends, and leaves nothing behind.
        self.given_up = threading.Event()
        self._content = content
        self._size = size
        self._came = came

    def pieces(self) -> Iterator[bytes]:
        at, told, tries_at = 0, 0, [0]
        while at < self._size:
            try:
                for piece in self.place.read(self._content, at, self._size):
                    if self.given_up.is_set():
                        raise BucketError("nobody waits for it any more")
                    at += len(piece)
                    if at - told >= CHUNK_BYTES or at == self._size:
                        self._came(at - told)
                        told = at
                    # While the disk is busy, the server is not to blame.
                    self.moved_at = math.inf
                    yield piece
                    self.moved_at = time.monotonic()
            except BucketUnreachableError:
                # Again from here, as often as it has brought something since.
                tries_at = [tried for tried in tries_at if tried == at] + [at]
                if len(tries_at) > BUCKET_WHOLE_TRIES_MAX:
                    raise
        self.moved_at = math.inf
