"""Where members may be reached: an address book, and who to dial next.

Addresses come from the user (`--bootstrap`), from members (`introduce`, `members`), from
the last run, from introducers and from the local network. They are hints: whoever answers
must still prove membership. The book is pure, told what happened and what time it is;
`network/sessions.py` does the dialling.
"""

from __future__ import annotations

from collections.abc import Iterable

from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    ADDRESS_CHARS_MAX,
    ADDRESSES_PER_NODE_MAX,
    PEERS_MAX,
    REDIAL_S_MAX,
    REDIAL_S_MIN,
    STRANGER_REDIAL_S,
)

# Doubling ends here, and so does hope for hearsay.
_FAILURES_MAX = 16
# A session this long was no misunderstanding (a crossed dial, a peer that can take no more).
_LASTED_S = 5.0


class Contact:
    """What is known of reaching one node."""

    def __init__(self) -> None:
        # What the user, the node itself or the last run told, newest first; and what others told.
        self.told: list[str] = []
        self.hearsay: list[str] = []
        self.wanted_by_user = False
        self.proved = False
        # It introduces others (`network/rendezvous.py`), so the user was right to name it ...
        self.introduces = False
        # ... and it answered that it is in no channel of ours.
        self.stranger = False
        self.failures = 0
        self.due_at = 0.0
        self.tried = False
        self.in_flight = False
        self.reached_at: float | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where to dial, best first: hearsay never takes the place of what the node told."""
        hearsay = [a for a in self.hearsay if a not in self.told]
        return (*self.told, *hearsay)[:ADDRESSES_PER_NODE_MAX]

    @property
    def vouched(self) -> bool:
        """True for who is worth more than hearsay."""
        return self.wanted_by_user or self.proved

    def learn(self, addresses: list[str], *, vouched: bool) -> bool:
        """Take in addresses, newest first; True if any was new."""
        news = any(a not in self.told and a not in self.hearsay for a in addresses)
        kept = self.told if vouched else self.hearsay
        merged = list(dict.fromkeys([*addresses, *kept]))[:ADDRESSES_PER_NODE_MAX]
        if vouched:
            self.told = merged
        else:
            self.hearsay = merged
        return news


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
        """Remember `addresses` of `node`, newest first; those that name another node are dropped.

        `proved` is for a node that has proved membership, now or in an earlier run. A full
        book gives up hearsay that failed for other hearsay, and any hearsay for a member.
        """
        if node == self._me:
            return
        contact = self._contacts.get(node)
        if contact is None:
            if not by_user and not self._make_room(proved):
                return
            contact = self._contacts[node] = Contact()
        contact.wanted_by_user |= by_user
        contact.proved |= proved
        if by_user and contact.stranger:
            # Named again: perhaps for a channel that was joined since.
            contact.stranger, contact.due_at = False, 0.0
        name = f"/p2p/{node.peer_id}"
        fresh = [a for a in addresses if len(a) <= ADDRESS_CHARS_MAX and a.endswith(name)]
        if contact.learn(fresh, vouched=by_user or proved):
            contact.due_at = 0.0

    def _make_room(self, proved: bool) -> bool:
        if len(self._contacts) < PEERS_MAX:
            return True
        hearsay = [
            (contact.failures, node)
            for node, contact in self._contacts.items()
            if not contact.vouched and not contact.in_flight and (proved or contact.failures)
        ]
        if hearsay:
            del self._contacts[max(hearsay)[1]]
        return bool(hearsay)

    def due(self, now: float) -> list[tuple[NodeId, tuple[str, ...]]]:
        """The nodes to dial now, hearsay last.

        Each stays out until `reached`, `failed` or `lost` is told.
        """
        due = [
            (node, contact)
            for node, contact in self._contacts.items()
            if node not in self._connected and not contact.in_flight and contact.due_at <= now
        ]
        due.sort(key=lambda found: (not found[1].vouched, found[1].failures))
        for _, contact in due:
            contact.in_flight = True
        return [(node, contact.addresses) for node, contact in due]

    def next_due_at(self, now: float) -> float:
        """When to look again at the latest."""
        waiting = [
            c.due_at
            for node, c in self._contacts.items()
            if node not in self._connected and not c.in_flight
        ]
        return min([now + REDIAL_S_MAX, *waiting])

    def introduces(self, node: NodeId, yes: bool) -> None:
        """`node` introduces others, or no longer answers when it is asked to."""
        contact = self._contacts.get(node)
        if contact is None:
            return
        if contact.introduces and not yes:
            # Dialled again, it is either there or the reason why it is not can be told.
            contact.due_at = 0.0
        contact.introduces = yes

    def reached(self, node: NodeId, now: float) -> None:
        """A member session with `node` is open."""
        self._connected.add(node)
        contact = self._contacts.get(node)
        if contact is not None:
            contact.proved, contact.tried, contact.in_flight = True, True, False
            contact.stranger = False
            contact.reached_at = now

    def failed(self, node: NodeId, now: float, jitter: float) -> None:
        """No session with `node` came to be; `jitter` (0 to 1) keeps nodes out of step."""
        contact = self._contacts.get(node)
        if contact is None:
            return
        self._put_off(contact, now, jitter)
        self._forget_if_hopeless(node, contact)

    def lost(self, node: NodeId, now: float, jitter: float) -> None:
        """The session with `node` ended: dial again soon, or later if it never lasts."""
        self._connected.discard(node)
        contact = self._contacts.get(node)
        if contact is None:
            return
        if contact.reached_at is not None and now - contact.reached_at >= _LASTED_S:
            contact.failures = 0
        self._put_off(contact, now, jitter)

    def _put_off(self, contact: Contact, now: float, jitter: float) -> None:
        wait_s = min(REDIAL_S_MAX, REDIAL_S_MIN * 2**contact.failures)
        if contact.introduces and contact.stranger:
            wait_s = STRANGER_REDIAL_S
        contact.failures = min(contact.failures + 1, _FAILURES_MAX)
        contact.due_at = now + wait_s * (0.5 + 0.5 * jitter)
        contact.tried, contact.in_flight = True, False

    def drop(self, node: NodeId) -> None:
        """`node` turned out not to be a member: dial it again only if the user named it."""
        contact = self._contacts.get(node)
        if contact is None:
            return
        contact.stranger = True
        if not contact.wanted_by_user:
            del self._contacts[node]

    @property
    def settled(self) -> bool:
        """True when every known node is connected or has been tried since it was heard of."""
        return all(
            contact.tried or node in self._connected for node, contact in self._contacts.items()
        )

    def addresses_of(self, node: NodeId) -> tuple[str, ...]:
        contact = self._contacts.get(node)
        return contact.addresses if contact is not None else ()

    def known(self) -> dict[NodeId, tuple[str, ...]]:
        """The members worth keeping for the next run; hearsay is not."""
        return {n: c.addresses for n, c in self._contacts.items() if c.proved}

    def unreached_by_user(self) -> tuple[NodeId, ...]:
        """Nodes that the user named, tried without success so far.

        One that introduces does what it was named for, member or not.
        """
        return tuple(
            node
            for node, contact in self._contacts.items()
            if contact.wanted_by_user
            and contact.tried
            and not contact.introduces
            and node not in self._connected
        )

    def _forget_if_hopeless(self, node: NodeId, contact: Contact) -> None:
        # Hearsay is forgotten after 16 failures (11 minutes of doubling waits). Who was once a
        # member is dialled for ever: after a long partition nobody else would bring us together.
        if contact.failures >= _FAILURES_MAX and not contact.vouched:
            del self._contacts[node]
