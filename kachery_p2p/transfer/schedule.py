"""Decide which chunks to ask a source for next. Pure: told what happened, answers what to do.

A blob's SHA-1 can only be computed in order, so chunks are asked for in order inside a
window ahead of the first one missing: what arrives is hashed from memory or the page
cache, and a failed source never leaves holes further apart than the window. A *want* is
a run of chunks somebody waits for; the newest want goes first, so that a reader of a few
bytes passes a running download of the whole blob.

Of many sources each is asked for what it has, as much as it delivers in about a second,
within its share of the window, in the order of `turns`: the chunks with the fewest holders
first, and those who load the blob at the same time begin with different ones. When nothing is
left to ask a source for, it gets what another was asked for and is to deliver much later (the
*end game*, as in BitTorrent), so that no source, slow or dead, holds up the window or the end
of the blob. A chunk has at most two askers.
"""

from __future__ import annotations

from kachery_p2p.limits import (
    CHUNK_BYTES,
    END_GAME_GAIN_S_MIN,
    PAGE_CHUNKS_MAX,
    RANGE_CHUNKS_MAX,
    WINDOW_CHUNKS_MAX,
)
from kachery_p2p.transfer.chunk_set import ChunkSet
from kachery_p2p.transfer.rates import Rate
from kachery_p2p.transfer.source_queue import SourceQueue
from kachery_p2p.transfer.tallies import SourceState, Tally
from kachery_p2p.transfer.turns import Chunks, next_run

# As many chunks others may bring while a source brings one: half a window, so that the
# window is not held up by it.
_PASSED_CHUNKS_MAX = WINDOW_CHUNKS_MAX // 2
# Pages of which a source is asked what it has: of the windows of the newest readers.
_PAGES_ASKED_MAX = 4


class Want:
    """A run of chunks somebody waits for. `frontier` is its first chunk that is not held yet."""

    def __init__(self, chunks: range) -> None:
        self.chunks = chunks
        self.frontier = chunks.start
        self.waiting = 0

    @property
    def satisfied(self) -> bool:
        return self.frontier >= self.chunks.stop

    @property
    def window(self) -> tuple[int, int]:
        """(first, end) of the chunks that may be asked for."""
        return self.frontier, min(self.chunks.stop, self.frontier + WINDOW_CHUNKS_MAX)


