"""Where members may be reached: an address book, and who to dial next.

Addresses come from the user (`--bootstrap`), from members (`introduce`, `members`), from
the last run, from introducers and from the local network. They are hints: whoever answers
must still prove membership. The book is pure, told what happened and what time it is;
`network/sessions.py` does the dialling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import chain, zip_longest
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

# Who told of a node: that member, or one of the other ways.
Teller = NodeId | Literal["introducer", "local network", "somebody"]


class Contact:
    """What is known of reaching one node."""

    def __init__(self) -> None:
        # What the user, the node itself or the last run told, newest first; and what others told.
        self.told: list[str] = []
        self.hearsay: dict[Teller, list[str]] = {}
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
        # How many addresses further on the next dial begins, behind the first.
        self.turn = 0
        self.reached_at: float | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where to dial, best first: hearsay never takes the place of what the node told."""
        return tuple(_merged(self.told, _by_turns(self.hearsay)))

    @property
    def next_addresses(self) -> tuple[str, ...]:
        """Those for the next dial, which may not have the time for all of them.

        The best is always the first: it may be back. Behind it each dial begins one further than
        the last: dead ones in front must not hide the rest.
        """
        best, rest = self.addresses[:1], self.addresses[1:]
        at = self.turn % len(rest) if rest else 0
        return best + rest[at:] + rest[:at]

    @property
    def vouched(self) -> bool:
        """True for who is worth more than hearsay."""
        return self.wanted_by_user or self.proved

    def settled(self, now: float) -> bool:
        """True when it was tried, or is hearsay that was waited for long enough."""
        began = self.first_due_at
        late = began is not None and now >= began + HEARSAY_AWAITED_S
        return self.tried or (late and not self.vouched)

    def hear(self, addresses: list[str], teller: Teller) -> None:
        """Take in hearsay, newest first. It changes where to dial, and not when.

        Of all that is kept each teller has an equal share, and only the latest tellers have one.
        """
        newest = _merged(addresses, self.hearsay.pop(teller, []))
        tellers = [(teller, newest), *self.hearsay.items()][:ADDRESSES_PER_NODE_MAX]
        kept = set(_by_turns(dict(tellers)))
        self.hearsay = {who: [a for a in its if a in kept] for who, its in tellers}

    def tell(self, addresses: list[str], *, to_stay: bool) -> bool:
        """Take in what is no hearsay; True if any was new.

        What the node says of itself takes the place of what it said before, and however much it
        says, what is named keeps its place.
        """
        before = self.told
        if to_stay:
            named = [a for a in self.told if a in self.named]
            self.named = set(_merged(addresses, named))
        kept = [a for a in self.told if to_stay or not addresses or a in self.named]
        merged = dict.fromkeys([*addresses, *kept])
        spare = ADDRESSES_PER_NODE_MAX - len(self.named)
        others = [a for a in merged if a not in self.named][:spare]
        self.told = [a for a in merged if a in self.named or a in others]
        return any(address not in before for address in self.told)


def _merged(newer: Iterable[str], older: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*newer, *older]))[:ADDRESSES_PER_NODE_MAX]


