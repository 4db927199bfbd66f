"""A bucket as a member that never sleeps: it answers about feeds what a member would.

What a bucket has of a feed (`bucket.log_layout`) is enough to answer `feed follow`, `feed entries`
and `feed hashes` here, on this node, with the proofs that a member would give. So all that is
believed of it is judged by the rules that hold for members (`replica`), it takes part in the same
catch-up, and whoever forges something there is found out in the same way.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import trio

from kachery_p2p.bucket.log_layout import LogHead, Segment, UnknownHashError
from kachery_p2p.bucket.log_reading import OF_A_LIE, read_head, read_segment
from kachery_p2p.bucket.log_tree import LogTree
from kachery_p2p.bucket.reading import Readable
from kachery_p2p.channels.permissions import PROVIDE, READ
from kachery_p2p.errors import (
    BucketError,
    KacheryError,
    PeerError,
    PeerRefusedError,
    PeerTimeoutError,
    ProtocolError,
)
from kachery_p2p.feeds.names import HEAD_TAG
from kachery_p2p.feeds.told import SubfeedName
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    BUCKET_LOG_ANSWER_S_MAX,
    BUCKET_LOG_TREES_MAX,
    FEED_ANSWER_BYTES,
)
from kachery_p2p.log.heads import LogId, SignedHead
from kachery_p2p.log.proofs import Path, prove_consistency
from kachery_p2p.log.tree import Frontier
from kachery_p2p.wire.feed_messages import LENGTH_BYTES, pack, unpack_numbers

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# A proof needs the hashes of two segments at most, of a head that may be replaced meanwhile.
_SEGMENTS_ASKED_MAX = 8


class Places(Protocol):
    """The buckets of this node's channels, as the node looks after them (`transfer.buckets`)."""

    def of_channels(self) -> Sequence[tuple[Readable, str]]:
        """Each bucket, and the id of its channel."""

    def rests(self, place: Readable) -> bool:
        """True while it is left alone, because it failed."""

    def run(self, work: Callable[[], Result]) -> Awaitable[Result]:
        """What a blocking call answers."""

    def failed(self, place: Readable, error: KacheryError) -> None:
        """It did not do what it was asked."""

    def worked(self, place: Readable) -> None:
        """It did."""


