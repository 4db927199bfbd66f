"""Getting blobs from the members of our channels: who is asked, in which order, and blame.

A root is trusted when this node hashed the bytes itself (then the blob is here already)
or when the URI carries it (then it binds that one call). Everything else is the claim of
a peer: one attempt uses only sources that make the same claim, holders who have hashed
the bytes themselves go first, and after CLAIM_ATTEMPTS_MAX attempts on claims that turn
out false the load fails with the names of those who made them.

Calls for the same content share one transfer, however many clients wait. A call that is
restricted to a channel or a node (`Only`) shares one that uses nobody else, or waits for
its end: two transfers of the same bytes cannot share a partial.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio

from kachery_p2p.bucket.reading import Whose
from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.errors import (
    AllProvidersFailedError,
    InvalidRangeError,
    KacheryError,
    LoadFileError,
    PeerBusyError,
    RootMismatchError,
    UriInconsistentError,
)
from kachery_p2p.limits import CLAIM_ATTEMPTS_MAX, FIND_S_MAX, ROOTS_TRIED_MAX
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.grants import Grants
from kachery_p2p.transfer.buckets import Buckets
from kachery_p2p.transfer.calls import Call, Transfer
from kachery_p2p.transfer.fetch import Fetch
from kachery_p2p.transfer.holders import Holders
from kachery_p2p.transfer.liars import Liars, Lie
from kachery_p2p.transfer.only import ANYONE, Only
from kachery_p2p.transfer.partial_serving import Offers, PassingOn
from kachery_p2p.transfer.progress import Snapshot, Tell
from kachery_p2p.transfer.small import is_small
from kachery_p2p.transfer.sources import Claim, LentSource, Source
from kachery_p2p.transfer.suppliers import Suppliers
from kachery_p2p.transfer.whole import Wholes

log = logging.getLogger(__name__)


class Active(NamedTuple):
    """One running transfer, for `status`."""

    content: ContentHash
    root: Root
    state: Snapshot


class Downloads:
    """All transfers into this node's store."""

    def __init__(
        self,
        *,
        holders: Holders,
        blobs: BlobStore,
        grants: Grants,
        node_id: str,
        offers: Offers | None = None,
        buckets: Buckets | None = None,
    ) -> None:
        """`offers`: where what is being loaded is passed on from.

        `buckets`: what has blobs that no member has, of whose root nothing is known.
        """
        self._holders = holders
        self._blobs = blobs
        self._grants = grants
        self._node_id = node_id
        self._nursery: trio.Nursery | None = None
        self._transfers: dict[tuple[ContentHash, Root], Transfer] = {}
        self._offers = offers or Offers()
        self.liars = Liars()
        known = Buckets() if buckets is None else buckets
        self._wholes = Wholes(known, blobs, self._grant)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Transfers run while inside; leaving cancels them and keeps what they verified."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                yield
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()

    def active(self) -> list[Active]:
        return [
            Active(content, root, transfer.fetch.snapshot(trio.current_time()))
            for (content, root), transfer in self._transfers.items()
        ]

    def is_loading(self, content: ContentHash) -> bool:
        """Whether a transfer of it runs, which a call for it would join."""
        return any(one == content for one, _ in self._transfers)

    async def load(
        self, content: ContentHash, root: Root | None, tell: Tell, only: Only = ANYONE
    ) -> None:
        """The whole blob is in the store when this returns; from no sources but `only` those.

        Raises NotFoundError, AllProvidersFailedError, PeerBusyError, UriInconsistentError,
        RootMismatchError, StoreError.
        """
        await self._attempts(Call(content, await self._trusted(content, root), only), None, tell)

    async def load_range(
        self,
        content: ContentHash,
        root: Root,
        start: int,
        end: int,
        tell: Tell,
        only: Only = ANYONE,
    ) -> tuple[int, int]:
        """(descriptor, size): bytes `start` to `end` of the file behind it are verified.

        The descriptor is the caller's to close. Raises as `load`, and InvalidRangeError.
        """
        call = Call(content, await self._trusted(content, root), only)
        descriptor, size = await self._attempts(call, (start, end), tell)
        assert descriptor is not None
        return descriptor, size

    async def _attempts(
        self, call: Call, span: tuple[int, int] | None, tell: Tell
    ) -> tuple[int | None, int]:
        while True:
            try:
                transfer = await self._transfer(call)
            except LoadFileError as error:
                why = await self._wholes.bring(call.content, call.root, call.only, tell)
                if why is not None:
                    raise _also(error, why) from None
                transfer = None
            if transfer is None:
                return await trio.to_thread.run_sync(self._stored, call, span)
            listener = transfer.listeners.add(tell, transfer.view(span, call.lost))
            try:
                return await transfer.fetch.wait_for(span)
            except UriInconsistentError:
                if call.root is not None:
                    raise
                self._blame(transfer, call)
            except AllProvidersFailedError:
                # Others may say something else of it, or hold it in another channel.
                call.failures += transfer.suppliers.failures()
                call.given_up.add((transfer.fetch.root, transfer.channel, transfer.node))
            finally:
                transfer.listeners.remove(listener)

    def _stored(self, call: Call, span: tuple[int, int] | None) -> tuple[int | None, int]:
        """As of a transfer, of a blob that has come into the store meanwhile."""
        with self._blobs.open_verified(call.content) as opened:
            size = opened.root_object.size
            if call.root not in (None, opened.root_object.root):
                raise _wrong_root(call.content)
            if span is None:
                return None, size
            if not span[0] <= span[1] <= size:
                raise InvalidRangeError(f"bytes {span[0]} to {span[1]} are not in a file of {size}")
            return os.dup(opened.descriptor), size

    async def _trusted(self, content: ContentHash, root: Root | None) -> Root | None:
        """The root to insist on, if there is one: the URI's, or of bytes once hashed here."""
        pinned = await trio.to_thread.run_sync(self._blobs.pinned_root, content)
        if None not in (root, pinned) and root != pinned:
            raise _wrong_root(content)
        return root or pinned

    async def _transfer(self, call: Call) -> Transfer | None:
        """The transfer to wait for: one that runs already, or a new one.

        None when one that could not be joined has brought the blob in the end.
        """
        claims: list[Claim] = []
        while True:
            running = self._running(call)
            if running is None and claims:
                return self._begin(call.content, claims, call.only.node)
            if running is None:
                claims = await self._claims(call)
            elif call.may_join(running):
                return running
            else:
                await running.fetch.ended.wait()
                if self._blobs.find(call.content) is not None:
                    return None

    def _running(self, call: Call) -> Transfer | None:
        for (content, root), transfer in self._transfers.items():
            if content == call.content and call.wants_root(root):
                return transfer
        return None

    async def _claims(self, call: Call) -> list[Claim]:
        """Who has it, best first: pinned holders, then what most claim. Never none."""

        def wanted(claim: Claim) -> bool:
            # With a root to insist on every chunk is verified against it: anybody may try.
            node, believed = claim.source.node, call.root is not None
            believed |= self.liars.is_believed(call.content, node, claim.pinned)
            return call.may_begin(claim) and believed and self._may_use(claim, call.only)

        tried = call.wrong_roots | {root for root, _, _ in call.given_up}
        if len(call.wrong_roots) >= CLAIM_ATTEMPTS_MAX or len(tried) >= ROOTS_TRIED_MAX:
            raise self._nobody(call)
        # With something tried already there is nothing to wait for.
        patience_s = 0.0 if call.failures else FIND_S_MAX
        found = await self._holders.look(call.content, wanted, patience_s, call.only)
        if not found.claims and found.busy and not call.failures:
            raise PeerBusyError(
                f"a peer is hashing sha1://{call.content} for the first time",
                hint="try again in a minute",
            )
        if not found.claims:
            raise self._nobody(call)
        # Who is loading it says only what it was told itself: that is no second voice.
        votes = Counter(claim.root for claim in found.claims if claim.pinned)
        here = Counter((claim.root, claim.source.channel) for claim in found.claims)
        return sorted(
            found.claims,
            key=lambda c: (not c.pinned, -votes[c.root], -here[c.root, c.source.channel]),
        )

    def _blame(self, transfer: Transfer, call: Call) -> None:
        """Root and SHA-1 do not agree, and nothing but their word said that they would."""
        call.wrong_roots.add(transfer.fetch.root)
        call.lost += transfer.fetch.progress.received
        for node, claim in transfer.claimants.items():
            source, pinned = claim.source, claim.pinned
            name, what = source.name, "vouched for bytes that do not have this hash"
            if isinstance(source, LentSource) and source.disbelieve() is not Whose.PLACE:
                call.failures.append(f"{name}: was misled about its bytes")
                continue
            if pinned:
                log.warning("node %s vouched for wrong bytes of %s", node, call.content)
                self._drop(node, name, transfer.channel, call.content, what)
            call.failures.append(f"{name}: {what if pinned else 'was misled about its bytes'}")
            self.liars.note_claim(call.content, node, pinned)

    def _drop(self, node: str, name: str, channel: str, content: ContentHash, what: str) -> None:
        """A node lied: for a while it is not used in that channel."""
        self.liars.note(Lie(node, name, channel, content, what, trio.current_time()))

    def _may_use(self, claim: Claim, only: Only) -> bool:
        """False for a node that is dropped in its channel, unless the user names just this one."""
        node, channel = claim.source.node, claim.source.channel
        return only.node == node or self.liars.may_be_used(node, channel, trio.current_time())

    def dropped(self) -> list[Lie]:
        """Who lied, where and how, and is not used there for a while."""
        return self.liars.dropped(trio.current_time())

    def _nobody(self, call: Call) -> KacheryError:
        asked, names = self._holders.asked()
        return call.nobody(asked, names, [lie.name for lie in self.dropped()])

    # --- shared transfers ------------------------------------------------------------------

    def _begin(self, content: ContentHash, claims: list[Claim], node: str | None) -> Transfer:
        """Fetch what the first claim says, from those (or `node`) in its channel who agree."""
        if self._nursery is None:
            raise LoadFileError("this node is not running")
        root, channel = claims[0].root, claims[0].source.channel

        async def find_sources(failed: Collection[str]) -> list[Source]:
            def wanted(claim: Claim) -> bool:
                fits = claim.root == root and claim.source.node not in failed
                return fits and self._may_use(claim, Only(channel, node))

            claims = await self._holders.ask(content, channel, wanted, node)
            fitting = [claim for claim in claims if claim.root == root]
            return transfer.vouch([c for c in fitting if self._may_use(c, Only(channel, node))])

        same = [c for c in claims if c.root == root and c.source.channel == channel]
        suppliers = Suppliers(
            content,
            known=[claim.source for claim in same],
            find=find_sources,
            wait=self._holders.wait_for_change,
            patient=len(same) == len(claims),
            lied=lambda liar, what: self._drop(liar.node, liar.name, channel, content, what),
        )
        fetch = Fetch(
            content,
            root,
            blobs=self._blobs,
            node_id=self._node_id,
            suppliers=suppliers,
            stored=lambda: self._grant(content, channel),
            tell=lambda: transfer.told(),
            is_small=is_small(claims[0].size),
            passing_on=PassingOn(self._offers, channel),
        )
        transfer = self._transfers[content, root] = Transfer(fetch, suppliers, same, node)
        self._nursery.start_soon(self._run, fetch)
        return transfer

    async def _run(self, fetch: Fetch) -> None:
        try:
            await fetch.run()
        except Exception:
            # `run` has told everyone who waits, and logged it; other transfers go on.
            log.debug("fetch ended", exc_info=True)
        finally:
            del self._transfers[fetch.content, fetch.root]

    async def _grant(self, content: ContentHash, channel: str) -> None:
        """What is fetched in a channel may be served there, and nowhere else."""
        await trio.to_thread.run_sync(
            lambda: self._grants.grant([content], [channel], "fetched", time.time())
        )


def _wrong_root(content: ContentHash) -> RootMismatchError:
    return RootMismatchError(
        f"the URI's root is not the root of sha1://{content} as this node has hashed it",
        hint="ask whoever gave you the URI for a correct one",
    )


def _also(error: LoadFileError, why: str) -> LoadFileError:
    """The error, with why no bucket could help either."""
    return type(error)(f"{error}; {why}", hint=error.hint) if why else error
