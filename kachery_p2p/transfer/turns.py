"""Of the chunks that a source can be asked for, which come first. Pure.

In order, unless some of the sources have only a part: then those with the fewest holders go
first, so that what one alone has is spread before it leaves. While others are loading the
blob too, a holder of all of it is asked for what none of them has: each of us begins with
other chunks, so that it need send each but once, and helps with those of the others, the
last ones first, when its own are done. Nobody waits for what another was to bring.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Mapping
from typing import NamedTuple

from kachery_p2p.limits import DEALT_CHUNKS
from kachery_p2p.transfer.chunk_set import first_run, last_run
from kachery_p2p.transfer.source_queue import SourceQueue

# Holders of a chunk are counted up to here; what more have is not rare.
_RARE_HOLDERS_MAX = 3


class Chunks(NamedTuple):
    """Some chunks of a window from `start` to `stop` - 1, as bits."""

    bits: int
    start: int
    stop: int


def next_run(
    chunks: Chunks,
    queue: SourceQueue,
    sources: Mapping[str, SourceQueue],
    me: str,
    length_max: int,
) -> range:
    """Which of `chunks`, of which there are some, to ask of `queue`, one of the `sources`."""
    start, stop = chunks.start, chunks.stop
    loading = {name: other for name, other in sources.items() if other.loading}
    fresh = chunks.bits if loading and not queue.loading else 0
    for other in loading.values():
        fresh &= ~other.window(start, stop)
    if not fresh:
        return first_run(_rarest(chunks, sources.values()), start, length_max)
    ours = fresh & _dealt(start, stop, loading, me)
    if ours:
        return first_run(ours, start, length_max)
    return last_run(fresh, start, min(length_max, DEALT_CHUNKS))


def _dealt(start: int, stop: int, loading: Collection[str], me: str) -> int:
    """The chunks of a window that are ours to begin with, among all who are loading the blob.

    Whoever knows the same members deals alike, and who does not is only less lucky.
    """
    place, count = bisect.bisect_left(sorted(loading), me), len(loading) + 1
    ours = 0
    for turn in range(start // DEALT_CHUNKS, (stop - 1) // DEALT_CHUNKS + 1):
        if turn % count == place:
            first = max(turn * DEALT_CHUNKS - start, 0)
            ours |= (1 << ((turn + 1) * DEALT_CHUNKS - start)) - (1 << first)
    return ours


def _rarest(chunks: Chunks, sources: Collection[SourceQueue]) -> int:
    """Of the chunks those with the fewest holders."""
    parts = [queue for queue in sources if queue.has is not None]
    if not parts:
        return chunks.bits
    full = len(sources) - len(parts)
    # By i: the chunks that more than i sources have.
    more = [-1 if full > i else 0 for i in range(_RARE_HOLDERS_MAX + 1)]
    for queue in parts:
        has = queue.window(chunks.start, chunks.stop)
        for i in range(_RARE_HOLDERS_MAX, 0, -1):
            more[i] |= more[i - 1] & has
        more[0] |= has
    return next((chunks.bits & ~common for common in more if chunks.bits & ~common), chunks.bits)
