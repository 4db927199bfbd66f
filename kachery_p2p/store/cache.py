"""What of a store is only a copy of what others have, and what of that was used least recently.

Each object has one state:

    pinned      the user said that it stays
    linked      a file of the user's stands for it too
    stored      somebody on this computer stored or shared it, or nobody knows where it came from
    fetched     it came from a member of a channel, and nobody here stored or shared it since

Only `fetched` is a cache: a positive record says that others had it. Any doubt is `stored`.

The time of the last use is that of the file system, the later of its times of access and of
change: whoever reads a file may do so without us. Linux notes an access once a day if at all
(`relatime`), and never with `noatime`: then what was stored first goes first.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.store.listing import Listed

PINNED, LINKED, STORED, FETCHED = "pinned", "linked", "stored", "fetched"


class Cached(NamedTuple):
    """An object, or a linked file, and why it may or may not be removed."""

    listed: Listed
    state: str
    # Seconds since 1970.
    used: float


class Known(NamedTuple):
    """What is known of the contents of a store."""

    pinned: set[ContentHash]
    linked: set[ContentHash]
    # That came from members, and that nobody here shares.
    fetched: set[ContentHash]
    # Of files of the user's that were stored.
    sources: set[ContentHash]

    def state_of(self, listed: Listed) -> str:
        """The state of an object."""
        content = listed.content
        if content in self.pinned:
            return PINNED
        if listed.linked or content in self.linked:
            return LINKED
        return FETCHED if content in self.fetched - self.sources else STORED


def describe(objects: Iterable[Listed], known: Known) -> list[Cached]:
    """All of them, the least recently used first. Those that vanish meanwhile are left out."""
    return sorted(_described(objects, known), key=lambda one: (one.used, one.listed.content))


def _described(objects: Iterable[Listed], known: Known) -> Iterator[Cached]:
    known = known._replace(fetched=known.fetched - known.sources, sources=set())
    for listed in objects:
        used = used_at(listed.path)
        if used is not None:
            yield Cached(listed, known.state_of(listed), used)
        elif listed.linked:  # on a disk that is not mounted
            yield Cached(listed, LINKED, 0.0)


def used_at(path: str) -> float | None:
    """When the file was used last; None if it is gone."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return max(status.st_atime, status.st_ctime)


class Plan(NamedTuple):
    """What to remove, in this order, and what there is then."""

    remove: list[Cached]
    # Of all objects, which take room: now, and then.
    bytes_before: int
    bytes_after: int


def plan(cached: Iterable[Cached], bytes_max: int, *, stored_too: bool = False) -> Plan:
    """What to remove so that objects take at most `bytes_max`, or as little more as is possible.

    `stored_too`: also what was stored here, which others may not have; never what is
    pinned or linked.
    """
    objects = [one for one in cached if not one.listed.linked]
    before = size = sum(one.listed.size for one in objects)
    allowed = (FETCHED, STORED) if stored_too else (FETCHED,)
    chosen = []
    # All that was fetched goes before anything that was stored here.
    for state in allowed:
        for one in objects:
            if size > bytes_max and one.state == state and one.listed.size:
                chosen.append(one)
                size -= one.listed.size
    return Plan(chosen, before, size)
