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
    CREW_JOIN_S_MAX,
    CREW_LOOK_S,
    CREW_MEASURED_S,
    CREW_REST_S_MIN,
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
        # Some source has only a part: what is wanted may be elsewhere, and what is here is passed
        # on by others that load it as well. Then all are asked.
        self.has_parts = False
        self._all = False
        # The one that is asked if not all are; None before there is any.
        self._only: str | None = None
        # When it was last looked at, and since when its rate is measured.
        self._looked = self._measured = _Mark(-math.inf, 0)
        self._turned_at = -math.inf
        # What all, and what one brought when they were last measured: bytes a second, and when.
        self._rates: dict[bool, tuple[float, float]] = {}
        # How long one that was slow is not tried again: not long for a moment's pause.
        self._rest_s = CREW_REST_S_MIN

    @property
    def asks_all(self) -> bool:
        """Whether all are asked."""
        return self._all or self.has_parts

    def may_ask(self, node: str) -> bool:
        """Whether this source is to be asked now."""
        return self.asks_all or self._only in (None, node)

    def begins(self, came: int, now: float) -> None:
        """The first source is put to work, after a time in which none was."""
        rate, at = self._rates.get(False, (math.inf, -math.inf))
        was_slow = rate < CREW_ENOUGH_BYTES_PER_S and now - at < CREW_AGAIN_S
        self._turn(_Mark(now, came), to_all=self._all and was_slow)

    def look(
        self, nodes: Collection[str], delivered: Callable[[str], int], came: int, now: float
    ) -> bool:
        """Decide again; True if all are asked from now on.

        These `nodes` are at work, of which each has `delivered` so many bytes; `came` are those
        of all that were needed.
        """
        mark, asked_all = _Mark(now, came), self.asks_all
        if self.has_parts:
            self._looked = self._measured = mark
        elif now - self._looked.at >= CREW_LOOK_S:
            self._decide(mark, all(map(delivered, nodes)))
        if self._only not in nodes:
            self._only = max(nodes, key=delivered, default=None)
        return self.asks_all and not asked_all

    def _decide(self, mark: _Mark, is_complete: bool) -> None:
        rate, self._looked = self._looked.rate(mark), mark
        if rate < CREW_ENOUGH_BYTES_PER_S and not self._all:
            self._rates[False] = rate, mark.at - CREW_AGAIN_S + self._rest_s
            self._rest_s = min(2 * self._rest_s, CREW_AGAIN_S)
            self._turn(mark, to_all=True)
        elif self._all and not is_complete and mark.at - self._turned_at < CREW_JOIN_S_MAX:
            # Some are only being reached.
            self._measured = mark
        elif mark.at - self._measured.at >= CREW_MEASURED_S:
            rate, self._measured = self._measured.rate(mark), mark
            self._rates[self._all] = rate, mark.at
            if not self._all:
                self._rest_s = CREW_REST_S_MIN
            if self._is_worth_a_turn(rate, mark.at):
                self._turn(mark, to_all=not self._all)

    def _is_worth_a_turn(self, rate: float, now: float) -> bool:
        if self._all and rate < CREW_ENOUGH_BYTES_PER_S:
            return False
        other, at = self._rates.get(not self._all, (0.0, -math.inf))
        if now - at >= CREW_AGAIN_S:
            # Nobody knows (any more): it is tried, though not so soon that short loads pay for it.
            return self._all or now - self._turned_at >= CREW_TRY_S
        of_one, of_all = (other, rate) if self._all else (rate, other)
        return (of_all >= CREW_GAIN_MIN * of_one) != self._all

    def _turn(self, mark: _Mark, *, to_all: bool) -> None:
        if self._all and not to_all:
            # Whoever has brought most by now.
            self._only = None
        self._all = to_all
        self._looked = self._measured = mark
        self._turned_at = mark.at
