"""When the buckets of the channels are asked about feeds: when nobody else is there who knows.

A bucket tells no news by itself. It is asked when somebody looks for a feed, a moment after the
members were, and then again and again while somebody waits or entries are missing; but not while
the author is connected, who knows more, and tells it sooner.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable

import trio

from kachery_p2p.errors import KacheryError, PeerError
from kachery_p2p.feeds.bucket_member import BucketMember, Places
from kachery_p2p.feeds.subfeed import Subfeed
from kachery_p2p.feeds.subfeeds import Subfeeds
from kachery_p2p.feeds.told import SubfeedName
from kachery_p2p.limits import (
    BUCKET_LOG_MEMBERS_S,
    BUCKET_LOG_POLL_S,
    BUCKET_LOG_POLLS_MAX,
    BUCKET_LOG_POLLS_PER_S,
    FEED_LOOK_S,
)
from kachery_p2p.network.sessions import Sessions

log = logging.getLogger(__name__)

Ask = Callable[[BucketMember, Subfeed], Awaitable[object]]


class BucketLooking:
    """Asks the buckets in `places` by `ask`, as members are asked (`following`)."""

    def __init__(
        self, places: Places | None, sessions: Sessions, subfeeds: Subfeeds, ask: Ask
    ) -> None:
        self._places = places
        self._sessions = sessions
        self._subfeeds = subfeeds
        self._ask = ask
        self._members: dict[tuple[str, str], BucketMember] = {}
        self._busy: set[SubfeedName] = set()
        # When they were asked last. Of subfeeds in use only, so it is as bounded as those.
        self._asked_at: dict[SubfeedName, float] = {}
        self._limit = trio.CapacityLimiter(BUCKET_LOG_POLLS_MAX)
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look again for what is waited for, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                while True:
                    await trio.sleep(FEED_LOOK_S)
                    if self._places is not None and self._places.of_channels():
                        await self._look_again(nursery)
            finally:
                self._nursery = None

    def look_for(self, names: Iterable[SubfeedName]) -> None:
        """Ask about these, unless they are being asked about; a member's answer may come first."""
        if self._nursery is None or self._places is None or not self._places.of_channels():
            return
        for name in names:
            if name not in self._busy:
                self._busy.add(name)
                subfeed = self._subfeeds.open_now(name)
                if subfeed is not None:
                    # From now on, so that nobody finds that nobody is asked.
                    subfeed.asking_buckets += 1
                self._nursery.start_soon(self._look, name, subfeed)

    def look_now(self, subfeed: Subfeed) -> None:
        """Somebody reads the subfeed: ask about it if that was a while ago."""
        if self._is_due(subfeed, trio.current_time()):
            self.look_for([subfeed.name])

    async def _look_again(self, nursery: trio.Nursery) -> None:
        now = trio.current_time()
        names = {subfeed.name for subfeed in self._subfeeds}
        self._asked_at = {name: at for name, at in self._asked_at.items() if name in names}
        self._refresh()
        for subfeed in self._subfeeds:
            is_wanted = subfeed.is_waited_for or subfeed.replica.is_behind
            if is_wanted and not subfeed.is_catching_up and self._is_due(subfeed, now):
                self.look_for([subfeed.name])
                await trio.sleep(1 / BUCKET_LOG_POLLS_PER_S)

    def _is_due(self, subfeed: Subfeed, now: float) -> bool:
        if subfeed.replica.log.owned and not self._subfeeds.needs_others(subfeed):
            return False
        asked_at = self._asked_at.get(subfeed.name)
        return asked_at is None or now >= asked_at + BUCKET_LOG_POLL_S

    async def _look(self, name: SubfeedName, expected: Subfeed | None) -> None:
        self._asked_at[name] = trio.current_time()
        try:
            subfeed = expected or await self._subfeeds.open(name)
            members = self._refresh()
            await self._members_first(subfeed)
            for member in members:
                # Its news are told by it: there is nothing newer in the bucket.
                if not subfeed.has_author:
                    await self._look_at(member, subfeed)
        except KacheryError as error:
            log.warning("feed %s: %s", name.feed[:16], error)
        finally:
            self._asked_at[name] = trio.current_time()
            self._busy.discard(name)
            if expected is not None:
                expected.asking_buckets -= 1
                expected.tell_changed()

    async def _members_first(self, subfeed: Subfeed) -> None:
        """Wait a moment for connected members, and for those who are about to connect."""
        with trio.move_on_after(BUCKET_LOG_MEMBERS_S):
            while not subfeed.has_author and (subfeed.asking or not self._sessions.settled):
                changed = subfeed.changed
                with trio.move_on_after(FEED_LOOK_S):
                    await changed.wait()

    async def _look_at(self, member: BucketMember, subfeed: Subfeed) -> None:
        async with self._limit:
            try:
                await self._ask(member, subfeed)
                if member in subfeed.sources:
                    subfeed.bucket_fault = None
            except PeerError as error:
                subfeed.bucket_fault = str(error)
                log.info("feed %s: %s", subfeed.name.feed[:16], error)

    def _refresh(self) -> list[BucketMember]:
        """The buckets as the settings are now; those that are gone are no sources any more."""
        assert self._places is not None
        members = {}
        for place, channel in self._places.of_channels():
            known = self._members.get((place.node, channel))
            if known is None or known.place is not place:
                known = BucketMember(place, channel, self._places)
            members[place.node, channel] = known
        for key, old in self._members.items():
            if members.get(key) is not old:
                for subfeed in self._subfeeds:
                    subfeed.drop_source(old)
        self._members = members
        return list(members.values())
