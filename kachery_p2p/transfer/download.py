"""Getting blobs from the members of our channels: who is asked, in which order, and blame.

A root is trusted when this node hashed the bytes itself (then the blob is here already)
or when the URI carries it (then it binds that one call). Everything else is the claim of
a peer: one attempt uses only sources that make the same claim, holders who have hashed
the bytes themselves go first, and after CLAIM_ATTEMPTS_MAX attempts on claims that turn
out false the load fails with the names of those who made them.

Calls for the same content share one transfer, however many clients wait.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.errors import (
    AllProvidersFailedError,
    KacheryError,
    LoadFileError,
    NotFoundError,
    PeerBusyError,
    RootMismatchError,
    UriInconsistentError,
)
from kachery_p2p.limits import CLAIM_ATTEMPTS_MAX, FIND_S_MAX, LIARS_MAX
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.grants import Grants
from kachery_p2p.transfer.fetch import Fetch, State
from kachery_p2p.transfer.sources import Claim, Holders, Source
from kachery_p2p.transfer.suppliers import Suppliers

log = logging.getLogger(__name__)

Tell = Callable[[State], None]


class Active(NamedTuple):
    """One running transfer, for `status`."""

    content: ContentHash
    state: State
    rate: float


class _Meter:
    """Bytes a second since a transfer began, not counting what an earlier run had left."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._first = 0
        self.rate = 0.0

    def see(self, state: State) -> None:
        now = trio.current_time()
        if self._began is None:
            self._began, self._first = now, state.bytes
        elif now > self._began:
            self.rate = (state.bytes - self._first) / (now - self._began)


class _Transfer:
    """A running fetch, and who is told about it or answers for it."""

    def __init__(self, fetch: Fetch, suppliers: Suppliers, claims: list[Claim]) -> None:
        self.fetch = fetch
        self.suppliers = suppliers
        self.channel = claims[0].source.channel
        self.meter = _Meter()
        self.listeners: list[Tell] = []
        # Names by node id of all who claim that the content has this root.
        self.claimants: dict[str, str] = {}
        self.vouch(claims)

    def vouch(self, claims: list[Claim]) -> list[Source]:
        self.claimants.update({claim.source.node: claim.source.name for claim in claims})
        return [claim.source for claim in claims]

    def told(self, state: State) -> None:
        self.meter.see(state)
        for tell in tuple(self.listeners):
            tell(state)


class _Call:
    """One call of `load`: what it tried without success, and why that failed."""

    def __init__(self, content: ContentHash, root: Root | None) -> None:
        self.content = content
        self.root = root
        self.wrong_roots: set[Root] = set()
        self.given_up: set[tuple[Root, str]] = set()
        self.failures: list[str] = []

    def wants(self, root: Root, channel: str) -> bool:
        """True for a root that may be tried in a channel."""
        wanted = self.root in (None, root) and root not in self.wrong_roots
        return wanted and (root, channel) not in self.given_up


