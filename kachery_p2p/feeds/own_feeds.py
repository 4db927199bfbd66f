"""The feeds that are this node's own: their keys, names, channels, and who may write to them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import trio

from kachery_p2p.content.hashes import ContentHash, FeedId
from kachery_p2p.errors import UnknownFeedError
from kachery_p2p.feeds import keys
from kachery_p2p.feeds.keys import FeedKey
from kachery_p2p.feeds.log_files import LogFiles
from kachery_p2p.feeds.permits import Permits, row
from kachery_p2p.feeds.register import Register
from kachery_p2p.feeds.subfeeds import Subfeeds
from kachery_p2p.feeds.told import SubfeedName
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.network.sessions import Sessions


class FeedInfo(NamedTuple):
    """What this node knows of a feed."""

    feed: FeedId
    own: bool
    names: tuple[str, ...]
    # The channels in which an own feed is shared.
    channels: tuple[str, ...]
    # Name hashes and names of the subfeeds that are known here.
    subfeeds: tuple[tuple[ContentHash, str | None], ...]


class OwnFeeds:
    """The part of `FeedService` that is about own feeds as such, not about what is in them."""

    def __init__(self, config_dir: str, sessions: Sessions) -> None:
        self.register = Register(f"{config_dir}/state/feeds.db")
        self._config_dir = config_dir
        self._sessions = sessions
        self._files = LogFiles(f"{config_dir}/feeds")
        self._permits = Permits(sessions, self.register)
        self._subfeeds = Subfeeds(config_dir, self._files, self.register)

    async def create(self, name: str | None, channels: Iterable[str] | None) -> FeedId:
        """A new feed, shared in the channels (ids; None: all this node is in now).

        LogError if the name is another feed's.
        """
        return await self._add(FeedKey.generate(), name, channels)

    async def adopt(self, seed: bytes, name: str | None, channels: Iterable[str] | None) -> FeedId:
        """The feed of a key that an older kachery had, as one of this node's."""
        return await self._add(FeedKey(seed), name, channels)

    async def _add(self, key: FeedKey, name: str | None, channels: Iterable[str] | None) -> FeedId:
        listed = [c.id for c in self._sessions.channels] if channels is None else list(channels)

        def add() -> None:
            now = time.time()
            keys.save(self._config_dir, key)
            place = keys.place(self._config_dir, key.feed)
            self.register.add_feed(key.feed, place, now, name)
            self.register.share(key.feed, listed, now)
            self._permits.load()

        await trio.to_thread.run_sync(add)
        self._subfeeds.forget_key(key.feed)
        return key.feed

    async def named(self, name: str) -> FeedId:
        """The feed called so here. UnknownFeedError if none is."""
        return await trio.to_thread.run_sync(self.register.named, name)

    async def feeds(self) -> list[FeedInfo]:
        """The own feeds, the oldest first."""
        own = await trio.to_thread.run_sync(self.register.own_feeds)
        return [await self.info(feed) for feed in own]

    async def info(self, feed: FeedId) -> FeedInfo:
        """What is known of a feed, its own or not."""

        def read() -> FeedInfo:
            known = self.register.subfeeds(feed)
            return FeedInfo(
                feed,
                self.register.is_own(feed),
                self.register.names_of(feed),
                self.register.channels_of(feed),
                tuple((found.name_hash, found.name) for found in known),
            )

        return await trio.to_thread.run_sync(read)

    async def share(self, feed: FeedId, channels: Iterable[str]) -> None:
        """Let an own feed be read in these channels too. UnknownFeedError."""
        listed = list(channels)
        self._check_own(feed)

        def share() -> None:
            self.register.share(feed, listed, time.time())
            self._permits.load()

        await trio.to_thread.run_sync(share)

    async def unshare(self, feed: FeedId, channel: str) -> None:
        """Let an own feed be read in the channel no more. UnknownFeedError."""
        self._check_own(feed)

        def unshare() -> None:
            self.register.unshare(feed, channel)
            self._permits.load()

        await trio.to_thread.run_sync(unshare)

    async def move_channel(self, old_id: str, new_id: str) -> None:
        """What is served in a channel is served from now on in the one that continues it."""

        def move() -> None:
            self.register.move_channel(old_id, new_id)
            self._permits.load()

        await trio.to_thread.run_sync(move)

    async def delete(self, feed: FeedId) -> None:
        """Remove a feed from this node: an own one with its key, for good. UnknownFeedError."""
        is_own = self._permits.is_own(feed)
        names = [SubfeedName(feed, found) for found, _ in (await self.info(feed)).subfeeds]
        if not is_own and not names:
            raise UnknownFeedError(f"this node knows nothing of feed {feed[:16]}")
        for name in names:
            self._subfeeds.close(name)

        def delete() -> None:
            while names:
                for name in names:
                    self._files.delete(name.log)
                    self.register.forget_submissions(name.log.name)
                    self.register.forget_subfeed(row(name))
                names[:] = [SubfeedName(feed, s.name_hash) for s in self.register.subfeeds(feed)]
            if is_own:
                keys.remove(self._config_dir, feed)
            self.register.forget_feed(feed)
            self._permits.load()

        await trio.to_thread.run_sync(delete)
        self._subfeeds.forget_key(feed)

    # --- who may write ---------------------------------------------------------------------------

    async def access(self, feed: FeedId, name_hash: ContentHash) -> tuple[NodeId, ...]:
        """The nodes that may submit to an own subfeed. UnknownFeedError."""
        self._check_own(feed)
        wanted = row(SubfeedName(feed, name_hash))
        return await trio.to_thread.run_sync(self.register.writers, wanted)

    async def grant(self, feed: FeedId, name_hash: ContentHash, node: NodeId) -> None:
        """Let a node submit to an own subfeed. UnknownFeedError."""
        self._check_own(feed)
        wanted = row(SubfeedName(feed, name_hash))
        await trio.to_thread.run_sync(self.register.grant_writing, wanted, node, time.time())

    async def revoke(self, feed: FeedId, name_hash: ContentHash, node: NodeId) -> None:
        """Let a node submit to an own subfeed no more. UnknownFeedError."""
        self._check_own(feed)
        wanted = row(SubfeedName(feed, name_hash))
        await trio.to_thread.run_sync(self.register.revoke_writing, wanted, node)

    async def set_access(
        self, feed: FeedId, name_hash: ContentHash, nodes: Sequence[NodeId]
    ) -> None:
        """Let these nodes submit to an own subfeed, and no others. UnknownFeedError."""
        self._check_own(feed)
        wanted = row(SubfeedName(feed, name_hash))
        await trio.to_thread.run_sync(self.register.set_writers, wanted, nodes, time.time())

    def _check_own(self, feed: FeedId) -> None:
        if not self._permits.is_own(feed):
            raise UnknownFeedError(
                f"feed {feed[:16]} is not one of this node's",
                hint="`kachery-p2p feed list` shows those that are",
            )
