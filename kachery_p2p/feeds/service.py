"""Feeds as the rest of a node sees them: own ones, those of others, and all that can be done.

What is here puts the parts together; each call says in whose feed and subfeed, by the hash of the
subfeed's name. Names of feeds and subfeeds stay on this node (`register`).
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio

from kachery_p2p.content.hashes import ContentHash, FeedId
from kachery_p2p.errors import (
    FeedReadOnlyError,
    FeedUnavailableError,
    UnknownFeedError,
)
from kachery_p2p.feeds.appending import Appender
from kachery_p2p.feeds.bucket_copies import FeedCopies
from kachery_p2p.feeds.bucket_member import Places
from kachery_p2p.feeds.following import Following
from kachery_p2p.feeds.growth import Growth
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.messages import Message, legacy_entry, message_entries, read_messages
from kachery_p2p.feeds.own_feeds import OwnFeeds
from kachery_p2p.feeds.permits import row
from kachery_p2p.feeds.serving import Serving
from kachery_p2p.feeds.spreading import Spreading
from kachery_p2p.feeds.subfeed import Source, Subfeed, Teller
from kachery_p2p.feeds.submitting import Receiving, Submitted, Submitting
from kachery_p2p.feeds.told import SubfeedName
from kachery_p2p.feeds.waiting import Waiting
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    FEED_CONFIRM_S_MAX,
    FEED_FIND_S_MAX,
    FEED_LOOK_S,
    FEED_REST_S,
    FEED_ROWS_MAX,
    FEED_WATCHED_MAX,
)
from kachery_p2p.network.sessions import Sessions


class SubfeedInfo(NamedTuple):
    """What this node knows of a subfeed."""

    feed: FeedId
    name_hash: ContentHash
    own: bool
    # Messages there are to read, and how many of them this node has.
    size: int
    local_size: int
    # When its owner signed it last, by the owner's clock; None if nothing is known of it.
    head_time_ms: int | None
    # How many messages both of two signed histories share; None if no fork is known.
    forked_at: int | None
    # How many messages it has for good; None if its owner has not ended it.
    ended_at: int | None
    successors: tuple[FeedId, ...]
    # An own one that waits for members to tell where it ends, before it may be appended to.
    restored: bool
    behind: bool
    # Connected nodes that have it, and those that are told of news.
    sources: tuple[NodeId, ...]
    followers: int


class FeedService(OwnFeeds):
    """The feeds of one node. Use it inside `running`."""

    def __init__(
        self, config_dir: str, node_id: NodeId, sessions: Sessions, places: Places | None = None
    ) -> None:
        super().__init__(config_dir, sessions)
        self._node_id = node_id
        self._appender = Appender()
        self._spreading = Spreading(self._permits)
        self._following = Following(
            node_id, sessions, self._permits, self._subfeeds, self._spreading, places
        )
        self.buckets = self._following.buckets
        self.copies = FeedCopies(self.register, self._subfeeds)
        self._subfeeds.grown = self._log_has_grown
        self._growth = Growth(config_dir, self._permits, self._subfeeds, self._spreading)
        self._waiting = Waiting(sessions, self._following)
        self._receiving = Receiving(self._permits, self._subfeeds, self.register, self._append)
        self._submitting = Submitting(node_id, self._find_owner)
        self._serving = Serving(self._permits, self._subfeeds, self._mend_soon)
        self._nursery: trio.Nursery | None = None
        self._told_names: set[tuple[SubfeedName, str]] = set()
        self.handlers = {
            "feed follow": self._following.answer_follow,
            "feed news": self._following.hear_news,
            "feed entries": self._serving.answer_entries,
            "feed hashes": self._serving.answer_hashes,
            "feed submit": self._receiving.answer_submit,
        }

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow, tell and append while inside."""
        await trio.to_thread.run_sync(self._load)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(self._appender.run)
                await nursery.start(self._spreading.run)
                await nursery.start(self._following.run)
                await nursery.start(self._growth.run)
                try:
                    yield
                finally:
                    self._nursery = None
                    nursery.cancel_scope.cancel()
        finally:
            self._subfeeds.hands.close()
            # In a thread: what is closed is synced, and the rest of the node goes on meanwhile.
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._close)

    def _close(self) -> None:
        self._files.close()
        self.register.close()

    def _load(self) -> None:
        self._permits.load()
        followed = [SubfeedName(found.feed, found.name_hash) for found in self.register.followed()]
        self._subfeeds.followed = dict.fromkeys(reversed(followed))

    # --- reading -------------------------------------------------------------------------------

    async def subfeed(
        self, feed: FeedId, name_hash: ContentHash, name: str | None = None
    ) -> SubfeedInfo:
        """What is known of a subfeed at this moment; nobody is asked."""
        subfeed = await self._opened(SubfeedName(feed, name_hash), name)
        return self._info_of(subfeed)

    async def read(
        self,
        feed: FeedId,
        name_hash: ContentHash,
        first: int,
        count_max: int,
        bytes_max: int,
        wait_s: float,
    ) -> tuple[list[Message], int]:
        """Messages from `first` on, and how many the subfeed has; after `wait_s` none.

        A subfeed of somebody else is followed from now on. Raises what `Waiting.read` does, and
        MessageFormatError if the first of them is one that a newer kachery_p2p wrote.
        """
        subfeed = await self._followed(SubfeedName(feed, name_hash))
        entries = await self._waiting.read(subfeed, first, count_max, bytes_max, wait_s)
        return read_messages(entries), subfeed.size

    async def is_public(self, feed: FeedId, name_hash: ContentHash) -> bool:
        """True if the subfeed is followed, or one of an own feed that is shared somewhere."""
        name = SubfeedName(feed, name_hash)
        if name in self._subfeeds.followed:
            return True
        return self._permits.is_own(feed) and await trio.to_thread.run_sync(
            self.register.is_shared, row(name)
        )

    async def watch(
        self, watches: Sequence[tuple[FeedId, ContentHash, int]], wait_s: float
    ) -> list[int]:
        """Which of these subfeeds have messages from the position on; none after `wait_s`."""
        assert len(watches) <= FEED_WATCHED_MAX
        opened = [(await self._followed(SubfeedName(feed, name)), at) for feed, name, at in watches]
        found: list[int] = []
        with trio.move_on_after(wait_s):
            while True:
                found = [n for n, (s, at) in enumerate(opened) if s.readable > at]
                if found or not opened:
                    break
                await _any_of({subfeed.changed for subfeed, _ in opened})
        return found

    async def unfollow(self, feed: FeedId, name_hash: ContentHash) -> None:
        """Keep the copy of a subfeed up to date no more."""
        name = SubfeedName(feed, name_hash)
        self._subfeeds.followed.pop(name, None)
        await trio.to_thread.run_sync(self.register.unfollow, row(name))

    async def _followed(self, name: SubfeedName) -> Subfeed:
        subfeed = await self._opened(name)
        known = self._subfeeds.followed
        if subfeed.replica.log.owned:
            return subfeed
        if name in known:
            self._look_again(subfeed)
            return subfeed
        known[name] = None
        await trio.to_thread.run_sync(self.register.follow, row(name), time.time())
        while len(known) > FEED_ROWS_MAX:
            oldest = next(iter(known))
            await self.unfollow(oldest.feed, oldest.name)
        self._following.look_for([name])
        return subfeed

    def _look_again(self, subfeed: Subfeed) -> None:
        """Ask again for what nobody had: it may have been shared by now."""
        self.buckets.look_now(subfeed)
        now = trio.current_time()
        if not subfeed.sources and not subfeed.asking and now >= subfeed.looked_at + FEED_REST_S:
            subfeed.looked_at = now
            self._following.look_for([subfeed.name])

    # --- writing -------------------------------------------------------------------------------

    async def append(
        self,
        feed: FeedId,
        name_hash: ContentHash,
        messages: Sequence[str],
        name: str | None = None,
    ) -> int:
        """Append JSON texts to an own subfeed, durably; the position of the first.

        FeedReadOnlyError for another's feed; raises what `Appender.append` does.
        """
        subfeed = await self._writable(SubfeedName(feed, name_hash), name)
        return await self._append(subfeed, message_entries(messages, time.time_ns() // 1_000_000))

    async def append_legacy(
        self, feed: FeedId, name_hash: ContentHash, messages: Sequence[tuple[str, int]]
    ) -> int:
        """Append signed messages of an older kachery, each with its time in milliseconds."""
        subfeed = await self._writable(SubfeedName(feed, name_hash), None)
        return await self._append(subfeed, [legacy_entry(text, at) for text, at in messages])

    async def end(self, feed: FeedId, name_hash: ContentHash, successor: FeedId | None) -> None:
        """End an own subfeed for good, and say which feed goes on. FeedReadOnlyError."""
        subfeed = await self._writable(SubfeedName(feed, name_hash), None)

        log = subfeed.replica.log
        assert isinstance(log, LogFile)
        await subfeed.work(log.finish, successor, time.time_ns() // 1_000_000)
        subfeed.tell_changed()
        self._spreading.spread(subfeed)

    async def _writable(self, name: SubfeedName, told_name: str | None) -> Subfeed:
        """An own subfeed, of which others were asked where it ends if it was restored."""
        if not self._permits.is_own(name.feed):
            raise FeedReadOnlyError(
                "Cannot append messages to a readonly feed",
                hint="only the node that made the feed appends; submit the message to it",
            )
        subfeed = await self._opened(name, told_name)
        if self._subfeeds.needs_others(subfeed):
            await self._confirm(subfeed)
        return subfeed

    async def _confirm(self, subfeed: Subfeed) -> None:
        """Give members the time to tell where a restored subfeed ends."""
        self._following.look_for([subfeed.name])
        with trio.move_on_after(FEED_CONFIRM_S_MAX):
            while self._subfeeds.needs_others(subfeed):
                changed = subfeed.changed
                self._following.catch_up(subfeed)
                asking = subfeed.asking or subfeed.asking_buckets or subfeed.is_catching_up
                if not asking and self._sessions.settled:
                    return
                with trio.move_on_after(FEED_LOOK_S):
                    await changed.wait()

    async def _append(self, subfeed: Subfeed, entries: Sequence[bytes]) -> int:
        log = subfeed.replica.log
        assert isinstance(log, LogFile)
        first = await self._appender.append(log, entries)
        # Whoever waits may wait at another one, if this was not used for long.
        self._log_has_grown(self._subfeeds.open_now(subfeed.name) or subfeed, first, entries)
        return first

    def _log_has_grown(self, subfeed: Subfeed, first: int, entries: Sequence[bytes]) -> None:
        """These entries of an own subfeed are durable, whoever appended them."""
        subfeed.note_entries(first, entries)
        subfeed.tell_changed()
        self._spreading.spread(subfeed)

    # --- writing by others ---------------------------------------------------------------------

    async def submit(
        self,
        feed: FeedId,
        name_hash: ContentHash,
        messages: Sequence[str],
        ids: Sequence[bytes] | None = None,
    ) -> list[int]:
        """Have the owner's node append the messages; their positions, once they are durable.

        `ids` are 16 random bytes each; submitting again under the same ids appends nothing anew.
        WriteRefusedError, FeedUnavailableError.
        """
        name = SubfeedName(feed, name_hash)
        given = ids if ids is not None else [os.urandom(16) for _ in messages]
        submitted = [Submitted(id, text) for id, text in zip(given, messages, strict=True)]
        if self._permits.is_own(feed):
            await self._writable(name, None)
            return (await self._receiving.receive(name, self._node_id, submitted))[0]
        return await self._submitting.submit(await self._followed(name), submitted)

    async def _find_owner(self, subfeed: Subfeed, refused: Collection[Teller]) -> Source:
        """Who has shown that it can append, and has not refused. FeedUnavailableError."""
        began = trio.current_time()
        while True:
            changed = subfeed.changed
            for source in subfeed.sources.values():
                if source.own and source.session not in refused:
                    return source
            now = trio.current_time()
            waits = bool(subfeed.asking) or not self._sessions.settled
            if not waits or now > began + FEED_FIND_S_MAX:
                raise FeedUnavailableError(
                    f"the owner of feed {subfeed.name.feed[:16]} is not connected",
                    hint="messages can be submitted while the owner's node is online, in a "
                    "channel where the feed is shared",
                )
            with trio.move_on_after(FEED_LOOK_S):
                await changed.wait()

    # --- what is wrong -------------------------------------------------------------------------

    async def export_proof(self, feed: FeedId, name_hash: ContentHash) -> bytes:
        """The proof that the feed's key signed two histories. UnknownFeedError if there is none."""
        subfeed = await self._opened(SubfeedName(feed, name_hash))
        fork = subfeed.replica.log.fork
        if fork is None:
            raise UnknownFeedError("no fork of this feed is known here")
        return fork.encode()

    async def resume_only_copy(self, feed: FeedId, name_hash: ContentHash) -> None:
        """The user says that no other copy of a restored own subfeed is in use."""
        self._check_own(feed)
        subfeed = await self._opened(SubfeedName(feed, name_hash))
        await subfeed.work(subfeed.replica.log.settle)

    def _mend_soon(self, subfeed: Subfeed, position: int) -> None:
        """An entry is damaged here: fetch it anew, if somebody has it."""
        if self._nursery is not None:
            self._nursery.start_soon(self._waiting.mend, subfeed, position)

    # --- inside --------------------------------------------------------------------------------

    async def _opened(self, name: SubfeedName, told_name: str | None = None) -> Subfeed:
        subfeed = await self._subfeeds.open(name)
        key = (name, told_name or "")
        if key not in self._told_names:
            if len(self._told_names) >= FEED_ROWS_MAX:
                self._told_names.clear()
            self._told_names.add(key)
            noted = row(name)._replace(name=told_name)
            await trio.to_thread.run_sync(self.register.note_subfeed, noted)
        return subfeed

    def _info_of(self, subfeed: Subfeed) -> SubfeedInfo:
        replica = subfeed.replica
        best, fork, ends = replica.best, replica.log.fork, replica.tombstones
        return SubfeedInfo(
            subfeed.name.feed,
            subfeed.name.name,
            replica.log.owned,
            subfeed.size,
            subfeed.readable,
            None if best is None else best.time_ms,
            None if fork is None else fork.common_entries_max,
            min((end.size for end in ends), default=None),
            tuple(dict.fromkeys(end.successor for end in ends if end.successor is not None)),
            replica.log.owned and replica.log.restored,
            replica.is_behind,
            tuple(one.peer for one, source in subfeed.sources.items() if source.head is not None),
            self._spreading.count(subfeed.name),
        )


async def _any_of(events: Iterable[trio.Event]) -> None:
    """Wait until one of the events is set."""
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(wait, event)
