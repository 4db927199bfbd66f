"""A node among libp2p's: TCP, noise, yamux, multistream. The only file that imports libp2p.

From libp2p we take what must be right to the byte and is: its noise handshake, which
proves who the peer is, and its protocol negotiation. Its host is left out. The host
accepts unauthenticated plaintext unless told otherwise, an exception in any handler
ends the process, its yamux cannot be bounded, its dialler waits 250 ms and remembers
failures for a minute, and it starts services (identify, ping, auto-connect) that we
have no use for. See ARCHITECTURE.md for the measurements.

Other libp2p nodes can connect, be authenticated and open our protocols; they get "na"
for anything else, such as identify and ping.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import trio
from libp2p.abc import ISecureConn
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.io import NoiseTransportReadWriter
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.security.secure_session import SecureSession
from libp2p.transport.upgrader import TransportUpgrader

from kachery_p2p.errors import ConfigError, PeerGoneError, PeerUnreachableError, ProtocolError
from kachery_p2p.identity.keys import NodeId, NodeKey, is_sound_key
from kachery_p2p.limits import DIAL_S_MAX, LEAVE_S_MAX, NEGOTIATION_BYTES_MAX
from kachery_p2p.network import yamux
from kachery_p2p.network.connections import TcpLink
from kachery_p2p.network.link import Link
from kachery_p2p.network.multiaddrs import advertised
from kachery_p2p.network.multiplexer import SecureChannel
from kachery_p2p.network.muxed_stream import MuxedStream
from kachery_p2p.network.noise_channel import READ_BYTES_MAX, NoiseChannel
from kachery_p2p.network.sockets import dial, listen_on, listening_addresses

log = logging.getLogger(__name__)

# libp2p logs what peers send, unescaped; what went wrong reaches us as exceptions.
logging.getLogger("libp2p").setLevel(logging.CRITICAL)


@asynccontextmanager
async def open_libp2p_link(
    key: NodeKey, listen: Sequence[tuple[str, int]], advertise: Sequence[str] = ()
) -> AsyncIterator[Link]:
    """This node on the network, listening on each (host, port); port 0 takes a free one.

    `advertise` (HOST:PORT or multiaddrs) is told to others before the addresses found
    here. Leaving says goodbye to every peer and closes every socket, within two
    seconds. An exception of the block comes out in an ExceptionGroup (trio's nursery).
    Raises AddressInUseError and ConfigError.
    """
    told = [advertised(text, key.node_id) for text in advertise]
    listeners = await listen_on(listen)
    found = listening_addresses(listeners, key.node_id)
    try:
        async with trio.open_nursery() as nursery:
            link = TcpLink(key.node_id, NoiseHandshakes(key), nursery)
            link.addresses = tuple(str(address) for address in dict.fromkeys(told + found))
            if listeners:
                nursery.start_soon(_serve, link, listeners, nursery)
            try:
                yield link
            finally:
                with trio.move_on_after(LEAVE_S_MAX) as goodbye:
                    goodbye.shield = True
                    await link.leave_all()
                nursery.cancel_scope.cancel()
    finally:
        for listener in listeners:
            listener.socket.close()


async def who_answers(key: NodeKey, kind: str, host: str, port: int) -> NodeId:
    """The node at a place of which nobody said who is there; it is left at once.

    It has proved that it has the key of this id, and nothing else. `kind` is that of a
    multiaddr. Raises PeerUnreachableError within DIAL_S_MAX.
    """
    with trio.move_on_after(DIAL_S_MAX):
        try:
            tcp = await dial(kind, host, port)
            try:
                return await NoiseHandshakes(key).meet(tcp)
            finally:
                tcp.socket.close()
        except Exception as error:
            log.debug("nobody is met at %s port %d: %r", host, port, error)
            raise PeerUnreachableError(f"no node answers at {host} port {port}") from error
    raise PeerUnreachableError(f"no answer from {host} port {port} within {DIAL_S_MAX:g} s")


async def _serve(
    link: TcpLink, listeners: list[trio.SocketListener], nursery: trio.Nursery
) -> None:
    await trio.serve_listeners(link.serve, listeners, handler_nursery=nursery)


class NoiseHandshakes:
    """The handshakes of libp2p with noise and yamux, and nothing else on offer."""

    def __init__(self, key: NodeKey) -> None:
        noise = NoiseTransport(
            libp2p_keypair=create_new_key_pair(key.seed),
            noise_privkey=create_noise_key_pair().private_key,
        )
        # No other security is offered, so none can be negotiated: plaintext would let
        # anybody who knows a public key pose as its owner.
        self._upgrader = TransportUpgrader({NOISE: noise}, {})
        self._noise = noise

    async def welcome(self, tcp: trio.SocketStream) -> tuple[NodeId, SecureChannel]:
        wire = _Wire(tcp)
        raw = RawConnection(wire, initiator=False)
        session = await self._upgrader.upgrade_security(raw, is_initiator=False)
        node = _node_of(session.get_remote_peer())
        channel = _channel(tcp, wire, session)
        await _answer(_NegotiationWire(channel.read, channel.write), (yamux.PROTOCOL,))
        return node, channel

    async def greet(self, tcp: trio.SocketStream, node: NodeId) -> SecureChannel:
        wire = _Wire(tcp)
        raw = RawConnection(wire, initiator=True)
        session = await self._upgrader.upgrade_security(
            raw, is_initiator=True, peer_id=ID.from_base58(node.peer_id)
        )
        if _node_of(session.get_remote_peer()) != node:
            raise ProtocolError("the node at the address is another one")
        channel = _channel(tcp, wire, session)
        await _ask_for(_NegotiationWire(channel.read, channel.write), yamux.PROTOCOL)
        return channel

    async def meet(self, tcp: trio.SocketStream) -> NodeId:
        """Whoever answers there, as noise proved it. Raises any exception if nobody does."""
        raw = RawConnection(_Wire(tcp), initiator=True)
        await MultiselectClient().select_one_of([NOISE], MultiselectCommunicator(raw))
        session = await self._noise.get_pattern().handshake_outbound(raw, cast(ID, None))
        return _node_of(session.get_remote_peer())

    async def ask_for(self, stream: MuxedStream, protocol: str) -> None:
        await _ask_for(_NegotiationWire(stream.receive, stream.send), protocol)

    async def answer(self, stream: MuxedStream, protocols: tuple[str, ...]) -> str:
        return await _answer(_NegotiationWire(stream.receive, stream.send), protocols)


def _channel(tcp: trio.SocketStream, wire: _Wire, session: ISecureConn) -> NoiseChannel:
    """The session without libp2p's own reader and writer."""
    packets = cast(NoiseTransportReadWriter, cast(SecureSession, session).conn)
    return NoiseChannel(tcp, packets, wire.take_unread())


def _node_of(peer: ID) -> NodeId:
    """The node that a secure channel authenticated."""
    try:
        node = NodeId.parse(peer.to_base58())
    except ConfigError:
        raise ProtocolError("a peer has a key that is not Ed25519") from None
    if not is_sound_key(node.raw):
        raise ProtocolError("a peer has a key under which anybody can sign")
    return node


async def _ask_for(wire: ReadWriteCloser, protocol: str) -> None:
    communicator = MultiselectCommunicator(wire)
    await MultiselectClient().select_one_of([TProtocol(protocol)], communicator)


async def _answer(wire: ReadWriteCloser, protocols: tuple[str, ...]) -> str:
    handlers: dict[TProtocol | None, Any] = {TProtocol(protocol): None for protocol in protocols}
    chosen, _ = await Multiselect(handlers).negotiate(MultiselectCommunicator(wire))
    if chosen is None:
        raise ProtocolError("a peer asked for a protocol without a name")
    return str(chosen)


class _Wire(ReadWriteCloser):
    """A TCP stream as libp2p's noise reads it: buffered, for it reads two bytes first."""

    def __init__(self, tcp: trio.SocketStream) -> None:
        self._tcp = tcp
        self._unread = b""
        self._at = 0

    async def read(self, n: int | None = None) -> bytes:
        if self._at == len(self._unread):
            self._unread = await self._tcp.receive_some(READ_BYTES_MAX)
            self._at = 0
            if not self._unread:
                raise PeerGoneError("the connection to the peer ended")
        start, self._at = self._at, min(len(self._unread), self._at + (n or READ_BYTES_MAX))
        return self._unread[start : self._at]

    def take_unread(self) -> bytes:
        """What came behind the handshake, for who goes on reading instead of this one."""
        unread, self._unread, self._at = self._unread[self._at :], b"", 0
        return unread

    async def write(self, data: bytes) -> None:
        await self._tcp.send_all(data)

    async def close(self) -> None:
        self._tcp.socket.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        return None


class _NegotiationWire(ReadWriteCloser):
    """A secure channel or a stream while a protocol is agreed on for it."""

    def __init__(
        self,
        receive: Callable[[int], Awaitable[bytes]],
        send: Callable[[bytes], Awaitable[None]],
    ) -> None:
        self._receive = receive
        self._send = send

    async def read(self, n: int | None = None) -> bytes:
        if n is None or n > NEGOTIATION_BYTES_MAX:
            raise ProtocolError("a peer announced a protocol name that is too long")
        data = await self._receive(n)
        if not data:
            raise PeerGoneError("the peer ended the stream")
        return data

    async def write(self, data: bytes) -> None:
        await self._send(data)

    async def close(self) -> None:
        """What is negotiated on belongs to its owner."""

    def get_remote_address(self) -> tuple[str, int] | None:
        return None
