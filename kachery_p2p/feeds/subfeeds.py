"""The subfeeds that are in use: opened when somebody asks for one, forgotten when nobody does."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from weakref import WeakValueDictionary

import trio

from kachery_p2p.content.hashes import FeedId
from kachery_p2p.errors import KacheryError, KeyFileError
from kachery_p2p.feeds import keys
from kachery_p2p.feeds.hands import Begun, Hands
from kachery_p2p.feeds.keys import FeedKey
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.log_files import LogFiles
from kachery_p2p.feeds.ownership import claim_ownership
from kachery_p2p.feeds.register import Register
from kachery_p2p.feeds.replica import Replica
from kachery_p2p.feeds.subfeed import Subfeed
from kachery_p2p.feeds.told import SubfeedName
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import FEED_IDLE_MAX, FEED_TAKEN_BYTES, FEED_TAKEN_S_MAX
from kachery_p2p.network.session import Session

_log = logging.getLogger(__name__)


class Subfeeds:
    """The subfeeds of the node whose keys lie below `config_dir`."""

    def __init__(self, config_dir: str, files: LogFiles, register: Register) -> None:
        self._config_dir = config_dir
        self._files = files
        self._register = register
        # What works on the subfeeds' disks; to be closed when all of them are.
        self.hands = Hands()
        self._open: dict[SubfeedName, Subfeed] = {}
        # Also those that are not in use any more, while somebody may still wait at them.
        self._left: WeakValueDictionary[SubfeedName, Subfeed] = WeakValueDictionary()
        # Own ones that were forgotten, and how many entries they had, -1 if not all were told: who
        # follows them is to hear all the same of what programs append. Those that nobody follows
        # are taken out (`Growth`).
        self.forgotten: dict[SubfeedName, int] = {}
        self._opening: dict[SubfeedName, trio.Event] = {}
        self._keys: dict[FeedId, tuple[FeedKey | None, bool]] = {}
        # Foreign subfeeds that are kept up to date; those lately asked for last.
        self.followed: dict[SubfeedName, None] = {}
        # Called with entries of an own subfeed, and the position of the first, when they are
        # durable: the one place that hears of everything that others appended.
        self.grown: Callable[[Subfeed, int, Sequence[bytes]], None] = lambda *about: None

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
        """The subfeed, begun on the disk if it is not there. Raises what `LogFile` raises, and
        KeyFileError for an own one without its key: as a copy it could be cut off, or written over.
        """
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
            await self._take_in_all(self._open[name])
            return self._open.get(name) or await self._opened(name, find)
        done = self._opening[name] = trio.Event()
        try:
            log = await trio.to_thread.run_sync(find, name)
            if log is None:
                return None
            self._forget_idle()
            return self._begin(name, log)
        finally:
            del self._opening[name]
            done.set()

    def _begin(self, name: SubfeedName, log: LogFile) -> Subfeed:
        left = self._left.get(name)
        same = left is not None and left.replica.log is log
        subfeed = left if left is not None and same else Subfeed(name, Replica(log), self.hands)
        self._open[name] = self._left[name] = subfeed
        # Who follows it is told in a moment (`Growth`) what was found when it was opened: who asks
        # just now, and has no answer yet, would not listen.
        self.forgotten.pop(name, None)
        return subfeed

    def grown_of(
        self, subfeeds: Sequence[Subfeed], forgotten: dict[SubfeedName, int]
    ) -> list[SubfeedName]:
        """Those that programs have appended to, or of which not all is told yet. In a thread."""
        found = [subfeed.name for subfeed in subfeeds if _is_news(subfeed)]
        files = self._files
        news = (name for name, n in forgotten.items() if n < 0 or files.has_grown(name.log, n))
        return [*found, *news]

    async def take_in(self, subfeed: Subfeed) -> bool:
        """Take in what programs have appended to an own subfeed, some of it; False if nothing was.

        Raises what `LogFile.absorb` does.
        """
        log = subfeed.replica.log
        # Else the disk is asked, or another computer, which others do not wait for.
        if not isinstance(log, LogFile) or not log.owned or (log.is_quick and not log.has_grown()):
            return False

        return bool((await subfeed.work(log.absorb, then=self._telling(subfeed)))[1])

    def begin_to_take_in(self, name: SubfeedName) -> Begun[tuple[int, list[bytes]]] | None:
        """Begin with the same, without a turn of the loop; None if that is not possible."""
        subfeed = self._open.get(name)
        log = None if subfeed is None else subfeed.replica.log
        if subfeed is None or not isinstance(log, LogFile) or not (log.owned and log.is_quick):
            return None
        return subfeed.begin(log.absorb, then=self._telling(subfeed))

    def _telling(self, subfeed: Subfeed) -> Callable[[tuple[int, list[bytes]]], None]:
        return lambda taken: self._tell(subfeed, *taken)

    def is_far_behind(self, name: SubfeedName) -> bool:
        """True if programs have appended more to the subfeed than is taken in at once."""
        subfeed = self._open.get(name)
        log = None if subfeed is None else subfeed.replica.log
        return isinstance(log, LogFile) and log.is_quick and log.untaken() >= FEED_TAKEN_BYTES

    def tell_rest(self, subfeed: Subfeed) -> None:
        """Tell what came in on the way of something else."""
        self._tell(subfeed, subfeed.replica.log.size, ())

    def _tell(self, subfeed: Subfeed, first: int, entries: Sequence[bytes]) -> None:
        if subfeed.replica.log.owned and first + len(entries) > subfeed.told:
            self.grown(subfeed, first, entries)

    async def _take_in_all(self, subfeed: Subfeed) -> None:
        """The same for who is about to look at it; what does not come soon comes afterwards."""
        until = trio.current_time() + FEED_TAKEN_S_MAX
        while trio.current_time() <= until:
            try:
                if not await self.take_in(subfeed):
                    return
            except KacheryError as error:
                # What was there before can be had all the same; appending says what is wrong.
                _log.debug("feed %s: %s", subfeed.name.feed[:16], error)
                return

    def close(self, name: SubfeedName) -> None:
        """Forget the subfeed: it is deleted, or its key has come."""
        self.followed.pop(name, None)
        self.forgotten.pop(name, None)
        self._left.pop(name, None)
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

    async def claim_to(self, feed: FeedId, node: NodeId) -> bytes:
        """What shows that an own feed is this node's; nothing if its key is gone."""
        known = self._keys.get(feed)
        with contextlib.suppress(KeyFileError):
            key, _ = await trio.to_thread.run_sync(self._key, feed) if known is None else known
            return b"" if key is None else claim_ownership(key, node)
        return b""

    def _key(self, feed: FeedId) -> tuple[FeedKey | None, bool]:
        if feed not in self._keys:
            is_own = self._register.is_own(feed)
            key = keys.load_own(self._config_dir, feed) if is_own else None
            place = b"" if key is None else keys.place(self._config_dir, feed)
            away = key is not None and not self._register.is_at_home(feed, place)
            while len(self._keys) >= FEED_IDLE_MAX:
                self._keys.pop(next(iter(self._keys)), None)
            self._keys[feed] = key, away
        return self._keys[feed]

    def _made(self, name: SubfeedName) -> LogFile:
        try:
            key, away = self._key(name.feed)
        except KeyFileError:
            # What programs append would be acknowledged, and nobody could see it.
            self._files.shut(name.log)
            raise
        if key is None:
            return self._files.copy(name.log)
        return self._files.own(name.log, key, away=away)

    def _found(self, name: SubfeedName) -> LogFile | None:
        # Not opened to see: as a copy, an own log would miss the heads that it need not have.
        return self._made(name) if self._files.has(name.log) else None

    def _forget_idle(self) -> None:
        """Keep memory bounded: what is not used can be opened again."""
        if len(self._open) < FEED_IDLE_MAX:
            return
        for name, subfeed in list(self._open.items()):
            if subfeed.is_unused and name not in self.followed:
                del self._open[name]
                if subfeed.replica.log.owned:
                    self.forgotten[name] = -1 if _is_untold(subfeed) else subfeed.told
                if len(self._open) < FEED_IDLE_MAX:
                    return


def _is_untold(subfeed: Subfeed) -> bool:
    log = subfeed.replica.log
    return log.owned and log.size > subfeed.told


def _is_news(subfeed: Subfeed) -> bool:
    log = subfeed.replica.log
    return _is_untold(subfeed) or (isinstance(log, LogFile) and log.has_grown())
