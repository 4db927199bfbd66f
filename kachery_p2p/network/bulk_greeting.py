"""The first bytes of a bulk connection, by which both ends show that they have the ticket's keys.

    dialler    hello  HELLO frame >            < HELLO frame    listener

Everything here runs in trio: a stranger costs a task, not a thread, and makes us hold 116
bytes. A ticket is used up by the first frame that opens, so whoever saw its id go by can
neither use it nor spoil it.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import trio

from kachery_p2p.errors import PeerGoneError, ProtocolError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.network.bulk_tickets import Ticket, Tickets
from kachery_p2p.wire import bulk_messages
from kachery_p2p.wire.bulk_messages import HELLO, check_hello_header
from kachery_p2p.wire.sealed import (
    HEADER_BYTES,
    HELLO_BYTES,
    Agreement,
    FrameHeader,
    Opener,
    Sealer,
    encode_hello,
    read_hello,
)


class Greeted(NamedTuple):
    """A bulk connection whose other end has the keys of `ticket`."""

    ticket: Ticket
    stream: trio.SocketStream
    sealer: Sealer
    opener: Opener
    # Unanswered requests that the other side takes.
    requests_max: int


async def welcome(stream: trio.SocketStream, me: NodeId, tickets: Tickets) -> Greeted:
    """Let who dialled us show a ticket. Raises ProtocolError or PeerGoneError if it cannot."""
    ticket = tickets.find(read_hello(await _receive(stream, HELLO_BYTES)))
    if ticket is None:
        raise ProtocolError("a ticket that is not known, or was used, or has expired")
    theirs, ours = ticket.as_listener(me).keys()
    now = time.monotonic()
    sealer, opener = Sealer(ours, ticket.cipher, now), Opener(theirs, ticket.cipher, now)
    requests_max = await _hear_hello(stream, opener)
    if not tickets.consume(ticket):
        raise ProtocolError("a ticket that was used meanwhile, or has expired")
    await _send(stream, _hello_frame(sealer))
    return Greeted(ticket, stream, sealer, opener, requests_max)


async def greet(stream: trio.SocketStream, me: NodeId, ticket: Ticket) -> Greeted:
    """Show our ticket to whom we dialled. Raises ProtocolError or PeerGoneError."""
    agreement: Agreement = ticket.as_dialler(me)
    ours, theirs = agreement.keys()
    now = time.monotonic()
    sealer, opener = Sealer(ours, ticket.cipher, now), Opener(theirs, ticket.cipher, now)
    # In one packet, so that the listener has all of it when it looks for the first time.
    await _send(stream, encode_hello(ticket.id) + _hello_frame(sealer))
    return Greeted(ticket, stream, sealer, opener, await _hear_hello(stream, opener))


def _hello_frame(sealer: Sealer) -> bytes:
    return sealer.seal(HELLO, 0, 0, bulk_messages.encode_hello(), time.monotonic())


async def _hear_hello(stream: trio.SocketStream, opener: Opener) -> int:
    header = await _receive(stream, HEADER_BYTES)
    found = FrameHeader.decode(header)
    check_hello_header(found)
    sealed = await _receive(stream, found.sealed_length)
    return bulk_messages.read_hello(opener.open(header, sealed, time.monotonic()))


async def _receive(stream: trio.SocketStream, count: int) -> bytes:
    """Exactly so many bytes, and not one more taken from the kernel."""
    received = b""
    try:
        while len(received) < count:
            more = await stream.receive_some(count - len(received))
            if not more:
                raise PeerGoneError("the bulk connection ended before its hello")
            received += more
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        raise PeerGoneError("the bulk connection broke before its hello") from None
    return received


async def _send(stream: trio.SocketStream, data: bytes) -> None:
    try:
        await stream.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        raise PeerGoneError("the bulk connection broke before its hello") from None