def _by_turns(hearsay: dict[Teller, list[str]]) -> list[str]:
    """One of each teller, then the next of each, so that what one tells leaves others room."""
    turns = zip_longest(*hearsay.values())
    return _merged((address for turn in turns for address in turn if address is not None), ())


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
        teller: Teller = "somebody",
    ) -> None:
        """Remember `addresses` of `node`, newest first; those that name another node are dropped.

        `proved` is for what a node told that has proved membership, now or in an earlier run;
        `by_invite` with it for what an invite told: that stays, whatever the node tells then;
        what is neither that nor the user's word is hearsay of that `teller`. A full book gives
        up whom the teller of most told of, for hearsay of others; hearsay that failed, for any;
        all hearsay, and members that are gone, for a member.
        """
        if node == self._me:
            return
        contact = self._contacts.get(node)
        if contact is None:
            if not by_user and not self._make_room(None if proved else teller):
                return
            contact = self._contacts[node] = Contact()
        if (by_user or proved) and not contact.vouched:
            # It may still be dialled where others said that it is.
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
            contact.hear(fresh, teller)
        elif contact.tell(fresh, to_stay=by_user or by_invite):
            contact.due_at, contact.turn, contact.in_flight = 0.0, 0, False

    def _make_room(self, teller: Teller | None) -> bool:
        """Make room for one more that `teller` told of, or (None) for a member; False if none."""
        if len(self._contacts) < PEERS_MAX:
            return True
        hearsay = [(n, c) for n, c in self._contacts.items() if not c.vouched]
        crowds = Counter(chain.from_iterable(contact.hearsay for _, contact in hearsay))
        # Any of them for a member; for hearsay those who failed, and those of larger crowds.
        fewer = 0 if teller is None else crowds[teller] + 1
        larger = {who for who, crowd in crowds.items() if crowd > fewer}
        dispensable = [
            (min(crowds[who] for who in contact.hearsay), contact.failures, node)
            for node, contact in hearsay
            if not contact.in_flight and (contact.failures or larger.issuperset(contact.hearsay))
        ]
        if dispensable:
            del self._contacts[max(dispensable)[2]]
            return True
        # One place at most for hearsay: whoever invents nodes must not empty the book of members.
        return (teller is None or not hearsay) and self._give_up_gone()

    def _give_up_gone(self) -> bool:
        """Of the members that nobody has reached for long, forget the one longest gone."""
        gone = [
            (contact.reached_at or 0.0, node)
            for node, contact in self._contacts.items()
            if contact.failures >= _FAILURES_MAX
            and not contact.wanted_by_user
            and not contact.in_flight
            and node not in self._connected
        ]
        if gone:
            del self._contacts[min(gone)[1]]
        return bool(gone)

    def due(
        self, now: float, room: int = PEERS_MAX, hearsay_room: int = PEERS_MAX
    ) -> list[tuple[NodeId, tuple[str, ...]]]:
        """The nodes to dial now: at most `room` that are vouched for, and `hearsay_room` others.

        Whom the user named goes first, then who failed least, then who waits longest; and of
        hearsay the tellers take turns. Each stays out until `reached`, `failed` or `lost` is told;
        who finds no room waits here, where it can be met, told of anew or forgotten.
        """
        out = [(n, c) for n, c in self._contacts.items() if n not in self._connected]
        waiting = [(n, c) for n, c in out if not c.in_flight and c.due_at <= now]
        for _, contact in waiting:
            if contact.first_due_at is None:
                contact.first_due_at = now
        # Among equals who waits longest: the number of failures ends at 16.
        waiting.sort(key=lambda one: (not one[1].wanted_by_user, one[1].failures, one[1].due_at))
        due = [found for found in waiting if found[1].vouched][:room]
        hearsay = [found for found in waiting if not found[1].vouched]
        turns = Counter(t for _, c in out if c.in_flight and not c.vouched for t in c.hearsay)
        for _ in range(min(hearsay_room, len(hearsay))):
            found = min(hearsay, key=lambda found: min(turns[t] for t in found[1].hearsay))
            hearsay.remove(found)
            turns.update(found[1].hearsay.keys())
            due.append(found)
        for _, contact in due:
            contact.in_flight = True
        return [(node, contact.next_addresses) for node, contact in due]

    def next_due_at(self, now: float) -> float:
        """When to look again at the latest: somebody is due, or no longer awaited."""
        out = [c for node, c in self._contacts.items() if node not in self._connected]
        # Who is due already waits for room: that comes when a dial ends.
        waiting = [c.due_at for c in out if not c.in_flight and c.due_at > now]
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
            contact.stranger, contact.turn = False, 0
            contact.reached_at = now

    def failed(self, node: NodeId, now: float, jitter: float) -> None:
        """No session with `node` came to be; `jitter` (0 to 1) keeps nodes out of step."""
        contact = self._contacts.get(node)
        if contact is None:
            return
        contact.turn += 1
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
        # member is dialled as long as there is room for it in the book: after a long partition
        # nobody else would bring us together.
        if contact.failures >= _FAILURES_MAX and not contact.vouched:
            del self._contacts[node]
