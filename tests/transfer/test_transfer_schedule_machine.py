"""Sources join, leave, lie, stall, cancel and are slow, in any order: what always holds."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kachery_p2p.limits import WINDOW_CHUNKS_MAX
from kachery_p2p.transfer.schedule import ChunkSchedule, Want

NAMES = ("a", "b", "c", "d")
names = st.sampled_from(NAMES)


class ManySources(RuleBasedStateMachine):
    """A schedule beside a plain model of who has, owes and delivered what."""

    @initialize(count=st.integers(0, 3 * WINDOW_CHUNKS_MAX), seed=st.integers(0, 2**200))
    def begin(self, count: int, seed: int) -> None:
        self.count = count
        self.made = ChunkSchedule(count)
        self.wants: list[Want] = [self.made.want(range(count))]
        self.now = 0.0
        self.held: set[int] = set()
        # What it has, by its own word; and what it owes, in the order asked.
        self.has: dict[str, set[int]] = {}
        self.owed: dict[str, list[int]] = {name: [] for name in NAMES}
        for number in range(count):
            if seed >> number % 200 & 1 and number % 3:
                self.made.hold(number)
                self.held.add(number)

    def frontier(self, chunks: range) -> int:
        return next((number for number in chunks if number not in self.held), chunks.stop)

    # --- what may happen --------------------------------------------------------------------

    @rule(name=names, whole=st.booleans(), start=st.integers(0, 200), length=st.integers(0, 90))
    def join(self, name: str, whole: bool, start: int, length: int) -> None:
        part = range(start, start + length)
        if name not in self.has:
            self.made.source_joined(name, has_all=whole)
            self.has[name] = set(range(self.count)) if whole else set()
        self.made.source_has(name, part)
        self.has[name] |= set(part) & set(range(self.count))

    @rule(name=names)
    def leave_or_lie(self, name: str) -> None:
        self.made.source_left(name)
        self.has.pop(name, None)
        self.owed[name].clear()

    @rule(name=names, start=st.integers(0, 200), length=st.integers(0, 90))
    def evict(self, name: str, start: int, length: int) -> None:
        if name in self.has:
            gone = range(start, start + length)
            self.made.source_lacks(name, gone)
            self.has[name] -= set(gone)
            self.owed[name] = [number for number in self.owed[name] if number not in gone]

    @rule(name=names, chunks_max=st.integers(1, WINDOW_CHUNKS_MAX), timed=st.booleans())
    def ask(self, name: str, chunks_max: int, timed: bool) -> None:
        if name not in self.has:
            return
        chunks = self.made.next_for(name, chunks_max, self.now if timed else None)
        if chunks is None:
            return
        assert 0 < len(chunks) <= chunks_max
        assert not set(chunks) & self.held, "held already"
        assert set(chunks) <= self.has[name], "lacks it"
        assert not set(chunks) & set(self.owed[name]), "owes it already"
        assert any(
            self.frontier(w.chunks) <= chunks.start
            and chunks.stop <= min(self.frontier(w.chunks) + WINDOW_CHUNKS_MAX, w.chunks.stop)
            for w in self.wants
        ), "beyond the window of every want"
        if len(self.has) == 1:
            wanted = next(w for w in reversed(self.wants) if chunks.start in w.chunks)
            before = range(self.frontier(wanted.chunks), chunks.start)
            assert not (self.has[name] & set(before)) - self.held - set(self.owed[name])
        self.owed[name] += chunks

    @rule(name=names, few=st.integers(1, 20), seconds=st.floats(0, 3))
    def deliver(self, name: str, few: int, seconds: float) -> None:
        for number in self.owed[name][:few]:
            self.now += seconds / few
            self.made.received(name, number, self.now)
            self.held.add(number)
        del self.owed[name][:few]

    @rule(name=names, byte_count=st.integers(0, 1 << 21))
    def move(self, name: str, byte_count: int) -> None:
        self.made.moved(name, byte_count, self.now)

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for name in self.made.stalled(self.now):
            assert self.owed[name]
            self.leave_or_lie(name)

    @rule(name=names)
    def cancel(self, name: str) -> None:
        for chunks in self.made.pointless(name, self.now):
            assert set(chunks) <= self.held & set(self.owed[name])
            self.made.given_back(name, chunks, self.now)
            self.owed[name] = [number for number in self.owed[name] if number not in chunks]

    @rule(start=st.integers(0, 200), length=st.integers(0, 20))
    def read(self, start: int, length: int) -> None:
        start = min(start, self.count)
        self.wants.append(self.made.want(range(start, min(start + length, self.count))))

    @rule(pick=st.randoms(use_true_random=False))
    def read_no_more(self, pick: Any) -> None:
        if len(self.wants) > 1:
            at = pick.randrange(1, len(self.wants))
            self.made.unwant(self.wants.pop(at))

    # --- what always holds ------------------------------------------------------------------

    @invariant()
    def what_is_held_is_held_once(self) -> None:
        assert self.made.held_count == len(self.held)
        assert all(w.frontier == self.frontier(w.chunks) for w in self.wants)
        total = self.made.total
        assert total.received_bytes + total.wasted_bytes == sum(
            state.received_bytes + state.wasted_bytes for state in self.made.sources(self.now)
        )

    @invariant()
    def a_missing_chunk_has_at_most_two_askers_and_they_are_remembered(self) -> None:
        askers = [self.owed[name].count(n) for n in range(self.count) for name in NAMES]
        assert not askers or max(askers) <= 1
        for number in set(range(self.count)) - self.held:
            count = sum(number in owed for owed in self.owed.values())
            assert count <= 2
            assert (number in self.made._asked) == (count > 0)
            assert (number in self.made._doubled) == (count > 1)

    def teardown(self) -> None:
        """Whatever happened: with one honest source everything wanted comes."""
        if not hasattr(self, "made"):
            return
        for name in NAMES:
            self.leave_or_lie(name)
        steps = 0
        while not self.made.satisfied:
            steps += 1
            assert steps < 10 * self.count + 100, "never ends"
            self.now += 0.01
            for number in self.made.next_for("honest", WINDOW_CHUNKS_MAX, self.now) or ():
                assert number not in self.held, "received already"
                self.made.received("honest", number, self.now)
                self.held.add(number)
        assert all(set(w.chunks) <= self.held for w in self.wants)


TestManySources = ManySources.TestCase
TestManySources.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
