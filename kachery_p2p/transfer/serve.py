"""Giving blobs to the members of our channels: `have?`, root objects, pages and chunks.

Every request names its channel and is checked when it is served: the node on the other
side (as the secure channel authenticated it) must have proved that channel, and the blob
must be granted in it. Absent, not granted and not proved are answered by the same words.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import trio

from kachery_p2p.channels.permissions import PROVIDE, READ
from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.manifests import RootObject, chunk_length
from kachery_p2p.errors import (
    KacheryError,
    NotYetError,
    PeerBusyError,
    PeerError,
    PeerRefusedError,
)
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    BATCH_PIECES_BYTES_MAX,
    CHUNK_BYTES,
    HASH_WAIT_S_MAX,
    HASHED_AT_ONCE_MAX,
    SERVED_STREAMS_PER_PEER_MAX,
    STREAM_IDLE_S_MAX,
)
from kachery_p2p.network.bulk_serving import Served, ServedBatch
from kachery_p2p.network.failures import code_of
from kachery_p2p.network.link import DATA, Link, Stream
from kachery_p2p.network.session import Session
from kachery_p2p.network.sessions import Sessions
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.grants import Grants
from kachery_p2p.store.objects import Opened
from kachery_p2p.transfer.batch_serving import ServedBlobs
from kachery_p2p.transfer.partial_serving import Offer, Offers, PartInBulk, all_bits
from kachery_p2p.transfer.sources import send_in_time
from kachery_p2p.wire.batches import (
    BatchRequest,
    BulkBatch,
    is_batch_request,
    read_batch_request,
)
from kachery_p2p.wire.bulk_messages import BulkRange
from kachery_p2p.wire.codec import FrameDecoder
from kachery_p2p.wire.ranges import RangeRequest, read_range_request

log = logging.getLogger(__name__)

_READ_BYTES = 1 << 14


class Server:
    """Answer the members' requests for content."""

    def __init__(
        self,
        *,
        sessions: Sessions,
        link: Link,
        blobs: BlobStore,
        grants: Grants,
        offers: Offers | None = None,
    ) -> None:
        """`offers`: what this node is loading, and passes on already."""
        self._sessions = sessions
        self._blobs = blobs
        self._grants = grants
        self._offers = offers or Offers()
        self._streams: dict[str, int] = {}
        self._hashing: dict[ContentHash, trio.Event] = {}
        self._hashers = trio.CapacityLimiter(HASHED_AT_ONCE_MAX)
        self._nursery: trio.Nursery | None = None
        self.bytes_served = 0
        # By node, of those with data streams that are open.
        self.served_to: dict[str, int] = {}
        sessions.handle("have", self._have)
        sessions.handle("root", self._root)
        sessions.handle("page", self._page)
        sessions.handle("chunks", self._chunks)
        link.accept(DATA, self._serve_stream)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hash, in the background, granted objects that this node has never hashed."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    # --- control stream ---------------------------------------------------------------------

    async def _have(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        offer = self._offered(session, body)
        if offer is not None:
            held, pinned = offer.root_object, False
        else:
            # What we serve whole we have hashed ourselves: that is what `pinned` says.
            held, pinned = await self._root_object(self._granted(session, body)), True
        return {"size": held.size, "root": held.root.raw, "pinned": pinned}

    async def _root(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        offer = self._offered(session, body)
        held = offer.root_object if offer is not None else await self._held(session, body)
        return {"object": held.encode()}

    async def _chunks(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        offer, number = self._offered(session, body), body["number"]
        held = offer.root_object if offer is not None else await self._held(session, body)
        if number >= held.page_count:
            raise _refusal()
        return {"chunks": offer.bits(number) if offer is not None else all_bits(held, number)}

    async def _page(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        offer = self._offered(session, body)
        if offer is not None and body["number"] < offer.root_object.page_count:
            return {"page": await trio.to_thread.run_sync(offer.page, body["number"])}
        held = await self._held(session, body)
        page = await trio.to_thread.run_sync(self._blobs.page, held.content, body["number"])
        if page is None:
            raise _refusal()
        return {"page": page}

    def _granted(self, session: Session, body: dict[str, Any]) -> ContentHash:
        """The content asked for, if this member may have it."""
        content = ContentHash.of_raw(body["content"])
        channel = body["channel"]
        if not self._serves(session, channel) or not self._grants.is_granted(content, channel):
            raise _refusal()
        return content

    def _offered(self, session: Session, body: dict[str, Any]) -> Offer | None:
        """What this node is loading of the content, in the channel, if this member may have it."""
        if not self._serves(session, body["channel"]):
            raise _refusal()
        root = Root.of_raw(body["root"]) if "root" in body else None
        return self._offers.find(ContentHash.of_raw(body["content"]), body["channel"], root)

    def _serves(self, session: Session, channel: str) -> bool:
        """True if, at this moment, the peer may read in the channel and this node provide."""
        return session.may(channel, READ) and self._sessions.may(channel, PROVIDE)

    async def _held(self, session: Session, body: dict[str, Any]) -> RootObject:
        held = await self._root_object(self._granted(session, body))
        if held.root.raw != body["root"]:
            raise _refusal()
        return held

    async def _root_object(self, content: ContentHash) -> RootObject:
        """The object's root object; PeerBusyError while it is hashed for the first time."""
        known = await trio.to_thread.run_sync(self._blobs.known, content)
        if known is not None:
            return known
        if self._blobs.find(content) is None:
            raise _refusal()
        hashed = self._hash_in_background(content)
        with trio.move_on_after(HASH_WAIT_S_MAX):
            await hashed.wait()
        known = await trio.to_thread.run_sync(self._blobs.known, content)
        if known is None:
            raise PeerBusyError("is hashing it for the first time")
        return known

    def _hash_in_background(self, content: ContentHash) -> trio.Event:
        assert self._nursery is not None, "run() has not begun"
        if content not in self._hashing:
            self._hashing[content] = trio.Event()
            self._nursery.start_soon(self._hash, content)
        return self._hashing[content]

    async def _hash(self, content: ContentHash) -> None:
        try:
            opened = await trio.to_thread.run_sync(
                self._blobs.open_verified, content, limiter=self._hashers
            )
            opened.close()
        except KacheryError as error:
            log.warning("cannot serve %s: %s", content, error)
        except Exception:
            # One object that cannot be read must not take the other ones off the network.
            log.exception("hashing %s failed", content)
        finally:
            self._hashing.pop(content).set()

    # --- bulk connections --------------------------------------------------------------------

    async def serve_bulk(self, peer: NodeId, wanted: BulkRange | BulkBatch) -> Served | ServedBatch:
        """What a member asks for on its bulk connection, if it may have it."""
        session = self._sessions.get(peer)
        if session is None:
            raise _refusal()
        if isinstance(wanted, BulkBatch):
            return self._served_batch(session, wanted)
        body = {"channel": wanted.channel, "content": wanted.content, "root": wanted.root}
        offer = self._offered(session, body)
        if offer is not None:
            chunks = range(wanted.first, wanted.end)
            descriptor = await trio.to_thread.run_sync(offer.open, chunks)
            return PartInBulk(offer, descriptor, lambda: not self._serves(session, offer.channel))
        held = await self._held(session, body)
        if wanted.end > held.chunk_count:
            raise _refusal()
        try:
            opened = await trio.to_thread.run_sync(self._blobs.open_verified, held.content)
        except KacheryError as error:
            log.warning("cannot serve %s: %s", held.content, error)
            raise _refusal()
        return _ServedInBulk(opened, lambda: not self._serves(session, wanted.channel))

    def _served_batch(self, session: Session, wanted: BulkBatch) -> ServedBatch:
        """Who may not read there is refused as a whole; each content is judged when it is due."""

        def may_serve() -> bool:
            return self._serves(session, wanted.channel)

        if not may_serve():
            raise _refusal()
        return ServedBlobs(wanted, self._blobs, self._grants, may_serve)

    # --- data streams --------------------------------------------------------------------------

    async def _serve_stream(self, stream: Stream) -> None:
        count = self._streams.get(stream.peer, 0)
        if count >= SERVED_STREAMS_PER_PEER_MAX:
            return
        self._streams[stream.peer] = count + 1
        try:
            await self._serve_requests(stream)
        except PeerError as error:
            log.debug("data stream of %s ended: %s", stream.peer, error)
        finally:
            self._streams[stream.peer] -= 1
            if not self._streams[stream.peer]:
                del self._streams[stream.peer]
                self.served_to.pop(stream.peer, None)

    def _count(self, peer: str, byte_count: int) -> None:
        self.bytes_served += byte_count
        self.served_to[peer] = self.served_to.get(peer, 0) + byte_count

    async def _serve_requests(self, stream: Stream) -> None:
        decoder = FrameDecoder()
        with _Open(self._blobs) as opened:
            while True:
                with trio.move_on_after(STREAM_IDLE_S_MAX) as idle:
                    data = await stream.receive_some(_READ_BYTES)
                if idle.cancelled_caught or not data:
                    return
                for message in decoder.feed(data):
                    if is_batch_request(message):
                        await self._serve_batch(stream, read_batch_request(message))
                        continue
                    await self._serve_range(stream, opened, read_range_request(message))

    async def _serve_range(self, stream: Stream, opened: _Open, request: RangeRequest) -> None:
        # Looked up for each request: removal from a channel ends a transfer at the next range.
        session = self._sessions.get(stream.peer)
        try:
            if session is None:
                raise _refusal()
            offer = self._offered(session, asdict(request))
            if offer is not None:
                await opened.use_part(offer, request)
            else:
                await opened.use(await self._held_for(session, request))
            for number in range(request.first, request.first + request.count):
                data = await opened.read(number)
                # Whoever is removed from the channel gets not one chunk more.
                if not self._serves(session, request.channel):
                    raise _refusal()
                await send_in_time(stream, request.chunk_frame(number, data), session.noticed)
                self._count(stream.peer, len(data))
        except (PeerRefusedError, PeerBusyError, NotYetError) as error:
            await send_in_time(stream, request.failure_frame(code_of(error), str(error)))

    async def _serve_batch(self, stream: Stream, request: BatchRequest) -> None:
        session = self._sessions.get(stream.peer)
        try:
            if session is None:
                raise _refusal()
            moved = session.noticed
            with contextlib.closing(self._served_batch(session, request.wanted)) as served:
                room = memoryview(bytearray(BATCH_PIECES_BYTES_MAX))
                while not served.finished:
                    pieces = room[: await trio.to_thread.run_sync(served.fill, room)]
                    # Whoever is removed from the channel gets not one blob more.
                    if served.revoked():
                        raise _refusal()
                    frame = request.pieces_frame(pieces, last=served.finished)
                    await send_in_time(stream, frame, moved)
                    self._count(stream.peer, len(pieces))
        except (PeerRefusedError, PeerBusyError) as error:
            await send_in_time(stream, request.failure_frame(code_of(error), str(error)))

    async def _held_for(self, session: Session, request: RangeRequest) -> RootObject:
        held = await self._held(session, asdict(request))
        if request.first + request.count > held.chunk_count:
            raise _refusal()
        return held


class _ServedInBulk:
    """A blob while one request on a bulk connection is answered."""

    def __init__(self, opened: Opened, revoked: Callable[[], bool]) -> None:
        self._opened = opened
        self.revoked = revoked
        self.descriptor = opened.descriptor
        self.size = opened.root_object.size

    def close(self) -> None:
        self._opened.close()


class _Open:
    """The blob a data stream is reading from: opened once, read chunk by chunk."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._held: RootObject | None = None
        self._opened: Opened | None = None
        self._offer: Offer | None = None

    def __enter__(self) -> _Open:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    async def use_part(self, offer: Offer, request: RangeRequest) -> None:
        chunks = range(request.first, request.first + request.count)
        descriptor = await trio.to_thread.run_sync(offer.open, chunks)
        self._close()
        self._opened = Opened(descriptor, offer.root_object)
        # Of a blob that is loaded each range is judged anew: it is not kept for the next one.
        self._held, self._offer = offer.root_object, offer

    def _close(self) -> None:
        if self._opened is not None:
            self._opened.close()
        self._opened = self._held = self._offer = None

    async def use(self, held: RootObject) -> None:
        if self._held == held and self._offer is None:
            return
        self._close()
        try:
            self._opened = await trio.to_thread.run_sync(self._blobs.open_verified, held.content)
        except KacheryError as error:
            log.warning("cannot serve %s: %s", held.content, error)
            raise _refusal()
        self._held = held

    async def read(self, number: int) -> bytes:
        assert self._opened is not None
        assert self._held is not None
        if self._offer is not None and self._offer.withdrawn:
            raise _refusal()
        length = chunk_length(self._held.size, number)
        descriptor = self._opened.descriptor
        try:
            data = await trio.to_thread.run_sync(os.pread, descriptor, length, number * CHUNK_BYTES)
        except OSError as error:
            log.warning("cannot serve %s: %s", self._held.content, error)
            raise PeerError("an object could not be read")
        if len(data) != length:
            raise PeerError("an object became shorter while it was served")
        return data


def _refusal() -> PeerRefusedError:
    return PeerRefusedError("not available in this channel")
