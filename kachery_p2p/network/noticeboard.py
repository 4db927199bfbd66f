"""What an introducer keeps: sealed entries under tags, bounded, and shared out fairly.

Pure. Nobody is asked who they are, so the only thing that an abuser cannot have any
number of is places to come from (an IP, or a /64 of IPv6). When the board is full, the
oldest entry of the place that has most goes, the newcomer's own place included; so
whoever floods it takes down its own. The same rule holds within one tag. An entry is
replaced only by the node that left it, as the secure channel proved it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Generic, NamedTuple, TypeVar

from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    RENDEZVOUS_ENTRIES_MAX,
    RENDEZVOUS_ENTRIES_PER_NODE_MAX,
    RENDEZVOUS_ENTRIES_PER_TAG_MAX,
    RENDEZVOUS_SWEEP_S,
)

Item = TypeVar("Item")


class Notice(NamedTuple):
    """One entry on the board."""

    sealed: bytes
    expires_at: float
    place: str


class Noticeboard:
    """Entries by tag and by the node that left them."""

    def __init__(self) -> None:
        # The oldest first, in each.
        self._tags: dict[bytes, dict[NodeId, Notice]] = {}
        self._left_by: dict[NodeId, dict[bytes, None]] = {}
        self._crowd: Crowd[tuple[bytes, NodeId]] = Crowd()
        self._swept_at = float("-inf")

    def __len__(self) -> int:
        return len(self._crowd)

    def put(self, tag: bytes, node: NodeId, notice: Notice, now: float) -> None:
        """Keep what `node` left under `tag`, instead of what it left there before."""
        self._sweep(now)
        self._remove(tag, node)
        self._tags.setdefault(tag, {})[node] = notice
        self._left_by.setdefault(node, {})[tag] = None
        self._crowd.add((tag, node), notice.place)
        self._make_room(tag, node)

    def under(self, tag: bytes, now: float) -> list[bytes]:
        """The entries that are under `tag`."""
        return [n.sealed for n in self._tags.get(tag, {}).values() if n.expires_at > now]

    def _make_room(self, tag: bytes, node: NodeId) -> None:
        if len(self._left_by[node]) > RENDEZVOUS_ENTRIES_PER_NODE_MAX:
            self._remove(next(iter(self._left_by[node])), node)
        if len(self._tags[tag]) > RENDEZVOUS_ENTRIES_PER_TAG_MAX:
            self._remove(tag, _oldest_of_most_crowded(self._tags[tag]))
        if len(self._crowd) > RENDEZVOUS_ENTRIES_MAX:
            self._remove(*self._crowd.oldest_of_most_crowded())

    def _sweep(self, now: float) -> None:
        if now < self._swept_at + RENDEZVOUS_SWEEP_S:
            return
        self._swept_at = now
        expired = [
            (tag, node)
            for tag, notices in self._tags.items()
            for node, notice in notices.items()
            if notice.expires_at <= now
        ]
        for tag, node in expired:
            self._remove(tag, node)

    def _remove(self, tag: bytes, node: NodeId) -> None:
        notices = self._tags.get(tag, {})
        if notices.pop(node, None) is None:
            return
        self._crowd.remove((tag, node))
        if not notices:
            del self._tags[tag]
        del self._left_by[node][tag]
        if not self._left_by[node]:
            del self._left_by[node]


def _oldest_of_most_crowded(notices: dict[NodeId, Notice]) -> NodeId:
    counts = Counter(notice.place for notice in notices.values())
    most = max(counts.values())
    return next(node for node, notice in notices.items() if counts[notice.place] == most)


class Crowd(Generic[Item]):
    """Items and where each comes from; every answer takes constant time."""

    def __init__(self) -> None:
        self._place_of: dict[Item, str] = {}
        self._items: dict[str, OrderedDict[Item, None]] = {}
        # Places by how many items they have, who came to that number first first.
        self._places: dict[int, OrderedDict[str, None]] = {}
        self._most = 0

    def __len__(self) -> int:
        return len(self._place_of)

    def add(self, item: Item, place: str) -> None:
        """`item`, which is new, came from `place`."""
        items = self._items.setdefault(place, OrderedDict())
        items[item] = None
        self._place_of[item] = place
        self._recount(place, len(items) - 1, len(items))
        self._most = max(self._most, len(items))

    def remove(self, item: Item) -> None:
        place = self._place_of.pop(item)
        items = self._items[place]
        del items[item]
        self._recount(place, len(items) + 1, len(items))
        if not items:
            del self._items[place]
        # The place that had most now has one less, so the next number down is taken.
        if self._most not in self._places:
            self._most = len(items)

    def oldest_of_most_crowded(self) -> Item:
        """Of the place with most items the oldest; there must be one."""
        place = next(iter(self._places[self._most]))
        return next(iter(self._items[place]))

    def _recount(self, place: str, before: int, after: int) -> None:
        if before:
            del self._places[before][place]
            if not self._places[before]:
                del self._places[before]
        if after:
            self._places.setdefault(after, OrderedDict())[place] = None
