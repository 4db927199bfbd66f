"""Letting nodes into owned channels, and being let in: the talk of `channels.admission`.

The stream is open to nodes that are members of nothing, which is all that they may open:
so there are few of these talks at once, each is four small messages, and whoever does not
have the secret of an invite learns nothing, not even whether there is a channel here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import trio

from kachery_p2p.channels.admission import (
    NONCE_BYTES,
    Admitted,
    Admitter,
    Applicant,
    Door,
    Joiner,
    Waiting,
    wait,
)
from kachery_p2p.channels.invites import Invite
from kachery_p2p.errors import KeeperAsleepError, PeerError, PeerGoneError, PeerTimeoutError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import ADMISSION_S_MAX, ADMISSIONS_MAX
from kachery_p2p.network.link import JOIN, Link, Stream
from kachery_p2p.network.meeting import Me
from kachery_p2p.wire.admission import (
    check_application,
    check_challenge,
    check_opening,
    check_outcome,
)
from kachery_p2p.wire.codec import FrameDecoder, Message, encode_frame

log = logging.getLogger(__name__)

_READ_BYTES = 1 << 14


class Desk(Protocol):
    """What letting somebody in needs of this node."""

    def find(self, invite_id: bytes) -> Door | None:
        """The invite of this node with that id. Called in a thread; reads the disk."""

    def now(self) -> float:
        """Seconds since 1970."""

    async def admit(self, applicant: Applicant) -> bytes:
        """Make it a member, durably, and use up the invite: the channel's entry secret.

        Raises KeeperAsleepError if that has to wait for the channel's keeper.
        """


class Admissions:
    """Let in who shows a good invite of this node."""

    def __init__(self, link: Link, me: Me, desk: Desk) -> None:
        self._me = me
        self._desk = desk
        self._talking: set[NodeId] = set()
        link.accept(JOIN, self._receive)

    async def _receive(self, stream: Stream) -> None:
        if stream.peer in self._talking or len(self._talking) >= ADMISSIONS_MAX:
            return
        self._talking.add(stream.peer)
        try:
            with trio.move_on_after(ADMISSION_S_MAX):
                await self._talk(_Talk(stream))
                await stream.close()
        except PeerError as error:
            log.info("node %s wanted to enter: %s", stream.peer[:16], error)
        finally:
            self._talking.remove(stream.peer)

    async def _talk(self, talk: _Talk) -> None:
        me, desk = self._me, self._desk
        admitter = Admitter(me.key.node_id, talk.peer, me.random(NONCE_BYTES), desk.find)
        opening = await talk.hear(check_opening)
        challenge = await trio.to_thread.run_sync(admitter.challenge, opening)
        await talk.say(challenge)
        if "error" in challenge:
            return
        applicant = admitter.judged(await talk.hear(check_application), desk.now())
        if not isinstance(applicant, Applicant):
            await talk.say(applicant)
            return
        try:
            entry_secret = await desk.admit(applicant)
        except KeeperAsleepError as error:
            await talk.say(wait(str(error)))
            return
        await talk.say(admitter.admission(applicant, entry_secret))
        log.info("node %s was let into a channel", talk.peer[:16])


async def ask_to_enter(
    link: Link, me: Me, invite: Invite, admitter: NodeId, label: str
) -> Admitted | Waiting:
    """Ask a node that the invite names, and that is connected, to let us in.

    Raises an InviteError, NodeRemovedError or ChannelClosedError if it will not; PeerErrors
    if it cannot be asked just now.
    """
    with trio.move_on_after(ADMISSION_S_MAX):
        stream = await link.open_stream(admitter, JOIN)
        try:
            talk = _Talk(stream)
            joiner = Joiner(invite, me.key, admitter, me.random(NONCE_BYTES), label)
            await talk.say(joiner.opening())
            challenge = await talk.hear(check_challenge)
            await talk.say(joiner.application(challenge))
            return joiner.outcome(await talk.hear(check_outcome))
        finally:
            await stream.reset()
    raise PeerTimeoutError(f"did not let us in within {ADMISSION_S_MAX:.0f} s")


class _Talk:
    """Messages on a stream, one at a time."""

    def __init__(self, stream: Stream) -> None:
        self.peer = stream.peer
        self._stream = stream
        self._decoder = FrameDecoder()
        self._heard: list[Message] = []

    async def say(self, message: Message) -> None:
        await self._stream.send_all(encode_frame(message))

    async def hear(self, check: Callable[[object], Message]) -> Message:
        while not self._heard:
            data = await self._stream.receive_some(_READ_BYTES)
            if not data:
                raise PeerGoneError("ended the talk")
            self._heard.extend(self._decoder.feed(data))
        return check(self._heard.pop(0))