class Downloads:
    """All transfers into this node's store."""

    def __init__(
        self,
        *,
        holders: Holders,
        blobs: BlobStore,
        grants: Grants,
        node_id: str,
    ) -> None:
        self._holders = holders
        self._blobs = blobs
        self._grants = grants
        self._node_id = node_id
        self._nursery: trio.Nursery | None = None
        self._transfers: dict[tuple[ContentHash, Root], _Transfer] = {}
        # Which nodes vouched for bytes under a content that turned out not to have them.
        self._liars: dict[tuple[ContentHash, str], None] = {}

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
            Active(content, transfer.fetch.state(), transfer.meter.rate)
            for (content, _), transfer in self._transfers.items()
        ]

    async def load(self, content: ContentHash, root: Root | None, tell: Tell) -> None:
        """The whole blob is in the store when this returns.

        Raises NotFoundError, AllProvidersFailedError, PeerBusyError, UriInconsistentError,
        RootMismatchError, StoreError.
        """
        await self._attempts(content, root, None, tell)

    async def load_range(
        self, content: ContentHash, root: Root, start: int, end: int, tell: Tell
    ) -> tuple[int, int]:
        """(descriptor, size): bytes `start` to `end` of the file behind it are verified.

        The descriptor is the caller's to close. Raises as `load`, and InvalidRangeError.
        """
        descriptor, size = await self._attempts(content, root, (start, end), tell)
        assert descriptor is not None
        return descriptor, size

    async def _attempts(
        self, content: ContentHash, root: Root | None, span: tuple[int, int] | None, tell: Tell
    ) -> tuple[int | None, int]:
        call = _Call(content, await self._trusted(content, root))
        while True:
            transfer = await self._transfer(call)
            transfer.listeners.append(tell)
            try:
                return await transfer.fetch.wait_for(span)
            except UriInconsistentError:
                if call.root is not None:
                    raise
                self._blame(transfer, call)
            except AllProvidersFailedError:
                # Others may say something else of it, or hold it in another channel.
                call.failures += transfer.suppliers.failures()
                call.given_up.add((transfer.fetch.root, transfer.channel))
            finally:
                transfer.listeners.remove(tell)

    async def _trusted(self, content: ContentHash, root: Root | None) -> Root | None:
        """The root to insist on, if there is one: the URI's, or of bytes once hashed here."""
        pinned = await trio.to_thread.run_sync(self._blobs.pinned_root, content)
        if None not in (root, pinned) and root != pinned:
            raise RootMismatchError(
                f"the URI's root is not the root of sha1://{content} as this node has hashed it",
                hint="ask whoever gave you the URI for a correct one",
            )
        return root or pinned

    async def _transfer(self, call: _Call) -> _Transfer:
        """The transfer to wait for: one that runs already, or a new one."""
        claims: list[Claim] = []
        while True:
            running = self._running(call)
            if running is None and claims:
                return self._begin(call.content, claims)
            if running is None:
                claims = await self._claims(call)
            elif running.fetch.closing or not call.wants(running.fetch.root, running.channel):
                await running.fetch.ended.wait()
            else:
                return running

    def _running(self, call: _Call) -> _Transfer | None:
        for (content, root), transfer in self._transfers.items():
            wanted = call.root in (None, root) and root not in call.wrong_roots
            if content == call.content and wanted:
                return transfer
        return None

    async def _claims(self, call: _Call) -> list[Claim]:
        """Who has it, best first: pinned holders, then what most claim. Never none."""

        def wanted(claim: Claim) -> bool:
            # With a root to insist on every chunk is verified against it: anybody may try.
            lied = call.root is None and (call.content, claim.source.node) in self._liars
            return call.wants(claim.root, claim.source.channel) and not lied

        if len(call.wrong_roots) >= CLAIM_ATTEMPTS_MAX:
            raise self._nobody(call)
        # With something tried already there is nothing to wait for.
        patience_s = 0.0 if call.failures else FIND_S_MAX
        found = await self._holders.look(call.content, wanted, patience_s)
        if not found.claims and found.busy and not call.failures:
            raise PeerBusyError(
                f"a peer is hashing sha1://{call.content} for the first time",
                hint="try again in a minute",
            )
        if not found.claims:
            raise self._nobody(call)
        votes = Counter(claim.root for claim in found.claims)
        here = Counter((claim.root, claim.source.channel) for claim in found.claims)
        return sorted(
            found.claims,
            key=lambda c: (not c.pinned, -votes[c.root], -here[c.root, c.source.channel]),
        )

    def _blame(self, transfer: _Transfer, call: _Call) -> None:
        """Root and SHA-1 do not agree, and nothing but their word said that they would."""
        call.wrong_roots.add(transfer.fetch.root)
        for node, name in transfer.claimants.items():
            log.warning("node %s vouched for wrong bytes of %s", node, call.content)
            call.failures.append(f"{name}: vouched for bytes that do not have this hash")
            if len(self._liars) >= LIARS_MAX:
                del self._liars[next(iter(self._liars))]
            self._liars[call.content, node] = None

    def _nobody(self, call: _Call) -> KacheryError:
        if call.failures:
            told = "; ".join(dict.fromkeys(call.failures))
            return AllProvidersFailedError(
                f"no provider delivered sha1://{call.content} ({told})",
                hint="what arrived is kept: run it again when a provider is back",
            )
        asked, names = self._holders.asked()
        where = "channel " + ", ".join(names) if names else "any channel (none is joined)"
        if not asked:
            return NotFoundError(
                f"sha1://{call.content} is not stored here, and no peer in {where} is connected",
                hint="start the other node, or give its address: `kachery-p2p start --bootstrap`",
            )
        with_root = " with the root of the URI" if call.root is not None else ""
        return NotFoundError(
            f"no peer in {where} holds sha1://{call.content}{with_root} ({asked} asked)",
            hint="ask the owner to start their node, and to share the file in the channel",
        )

    # --- shared transfers ------------------------------------------------------------------

    def _begin(self, content: ContentHash, claims: list[Claim]) -> _Transfer:
        """Fetch what the first claim says, from those in its channel who say the same."""
        if self._nursery is None:
            raise LoadFileError("this node is not running")
        root, channel = claims[0].root, claims[0].source.channel

        async def find_sources(failed: Collection[str]) -> list[Source]:
            def wanted(claim: Claim) -> bool:
                return claim.root == root and claim.source.node not in failed

            claims = await self._holders.ask(content, channel, wanted)
            return transfer.vouch([claim for claim in claims if claim.root == root])

        same = [c for c in claims if c.root == root and c.source.channel == channel]
        suppliers = Suppliers(
            content,
            known=[claim.source for claim in same],
            find=find_sources,
            wait=self._holders.wait_for_change,
            patient=len(same) == len(claims),
        )
        fetch = Fetch(
            content,
            root,
            blobs=self._blobs,
            node_id=self._node_id,
            suppliers=suppliers,
            stored=lambda: self._grant(content, channel),
            tell=lambda state: transfer.told(state),
        )
        transfer = self._transfers[content, root] = _Transfer(fetch, suppliers, same)
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
