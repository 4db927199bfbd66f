"""How much a peer may send: token buckets, told the time by whoever uses them."""

from __future__ import annotations

from kachery_p2p.limits import (
    ANNOUNCE_BURST_BYTES,
    ANNOUNCE_BURST_MESSAGES,
    ANNOUNCE_BYTES_PER_S,
    ANNOUNCE_MESSAGES_PER_S,
)


class TokenBucket:
    """`burst` at once, then `per_s` in each second. Starts full."""

    __slots__ = ("_at", "_burst", "_left", "_per_s")

    def __init__(self, per_s: float, burst: float, now: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._left = burst
        self._at = now

    def wait_s(self, cost: float, now: float) -> float:
        """How long until `cost` can be paid; 0 if it can be now. Nothing costs above `burst`."""
        assert cost <= self._burst, "would wait for ever"
        self._fill(now)
        return max(cost - self._left, 0.0) / self._per_s

    def left(self, now: float) -> float:
        """How much can be paid now."""
        self._fill(now)
        return self._left

    def pay(self, cost: float, now: float) -> None:
        """Take `cost` out, whether it is there or not."""
        self._fill(now)
        self._left -= cost

    def _fill(self, now: float) -> None:
        self._left = min(self._left + (now - self._at) * self._per_s, self._burst)
        self._at = now


class Allowance:
    """The announcements of one peer: messages, and their bytes.

    A sender that keeps to a `share` of a half is never refused: the other half makes up
    for messages that the network delivers closer together than they were sent.
    """

    __slots__ = ("_bytes", "_messages")

    def __init__(self, now: float, share: float = 1.0) -> None:
        self._messages = TokenBucket(ANNOUNCE_MESSAGES_PER_S, ANNOUNCE_BURST_MESSAGES * share, now)
        self._bytes = TokenBucket(ANNOUNCE_BYTES_PER_S, ANNOUNCE_BURST_BYTES * share, now)

    def wait_s(self, size: int, now: float) -> float:
        """How long until a message of `size` bytes is allowed; 0 if it is now."""
        return max(self._messages.wait_s(1, now), self._bytes.wait_s(size, now))

    def pay(self, size: int, now: float) -> None:
        """Count a message of `size` bytes."""
        self._messages.pay(1, now)
        self._bytes.pay(size, now)

    def take(self, size: int, now: float) -> bool:
        """Count a message of `size` bytes if it is allowed now."""
        if self.wait_s(size, now) > 0:
            return False
        self.pay(size, now)
        return True
