"""Telling those who follow a subfeed what is new of it.

An owner tells all of them at once. Who only heard it from somebody else tells a few at once, and
the rest after a while, if they have not said meanwhile that they know: so news reach everybody
who follows, also past an owner that is not connected to all, and n readers cause some 3 n
messages instead of n squared. A fork or a tombstone is told to everybody at once. Each follower
is told one thing at a time: one that is slow hears the newest when it has taken in the last.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

import trio
import trio.lowlevel

from kachery_p2p.errors import KacheryError, PeerBusyError, PeerError
from kachery_p2p.feeds.permits import Permits
from kachery_p2p.feeds.subfeed import Subfeed
from kachery_p2p.feeds.told import SubfeedName, Told
from kachery_p2p.limits import (
    FEED_FOLLOWERS_MAX,
    FEED_FOLLOWERS_PER_PEER_MAX,
    FEED_RELAY_REST_S,
    FEED_RELAY_S,
    FEED_RELAYED_AT_ONCE,
    FEED_REST_S,
    FEED_TOLD_NOW,
    REQUEST_S_MAX,
)
from kachery_p2p.network.session import Asked, Session

log = logging.getLogger(__name__)


class _Follower:
    """A session that follows a subfeed: in which channel, and what it knows."""

    def __init__(self, channel: str, size: int) -> None:
        self.channel = channel
        self.size = size
        self.ending: object = (None, ())
        self.is_told = False


class _Telling(NamedTuple):
    """News that are on their way to a follower, and what it knows when it has answered."""

    asked: Asked
    size: int
    ending: object


class Spreading:
    """Who follows what of this node."""

    def __init__(self, permits: Permits) -> None:
        self._permits = permits
        # How many sessions follow a subfeed, all subfeeds together.
        self.total = 0
        self._followers: dict[SubfeedName, dict[Session, _Follower]] = {}
        self._followed: dict[Session, set[SubfeedName]] = {}
        self._relaying: dict[SubfeedName, Subfeed] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell news, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None
                self._relaying.clear()

    # --- who follows ---------------------------------------------------------------------------

    def add(self, name: SubfeedName, session: Session, channel: str, size: int) -> bool:
        """A session follows; False if it, or all together, follow too much."""
        followed = self._followed.setdefault(session, set())
        if name not in followed:
            if len(followed) >= FEED_FOLLOWERS_PER_PEER_MAX or self.total >= FEED_FOLLOWERS_MAX:
                return False
            followed.add(name)
            self.total += 1
        self._followers.setdefault(name, {})[session] = _Follower(channel, size)
        return True

    def remove(self, name: SubfeedName, session: Session) -> None:
        """A session follows no more."""
        followers = self._followers.get(name, {})
        if followers.pop(session, None) is not None:
            self.total -= 1
        if not followers:
            self._followers.pop(name, None)
        followed = self._followed.get(session, set())
        followed.discard(name)
        if not followed:
            self._followed.pop(session, None)

    def forget(self, session: Session) -> None:
        """The session has ended."""
        for name in list(self._followed.get(session, ())):
            self.remove(name, session)

    def note_known(self, name: SubfeedName, session: Session, size: int) -> None:
        """A session told us a head of this size: it need not be told."""
        follower = self._followers.get(name, {}).get(session)
        if follower is not None:
            follower.size = max(follower.size, size)

    def count(self, name: SubfeedName) -> int:
        """How many sessions follow the subfeed."""
        return len(self._followers.get(name, ()))

    # --- telling -------------------------------------------------------------------------------

    def spread(self, subfeed: Subfeed) -> None:
        """Tell who does not know what is known here: at once, or in a while."""
        if self._nursery is None or subfeed.name not in self._followers:
            return
        ending = subfeed.replica.ending
        waiting = False
        for number, (session, follower) in enumerate(self._unknowing(subfeed)):
            if subfeed.replica.log.owned or follower.ending != ending:
                # Whoever appended waits while these are told.
                self._begin(subfeed, session, follower, now=number < FEED_TOLD_NOW)
            else:
                waiting = True
        if waiting and subfeed.name not in self._relaying:
            self._relaying[subfeed.name] = subfeed
            self._nursery.start_soon(self._relay, subfeed)

    async def _relay(self, subfeed: Subfeed) -> None:
        """Tell what others told us: to a few at once, to the rest later."""
        try:
            await trio.lowlevel.checkpoint()
            for session, follower in list(self._unknowing(subfeed))[:FEED_RELAYED_AT_ONCE]:
                self._begin(subfeed, session, follower)
            await trio.sleep(FEED_RELAY_S)
            self._relaying.pop(subfeed.name, None)
            await trio.sleep(FEED_RELAY_REST_S)
            for session, follower in list(self._unknowing(subfeed)):
                self._begin(subfeed, session, follower)
        finally:
            if self._relaying.get(subfeed.name) is subfeed:
                del self._relaying[subfeed.name]

    def _unknowing(self, subfeed: Subfeed) -> Iterator[tuple[Session, _Follower]]:
        """Followers that do not know all that is known here."""
        shown = subfeed.replica.shown
        size = 0 if shown is None else shown.size
        ending = subfeed.replica.ending
        for session, follower in list(self._followers.get(subfeed.name, {}).items()):
            if follower.size < size or follower.ending != ending:
                yield session, follower

    def _begin(
        self, subfeed: Subfeed, session: Session, follower: _Follower, *, now: bool = False
    ) -> None:
        if not follower.is_told and self._nursery is not None:
            follower.is_told = True
            telling = self._tell_now(subfeed, session, follower) if now else None
            self._nursery.start_soon(self._tell, subfeed, session, follower, telling)

    async def _tell(
        self, subfeed: Subfeed, session: Session, follower: _Follower, telling: _Telling | None
    ) -> None:
        """Tell one follower until it knows all that is known here."""
        try:
            if telling is not None:
                await self._hear_answer(session, follower, telling)
            while self._is_behind(subfeed, session, follower):
                if not await self._permits.may_tell(session, follower.channel, subfeed.name):
                    # It was removed from the channel, or the feed is not shared there any more.
                    self.remove(subfeed.name, session)
                    return
                await self._tell_once(subfeed, session, follower)
        except PeerBusyError:
            follower.is_told = False
            await trio.sleep(FEED_REST_S)
            self.spread(subfeed)
        except PeerError as error:
            # It asks again when it wants to know.
            log.debug("node %s took no news: %s", session.peer[:16], error)
            self.remove(subfeed.name, session)
        except KacheryError as error:
            log.warning("feed %s: cannot tell news: %s", subfeed.name.feed[:16], error)
        finally:
            follower.is_told = False

    def _tell_now(self, subfeed: Subfeed, session: Session, follower: _Follower) -> _Telling | None:
        """Send what is in memory of an own subfeed without waiting for a task's turn, if it can be.

        A turn of the loop takes as long as making the message, and news would wait for several.
        """
        if not self._permits.may_tell_own(session, follower.channel, subfeed.name):
            return None
        ending, told = subfeed.replica.ending, _told_from_memory(subfeed, follower.size)
        if told is None:
            return None
        body = {**subfeed.name.body(follower.channel), **told.news}
        try:
            asked = session.ask("feed news", body)
        except PeerError:
            # Its task finds out the same.
            return None
        return None if asked is None else _Telling(asked, _size_of(told), ending)

    async def _hear_answer(self, session: Session, follower: _Follower, telling: _Telling) -> None:
        await session.answer_to(telling.asked, REQUEST_S_MAX)
        follower.ending = telling.ending
        follower.size = max(follower.size, telling.size)

    async def _tell_once(self, subfeed: Subfeed, session: Session, follower: _Follower) -> None:
        ending = subfeed.replica.ending
        told = _told_from_memory(subfeed, follower.size)
        if told is None:
            told = await trio.to_thread.run_sync(subfeed.replica.tell_news, follower.size)
        body = {**subfeed.name.body(follower.channel), **told.news}
        await session.request("feed news", body, REQUEST_S_MAX)
        follower.ending = ending
        follower.size = max(follower.size, _size_of(told))

    def _is_behind(self, subfeed: Subfeed, session: Session, follower: _Follower) -> bool:
        now = self._followers.get(subfeed.name, {}).get(session)
        shown = subfeed.replica.shown
        size = 0 if shown is None else shown.size
        return now is follower and (
            follower.size < size or follower.ending != subfeed.replica.ending
        )


def _told_from_memory(subfeed: Subfeed, base: int) -> Told | None:
    """News with entries that have just come. They are their own proof for who has those before."""
    shown = subfeed.replica.shown
    if shown is None or not base < shown.size:
        return None
    entries = subfeed.recent(base, shown.size - base)
    if len(entries) != shown.size - base:
        return None
    fork, tombstones = subfeed.replica.ending
    return Told(shown, fork, tombstones, base, (), entries)


def _size_of(told: Told) -> int:
    return 0 if told.head is None else told.head.size
