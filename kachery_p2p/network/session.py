"""One control stream to one member, after the handshake (`meeting`): requests both ways.

Each has a deadline, and a session finds out by itself when the other side is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

from kachery_p2p.channels.channel import SHARED
from kachery_p2p.channels.permissions import may
from kachery_p2p.errors import (
    KacheryError,
    PeerError,
    PeerGoneError,
    PeerTimeoutError,
    ProtocolError,
)
from kachery_p2p.limits import (
    KEEPALIVE_IDLE_S,
    KEEPALIVE_S_MAX,
    OUTBOX_ANSWERS_MAX,
    REQUEST_S_MAX,
)
from kachery_p2p.network.failures import code_of, error_of, one_error
from kachery_p2p.network.link import Stream
from kachery_p2p.network.meeting import Met, part
from kachery_p2p.network.memberships import Memberships
from kachery_p2p.wire.conversation import (
    Answer,
    Bye,
    Failure,
    Request,
)
from kachery_p2p.wire.handshake import Hello
from kachery_p2p.wire.messages import FAILED

log = logging.getLogger(__name__)

_READ_BYTES = 1 << 16

# What is answered before it is known whether the peer is a member.
EARLY_OPS = frozenset({"history", "entries", "ping"})

# What it does before it is awaited is done at once.
Handler = Callable[["Session", dict[str, Any]], Awaitable[dict[str, Any]]]


class Asked:
    """A request of ours that waits for its answer."""

    def __init__(self, request_id: int) -> None:
        self.id = request_id
        self.done = trio.Event()
        self.body: dict[str, Any] | None = None
        self.error: PeerError | None = None


class Session:
    """A node that proved to know the secret of a common channel, as long as it is connected.

    Nothing but EARLY_OPS is answered until `judge` was called: both sides first tell each
    other what they know of who is a member.
    """

    def __init__(self, stream: Stream, met: Met, memberships: Memberships) -> None:
        self.peer = stream.peer
        self.outgoing = stream.outgoing
        # The channels whose secret both sides know.
        self.proved = met.channels
        self._memberships = memberships
        self._left: frozenset[str] = frozenset()
        self._judged = trio.Event()
        if all(channel.kind == SHARED for channel in self.proved):
            # Who knows the secret is a member: there is nothing to tell each other.
            self.judge()
        # Where it connects from, as far as its connection shows: an IP or "".
        self.place = ""
        self.label = ""
        self.addresses: tuple[str, ...] = ()
        self._stream = stream
        self._conversation = met.conversation
        self._heard = met.heard
        self._asked: dict[int, Asked] = {}
        self._outbox, self._to_send = trio.open_memory_channel[bytes](OUTBOX_ANSWERS_MAX)
        # Frames that wait for their turn, or are being sent.
        self._unsent = 0
        self._last_heard = trio.current_time()
        self._doubt = trio.Event()
        self._heard_more = trio.Event()
        self._scope = trio.CancelScope()
        self._ended = False

    @property
    def name(self) -> str:
        """How people know this node: its label, and enough of its id to be unique."""
        return f"{self.label} ({self.peer[:8]})" if self.label else self.peer[:16]

    @property
    def hello(self) -> Hello:
        """What the peer said first; that its exchange key is its own was verified."""
        assert self._conversation.peer_hello is not None
        return self._conversation.peer_hello

    @property
    def channels(self) -> frozenset[str]:
        """The ids of the channels in which the peer is a member at this moment."""
        return frozenset(channel.id for channel in self.proved if self._roles(channel.id))

    def may(self, channel_id: str, action: str) -> bool:
        """True if the peer may do `action` (`channels.permissions`) in the channel now."""
        return self.has_proved(channel_id) and may(self._roles(channel_id), action)

    def has_proved(self, channel_id: str) -> bool:
        """True if the peer knows the channel's secret, member or not."""
        return any(channel.id == channel_id for channel in self.proved)

    def _roles(self, channel_id: str) -> frozenset[str]:
        if channel_id in self._left:
            return frozenset()
        return self._memberships.roles(self.peer, channel_id)

    def leave(self, channel_id: str) -> None:
        """The peer has left the channel."""
        self._left |= {channel_id}

    def judge(self) -> None:
        """Who is a member is known as well as the two sides know it: requests may be answered."""
        self._judged.set()

    async def request(self, op: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The checked answer. Of more than PENDING_REQUESTS_MAX at once the later ones wait.

        Raises PeerTimeoutError, PeerGoneError, PeerRefusedError, PeerBusyError, PeerError.
        """
        with trio.move_on_after(timeout_s):
            return await self._answer_to(self.ask(op, body) or await self._ask_later(op, body))
        raise _no_answer(timeout_s)

    def ask(self, op: str, body: dict[str, Any]) -> Asked | None:
        """A request that is on its way when this returns; None if it would have to wait first.

        Whoever asks awaits `answer_to`. PeerGoneError.
        """
        made = self._made_request(op, body)
        if made is None:
            return None
        asked, frame = made
        try:
            self._post_now(frame)
        except trio.WouldBlock:
            self._withdraw(asked)
            return None
        except trio.BrokenResourceError:
            self._withdraw(asked)
            raise PeerGoneError("went away before it was asked")
        return asked

    async def answer_to(self, asked: Asked, timeout_s: float) -> dict[str, Any]:
        """The checked answer to what was asked with `ask`; raises what `request` does."""
        with trio.move_on_after(timeout_s):
            return await self._answer_to(asked)
        raise _no_answer(timeout_s)

    async def _answer_to(self, asked: Asked) -> dict[str, Any]:
        try:
            await asked.done.wait()
        finally:
            del self._asked[asked.id]
            self._conversation.cancel(asked.id)
        if asked.error is not None:
            raise asked.error
        assert asked.body is not None
        return asked.body

    async def _ask_later(self, op: str, body: dict[str, Any]) -> Asked:
        """The request, once there is room for it here and at the peer."""
        while (made := self._made_request(op, body)) is None:
            # As many as the peer takes are unanswered: an answer makes room.
            await self._heard_more.wait()
        asked, frame = made
        try:
            await self._post(frame)
        except BaseException as error:
            self._withdraw(asked)
            if isinstance(error, trio.BrokenResourceError):
                raise PeerGoneError("went away before it was asked")
            raise
        return asked

    def _made_request(self, op: str, body: dict[str, Any]) -> tuple[Asked, bytes] | None:
        if self._ended:
            raise PeerGoneError("is no longer connected")
        try:
            request_id, frame = self._conversation.request(op, body)
        except PeerTimeoutError:
            return None
        asked = self._asked[request_id] = Asked(request_id)
        return asked, frame

    def _withdraw(self, asked: Asked) -> None:
        """A request that never left is not answered: it must not be waited for."""
        del self._asked[asked.id]
        self._conversation.withdraw(asked.id)

    def suspect(self) -> None:
        """Something went wrong with this peer: ask at once whether it is alive."""
        self._doubt.set()

    def noticed(self) -> None:
        """The peer is moving bytes on another stream, so it is alive."""
        self._last_heard = trio.current_time()

    def end(self) -> None:
        """Stop the session; `run` returns."""
        self._ended = True
        self._scope.cancel()

    async def run(self, handlers: Mapping[str, Handler]) -> None:
        """Carry requests until either side ends it. Raises PeerError for what ended it."""
        try:
            with self._scope:
                await self._run(handlers)
        finally:
            self._ended = True
            self._to_send.close()
            self._tell_heard()
            for asked in self._asked.values():
                asked.error = PeerGoneError("went away before it answered")
                asked.done.set()

    async def _run(self, handlers: Mapping[str, Handler]) -> None:
        try:
            with one_error():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send)
                    nursery.start_soon(self._keep_alive)
                    await self._listen(nursery, handlers)
                    nursery.cancel_scope.cancel()
        except ProtocolError:
            # The writer is gone by now: two must not write at once.
            await part(self._stream, self._conversation)
            raise

    async def _listen(self, nursery: trio.Nursery, handlers: Mapping[str, Handler]) -> None:
        events, self._heard = self._heard, []
        while True:
            for event in events:
                if isinstance(event, Request):
                    begun = self._begun(event, handlers)
                    nursery.start_soon(self._answer, event, handlers, begun)
                elif isinstance(event, Answer | Failure):
                    self._settle(event)
                elif isinstance(event, Bye):
                    return
            data = await self._stream.receive_some(_READ_BYTES)
            self._last_heard = trio.current_time()
            events = self._conversation.receive(data)
            self._tell_heard()

    def _tell_heard(self) -> None:
        self._heard_more.set()
        self._heard_more = trio.Event()

    def _settle(self, event: Answer | Failure) -> None:
        asked = self._asked.get(event.id)
        if asked is None:
            return
        if isinstance(event, Answer):
            asked.body = event.body
        else:
            asked.error = error_of(event.code, event.text)
        asked.done.set()

    def _begun(
        self, request: Request, handlers: Mapping[str, Handler]
    ) -> Awaitable[dict[str, Any]] | None:
        """What will be the answer; None if it has to wait, or there is none."""
        handler = handlers.get(request.op)
        if handler is None or not (request.op in EARLY_OPS or self._judged.is_set()):
            return None
        try:
            return handler(self, request.body)
        except Exception:
            # It is called once more where whatever it raises costs the answer alone.
            return None

    async def _answer(
        self,
        request: Request,
        handlers: Mapping[str, Handler],
        begun: Awaitable[dict[str, Any]] | None,
    ) -> None:
        frame = await self._frame_for(request, handlers, begun)
        if frame:
            await self._post(frame)

    async def _frame_for(
        self,
        request: Request,
        handlers: Mapping[str, Handler],
        begun: Awaitable[dict[str, Any]] | None,
    ) -> bytes:
        try:
            if begun is None:
                if request.op not in handlers:
                    raise ProtocolError(f"{request.op} is not offered here")
                await self._judged.wait()
                begun = handlers[request.op](self, request.body)
            return self._conversation.answer(request.id, await begun)
        except PeerError as error:
            return self._conversation.fail(request.id, code_of(error), str(error))
        except KacheryError as error:
            log.warning("could not answer %s of %s: %s", request.op, self.peer[:16], error)
        except Exception:
            # A mistake of ours in one answer must not cost the session, let alone the node.
            log.exception("answering %s failed", request.op)
        return self._conversation.fail(request.id, FAILED)

    async def _send(self) -> None:
        """The one writer: a caller that is cancelled never leaves half a frame on the stream."""
        async for frame in self._to_send:
            with trio.move_on_after(REQUEST_S_MAX) as waiting:
                await self._stream.send_all(frame)
            if waiting.cancelled_caught:
                raise PeerTimeoutError(f"took nothing for {REQUEST_S_MAX:.0f} s")
            self._unsent -= 1

    async def _post(self, frame: bytes) -> None:
        """Have the frame sent behind those before it, as soon as there is room for it."""
        try:
            self._post_now(frame)
        except trio.WouldBlock:
            self._unsent += 1
            try:
                await self._outbox.send(frame)
            except BaseException:
                self._unsent -= 1
                raise

    def _post_now(self, frame: bytes) -> None:
        """Have the frame sent behind those before it. trio.WouldBlock, BrokenResourceError."""
        # Nearly always nothing is before it: then the writer's turn need not be waited for.
        if self._unsent or self._ended or not self._stream.send_now(frame):
            self._outbox.send_nowait(frame)
            self._unsent += 1

    async def _keep_alive(self) -> None:
        while True:
            heard = self._last_heard
            with trio.move_on_at(heard + KEEPALIVE_IDLE_S):
                await self._doubt.wait()
            doubted, self._doubt = self._doubt.is_set(), trio.Event()
            if doubted or self._last_heard == heard:
                await self._check_alive()

    async def _check_alive(self) -> None:
        heard = self._last_heard
        try:
            await self.request("ping", {}, KEEPALIVE_S_MAX)
        except PeerTimeoutError:
            # On a slow line the answer may be stuck behind a chunk that is moving.
            if self._last_heard == heard:
                raise
        self.noticed()


def _no_answer(timeout_s: float) -> PeerTimeoutError:
    return PeerTimeoutError(f"did not answer within {timeout_s:.0f} s")
