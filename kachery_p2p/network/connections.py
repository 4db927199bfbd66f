"""A node's connections over TCP: who is connected, who still has to prove itself, whose streams.

One cancel scope holds all of a connection: its handshake, its probation and its life.
The scope's deadline is HELLO_S_MAX after the TCP connection was made, and `admit`
lifts it; turning a stranger out, leaving a peer and closing the node cancel it. What
is spoken inside (noise, multistream) comes as `Handshakes`, so that only
`libp2p_host` knows libp2p.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import trio

from kachery_p2p.errors import (
    PeerError,
    PeerGoneError,
    PeerTimeoutError,
    PeerUnreachableError,
)
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    CONNECTIONS_PER_PEER_MAX,
    DIAL_S_MAX,
    HELLO_S_MAX,
    LEAVE_S_MAX,
    REQUEST_S_MAX,
    STREAMS_PER_PEER_MAX,
    UNPROVEN_STREAMS_MAX,
)
from kachery_p2p.network.doorkeeper import Doorkeeper
from kachery_p2p.network.link import Stream, StreamHandler
from kachery_p2p.network.multiaddrs import parse_address
from kachery_p2p.network.multiplexer import Multiplexer, SecureChannel
from kachery_p2p.network.muxed_stream import MuxedStream
from kachery_p2p.network.sockets import dial, ip_of, keep_alive

log = logging.getLogger(__name__)


class Handshakes(Protocol):
    """What two nodes say to each other before a stream carries our own protocol."""

    async def welcome(self, tcp: trio.SocketStream) -> tuple[NodeId, SecureChannel]:
        """Let the dialler prove who it is. Raises any exception if it does not."""

    async def greet(self, tcp: trio.SocketStream, node: NodeId) -> SecureChannel:
        """Let the dialled side prove that it is `node`. Raises any exception if it does not."""

    async def ask_for(self, stream: MuxedStream, protocol: str) -> None:
        """Agree on `protocol`. Raises any exception if the peer does not speak it."""

    async def answer(self, stream: MuxedStream, protocols: tuple[str, ...]) -> str:
        """The protocol that the peer asked for. Raises any exception if there is none."""


class Connection:
    """One TCP connection to `node`, from the moment that the node was authenticated."""

    def __init__(self, tcp: trio.SocketStream, scope: trio.CancelScope, node: NodeId) -> None:
        self.tcp = tcp
        self.scope = scope
        self.node = node
        self.ended = trio.Event()
        self.mux: Multiplexer


class Peer:
    """A connected node: its connections, oldest first, and whether it has proved membership."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.proven = False


class PeerStream:
    """The `Stream` of the seam over a multiplexed stream."""

    def __init__(self, muxed: MuxedStream, peer: NodeId, *, outgoing: bool) -> None:
        self._muxed = muxed
        self._peer = peer
        self._outgoing = outgoing

    @property
    def peer(self) -> NodeId:
        return self._peer

    @property
    def outgoing(self) -> bool:
        return self._outgoing

    async def send_all(self, data: bytes) -> None:
        await self._muxed.send(data)

    def send_now(self, data: bytes) -> bool:
        return self._muxed.send_now(data)

    async def receive_some(self, bytes_max: int) -> bytes:
        return await self._muxed.receive(bytes_max)

    async def close(self) -> None:
        self._muxed.close()

    async def reset(self) -> None:
        self._muxed.reset()


