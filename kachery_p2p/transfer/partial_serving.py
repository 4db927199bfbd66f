"""What this node is loading and passes on already: the verified chunks of blobs not yet whole.

A blob that is loaded in a channel will be granted there once it is whole. Until then its
verified chunks are served to the members who may read there, under the root that they were
verified by and no other. Nothing is said of its SHA-1: that only the whole blob shows, so a
blob offered here is claimed as not pinned. Whoever reads a few ranges offers nothing; nor does
who goes on with what came in another channel, for it is not known here that its members have it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.manifests import RootObject, page_length
from kachery_p2p.errors import NotYetError, PeerRefusedError, StoreError, VerificationError
from kachery_p2p.limits import PAGE_CHUNKS_MAX
from kachery_p2p.store.partials import Partial

_HASH_BYTES = 32


def chunks_in(root_object: RootObject, page: int) -> int:
    """How many chunks a page of the content covers."""
    return page_length(root_object.size, page) // _HASH_BYTES


def all_bits(root_object: RootObject, page: int) -> bytes:
    """The answer of whoever has all chunks of a page."""
    count = chunks_in(root_object, page)
    return ((1 << count) - 1).to_bytes(-(-count // 8), "little")


class Offer:
    """The verified chunks of one blob, for the members of one channel, while it is loaded."""

    def __init__(self, channel: str, partial: Partial) -> None:
        self.channel = channel
        self.root_object: RootObject = partial.root_object
        # The load ended without the blob: nothing of it may be served any more.
        self.withdrawn = False
        self._partial = partial

    def bits(self, page: int) -> bytes:
        """Which chunks of a page are here: bit i % 8 of byte i // 8 is the page's chunk i."""
        start = page * PAGE_CHUNKS_MAX
        return self._partial.have.part(start, start + chunks_in(self.root_object, page))

    def page(self, number: int) -> bytes:
        """The page. Raises NotYetError if it is not here, or the load has ended."""
        try:
            if not self.withdrawn:
                return self._partial.page(number)
        except (VerificationError, StoreError):
            pass
        raise NotYetError("does not have that page yet")

    def open(self, chunks: range) -> int:
        """A descriptor to read these chunks from, the caller's to close.

        Raises NotYetError unless all of them are here, verified, and when the load has just
        ended, with the blob or with nothing; PeerRefusedError for chunks that there are not.
        """
        if chunks.stop > self.root_object.chunk_count:
            raise PeerRefusedError("not available in this channel")
        try:
            if not self.withdrawn and all(number in self._partial.have for number in chunks):
                return self._partial.open_data()
        except StoreError:
            pass
        raise NotYetError("does not have that part yet")


class PartInBulk:
    """Chunks of an offer, while one request for them on a bulk connection is answered."""

    def __init__(self, offer: Offer, descriptor: int, revoked: Callable[[], bool]) -> None:
        self._offer = offer
        self._revoked = revoked
        self.descriptor = descriptor
        self.size = offer.root_object.size

    def revoked(self) -> bool:
        """True if the peer may have no more of it. Asked in a thread, before each chunk."""
        return self._offer.withdrawn or self._revoked()

    def close(self) -> None:
        """The request has ended."""
        os.close(self.descriptor)


class Offers:
    """All that this node is loading and passes on. Used in trio; an `Offer` in any thread."""

    def __init__(self) -> None:
        self._offers: dict[tuple[ContentHash, str, Root], Offer] = {}

    def make(self, channel: str, partial: Partial) -> Offer:
        """From now on the verified chunks of `partial` are served in `channel`."""
        offer = Offer(channel, partial)
        self._offers[self._key(offer)] = offer
        return offer

    def end(self, offer: Offer, *, stored: bool) -> None:
        """The load has ended, with the blob in the store or without. Harmless twice."""
        offer.withdrawn = offer.withdrawn or not stored
        if self._offers.get(self._key(offer)) is offer:
            del self._offers[self._key(offer)]

    def find(self, content: ContentHash, channel: str, root: Root | None = None) -> Offer | None:
        """What of `content` is passed on in `channel`, under `root` or (None) any."""
        if root is not None:
            return self._offers.get((content, channel, root))
        return next(
            (
                offer
                for (offered, where, _), offer in self._offers.items()
                if (offered, where) == (content, channel)
            ),
            None,
        )

    def contents(self, channel: str) -> Collection[ContentHash]:
        """What is being loaded and passed on in a channel, to be announced there."""
        return {content for content, where, _ in self._offers if where == channel}

    @staticmethod
    def _key(offer: Offer) -> tuple[ContentHash, str, Root]:
        return offer.root_object.content, offer.channel, offer.root_object.root


class PassingOn:
    """What one load in `channel` offers: its partial, as long as somebody wants all of the blob."""

    def __init__(self, offers: Offers, channel: str) -> None:
        self._offers = offers
        self.channel = channel
        self._offer: Offer | None = None

    def update(self, partial: Partial, wanted: bool) -> None:
        """Whether somebody wants all of it just now; its bitmap tells what is verified.

        A blob of one chunk is there or not: there is nothing to pass on of it.
        """
        if not wanted:
            self.end(stored=False)
        elif self._offer is None and partial.is_of_channel and partial.root_object.chunk_count > 1:
            self._offer = self._offers.make(self.channel, partial)

    def end(self, *, stored: bool) -> None:
        """Nobody wants it all any more, or the blob is `stored`. Harmless twice."""
        offer, self._offer = self._offer, None
        if offer is not None:
            self._offers.end(offer, stored=stored)
