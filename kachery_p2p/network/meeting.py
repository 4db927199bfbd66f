"""The handshake on a fresh control stream: who is there, and which channels both know.

`meet` turns the stream into a conversation in which both sides have proved that they know
the secret of at least one common channel, or ends it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import trio

from kachery_p2p.channels.channel import Channel
from kachery_p2p.channels.membership import Meeting, matching, proofs_for
from kachery_p2p.errors import (
    NotAMemberError,
    PeerError,
    PeerGoneError,
    PeerTimeoutError,
    ProtocolError,
    ProtocolVersionError,
)
from kachery_p2p.identity.keys import NodeKey, verify_exchange
from kachery_p2p.limits import HELLO_S_MAX, LEAVE_S_MAX
from kachery_p2p.network.link import Stream
from kachery_p2p.network.memberships import Memberships
from kachery_p2p.wire.conversation import (
    Bye,
    Conversation,
    Event,
    HelloReceived,
    ProofsReceived,
)
from kachery_p2p.wire.handshake import (
    DIALLER,
    LISTENER,
    NONCE_BYTES,
    PADDING_BYTES,
    Hello,
)

_READ_BYTES = 1 << 16


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
        await part(stream, handshake.conversation)
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


async def part(stream: Stream, conversation: Conversation) -> None:
    """Say why we leave, so that the peer's owner can mend it, and let it be heard.

    A reset would overtake our last words; so the peer has a moment to end the stream.
    """
    with trio.move_on_after(LEAVE_S_MAX), contextlib.suppress(PeerError):
        await stream.send_all(conversation.last_words())
        await stream.close()
        while await stream.receive_some(_READ_BYTES):
            pass
