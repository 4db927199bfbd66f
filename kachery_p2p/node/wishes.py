"""What members without a bucket's credentials want put there, by this node, which has them.

A wish is a content that its member shares in the channel: it is fetched as any load is, from
that member alone, and goes into the node's own queue of uploads. Nothing of a wish is kept on
the disk before it is fetched: whoever wishes has a queue of its own, and asks again.

That this node has a content already is no reason to put it there, unless it is shared in
the channel: members could otherwise name what they want to see of it.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import trio

from kachery_p2p.bucket.queue import LEFT_OUT, REQUESTED, WAITING
from kachery_p2p.bucket.reading import Meta
from kachery_p2p.bucket.uploads import Uploads
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.content.manifests import RootObject
from kachery_p2p.errors import KacheryError, PeerBusyError, PeerError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    BUCKET_PROVIDER_S,
    BUCKET_WISH_BYTES_BURST,
    BUCKET_WISH_BYTES_PER_S,
    BUCKET_WISH_S_MIN,
    BUCKET_WISHES_AT_ONCE,
    BUCKET_WISHES_AT_ONCE_PER_PEER,
    BUCKET_WISHES_MAX,
    BUCKET_WISHES_PER_PEER_MAX,
    PEERS_MAX,
)
from kachery_p2p.network.allowance import TokenBucket
from kachery_p2p.node.asked_uploads import fetch_s
from kachery_p2p.node.mirroring import Mirroring
from kachery_p2p.node.parts import Parts
from kachery_p2p.transfer.bucket_members import Wish
from kachery_p2p.transfer.download import Downloads
from kachery_p2p.transfer.holders import Answers, Holders
from kachery_p2p.transfer.only import Only
from kachery_p2p.wire import bucket_messages as told

log = logging.getLogger(__name__)

# How often it is looked how far an upload is: at first, and after a while.
_LOOK_S_MIN, _LOOK_S_MAX = 0.02, 2.0

# Raises PeerRefusedError once the member may not have it put there any more, or this node uses
# another bucket.
Judge = Callable[[], object]


class Wanted(NamedTuple):
    """A content, in a channel, of a member."""

    peer: NodeId
    channel: str
    content: ContentHash
    label: str | None


class _Open:
    """A wish on its way, or one that has just ended."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.wish = Wish(told.QUEUED, "")
        # Why this node could not fetch it: the member may ask again.
        self.failure: PeerError | None = None
        self.ended = trio.Event()
        # Until then its end is told to who asks again.
        self.told_until = math.inf