class ChunkSchedule:
    """What is held, asked and missing of one blob: three bits a chunk.

    A decision looks at a window of the blob, not at the blob. A source that was not
    introduced with `source_joined` is taken for one of the whole blob.
    """

    def __init__(self, chunk_count: int, me: str = "") -> None:
        """`me`: how other schedules call this one among their sources."""
        self.chunk_count = chunk_count
        self._me = me
        self.total = Tally()
        self._held = ChunkSet(chunk_count)
        # Not held, and asked of one source or two; of two.
        self._asked = ChunkSet(chunk_count)
        self._doubled = ChunkSet(chunk_count)
        self._wants: list[Want] = []
        self._sources: dict[str, SourceQueue] = {}
        self._tallies: dict[str, Tally] = {}
        self._rate = Rate()

    # --- what is wanted and held ----------------------------------------------------------

    @property
    def held_count(self) -> int:
        return len(self._held)

    def want(self, chunks: range) -> Want:
        """Ask for a run of chunks; drop it again with `unwant`. Who wants the same share it."""
        assert chunks.step == 1 and chunks.start >= 0 and chunks.stop <= self.chunk_count
        wanted = next((w for w in self._wants if w.chunks == chunks), None)
        if wanted is None:
            wanted = Want(chunks)
            self._advance(wanted)
        else:
            self._wants.remove(wanted)
        wanted.waiting += 1
        self._wants.append(wanted)
        return wanted

    def unwant(self, wanted: Want) -> None:
        wanted.waiting -= 1
        if not wanted.waiting:
            self._wants.remove(wanted)

    @property
    def satisfied(self) -> bool:
        """True when nobody waits for a chunk that is not held."""
        return all(wanted.satisfied for wanted in self._wants)

    def holds(self, number: int) -> bool:
        return number in self._held

    def held_bytes(self, start: int, end: int) -> int:
        """How many of these bytes are in chunks that are held."""
        if start >= end:
            return 0
        first, last = start // CHUNK_BYTES, (end - 1) // CHUNK_BYTES
        count = self._held.window(first, last + 1).bit_count() * CHUNK_BYTES
        before = (start - first * CHUNK_BYTES) * self.holds(first)
        behind = ((last + 1) * CHUNK_BYTES - end) * self.holds(last)
        return count - before - behind

    def hold(self, number: int) -> None:
        """The chunk is on disk, verified, from wherever it came."""
        if self.holds(number):
            return
        self._held.add(number)
        self._asked.remove(number)
        self._doubled.remove(number)
        for wanted in self._wants:
            if wanted.frontier == number:
                self._advance(wanted)

    def _advance(self, wanted: Want) -> None:
        wanted.frontier = self._held.first_missing(wanted.frontier, wanted.chunks.stop)

    # --- sources come and go --------------------------------------------------------------

    def source_joined(self, source: str, has_all: bool = True) -> None:
        """A source of the whole blob, or of what `source_has` will say. No news if it is here."""
        if source not in self._sources:
            has = None if has_all else ChunkSet(self.chunk_count)
            self._sources[source] = SourceQueue(self.chunk_count, has)

    def source_has(self, source: str, chunks: range | bytes, first: int = 0) -> bool:
        """A source of a part has these too; True if that is news.

        As bits, chunk `first` + i is bit i % 8 of byte i // 8.
        """
        self.source_joined(source, has_all=False)
        return self._sources[source].now_has(chunks, first)

    def unknown_pages(self, source: str) -> list[int]:
        """The pages with chunks that are asked for next, and that the source may not have yet."""
        self.source_joined(source, has_all=False)
        has = self._sources[source].has
        pages: set[int] = set()
        for wanted in reversed(self._wants):
            start, stop = wanted.window
            missing = 0 if has is None else ~has.window(start, stop) & ((1 << (stop - start)) - 1)
            if missing and len(pages) < _PAGES_ASKED_MAX:
                pages |= {start // PAGE_CHUNKS_MAX, (stop - 1) // PAGE_CHUNKS_MAX}
        return sorted(pages)

    def delivered_bytes(self, source: str) -> int:
        """Needed bytes that came from it."""
        tally = self._tallies.get(source)
        return 0 if tally is None else tally.received_bytes

    def owed(self, source: str) -> range:
        """From the first to the last chunk that it owes."""
        queue = self._sources.get(source)
        owed = queue.outstanding if queue is not None else ()
        return range(min(owed), max(owed) + 1) if owed else range(0)

    def is_useful(self, source: str) -> bool:
        """True while it owes something, or has something that is wanted and missing."""
        queue = self._sources.get(source)
        if queue is None or queue.outstanding:
            return queue is not None
        windows = [wanted.window for wanted in self._wants]
        return any(queue.window(*window) & ~self._held.window(*window) for window in windows)

    def source_lacks(self, source: str, chunks: range) -> None:
        """The source said that it does not have these (any more); what it owes is given back."""
        self.source_joined(source)
        self._sources[source].lacks(chunks)
        self.given_back(source, chunks)

    def given_back(self, source: str, chunks: range, now: float | None = None) -> None:
        """The source will not deliver these: it was told not to (`now`), or it refused."""
        queue = self._sources.get(source)
        if queue is None:
            return
        # What it owes is little; the range is its own word, and may be of any length.
        for number in [number for number in queue.outstanding if number in chunks]:
            queue.drop(number, now)
            self._give_back(number)

    def source_left(self, source: str) -> None:
        """Whatever `source` still owed us may be asked of someone else."""
        queue = self._sources.pop(source, None)
        for number in queue.outstanding if queue is not None else ():
            self._give_back(number)

    def _give_back(self, number: int) -> None:
        if number in self._doubled:
            self._doubled.remove(number)
        else:
            self._asked.remove(number)

    # --- what to ask for ------------------------------------------------------------------

    def next_for(
        self,
        source: str,
        chunks_max: int = RANGE_CHUNKS_MAX,
        now: float | None = None,
        *,
        passing: bool = False,
    ) -> range | None:
        """The chunks to request from `source` now, or None when there is nothing for it.

        With the time, a source owes at most what its rate allows; without, nothing is
        measured, and it is asked until all is asked for. `passing`: only what somebody
        wants who came after the first who still waits.
        """
        if passing and len(self._wants) < 2:
            return None
        self.source_joined(source)
        queue = self._sources[source]
        allowance = self._allowance(queue, now)
        oldest = next((wanted for wanted in self._wants if not wanted.satisfied), None)
        for wanted in reversed(self._wants):
            room = self._room(queue, allowance, passing=wanted is not oldest)
            if wanted.satisfied or not room or (passing and wanted is oldest):
                continue
            chunks = self._next_run(queue, wanted, min(chunks_max, room), now)
            if chunks is not None:
                self._ask(queue, chunks, now)
                return chunks
        return None

    def _allowance(self, queue: SourceQueue, now: float | None) -> int:
        if now is None:
            # However much of the blob it owes, half of this is free.
            return 2 * self.chunk_count
        own = queue.chunks_per_s(now) or 0.0
        others = (other for other in self._sources.values() if other is not queue)
        together = own + sum(other.chunks_per_s(now) or 0.0 for other in others)
        return queue.allowance(own / together if together else 1.0, now)

    @staticmethod
    def _room(queue: SourceQueue, allowance: int, passing: bool) -> int:
        """How many chunks it may be asked for: none before a quarter of its allowance is free."""
        owed = len(queue.outstanding)
        if passing:
            # Whoever reads a few bytes does not wait until the queue of a download is shorter.
            return max(allowance + RANGE_CHUNKS_MAX - owed, 0)
        room = allowance - owed
        return room if room >= max(1, allowance // 4) else 0

    def _next_run(
        self, queue: SourceQueue, wanted: Want, length_max: int, now: float | None
    ) -> range | None:
        start, stop = wanted.window
        useful = queue.window(start, stop) & ~self._held.window(start, stop)
        asked = self._asked.window(start, stop)
        new = useful & ~asked
        if new and now is not None:
            new &= ~self._better_left(queue, start, stop, now)
        if new:
            chunks = Chunks(new, start, stop)
            return next_run(chunks, queue, self._sources, self._me, length_max)
        once = useful & asked & ~self._doubled.window(start, stop)
        if once and now is not None:
            return self._late_run(queue, once, start, length_max, now)
        return None

    def _better_left(self, queue: SourceQueue, start: int, stop: int, now: float) -> int:
        """The chunks in a window that others bring before this source could bring one.

        With them it would only hold up the window, though it is left out for a while and
        then tried again: it may have become faster.
        """
        if queue.chunks_per_s(now) is None or queue.rested(now):
            return 0
        theirs, together = 0, 0.0
        for other in self._sources.values():
            has = 0 if other is queue or other.late(now) else other.window(start, stop)
            if has:
                theirs |= has
                together += other.chunks_per_s(now) or 0.0
        too_slow = queue.delivery_s(1, now) * together > _PASSED_CHUNKS_MAX
        return theirs if too_slow else 0

    def _late_run(
        self, queue: SourceQueue, once: int, start: int, length_max: int, now: float
    ) -> range | None:
        """The end game: what comes last from others, down to where asking again is no gain."""
        due_s = {
            number: in_s
            for other in self._sources.values()
            if other is not queue
            for number, in_s in other.expected(now)
            if number >= start and once >> (number - start) & 1
        }
        if not due_s:
            return None
        last = max(due_s, key=lambda number: (due_s[number], number))
        first, soonest_s = last + 1, due_s[last]
        while last - first + 1 < length_max and first - 1 in due_s:
            soonest_s = min(soonest_s, due_s[first - 1])
            delivery_s = queue.delivery_s(last - first + 2, now)
            if soonest_s - delivery_s <= max(delivery_s, END_GAME_GAIN_S_MIN):
                break
            first -= 1
        return range(first, last + 1) or None

    def _ask(self, queue: SourceQueue, chunks: range, now: float | None) -> None:
        if now is not None and not any(other.outstanding for other in self._sources.values()):
            self._rate.resume(now)
        queue.ask(chunks, now)
        # A run is either new or asked of another already, as a whole.
        (self._doubled if chunks.start in self._asked else self._asked).add_range(chunks)

    # --- what came ------------------------------------------------------------------------

    def moved(self, source: str, byte_count: int, now: float) -> None:
        """A piece of a chunk has come. Who delivers slowly is known by it before the chunk is."""
        if source in self._sources:
            self._sources[source].moved(byte_count, now)

    def received(
        self,
        source: str,
        number: int,
        now: float | None = None,
        byte_count: int = CHUNK_BYTES,
    ) -> None:
        """A chunk from `source` was verified and written, or was here already: then it is waste."""
        wasted = self.holds(number)
        self.total.count(byte_count, wasted)
        self._tallies.setdefault(source, Tally()).count(byte_count, wasted)
        queue = self._sources.get(source)
        if queue is not None:
            queue.outstanding.pop(number, None)
            queue.deliver(byte_count, now)
        if now is not None and not wasted:
            self._rate.add(byte_count, now)
        self.hold(number)

    def pointless(self, source: str, now: float) -> tuple[range, ...]:
        """What `source` owes though it is held: to be cancelled, and then `given_back`.

        In runs, in the order asked for. What comes all the same is counted as waste.
        Nothing for a source that is late: it goes on owing until it sends or is stalled.
        """
        queue = self._sources.get(source)
        runs: list[range] = []
        for number in queue.outstanding if queue is not None and not queue.late(now) else ():
            if not self.holds(number):
                continue
            if runs and runs[-1].stop == number:
                runs[-1] = range(runs[-1].start, number + 1)
            else:
                runs.append(range(number, number + 1))
        return tuple(runs)

    def stalled(self, now: float) -> list[str]:
        """Sources that owe something and have sent next to nothing for STALL_S_MAX."""
        return [name for name, queue in self._sources.items() if queue.stalled(now)]

    def rate(self, now: float) -> float | None:
        """Useful bytes a second from all sources together; None before it can be told."""
        return self._rate.at(now)

    def sources(self, now: float) -> list[SourceState]:
        """The sources that are here, and those that delivered something before they left."""
        return [self._state(name, now) for name in {**self._sources, **self._tallies}]

    def _state(self, name: str, now: float) -> SourceState:
        tally = self._tallies.get(name) or Tally()
        queue = self._sources.get(name)
        return SourceState(
            name,
            queue.rate.at(now) if queue is not None else None,
            tally.received_bytes,
            tally.wasted_bytes,
            len(queue.outstanding) if queue is not None else 0,
        )
