"""Where chunks can be had: buckets, and members that say they hold a blob; how those are asked.

A `Source` hands over the root object, pages and chunks of a blob. What it hands over is
verified by whoever asked (`fetch`); a source only sees to it that answers come in time,
in order and in bounded pieces.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol, runtime_checkable

import trio

from kachery_p2p.bucket.reading import Whose
from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.manifests import RootObject
from kachery_p2p.errors import PeerGoneError, PeerTimeoutError
from kachery_p2p.limits import (
    OUTSTANDING_CHUNKS_MAX,
    RANGE_CHUNKS_MAX,
    REQUEST_S_MAX,
    STALL_BYTES_MIN,
    STALL_S_MAX,
)
from kachery_p2p.network.bulk_sessions import Bulk
from kachery_p2p.network.failures import error_of
from kachery_p2p.network.link import DATA, Link, Stream
from kachery_p2p.network.session import Session
from kachery_p2p.transfer.ranged import Ranged
from kachery_p2p.wire.codec import FrameDecoder, Message
from kachery_p2p.wire.conversation import Failure
from kachery_p2p.wire.ranges import Chunk, RangeAnswer, RangeRequest

_READ_BYTES = 1 << 18

Deliver = Callable[["Source", int, bytes], Awaitable[None]]


class Source(Protocol):
    """Anything that can hand us the chunks of a blob."""

    @property
    def name(self) -> str:
        """How people know it. A peer chooses its label, so blame goes by `node`."""

    @property
    def node(self) -> str:
        """The id of the node that serves; unique among the sources of a blob."""

    @property
    def channel(self) -> str:
        """The id of the channel in which it serves us."""

    async def root_object(self, content: ContentHash, root: Root) -> bytes: ...

    async def page(self, content: ContentHash, root: Root, number: int) -> bytes: ...

    async def bulk(self) -> Ranged | None:
        """A fast connection to ask for chunks on; None if there is none, and `pull` is to do it."""

    async def pull(
        self,
        content: ContentHash,
        root: Root,
        next_range: Callable[[], range | None],
        deliver: Deliver,
    ) -> None:
        """Ask for what `next_range` says until it says None; `deliver` each chunk in that order.

        Raises PeerTimeoutError when too little comes for STALL_S_MAX, other PeerErrors,
        and whatever `deliver` raises.
        """


@runtime_checkable
class PartialSource(Source, Protocol):
    """A source that is loading the blob itself, and hands on what it has so far."""

    async def chunks(self, content: ContentHash, root: Root, page: int) -> bytes:
        """Which chunks of a page it has: bit i % 8 of byte i // 8 is the page's chunk i."""


@runtime_checkable
class SizedSource(Source, Protocol):
    """A source that is read by the size that it told."""

    def check_told(self, found: RootObject) -> None:
        """Pass if it told the truth. Raises VerificationError."""


@runtime_checkable
class LentSource(Source, Protocol):
    """A source that may hand over what somebody else says: a bucket."""

    @property
    def size(self) -> int:
        """How large the content is said to be."""

    def disbelieve(self) -> Whose:
        """What it handed over is wrong. NEW_MEMBERS: found anew it may do better."""


class Claim(NamedTuple):
    """What one source says of a blob. `pinned`: it says that it hashed the bytes itself.

    A claim that is not pinned is that of a PartialSource.
    """

    source: Source
    size: int
    root: Root
    pinned: bool


