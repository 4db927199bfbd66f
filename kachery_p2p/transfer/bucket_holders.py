"""Asking members and buckets together who has a blob."""

from __future__ import annotations

from collections.abc import Callable

import trio

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.content.manifests import CONTENT_BYTES_MAX
from kachery_p2p.limits import BUCKET_WHOLE_PATIENCE_S
from kachery_p2p.network.bulk_sessions import Bulk
from kachery_p2p.network.link import Link
from kachery_p2p.network.sessions import Sessions
from kachery_p2p.transfer.bucket_source import BucketSource
from kachery_p2p.transfer.buckets import Buckets, Kept
from kachery_p2p.transfer.holders import Answers, Holders
from kachery_p2p.transfer.only import ANYONE, Only
from kachery_p2p.transfer.rounds import Announcements
from kachery_p2p.transfer.sources import Claim


class HoldersAndBuckets(Holders):
    """As `Holders`; a bucket that tells a content's root is one more claim.

    The first who look wait for a bucket only if no member has it; those who look again, for
    a transfer that runs, wait for it, so that it is mixed with members.
    """

    def __init__(
        self,
        sessions: Sessions,
        link: Link,
        announcements: Announcements | None = None,
        bulk: Bulk | None = None,
        *,
        buckets: Buckets,
    ) -> None:
        super().__init__(sessions, link, announcements, bulk)
        self._buckets = buckets

    async def look(
        self,
        content: ContentHash,
        wanted: Callable[[Claim], bool],
        patience_s: float,
        only: Only = ANYONE,
    ) -> Answers:
        """With a bucket that has the whole of it, absent members are hardly waited for."""
        await self._buckets.be_current()
        if not self._buckets or patience_s <= 0:
            return await super().look(content, wanted, patience_s, only)
        said = await super().look(content, wanted, 0.0, only)
        if said.claims:
            return said
        if self._buckets.known(content, only):
            patience_s = min(patience_s, BUCKET_WHOLE_PATIENCE_S)
        return await super().look(content, wanted, patience_s, only)

    async def ask(
        self,
        content: ContentHash,
        channel: str,
        wanted: Callable[[Claim], bool] = lambda claim: True,
        node: str | None = None,
    ) -> list[Claim]:
        """Who has it now, buckets included, however slow they are to answer."""
        if not self._buckets:
            return await super().ask(content, channel, wanted, node)
        kept: list[Kept] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._buckets.look, content, Only(channel, node), kept)
            claims = await super().ask(content, channel, wanted, node)
        known = {claim.source.node for claim in claims}
        told = self._claims(content, kept)
        return claims + [claim for claim in told if claim.source.node not in known]

    async def _ask_members(
        self, content: ContentHash, only: Only, wanted: Callable[[Claim], bool]
    ) -> Answers:
        if not self._buckets:
            return await super()._ask_members(content, only, wanted)
        kept: list[Kept] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._buckets.look, content, only, kept)
            said = await super()._ask_members(content, only, wanted)
            if any(map(wanted, said.claims)):
                nursery.cancel_scope.cancel()
        kept = kept or self._buckets.known(content, only)
        return said._replace(claims=said.claims + self._claims(content, kept))

    def _claims(self, content: ContentHash, kept: list[Kept]) -> list[Claim]:
        """What buckets tell that can be verified piece by piece."""
        return [
            Claim(
                BucketSource(one, content, self._buckets), one.meta.size, one.meta.root, pinned=True
            )
            for one in kept
            # As much as that size asks for is read of its chunk hashes, into memory.
            if one.meta.root is not None and one.meta.size <= CONTENT_BYTES_MAX
        ]
