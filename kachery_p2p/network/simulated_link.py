"""What a node of the simulated world sees: its link, the ends of its connections, its streams."""

from __future__ import annotations

import logging
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

import trio

from kachery_p2p.errors import PeerError, PeerGoneError, PeerTimeoutError, PeerUnreachableError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    CONNECTIONS_PER_PEER_MAX,
    DIAL_S_MAX,
    HELLO_S_MAX,
    REQUEST_S_MAX,
    STREAMS_PER_PEER_MAX,
    UNPROVEN_STREAMS_MAX,
)
from kachery_p2p.network.link import StreamHandler
from kachery_p2p.network.multiaddrs import address_of, parse_address
from kachery_p2p.network.simulated_wire import Direction, Pipe

if TYPE_CHECKING:
    from kachery_p2p.network.simulated import World

log = logging.getLogger(__name__)

PORT = 20432


class SimulatedStream:
    """One side of a stream."""

    def __init__(self, end: End, outbound: Pipe, inbound: Pipe, *, outgoing: bool) -> None:
        self.end = end
        self.outbound = outbound
        self.inbound = inbound
        self.outgoing = outgoing
        self.other: SimulatedStream
        end.streams.append(self)

    @property
    def peer(self) -> NodeId:
        return self.end.peer

    async def send_all(self, data: bytes) -> None:
        await self.outbound.send(data)

    def send_now(self, data: bytes) -> bool:
        # Sending takes its time in this world.
        return False

    async def receive_some(self, bytes_max: int) -> bytes:
        return await self.inbound.receive(bytes_max)

    async def close(self) -> None:
        if not self.outbound.closed:
            self.outbound.close()
            self._forget_if_over()
            self.end.tell_peer(self.other._forget_if_over)

    async def reset(self) -> None:
        self.drop()

    def drop(self) -> None:
        if self not in self.end.streams:
            return
        self.end.forget(self)
        self.inbound.stop_receiving("the stream was reset by this node")
        self.outbound.stop_sending("the stream was reset by this node")
        self.end.tell_peer(self.other.reset_by_peer)

    def reset_by_peer(self) -> None:
        why = "the stream was reset by the peer"
        self.inbound.stop_receiving(why, keep=self.inbound.closed)
        self.outbound.stop_sending(why)
        self.end.forget(self)

    def lose(self, why: str) -> None:
        """The stream is over with its connection: what has arrived stays readable."""
        self.inbound.stop_receiving(why, keep=True)
        self.outbound.stop_sending(why)
        self.end.forget(self)

    def _forget_if_over(self) -> None:
        if self.outbound.closed and self.inbound.closed:
            self.end.forget(self)


