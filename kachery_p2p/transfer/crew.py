"""How many sources a transfer asks: the one that brings enough, or all of them.

Several sources together are faster than one where it is they, or their lines, that are slow. Where
one brings as much as this node can take in, more of them only cost: what comes from several places
at once is not in order, and is read again from the page cache to be hashed. So one is asked first,
and all as soon as it brings little; if it does not, all are tried for a moment, and kept if they
are faster. Pure: told the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import NamedTuple

from kachery_p2p.limits import (
    CREW_AGAIN_S,
    CREW_ENOUGH_BYTES_PER_S,
    CREW_GAIN_MIN,
    CREW_LOOK_S,
    CREW_MEASURED_S,
    CREW_TRY_S,
)


class _Mark(NamedTuple):
    """How many bytes had come by some time."""

    at: float
    came: int

    def rate(self, later: _Mark) -> float:
        """Bytes a second from here to there."""
        return (later.came - self.came) / (later.at - self.at)


class Crew:
    """Which of the sources at work on one blob are asked for more of it."""

    def __init__(self) -> None:
        self.asks_all = False
        # The one that is asked if not all are; None before there is any.
        self._only: str | None = None
        # When it was last looked at, and since when its rate is measured.
        self._looked = self._measured = _Mark(-math.inf, 0)
        self._turned_at = -math.inf
        # What all, and what one brought when they were last measured: bytes a second, and when.
        self._rates: dict[bool, tuple[float, float]] = {}

    def may_ask(self, node: str) -> bool:
        """Whether this source is to be asked now."""
        return self.asks_all or self._only in (None, node)

    def choose(self, nodes: Collection[str], delivered: Callable[[str], int]) -> None:
        """These are at work now; of a new crew the one that has `delivered` most is the best."""
        if self._only not in nodes:
            self._only = max(nodes, key=delivered, default=None)

    def begins(self, came: int, now: float) -> None:
        """The first source is put to work, after a time in which none was."""
        self._turn(_Mark(now, came), asks_all=False)

    def look(self, came: int, now: float) -> None:
        """Decide again; so many bytes that were needed have come by now, from all sources."""
        mark = _Mark(now, came)
        if now - self._looked.at < CREW_LOOK_S:
            return
        rate, self._looked = self._looked.rate(mark), mark
        if rate < CREW_ENOUGH_BYTES_PER_S and not self.asks_all:
            # It may have been a moment's pause, so it is not believed for long.
            self._rates[False] = rate, now - CREW_AGAIN_S + CREW_TRY_S
            self._turn(mark, asks_all=True)
        elif now - self._measured.at >= CREW_MEASURED_S:
            rate = self._measured.rate(mark)
            self._measured = mark
            self._rates[self.asks_all] = rate, now
            if self._is_worth_a_turn(rate, now):
                self._turn(mark, asks_all=not self.asks_all)

    def _is_worth_a_turn(self, rate: float, now: float) -> bool:
        if self.asks_all and rate < CREW_ENOUGH_BYTES_PER_S:
            return False
        other, at = self._rates.get(not self.asks_all, (0.0, -math.inf))
        if now - at >= CREW_AGAIN_S:
            # Nobody knows (any more): it is tried, though not so soon that short loads pay for it.
            return self.asks_all or now - self._turned_at >= CREW_TRY_S
        of_one, of_all = (other, rate) if self.asks_all else (rate, other)
        return (of_all >= CREW_GAIN_MIN * of_one) != self.asks_all

    def _turn(self, mark: _Mark, *, asks_all: bool) -> None:
        self.asks_all = asks_all
        self._looked = self._measured = mark
        self._turned_at = mark.at