class BucketMember:
    """One bucket in one channel, to be asked as a session is."""

    def __init__(self, place: Readable, channel: str, places: Places) -> None:
        self.place = place
        self.peer = NodeId(place.node)
        self.channels = frozenset((channel,))
        self._places = places
        # Of the feeds that were asked about last.
        self._trees: OrderedDict[LogId, LogTree] = OrderedDict()
        self._reading: dict[LogId, trio.Lock] = {}

    def may(self, channel_id: str, action: str) -> bool:
        """True if it may do `action` in the channel."""
        return channel_id in self.channels and action in (READ, PROVIDE)

    async def request(self, op: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """What a member would answer; a bucket may take longer than `timeout_s`.

        PeerRefusedError if it has nothing of the feed; ProtocolError if what it has was not
        signed; other PeerErrors if it failed.
        """
        if self._places.rests(self.place):
            raise PeerError(f"{self.place.name} rests, because it failed")
        answers = {
            "feed follow": self._follow,
            "feed entries": self._entries,
            "feed hashes": self._hashes,
        }
        with trio.move_on_after(max(timeout_s, BUCKET_LOG_ANSWER_S_MAX)):
            try:
                return await answers[op](SubfeedName.of(body).log, body)
            except BucketError as error:
                self._places.failed(self.place, error)
                raise PeerError(str(error)) from error
            except OF_A_LIE as error:
                raise ProtocolError(f"{self.place.name}: {error}") from error
            except PeerError:
                raise
            except KacheryError as error:  # keys of a bucket that a newer version wrote
                raise PeerError(str(error)) from error
        raise PeerTimeoutError(f"{self.place.name} did not answer in time")

    # --- answers -------------------------------------------------------------------------------

    async def _follow(self, which: LogId, body: dict[str, Any]) -> dict[str, Any]:
        tree = await self._looked(which)
        head = tree.head.head
        path: Path = ()
        if body["head"]:
            asked = SignedHead.decode(body["head"], HEAD_TAG).size
            if 0 < asked < head.size:
                path = await self._proved(
                    which, lambda now: prove_consistency(asked, head.size, now.read_hash)
                )
        return {
            "head": head.encode(),
            "fork": tree.head.fork,
            "tombstone": tree.head.ending,
            "path": b"".join(path),
            "own": b"",
        }

    async def _entries(self, which: LogId, body: dict[str, Any]) -> dict[str, Any]:
        first, size = body["first"], body["size"]
        at, entries = await self._segment_with(which, first)
        found = _fitting(entries[first - at :][: min(body["count"], size - first)])
        if not found:
            raise PeerRefusedError("has not these entries")
        path = await self._proved(
            which, lambda now: prove_consistency(first + len(found), size, now.read_hash)
        )
        frontier: Path = ()
        if body["frontier"]:
            frontier = await self._proved(
                which, lambda now: Frontier.at(first, now.read_hash).hashes
            )
        return {"entries": pack(found), "path": b"".join(path), "frontier": b"".join(frontier)}

    async def _hashes(self, which: LogId, body: dict[str, Any]) -> dict[str, Any]:
        places = unpack_numbers(body["places"])
        return {"hashes": b"".join([await self._hash(which, place) for place in places])}

    async def _hash(self, which: LogId, place: int) -> bytes:
        return await self._proved(which, lambda now: now.read_hash(place))

    # --- what is there -------------------------------------------------------------------------

    async def _looked(self, which: LogId) -> LogTree:
        """The log as it is there now. PeerRefusedError if it is not."""
        head = await self._places.run(lambda: read_head(self.place, which))
        self._places.worked(self.place)
        if head is None:
            # Nothing is kept of what is not there: anybody may ask for any feed.
            self._trees.pop(which, None)
            self._reading.pop(which, None)
            raise PeerRefusedError("not available in this channel")
        return self._noted(which, head)

    def _noted(self, which: LogId, head: LogHead) -> LogTree:
        tree = self._trees.get(which)
        if tree is None or tree.head != head:
            tree = LogTree(head)
        self._trees[which] = tree
        self._trees.move_to_end(which)
        while len(self._trees) > BUCKET_LOG_TREES_MAX:
            self._reading.pop(self._trees.popitem(last=False)[0], None)
        return tree

    async def _tree(self, which: LogId) -> LogTree:
        tree = self._trees.get(which)
        return tree if tree is not None else await self._looked(which)

    async def _proved(self, which: LogId, prove: Callable[[LogTree], Result]) -> Result:
        """What can be proved of the log, reading the segments that it takes."""
        for _ in range(_SEGMENTS_ASKED_MAX):
            try:
                return prove(await self._tree(which))
            except UnknownHashError as unknown:
                await self._segment_with(which, unknown.entry)
        raise PeerError(f"{self.place.name} does not stop changing")

    async def _segment_with(self, which: LogId, entry: int) -> tuple[int, Sequence[bytes]]:
        """The segment with an entry: the number of its first, and its entries.

        PeerRefusedError if none has it.
        """
        # Several questions at once are about one segment: it is read once.
        async with self._reading.setdefault(which, trio.Lock()):
            tree = await self._tree(which)
            try:
                return await self._read_segment(tree, which, entry)
            except BucketError:
                # It was put together with others, and removed: the head says where it is now.
                new = await self._looked(which)
                if new.head == tree.head:
                    raise
                return await self._read_segment(new, which, entry)

    async def _read_segment(
        self, tree: LogTree, which: LogId, entry: int
    ) -> tuple[int, Sequence[bytes]]:
        named = tree.segment_of(entry)
        if named is None:
            raise PeerRefusedError("has not these entries")
        first, segment = named
        known = tree.entries_of(first)
        if known is not None:
            return first, known
        return first, await self._places.run(lambda: self._taken(tree, which, first, segment))

    def _taken(self, tree: LogTree, which: LogId, first: int, segment: Segment) -> Sequence[bytes]:
        """Read a segment. In a thread: there is a hash for each entry."""
        entries = read_segment(self.place, which, first, segment)
        tree.take(first, segment, entries)
        return entries


def _fitting(entries: Sequence[bytes]) -> list[bytes]:
    """As many as fit into one answer, one at least."""
    room, found = FEED_ANSWER_BYTES, list[bytes]()
    for entry in entries:
        room -= len(entry) + LENGTH_BYTES
        if found and room < 0:
            break
        found.append(entry)
    return found
