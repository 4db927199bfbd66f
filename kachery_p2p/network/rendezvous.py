"""Meeting through introducers: the side that keeps entries, and the side that looks for members.

An introducer answers anybody, on a stream of its own, and knows nothing of channels. A
stranger's connection is dropped after HELLO_S_MAX like any other that proves no
membership, so nothing here keeps one alive. The node's side trusts no answer: what opens
with the channel's key is hearsay for the address book, and whoever is reached that way
must prove membership like everybody else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import trio

from kachery_p2p.channels.channel import Channel
from kachery_p2p.errors import (
    PeerBusyError,
    PeerError,
    PeerGoneError,
    PeerTimeoutError,
    PeerUnreachableError,
    ProtocolError,
)
from kachery_p2p.identity.keys import NodeId, NodeKey
from kachery_p2p.limits import (
    DIALS_MAX,
    RENDEZVOUS_LONELY_S_MAX,
    RENDEZVOUS_LONELY_S_MIN,
    RENDEZVOUS_LOOK_S,
    RENDEZVOUS_REFRESH_S,
    RENDEZVOUS_REQUESTS_MAX,
    RENDEZVOUS_STREAM_S_MAX,
    RENDEZVOUS_TRIES_MAX,
    RENDEZVOUS_TTL_S,
    REQUEST_S_MAX,
)
from kachery_p2p.network.discovery import AddressBook
from kachery_p2p.network.failures import one_error
from kachery_p2p.network.link import Link, Stream
from kachery_p2p.network.multiaddrs import parse_address
from kachery_p2p.network.noticeboard import Notice, Noticeboard
from kachery_p2p.wire.codec import LENGTH_BYTES, Message, decode_message
from kachery_p2p.wire.rendezvous import (
    ANSWER_BYTES_MAX,
    NONCE_BYTES,
    REQUEST_BYTES_MAX,
    answer_frame,
    days_at,
    open_entry,
    read_answer,
    read_request,
    request_frame,
    seal_entry,
    tag_of,
)

log = logging.getLogger(__name__)

RENDEZVOUS = "/kachery-p2p/rendezvous/1"


class Introducer:
    """Lets nodes find each other by tag, for as long as the link lives; a member of nothing.

    `place_of` says where a connected node comes from (its IP, or its /64): that is what
    the board shares its room out by.
    """

    def __init__(self, link: Link, place_of: Callable[[NodeId], str]) -> None:
        self.board = Noticeboard()
        self._place_of = place_of
        self._talking: set[NodeId] = set()
        link.accept(RENDEZVOUS, self._serve)

    async def _serve(self, stream: Stream) -> None:
        if stream.peer in self._talking:
            raise PeerBusyError("one rendezvous stream at a time")
        self._talking.add(stream.peer)
        try:
            with trio.move_on_after(RENDEZVOUS_STREAM_S_MAX):
                await self._answer_all(stream)
        finally:
            self._talking.discard(stream.peer)

    async def _answer_all(self, stream: Stream) -> None:
        for _ in range(RENDEZVOUS_REQUESTS_MAX):
            with trio.move_on_after(REQUEST_S_MAX) as waiting:
                message = await _receive(stream, REQUEST_BYTES_MAX)
                if message is None:
                    break
                await stream.send_all(answer_frame(self._answer(stream.peer, message)))
            if waiting.cancelled_caught:
                return
        # Who returns resets the stream, and a reset could overtake the last answers.
        await stream.close()
        while await stream.receive_some(REQUEST_BYTES_MAX):
            pass

    def _answer(self, node: NodeId, message: Message) -> Message:
        op, body = read_request(message)
        now = trio.current_time()
        if op == "lookup":
            return {"entries": self.board.under(body["tag"], now)}
        notice = Notice(body["entry"], now + body["ttl"], self._place_of(node))
        self.board.put(body["tag"], node, notice, now)
        return {}


class Question(NamedTuple):
    """One request to an introducer, and what its answer belongs to."""

    op: str
    channel: Channel
    day: int
    frame: bytes


class Rendezvous:
    """Registers this node with introducers, and looks for the other members there.

    The collaborators are asked anew each time: `channels` of this node, `introducers`
    (multiaddrs; plain members may be among them), `is_lonely(channel id)` if no member of
    that channel is connected. `found` is called when the book may have learnt something.
    """

    def __init__(
        self,
        link: Link,
        key: NodeKey,
        book: AddressBook,
        *,
        channels: Callable[[], Sequence[Channel]],
        introducers: Callable[[], Iterable[str]],
        is_lonely: Callable[[str], bool],
        found: Callable[[], None],
        random: Callable[[int], bytes],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._link = link
        self._key = key
        self._book = book
        self._channels = channels
        self._introducers = introducers
        self._is_lonely = is_lonely
        self._found = found
        self._random = random
        self._now = now
        self._wake = trio.Event()
        self._lonely_s = RENDEZVOUS_LONELY_S_MIN
        # True when every introducer has been asked once, or did not answer.
        self.settled = False

    def wake(self) -> None:
        """Ask at once: a channel was joined, or an introducer named."""
        self._lonely_s = RENDEZVOUS_LONELY_S_MIN
        self._wake.set()

    async def run(self) -> None:
        """Go on for ever. Whatever an introducer does, this does not fail."""
        while True:
            self._wake = trio.Event()
            await self._ask_everybody()
            self.settled = True
            await self._wait_for_next_round()

    async def _wait_for_next_round(self) -> None:
        asked_at = trio.current_time()
        jitter = 0.5 + 0.5 * self._random(1)[0] / 255
        while not self._wake.is_set():
            lonely = any(self._is_lonely(channel.id) for channel in self._channels())
            pause_s = self._lonely_s if lonely else RENDEZVOUS_REFRESH_S
            left_s = asked_at + pause_s * jitter - trio.current_time()
            if left_s <= 0:
                grown = min(2 * self._lonely_s, RENDEZVOUS_LONELY_S_MAX)
                self._lonely_s = grown if lonely else RENDEZVOUS_LONELY_S_MIN
                return
            with trio.move_on_after(min(left_s, RENDEZVOUS_LOOK_S)):
                await self._wake.wait()

    async def _ask_everybody(self) -> None:
        if not self._channels():
            return
        limit = trio.CapacityLimiter(DIALS_MAX)
        async with trio.open_nursery() as nursery:
            for node, addresses in self._introducing_nodes().items():
                nursery.start_soon(self._ask_one, node, addresses, limit)

    def _introducing_nodes(self) -> dict[NodeId, list[str]]:
        found: dict[NodeId, list[str]] = {}
        for address in self._introducers():
            try:
                node = parse_address(address).node
            except PeerUnreachableError as error:
                log.debug("%s", error)
                continue
            if node != self._link.node_id:
                found.setdefault(node, []).append(address)
        return found

    async def _ask_one(
        self, node: NodeId, addresses: list[str], limit: trio.CapacityLimiter
    ) -> None:
        async with limit:
            try:
                await self._try_some_times(node, addresses)
            except PeerError as error:
                log.debug("node %s does not introduce: %s", node[:16], error)
                self._book.introduces(node, False)
            except Exception:
                # A mistake of ours with one introducer must not cost the others.
                log.exception("the rendezvous with node %s failed", node[:16])

    async def _try_some_times(self, node: NodeId, addresses: list[str]) -> None:
        for left in reversed(range(RENDEZVOUS_TRIES_MAX)):
            try:
                await self._connect(addresses)
                await self._talk(node)
                return
            except PeerGoneError:
                # Likely a dial for a session, which hung up on the same connection when it
                # learnt that the introducer is no member.
                if not left:
                    raise
                await trio.sleep(0.2 + self._random(1)[0] / 255)

    async def _connect(self, addresses: list[str]) -> None:
        why: PeerError = PeerUnreachableError("no address of it is known")
        for address in addresses:
            try:
                await self._link.connect(address)
                return
            except PeerError as error:
                why = error
        raise why

    async def _talk(self, node: NodeId) -> None:
        stream = await self._link.open_stream(node, RENDEZVOUS)
        try:
            with trio.move_on_after(RENDEZVOUS_STREAM_S_MAX), one_error():
                async with trio.open_nursery() as nursery:
                    questions = self._questions()
                    nursery.start_soon(_ask, stream, questions)
                    for question in questions:
                        await self._hear(node, stream, question)
                return
        finally:
            await stream.reset()
        raise PeerTimeoutError(f"took longer than {RENDEZVOUS_STREAM_S_MAX:.0f} s")

    def _questions(self) -> list[Question]:
        """All channels are registered before any is looked up: in case it takes too long."""
        now = self._now()
        where = [(channel, day) for day in days_at(now) for channel in self._channels()]
        asked = [Question("register", *one, self._registration(*one, now)) for one in where]
        for channel, day in where:
            body: Message = {"tag": tag_of(channel.discovery_key, day)}
            asked.append(Question("lookup", channel, day, request_frame("lookup", body)))
        return asked[:RENDEZVOUS_REQUESTS_MAX]

    def _registration(self, channel: Channel, day: int, now: float) -> bytes:
        entry = seal_entry(
            self._key,
            channel.discovery_key,
            day,
            self._link.addresses,
            int(now) + RENDEZVOUS_TTL_S,
            self._random(NONCE_BYTES),
        )
        tag = tag_of(channel.discovery_key, day)
        return request_frame("register", {"tag": tag, "entry": entry, "ttl": RENDEZVOUS_TTL_S})

    async def _hear(self, node: NodeId, stream: Stream, question: Question) -> None:
        message = await _receive(stream, ANSWER_BYTES_MAX)
        if message is None:
            raise PeerGoneError("ended the stream before it had answered")
        answer = read_answer(question.op, message)
        self._book.introduces(node, True)
        if question.op == "lookup":
            await self._take(question, answer["entries"])

    async def _take(self, question: Question, entries: list[bytes]) -> None:
        """Believe nothing of the introducer: what no member sealed and signed is dropped."""
        for sealed in entries:
            # A signature takes 0.2 ms to verify, and there may be thousands.
            await trio.lowlevel.checkpoint()
            try:
                entry = open_entry(
                    question.channel.discovery_key, question.day, sealed, self._now()
                )
            except ProtocolError as error:
                log.debug("an introducer told: %s", error)
                continue
            self._book.add(entry.node, entry.addresses, teller="introducer")
        self._found()


async def _ask(stream: Stream, questions: list[Question]) -> None:
    for question in questions:
        await stream.send_all(question.frame)


async def _receive(stream: Stream, bytes_max: int) -> Message | None:
    """The next message, of which nothing is kept if it is longer; None at the end of the stream.

    Raises ProtocolError, PeerGoneError.
    """
    length = await _receive_exactly(stream, LENGTH_BYTES)
    if not length:
        return None
    size = int.from_bytes(length, "big")
    if not 0 < size <= bytes_max:
        raise ProtocolError(f"a rendezvous frame of {size} bytes, of at most {bytes_max}")
    encoded = await _receive_exactly(stream, size)
    if not encoded:
        raise PeerGoneError("ended the stream within a frame")
    return decode_message(encoded)


async def _receive_exactly(stream: Stream, size: int) -> bytes:
    """That many bytes, or b"" if the stream ends before the first of them."""
    received = bytearray()
    while len(received) < size:
        data = await stream.receive_some(size - len(received))
        if not data and received:
            raise PeerGoneError("ended the stream within a frame")
        if not data:
            return b""
        received += data
    return bytes(received)