class End:
    """One node's side of a connection."""

    def __init__(self, connection: Connection, link: SimulatedLink, peer: NodeId) -> None:
        self.connection = connection
        self.link = link
        self.peer = peer
        self.streams: list[SimulatedStream] = []
        self.handling = 0
        self.alive = True
        self._changed = trio.Event()

    @property
    def out(self) -> Direction:
        return self.link.world.direction(self.link.node_id, self.peer)

    def tell_peer(self, tell: Callable[[], None]) -> None:
        """Call `tell` when word of it has reached the other side."""
        self.link.world.nursery.start_soon(self._tell, tell)

    async def _tell(self, tell: Callable[[], None]) -> None:
        await self.out.travel(self.link.random_for(self.peer, "signal"))
        tell()

    def forget(self, stream: SimulatedStream) -> None:
        if stream in self.streams:
            self.streams.remove(stream)
            self._touch()

    def lose(self, why: str) -> None:
        """This side has heard that the connection is over."""
        if not self.alive:
            return
        self.alive = False
        for stream in list(self.streams):
            stream.lose(why)
        self._touch()
        self.link.forget(self)

    async def room_for_stream(self) -> None:
        while self.alive and sum(s.outgoing for s in self.streams) >= STREAMS_PER_PEER_MAX:
            await self._changed.wait()
        if not self.alive:
            raise PeerGoneError("the connection to the peer ended")

    async def probation(self) -> None:
        await trio.sleep(HELLO_S_MAX)
        if self.alive and self.peer not in self.link.proven:
            self.connection.end_from(self, "membership was not proved in time")

    def _touch(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class Connection:
    """Two ends; either may hear of its end before the other."""

    def __init__(self, dialler: SimulatedLink, dialled: SimulatedLink) -> None:
        self.ends = (End(self, dialler, dialled.node_id), End(self, dialled, dialler.node_id))
        for end in self.ends:
            end.link.add(end)

    def other(self, end: End) -> End:
        return self.ends[1] if end is self.ends[0] else self.ends[0]

    def end_from(self, end: End, why: str) -> None:
        """`end` leaves: it knows at once, the other side when word arrives."""
        end.lose(why)
        end.tell_peer(lambda: self.other(end).lose("the connection to the peer ended"))

    def break_off(self, why: str) -> None:
        for end in self.ends:
            end.lose(why)


class SimulatedLink:
    """The `Link` of one node in the world."""

    def __init__(self, world: World, node_id: NodeId, host: str) -> None:
        self.world = world
        self.host = host
        self.ends: dict[NodeId, list[End]] = {}
        self.proven: set[NodeId] = set()
        self._node_id = node_id
        self._handlers: dict[str, StreamHandler] = {}
        self._told_of_ends: list[Callable[[NodeId], None]] = []
        self._dialling: dict[NodeId, trio.Event] = {}
        self._scopes: set[trio.CancelScope] = set()

    # --- the seam --------------------------------------------------------------------------

    @property
    def node_id(self) -> NodeId:
        return self._node_id

    @property
    def addresses(self) -> tuple[str, ...]:
        return (str(address_of(self.host, PORT, self._node_id)),)

    def accept(self, protocol: str, handler: StreamHandler) -> None:
        self._handlers[protocol] = handler

    def place_of(self, node: NodeId) -> str:
        return self.world.hosts[node] if node in self.ends else ""

    def connected(self) -> frozenset[NodeId]:
        return frozenset(self.ends)

    def on_disconnected(self, tell: Callable[[NodeId], None]) -> None:
        self._told_of_ends.append(tell)

    def admit(self, node: NodeId) -> None:
        if node in self.ends:
            self.proven.add(node)

    async def connect(self, address: str) -> NodeId:
        place = parse_address(address)
        if place.node == self._node_id:
            raise PeerUnreachableError("the address is this node's own")
        with trio.move_on_after(DIAL_S_MAX):
            while place.node in self._dialling:
                await self._dialling[place.node].wait()
            if place.node not in self.ends:
                await self._dial(place.host, place.port, place.node)
            return place.node
        raise PeerUnreachableError(f"no answer from {place} within {DIAL_S_MAX:g} s")

    async def open_stream(self, node: NodeId, protocol: str) -> SimulatedStream:
        await trio.lowlevel.checkpoint()
        if node not in self.ends:
            raise PeerGoneError(f"not connected to node {node}")
        try:
            with trio.fail_after(REQUEST_S_MAX):
                return await self._ask_for_stream(self.ends[node][-1], protocol)
        except trio.TooSlowError:
            raise PeerTimeoutError(f"node {node} did not answer within {REQUEST_S_MAX:g} s")

    async def disconnect(self, node: NodeId) -> None:
        for end in list(self.ends.get(node, [])):
            end.connection.end_from(end, "this node left")

    # --- inside -------------------------------------------------------------------------------

    def random_for(self, peer: NodeId, what: str) -> Random:
        return self.world.random_for(self._node_id, peer, what)

    def add(self, end: End) -> None:
        ends = self.ends.setdefault(end.peer, [])
        ends.append(end)
        self.world.nursery.start_soon(end.probation)
        for old in ends[:-CONNECTIONS_PER_PEER_MAX]:
            old.connection.end_from(old, "too many connections of one node")

    def forget(self, end: End) -> None:
        self.ends[end.peer].remove(end)
        if not self.ends[end.peer]:
            del self.ends[end.peer]
            self.proven.discard(end.peer)
            for tell in self._told_of_ends:
                tell(end.peer)

    def die(self) -> None:
        self._told_of_ends.clear()
        for scope in self._scopes:
            scope.cancel()
        for end in [end for ends in list(self.ends.values()) for end in ends]:
            end.connection.end_from(end, "this node was killed")

    async def _dial(self, host: str, port: int, node: NodeId) -> None:
        self._dialling[node] = trio.Event()
        there, back = (
            self.world.direction(self._node_id, node),
            self.world.direction(node, self._node_id),
        )
        try:
            # TCP's handshake, then noise's.
            for direction in (there, back, there, back):
                await direction.travel(self.random_for(node, "dial"))
            target = self.world.at(host, port)
            if target is None or target.node_id != node:
                raise PeerUnreachableError(f"node {node} is not at {host} port {port}")
            if node not in self.ends or target.ends.get(self._node_id) is None:
                Connection(self, target)
        finally:
            self._dialling.pop(node).set()

    async def _ask_for_stream(self, end: End, protocol: str) -> SimulatedStream:
        await end.room_for_stream()
        other = end.connection.other(end)
        there = Pipe(end.out, self.random_for(end.peer, "pipe"))
        back = Pipe(other.out, other.link.random_for(self._node_id, "pipe"))
        stream = SimulatedStream(end, there, back, outgoing=True)
        try:
            await end.out.travel(self.random_for(end.peer, "open"))
            other.link.take_in(other, stream, protocol)
            await other.out.travel(other.link.random_for(self._node_id, "open"))
            if not end.alive:
                raise PeerGoneError("the connection to the peer ended")
        except BaseException:
            if hasattr(stream, "other"):
                stream.drop()
            else:
                end.forget(stream)
            raise
        return stream

    def take_in(self, end: End, theirs: SimulatedStream, protocol: str) -> None:
        """Serve a stream that the peer opened, or refuse it."""
        streams_max = STREAMS_PER_PEER_MAX if end.peer in self.proven else UNPROVEN_STREAMS_MAX
        handling = sum(e.handling for e in self.ends.get(end.peer, []))
        if not end.alive or protocol not in self._handlers or handling >= streams_max:
            raise PeerGoneError(f"node {self._node_id} gave no stream")
        ours = SimulatedStream(end, theirs.inbound, theirs.outbound, outgoing=False)
        ours.other, theirs.other = theirs, ours
        end.handling += 1
        self.world.nursery.start_soon(self._handle, self._handlers[protocol], ours)

    async def _handle(self, handler: StreamHandler, stream: SimulatedStream) -> None:
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                await handler(stream)
            except PeerError as error:
                log.debug("a stream of node %s ended: %r", stream.peer, error)
            except Exception as error:
                log.warning("a stream of node %s failed: %r", stream.peer, error)
            finally:
                stream.drop()
                stream.end.handling -= 1
                self._scopes.discard(scope)
