"""One control stream to one member: the handshake, then requests both ways.

`meet` turns a fresh stream into a conversation in which both sides have proved that they
belong to at least one common channel, or ends it. A `Session` then carries requests, with
a deadline on each, and finds out by itself when the other side is gone.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import trio

from kachery_p2p.channels.channel import SHARED, Channel
from kachery_p2p.channels.membership import Meeting, matching, proofs_for
from kachery_p2p.channels.permissions import may
from kachery_p2p.errors import (
    KacheryError,
    NotAMemberError,
    PeerBusyError,
    PeerError,
    PeerGoneError,
    PeerRefusedError,
    PeerTimeoutError,
    ProtocolError,
    ProtocolVersionError,
    sole_error,
)
from kachery_p2p.identity.keys import NodeKey, verify_exchange
from kachery_p2p.limits import (
    HELLO_S_MAX,
    KEEPALIVE_IDLE_S,
    KEEPALIVE_S_MAX,
    LEAVE_S_MAX,
    OUTBOX_ANSWERS_MAX,
    REQUEST_S_MAX,
)
from kachery_p2p.network.link import Stream
from kachery_p2p.network.memberships import Memberships
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

# What is answered before it is known whether the peer is a member.
EARLY_OPS = frozenset({"history", "entries", "ping"})

Handler = Callable[["Session", dict[str, Any]], Awaitable[dict[str, Any]]]


class Me(NamedTuple):
    """What a handshake needs to know of this node. `random(n)` gives n unpredictable bytes."""

    key: NodeKey
    memberships: Memberships
    random: Callable[[int], bytes]


class Met(NamedTuple):
    """A proved conversation, and what the peer said in the same breath as its last proof.

    `channels` are those whose secret both sides know. Whether the peer is a member of them
    now is another question, which a session asks anew each time.
    """

    conversation: Conversation
    channels: tuple[Channel, ...]
    heard: list[Event]


async def meet(stream: Stream, me: Me) -> Met:
    """Shake hands over a fresh control stream, within HELLO_S_MAX.

    Raises NotAMemberError when no channel is common, PeerTimeoutError, other PeerErrors.
    """
    handshake = _Handshake(stream, me)
    try:
        with trio.move_on_after(HELLO_S_MAX):
            return await handshake.run()
    except (ProtocolError, ProtocolVersionError, NotAMemberError):
        await _part(stream, handshake.conversation)
        raise
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
            await self._prove(self._me.memberships.channels)

    async def _hear_proofs(self, proofs: tuple[bytes, ...]) -> tuple[Channel, ...]:
        theirs = LISTENER if self._role == DIALLER else DIALLER
        ours = self._me.memberships.channels
        channels = matching(ours, proofs, theirs, self._meeting())
        if self._role == LISTENER:
            # To a stranger too, so that it cannot tell whether it was close.
            await self._prove(channels)
        if not channels:
            raise NotAMemberError(f"node {self._stream.peer[:16]} is in no channel of ours")
        return channels

    async def _prove(self, channels: Sequence[Channel]) -> None:
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
        self._asked: dict[int, _Asked] = {}
        self._outbox, self._to_send = trio.open_memory_channel[bytes](OUTBOX_ANSWERS_MAX)
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
        asked = _Asked()
        with trio.move_on_after(timeout_s):
            await self._ask(asked, op, body)
        if asked.error is not None:
            raise asked.error
        if asked.body is None:
            raise PeerTimeoutError(f"did not answer within {timeout_s:.0f} s")
        return asked.body

    async def _ask(self, asked: _Asked, op: str, body: dict[str, Any]) -> None:
        request_id, frame = await self._next_request(op, body)
        self._asked[request_id] = asked
        sent = False
        try:
            await self._outbox.send(frame)
            sent = True
            await asked.done.wait()
        except trio.BrokenResourceError:
            raise PeerGoneError("went away before it was asked")
        finally:
            del self._asked[request_id]
            # A request that never left is not answered: it must not be waited for.
            (self._conversation.cancel if sent else self._conversation.withdraw)(request_id)

    async def _next_request(self, op: str, body: dict[str, Any]) -> tuple[int, bytes]:
        while not self._ended:
            try:
                return self._conversation.request(op, body)
            except PeerTimeoutError:
                # As many as the peer takes are unanswered: an answer makes room.
                await self._heard_more.wait()
        raise PeerGoneError("is no longer connected")

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
            await _part(self._stream, self._conversation)
            raise

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

    async def _answer(self, request: Request, handlers: Mapping[str, Handler]) -> None:
        frame = await self._frame_for(request, handlers)
        if frame:
            await self._outbox.send(frame)

    async def _frame_for(self, request: Request, handlers: Mapping[str, Handler]) -> bytes:
        handler = handlers.get(request.op)
        try:
            if handler is None:
                raise ProtocolError(f"{request.op} is not offered here")
            if request.op not in EARLY_OPS:
                await self._judged.wait()
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


@contextlib.contextmanager
def one_error() -> Iterator[None]:
    """Around a nursery: raise what its tasks failed with as one error of ours, not as a group.

    When all of it is being cancelled anyway, how its tasks failed matters to nobody.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        cancelled, others = group.split(trio.Cancelled)
        error = sole_error(others) if others is not None else None
        if error is None:
            raise
        raise cancelled or error from None


async def _part(stream: Stream, conversation: Conversation) -> None:
    """Say why we leave, so that the peer's owner can mend it, and let it be heard.

    A reset would overtake our last words; so the peer has a moment to end the stream.
    """
    with trio.move_on_after(LEAVE_S_MAX), contextlib.suppress(PeerError):
        await stream.send_all(conversation.last_words())
        await stream.close()
        while await stream.receive_some(_READ_BYTES):
            pass


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
