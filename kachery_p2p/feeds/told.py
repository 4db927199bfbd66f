"""What one node tells another of a subfeed, between the words of the wire and ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from kachery_p2p.content.hashes import ContentHash, FeedId
from kachery_p2p.errors import LogFormatError, ProtocolError
from kachery_p2p.feeds.names import HEAD_TAG, subfeed_log
from kachery_p2p.feeds.tombstones import TOMBSTONE_BYTES, Tombstone
from kachery_p2p.limits import FEED_NEWS_BYTES_MAX
from kachery_p2p.log.entries import HEADER_BYTES
from kachery_p2p.log.forks import ForkProof
from kachery_p2p.log.heads import LogId, SignedHead
from kachery_p2p.log.proofs import Path
from kachery_p2p.wire.feed_messages import LENGTH_BYTES, pack, unpack, unpack_hashes

_NEWS_ENTRIES_MAX = FEED_NEWS_BYTES_MAX // (LENGTH_BYTES + HEADER_BYTES)


class SubfeedName(NamedTuple):
    """Which subfeed: the feed, and the hash of the subfeed's name."""

    feed: FeedId
    name: ContentHash

    @property
    def log(self) -> LogId:
        """The log that the subfeed is."""
        return subfeed_log(self.feed, self.name)

    def body(self, channel: str) -> dict[str, Any]:
        """The fields that name it, asked for in a channel."""
        return {"channel": channel, "feed": self.feed.raw, "name": self.name.raw}

    @classmethod
    def of(cls, body: dict[str, Any]) -> SubfeedName:
        """The subfeed that the fields of a request name."""
        return cls(FeedId.of_raw(body["feed"]), ContentHash.of_raw(body["name"]))


class Told(NamedTuple):
    """What somebody says of a subfeed. Nothing of it is verified."""

    head: SignedHead | None = None
    fork: ForkProof | None = None
    tombstones: tuple[Tombstone, ...] = ()
    # How the log grew, from the smaller to the larger of `base` entries and the head.
    base: int = 0
    path: Path = ()
    # The entries from `base` on up to the head, if they were told too.
    entries: Sequence[bytes] = ()

    @property
    def known(self) -> dict[str, bytes]:
        """The fields of a message that say what is known."""
        return {
            "head": b"" if self.head is None else self.head.encode(),
            "fork": b"" if self.fork is None else self.fork.encode(),
            "tombstone": b"".join(tombstone.encode() for tombstone in self.tombstones),
        }

    @property
    def news(self) -> dict[str, Any]:
        """The fields of a message that brings news."""
        entries = pack(self.entries)
        assert len(entries) <= FEED_NEWS_BYTES_MAX
        return {**self.known, "base": self.base, "path": b"".join(self.path), "entries": entries}

    @classmethod
    def of(cls, body: dict[str, Any], base: int = 0) -> Told:
        """What a message or an answer tells; ProtocolError if it spells nothing."""
        try:
            known = cls(
                SignedHead.decode(body["head"], HEAD_TAG) if body["head"] else None,
                ForkProof.decode(body["fork"], HEAD_TAG) if body["fork"] else None,
                tuple(map(Tombstone.decode, _cut(body["tombstone"]))),
                body.get("base", base),
                unpack_hashes(body.get("path", b"")),
            )
        except LogFormatError as error:
            raise ProtocolError(f"what it told of a feed is wrong: {error}")
        packed = body.get("entries", b"")
        return known._replace(entries=unpack(packed, _NEWS_ENTRIES_MAX)) if packed else known


def _cut(data: bytes) -> list[bytes]:
    return [data[at : at + TOMBSTONE_BYTES] for at in range(0, len(data), TOMBSTONE_BYTES)]
