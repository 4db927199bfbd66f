"""What one source has, was asked for and delivers: as much as is needed to give it its share.

A source delivers in the order it was asked, so when a chunk will come follows from its
place in the queue, the source's rate, and how long nothing has come. Pure: told the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from kachery_p2p.limits import (
    CHUNK_BYTES,
    RANGE_CHUNKS_MAX,
    SHARED_CHUNKS_MAX,
    SOURCE_AHEAD_S,
    SOURCE_PROBE_S,
    STALL_BYTES_MIN,
    STALL_S_MAX,
)
from kachery_p2p.transfer.chunk_set import ChunkSet
from kachery_p2p.transfer.rates import Rate

# What is taken for the rate of a source that has delivered nothing yet: a slow line.
_UNKNOWN_CHUNKS_PER_S = 1.0
# However small its share: one chunk that comes, and one that is asked for already.
_SHARE_CHUNKS_MIN = 2
# Twice its usual time, but no pause shorter than this, makes a source late.
_LATE_S_MIN = 0.5


class SourceQueue:
    """One source. `has` is None for a source of the whole blob."""

    def __init__(self, chunk_count: int, has: ChunkSet | None) -> None:
        self.has = has
        # It is loading the blob itself, so what it has grows.
        self.loading = has is not None
        self.rate = Rate()
        # In the order asked for. Also those that came from elsewhere in the meantime.
        self.outstanding: dict[int, None] = {}
        self._chunk_count = chunk_count
        self._progress_at: float | None = None
        self._asked_at: float | None = None
        # How long it had been silent when all it owed was cancelled.
        self._carried_s = 0.0
        # Bytes of the chunk that is coming, and of those since the last progress.
        self._ahead_bytes = 0
        self._dripped_bytes = 0

    # --- what it has --------------------------------------------------------------------

    def window(self, start: int, stop: int) -> int:
        """The chunks it has from `start` to `stop` - 1, as bits."""
        return (1 << (stop - start)) - 1 if self.has is None else self.has.window(start, stop)

    def now_has(self, chunks: range | bytes, first: int = 0) -> bool:
        """These too, in a range or as bits from `first` on; True if that is news.

        One that has the whole blob has them already.
        """
        if self.has is None:
            return False
        if isinstance(chunks, bytes):
            return self.has.add_bits(chunks, first)
        before = len(self.has)
        self.has.add_range(chunks)
        return len(self.has) > before

    def lacks(self, chunks: range) -> None:
        if self.has is None:
            self.has = ChunkSet(self._chunk_count)
            self.has.add_range(range(self._chunk_count))
        self.has.remove_range(chunks)

    # --- what happens --------------------------------------------------------------------

    def ask(self, chunks: range, now: float | None) -> None:
        if now is not None and not self.outstanding:
            # Who was silent until its chunks were cancelled does not begin anew.
            self._progress_at = now - self._carried_s
            self._ahead_bytes = self._dripped_bytes = 0
            self.rate.resume(self._progress_at)
        self._asked_at = now
        self.outstanding.update(dict.fromkeys(chunks))

    def drop(self, number: int, now: float | None) -> None:
        """It will not deliver this one."""
        silent_s = 0.0 if now is None else self.silent_s(now)
        del self.outstanding[number]
        if not self.outstanding:
            self._carried_s = silent_s

    def moved(self, byte_count: int, now: float) -> None:
        """A piece of the chunk that is due has come."""
        self._ahead_bytes += byte_count
        self._count(byte_count, now)

    def deliver(self, byte_count: int, now: float | None) -> None:
        """A whole chunk has come; of its bytes those that were told by `moved` count once."""
        counted = min(self._ahead_bytes, byte_count)
        self._ahead_bytes = 0
        if now is not None:
            self._count(byte_count - counted, now)
            self._progress(now)

    def _count(self, byte_count: int, now: float) -> None:
        self.rate.add(byte_count, now)
        self._dripped_bytes += byte_count
        if self._dripped_bytes >= STALL_BYTES_MIN:
            self._progress(now)

    def _progress(self, now: float) -> None:
        self._progress_at, self._dripped_bytes, self._carried_s = now, 0, 0.0

    # --- what to expect -------------------------------------------------------------------

    def chunks_per_s(self, now: float) -> float | None:
        """Now, or, of a source that owes nothing, when it last did."""
        rate = self.rate.at(now) if self.outstanding else self.rate.until_last()
        return None if rate is None else rate / CHUNK_BYTES

    def allowance(self, share: float, now: float) -> int:
        """Chunks it may owe: SOURCE_AHEAD_S of its rate, within its share of the window."""
        rate = self.chunks_per_s(now)
        if rate is None:
            return RANGE_CHUNKS_MAX
        share_chunks = max(_SHARE_CHUNKS_MIN, int(share * SHARED_CHUNKS_MAX))
        return max(1, min(math.ceil(rate * SOURCE_AHEAD_S), share_chunks))

    def delivery_s(self, chunk_count: int, now: float) -> float:
        """How long it would take with as many more, if it were asked for them now."""
        rate = self.chunks_per_s(now) or _UNKNOWN_CHUNKS_PER_S
        return (len(self.outstanding) + chunk_count) / rate

    def expected(self, now: float) -> Iterator[tuple[int, float]]:
        """Each chunk it owes, and in how many seconds it should come.

        From a source that is later than twice its usual time nothing is expected sooner
        than after as much silence again.
        """
        silent_s, usual_s = self.silent_s(now), self._usual_s()
        chunks_per_s = self.chunks_per_s(now)
        for place, number in enumerate(self.outstanding, start=1):
            if not chunks_per_s or usual_s is None:
                yield number, place * silent_s
            elif silent_s < 2 * usual_s:
                yield number, max(place * usual_s - silent_s, 0.0)
            else:
                yield number, max(place / chunks_per_s, silent_s)

    def _usual_s(self) -> float | None:
        """The time it took for a chunk as long as chunks came."""
        usual = self.rate.until_last()
        return None if usual is None else CHUNK_BYTES / usual

    def silent_s(self, now: float) -> float:
        """For how long nothing has come that was asked for."""
        if not self.outstanding or self._progress_at is None:
            return 0.0
        return max(now - self._progress_at, 0.0)

    def late(self, now: float) -> bool:
        """True when it may be gone: whether it answers at all is yet to be seen."""
        return self.silent_s(now) >= max(2 * (self._usual_s() or 0.0), _LATE_S_MIN)

    def rested(self, now: float) -> bool:
        """True if it was not asked for anything for SOURCE_PROBE_S."""
        return self._asked_at is None or now - self._asked_at >= SOURCE_PROBE_S

    def stalled(self, now: float) -> bool:
        return self.silent_s(now) >= STALL_S_MAX
