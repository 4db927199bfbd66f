"""Tickets: which bulk connections are awaited, from whom, and what their keys are made of.

A ticket is agreed on over the control stream, used once within ten seconds, and known by
the sixteen random bytes that the dialler says in clear. Pure: time is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from kachery_p2p.errors import PeerBusyError, ProtocolError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import BULK_TICKET_S_MAX, BULK_TICKETS_MAX, BULK_TICKETS_PER_PEER_MAX
from kachery_p2p.wire.sealed import Agreement


class Ticket(NamedTuple):
    """What one side keeps of a ticket.

    `asked` is true on the side that asked for it, and will ask for chunks. `mine` and
    `theirs` are the random bytes of both sides.
    """

    id: bytes
    peer: NodeId
    asked: bool
    cipher: int
    mine: bytes
    theirs: bytes

    def as_dialler(self, me: NodeId) -> Agreement:
        """What the keys are made of, if we dial."""
        return Agreement(self.id, self.cipher, me.raw, self.peer.raw, self.mine, self.theirs)

    def as_listener(self, me: NodeId) -> Agreement:
        """What the keys are made of, if the peer dials."""
        return Agreement(self.id, self.cipher, self.peer.raw, me.raw, self.theirs, self.mine)

    def __repr__(self) -> str:
        return f"<Ticket {self.id.hex()} of {self.peer[:16]}>"


class Tickets:
    """The tickets whose connections are awaited, a bounded number of them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._valid: dict[bytes, tuple[Ticket, float]] = {}

    def __len__(self) -> int:
        return len(self._valid)

    def add(self, ticket: Ticket) -> None:
        """Await the connection of `ticket`. Of too many of one peer the oldest is forgotten.

        Raises PeerBusyError when other peers have taken all the places, ProtocolError for
        an id that another ticket has.
        """
        now = self._clock()
        self._valid = {i: kept for i, kept in self._valid.items() if now < kept[1]}
        of_peer = [i for i, kept in self._valid.items() if kept[0].peer == ticket.peer]
        if len(of_peer) >= BULK_TICKETS_PER_PEER_MAX:
            del self._valid[of_peer[0]]
        if ticket.id in self._valid:
            # Who dials back with a ticket made its id: it must not be that of another one's.
            raise ProtocolError("a ticket with the id of another one")
        if len(self._valid) >= BULK_TICKETS_MAX:
            raise PeerBusyError("is asked for bulk connections by too many others")
        self._valid[ticket.id] = (ticket, now + BULK_TICKET_S_MAX)

    def find(self, ticket_id: bytes) -> Ticket | None:
        """The ticket with this id, if it is awaited. It stays so: an id proves nothing."""
        found = self._valid.get(ticket_id)
        return found[0] if found is not None and self._clock() < found[1] else None

    def consume(self, ticket: Ticket) -> bool:
        """True once for each ticket, and only while it is valid."""
        valid = self.find(ticket.id) is ticket
        if valid:
            del self._valid[ticket.id]
        return valid

    def forget(self, ticket: Ticket) -> None:
        """Its connection is no longer awaited."""
        self._valid.pop(ticket.id, None)

    def forget_peer(self, peer: NodeId) -> None:
        """The peer is gone, and its tickets with it."""
        self._valid = {i: kept for i, kept in self._valid.items() if kept[0].peer != peer}
