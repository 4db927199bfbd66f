"""To whom chunks are given, how many, and how fast. Pure: told counts and the time.

What sends chunks only counts; here the counts are looked at every second or two, so serving
pays nothing for being watched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kachery_p2p.limits import GIVEN_TOLD_S, PROGRESS_RATE_S
from kachery_p2p.transfer.rates import Rate


class GivenTo(NamedTuple):
    """A node that was given something lately. `rate` is in bytes a second."""

    node_id: str
    bytes: int
    rate: float


class _Receiver:
    def __init__(self, now: float) -> None:
        self.bytes = 0
        self.counted = 0
        self.moved_at = now
        self.rate = Rate(PROGRESS_RATE_S)


class Given:
    """Those who were given something within GIVEN_TOLD_S."""

    def __init__(self) -> None:
        self._receivers: dict[str, _Receiver] = {}
        self._looked_at: float | None = None

    def look(self, counts: Mapping[str, int], now: float) -> None:
        """Bytes sent to each node so far, on connections that are open: a count may fall."""
        before = now if self._looked_at is None else self._looked_at
        for node, count in counts.items():
            if count and node not in self._receivers:
                self._receivers[node] = _Receiver(before)
                self._receivers[node].rate.resume(before)
        for node, receiver in list(self._receivers.items()):
            self._see(receiver, counts.get(node, 0), now)
            if now - receiver.moved_at >= GIVEN_TOLD_S:
                del self._receivers[node]
        self._looked_at = now

    @staticmethod
    def _see(receiver: _Receiver, count: int, now: float) -> None:
        more = max(count - receiver.counted, 0)
        receiver.counted = count
        if more:
            receiver.bytes += more
            receiver.rate.add(more, now)
            receiver.moved_at = now

    def to(self, now: float) -> list[GivenTo]:
        """Each of them, whoever began last at the end."""
        return [
            GivenTo(node, receiver.bytes, receiver.rate.at(now) or 0.0)
            for node, receiver in self._receivers.items()
        ]
