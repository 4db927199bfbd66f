"""One control stream to one member: the handshake, then requests both ways.

`meet` turns a fresh stream into a conversation in which both sides have proved that they
belong to at least one common channel, or ends it. A `Session` then carries requests, with
a deadline on each, and finds out by itself when the other side is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import trio

from kachery_p2p.channels.channel import SharedChannel
from kachery_p2p.channels.membership import Meeting, matching, proofs_for
from kachery_p2p.errors import (
    KacheryError,
    NotAMemberError,
    PeerBusyError,
    PeerError,
    PeerGoneError,
    PeerRefusedError,
    PeerTimeoutError,
    ProtocolError,
    sole_error,
)
from kachery_p2p.identity.keys import NodeKey, verify_exchange
from kachery_p2p.limits import (
    HELLO_S_MAX,
    KEEPALIVE_IDLE_S,
    KEEPALIVE_S_MAX,
    OUTBOX_ANSWERS_MAX,
    REQUEST_S_MAX,
)
from kachery_p2p.network.link import Stream
from kachery_p2p.wire.conversation import (
    Answer,
    Bye,
    Conversation,
    Event,
    Failure,
    HelloReceived,
    ProofsReceived,
    Request,
)
from kachery_p2p.wire.handshake import (
    DIALLER,
    LISTENER,
    NONCE_BYTES,
    PADDING_BYTES,
    Hello,
)
from kachery_p2p.wire.messages import BAD_REQUEST, BUSY, FAILED, REFUSED

log = logging.getLogger(__name__)

_READ_BYTES = 1 << 16

Handler = Callable[["Session", dict[str, Any]], Awaitable[dict[str, Any]]]


class Me(NamedTuple):
    """What a handshake needs to know of this node. `random(n)` gives n unpredictable bytes."""

    key: NodeKey
    channels: Sequence[SharedChannel]
    random: Callable[[int], bytes]


class Met(NamedTuple):
    """A proved conversation, and what the peer said in the same breath as its last proof."""

    conversation: Conversation
    channels: tuple[SharedChannel, ...]
    heard: list[Event]


async def meet(stream: Stream, me: Me) -> Met:
    """Shake hands over a fresh control stream, within HELLO_S_MAX.

    Raises NotAMemberError when no channel is common, PeerTimeoutError, other PeerErrors.
    """
    handshake = _Handshake(stream, me)
    with trio.move_on_after(HELLO_S_MAX) as waiting:
        try:
            return await handshake.run()
        except PeerError:
            # A protocol error or a version mismatch is told, so that its owner can mend it.
            await stream.send_all(handshake.conversation.last_words())
            raise
    assert waiting.cancelled_caught
    raise PeerTimeoutError(f"did not finish its handshake within {HELLO_S_MAX:.0f} s")


class _Handshake:
    def __init__(self, stream: Stream, me: Me) -> None:
        self._stream = stream
        self._me = me
        self._role = DIALLER if stream.outgoing else LISTENER
        self._nonce = me.random(NONCE_BYTES)
        hello = Hello(self._nonce, me.key.exchange_public, me.key.exchange_signature)
        self.conversation = Conversation(self._role, hello)

    async def run(self) -> Met:
        await self._stream.send_all(self.conversation.hello())
        while True:
            events = self.conversation.receive(await self._stream.receive_some(_READ_BYTES))
            for place, event in enumerate(events):
                if isinstance(event, HelloReceived):
                    await self._hear_hello(event.hello)
                elif isinstance(event, ProofsReceived):
                    channels = await self._hear_proofs(event.proofs)
                    return Met(self.conversation, channels, events[place + 1 :])
                elif isinstance(event, Bye):
                    raise PeerGoneError(f"said goodbye: {event.reason}")

    async def _hear_hello(self, hello: Hello) -> None:
        if not verify_exchange(self._stream.peer, hello.exchange, hello.exchange_signature):
            raise ProtocolError("an exchange key that its node did not sign")
        if self._role == DIALLER:
            await self._prove(self._me.channels)

    async def _hear_proofs(self, proofs: tuple[bytes, ...]) -> tuple[SharedChannel, ...]:
        theirs = LISTENER if self._role == DIALLER else DIALLER
        channels = matching(self._me.channels, proofs, theirs, self._meeting())
        if self._role == LISTENER:
            # To a stranger too, so that it cannot tell whether it was close.
            await self._prove(channels)
        if not channels:
            raise NotAMemberError(f"node {self._stream.peer[:16]} is in no channel of ours")
        return channels

    async def _prove(self, channels: Sequence[SharedChannel]) -> None:
        proofs = proofs_for(channels, self._role, self._meeting())
        padding = self._me.random(PADDING_BYTES)
        await self._stream.send_all(self.conversation.prove(proofs, padding))

    def _meeting(self) -> Meeting:
        assert self.conversation.peer_hello is not None
        ours, theirs = self._nonce, self.conversation.peer_hello.nonce
        me, peer = self._me.key.node_id, self._stream.peer
        if self._role == DIALLER:
            return Meeting(me, peer, ours, theirs)
        return Meeting(peer, me, theirs, ours)


class _Asked:
    """A request of ours that waits for its answer."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.body: dict[str, Any] | None = None
        self.error: PeerError | None = None


