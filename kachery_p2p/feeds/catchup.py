"""Deciding whom to ask for which entries of one log, until all of it is here.

The log is known by a signed head, and members who have it are its sources. Each is asked for
ranges of entries, some at once and of several members at once; what comes is taken in order
and verified by whoever took it (`feeds.replica`), because only who has the entries before a
range can tell whether it is right. Then the source that sent it is known to be right or wrong.

Told what happened (`offer`, `drop`, `received`, `failed`, `wrong`), it answers what to do
(`next_for`) and what may be verified now (`take`). The clock arrives as an argument.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

from kachery_p2p.limits import (
    FEED_AHEAD_MAX,
    FEED_ANSWER_BYTES,
    FEED_ANSWER_ENTRIES_MAX,
    FEED_ASKED_PER_SOURCE_MAX,
    FEED_LATE_S,
)

Source = TypeVar("Source", bound=Hashable)

# Before anything has come: as many messages of 200 bytes fill an answer.
_COUNT_AT_FIRST = FEED_ANSWER_BYTES // 224


class Wanted(NamedTuple):
    """A question for the entries before `end`: as many as fit into an answer."""

    first: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.first


class Brought(NamedTuple, Generic[Source]):
    """An answer that is next in order: entries from `first` on, not verified yet."""

    source: Source
    first: int
    entries: Sequence[bytes]
    path: tuple[bytes, ...]


class _Asked(NamedTuple, Generic[Source]):
    source: Source
    wanted: Wanted
    at: float


class CatchUp(Generic[Source]):
    """What is missing of one log from entry `first` on, and who was asked for what of it."""

    def __init__(self, first: int) -> None:
        # The first entry that was not taken yet, and the first that nobody was asked for yet.
        self._next = first
        self._unasked = first
        # Parts before `_unasked` that have to be asked for again.
        self._again: list[Wanted] = []
        self._sources: dict[Source, int] = {}
        self._asked: list[_Asked[Source]] = []
        self._brought: dict[int, Brought[Source]] = {}
        self._entry_bytes = 0.0

    @property
    def next(self) -> int:
        """The first entry that was not taken yet."""
        return self._next

    @property
    def sources(self) -> frozenset[Source]:
        """Who may be asked."""
        return frozenset(self._sources)

    @property
    def held(self) -> int:
        """Answers that are awaited, or wait to be taken: at most FEED_AHEAD_MAX, and one late."""
        return len(self._asked) + len(self._brought)

    def offer(self, source: Source, size: int) -> None:
        """`source` has the entries below `size`."""
        self._sources[source] = max(size, self._sources.get(source, 0))

    def drop(self, source: Source) -> None:
        """`source` is not to be asked any more; what it owed may be asked of others."""
        self._sources.pop(source, None)
        for asked in [asked for asked in self._asked if asked.source == source]:
            self._give_up(asked)

    def is_done(self, target: int) -> bool:
        """True if every entry below `target` was taken."""
        return self._next >= target

    # --- asking --------------------------------------------------------------------------------

    def next_for(self, source: Source, target: int, now: float) -> Wanted | None:
        """What to ask `source` for now, of the entries below `target`; None if nothing."""
        limit = min(target, self._sources.get(source, 0))
        owed = sum(asked.source == source for asked in self._asked)
        if owed >= FEED_ASKED_PER_SOURCE_MAX or limit <= self._next:
            return None
        wanted = self._late_for(source, limit, now) or self._fresh(limit)
        if wanted is not None:
            self._asked.append(_Asked(source, wanted, now))
        return wanted

    def _fresh(self, limit: int) -> Wanted | None:
        """A part that nobody owes: the earliest, and far ahead only if there is room for it."""
        if self._again:
            wanted = self._again[0]
            if self._may_hold(wanted.first) and wanted.first < limit:
                heapq.heappop(self._again)
                return self._shortened(wanted, limit)
        if self._unasked >= limit or not self._may_hold(self._unasked):
            return None
        wanted = Wanted(self._unasked, min(self._unasked + self._count, limit))
        self._unasked = wanted.end
        return wanted

    def _shortened(self, wanted: Wanted, limit: int) -> Wanted:
        """What of `wanted` one answer can bring; the rest is to be asked for later."""
        first, end = wanted.first, min(wanted.end, limit, wanted.first + self._count)
        self._ask_again(end, wanted.end)
        return Wanted(first, end)

    def _late_for(self, source: Source, limit: int, now: float) -> Wanted | None:
        """What all wait for, if another source was asked for it long ago, and only this one."""
        first = [asked for asked in self._asked if asked.wanted.first == self._next]
        if len(first) != 1 or first[0].source == source or first[0].wanted.end > limit:
            return None
        return first[0].wanted if now - first[0].at >= FEED_LATE_S else None

    def _may_hold(self, first: int) -> bool:
        # What is next in order is always asked for: it is what makes room.
        return first == self._next or self.held < FEED_AHEAD_MAX

    @property
    def _count(self) -> int:
        """How many entries fill an answer, by those that came."""
        if not self._entry_bytes:
            return _COUNT_AT_FIRST
        return max(1, min(int(FEED_ANSWER_BYTES / self._entry_bytes), FEED_ANSWER_ENTRIES_MAX))

    # --- what comes ----------------------------------------------------------------------------

    def received(
        self, source: Source, wanted: Wanted, entries: Sequence[bytes], path: tuple[bytes, ...]
    ) -> None:
        """`source` answered with the first of the entries it was asked for, one at least."""
        assert 0 < len(entries) <= wanted.length
        if not self._settle(source, wanted):
            return
        self._note_size(entries)
        # Nobody waits any more for who else was asked for the same.
        self._asked = [asked for asked in self._asked if asked.wanted.first != wanted.first]
        self._brought[wanted.first] = Brought(source, wanted.first, entries, path)
        self._ask_again(wanted.first + len(entries), wanted.end)

    def failed(self, source: Source, wanted: Wanted) -> None:
        """`source` did not answer this question: others may be asked."""
        for asked in self._asked:
            if asked.source == source and asked.wanted == wanted:
                self._give_up(asked)
                return

    def take(self) -> Brought[Source] | None:
        """The answer that is next in order, to be verified and kept; None if it is not here yet."""
        brought = self._brought.pop(self._next, None)
        if brought is not None:
            self._next += len(brought.entries)
        return brought

    def put_back(self, brought: Brought[Source]) -> None:
        """What was taken cannot be verified yet: something before it was wrong."""
        self._brought[brought.first] = brought

    def wrong(self, brought: Brought[Source]) -> None:
        """What was taken does not verify: its source is dropped, with all it brought.

        What was taken after it has to be `put_back` before.
        """
        assert brought.first <= self._next
        self._next = brought.first
        self._ask_again(brought.first, brought.first + len(brought.entries))
        for first in [at for at, other in self._brought.items() if other.source == brought.source]:
            self._ask_again(first, first + len(self._brought.pop(first).entries))
        self.drop(brought.source)

    def skip_to(self, first: int) -> None:
        """The entries before `first` came in another way, such as with news."""
        if first <= self._next:
            return
        self._next = first
        self._unasked = max(self._unasked, first)
        again, self._again = self._again, []
        owed = [asked for asked in self._asked if asked.wanted.first < first]
        early = [self._brought.pop(at) for at in list(self._brought) if at < first]
        # What reaches beyond is asked for anew from there on.
        ends = {(wanted.first, wanted.end) for wanted in again}
        ends |= {(asked.wanted.first, asked.wanted.end) for asked in owed}
        ends |= {(brought.first, brought.first + len(brought.entries)) for brought in early}
        for at, end in ends:
            self._ask_again(max(at, first), end)
        self._asked = [asked for asked in self._asked if asked not in owed]

    # --- inside --------------------------------------------------------------------------------

    def _settle(self, source: Source, wanted: Wanted) -> bool:
        """Note that a question was answered; False if nobody waits for it any more."""
        for asked in self._asked:
            if asked.source == source and asked.wanted == wanted:
                self._asked.remove(asked)
                return True
        return False

    def _give_up(self, asked: _Asked[Source]) -> None:
        self._asked.remove(asked)
        if all(other.wanted.first != asked.wanted.first for other in self._asked):
            self._ask_again(asked.wanted.first, asked.wanted.end)

    def _ask_again(self, first: int, end: int) -> None:
        if first < end:
            heapq.heappush(self._again, Wanted(first, end))

    def _note_size(self, entries: Sequence[bytes]) -> None:
        mean = sum(map(len, entries)) / len(entries) + 4
        self._entry_bytes = mean if not self._entry_bytes else (self._entry_bytes + mean) / 2
