"""The subfeeds that are in use: opened when somebody asks for one, forgotten when nobody does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import trio

from kachery_p2p.content.hashes import FeedId
from kachery_p2p.feeds import keys
from kachery_p2p.feeds.keys import FeedKey
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.log_files import LogFiles
from kachery_p2p.feeds.register import Register
from kachery_p2p.feeds.replica import Replica
from kachery_p2p.feeds.subfeed import Subfeed
from kachery_p2p.feeds.told import SubfeedName
from kachery_p2p.limits import FEED_IDLE_MAX
from kachery_p2p.network.session import Session


class Subfeeds:
    """The subfeeds of the node whose keys lie below `config_dir`."""

    def __init__(self, config_dir: str, files: LogFiles, register: Register) -> None:
        self._config_dir = config_dir
        self._files = files
        self._register = register
        self._open: dict[SubfeedName, Subfeed] = {}
        self._opening: dict[SubfeedName, trio.Event] = {}
        self._keys: dict[FeedId, tuple[FeedKey | None, bool]] = {}
        # Foreign subfeeds that are kept up to date; those lately asked for last.
        self.followed: dict[SubfeedName, None] = {}

    def __iter__(self) -> Iterator[Subfeed]:
        return iter(tuple(self._open.values()))

    def wanted(self) -> list[SubfeedName]:
        """The subfeeds of which members are asked: followed ones, and own ones that must know."""
        own = (s for s in self if s.replica.log.owned and self.needs_others(s))
        return [*self.followed, *(subfeed.name for subfeed in own)]

    @staticmethod
    def needs_others(subfeed: Subfeed) -> bool:
        """True for an own subfeed that may not be appended to before others were heard."""
        return subfeed.replica.log.restored or subfeed.replica.is_behind

    def open_now(self, name: SubfeedName) -> Subfeed | None:
        """The subfeed if it is in use."""
        return self._open.get(name)

    async def open(self, name: SubfeedName) -> Subfeed:
        """The subfeed, begun on the disk if it is not there. Raises what `LogFile` raises."""
        found = await self._opened(name, self._made)
        assert found is not None
        return found

    async def open_existing(self, name: SubfeedName) -> Subfeed | None:
        """The subfeed if there is something of it on the disk."""
        return await self._opened(name, self._found)

    async def _opened(
        self, name: SubfeedName, find: Callable[[SubfeedName], LogFile | None]
    ) -> Subfeed | None:
        while name in self._opening:
            await self._opening[name].wait()
        if name in self._open:
            return self._open[name]
        done = self._opening[name] = trio.Event()
        try:
            log = await trio.to_thread.run_sync(find, name)
            if log is None:
                return None
            self._forget_idle()
            self._open[name] = Subfeed(name, Replica(log))
            return self._open[name]
        finally:
            del self._opening[name]
            done.set()

    def close(self, name: SubfeedName) -> None:
        """Forget the subfeed: it is deleted, or its key has come."""
        self.followed.pop(name, None)
        subfeed = self._open.pop(name, None)
        if subfeed is not None:
            subfeed.tell_changed()

    def forget_key(self, feed: FeedId) -> None:
        """The key of the feed was made, or removed."""
        self._keys.pop(feed, None)
        for subfeed in self:
            if subfeed.name.feed == feed:
                self.close(subfeed.name)

    def forget_session(self, session: Session) -> None:
        """The session has ended."""
        for subfeed in self:
            subfeed.forget(session)

    # --- inside --------------------------------------------------------------------------------

    def key_of(self, feed: FeedId) -> FeedKey | None:
        """The key of an own feed; None for another's. In a thread."""
        return self._key(feed)[0]

    def _key(self, feed: FeedId) -> tuple[FeedKey | None, bool]:
        if feed not in self._keys:
            key = keys.load(self._config_dir, feed) if self._register.is_own(feed) else None
            place = b"" if key is None else keys.place(self._config_dir, feed)
            away = key is not None and not self._register.is_at_home(feed, place)
            while len(self._keys) >= FEED_IDLE_MAX:
                self._keys.pop(next(iter(self._keys)), None)
            self._keys[feed] = key, away
        return self._keys[feed]

    def _made(self, name: SubfeedName) -> LogFile:
        key, away = self._key(name.feed)
        if key is None:
            return self._files.copy(name.log)
        return self._files.own(name.log, key, away=away)

    def _found(self, name: SubfeedName) -> LogFile | None:
        if self._files.get(name.log) is None:
            return None
        return self._made(name)

    def _forget_idle(self) -> None:
        """Keep memory bounded: what is not used can be opened again."""
        if len(self._open) < FEED_IDLE_MAX:
            return
        for name, subfeed in list(self._open.items()):
            if subfeed.is_unused and name not in self.followed:
                del self._open[name]
                if len(self._open) < FEED_IDLE_MAX:
                    return
