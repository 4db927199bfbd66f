"""Fetching the entries of a subfeed from the members that have them.

What is missing here is asked of all of them at once (`catchup` decides of whom what), verified
in order and made durable in large writes. Single entries far ahead are fetched with a proof of
their own. Whoever answers wrongly is not asked again; whoever does not answer rests.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import trio

from kachery_p2p.errors import (
    FeedUnavailableError,
    KacheryError,
    LogError,
    PeerError,
    ProofError,
    ProtocolError,
)
from kachery_p2p.feeds.catchup import Brought, CatchUp, Wanted
from kachery_p2p.feeds.replica import Replica
from kachery_p2p.feeds.subfeed import Source, Subfeed, Teller
from kachery_p2p.feeds.told import SubfeedName
from kachery_p2p.limits import (
    FEED_CATCH_UPS_MAX,
    FEED_ENTRIES_S_MAX,
    FEED_KEPT_BYTES,
    FEED_LATE_S,
)
from kachery_p2p.log.entries import ENTRY_BYTES_MAX
from kachery_p2p.log.heads import SignedHead
from kachery_p2p.log.proofs import Path, verify_consistency
from kachery_p2p.log.tree import Frontier, leaf_hash, subtrees
from kachery_p2p.wire.feed_messages import unpack, unpack_hashes

log = logging.getLogger(__name__)

Failed = Callable[[Subfeed, Teller], None]
Grown = Callable[[Subfeed], None]
Came = Callable[[SubfeedName, str], Awaitable[None]]


class _Supplier(NamedTuple):
    """A source, and the head by which its entries are judged."""

    source: Source
    judge: SignedHead


_Brought = Brought[_Supplier]


class _Kept(NamedTuple):
    """How many answers were right, and what of them is durable now."""

    answers: int
    first: int = 0
    entries: Sequence[bytes] = ()
    # Those in which the entries came.
    channels: frozenset[str] = frozenset()


class Fetching:
    """Brings what is missing.

    `grown` is told of what came, `came` in which channel, and `failed` of sources that rest.
    """

    def __init__(self, grown: Grown, failed: Failed, came: Came) -> None:
        self._grown = grown
        self._failed = failed
        self._came = came
        self._places = trio.CapacityLimiter(FEED_CATCH_UPS_MAX)

    async def catch_up(self, subfeed: Subfeed) -> None:
        """Fetch what is missing, until nothing is, or nobody has it who can be asked.

        Whoever calls it sees to it that it is called once, and sets `is_catching_up`.
        """
        try:
            async with self._places:
                # A fork or a tombstone that comes meanwhile changes what is missing.
                while await _Run(subfeed, self._grown, self._failed, self._came).run():
                    pass
        except KacheryError as error:
            log.warning("feed %s: cannot keep what comes: %s", subfeed.name.feed[:16], error)
        finally:
            subfeed.is_catching_up = False
            subfeed.tell_changed()

    async def single(
        self, subfeed: Subfeed, first: int, count: int, bytes_max: int = ENTRY_BYTES_MAX
    ) -> list[bytes]:
        """Entries from `first` on, verified, without those before: what fits, one at least.

        FeedUnavailableError if nobody who can be asked has them.
        """
        for source in list(subfeed.sources.values()):
            for judge in _judges(subfeed.replica, source):
                count = min(count, subfeed.replica.size - first)
                if judge.size <= first or count <= 0:
                    continue
                try:
                    found = await proved_entries(subfeed, source, judge, first, count)
                except PeerError as error:
                    if subfeed.replica.log.fork is None:
                        _settle(subfeed, source.session, error, self._failed)
                    continue
                # A fork or a tombstone may have come meanwhile.
                found = fitting(found[: max(0, subfeed.replica.size - first)], bytes_max)
                if found:
                    return found
        raise FeedUnavailableError(
            f"no connected node has message {first}",
            hint="it can be read when its author, or a node that follows the feed, is online",
        )


def _judges(replica: Replica, source: Source) -> Sequence[SignedHead]:
    """The heads by which entries of the source are judged; none if it has none."""
    if source.head is None:
        return ()
    # Which history it has is not known: up to where they part, either will do.
    return (source.head,) if replica.log.fork is None else replica.judges


def fitting(entries: Sequence[bytes], bytes_max: int) -> list[bytes]:
    """The first ones, as many as fit; one at least if there is one."""
    found: list[bytes] = []
    for entry in entries:
        bytes_max -= len(entry)
        if found and bytes_max < 0:
            break
        found.append(entry)
    return found


class _Run:
    """One catch-up."""

    def __init__(self, subfeed: Subfeed, grown: Grown, failed: Failed, came: Came) -> None:
        self._subfeed = subfeed
        self._replica: Replica = subfeed.replica
        self._grown = grown
        self._failed = failed
        self._came = came
        self._plan: CatchUp[_Supplier] = CatchUp(self._replica.log.size)
        self._asking: dict[_Supplier, trio.CancelScope] = {}
        self._wrong: set[_Supplier] = set()
        self._turn = trio.Event()

    async def run(self) -> bool:
        """Fetch; True if what is to be fetched has changed, so that it is to be begun anew."""
        limit = self._replica.limit
        async with trio.open_nursery() as nursery:
            while self._replica.is_behind and self._replica.limit == limit:
                self._meet_sources(nursery)
                if not self._plan.sources:
                    break
                turn = self._turn
                brought = self._take()
                if brought:
                    await self._keep(brought)
                else:
                    with trio.move_on_after(FEED_LATE_S):
                        await _first_of(turn.wait, self._subfeed.sources_changed.wait)
            nursery.cancel_scope.cancel()
        return self._replica.is_behind and self._replica.limit != limit

    def _meet_sources(self, nursery: trio.Nursery) -> None:
        """Begin to ask who has come, stop asking who has gone."""
        here = set(self._suppliers()) - self._wrong
        for supplier in self._asking.keys() - here:
            self._plan.drop(supplier)
            self._asking.pop(supplier).cancel()
        for supplier in here - self._asking.keys():
            self._plan.offer(supplier, supplier.judge.size)
            self._asking[supplier] = trio.CancelScope()
            nursery.start_soon(self._ask, supplier, self._asking[supplier])

    def _suppliers(self) -> list[_Supplier]:
        return [
            _Supplier(source, judge)
            for source in self._subfeed.sources.values()
            for judge in _judges(self._replica, source)
        ]

    async def _ask(self, supplier: _Supplier, scope: trio.CancelScope) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                while True:
                    turn = self._turn
                    now = trio.current_time()
                    wanted = self._plan.next_for(supplier, self._replica.size, now)
                    if wanted is not None:
                        nursery.start_soon(self._ask_for, supplier, wanted, scope)
                    else:
                        with trio.move_on_after(FEED_LATE_S):
                            await turn.wait()

    async def _ask_for(self, supplier: _Supplier, wanted: Wanted, scope: trio.CancelScope) -> None:
        try:
            entries, path, _ = await _ask_for_entries(
                self._subfeed, supplier.source, supplier.judge, wanted, frontier=False
            )
            self._plan.received(supplier, wanted, entries, path)
        except PeerError as error:
            self._plan.failed(supplier, wanted)
            self._drop(supplier, error)
            scope.cancel()
        self._tell_turn()

    def _drop(self, supplier: _Supplier, error: PeerError) -> None:
        self._plan.drop(supplier)
        self._wrong.add(supplier)
        if self._replica.log.fork is None:
            _settle(self._subfeed, supplier.source.session, error, self._failed)
        elif all(
            _Supplier(supplier.source, judge) in self._wrong for judge in self._replica.judges
        ):
            supplier.source.head = None

    def _tell_turn(self) -> None:
        self._turn.set()
        self._turn = trio.Event()

    # --- what came -----------------------------------------------------------------------------

    def _take(self) -> list[_Brought]:
        """What is next in order, as much as is kept in one write."""
        self._plan.skip_to(self._replica.log.size)
        found: list[_Brought] = []
        size = 0
        while size < FEED_KEPT_BYTES and (brought := self._plan.take()) is not None:
            found.append(brought)
            size += sum(map(len, brought.entries))
        if found:
            self._tell_turn()
        return found

    async def _keep(self, brought: list[_Brought]) -> None:
        kept = await self._subfeed.work(self._verify_and_keep, brought)
        if kept.answers < len(brought):
            wrong = brought[kept.answers]
            for later in reversed(brought[kept.answers + 1 :]):
                self._plan.put_back(later)
            self._plan.wrong(wrong)
            self._drop(wrong.source, ProtocolError("sent entries that were not signed"))
        if kept.entries:
            self._subfeed.note_entries(kept.first, kept.entries)
        for channel in kept.channels:
            await self._came(self._subfeed.name, channel)
        if kept.answers:
            self._subfeed.tell_changed()
            self._grown(self._subfeed)
        self._tell_turn()

    def _verify_and_keep(self, brought: list[_Brought]) -> _Kept:
        """Make durable what is right of these answers. In a thread."""
        replica = self._replica
        frontier: Frontier = replica.log.frontier()
        first = frontier.size
        entries: list[bytes] = []
        stored: list[bytes] = []
        channels: set[str] = set()
        kept = 0
        for answer in brought:
            # The first ones may have come with news meanwhile.
            fresh = answer.entries[frontier.size - answer.first :]
            try:
                judge = answer.source.judge
                frontier, more = replica.grown(frontier, fresh, answer.path, judge)
            except ProofError:
                break
            entries += fresh
            stored += more
            kept += 1
            if fresh:
                channels.add(answer.source.source.channel)
        if not entries or frontier.size > replica.size:
            return _Kept(kept)
        replica.keep(entries, frontier, stored)
        return _Kept(kept, first, entries, frozenset(channels))


async def _ask_for_entries(
    subfeed: Subfeed, source: Source, judge: SignedHead, wanted: Wanted, *, frontier: bool
) -> tuple[list[bytes], Path, Path]:
    """The entries, the path to the judging head, and the frontier before; PeerError."""
    body = {
        **subfeed.name.body(source.channel),
        "first": wanted.first,
        "count": wanted.length,
        "size": judge.size,
        "frontier": frontier,
    }
    answer = await source.session.request("feed entries", body, FEED_ENTRIES_S_MAX)
    entries = unpack(answer["entries"], wanted.length)
    if not entries:
        raise ProtocolError("it answered with no entries")
    return entries, unpack_hashes(answer["path"]), unpack_hashes(answer["frontier"])


async def proved_entries(
    subfeed: Subfeed, source: Source, judge: SignedHead, first: int, count: int
) -> list[bytes]:
    """Entries of one source, proved by the full subtrees before them."""
    wanted = Wanted(first, min(first + count, judge.size))
    entries, path, hashes = await _ask_for_entries(subfeed, source, judge, wanted, frontier=True)
    if len(hashes) != sum(1 for _ in subtrees(0, first)):
        raise ProtocolError("it proved entries with too few hashes or too many")
    grown, _ = Frontier(first, hashes).extended(map(leaf_hash, entries))
    try:
        # What folds to a signed root is what was signed, whoever gave the hashes.
        verify_consistency(grown.size, grown.root, judge.size, judge.root, path)
    except LogError as error:
        raise ProtocolError(f"it sent entries that were not signed: {error}")
    return entries


def _settle(subfeed: Subfeed, session: Teller, error: PeerError, failed: Failed) -> None:
    """See that a member that failed is not asked again at once, and a liar not for long."""
    log.info("feed %s: node %s: %s", subfeed.name.feed[:16], session.peer[:16], error)
    if isinstance(error, ProtocolError):
        subfeed.blame(session, trio.current_time())
    else:
        subfeed.drop_source(session)
        failed(subfeed, session)


async def _first_of(*waits: Callable[[], Awaitable[None]]) -> None:
    """Wait until one of these returns."""
    async with trio.open_nursery() as nursery:

        async def wait(one: Callable[[], Awaitable[None]]) -> None:
            await one()
            nursery.cancel_scope.cancel()

        for one in waits:
            nursery.start_soon(wait, one)
