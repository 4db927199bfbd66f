"""Where members may be reached: an address book, and who to dial next.

Addresses come from the user (`--bootstrap`), from members (`introduce`, `members`) and
from the last run. They are hints: whoever answers must still prove membership. The book
is pure, told what happened and what time it is; `network/sessions.py` does the dialling.
"""

from __future__ import annotations

from collections.abc import Iterable

from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    ADDRESSES_PER_NODE_MAX,
    PEERS_MAX,
    REDIAL_S_MAX,
    REDIAL_S_MIN,
    TEXT_CHARS_MAX,
)


class Contact:
    """What is known of reaching one node."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.wanted_by_user = False
        self.proved = False
        self.failures = 0
        self.due_at = 0.0
        self.tried = False
        self.in_flight = False


class AddressBook:
    """Who to dial next. Bounded: PEERS_MAX nodes with ADDRESSES_PER_NODE_MAX addresses each."""

    def __init__(self, me: NodeId) -> None:
        self._me = me
        self._contacts: dict[NodeId, Contact] = {}
        self._connected: set[NodeId] = set()

    def add(
        self,
        node: NodeId,
        addresses: Iterable[str],
        *,
        by_user: bool = False,
        proved: bool = False,
    ) -> None:
        """Remember `addresses` of `node`, newest first; a full book keeps whom it knows.

        `proved` is for a node that has once proved membership (in an earlier run).
        """
        if node == self._me:
            return
        contact = self._contacts.get(node)
        if contact is None:
            if len(self._contacts) >= PEERS_MAX and not by_user:
                return
            contact = self._contacts[node] = Contact()
        contact.wanted_by_user |= by_user
        contact.proved |= proved
        fresh = [a for a in addresses if 0 < len(a) <= TEXT_CHARS_MAX]
        kept = [a for a in contact.addresses if a not in fresh]
        if set(fresh) - set(contact.addresses):
            contact.due_at = 0.0
        contact.addresses = (fresh + kept)[:ADDRESSES_PER_NODE_MAX]

    def due(self, now: float) -> list[tuple[NodeId, tuple[str, ...]]]:
        """The nodes to dial now; each stays out until `reached`, `failed` or `lost` is told."""
        due = [
            (node, contact)
            for node, contact in self._contacts.items()
            if node not in self._connected and not contact.in_flight and contact.due_at <= now
        ]
        for _, contact in due:
            contact.in_flight = True
        return [(node, tuple(contact.addresses)) for node, contact in due]

    def next_due_at(self, now: float) -> float:
        """When to look again at the latest."""
        waiting = [
            c.due_at
            for node, c in self._contacts.items()
            if node not in self._connected and not c.in_flight
        ]
        return min([now + REDIAL_S_MAX, *waiting])

    def reached(self, node: NodeId) -> None:
        """A member session with `node` is open."""
        self._connected.add(node)
        contact = self._contacts.get(node)
        if contact is not None:
            contact.proved = True
            contact.failures, contact.tried, contact.in_flight = 0, True, False

    def failed(self, node: NodeId, now: float, jitter: float) -> None:
        """No session with `node` came to be; `jitter` (0 to 1) keeps nodes out of step."""
        contact = self._contacts.get(node)
        if contact is None:
            return
        wait_s = min(REDIAL_S_MAX, REDIAL_S_MIN * 2**contact.failures)
        contact.failures = min(contact.failures + 1, 16)
        contact.due_at = now + wait_s * (0.5 + 0.5 * jitter)
        contact.tried, contact.in_flight = True, False
        self._forget_if_hopeless(node, contact)

    def lost(self, node: NodeId, now: float) -> None:
        """The session with `node` ended: dial again soon."""
        self._connected.discard(node)
        contact = self._contacts.get(node)
        if contact is not None:
            contact.due_at, contact.in_flight = now + REDIAL_S_MIN, False

    def drop(self, node: NodeId) -> None:
        """`node` turned out not to be a member: dial it again only if the user named it."""
        contact = self._contacts.get(node)
        if contact is not None and not contact.wanted_by_user:
            del self._contacts[node]

    @property
    def settled(self) -> bool:
        """True when every known node is connected or has been tried since it was heard of."""
        return all(
            contact.tried or node in self._connected for node, contact in self._contacts.items()
        )

    def addresses_of(self, node: NodeId) -> tuple[str, ...]:
        contact = self._contacts.get(node)
        return tuple(contact.addresses) if contact is not None else ()

    def known(self) -> dict[NodeId, tuple[str, ...]]:
        """The members worth keeping for the next run; hearsay is not."""
        return {n: tuple(c.addresses) for n, c in self._contacts.items() if c.proved}

    def unreached_by_user(self) -> tuple[NodeId, ...]:
        """Nodes that the user named, tried without success so far."""
        return tuple(
            node
            for node, contact in self._contacts.items()
            if contact.wanted_by_user and contact.tried and node not in self._connected
        )

    def _forget_if_hopeless(self, node: NodeId, contact: Contact) -> None:
        # Hearsay is forgotten after 16 failures (11 minutes of doubling waits). Who was once a
        # member is dialled for ever: after a long partition nobody else would bring us together.
        if contact.failures >= 16 and not (contact.wanted_by_user or contact.proved):
            del self._contacts[node]