class Session:
    """A member, as long as it is connected."""

    def __init__(self, stream: Stream, met: Met) -> None:
        self.peer = stream.peer
        self.outgoing = stream.outgoing
        # Channel ids in which both sides proved membership.
        self.channels = frozenset(channel.id for channel in met.channels)
        self.label = ""
        self.addresses: tuple[str, ...] = ()
        self._stream = stream
        self._conversation = met.conversation
        self._heard = met.heard
        self._asked: dict[int, _Asked] = {}
        self._outbox, self._to_send = trio.open_memory_channel[bytes](OUTBOX_ANSWERS_MAX)
        self._last_heard = trio.current_time()
        self._doubt = trio.Event()
        self._scope = trio.CancelScope()
        self._ended = False

    @property
    def name(self) -> str:
        """How people know this node: its label, and enough of its id to be unique."""
        return f"{self.label} ({self.peer[:8]})" if self.label else self.peer[:16]

    async def request(self, op: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The checked answer.

        Raises PeerTimeoutError, PeerGoneError, PeerRefusedError, PeerBusyError, PeerError.
        """
        if self._ended:
            raise PeerGoneError("is no longer connected")
        asked = _Asked()
        with trio.move_on_after(timeout_s):
            request_id, frame = self._conversation.request(op, body)
            try:
                await self._outbox.send(frame)
            except BaseException:
                self._conversation.withdraw(request_id)
                raise
            self._asked[request_id] = asked
            try:
                await asked.done.wait()
            finally:
                del self._asked[request_id]
                self._conversation.cancel(request_id)
        if asked.error is not None:
            raise asked.error
        if asked.body is None:
            raise PeerTimeoutError(f"did not answer within {timeout_s:.0f} s")
        return asked.body

    def suspect(self) -> None:
        """Something went wrong with this peer: ask at once whether it is alive."""
        self._doubt.set()

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
            for asked in self._asked.values():
                asked.error = PeerGoneError("went away before it answered")
                asked.done.set()

    async def _run(self, handlers: Mapping[str, Handler]) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send)
                nursery.start_soon(self._keep_alive)
                await self._listen(nursery, handlers)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            error = sole_error(group)
            if error is None:
                raise
            raise error from None

    async def _listen(self, nursery: trio.Nursery, handlers: Mapping[str, Handler]) -> None:
        events, self._heard = self._heard, []
        while True:
            for event in events:
                if isinstance(event, Request):
                    nursery.start_soon(self._answer, event, handlers)
                elif isinstance(event, Answer | Failure):
                    self._settle(event)
                elif isinstance(event, Bye):
                    return
            data = await self._stream.receive_some(_READ_BYTES)
            self._last_heard = trio.current_time()
            try:
                events = self._conversation.receive(data)
            except ProtocolError:
                with trio.move_on_after(REQUEST_S_MAX):
                    await self._stream.send_all(self._conversation.last_words())
                raise

    def _settle(self, event: Answer | Failure) -> None:
        asked = self._asked.get(event.id)
        if asked is None:
            return
        if isinstance(event, Answer):
            asked.body = event.body
        else:
            asked.error = error_of(event.code, event.text)
        asked.done.set()

    async def _answer(self, request: Request, handlers: Mapping[str, Handler]) -> None:
        frame = await self._frame_for(request, handlers)
        if frame:
            await self._outbox.send(frame)

    async def _frame_for(self, request: Request, handlers: Mapping[str, Handler]) -> bytes:
        handler = handlers.get(request.op)
        try:
            if handler is None:
                raise ProtocolError(f"{request.op} is not offered here")
            return self._conversation.answer(request.id, await handler(self, request.body))
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

    async def _keep_alive(self) -> None:
        while True:
            idle_s = self._last_heard + KEEPALIVE_IDLE_S - trio.current_time()
            with trio.move_on_after(max(idle_s, 0)):
                await self._doubt.wait()
            doubted, self._doubt = self._doubt.is_set(), trio.Event()
            if doubted or trio.current_time() - self._last_heard >= KEEPALIVE_IDLE_S:
                await self.request("ping", {}, KEEPALIVE_S_MAX)
                self._last_heard = trio.current_time()


def error_of(code: str, text: str) -> PeerError:
    """The error that a peer's failure code stands for; its words go along, printable."""
    if code == REFUSED:
        return PeerRefusedError("does not have it, or may not give it to us")
    if code == BUSY:
        return PeerBusyError(text or "is busy")
    if code == BAD_REQUEST:
        return ProtocolError(f"did not understand: {text}")
    return PeerError(f"failed: {text}" if text else "failed")


def code_of(error: PeerError) -> str:
    """How a failure of ours is told to a peer."""
    if isinstance(error, PeerRefusedError):
        return REFUSED
    if isinstance(error, PeerBusyError):
        return BUSY
    return BAD_REQUEST if isinstance(error, ProtocolError) else FAILED
