"""News that bring their entries along: what a copy comes to with them, before anything is kept."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from kachery_p2p.errors import LogError
from kachery_p2p.feeds.told import Told
from kachery_p2p.limits import FEED_FORESEEN_BYTES_MAX, FEED_FORESEEN_ENTRIES_MAX
from kachery_p2p.log.tree import Frontier, leaf_hashes

if TYPE_CHECKING:
    from kachery_p2p.feeds.replica import Replica


class Grown(NamedTuple):
    """What is missing of a copy, and fits the root of the head that was told with it."""

    first: int
    entries: Sequence[bytes]
    # Those of the copy with the entries.
    frontier: Frontier
    stored: list[bytes]


def grown_by(replica: Replica, told: Told) -> Grown | None:
    """What a copy comes to if nothing is left to be asked for; the head was not verified."""
    log, head = replica.log, told.head
    first, complete = log.size, replica.shown == log.signed
    entries = told.entries[first - told.base :] if told.base <= first else ()
    if head is None or not entries or not complete or log.owned:
        return None
    if first + len(entries) != head.size:
        return None
    frontier, stored = log.frontier().extended(leaf_hashes(entries))
    # What was here is what was believed, so the head needs no other proof than its root.
    return Grown(first, entries, frontier, stored) if frontier.root == head.root else None


def foresee(replica: Replica, told: Told) -> Grown | None:
    """The same, verified, by who works on the replica, and without a look at the disk.

    None also if that would take long, or anything else is told or was: `Replica.hear` sees to it.
    """
    nothing = (None, ())
    if told.head is None or (told.fork, told.tombstones) != nothing or replica.ending != nothing:
        return None
    entries = told.entries
    if len(entries) > FEED_FORESEEN_ENTRIES_MAX or sum(map(len, entries)) > FEED_FORESEEN_BYTES_MAX:
        return None
    grown = grown_by(replica, told)
    if grown is not None:
        with contextlib.suppress(LogError):
            told.head.verify(replica.log.log)
            return grown
    return None
