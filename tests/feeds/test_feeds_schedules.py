"""Thousands of schedules of writers, readers, partitions, crashes and copied disks, from seeds.

In each schedule nodes with one subfeed write, meet, lose their connection, restart, or come back
from a backup. Some writers are copies of another that their user vouched for: then two histories
may be signed. In the end everybody meets everybody, and must agree on what happened: a fork where
two histories were signed and both were heard of, none where there was one, and nobody accused
who only passed on what it knew.
"""

from __future__ import annotations

from random import Random

import pytest

from kachery_p2p.errors import FeedRestoredError
from kachery_p2p.feeds.replica import Replica, Standing, UnprovableError
from kachery_p2p.feeds.told import Told
from kachery_p2p.log.forks import first_difference
from kachery_p2p.log.heads import SignedHead
from tests.feeds.feed_parts import KEY, LOG, MemoryLog, messages
from tests.feeds.test_feeds_replica import fetch

STEPS = 40
IN_CI = 300
IN_A_SOAK = 10_000


class Peer:
    """One node's replica, and its disk, of which a backup may be kept."""

    def __init__(self, name: int, log: MemoryLog) -> None:
        self.name = name
        self.log = log
        self.replica = Replica(log)
        self.backup: MemoryLog | None = None

    def restart(self, log: MemoryLog | None = None) -> None:
        self.log = log or self.log
        self.replica = Replica(self.log)


