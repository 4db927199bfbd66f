"""Reading a subfeed: what is here, what others have, and waiting for what is not written yet."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from kachery_p2p.errors import (
    EntryDamagedError,
    FeedEndedError,
    FeedForkedError,
    FeedUnavailableError,
    LogError,
    StoreError,
)
from kachery_p2p.feeds.fetching import fitting
from kachery_p2p.feeds.following import Following
from kachery_p2p.feeds.subfeed import Subfeed
from kachery_p2p.limits import FEED_FIND_S_MAX, FEED_LOOK_S, FEED_SPARSE_ENTRIES
from kachery_p2p.network.sessions import Sessions


class Waiting:
    """Reads entries for users of this node."""

    def __init__(self, sessions: Sessions, following: Following) -> None:
        self._sessions = sessions
        self._following = following

    async def read(
        self, subfeed: Subfeed, first: int, count_max: int, bytes_max: int, wait_s: float
    ) -> Sequence[bytes]:
        """Entries from `first` on: those there are, or after `wait_s` none.

        While it is not known yet whether there are any it takes longer, FEED_FIND_S_MAX at most.
        FeedForkedError or FeedEndedError behind the end; FeedUnavailableError if nobody has
        them; EntryDamagedError if they are damaged here, and nobody else has them.
        """
        began = trio.current_time()
        while True:
            changed = subfeed.changed
            found = await self._now(subfeed, first, count_max, bytes_max)
            if found:
                return found
            now = trio.current_time()
            wait_until = began + wait_s
            if self._may_come(subfeed, first):
                # Whether everybody was found is not told by an event of the subfeed.
                wait_until = min(max(wait_until, began + FEED_FIND_S_MAX), now + FEED_LOOK_S)
            if now >= wait_until or now >= began + max(wait_s, FEED_FIND_S_MAX):
                self._refuse_if_unavailable(subfeed, first)
                return ()
            with trio.move_on_at(wait_until):
                await changed.wait()

    async def _now(
        self, subfeed: Subfeed, first: int, count_max: int, bytes_max: int
    ) -> Sequence[bytes]:
        replica = subfeed.replica
        if first < subfeed.readable:
            return await self._here(subfeed, first, count_max, bytes_max)
        if replica.limit is not None and first >= replica.limit:
            raise ended(subfeed)
        self._following.catch_up(subfeed)
        if replica.readable + FEED_SPARSE_ENTRIES <= first < replica.size:
            return await self._following.fetching.single(subfeed, first, count_max, bytes_max)
        return ()

    async def _here(
        self, subfeed: Subfeed, first: int, count_max: int, bytes_max: int
    ) -> Sequence[bytes]:
        recent = fitting(subfeed.recent(first, count_max), bytes_max)
        if recent:
            return recent
        read = subfeed.replica.log.entries
        try:
            return await trio.to_thread.run_sync(read, first, count_max, bytes_max)
        except EntryDamagedError as damage:
            if not await self.mend(subfeed, first):
                raise damage from None
        return await trio.to_thread.run_sync(read, first, count_max, bytes_max)

    async def mend(self, subfeed: Subfeed, position: int) -> bool:
        """Fetch an entry anew that is damaged here; False if nobody has it."""
        mend = subfeed.replica.log.mend
        try:
            entries = await self._following.fetching.single(subfeed, position, 1)
            await trio.to_thread.run_sync(mend, position, entries[0])
        except (LogError, StoreError):
            self._following.look_for([subfeed.name])
            return False
        return True

    def _may_come(self, subfeed: Subfeed, first: int) -> bool:
        """True while somebody is asked who may have the entries, or is sending them."""
        if first < subfeed.replica.size and (
            # It begins in a moment, or again when who has them has rested.
            subfeed.is_catching_up or (subfeed.sources and subfeed.replica.is_behind)
        ):
            return True
        if subfeed.replica.log.owned or subfeed.sources:
            return False
        asking = subfeed.asking or subfeed.asking_buckets
        return bool(asking) or not self._sessions.settled

    def _refuse_if_unavailable(self, subfeed: Subfeed, first: int) -> None:
        replica = subfeed.replica
        if replica.log.owned or subfeed.sources:
            return
        if replica.best is None or first < replica.size:
            fault = f" ({subfeed.bucket_fault})" if subfeed.bucket_fault else ""
            raise FeedUnavailableError(
                f"no connected node has feed {subfeed.name.feed[:16]}, or from message {first}"
                f" on{fault}",
                hint="it can be read when its author, or a node that follows it, is online in a "
                "channel where it is shared",
            )


def ended(subfeed: Subfeed) -> FeedForkedError | FeedEndedError:
    """Why there is nothing to read behind the end of a subfeed."""
    replica = subfeed.replica
    fork = replica.log.fork
    if fork is not None and replica.limit == fork.common_entries_max:
        return FeedForkedError(
            f"the feed's key has signed two histories after message {fork.common_entries_max}",
            hint="the owner's key was used twice or was copied: ask the owner which copy is right",
            evidence=fork.encode(),
        )
    successors = [str(t.successor) for t in replica.tombstones if t.successor is not None]
    hint = "it was not continued: ask the owner"
    if len(set(successors)) > 1:
        hint = "two successors are named: ask the owner which is right"
    elif successors:
        hint = f"it goes on as feed://{successors[0]}"
    return FeedEndedError(f"the owner has ended the feed with {replica.limit} messages", hint=hint)
