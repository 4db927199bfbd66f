"""How fast bytes come, smoothed. Pure: told the time.

Bytes and the time they took fade alike (an exponential average of both), so the rate
is right from the first chunk on, however regular or bursty chunks come. Time in which
nothing was due is not counted: see `resume`.
"""

from __future__ import annotations

import math

from kachery_p2p.limits import RATE_MEMORY_S


class Rate:
    """Bytes a second. What came `memory_s` ago counts 1/e of what comes now."""

    def __init__(self, memory_s: float = RATE_MEMORY_S) -> None:
        self._memory_s = memory_s
        self._bytes = 0.0
        self._s = 0.0
        self._at = -math.inf

    def resume(self, now: float) -> None:
        """From now on something is due; the time before does not count."""
        self._at = now

    def add(self, byte_count: int, now: float) -> None:
        self._bytes, self._s = self._faded(now)
        self._bytes += byte_count
        self._at = max(self._at, now)

    def until_last(self) -> float | None:
        """The rate when bytes last came; None before it can be told."""
        return self._bytes / self._s if self._s > 0 and self._bytes > 0 else None

    def at(self, now: float) -> float | None:
        """The rate now: the longer nothing has come, the lower. None before it can be told."""
        if self.until_last() is None:
            return None
        faded_bytes, seconds = self._faded(now)
        return faded_bytes / seconds

    def _faded(self, now: float) -> tuple[float, float]:
        if self._at == -math.inf:
            return self._bytes, self._s
        passed_s = max(now - self._at, 0.0)
        fade = math.exp(-passed_s / self._memory_s)
        return self._bytes * fade, self._s * fade + passed_s