class Wishes:
    """The wishes of all members, a bounded number."""

    def __init__(
        self, parts: Parts, holders: Holders, downloads: Downloads, mirroring: Mirroring
    ) -> None:
        self._parts = parts
        self._holders = holders
        self._downloads = downloads
        self._mirroring = mirroring
        self._nursery: trio.Nursery | None = None
        # By member, place in the queue, and content: the channel's bucket may be another later.
        self._open: dict[tuple[NodeId, str, ContentHash], _Open] = {}
        self._counts: Counter[NodeId] = Counter()
        self._fetching = trio.CapacityLimiter(BUCKET_WISHES_AT_ONCE)
        # Threads of its own: a bucket that does not answer must not take those of the node.
        self._looking = trio.CapacityLimiter(BUCKET_WISHES_AT_ONCE)
        self._fetching_for: dict[NodeId, trio.CapacityLimiter] = {}
        self._allowed: dict[NodeId, TokenBucket] = {}

    async def run(self) -> None:
        """For ever: wishes are worked on meanwhile."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None
                self._open.clear()
                self._counts.clear()

    async def answer(self, wanted: Wanted, uploads: Uploads, judge: Judge, wait_s: float) -> Wish:
        """How far the wish is, after `wait_s` or as soon as it has ended.

        `judge` is asked again while it is worked on. Raises PeerBusyError for one too many,
        PeerError for what could not be fetched now, PeerRefusedError if `judge` does.
        """
        found = self._open.get((wanted.peer, uploads.place, wanted.content))
        if found is None or trio.current_time() >= found.told_until:
            found = self._begin(wanted, uploads, judge)
        with trio.move_on_after(wait_s):
            await found.ended.wait()
        if found.failure is not None:
            # It may be asked again at once: the member has a patience of its own.
            found.told_until = -math.inf
            raise found.failure
        return found.wish

    def _begin(self, wanted: Wanted, uploads: Uploads, judge: Judge) -> _Open:
        if self._nursery is None:
            raise PeerBusyError("is starting")
        too_many = self._counts[wanted.peer] >= BUCKET_WISHES_PER_PEER_MAX
        if too_many or self._counts.total() >= BUCKET_WISHES_MAX:
            raise PeerBusyError("has enough to put into the bucket")
        if len(self._open) >= 2 * BUCKET_WISHES_MAX:
            # Of those that have ended, which are kept for who asks a second time.
            self._open = {k: one for k, one in self._open.items() if not one.ended.is_set()}
        found = self._open[wanted.peer, uploads.place, wanted.content] = _Open(judge)
        self._counts[wanted.peer] += 1
        self._nursery.start_soon(self._fulfil, wanted, uploads, found)
        return found

    async def _fulfil(self, wanted: Wanted, uploads: Uploads, found: _Open) -> None:
        try:
            await self._put_there(wanted, uploads, found)
        except PeerError as error:
            found.failure = error
        except KacheryError as error:
            log.info("sha1://%s is not put there for a member: %s", wanted.content, error)
            found.failure = PeerError(str(error))
        except Exception:
            # A mistake of ours in one wish must not cost the others.
            log.exception("the wish for sha1://%s failed", wanted.content)
            found.failure = PeerError("failed")
        finally:
            self._counts[wanted.peer] -= 1
            if not self._counts[wanted.peer]:
                del self._counts[wanted.peer]
            found.told_until = trio.current_time() + BUCKET_PROVIDER_S
            found.ended.set()

    async def _put_there(self, wanted: Wanted, uploads: Uploads, found: _Open) -> None:
        content, queue = wanted.content, self._mirroring.queue
        # Also if the queue has it as done: it may have been taken out since.
        there = await trio.to_thread.run_sync(
            uploads.bucket.look, content, limiter=self._looking, abandon_on_cancel=True
        )
        if there is not None and await self._is_what_is_wished(wanted, there):
            found.wish = Wish(told.THERE, "")
            return
        if await trio.to_thread.run_sync(self._is_shared_here, wanted):
            known = await trio.to_thread.run_sync(self._known_here, content)
            refused = _outside(known.size, uploads)
        else:
            refused = await self._fetch(wanted, uploads)
        if refused is not None:
            found.wish = Wish(told.LEFT_OUT, refused)
            return
        # The member may have lost its role while it was looked and fetched.
        found.judge()
        row = await trio.to_thread.run_sync(queue.of, uploads.place, content)
        if row is None or row.state != WAITING:
            await trio.to_thread.run_sync(
                queue.add, uploads.place, [content], REQUESTED, wanted.label
            )
        self._mirroring.look_now()
        await self._follow(wanted, uploads, found)

    def _is_shared_here(self, wanted: Wanted) -> bool:
        is_granted = self._parts.grants.is_granted(wanted.content, wanted.channel)
        return is_granted and self._parts.blobs.find(wanted.content) is not None

    async def _is_what_is_wished(self, wanted: Wanted, there: Meta) -> bool:
        """False if the object of that name is of another size or root than the content has.

        What is shared here is known; else it is what the member says of it.
        """
        if await trio.to_thread.run_sync(self._is_shared_here, wanted):
            known = await trio.to_thread.run_sync(self._known_here, wanted.content)
            return there.agrees(known.size, known.root)
        said = await self._said(wanted)
        return any(there.agrees(claim.size, claim.root) for claim in said.claims)

    async def _said(self, wanted: Wanted) -> Answers:
        """What the member says of the content, if it has it."""
        only = Only(wanted.channel, wanted.peer)
        return await self._holders.look(
            wanted.content, lambda claim: claim.pinned, BUCKET_WISH_S_MIN, only
        )

    async def _fetch(self, wanted: Wanted, uploads: Uploads) -> str | None:
        """None if it is here; else why it is not put there. Raises KacheryErrors."""
        limiter = self._fetching_for.get(wanted.peer)
        if limiter is None:
            if len(self._fetching_for) >= PEERS_MAX:
                self._fetching_for.clear()
            limiter = trio.CapacityLimiter(BUCKET_WISHES_AT_ONCE_PER_PEER)
            self._fetching_for[wanted.peer] = limiter
        async with limiter, self._fetching:
            only = Only(wanted.channel, wanted.peer)
            said = await self._said(wanted)
            if not said.claims:
                was_asked = any(session.peer == wanted.peer for session in said.asked)
                if said.busy or said.failed or not was_asked:
                    # What is left out is not asked for again: only a member's own no is a reason.
                    raise PeerError("got no answer of who has it: ask again")
                return "it cannot be fetched from the node that asks: is it shared in the channel?"
            size = max(claim.size for claim in said.claims)
            refused = _outside(size, uploads)
            if refused is not None:
                return refused
            self._pay(wanted.peer, size)
            with trio.move_on_after(fetch_s(size)) as fetching:
                await self._downloads.load(wanted.content, None, lambda view: None, only)
            if fetching.cancelled_caught:
                raise PeerError("gave up a fetch that took too long")
            if not await trio.to_thread.run_sync(self._is_shared_here, wanted):
                # Another load has brought it from somewhere else: the member has shown nothing.
                raise PeerError("was fetching it from another node: ask again")
            # Its size was the member's word.
            came = (await trio.to_thread.run_sync(self._known_here, wanted.content)).size
            refused = _outside(came, uploads)
            if refused is None and came > size:
                self._pay(wanted.peer, came - size)
            return refused

    def _known_here(self, content: ContentHash) -> RootObject:
        with self._parts.blobs.open_verified(content) as opened:
            return opened.root_object

    def _pay(self, peer: NodeId, size: int) -> None:
        """Count what the member makes this node fetch. PeerBusyError if it was enough."""
        now = trio.current_time()
        if peer not in self._allowed and len(self._allowed) >= 4 * PEERS_MAX:
            del self._allowed[next(iter(self._allowed))]
        allowed = self._allowed.setdefault(
            peer, TokenBucket(BUCKET_WISH_BYTES_PER_S, BUCKET_WISH_BYTES_BURST, now)
        )
        if size > BUCKET_WISH_BYTES_BURST or allowed.wait_s(size, now) > 0:
            raise PeerBusyError("has fetched enough for this node today")
        allowed.pay(size, now)

    async def _follow(self, wanted: Wanted, uploads: Uploads, found: _Open) -> None:
        """Until the upload is settled; what keeps it is told meanwhile.

        Raises PeerRefusedError once this node uses another bucket: nobody works off the row then.
        """
        queue, wait_s = self._mirroring.queue, _LOOK_S_MIN
        while True:
            row = await trio.to_thread.run_sync(queue.of, uploads.place, wanted.content)
            if row is None or row.state != WAITING:
                break
            found.judge()
            found.wish = Wish(told.QUEUED, told_why(row.said))
            await trio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LOOK_S_MAX)
        if row is not None and row.state == LEFT_OUT:
            found.wish = Wish(told.LEFT_OUT, told_why(row.said))
        else:
            found.wish = Wish(told.THERE if row is not None else told.QUEUED, "")


def _outside(size: int, uploads: Uploads) -> str | None:
    """Why a content of that size is not put there for members; None if it is."""
    if uploads.settings.takes(size):
        return None
    return f"{size} bytes are outside the limits of the node that was asked"


def told_why(said: str | None) -> str:
    """A reason that fits a message."""
    from kachery_p2p.wire.messages import fit_reason

    return fit_reason(said or "")
