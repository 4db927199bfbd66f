"""Who may be told of which subfeed, in which channel, at this moment.

An own feed is told of in the channels it is shared in; a copy of somebody else's in those in
which it came. In both it takes that the other may read there, and that this node may provide.
"""

from __future__ import annotations

import time

import trio

from kachery_p2p.channels.permissions import PROVIDE, READ, WRITE
from kachery_p2p.content.hashes import FeedId
from kachery_p2p.feeds import register as registers
from kachery_p2p.feeds.bucket_member import BucketMember
from kachery_p2p.feeds.register import Register
from kachery_p2p.feeds.told import SubfeedName
from kachery_p2p.limits import FEED_ROWS_MAX
from kachery_p2p.network.allowance import TokenBucket
from kachery_p2p.network.session import Session
from kachery_p2p.network.sessions import Sessions


def row(name: SubfeedName) -> registers.Subfeed:
    """The subfeed as the register knows it."""
    return registers.Subfeed(name.feed, name.name)


class Permits:
    """What the register says of channels, kept in memory because each request asks for it."""

    def __init__(self, sessions: Sessions, register: Register) -> None:
        self._sessions = sessions
        self._register = register
        self._own: dict[FeedId, frozenset[str]] = {}
        # Of the subfeeds that were asked about lately; none in no channel are remembered too.
        self._copies: dict[SubfeedName, frozenset[str]] = {}

    def load(self) -> None:
        """Read what the register says. In a thread, after each change of own feeds."""
        own = self._register.own_feeds()
        self._own = {feed: frozenset(self._register.channels_of(feed)) for feed in own}
        self._copies.clear()

    def is_own(self, feed: FeedId) -> bool:
        """True if this node has the feed's key."""
        return feed in self._own

    async def may_tell(self, session: Session, channel: str, name: SubfeedName) -> bool:
        """True if the peer may be told of the subfeed in the channel."""
        if not session.may(channel, READ) or not self._sessions.may(channel, PROVIDE):
            return False
        channels = self._own.get(name.feed)
        if channels is None:
            channels = await self._channels_of_copy(name)
        return channel in channels

    def may_tell_own(self, session: Session, channel: str, name: SubfeedName) -> bool:
        """The same for an own subfeed, which is known at once; False for another's."""
        may_read = session.may(channel, READ) and self._sessions.may(channel, PROVIDE)
        return may_read and channel in self._own.get(name.feed, ())

    def may_ask(self, session: Session | BucketMember, channel: str) -> bool:
        """True if the peer may answer in the channel, and this node may be answered."""
        return session.may(channel, PROVIDE) and self._sessions.may(channel, READ)

    async def may_submit(self, session: Session, channel: str, name: SubfeedName) -> bool:
        """True if the peer may append to the own subfeed: the owner and the channel let it."""
        if not self.is_own(name.feed) or not session.may(channel, WRITE):
            return False
        if not await self.may_tell(session, channel, name):
            return False
        may_write = self._register.may_write
        return await trio.to_thread.run_sync(may_write, row(name), session.peer)

    async def is_told_in(self, name: SubfeedName, channel: str) -> bool:
        """True if the subfeed is an own one, or a copy that may be told of in the channel."""
        return self.is_own(name.feed) or channel in await self._channels_of_copy(name)

    async def note_copy(self, name: SubfeedName, channel: str) -> None:
        """Entries of the subfeed came in the channel: it may be told of there."""
        if await self.is_told_in(name, channel):
            return
        note = self._register.note_copy
        await trio.to_thread.run_sync(note, row(name), channel, time.time())
        self._copies.pop(name, None)

    async def _channels_of_copy(self, name: SubfeedName) -> frozenset[str]:
        channels = self._copies.get(name)
        if channels is None:
            found = await trio.to_thread.run_sync(self._register.copied_in, row(name))
            channels = frozenset(found)
            while len(self._copies) >= FEED_ROWS_MAX:
                del self._copies[next(iter(self._copies))]
            self._copies[name] = channels
        return channels


async def wait_for_turn(allowance: TokenBucket, cost: float) -> None:
    """Wait until a peer may cause so much more work, and count it."""
    while True:
        now = trio.current_time()
        wait_s = allowance.wait_s(cost, now)
        if wait_s <= 0:
            break
        # Not less: a sleep too short for the clock would be a loop that never ends.
        await trio.sleep(max(wait_s, 0.001))
    allowance.pay(cost, now)