class TcpLink:
    """The `Link` of the seam over TCP. `nursery` carries its connections and handlers."""

    def __init__(self, node_id: NodeId, handshakes: Handshakes, nursery: trio.Nursery) -> None:
        self._node_id = node_id
        self._handshakes = handshakes
        self._nursery = nursery
        self._handlers: dict[str, StreamHandler] = {}
        self._peers: dict[NodeId, Peer] = {}
        self._door: Doorkeeper[trio.CancelScope] = Doorkeeper()
        self._dialling: dict[NodeId, trio.Event] = {}
        # Kept when a peer has gone: coming back does not allow it a second set of handlers.
        self._handling: Counter[NodeId] = Counter()
        self._told_of_ends: list[Callable[[NodeId], None]] = []
        self.addresses: tuple[str, ...] = ()

    # --- the seam -------------------------------------------------------------------------

    @property
    def node_id(self) -> NodeId:
        return self._node_id

    def accept(self, protocol: str, handler: StreamHandler) -> None:
        self._handlers[protocol] = handler

    def place_of(self, node: NodeId) -> str:
        peer = self._peers.get(node)
        try:
            return ip_of(peer.connections[-1].tcp) if peer else ""
        except OSError:
            return ""

    def connected(self) -> frozenset[NodeId]:
        return frozenset(self._peers)

    def on_disconnected(self, tell: Callable[[NodeId], None]) -> None:
        self._told_of_ends.append(tell)

    def admit(self, node: NodeId) -> None:
        peer = self._peers.get(node)
        if peer is None:
            return
        peer.proven = True
        for connection in peer.connections:
            self._lift_probation(connection)

    async def connect(self, address: str) -> NodeId:
        place = parse_address(address)
        if place.node == self._node_id:
            raise PeerUnreachableError("the address is this node's own")
        with trio.move_on_after(DIAL_S_MAX):
            while place.node in self._dialling:
                await self._dialling[place.node].wait()
            if place.node not in self._peers:
                await self._dial(place.kind, place.host, place.port, place.node)
            return place.node
        raise PeerUnreachableError(f"no answer from {place} within {DIAL_S_MAX:g} s")

    async def open_stream(self, node: NodeId, protocol: str) -> Stream:
        peer = self._peers.get(node)
        if peer is None:
            raise PeerGoneError(f"not connected to node {node}")
        try:
            with trio.fail_after(REQUEST_S_MAX):
                return await self._ask_for_stream(peer.connections[-1], protocol)
        except trio.TooSlowError:
            raise PeerTimeoutError(f"node {node} did not answer within {REQUEST_S_MAX:g} s")

    async def disconnect(self, node: NodeId) -> None:
        peer = self._peers.get(node)
        if peer is not None:
            await _leave(list(peer.connections))

    # --- arriving and leaving -------------------------------------------------------------

    async def serve(self, tcp: trio.SocketStream) -> None:
        """All of an inbound TCP connection's life; never raises but when cancelled."""
        with trio.CancelScope(deadline=trio.current_time() + HELLO_S_MAX) as scope:
            try:
                connection = await self._welcome(tcp, scope)
                if connection is not None:
                    await self._live(connection)
            finally:
                self._door.leave(scope)
                tcp.socket.close()

    async def _welcome(self, tcp: trio.SocketStream, scope: trio.CancelScope) -> Connection | None:
        try:
            turned_out = self._door.arrive(scope, ip_of(tcp))
            if turned_out is not None:
                turned_out.cancel()
            node, channel = await self._handshakes.welcome(tcp)
            return self._register(tcp, scope, node, channel, outgoing=False)
        except Exception as error:
            log.debug("an inbound connection failed: %r", error)
            return None

    async def leave_all(self) -> None:
        """Say goodbye to everybody."""
        await _leave([c for peer in self._peers.values() for c in peer.connections])

    async def _dial(self, kind: str, host: str, port: int, node: NodeId) -> None:
        self._dialling[node] = trio.Event()
        tcp = None
        try:
            tcp = await dial(kind, host, port)
            channel = await self._handshakes.greet(tcp, node)
            scope = trio.CancelScope(deadline=trio.current_time() + HELLO_S_MAX)
            connection = self._register(tcp, scope, node, channel, outgoing=True)
            self._nursery.start_soon(self._live_dialled, connection)
            tcp = None
        except Exception as error:
            log.debug("dialling node %s failed: %r", node, error)
            raise PeerUnreachableError(f"could not connect to node {node}: {_why(error)}")
        finally:
            self._dialling.pop(node).set()
            if tcp is not None:
                tcp.socket.close()

    async def _live_dialled(self, connection: Connection) -> None:
        with connection.scope:
            await self._live(connection)

    def _register(
        self,
        tcp: trio.SocketStream,
        scope: trio.CancelScope,
        node: NodeId,
        channel: SecureChannel,
        *,
        outgoing: bool,
    ) -> Connection:
        if node == self._node_id:
            raise PeerError("a node with this node's own key")
        keep_alive(tcp)
        connection = Connection(tcp, scope, node)
        connection.mux = Multiplexer(
            channel, outgoing=outgoing, accept=lambda stream: self._take_in(connection, stream)
        )
        peer = self._peers.setdefault(node, Peer())
        peer.connections.append(connection)
        if peer.proven:
            self._lift_probation(connection)
        # Of three, the oldest is the one that a restarted peer has forgotten.
        for old in peer.connections[:-CONNECTIONS_PER_PEER_MAX]:
            old.scope.cancel()
        return connection

    def _lift_probation(self, connection: Connection) -> None:
        connection.scope.deadline = math.inf
        connection.mux.trusted = True
        self._door.leave(connection.scope)

    async def _live(self, connection: Connection) -> None:
        try:
            await connection.mux.run()
        except Exception as error:
            log.debug("the connection to node %s broke off: %r", connection.node, error)
        finally:
            connection.tcp.socket.close()
            connection.ended.set()
            self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        peer = self._peers[connection.node]
        peer.connections.remove(connection)
        if not peer.connections:
            del self._peers[connection.node]
            for tell in self._told_of_ends:
                tell(connection.node)

    # --- streams --------------------------------------------------------------------------

    async def _ask_for_stream(self, connection: Connection, protocol: str) -> PeerStream:
        muxed = await connection.mux.open()
        try:
            await self._handshakes.ask_for(muxed, protocol)
        except Exception as error:
            muxed.reset()
            log.debug("node %s gave no stream for %s: %r", connection.node, protocol, error)
            raise PeerGoneError(f"node {connection.node} gave no stream: {_why(error)}")
        except BaseException:
            muxed.reset()
            raise
        return PeerStream(muxed, connection.node, outgoing=True)

    def _take_in(self, connection: Connection, muxed: MuxedStream) -> bool:
        """Serve a stream that the peer opened, unless it has too many."""
        peer_id = connection.node
        peer = self._peers[peer_id]
        streams_max = STREAMS_PER_PEER_MAX if peer.proven else UNPROVEN_STREAMS_MAX
        # Handlers are counted, not open streams: a peer may reset a stream at once, and
        # leave its handler to finish.
        if self._handling[peer_id] >= streams_max:
            return False
        self._handling[peer_id] += 1
        self._nursery.start_soon(self._handle, connection, muxed)
        return True

    async def _handle(self, connection: Connection, muxed: MuxedStream) -> None:
        try:
            with trio.fail_after(HELLO_S_MAX):
                protocol = await self._handshakes.answer(muxed, tuple(self._handlers))
            await self._handlers[protocol](PeerStream(muxed, connection.node, outgoing=False))
        except (PeerError, trio.TooSlowError) as error:
            log.debug("a stream of node %s ended: %r", connection.node, error)
        except Exception as error:
            # Whatever it was, it is this stream's alone.
            log.warning("a stream of node %s failed: %r", connection.node, error)
        finally:
            muxed.reset()
            self._handling -= Counter([connection.node])


async def _leave(connections: list[Connection]) -> None:
    """Say goodbye on all connections, then end them, within about LEAVE_S_MAX."""
    try:
        with trio.move_on_after(LEAVE_S_MAX):
            async with trio.open_nursery() as nursery:
                for connection in connections:
                    nursery.start_soon(connection.mux.leave)
            # The peer hangs up when it has read all. If we did so first, TCP could take
            # back our last words.
            await _have_ended(connections)
    finally:
        for connection in connections:
            connection.scope.cancel()
    with trio.move_on_after(LEAVE_S_MAX):
        await _have_ended(connections)


async def _have_ended(connections: list[Connection]) -> None:
    for connection in connections:
        await connection.ended.wait()


def _why(error: Exception) -> str:
    """The reason in words that hold nothing a peer has sent."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, PeerError | trio.TooSlowError):
        return str(error) or "too slow"
    return "it broke off, could not prove its name, or does not speak this protocol"