class PeerSource:
    """A member of a channel."""

    def __init__(
        self, session: Session, link: Link, channel: str, bulk: Bulk | None = None
    ) -> None:
        self._session = session
        self._link = link
        self._channel = channel
        self._bulk = bulk

    @property
    def name(self) -> str:
        return self._session.name

    @property
    def node(self) -> str:
        return self._session.peer

    @property
    def channel(self) -> str:
        return self._channel

    async def root_object(self, content: ContentHash, root: Root) -> bytes:
        answer = await self._session.request("root", self._names(content, root), REQUEST_S_MAX)
        return bytes(answer["object"])

    async def page(self, content: ContentHash, root: Root, number: int) -> bytes:
        body = {**self._names(content, root), "number": number}
        answer = await self._session.request("page", body, REQUEST_S_MAX)
        return bytes(answer["page"])

    async def bulk(self) -> Ranged | None:
        return None if self._bulk is None else await self._bulk.connection(self._session)

    async def pull(
        self,
        content: ContentHash,
        root: Root,
        next_range: Callable[[], range | None],
        deliver: Deliver,
    ) -> None:
        first = next_range()
        if first is None:
            return
        stream = await self._link.open_stream(self._session.peer, DATA)
        try:
            await self._pull(stream, content, root, first, next_range, deliver)
        except PeerTimeoutError:
            # Half-open: without this the next request would hang on the same dead connection.
            self._session.suspect()
            raise
        finally:
            await stream.reset()

    async def _pull(
        self,
        stream: Stream,
        content: ContentHash,
        root: Root,
        asked: range | None,
        next_range: Callable[[], range | None],
        deliver: Deliver,
    ) -> None:
        answers = _Answers(stream, self._session.noticed)
        outstanding = 0
        for request_id in itertools.count(1):
            if asked is not None:
                request = RangeRequest(
                    request_id, self.channel, content.raw, root.raw, asked.start, len(asked)
                )
                await send_in_time(stream, request.frame())
                answers.expect(request)
                outstanding += len(asked)
            while outstanding > (0 if asked is None else OUTSTANDING_CHUNKS_MAX - RANGE_CHUNKS_MAX):
                chunk = await answers.next_chunk()
                outstanding -= 1
                await deliver(self, chunk.number, chunk.data)
            asked = next_range()
            if asked is None and not outstanding:
                return

    def _names(self, content: ContentHash, root: Root) -> dict[str, object]:
        return {"channel": self.channel, "content": content.raw, "root": root.raw}


class PartialPeer(PeerSource):
    """A member of a channel that is loading the blob itself."""

    async def chunks(self, content: ContentHash, root: Root, page: int) -> bytes:
        body = {**self._names(content, root), "number": page}
        answer = await self._session.request("chunks", body, REQUEST_S_MAX)
        return bytes(answer["chunks"])


class _Answers:
    """Chunks off a data stream, in the order asked for, STALL_BYTES_MIN in each STALL_S_MAX."""

    def __init__(self, stream: Stream, moved: Callable[[], None]) -> None:
        self._stream = stream
        self._moved = moved
        self._decoder = FrameDecoder()
        self._ready: deque[Message] = deque()
        self._expected: deque[RangeAnswer] = deque()

    def expect(self, request: RangeRequest) -> None:
        self._expected.append(RangeAnswer(request))

    async def next_chunk(self) -> Chunk:
        answer = self._expected[0]
        found = answer.receive(await self._next_message())
        if answer.complete:
            self._expected.popleft()
        if isinstance(found, Failure):
            raise error_of(found.code, found.text)
        return found

    async def _next_message(self) -> Message:
        while not self._ready:
            with trio.move_on_after(STALL_S_MAX) as waiting:
                await self._receive_a_piece()
            if waiting.cancelled_caught:
                raise PeerTimeoutError(f"sent nearly nothing for {STALL_S_MAX:g} s")
        return self._ready.popleft()

    async def _receive_a_piece(self) -> None:
        """Not just some bytes: a source that drips them would be waited for all year."""
        received = 0
        while received < STALL_BYTES_MIN and not self._ready:
            data = await self._stream.receive_some(_READ_BYTES)
            if not data:
                raise PeerGoneError("ended the transfer early")
            self._moved()
            received += len(data)
            self._ready.extend(self._decoder.feed(data))


async def send_in_time(
    stream: Stream, frame: bytes, moved: Callable[[], None] = lambda: None
) -> None:
    """Send a frame in pieces, each within STALL_S_MAX: a slow peer gets it, a stalled one not.

    `moved` is called after each. Raises PeerTimeoutError.
    """
    for at in range(0, len(frame), STALL_BYTES_MIN):
        with trio.move_on_after(STALL_S_MAX) as waiting:
            await stream.send_all(frame[at : at + STALL_BYTES_MIN])
        if waiting.cancelled_caught:
            raise PeerTimeoutError(f"took nearly nothing for {STALL_S_MAX:g} s")
        moved()
