"""Whose turn it is: deficit round robin between peers (Shreedhar and Varghese, 1995).

A peer may ask for many turns at once, on several connections and streams; turns are dealt
out by peer, so that this brings it no more than one who asks for one at a time:

- each peer has one turn in hand at a time, until it has ended or lasted TURN_S_MAX;
- of the peers that wait each gets, round after round, a quantum of bytes of credit, and a
  turn when its credit covers it; what it does not use of one quantum it keeps;
- an urgent turn passes all others, on credit: if others wait its bytes are taken from the
  peer's share all the same, and who is URGENT_AHEAD_BYTES ahead waits like everybody. While
  a peer does not ask, its share of what the others move pays that back.

A decision takes O(1): each step of its loop is either the decision, or pays back what an
urgent turn borrowed before. Pure: told the time.
"""

from __future__ import annotations

import math
from collections import deque

from kachery_p2p.limits import PEERS_MAX, TURN_S_MAX, URGENT_AHEAD_BYTES

# Peers that are remembered for their credit, with those that wait; the others have none.
_PEERS_KEPT_MAX = 2 * PEERS_MAX


class Turn:
    """Leave to move `byte_count` bytes, asked for by a peer."""

    __slots__ = ("byte_count", "ended", "granted_at", "peer", "urgent")

    def __init__(self, peer: str, byte_count: int, *, urgent: bool = False) -> None:
        self.peer = peer
        self.byte_count = byte_count
        self.urgent = urgent
        self.granted_at: float | None = None
        self.ended = False


class _Peer:
    """A peer that waits, or waited lately."""

    __slots__ = ("bulk", "credit", "in_hand", "in_round", "seen", "urgent")

    def __init__(self) -> None:
        self.urgent: deque[Turn] = deque()
        self.bulk: deque[Turn] = deque()
        # Bytes; negative if its urgent turns have run ahead of its share.
        self.credit = 0
        self.in_hand: Turn | None = None
        self.in_round = False
        # How many bytes all had moved when it last had, or waited for, a turn.
        self.seen = 0

    @property
    def idle(self) -> bool:
        return self.in_hand is None and not self.urgent and not self.bulk

    @property
    def ready(self) -> bool:
        return self.in_hand is None and bool(self.urgent or self.bulk)

    @property
    def may_pass(self) -> bool:
        return self.in_hand is None and bool(self.urgent) and self.credit > -URGENT_AHEAD_BYTES

    @property
    def first(self) -> Turn:
        return self.urgent[0] if self.urgent else self.bulk[0]

    def pop_first(self) -> Turn:
        return self.urgent.popleft() if self.urgent else self.bulk.popleft()


class Turns:
    """The turns of all peers. `quantum` is what a peer gets in each round: its largest turn."""

    def __init__(self, quantum: int) -> None:
        assert quantum > 0
        self._quantum = quantum
        self._peers: dict[str, _Peer] = {}
        # Peers that are ready, in order; those that are no more leave it when they are reached.
        self._round: deque[_Peer] = deque()
        # The same for those with something urgent.
        self._passing: deque[_Peer] = deque()
        # Oldest first: the turns in hand, and some that have ended.
        self._granted: deque[Turn] = deque()
        self._moved = 0
        self.waiting = 0

    def ask(self, turn: Turn) -> None:
        """The turn waits from now on, until `next` answers it or `end` is called."""
        peer = self._peer(turn.peer)
        if peer.idle:
            self._pay_back(peer)
        (peer.urgent if turn.urgent else peer.bulk).append(turn)
        self.waiting += 1
        self._enter(peer)

    def next(self, now: float) -> Turn | None:
        """The turn that may begin now; None if nobody waits, or only for its own earlier one."""
        self._expire(now)
        peer = self._next_passing() or self._next_in_round()
        if peer is None:
            return None
        turn = peer.pop_first()
        self.waiting -= 1
        self._moved += turn.byte_count
        # Who keeps nobody waiting owes nothing.
        peer.credit = peer.credit - turn.byte_count if self.waiting else max(peer.credit, 0)
        peer.in_hand, turn.granted_at = turn, now
        self._granted.append(turn)
        return turn

    def end(self, turn: Turn) -> None:
        """The turn is over, or is not waited for any more. Harmless twice."""
        if turn.ended:
            return
        turn.ended = True
        peer = self._peers.get(turn.peer)
        if turn.granted_at is not None:
            if peer is not None and peer.in_hand is turn:
                self._free(peer)
        else:
            assert peer is not None
            (peer.urgent if turn.urgent else peer.bulk).remove(turn)
            self.waiting -= 1

    def wait_s(self, now: float) -> float:
        """Seconds until a peer that waits for its own earlier turn need not wait for it longer."""
        self._expire(now)
        if not self._granted:
            return math.inf
        granted_at = self._granted[0].granted_at
        assert granted_at is not None
        return max(granted_at + TURN_S_MAX - now, 0.0)

    def _peer(self, name: str) -> _Peer:
        peer = self._peers.get(name)
        if peer is None:
            if len(self._peers) >= _PEERS_KEPT_MAX:
                self._peers = {n: p for n, p in self._peers.items() if not p.idle}
            peer = self._peers[name] = _Peer()
        return peer

    def _pay_back(self, peer: _Peer) -> None:
        """It let the others go first for a while."""
        if peer.credit < 0:
            share = (self._moved - peer.seen) // (len(self._round) + 1)
            peer.credit = min(peer.credit + share, 0)

    def _enter(self, peer: _Peer) -> None:
        """Into the round, if it is ready: in front, if it has not used up its last quantum."""
        if peer.may_pass:
            self._passing.append(peer)
        if not peer.ready or peer.in_round:
            return
        peer.in_round = True
        if peer.credit >= peer.first.byte_count:
            self._round.appendleft(peer)
        else:
            self._round.append(peer)

    def _free(self, peer: _Peer) -> None:
        peer.in_hand = None
        peer.seen = self._moved
        # No more of what it did not use than one quantum.
        peer.credit = min(peer.credit, self._quantum)
        self._enter(peer)

    def _expire(self, now: float) -> None:
        while self._granted:
            turn = self._granted[0]
            assert turn.granted_at is not None
            if not turn.ended and now - turn.granted_at < TURN_S_MAX:
                return
            self._granted.popleft()
            peer = self._peers.get(turn.peer)
            if not turn.ended and peer is not None and peer.in_hand is turn:
                self._free(peer)

    def _next_passing(self) -> _Peer | None:
        while self._passing:
            peer = self._passing.popleft()
            if peer.may_pass:
                return peer
        return None

    def _next_in_round(self) -> _Peer | None:
        while self._round:
            peer = self._round[0]
            if not peer.ready:
                self._round.popleft()
                peer.in_round = False
            elif peer.credit >= peer.first.byte_count:
                return peer
            else:
                peer.credit += self._quantum
                self._round.rotate(-1)
        return None
