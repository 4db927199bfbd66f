"""Reading a subfeed's entries back, none of which is believed before its hash is right."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from itertools import accumulate, takewhile

from kachery_p2p.errors import ProofError, StateCorruptError
from kachery_p2p.feeds.files import OpenFiles
from kachery_p2p.feeds.records import Span
from kachery_p2p.log.entries import ENTRY_BYTES_MAX
from kachery_p2p.log.proofs import prove_inclusion, verify_inclusion
from kachery_p2p.log.tree import Frontier, leaf_hash, leaf_hashes

_CHECKED_AT_ONCE = 4_096


class Verdict(Enum):
    """Who is wrong when an entry does not have the hash that is stored for it."""

    LEAF = "only the hash that is stored for it was, and it is mended"
    OTHER = "the entry, or its offset, or other hashes"


def read_entries(
    files: OpenFiles, first: int, count: int, bytes_max: int
) -> tuple[list[bytes], bool]:
    """The entries from `first` on, as many as fit `bytes_max`, but one at least.

    False if they end before one that does not have its hash. OSError.
    """
    spans = _fitting(files.derived.spans(first, count), bytes_max)
    leaves = files.derived.leaves(first, len(spans))
    entries = list(files.read(spans))
    hashes = leaf_hashes(entries)
    if hashes != leaves:
        sound = takewhile(lambda pair: pair[0] == pair[1], zip(hashes, leaves, strict=False))
        entries = entries[: sum(1 for _ in sound)]
    return entries, len(entries) == len(spans) > 0


def judge(files: OpenFiles, frontier: Frontier, position: int) -> Verdict:
    """Why the entry at `position` does not have its hash. OSError."""
    span = files.derived.spans(position, 1)
    if span and span[0][1] <= ENTRY_BYTES_MAX:
        leaf = leaf_hash(next(files.read(span)))
        if belongs(files, frontier, position, leaf):
            files.derived.write_leaf(position, leaf)
            return Verdict.LEAF
    return Verdict.OTHER


def belongs(files: OpenFiles, frontier: Frontier, position: int, leaf: bytes) -> bool:
    """True if the log has `leaf` at `position`, as the stored hashes prove. OSError."""
    try:
        path = prove_inclusion(position, frontier.size, files.derived.read_hash)
        verify_inclusion(position, frontier.size, leaf, path, frontier.root)
    except (ProofError, StateCorruptError):
        return False
    return True


def wrong_entries(files: OpenFiles, frontier: Frontier) -> Iterator[int]:
    """The positions of entries that do not have their hash. A million take some seconds. OSError.

    StateCorruptError if it is the stored hashes that do not fit each other.
    """
    grown = Frontier()
    while grown.size < frontier.size:
        first = grown.size
        count = min(_CHECKED_AT_ONCE, frontier.size - first)
        leaves = files.derived.leaves(first, count)
        spans = files.derived.spans(first, count)
        grown, stored = grown.extended(leaves)
        if not len(leaves) == len(spans) == count or stored != files.derived.stored(first, count):
            raise StateCorruptError("the hashes of a feed are damaged")
        for position, span in enumerate(spans, first):
            # One by one: what is read may be a mebibyte each.
            if span[1] > ENTRY_BYTES_MAX:
                raise StateCorruptError("the offsets of a feed are damaged")
            if leaf_hash(next(files.read([span]))) != leaves[position - first]:
                yield position
    if grown.root != frontier.root:
        raise StateCorruptError("the hashes of a feed are damaged")


def _fitting(spans: list[Span], bytes_max: int) -> list[Span]:
    """As many of the spans as have `bytes_max` bytes together, but one at least."""
    # An offset that is wrong can claim any length.
    sound = [span for span in spans if span[1] <= ENTRY_BYTES_MAX]
    if len(sound) < len(spans):
        sound = spans[: next(n for n, span in enumerate(spans) if span[1] > ENTRY_BYTES_MAX)]
    totals = accumulate(length for _, length in sound)
    count = sum(1 for total in totals if total <= bytes_max)
    return sound[: max(1, count)]
