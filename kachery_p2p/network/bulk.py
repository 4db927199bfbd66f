"""The bulk plane: chunks between nodes over TCP connections of their own, as sealed frames.

A connection to a peer comes about over the control stream: we ask for a ticket (`bulk`),
dial the peer's bulk port and show it; if nobody can be reached there, the peer dials
us back with the same ticket (`bulk back`). It then stays, and is used again, until the
control connection ends, its keys are used up, or nothing was asked for a minute. Who
asked for the ticket asks for chunks; for the other direction there is another connection.

Strangers cost little: see `bulk_greeting` and `doorkeeper`. After its hello a
connection has a thread, which ends when the socket is shut.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from kachery_p2p.errors import (
    PeerBusyError,
    PeerError,
    PeerGoneError,
    PeerRefusedError,
    PeerUnreachableError,
)
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    ADDRESSES_PER_NODE_MAX,
    BULK_CONNECTIONS_MAX,
    BULK_CONNECTIONS_PER_PEER_MAX,
    BULK_DIAL_S_MAX,
    BULK_SERVED_BUFFERS_KEPT_MAX,
    BULK_SERVED_BUFFERS_MAX,
    BULK_TICKET_S_MAX,
    HELLO_S_MAX,
    STALL_S_MAX,
)
from kachery_p2p.network.bulk_asking import BulkConnection
from kachery_p2p.network.bulk_buffers import Buffers
from kachery_p2p.network.bulk_dials import Dials
from kachery_p2p.network.bulk_greeting import Greeted, greet, welcome
from kachery_p2p.network.bulk_serving import BulkServing, Serve
from kachery_p2p.network.bulk_socket import BulkSocket
from kachery_p2p.network.bulk_tickets import Ticket, Tickets
from kachery_p2p.network.doorkeeper import Doorkeeper
from kachery_p2p.network.pace import Pace
from kachery_p2p.network.sockets import ip_of, keep_alive, listen_on
from kachery_p2p.wire.sealed import (
    AES_256_GCM,
    CHACHA20_POLY1305,
    RANDOM_BYTES,
    TICKET_BYTES,
    agreed_cipher,
)

log = logging.getLogger(__name__)

Body = dict[str, Any]
# Makes a request of the control stream to the peer, and answers the checked answer.
Ask = Callable[[str, Body], Awaitable[Body]]


@asynccontextmanager
async def open_bulk_plane(
    node_id: NodeId,
    listen: Sequence[tuple[str, int]],
    serve: Serve,
    *,
    advertised_port: int | None = None,
    stall_s: float = STALL_S_MAX,
    pace: Pace | None = None,
) -> AsyncIterator[BulkPlane]:
    """This node's bulk plane, listening on each (host, port); port 0 takes a free one.

    Of several ports the first is told to others. With no place to listen on it still
    dials, and is never dialled. `serve` judges each request when it is served, `pace` says
    how fast chunks go (None: as fast as they can). Leaving
    ends every connection and waits for its thread.
    An exception of the block comes out in an ExceptionGroup (trio's nursery). Raises
    AddressInUseError and ConfigError.
    """
    listeners = await listen_on(listen)
    try:
        async with trio.open_nursery() as nursery:
            port = listeners[0].socket.getsockname()[1] if listeners else 0
            pace = pace or Pace.limited()
            plane = BulkPlane(node_id, serve, nursery, advertised_port or port, stall_s, pace)
            if listeners:
                nursery.start_soon(_listen, plane, listeners, nursery)
            try:
                yield plane
            finally:
                nursery.cancel_scope.cancel()
    finally:
        for listener in listeners:
            listener.socket.close()


async def _listen(
    plane: BulkPlane, listeners: list[trio.SocketListener], nursery: trio.Nursery
) -> None:
    await trio.serve_listeners(plane.welcome, listeners, handler_nursery=nursery)


class BulkPlane:
    """The bulk connections of a node. All methods are called in trio.

    `port` is what others are told to dial, 0 if nobody can.
    """

    def __init__(
        self,
        node_id: NodeId,
        serve: Serve,
        nursery: trio.Nursery,
        port: int,
        stall_s: float,
        pace: Pace,
    ) -> None:
        self.port = port
        self._node_id = node_id
        self._serve = serve
        self._nursery = nursery
        self._stall_s = stall_s
        self._pace = pace
        self._cipher = preferred_cipher()
        self._tickets = Tickets(trio.current_time)
        self._door: Doorkeeper[trio.CancelScope] = Doorkeeper()
        # Apart, so that peers who read slowly keep no buffer from what we fetch.
        self._buffers = Buffers()
        self._served_buffers = Buffers(BULK_SERVED_BUFFERS_MAX, BULK_SERVED_BUFFERS_KEPT_MAX)
        self._threads = trio.CapacityLimiter(BULK_CONNECTIONS_MAX)
        # Oldest first. A connection counts until its thread is gone.
        self._connections: list[BulkConnection | BulkServing] = []
        self._connecting: dict[NodeId, trio.Event] = {}
        self._dialled_back: dict[bytes, trio.Event] = {}
        self._ended_sent = 0
        self._ended_received = 0

    # --- asking ---------------------------------------------------------------------------------

    async def connect(self, peer: NodeId, ask: Ask, hosts: Sequence[str]) -> BulkConnection:
        """A connection on which `peer` can be asked for chunks: the present one, or a new one.

        `ask(op, body)` makes a request on the control stream to the peer, `hosts` are
        where it may be. Raises PeerUnreachableError when neither side can dial the
        other, and what `ask` raises.
        """
        while peer in self._connecting:
            await self._connecting[peer].wait()
        present = self._usable(peer)
        if present is not None:
            return present
        self._connecting[peer] = trio.Event()
        try:
            self._check_room()
            return await self._new_connection(peer, ask, hosts)
        finally:
            self._connecting.pop(peer).set()

    def _usable(self, peer: NodeId) -> BulkConnection | None:
        asking = [one for one in self._connections if isinstance(one, BulkConnection)]
        usable = [one for one in asking if one.peer == peer and one.usable]
        return usable[-1] if usable else None

    async def _new_connection(self, peer: NodeId, ask: Ask, hosts: Sequence[str]) -> BulkConnection:
        mine = os.urandom(RANDOM_BYTES)
        offer = await ask("bulk", {"random": mine, "cipher": self._cipher})
        ticket = Ticket(offer["ticket"], peer, True, offer["cipher"], mine, offer["random"])
        try:
            greeted = await self._dial(ticket, hosts, offer["port"])
        except PeerUnreachableError:
            if not self.port:
                raise
            await self._await_dial_back(ticket, ask)
        else:
            self._carry(greeted)
        connection = self._usable(peer)
        if connection is None:
            raise PeerGoneError("ended the bulk connection at once")
        return connection

    async def _await_dial_back(self, ticket: Ticket, ask: Ask) -> None:
        self._tickets.add(ticket)
        arrived = self._dialled_back[ticket.id] = trio.Event()
        try:
            with trio.move_on_after(BULK_TICKET_S_MAX):
                await ask("bulk back", {"ticket": ticket.id, "port": self.port})
                await arrived.wait()
        except PeerError as error:
            raise PeerUnreachableError(f"neither node can dial the other: {error}") from None
        finally:
            self._tickets.forget(ticket)
            del self._dialled_back[ticket.id]
        if not arrived.is_set():
            raise PeerUnreachableError("neither node can dial the other")

    # --- being asked ----------------------------------------------------------------------------

    def offer(self, peer: NodeId, body: Body) -> Body:
        """The answer to a member's request `bulk`: a ticket for one connection.

        Raises PeerBusyError when this node has as many connections as it may.
        """
        self._check_room()
        cipher = agreed_cipher(body["cipher"], self._cipher)
        mine = os.urandom(RANDOM_BYTES)
        ticket = Ticket(os.urandom(TICKET_BYTES), peer, False, cipher, mine, body["random"])
        self._tickets.add(ticket)
        return {"ticket": ticket.id, "random": mine, "cipher": cipher, "port": self.port}

    async def dial_back(self, peer: NodeId, body: Body, hosts: Sequence[str]) -> Body:
        """The answer to a member's request `bulk back`, given once it was dialled at its port.

        Raises PeerRefusedError for a ticket that is not the peer's, or no longer valid,
        PeerUnreachableError.
        """
        ticket = self._tickets.find(body["ticket"])
        if ticket is None or ticket.peer != peer or ticket.asked:
            raise PeerRefusedError("a ticket that is not known, or was used, or has expired")
        # From now on nobody can use it at our own port.
        self._tickets.consume(ticket)
        self._carry(await self._dial(ticket, hosts, body["port"]))
        return {}

    async def welcome(self, stream: trio.SocketStream) -> None:
        """Let somebody in who dialled our port, if it shows a ticket in time."""
        with trio.CancelScope(deadline=trio.current_time() + HELLO_S_MAX) as scope:
            try:
                turned_out = self._door.arrive(scope, ip_of(stream))
                if turned_out is not None:
                    turned_out.cancel()
                greeted = await welcome(stream, self._node_id, self._tickets)
                self._carry(greeted)
                if greeted.ticket.id in self._dialled_back:
                    self._dialled_back[greeted.ticket.id].set()
            except (PeerError, OSError) as error:
                log.debug("a bulk connection was not let in: %s", error)
            except Exception:
                # A mistake of ours at the door must not be a way to end the node.
                log.exception("letting in a bulk connection failed")
            finally:
                self._door.leave(scope)
                stream.socket.close()

    # --- connections ------------------------------------------------------------------------------

    def forget(self, peer: NodeId) -> None:
        """The peer is no member any more, or gone: its tickets and connections end now."""
        self._tickets.forget_peer(peer)
        for connection in self._connections:
            if connection.peer == peer:
                connection.shut()

    def peers(self) -> frozenset[NodeId]:
        """Those with whom there is a connection, in either direction."""
        return frozenset(connection.peer for connection in self._connections)

    def silence_s(self, peer: NodeId) -> float | None:
        """Seconds since bytes last moved to or from the peer; None without a connection."""
        moved = [one.last_moved for one in self._connections if one.peer == peer]
        return time.monotonic() - max(moved) if moved else None

    @property
    def bytes_sent(self) -> int:
        """Bytes of chunks sent since the plane was opened."""
        serving = (one for one in self._connections if isinstance(one, BulkServing))
        return self._ended_sent + sum(one.bytes_sent for one in serving)

    def sent_to(self) -> dict[NodeId, int]:
        """Bytes of chunks sent on the connections that are open, by node."""
        sent: dict[NodeId, int] = {}
        for one in self._connections:
            if isinstance(one, BulkServing):
                sent[one.peer] = sent.get(one.peer, 0) + one.bytes_sent
        return sent

    @property
    def bytes_received(self) -> int:
        """Bytes of chunks received since the plane was opened."""
        asking = (one for one in self._connections if isinstance(one, BulkConnection))
        return self._ended_received + sum(one.bytes_received for one in asking)

    def _check_room(self) -> None:
        if len(self._connections) >= BULK_CONNECTIONS_MAX:
            raise PeerBusyError("has as many bulk connections as it may")

    async def _dial(self, ticket: Ticket, hosts: Sequence[str], port: int) -> Greeted:
        """A connection to the first host at which somebody has the ticket's keys.

        Raises PeerUnreachableError.
        """
        if not port:
            raise PeerUnreachableError("takes no bulk connections")
        dials = Dials(lambda host: self._dial_one(ticket, host, port))
        with trio.move_on_after(BULK_DIAL_S_MAX):
            await dials.run(hosts[:ADDRESSES_PER_NODE_MAX])
        if dials.greeted is None:
            raise PeerUnreachableError(
                f"cannot be reached for bulk transfer at port {port}: {dials.reason}",
                hint=f"let other computers connect to TCP port {port} of its computer",
            )
        return dials.greeted

    async def _dial_one(self, ticket: Ticket, host: str, port: int) -> Greeted:
        stream = await trio.open_tcp_stream(host, port)
        try:
            return await greet(stream, self._node_id, ticket)
        except BaseException:
            stream.socket.close()
            raise

    def _carry(self, greeted: Greeted) -> None:
        """Give a connection that has been greeted to a thread. The stream is taken from trio."""
        try:
            self._check_room()
            keep_alive(greeted.stream)
            wire = BulkSocket.of_stream(greeted.stream, self._stall_s)
        except BaseException:
            greeted.stream.socket.close()
            raise
        connection: BulkConnection | BulkServing
        if greeted.ticket.asked:
            lane = self._pace.down.lane(greeted.ticket.peer)
            connection = BulkConnection(greeted, wire, self._buffers.share(), lane)
        else:
            lane = self._pace.up.lane(greeted.ticket.peer)
            share = self._served_buffers.share()
            connection = BulkServing(greeted, wire, share, self._serve, lane)
        alike = [one for one in self._connections if type(one) is type(connection)]
        of_peer = [one for one in alike if one.peer == connection.peer]
        if len(of_peer) >= BULK_CONNECTIONS_PER_PEER_MAX:
            of_peer[0].shut()
        self._connections.append(connection)
        self._nursery.start_soon(self._run, connection)

    async def _run(self, connection: BulkConnection | BulkServing) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_shut_when_cancelled, connection)
                reason = await trio.to_thread.run_sync(connection.work, limiter=self._threads)
                log.debug("a bulk connection with %s ended: %s", connection.peer[:16], reason)
                nursery.cancel_scope.cancel()
        finally:
            connection.ended()
            self._connections.remove(connection)
            if isinstance(connection, BulkServing):
                self._ended_sent += connection.bytes_sent
            else:
                self._ended_received += connection.bytes_received


async def _shut_when_cancelled(connection: BulkConnection | BulkServing) -> None:
    """A thread cannot be cancelled: shut its socket instead, and it ends by itself."""
    try:
        await trio.sleep_forever()
    finally:
        connection.shut()


def preferred_cipher(cpu_info: Path = Path("/proc/cpuinfo")) -> int:
    """AES if this computer has it in hardware, else ChaCha20, which is fast without.

    Where there is no such file (macOS) every supported computer has AES.
    """
    try:
        words = set(cpu_info.read_text().split())
    except OSError:
        return AES_256_GCM
    return AES_256_GCM if "aes" in words else CHACHA20_POLY1305
