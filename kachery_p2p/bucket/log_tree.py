"""The Merkle tree of a log as a bucket has it: hashes from its head, and from segments once read.

Whoever has it answers for the log as a member does that has all entries: with proofs of
consistency, single hashes of the tree, and entries of the segments that were read last.
"""

from __future__ import annotations

from collections.abc import Sequence

from kachery_p2p.bucket.log_layout import LogHead, Segment, hash_over, pieces
from kachery_p2p.errors import ProofError
from kachery_p2p.limits import BUCKET_LOG_SEGMENTS_READ_MAX
from kachery_p2p.log.tree import leaf_hashes, stored_count


class LogTree:
    """The tree of the verified `head`."""

    def __init__(self, head: LogHead) -> None:
        self.head = head
        self._known = dict(head.subtrees())
        # By their first entry: the segments read last, with the hashes that came with them.
        self._read: dict[int, tuple[Sequence[bytes], dict[tuple[int, int], bytes]]] = {}

    def segment_of(self, entry: int) -> tuple[int, Segment] | None:
        """The segment that has the entry, and the number of its first; None if none has."""
        low, high = 0, len(self.head.segments)
        while low < high:
            middle = (low + high) // 2
            if self.head.segments[middle].end <= entry:
                low = middle + 1
            else:
                high = middle
        if low == len(self.head.segments):
            return None
        return (self.head.segments[low - 1].end if low else 0), self.head.segments[low]

    def take(self, first: int, segment: Segment, entries: Sequence[bytes]) -> None:
        """A segment was read. ProofError if it has not the entries that were signed."""
        known = {(0, first + at): leaf for at, leaf in enumerate(leaf_hashes(entries))}
        for piece, signed in zip(pieces(first, segment.end), segment.hashes, strict=True):
            if hash_over(known, *piece) != signed:
                raise ProofError("a segment has other entries than were signed")
        self._read[first] = entries, known
        while len(self._read) > BUCKET_LOG_SEGMENTS_READ_MAX:
            del self._read[next(iter(self._read))]
            self._known = dict(self.head.subtrees())
        for _, others in list(self._read.values()):
            self._known.update(others)

    def entries_of(self, first: int) -> Sequence[bytes] | None:
        """The entries of the segment that begins there, if it was read lately."""
        found = self._read.get(first)
        return None if found is None else found[0]

    def read_hash(self, place: int) -> bytes:
        """The stored hash at a place (`log.tree.ReadHash`). UnknownHashError."""
        return hash_over(self._known, *subtree_at(place))


def subtree_at(place: int) -> tuple[int, int]:
    """The subtree (level, number) whose hash is stored at the place: `stored_place` backwards."""
    # A log of n entries stores 2 n hashes, less one for each binary digit 1 of n.
    last_leaf = place // 2
    while stored_count(last_leaf + 1) <= place:
        last_leaf += 1
    level = place - stored_count(last_leaf)
    return level, last_leaf >> level
