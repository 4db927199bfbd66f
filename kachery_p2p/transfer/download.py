"""Getting blobs from the members of our channels: who is asked, in which order, and blame.

A root is trusted when this node hashed the bytes itself (then the blob is here already)
or when the URI carries it (then it binds that one call). Everything else is the claim of
a peer: one attempt uses only sources that make the same claim, holders who have hashed
the bytes themselves go first, and after CLAIM_ATTEMPTS_MAX attempts on claims that turn
out false the load fails with the names of those who made them (DESIGN: D4, "claims").

Calls for the same content share one transfer, however many clients wait.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.errors import (
    AllProvidersFailedError,
    KacheryError,
    LoadFileError,
    NotFoundError,
    UriInconsistentError,
)
from kachery_p2p.limits import CLAIM_ATTEMPTS_MAX, FIND_S_MAX
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.grants import Grants
from kachery_p2p.transfer.fetch import Fetch, State
from kachery_p2p.transfer.sources import Claim, Holders, Source

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
        self._fetches: dict[tuple[ContentHash, Root], Fetch] = {}
        self._meters: dict[Fetch, _Meter] = {}
        self._listeners: dict[Fetch, set[Tell]] = {}
        # Who vouched for bytes under a content that turned out not to have them.
        self._liars: dict[ContentHash, set[str]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Transfers run while inside; leaving cancels them and keeps what they verified."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()

    def active(self) -> list[Active]:
        return [
            Active(fetch.content, fetch.state(), self._meters[fetch].rate)
            for fetch in self._fetches.values()
        ]

    async def load(self, content: ContentHash, root: Root | None, tell: Tell) -> None:
        """The whole blob is in the store when this returns.

        Raises NotFoundError, AllProvidersFailedError, UriInconsistentError, StoreError.
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
        blamed: list[str] = []
        for _ in range(1 if root is not None else CLAIM_ATTEMPTS_MAX):
            claims = await self._claims(content, root)
            if not claims:
                raise self._nobody(content, root, blamed)
            chosen = claims[0]
            try:
                return await self._fetch(content, chosen.root, chosen.source.channel, span, tell)
            except UriInconsistentError:
                if root is not None:
                    raise
                false = [c.source.name for c in claims if c.root == chosen.root]
                log.warning("nodes %s vouched for wrong bytes of %s", false, content)
                self._liars.setdefault(content, set()).update(false)
                blamed += [
                    f"{name}: vouched for bytes that do not have this hash" for name in false
                ]
        raise self._nobody(content, root, blamed)

    async def _claims(self, content: ContentHash, root: Root | None) -> list[Claim]:
        """Who has it, best first: pinned holders, then the root most claim."""
        liars = self._liars.get(content, set())
        claims = await self._holders.find(
            content, lambda c: c.source.name not in liars and root in (None, c.root), FIND_S_MAX
        )
        votes = {c.root: sum(1 for d in claims if d.root == c.root) for c in claims}
        return sorted(claims, key=lambda c: (not c.pinned, -votes[c.root]))

    def _nobody(self, content: ContentHash, root: Root | None, blamed: list[str]) -> KacheryError:
        if blamed:
            return AllProvidersFailedError(
                f"no provider delivered sha1://{content} ({'; '.join(blamed)})"
            )
        asked, names = self._holders.asked()
        where = "channel " + ", ".join(names) if names else "any channel (none is joined)"
        if not asked:
            return NotFoundError(
                f"sha1://{content} is not stored here, and no peer in {where} is connected",
                hint="start the other node, or give its address: `kachery-p2p start --bootstrap`",
            )
        with_root = " with the root of the URI" if root is not None else ""
        return NotFoundError(
            f"no peer in {where} holds sha1://{content}{with_root} ({asked} asked)",
            hint="ask the owner to start their node, and to share the file in the channel",
        )

    # --- shared transfers ------------------------------------------------------------------

    async def _fetch(
        self,
        content: ContentHash,
        root: Root,
        channel: str,
        span: tuple[int, int] | None,
        tell: Tell,
    ) -> tuple[int | None, int]:
        while True:
            fetch = self._fetches.get((content, root))
            if fetch is None:
                fetch = self._begin(content, root, channel)
            if not fetch.closing:
                break
            await fetch.ended.wait()
        self._listeners[fetch].add(tell)
        try:
            return await fetch.wait_for(span)
        finally:
            self._listeners.get(fetch, set()).discard(tell)

    def _begin(self, content: ContentHash, root: Root, channel: str) -> Fetch:
        async def find_sources() -> list[Source]:
            claims = await self._holders.ask(content, channel)
            return [c.source for c in claims if c.root == root]

        fetch = Fetch(
            content,
            root,
            blobs=self._blobs,
            node_id=self._node_id,
            find_sources=find_sources,
            wait_for_sources=self._holders.wait_for_change,
            stored=lambda: self._grant(content, channel),
            tell=lambda state: self._told(fetch, state),
        )
        self._fetches[content, root] = fetch
        self._meters[fetch] = _Meter()
        self._listeners[fetch] = set()
        if self._nursery is None:
            raise LoadFileError("this node is not running")
        self._nursery.start_soon(self._run, fetch)
        return fetch

    async def _run(self, fetch: Fetch) -> None:
        try:
            await fetch.run()
        except Exception:
            # `run` has told everyone who waits, and logged it; other transfers go on.
            log.debug("fetch ended", exc_info=True)
        finally:
            del self._fetches[fetch.content, fetch.root]
            del self._meters[fetch], self._listeners[fetch]

    async def _grant(self, content: ContentHash, channel: str) -> None:
        """What is fetched in a channel may be served there, and nowhere else (D6)."""
        await trio.to_thread.run_sync(
            lambda: self._grants.grant([content], [channel], "fetched", time.time())
        )

    def _told(self, fetch: Fetch, state: State) -> None:
        self._meters[fetch].see(state)
        for tell in tuple(self._listeners[fetch]):
            tell(state)
