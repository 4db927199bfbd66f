"""How much may go through a line, and how much does: a token bucket and a meter.

Pure: told the time, in seconds of any clock that goes forward.
"""

from __future__ import annotations

import math

from kachery_p2p.limits import PACE_RATE_S, RATE_BURST_S


class TokenBucket:
    """At most `rate` bytes a second, and RATE_BURST_S of it at once after a pause.

    What goes may be more than there are tokens for: it is paid afterwards, by waiting. So
    in any time t go at most t + RATE_BURST_S seconds of the rate and one piece.
    """

    def __init__(self, rate: float) -> None:
        assert rate > 0
        self.rate = rate
        self._tokens = 0.0
        self._at = -math.inf

    def wait_s(self, now: float) -> float:
        """Seconds until something may go; 0 if it may now."""
        self._refill(now)
        # A fraction of a byte is a rounding error: waiting for it might never end.
        return -self._tokens / self.rate if self._tokens <= -1.0 else 0.0

    def take(self, byte_count: int, now: float) -> None:
        """So many bytes go now."""
        self._refill(now)
        self._tokens -= byte_count

    def _refill(self, now: float) -> None:
        if self._at == -math.inf:
            self._at = now
        passed_s = max(now - self._at, 0.0)
        self._at += passed_s
        self._tokens = min(self._tokens + passed_s * self.rate, self.rate * RATE_BURST_S)


class Meter:
    """Bytes in all, and bytes a second: what went PACE_RATE_S ago counts 1/e of what goes now."""

    def __init__(self) -> None:
        self.byte_count = 0
        self._rate = 0.0
        self._at = -math.inf

    def add(self, byte_count: int, now: float) -> None:
        self.byte_count += byte_count
        self._rate = self.rate(now) + byte_count / PACE_RATE_S
        self._at = max(now, self._at)

    def rate(self, now: float) -> float:
        if self._at == -math.inf:
            return 0.0
        return self._rate * math.exp(-max(now - self._at, 0.0) / PACE_RATE_S)
