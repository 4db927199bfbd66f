"""What this node has to announce in a channel, and how far each peer has been told.

A `Catalogue` is the present state and the latest changes. A `Telling` follows it for
one peer: first it walks, slot by slot, through all that the peer is to be told, then it
passes on changes. Both only ever say what is true at that moment, so that it does not
matter what changes while a walk is under way.
"""

from __future__ import annotations

from array import array

from kachery_p2p.limits import ANNOUNCE_CHANGES_MAX, ANNOUNCE_PREFIXES_MAX
from kachery_p2p.network.prefixes import PrefixSet, pack
from kachery_p2p.network.providers import Delta, slot_of, slot_range


class Catalogue:
    """The prefixes of what this node holds and has granted in one channel."""

    def __init__(self, changes_max: int = ANNOUNCE_CHANGES_MAX) -> None:
        self.held = PrefixSet()
        self.version = 0
        self._changes_max = changes_max
        # The prefixes that the latest changes were about, up to `version`.
        self._changes = array("Q")

    def set(self, prefix: int, held: bool) -> None:
        """Whether this node holds it."""
        if not (self.held.add if held else self.held.discard)(prefix):
            return
        self._changes.append(prefix)
        self.version += 1
        if len(self._changes) >= 2 * self._changes_max:
            del self._changes[: self._changes_max]

    def replace(self, held: PrefixSet) -> None:
        """All is different: everybody must be told anew."""
        self.held = held
        self.version += 1
        self._changes = array("Q")

    def since(self, version: int, count_max: int) -> array[int] | None:
        """What the first changes after `version` were about; None if that is too long ago."""
        first = len(self._changes) - (self.version - version)
        return self._changes[first : first + count_max] if first >= 0 else None


def differences(old: PrefixSet, new: PrefixSet, count_max: int) -> list[int] | None:
    """The prefixes that are in one of the two only; None if there are more than `count_max`."""
    found: list[int] = []
    for one, other in ((old, new), (new, old)):
        for prefix in one:
            if prefix not in other:
                if len(found) == count_max:
                    return None
                found.append(prefix)
    return found


class _Walk:
    """The slot that is being told, or being taken back, and the prefix to go on with."""

    def __init__(self, slot: int, adds: bool) -> None:
        self.slot = slot
        self.adds = adds
        self.at, self.end = slot_range(slot)


class _Draft:
    """An announcement in the making, with room for so many prefixes to add, and to drop."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.add: list[int] = []
        self.drop: list[int] = []

    def room_for(self, *, adds: bool) -> int:
        return self.room - len(self.add if adds else self.drop)

    @property
    def full(self) -> bool:
        return not (self.room_for(adds=True) and self.room_for(adds=False))


class Telling:
    """What one peer was told of a channel's catalogue on one connection."""

    def __init__(
        self, channel: str, catalogue: Catalogue, prefixes_max: int = ANNOUNCE_PREFIXES_MAX
    ) -> None:
        self._channel = channel
        self._catalogue = catalogue
        self._prefixes_max = prefixes_max
        self._spoken = False
        self._seq = 0
        self.restart()

    def follow(self, catalogue: Catalogue) -> None:
        """Tell of this catalogue: another one, if the channel was left and joined again."""
        if catalogue is not self._catalogue:
            self._catalogue = catalogue
            self.restart()

    def restart(self) -> None:
        """Nobody knows what the peer has heard: the next announcement begins anew."""
        self._reset = True
        self._version = self._catalogue.version
        self._told: set[int] = set()
        self._walk: _Walk | None = None
        self._walks_left: list[_Walk] = []
        self._sent: Delta | None = None

    def next(self, slots: frozenset[int]) -> Delta | None:
        """What to announce now, so that the peer knows all of `slots`; None if it does.

        The same again until `delivered` or `restart` is called.
        """
        if self._sent is None:
            draft = self._draft(slots)
            if draft.add or draft.drop or (self._reset and self._spoken):
                self._sent = Delta(
                    self._channel, self._seq, self._reset, pack(draft.add), pack(draft.drop)
                )
                self._spoken = True
        return self._sent

    def delivered(self) -> None:
        """The peer has taken what `next` said."""
        self._sent = None
        self._reset = False
        self._seq += 1

    def _draft(self, slots: frozenset[int]) -> _Draft:
        draft = _Draft(self._prefixes_max)
        while (changes := self._changes(draft)) is not None and len(changes):
            self._version += len(changes)
            for prefix in changes:
                self._draft_change(draft, prefix)
        # Not before: a walk does not see what is gone, and that may not have been passed on yet.
        caught_up = self._version == self._catalogue.version
        while caught_up and not draft.full and (walk := self._find_walk(slots)):
            # Drops are noted before adds: what this message adds, the next one may drop.
            if not walk.adds and draft.add:
                break
            self._draft_walk(draft, walk)
        return draft

    def _changes(self, draft: _Draft) -> array[int] | None:
        """Changes that were not passed on, as many as fit; None after those were too many."""
        room = min(draft.room_for(adds=True), draft.room_for(adds=False))
        changes = self._catalogue.since(self._version, room)
        if changes is None:
            self.restart()
        return changes

    def _draft_change(self, draft: _Draft, prefix: int) -> None:
        slot, held = slot_of(prefix), prefix in self._catalogue.held
        if held and slot in self._told:
            draft.add.append(prefix)
        elif not held and (slot in self._told or (self._walk and self._walk.slot == slot)):
            draft.drop.append(prefix)

    def _find_walk(self, slots: frozenset[int]) -> _Walk | None:
        """The walk to go on with; None if all is told."""
        if self._walk is None and not self._walks_left and self._told != slots:
            untold = [_Walk(slot, adds=True) for slot in sorted(slots - self._told)]
            too_much = [_Walk(slot, adds=False) for slot in sorted(self._told - slots)]
            self._walks_left = too_much[::-1] + untold[::-1]
        if self._walk is None and self._walks_left:
            self._walk = self._walks_left.pop()
            # From here on changes in the slot are passed on, or not.
            (self._told.add if self._walk.adds else self._told.discard)(self._walk.slot)
        return self._walk

    def _draft_walk(self, draft: _Draft, walk: _Walk) -> None:
        room = draft.room_for(adds=walk.adds)
        found = self._catalogue.held.between(walk.at, walk.end, room)
        (draft.add if walk.adds else draft.drop).extend(found)
        if len(found) < room:
            self._walk = None
        else:
            walk.at = found[-1] + 1
