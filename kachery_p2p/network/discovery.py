"""Where members may be reached: an address book, and who to dial next.

Addresses come from the user (`--bootstrap`), from members (`introduce`, `members`), from
the last run, from introducers and from the local network. They are hints: whoever answers
must still prove membership. The book is pure, told what happened and what time it is;
`network/sessions.py` does the dialling.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest
from typing import Literal

from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    ADDRESS_CHARS_MAX,
    ADDRESSES_PER_NODE_MAX,
    HEARSAY_AWAITED_S,
    PEERS_MAX,
    REDIAL_S_MAX,
    REDIAL_S_MIN,
    STRANGER_REDIAL_S,
)

# Doubling ends here, and so does hope for hearsay.
_FAILURES_MAX = 16
# A session this long was no misunderstanding (a crossed dial, a peer that can take no more).
_LASTED_S = 5.0

# By which way hearsay came.
Way = Literal["members", "introducer", "local network"]


class Contact:
    """What is known of reaching one node."""

    def __init__(self) -> None:
        # What the user, the node itself or the last run told, newest first; and what others told.
        self.told: list[str] = []
        self.hearsay: dict[Way, list[str]] = {}
        # Which of `told` is the user's word, or an invite's: nobody else takes it back.
        self.named: set[str] = set()
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
        self.first_due_at: float | None = None
        self.reached_at: float | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where to dial, best first: hearsay never takes the place of what the node told.

        Of hearsay each way has its turn, so that what came by one leaves room for the others.
        """
        turns = zip_longest(*self.hearsay.values())
        hearsay = [address for turn in turns for address in turn if address is not None]
        return tuple(dict.fromkeys([*self.told, *hearsay]))[:ADDRESSES_PER_NODE_MAX]

    @property
    def vouched(self) -> bool:
        """True for who is worth more than hearsay."""
        return self.wanted_by_user or self.proved

    def settled(self, now: float) -> bool:
        """True when it was tried, or is hearsay that was waited for long enough."""
        began = self.first_due_at
        late = began is not None and now >= began + HEARSAY_AWAITED_S
        return self.tried or (late and not self.vouched)

    def hear(self, addresses: list[str], way: Way) -> None:
        """Take in hearsay, newest first. It changes where to dial, and not when."""
        self.hearsay[way] = _merged(addresses, self.hearsay.get(way, []))

    def tell(self, addresses: list[str], *, to_stay: bool) -> bool:
        """Take in what is no hearsay; True if any was new.

        What the node says of itself takes the place of what it said before.
        """
        news = any(address not in self.told for address in addresses)
        if to_stay:
            self.named.update(addresses)
        kept = [a for a in self.told if to_stay or not addresses or a in self.named]
        self.told = _merged(addresses, kept)
        self.named.intersection_update(self.told)
        return news


def _merged(newer: list[str], older: list[str]) -> list[str]:
    return list(dict.fromkeys([*newer, *older]))[:ADDRESSES_PER_NODE_MAX]


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
        by_invite: bool = False,
        way: Way = "members",
    ) -> None:
        """Remember `addresses` of `node`, newest first; those that name another node are dropped.

        `proved` is for what a node told that has proved membership, now or in an earlier run;
        `by_invite` with it for what an invite told: that stays, whatever the node tells then;
        what is neither that nor the user's word is hearsay, and came by that `way`. A full
        book gives up hearsay that failed for other hearsay, and any hearsay for a member.
        """
        if node == self._me:
            return
        contact = self._contacts.get(node)
        if contact is None:
            if not by_user and not self._make_room(proved):
                return
            contact = self._contacts[node] = Contact()
        if (by_user or proved) and not contact.vouched:
            # It may still wait behind other hearsay for its dial.
            contact.in_flight = False
        contact.wanted_by_user |= by_user
        contact.proved |= proved
        if by_user and contact.stranger:
            # Named again: perhaps for a channel that was joined since.
            contact.stranger, contact.due_at = False, 0.0
        name = f"/p2p/{node.peer_id}"
        fresh = [a for a in addresses if len(a) <= ADDRESS_CHARS_MAX and a.endswith(name)]
        if not by_user and not proved:
            # Were it dialled sooner, ever new ports would make us dial without pause.
            contact.hear(fresh, way)
        elif contact.tell(fresh, to_stay=by_user or by_invite):
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
            if contact.first_due_at is None:
                contact.first_due_at = now
        return [(node, contact.addresses) for node, contact in due]

    def next_due_at(self, now: float) -> float:
        """When to look again at the latest: somebody is due, or no longer awaited."""
        out = [c for node, c in self._contacts.items() if node not in self._connected]
        waiting = [c.due_at for c in out if not c.in_flight]
        awaited = [c.first_due_at for c in out if c.first_due_at is not None and not c.settled(now)]
        ends = [began + HEARSAY_AWAITED_S for began in awaited if began + HEARSAY_AWAITED_S > now]
        return min([now + REDIAL_S_MAX, *waiting, *ends])

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

    def settled(self, now: float) -> bool:
        """True when every known node is connected or has been tried since it was heard of.

        Hearsay is waited for HEARSAY_AWAITED_S at most.
        """
        return all(
            node in self._connected or contact.settled(now)
            for node, contact in self._contacts.items()
        )

    def is_vouched(self, node: NodeId) -> bool:
        """True if `node` is known, and by more than hearsay."""
        contact = self._contacts.get(node)
        return contact is not None and contact.vouched

    def addresses_of(self, node: NodeId) -> tuple[str, ...]:
        contact = self._contacts.get(node)
        return contact.addresses if contact is not None else ()

    def known(self) -> dict[NodeId, tuple[str, ...]]:
        """The members worth keeping for the next run, and what they told; hearsay is not.

        The next run takes it for their own word.
        """
        return {n: tuple(c.told) for n, c in self._contacts.items() if c.proved}

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
