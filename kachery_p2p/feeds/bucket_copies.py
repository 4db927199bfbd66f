"""What of the feeds on this node is to lie in the buckets of its channels.

Own feeds in the channels where they are shared, and copies of others' in those where they came,
which the node may serve there: what a bucket holds is what a member could be told.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import trio

from kachery_p2p.bucket.log_book import FEED
from kachery_p2p.bucket.log_mirror import LogCopy
from kachery_p2p.errors import LogError, ProofError
from kachery_p2p.feeds.permits import row
from kachery_p2p.feeds.register import Register
from kachery_p2p.feeds.replica import Replica
from kachery_p2p.feeds.subfeeds import Subfeeds
from kachery_p2p.feeds.told import SubfeedName
from kachery_p2p.feeds.tombstones import TOMBSTONE_BYTES, Tombstone
from kachery_p2p.log.heads import LogId, SignedHead


class Shown(NamedTuple):
    """A subfeed that is to lie in the bucket of a channel."""

    name: SubfeedName
    channel: str
    # False for a copy of another's.
    own: bool


class FeedCopies:
    """The subfeeds of one node, as its buckets are to have them."""

    def __init__(self, register: Register, subfeeds: Subfeeds) -> None:
        self._register = register
        self._subfeeds = subfeeds

    def listed(self, channels: Collection[str]) -> list[Shown]:
        """All that are to lie in the buckets of these channels. In a thread."""
        found: list[Shown] = []
        for feed in self._register.own_feeds():
            shared = [one for one in self._register.channels_of(feed) if one in channels]
            after = None
            while shared and (some := self._register.subfeeds(feed, after)):
                after = some[-1].name_hash
                names = [SubfeedName(feed, one.name_hash) for one in some]
                found += [Shown(name, channel, True) for name in names for channel in shared]
        for one in self._register.followed():
            name = SubfeedName(one.feed, one.name_hash)
            if not self._register.is_own(one.feed):
                came_in = self._register.copied_in(row(name))
                found += [Shown(name, one, False) for one in came_in if one in channels]
        return found

    def in_use(self) -> set[SubfeedName]:
        """The subfeeds that somebody uses now: one that is new is among them."""
        return {subfeed.name for subfeed in self._subfeeds}

    def state(self, name: SubfeedName) -> object | None:
        """Differs when there is something to be put there; None if that is not known at once."""
        subfeed = self._subfeeds.open_now(name)
        if subfeed is None:
            return None
        replica = subfeed.replica
        return replica.log.size, replica.readable, replica.ending

    async def copy(self, name: SubfeedName) -> LogCopy | None:
        """The subfeed as it is now; None while there is nothing whole of it."""
        subfeed = await self._subfeeds.open_existing(name)
        if subfeed is None:
            return None
        return await trio.to_thread.run_sync(_copied, subfeed.replica, name)


def _copied(replica: Replica, name: SubfeedName) -> LogCopy | None:
    head = _head(replica)
    if head is None or (not head.size and not replica.tombstones):
        return None
    fork, log = replica.log.fork, replica.log
    return LogCopy(
        head=head,
        end=min(head.size, replica.readable),
        entries=log.entries,
        read_hash=log.read_hash,
        fork=b"" if fork is None else fork.encode(),
        ending=b"".join(tombstone.encode() for tombstone in replica.tombstones),
        is_ending=lambda ending: _is_ending(name.log, ending),
        kind=FEED,
        name=f"feed://{name.feed}/~{name.name}",
    )


def _head(replica: Replica) -> SignedHead | None:
    """The head to be shown: of a forked feed the one of the proof whose entries are here.

    Nothing behind it is believed by anybody.
    """
    fork, log = replica.log.fork, replica.log
    for head in () if fork is None else (fork.first, fork.second):
        if head.size <= log.size and log.root_at(head.size) == head.root:
            return head
    return replica.shown


def _is_ending(which: LogId, ending: bytes) -> bool:
    """True for tombstones of the subfeed, two at most, or none."""
    if len(ending) > 2 * TOMBSTONE_BYTES:
        return False
    try:
        for at in range(0, len(ending), TOMBSTONE_BYTES):
            Tombstone.decode(ending[at : at + TOMBSTONE_BYTES]).verify(which)
    except (LogError, ProofError):
        return False
    return True
