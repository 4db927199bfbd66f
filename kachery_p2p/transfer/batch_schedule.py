"""Which of many small contents is asked of which source next.

Every content has tiers of sources: those that announced it, then others that may have it.
The sources of the first tier that is not used up share the work; one that refuses a
content is not asked for it again, one that is dropped for nothing more. What a source was
asked for long ago is also asked of another that has nothing else to do, so that a slow
one does not hold the end. Pure: times arrive as arguments, sources are any keys.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from kachery_p2p.limits import BATCH_LATE_S, BATCH_PIPELINED, BATCH_SHARE_MAX, BATCH_SHARE_MIN

S = TypeVar("S", bound=Hashable)


class GivenUp(NamedTuple):
    """A content that no source is left to be asked for."""

    number: int
    # True if one of them was dropped: it might come back, or another one come.
    dropped: bool


class _Item(Generic[S]):
    __slots__ = ("asked", "refused", "tiers")

    def __init__(self, tiers: Sequence[Sequence[S]]) -> None:
        self.tiers = tiers
        self.refused: set[S] = set()
        # Those whose answer is due.
        self.asked: set[S] = set()


class BatchSchedule(Generic[S]):
    """What is wanted, of whom it may be had, and what was asked."""

    def __init__(self) -> None:
        self._items: dict[int, _Item[S]] = {}
        # In the order of asking; numbers that are not to be asked any more are skipped when met.
        self._queues: dict[S, deque[int]] = {}
        # By source, what is due from it and when it was asked for, the oldest first.
        self._due: dict[S, dict[int, float]] = {}
        self._dropped: set[S] = set()
        self._given_up: list[GivenUp] = []

    @property
    def done(self) -> bool:
        """True if nothing more is to be asked or to come."""
        return not self._items

    def is_used(self, source: S) -> bool:
        """True if there may still be something to ask this source for."""
        return source not in self._dropped

    def add(self, number: int, tiers: Sequence[Sequence[S]]) -> None:
        """Want `number`, from sources of the first tier, then of the second, ..."""
        assert number not in self._items
        self._items[number] = _Item(tiers)
        self._offer(number)

    def sources(self) -> Iterable[S]:
        """All that anything was ever to be asked of."""
        return self._queues.keys()

    def _offer(self, number: int) -> None:
        """Let it be asked of whom is next; or give it up."""
        item = self._items[number]
        if item.asked:
            return
        for tier in item.tiers:
            open_to = [one for one in tier if self._may_ask(item, one)]
            for source in open_to:
                self._queues.setdefault(source, deque()).append(number)
            if open_to:
                return
        del self._items[number]
        dropped = any(source in self._dropped for tier in item.tiers for source in tier)
        self._given_up.append(GivenUp(number, dropped))

    def _may_ask(self, item: _Item[S], source: S) -> bool:
        free = source not in item.refused and source not in item.asked
        return free and source not in self._dropped

    def next_for(self, source: S, now: float) -> list[int]:
        """What to ask this source for now; nothing if there is nothing (yet)."""
        if source in self._dropped:
            return []
        numbers = self._waiting_for(source, self._share()) or self._late_for(source, now)
        due = self._due.setdefault(source, {})
        for number in numbers:
            due[number] = now
            self._items[number].asked.add(source)
        return numbers

    def _share(self) -> int:
        """How many at once: so few that all sources have something to do until the end."""
        waiting = len(self._items) - sum(len(due) for due in self._due.values())
        active = sum(source not in self._dropped for source in self._queues)
        share = -(-waiting // max(1, active * BATCH_PIPELINED))
        return min(max(share, BATCH_SHARE_MIN), BATCH_SHARE_MAX)

    def _waiting_for(self, source: S, count_max: int) -> list[int]:
        queue, numbers = self._queues.get(source, deque()), dict[int, None]()
        while queue and len(numbers) < count_max:
            number = queue.popleft()
            item = self._items.get(number)
            if item is not None and not item.asked and self._may_ask(item, source):
                numbers[number] = None
        return list(numbers)

    def _late_for(self, source: S, now: float) -> list[int]:
        numbers = dict[int, None]()
        for other, due in self._due.items():
            for number, asked_at in due.items() if other != source else ():
                if now - asked_at < BATCH_LATE_S or len(numbers) >= BATCH_SHARE_MIN:
                    break
                item = self._items[number]
                known = any(source in tier for tier in item.tiers)
                if known and self._may_ask(item, source):
                    numbers[number] = None
        return list(numbers)

    # --- what happened ----------------------------------------------------------------------

    def came(self, number: int) -> bool:
        """`number` is here, or need not come; False if that was known already."""
        item = self._items.pop(number, None)
        if item is None:
            return False
        for source in item.asked:
            del self._due[source][number]
        return True

    def refused(self, source: S, number: int) -> None:
        """The source does not have it."""
        item = self._items.get(number)
        if item is not None:
            item.refused.add(source)
            self.put_back(source, [number])

    def put_back(self, source: S, numbers: Iterable[int]) -> None:
        """The source's answer has ended: what of these has not come may be asked for again."""
        due = self._due.get(source, {})
        for number in numbers:
            if due.pop(number, None) is not None:
                self._items[number].asked.discard(source)
                self._offer(number)

    def drop(self, source: S) -> None:
        """The source is to be asked for nothing more."""
        self._dropped.add(source)
        self.put_back(source, list(self._due.get(source, ())))
        for number in self._queues.pop(source, ()):
            if number in self._items:
                self._offer(number)

    def given_up(self) -> list[GivenUp]:
        """What nobody is left for, since the last call."""
        told, self._given_up = self._given_up, []
        return told
