"""Where chunks can be had: members that say they hold a blob, and how to ask them.

A `Source` hands over the root object, pages and chunks of a blob. What it hands over is
verified by whoever asked (`fetch`); a source only sees to it that answers come in time,
in order and in bounded pieces.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

import trio

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.errors import (
    PeerBusyError,
    PeerError,
    PeerGoneError,
    PeerTimeoutError,
)
from kachery_p2p.limits import (
    HAVE_GRACE_S,
    HAVE_S_MAX,
    OUTSTANDING_CHUNKS_MAX,
    RANGE_CHUNKS_MAX,
    REQUEST_S_MAX,
    STALL_S_MAX,
)
from kachery_p2p.network.link import DATA, Link, Stream
from kachery_p2p.network.session import Session, error_of
from kachery_p2p.network.sessions import Sessions
from kachery_p2p.wire.codec import FrameDecoder, Message
from kachery_p2p.wire.conversation import Failure
from kachery_p2p.wire.ranges import Chunk, RangeAnswer, RangeRequest

_READ_BYTES = 1 << 18

Deliver = Callable[["Source", int, bytes], Awaitable[None]]


class Source(Protocol):
    """Anything that can hand us the chunks of a blob."""

    @property
    def name(self) -> str:
        """How people know it; unique among the sources of a blob."""

    @property
    def node(self) -> str:
        """The id of the node that serves."""

    @property
    def channel(self) -> str:
        """The id of the channel in which it serves us."""

    async def root_object(self, content: ContentHash, root: Root) -> bytes: ...

    async def page(self, content: ContentHash, root: Root, number: int) -> bytes: ...

    async def pull(
        self,
        content: ContentHash,
        root: Root,
        next_range: Callable[[], range | None],
        deliver: Deliver,
    ) -> None:
        """Ask for what `next_range` says until it says None; `deliver` each chunk in that order.

        Raises PeerTimeoutError when nothing comes for STALL_S_MAX, other PeerErrors,
        and whatever `deliver` raises.
        """


class Claim(NamedTuple):
    """What one source says of a blob. `pinned`: it says that it hashed the bytes itself."""

    source: Source
    size: int
    root: Root
    pinned: bool


class PeerSource:
    """A member of a channel, asked over libp2p streams."""

    def __init__(self, session: Session, link: Link, channel: str) -> None:
        self._session = session
        self._link = link
        self._channel = channel

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
        answers = _Answers(stream)
        outstanding = 0
        for request_id in itertools.count(1):
            if asked is not None:
                request = RangeRequest(
                    request_id, self.channel, content.raw, root.raw, asked.start, len(asked)
                )
                await _send(stream, request.frame())
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


class _Answers:
    """Chunks off a data stream, in the order asked for, each within STALL_S_MAX."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
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
                data = await self._stream.receive_some(_READ_BYTES)
            if waiting.cancelled_caught:
                raise PeerTimeoutError(f"sent nothing for {STALL_S_MAX:.0f} s")
            if not data:
                raise PeerGoneError("ended the transfer early")
            self._ready.extend(self._decoder.feed(data))
        return self._ready.popleft()


async def _send(stream: Stream, frame: bytes) -> None:
    with trio.move_on_after(STALL_S_MAX) as waiting:
        await stream.send_all(frame)
    if waiting.cancelled_caught:
        raise PeerTimeoutError(f"took nothing for {STALL_S_MAX:.0f} s")


class Holders:
    """Ask the connected members of our channels who holds a blob."""

    def __init__(self, sessions: Sessions, link: Link) -> None:
        self._sessions = sessions
        self._link = link

    def asked(self) -> tuple[int, tuple[str, ...]]:
        """(how many members are connected, the names of our channels), for error messages."""
        return len(self._sessions.all()), tuple(c.name for c in self._sessions.channels)

    async def find(
        self, content: ContentHash, wanted: Callable[[Claim], bool], patience_s: float
    ) -> list[Claim]:
        """Claims that are `wanted`; waits while members are being dialled or hash the blob."""
        give_up_at = trio.current_time() + patience_s
        while True:
            claims, busy = await self._ask_everyone(content, None)
            claims = [claim for claim in claims if wanted(claim)]
            left_s = give_up_at - trio.current_time()
            if claims or left_s <= 0 or (self._sessions.settled and not busy):
                return claims
            await self.wait_for_change(min(left_s, 1.0) if busy else left_s)

    async def ask(self, content: ContentHash, channel: str) -> list[Claim]:
        """Who in `channel` says it holds `content`, now."""
        claims, _ = await self._ask_everyone(content, channel)
        return claims

    async def wait_for_change(self, timeout_s: float) -> None:
        """Return when a member comes or goes, or after `timeout_s`."""
        with trio.move_on_after(max(timeout_s, 0)):
            await self._sessions.changed()

    async def _ask_everyone(
        self, content: ContentHash, channel: str | None
    ) -> tuple[list[Claim], bool]:
        claims: list[Claim] = []
        busy = False
        first = trio.Event()

        async def ask(session: Session, name: str) -> None:
            nonlocal busy
            try:
                claims.append(await self._ask(session, name, content))
                first.set()
            except PeerBusyError:
                busy = True
            except PeerError:
                return

        async def stop_after_grace() -> None:
            # A frozen member must not hold up what another has already answered.
            await first.wait()
            await trio.sleep(HAVE_GRACE_S)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as asking:
                nursery.start_soon(stop_after_grace)
                for session in self._sessions.all():
                    for name in session.channels:
                        if channel in (None, name):
                            asking.start_soon(ask, session, name)
            nursery.cancel_scope.cancel()
        return claims, busy

    async def _ask(self, session: Session, channel: str, content: ContentHash) -> Claim:
        body = {"channel": channel, "content": content.raw}
        answer = await session.request("have", body, HAVE_S_MAX)
        source = PeerSource(session, self._link, channel)
        return Claim(source, answer["size"], Root.of_raw(answer["root"]), answer["pinned"])
