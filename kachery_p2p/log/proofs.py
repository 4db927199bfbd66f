"""Proofs about a log: that an entry is in it, and that it only ever grew.

A proof is a *path*: the hashes that, with what the reader already has, fold into the
root that the owner signed. Nothing that comes with a path is believed: the numbers are
bounded, the length follows from them, and a path that is too short, too long or wrong
anywhere is a ProofError. What the proof is about (size and root) must come from a head
that was verified: the root alone does not tell the size.

RFC 6962, section 2.1 has the proofs, RFC 9162, sections 2.1.3.2 and 2.1.4.2 the checks.
"""

from __future__ import annotations

from kachery_p2p.errors import LogFormatError, ProofError
from kachery_p2p.limits import LOG_ENTRIES_MAX, PROOF_HASHES_MAX
from kachery_p2p.log.tree import EMPTY_ROOT, HASH_BYTES, ReadHash, node_hash, root_over

Path = tuple[bytes, ...]


def prove_inclusion(index: int, size: int, read: ReadHash) -> Path:
    """The proof that entry `index` is in the log of `size` entries, for `verify_inclusion`.

    Costs about log2(size) reads, twice that near the right edge. ProofError if there is
    no such entry: a peer may have asked.
    """
    _check_entry(index, size)
    first, end, path = 0, size, []
    while end - first > 1:
        middle = first + _split(end - first)
        if index < middle:
            path.append(root_over(middle, end, read))
            end = middle
        else:
            path.append(root_over(first, middle, read))
            first = middle
    return tuple(reversed(path))


def verify_inclusion(index: int, size: int, leaf: bytes, path: Path, root: bytes) -> None:
    """Pass if the log of `size` entries with `root` has `leaf` at `index`; else ProofError."""
    _check_entry(index, size)
    if len(path) != inclusion_length(index, size):
        raise ProofError(f"a proof of {len(path)} hashes is not one for entry {index} of {size}")
    _check_hashes(leaf, root, *path)
    inner = _levels_below_parting(index, size - 1)
    folded = _fold_left(_fold_inner(leaf, path[:inner], index), path[inner:])
    if folded != root:
        raise ProofError(f"entry {index} is not in the log of {size} entries")


def prove_consistency(old: int, new: int, read: ReadHash) -> Path:
    """The proof that the log of `new` entries begins with all of the log of `old` entries.

    Empty if `old` is 0 or `new`. ProofError if `old` is the larger.
    """
    _check_sizes(old, new)
    if old == 0:
        return ()
    first, end, path = 0, new, []
    while end != old:
        middle = first + _split(end - first)
        if old <= middle:
            path.append(root_over(middle, end, read))
            end = middle
        else:
            path.append(root_over(first, middle, read))
            first = middle
    if first:  # else it is the old root, which the reader has
        path.append(root_over(first, end, read))
    return tuple(reversed(path))


def verify_consistency(old: int, old_root: bytes, new: int, new_root: bytes, path: Path) -> None:
    """Pass if the log of `new` entries begins with all entries of the `old` one; else ProofError.

    That they have these roots is not what is proved: both must come from verified heads.
    """
    _check_sizes(old, new)
    if len(path) != consistency_length(old, new):
        raise ProofError(f"a proof of {len(path)} hashes is not one from {old} to {new} entries")
    _check_hashes(old_root, new_root, *path)
    if old in (0, new):
        _check_roots_alone(old, old_root, new, new_root)
    elif _fold_both(old, old_root, new, path) != (old_root, new_root):
        raise ProofError(f"the log of {new} entries does not continue the one of {old}")


def inclusion_length(index: int, size: int) -> int:
    """How many hashes the path of entry `index` of `size` has."""
    inner = _levels_below_parting(index, size - 1)
    return inner + (index >> inner).bit_count()


def consistency_length(old: int, new: int) -> int:
    """How many hashes the proof from `old` to `new` entries has."""
    if old in (0, new):
        return 0
    # The proof is the path of the largest full subtree that ends where the old log did, and
    # that subtree itself, unless it is all of the old log.
    level = _trailing_zeros(old)
    path = inclusion_length((old - 1) >> level, ((new - 1) >> level) + 1)
    return path + (old != 1 << level)


def encode_path(path: Path) -> bytes:
    """The bytes of a path: its hashes, one after the other."""
    return b"".join(path)


def decode_path(data: bytes) -> Path:
    """The path that `data` spells; LogFormatError unless it is 0 to 63 whole hashes."""
    if len(data) % HASH_BYTES or len(data) > PROOF_HASHES_MAX * HASH_BYTES:
        raise LogFormatError(f"a proof cannot have {len(data)} bytes")
    return tuple(data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES))


def _fold_both(old: int, old_root: bytes, new: int, path: Path) -> tuple[bytes, bytes]:
    """The roots at both sizes that follow from a path of the right length; 0 < `old` < `new`."""
    level = _trailing_zeros(old)
    number, last = (old - 1) >> level, (new - 1) >> level
    subtree, path = (old_root, path) if old == 1 << level else (path[0], path[1:])
    inner = _levels_below_parting(number, last)
    # The old log ends with the subtree, so what is beside it to the right was not there yet.
    lefts = tuple(hashed for bit, hashed in enumerate(path[:inner]) if number >> bit & 1)
    old_fold = _fold_left(subtree, lefts + path[inner:])
    return old_fold, _fold_left(_fold_inner(subtree, path[:inner], number), path[inner:])


def _levels_below_parting(number: int, last: int) -> int:
    """Levels below the node where the ways from the root to node `number` and to the `last` part.

    On each of them the node has a neighbour. From there up, where the way runs along the right
    edge, it has one only where it turned right: the neighbour is then to its left.
    """
    return (number ^ last).bit_length()


def _fold_inner(folded: bytes, path: Path, number: int) -> bytes:
    """Fold one neighbour a level: from the left where `number` is odd on that level."""
    for level, beside in enumerate(path):
        odd = number >> level & 1
        folded = node_hash(beside, folded) if odd else node_hash(folded, beside)
    return folded


def _fold_left(folded: bytes, path: Path) -> bytes:
    """Fold neighbours that are all to the left."""
    for beside in path:
        folded = node_hash(beside, folded)
    return folded


def _check_roots_alone(old: int, old_root: bytes, new: int, new_root: bytes) -> None:
    """Without a path the roots must speak for themselves: `old` is 0 or `new`."""
    if (old == 0 and old_root != EMPTY_ROOT) or (new == 0 and new_root != EMPTY_ROOT):
        raise ProofError("a log without entries has another root")
    if old == new and old_root != new_root:
        raise ProofError(f"two logs of {old} entries have different roots")


def _check_entry(index: int, size: int) -> None:
    if not 0 <= index < size <= LOG_ENTRIES_MAX:
        raise ProofError(f"a log of {size} entries has no entry {index}")


def _check_sizes(old: int, new: int) -> None:
    if not 0 <= old <= new <= LOG_ENTRIES_MAX:
        raise ProofError(f"no log grows from {old} to {new} entries")


def _check_hashes(*hashes: bytes) -> None:
    if not all(isinstance(hashed, bytes) and len(hashed) == HASH_BYTES for hashed in hashes):
        raise ProofError(f"a hash has {HASH_BYTES} bytes")


def _split(count: int) -> int:
    """The largest power of two below `count`, which is above 1."""
    return 1 << ((count - 1).bit_length() - 1)


def _trailing_zeros(number: int) -> int:
    return (number & -number).bit_length() - 1