class Schedule:
    """One seed's world. What contradicts the rules raises."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        owner = Peer(0, MemoryLog(key=KEY))
        owner.log.append(messages(self.random.randrange(1, 9)))
        self.peers = [owner]
        self.peers += [Peer(n, MemoryLog()) for n in range(1, self.random.randrange(3, 7))]
        self.cut: set[frozenset[int]] = set()
        # Every head that was ever signed, by its size.
        self.signed: dict[int, set[bytes]] = {}
        self._note(owner)

    def run(self) -> None:
        acts = [self.write] * 6 + [self.meet] * 12 + [self.split] * 2
        acts += [self.restart, self.back_up, self.restore, self.copy]
        for _ in range(STEPS):
            self.random.choice(acts)()
        self.cut.clear()
        for _ in range(2 * len(self.peers)):
            for one in self.peers:
                for other in self.peers:
                    self.ask(one, other)
        self.check()

    # --- what happens -----------------------------------------------------------------------------

    def writers(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.log.owned]

    def write(self) -> None:
        writer = self.random.choice(self.writers())
        log = writer.log
        may = log.fork is None and not log.restored and not writer.replica.is_behind
        count = self.random.randrange(1, 5)
        what = f"{writer.name}-{self.random.randrange(10**6)}-"
        if may:
            log.append(messages(count, what=what))
            self._note(writer)
        elif log.restored:
            with pytest.raises(FeedRestoredError):
                log.append(messages(count, what=what))

    def meet(self) -> None:
        one, other = self.random.sample(self.peers, 2)
        self.ask(one, other)
        if self.random.random() < 0.5:
            self.ask(other, one)

    def split(self) -> None:
        pair = frozenset(peer.name for peer in self.random.sample(self.peers, 2))
        self.cut ^= {pair}

    def restart(self) -> None:
        self.random.choice(self.peers).restart()

    def back_up(self) -> None:
        peer = self.random.choice(self.peers)
        peer.backup = peer.log.cloned()

    def restore(self) -> None:
        """Somebody's disk is put back as it was; a reader's memory of heads with it."""
        peer = self.random.choice(self.peers)
        if peer.backup is not None:
            peer.restart(peer.backup.cloned())

    def copy(self) -> None:
        """The owner's disk is cloned, and its user says that there is no other copy."""
        if len(self.peers) < 8 and self.random.random() < 0.4:
            log = self.random.choice(self.writers()).log.cloned()
            log.settle()
            self.peers.append(Peer(len(self.peers), log))

    # --- talking ----------------------------------------------------------------------------------

    def ask(self, one: Peer, other: Peer) -> None:
        """`one` asks `other`, and tells it what it knows, as `feed follow` does."""
        if one is other or frozenset((one.name, other.name)) in self.cut:
            return
        mine, theirs = one.replica, other.replica
        theirs.hear(Told(fork=mine.log.fork, tombstones=mine.tombstones))
        # An honest node is never blamed: HeadError or ProofError here is a false accusation.
        heard = mine.hear(theirs.tell(mine.best))
        head = theirs.shown
        usable = heard.standing in (Standing.AGREES, Standing.FORKED)
        if heard.standing is Standing.DOUBT and head is not None:
            usable = self.prove(one, other, head)
        if usable and self.random.random() < 0.9:
            fetch(mine, theirs)

    def prove(self, one: Peer, other: Peer, head: SignedHead) -> bool:
        def elsewhere(place: int) -> bytes:
            raise UnprovableError("nobody")

        try:
            one.replica.prove(head, other.log.read_hash, elsewhere)
        except UnprovableError:
            return one.log.fork is not None
        return True

    def _note(self, writer: Peer) -> None:
        signed = writer.log.signed
        assert signed is not None
        self.signed.setdefault(signed.size, set()).add(signed.root)

    # --- what must be true ------------------------------------------------------------------------

    def check(self) -> None:
        shown = [p.replica.shown for p in self.peers if p.replica.shown is not None]
        histories = [(head, self.peer_of(head)) for head in shown]
        both_met = any(
            other.size <= head.size and holder.log.root_at(other.size) != other.root
            for head, holder in histories
            for other in shown
        )
        forks = [peer for peer in self.peers if peer.log.fork is not None]
        if both_met:
            assert len(forks) == len(self.peers), "two histories met, and somebody did not see it"
        for peer in forks:
            assert peer.log.fork is not None
            peer.log.fork.verify(LOG)
            assert len(peer.log.fork.encode()) <= 2_048
            for head in peer.log.fork[:2]:
                assert head.root in self.signed[head.size]
        self.check_common(histories)
        self.check_agreement()

    def check_common(self, histories: list[tuple[SignedHead, Peer]]) -> None:
        """Everybody stops where any two histories part that somebody has the whole of."""
        for head, holder in histories:
            for other, having in histories:
                size = min(head.size, other.size)
                reads = holder.log.read_hash, having.log.read_hash
                parted = first_difference(size, *reads)
                for peer in self.peers if parted is not None else []:
                    assert parted is not None
                    assert peer.replica.limit is not None
                    assert peer.replica.limit <= parted

    def peer_of(self, head: SignedHead) -> Peer:
        return next(peer for peer in self.peers if peer.replica.shown == head)

    def check_agreement(self) -> None:
        """What can be read is the same everywhere, as far as it is there."""
        longest: list[bytes] = []
        # Of a copy that is not whole nobody may be left who can prove where it parts.
        whole = [p for p in self.peers if p.replica.shown == p.log.signed]
        for peer in whole:
            readable = peer.log.kept[: peer.replica.readable]
            shared = min(len(readable), len(longest))
            assert readable[:shared] == longest[:shared]
            longest = max(longest, readable, key=len)


@pytest.mark.parametrize("hundred", range(IN_CI // 100))
def test_every_fork_is_seen_and_nobody_is_accused(hundred: int) -> None:
    forks = sum(run(seed) for seed in range(100 * hundred, 100 * (hundred + 1)))
    # Schedules with forks and without are both among them.
    assert 20 <= forks <= 80


@pytest.mark.soak
def test_every_fork_is_seen_in_ten_thousand_schedules() -> None:
    for seed in range(IN_A_SOAK):
        run(seed)


def run(seed: int) -> bool:
    """True if there was a fork."""
    try:
        schedule = Schedule(seed)
        schedule.run()
    except Exception as error:
        raise AssertionError(f"seed {seed}: {error!r}") from error
    return any(peer.log.fork is not None for peer in schedule.peers)
