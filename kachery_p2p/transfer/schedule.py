"""Decide which chunks to ask a source for next. Pure: told what happened, answers what to do.

A blob's SHA-1 can only be computed in order, so chunks are asked for in order inside a
window ahead of the first one missing: what arrives is hashed from memory or the page
cache, and a failed source never leaves holes further apart than the window. A *want* is
a run of chunks somebody waits for; the newest want goes first, so that a reader of a few
bytes passes a running download of the whole blob.
"""

from __future__ import annotations

from kachery_p2p.limits import RANGE_CHUNKS_MAX, WINDOW_CHUNKS_MAX

_MISSING, _ASKED, _HELD = b"\0", b"\1", b"\2"


class Want:
    """A run of chunks somebody waits for. `frontier` is its first chunk that is not held yet."""

    def __init__(self, chunks: range) -> None:
        self.chunks = chunks
        self.frontier = chunks.start

    @property
    def satisfied(self) -> bool:
        return self.frontier >= self.chunks.stop


class ChunkSchedule:
    """What is held, asked and missing of one blob: one byte a chunk, O(window) a decision."""

    def __init__(self, chunk_count: int) -> None:
        self._states = bytearray(_MISSING * chunk_count)
        self._asked: dict[str, set[int]] = {}
        self._wants: list[Want] = []
        self.held_count = 0

    def want(self, chunks: range) -> Want:
        """Ask for a run of chunks; drop it again with `unwant`."""
        wanted = Want(chunks)
        self._wants.append(wanted)
        self._advance(wanted)
        return wanted

    def unwant(self, wanted: Want) -> None:
        self._wants.remove(wanted)

    @property
    def satisfied(self) -> bool:
        """True when nobody waits for a chunk that is not held."""
        return all(wanted.satisfied for wanted in self._wants)

    def holds(self, number: int) -> bool:
        return self._states[number : number + 1] == _HELD

    def next_for(self, source: str) -> range | None:
        """The chunks to request from `source` now, or None when all that is wanted is asked for."""
        for wanted in reversed(self._wants):
            chunks = self._next_run(wanted)
            if chunks is not None:
                self._mark(chunks, _ASKED)
                self._asked.setdefault(source, set()).update(chunks)
                return chunks
        return None

    def received(self, source: str, number: int) -> None:
        """A chunk from `source` was verified and written."""
        self._asked.get(source, set()).discard(number)
        self.hold(number)

    def hold(self, number: int) -> None:
        """The chunk is on disk, verified, from wherever it came."""
        if not self.holds(number):
            self._mark(range(number, number + 1), _HELD)
            self.held_count += 1
        for wanted in self._wants:
            self._advance(wanted)

    def source_left(self, source: str) -> None:
        """Whatever `source` still owed us may be asked of someone else."""
        for number in self._asked.pop(source, set()):
            if not self.holds(number):
                self._mark(range(number, number + 1), _MISSING)

    def _next_run(self, wanted: Want) -> range | None:
        stop = min(wanted.chunks.stop, wanted.frontier + WINDOW_CHUNKS_MAX)
        first = self._states.find(_MISSING, wanted.frontier, stop)
        if first < 0:
            return None
        last = first + 1
        while last < min(stop, first + RANGE_CHUNKS_MAX) and self._states[last] == _MISSING[0]:
            last += 1
        return range(first, last)

    def _mark(self, chunks: range, state: bytes) -> None:
        self._states[chunks.start : chunks.stop] = state * len(chunks)

    def _advance(self, wanted: Want) -> None:
        while not wanted.satisfied and self.holds(wanted.frontier):
            wanted.frontier += 1
