"""Whether a bucket's server is near, which decides how many ranges of a blob are read at once.

A server far away is kept busy by many. Of one that is near, one brings as much, and what it
brings is hashed as it comes: of many at once, most is read again from the page cache, which
costs a sixth of the time (measured). Pure but for the clock, and cheap enough to be asked often.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from kachery_p2p.limits import BUCKET_FAR_RANGES, BUCKET_NEAR_BYTES_PER_S, BUCKET_NEAR_S


class Pace:
    """How fast one range comes. `timed` is for one thread, the rest for any."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waits_since: float | None = None
        self._waited_s = 0.0
        self._came_bytes = 0

    def timed(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """The same pieces; what their taker does between two of them is not counted."""
        while True:
            since = self._waits_since = self._clock()
            try:
                piece = next(pieces, None)
            finally:
                self._waits_since = None
            if piece is None:
                return
            self._waited_s += self._clock() - since
            self._came_bytes += len(piece)
            yield piece

    @property
    def waits_s(self) -> float:
        """For how long the server has sent nothing; 0 while it is not waited for."""
        since = self._waits_since
        return 0.0 if since is None else self._clock() - since

    @property
    def is_fast(self) -> bool:
        """Whether it comes as from a server that is near, so far."""
        fair_s = BUCKET_NEAR_S + self._came_bytes / BUCKET_NEAR_BYTES_PER_S
        return self._waited_s + self.waits_s <= fair_s


class Nearness:
    """What the ranges of one blob tell of the server. It is near until one of them is slow."""

    def __init__(self) -> None:
        # Those that were begun as of a server that is near: only urgent ones were beside them.
        self._judged: set[Pace] = set()
        # How many more are to come before it is tried again.
        self._far_ranges = 0

    def is_near(self) -> bool:
        """Whether one range at a time is enough."""
        if not self._far_ranges and not all(pace.is_fast for pace in self._judged):
            self._judged.clear()
            self._far_ranges = BUCKET_FAR_RANGES
        return not self._far_ranges

    def began(self, pace: Pace) -> None:
        """A range is asked for."""
        if self.is_near():
            self._judged.add(pace)

    def ended(self, pace: Pace) -> None:
        """It has come, or will not."""
        if self.is_near():
            self._judged.discard(pace)
        else:
            self._far_ranges -= 1
