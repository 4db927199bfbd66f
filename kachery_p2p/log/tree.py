"""The Merkle tree of RFC 6962 over SHA-256: what a log's root is the hash of.

    leaf hash   SHA-256(00 ‖ entry bytes)
    node hash   SHA-256(01 ‖ left ‖ right)
    root        of no leaves: SHA-256 of nothing; of one: its leaf hash; of n: the node
                hash of the root of the first k leaves, k the largest power of two below
                n, and the root of the rest

A *subtree* is the hash over 2^level leaves whose first is a multiple of 2^level: once
full it never changes, so a log keeps it. Subtrees are stored in the order in which they
become full, 32 bytes each: leaf 0, leaf 1, their parent, leaf 2, leaf 3, their parent,
the parent of the parents, ... A log of n leaves has fewer than 2 n of them, a file of
them only grows, and the root at any earlier size can be had from it with at most 62
reads. Where they are stored is the caller's business: `ReadHash` gives the hash at a
place, and `[...].__getitem__` is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from typing import NamedTuple

from kachery_p2p.limits import LOG_ENTRIES_MAX

HASH_BYTES = 32
EMPTY_ROOT = sha256(b"").digest()

_LEAF = b"\x00"
_NODE = b"\x01"

# The hash at a place in stored order (`stored_place`).
ReadHash = Callable[[int], bytes]


def leaf_hash(entry: bytes) -> bytes:
    """The hash of one entry's bytes, as the tree takes it."""
    return sha256(_LEAF + entry).digest()


def leaf_hashes(entries: Iterable[bytes]) -> list[bytes]:
    """The hashes of many entries, in two thirds of the time that one by one takes."""
    return [sha256(_LEAF + entry).digest() for entry in entries]


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash over two neighbours."""
    return sha256(_NODE + left + right).digest()


class Frontier(NamedTuple):
    """What a log must remember to grow: its size, and its full subtrees from the left.

    At most 62 hashes, however long the log. It never changes; growing gives a new one,
    so a write that fails leaves the old one good.
    """

    size: int = 0
    hashes: tuple[bytes, ...] = ()

    @classmethod
    def at(cls, size: int, read: ReadHash) -> Frontier:
        """The frontier of a stored log at `size`, which may be smaller than the log is."""
        return cls(size, tuple(read(stored_place(*subtree)) for subtree in subtrees(0, size)))

    @property
    def root(self) -> bytes:
        """The root of the log."""
        return _fold(self.hashes)

    def extended(self, leaves: Iterable[bytes]) -> Extended:
        """The frontier after `leaves` (leaf hashes), and the hashes to store for them."""
        size, full, stored = self.size, list(self.hashes), []
        for hashed in leaves:
            stored.append(hashed)
            # Each trailing 1 of the size is a full subtree that now gets its right neighbour.
            neighbours = size
            while neighbours & 1:
                hashed = sha256(_NODE + full.pop() + hashed).digest()
                stored.append(hashed)
                neighbours >>= 1
            full.append(hashed)
            size += 1
        assert size <= LOG_ENTRIES_MAX, "no log is as long as that"
        return Extended(Frontier(size, tuple(full)), stored)


class Extended(NamedTuple):
    """A frontier that has grown, and the hashes to append to the stored ones, in order."""

    frontier: Frontier
    stored: list[bytes]


def root_at(size: int, read: ReadHash) -> bytes:
    """The root that the log had, or has, with `size` entries."""
    return Frontier.at(size, read).root


def root_over(first: int, end: int, read: ReadHash) -> bytes:
    """The root of the leaves from `first` up to, not including, `end`."""
    return _fold([read(stored_place(*subtree)) for subtree in subtrees(first, end)])


def subtrees(first: int, end: int) -> Iterator[tuple[int, int]]:
    """The full subtrees (level, number) under a node over the leaves `first` to `end` - 1.

    From the left, the largest first. A node that is not full is the right edge of a tree.
    """
    while first < end:
        level = (end - first).bit_length() - 1
        assert first & ((1 << level) - 1) == 0, "no node of the tree has these leaves"
        yield level, first >> level
        first += 1 << level


def stored_place(level: int, number: int) -> int:
    """The place, in stored order, of the subtree over leaves from `number` * 2^`level` on."""
    last_leaf = ((number + 1) << level) - 1
    return stored_count(last_leaf) + level


def stored_count(size: int) -> int:
    """How many hashes a log of `size` entries has stored."""
    return 2 * size - size.bit_count()


def _fold(full: tuple[bytes, ...] | list[bytes]) -> bytes:
    """The root over full subtrees given from the left."""
    if not full:
        return EMPTY_ROOT
    root = full[-1]
    for left in full[-2::-1]:
        root = node_hash(left, root)
    return root
