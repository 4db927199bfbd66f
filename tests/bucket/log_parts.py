"""For the tests of logs in buckets: an owner that signs whatever it is told to."""

from __future__ import annotations

from kachery_p2p.bucket.log_book import LogBook
from kachery_p2p.bucket.log_layout import LogHead
from kachery_p2p.bucket.log_mirror import LogCopy, LogMirror
from kachery_p2p.bucket.log_reading import read_head, read_segment
from kachery_p2p.bucket.log_tree import LogTree
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.reading import Readable
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeKey
from kachery_p2p.log.entries import Entry
from kachery_p2p.log.forks import ForkProof, prove_fork
from kachery_p2p.log.heads import Head, LogId, SignedHead, sign_head
from kachery_p2p.log.tree import Frontier, leaf_hashes, root_at

KEY = NodeKey.generate(bytes([7]) * NODE_KEY_BYTES)
LOG = LogId(b"kp2p-feed-head/1", KEY.node_id, bytes(range(32)))
LAB = "1a" * 32


def entries(count: int, first: int = 0, size: int = 10, what: str = "m") -> list[bytes]:
    """Entries that differ by their number and by `what`."""
    return [
        Entry(1, 1_000, f"{what}{number}".encode().ljust(size, b".")).encode()
        for number in range(first, first + count)
    ]


class Owner:
    """A log with its key, in memory."""

    def __init__(self, log: LogId = LOG, key: NodeKey = KEY) -> None:
        self.log = log
        self.key = key
        self.entries: list[bytes] = []
        self.stored: list[bytes] = []
        self.frontier = Frontier()

    def grow(self, more: list[bytes]) -> Owner:
        self.frontier, stored = self.frontier.extended(leaf_hashes(more))
        self.entries += more
        self.stored += stored
        return self

    def head(self, size: int | None = None, time_ms: int = 5) -> SignedHead:
        size = len(self.entries) if size is None else size
        root = root_at(size, self.stored.__getitem__)
        return sign_head(Head(self.log, size, root, time_ms), self.key)

    def read(self, first: int, count: int, bytes_max: int) -> list[bytes]:
        found = self.entries[first : first + count]
        size = 0
        for number, entry in enumerate(found):
            size += len(entry)
            if number and size > bytes_max:
                return found[:number]
        return found

    def copy(self, size: int | None = None, end: int | None = None, **told: bytes) -> LogCopy:
        """The log as it is, or was when it had `size` entries, of which `end` can be read."""
        size = len(self.entries) if size is None else size
        return LogCopy(
            self.head(size),
            size if end is None else end,
            self.read,
            self.stored.__getitem__,
            name="feed",
            **told,  # type: ignore[arg-type]
        )


def forked(common: int, first: int, second: int) -> tuple[Owner, Owner, ForkProof]:
    """Two histories of one log, and the proof."""
    one = Owner().grow(entries(common)).grow(entries(first - common, common, what="a"))
    other = Owner().grow(entries(common)).grow(entries(second - common, common, what="b"))
    proof = prove_fork(
        one.head(), one.stored.__getitem__, other.head(), other.stored.__getitem__, exact=True
    )
    assert proof is not None
    return one, other, proof


def mirror(bucket: Objects, book: LogBook) -> LogMirror:
    return LogMirror(bucket, LAB, "place", book)


def all_of(place: Readable, log: LogId = LOG) -> list[bytes]:
    """Every entry that lies there, read as a reader does, each segment judged alone."""
    head = read_head(place, log)
    assert head is not None
    tree, found = LogTree(head), list[bytes]()
    for first, segment in head.spans():
        some = read_segment(place, log, first, segment)
        tree.take(first, segment, some)
        found += some
    return found


def head_of(place: Readable) -> LogHead:
    head = read_head(place, LOG)
    assert head is not None
    return head
