"""For the tests of feeds: an owner that signs whatever it is told to, and a log in memory."""

from __future__ import annotations

from collections.abc import Sequence

from kachery_p2p.content.hashes import FeedId, sha1_of
from kachery_p2p.errors import FeedRestoredError, ProofError
from kachery_p2p.feeds.messages import message_entries
from kachery_p2p.feeds.told import SubfeedName
from kachery_p2p.feeds.tombstones import End, Tombstone
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeKey
from kachery_p2p.log.forks import ForkProof
from kachery_p2p.log.heads import Head, LogId, SignedHead, sign_head
from kachery_p2p.log.tree import Frontier, leaf_hash, root_at

KEY = NodeKey.generate(bytes([77]) * NODE_KEY_BYTES)
FEED = FeedId(KEY.node_id)
NAME = SubfeedName(FEED, sha1_of(b"main"))
LOG = NAME.log


def messages(count: int, first: int = 0, what: str = "m") -> list[bytes]:
    """Entries with the texts "m0", "m1", ..."""
    return message_entries([f'"{what}{number}"' for number in range(first, first + count)], 1_000)


class MemoryLog:
    """What `feeds.log_file` is on a disk, as lists: what is in it survived every crash."""

    def __init__(self, log: LogId = LOG, key: NodeKey | None = None) -> None:
        self.log = log
        self.key = key
        self.signed: SignedHead | None = None
        self.fork: ForkProof | None = None
        self.tombstone: End | None = None
        self.restored = False
        self.kept: list[bytes] = []
        self.stored: list[bytes] = []

    @property
    def owned(self) -> bool:
        return self.key is not None

    @property
    def size(self) -> int:
        return len(self.kept)

    @property
    def signed_size(self) -> int:
        return 0 if self.signed is None else self.signed.size

    def root_at(self, size: int) -> bytes:
        return root_at(size, self.read_hash)

    def read_hash(self, place: int) -> bytes:
        return self.stored[place]

    def frontier(self) -> Frontier:
        return Frontier.at(self.size, self.read_hash)

    def entries(self, first: int, count_max: int, bytes_max: int) -> list[bytes]:
        found: list[bytes] = []
        for entry in self.kept[first : first + count_max]:
            bytes_max -= len(entry)
            if found and bytes_max < 0:
                break
            found.append(entry)
        return found

    def append(self, entries: Sequence[bytes], time_ms: int = 1_000) -> SignedHead:
        """What the owner does: entries and their head, at once."""
        assert self.key is not None
        if self.restored:
            raise FeedRestoredError("restored")
        frontier, stored = self.frontier().extended(map(leaf_hash, entries))
        signed = sign_head(Head(self.log, frontier.size, frontier.root, time_ms), self.key)
        self.keep(entries, frontier, stored, signed)
        return signed

    def keep(
        self,
        entries: Sequence[bytes],
        frontier: Frontier,
        stored: list[bytes],
        head: SignedHead | None,
    ) -> None:
        assert frontier.size == self.size + len(entries)
        assert head is None or head.size >= frontier.size
        self.kept += entries
        self.stored += stored
        self.signed = head or self.signed

    def convict(self, fork: ForkProof) -> None:
        fork.verify(self.log)
        self.fork = fork

    def end(self, tombstone: Tombstone) -> None:
        if tombstone.size <= self.size and self.root_at(tombstone.size) != tombstone.root:
            raise ProofError("of another history")
        known = () if self.tombstone is None else self.tombstone.tombstones
        self.tombstone = End.of([*known, tombstone])

    def mend(self, position: int, entry: bytes) -> None:
        self.kept[position] = entry

    def settle(self) -> None:
        self.restored = False

    def cloned(self) -> MemoryLog:
        """The same on another disk: a backup, or a copy."""
        other = MemoryLog(self.log, self.key)
        other.signed, other.fork, other.tombstone = self.signed, self.fork, self.tombstone
        other.kept, other.stored = list(self.kept), list(self.stored)
        other.restored = self.owned
        return other
