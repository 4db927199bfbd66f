"""The tree and its proofs against RFC 6962 itself: a slow second implementation, and the vectors.

The second implementation follows the definitions of RFC 6962, section 2.1 word by word, and
the checks of RFC 9162, sections 2.1.3.2 and 2.1.4.2. It shares nothing with the room `log`.
"""

from __future__ import annotations

import json
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.errors import ProofError
from kachery_p2p.log.proofs import (
    consistency_length,
    inclusion_length,
    prove_consistency,
    prove_inclusion,
    verify_consistency,
    verify_inclusion,
)
from kachery_p2p.log.tree import Frontier, leaf_hash, root_at, stored_count

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors/log.json").read_text())
PUBLISHED = VECTORS["published"]
SIZE_MAX = 130

# --- the second implementation ----------------------------------------------------------


def split(entries: tuple[bytes, ...]) -> int:
    k = 1
    while 2 * k < len(entries):
        k *= 2
    return k


@cache  # only because every size and pair takes it 16,000 times
def tree_hash(entries: tuple[bytes, ...]) -> bytes:
    """MTH(D[n])."""
    if not entries:
        return sha256().digest()
    if len(entries) == 1:
        return sha256(b"\x00" + entries[0]).digest()
    k = split(entries)
    return sha256(b"\x01" + tree_hash(entries[:k]) + tree_hash(entries[k:])).digest()


def audit_path(m: int, entries: tuple[bytes, ...]) -> list[bytes]:
    """PATH(m, D[n])."""
    if len(entries) == 1:
        return []
    k = split(entries)
    if m < k:
        return [*audit_path(m, entries[:k]), tree_hash(entries[k:])]
    return [*audit_path(m - k, entries[k:]), tree_hash(entries[:k])]


def subproof(m: int, entries: tuple[bytes, ...], whole: bool) -> list[bytes]:
    """SUBPROOF(m, D[n], b)."""
    if m == len(entries):
        return [] if whole else [tree_hash(entries)]
    k = split(entries)
    if m <= k:
        return [*subproof(m, entries[:k], whole), tree_hash(entries[k:])]
    return [*subproof(m - k, entries[k:], False), tree_hash(entries[:k])]


def path_holds(index: int, size: int, leaf: bytes, path: list[bytes], root: bytes) -> bool:
    """RFC 9162, 2.1.3.2."""
    if index >= size:
        return False
    fn, sn, r = index, size - 1, leaf
    for p in path:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            r = sha256(b"\x01" + p + r).digest()
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = sha256(b"\x01" + r + p).digest()
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and r == root


def growth_holds(old: int, old_root: bytes, new: int, new_root: bytes, path: list[bytes]) -> bool:
    """RFC 9162, 2.1.4.2, for 0 < old < new."""
    if not path:
        return False
    if old & (old - 1) == 0:
        path = [old_root, *path]
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for c in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            fr, sr = sha256(b"\x01" + c + fr).digest(), sha256(b"\x01" + c + sr).digest()
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = sha256(b"\x01" + sr + c).digest()
        fn, sn = fn >> 1, sn >> 1
    return (fr, sr, sn) == (old_root, new_root, 0)


# --- every size, every entry, every pair ---------------------------------------------------

ENTRIES = tuple(number.to_bytes(8, "big") for number in range(SIZE_MAX))
STORED = Frontier().extended(map(leaf_hash, ENTRIES)).stored
READ = STORED.__getitem__
ROOTS = [tree_hash(ENTRIES[:size]) for size in range(SIZE_MAX + 1)]


def test_every_root_is_that_of_the_rfc() -> None:
    frontier = Frontier()
    for size, root in enumerate(ROOTS):
        assert frontier.root == root == root_at(size, READ)
        assert frontier == Frontier.at(size, READ)
        assert len(frontier.hashes) == size.bit_count()
        if size < SIZE_MAX:
            frontier = frontier.extended([leaf_hash(ENTRIES[size])]).frontier


def test_every_entry_of_every_size_has_the_path_of_the_rfc() -> None:
    for size in range(1, SIZE_MAX + 1):
        for index in range(size):
            path, leaf = prove_inclusion(index, size, READ), leaf_hash(ENTRIES[index])
            assert list(path) == audit_path(index, ENTRIES[:size])
            assert len(path) == inclusion_length(index, size)
            assert path_holds(index, size, leaf, list(path), ROOTS[size])
            verify_inclusion(index, size, leaf, path, ROOTS[size])


def test_every_pair_of_sizes_has_the_consistency_proof_of_the_rfc() -> None:
    for new in range(1, SIZE_MAX + 1):
        for old in range(1, new + 1):
            path = prove_consistency(old, new, READ)
            assert list(path) == subproof(old, ENTRIES[:new], True)
            assert len(path) == consistency_length(old, new)
            assert old == new or growth_holds(old, ROOTS[old], new, ROOTS[new], list(path))
            verify_consistency(old, ROOTS[old], new, ROOTS[new], path)


def test_the_empty_log_is_the_beginning_of_every_log() -> None:
    for new in range(SIZE_MAX + 1):
        assert prove_consistency(0, new, READ) == ()
        verify_consistency(0, ROOTS[0], new, ROOTS[new], ())
        with pytest.raises(ProofError):
            verify_consistency(0, ROOTS[1], new, ROOTS[new], ())
        with pytest.raises(ProofError):
            verify_consistency(0, ROOTS[0], new, ROOTS[new], (ROOTS[1],))


def test_no_path_is_good_for_another_entry() -> None:
    for size in (1, 2, 3, 7, 8, 21, 64, 65):
        for index in range(size):
            path, leaf = prove_inclusion(index, size, READ), leaf_hash(ENTRIES[index])
            for other in (n for n in range(size) if n != index):
                with pytest.raises(ProofError):
                    verify_inclusion(other, size, leaf, path, ROOTS[size])
                with pytest.raises(ProofError):
                    verify_inclusion(index, size, leaf_hash(ENTRIES[other]), path, ROOTS[size])


# --- vectors --------------------------------------------------------------------------------


def test_the_published_roots_come_out() -> None:
    entries = tuple(bytes.fromhex(entry) for entry in PUBLISHED["entries"])
    stored = Frontier().extended(map(leaf_hash, entries)).stored
    assert len(PUBLISHED["roots"]) == 9
    for size, root in enumerate(PUBLISHED["roots"]):
        assert root_at(size, stored.__getitem__).hex() == root
        assert tree_hash(entries[:size]).hex() == root


def test_the_published_proofs_come_out() -> None:
    entries = tuple(bytes.fromhex(entry) for entry in PUBLISHED["entries"])
    stored = Frontier().extended(map(leaf_hash, entries)).stored
    for known in PUBLISHED["inclusion"]:
        index, size = known["index"], known["size"]
        path = prove_inclusion(index, size, stored.__getitem__)
        assert [hashed.hex() for hashed in path] == known["path"]
        root = bytes.fromhex(PUBLISHED["roots"][size])
        verify_inclusion(index, size, leaf_hash(entries[index]), path, root)
    for known in PUBLISHED["consistency"]:
        old, new = known["old"], known["new"]
        path = prove_consistency(old, new, stored.__getitem__)
        assert [hashed.hex() for hashed in path] == known["path"]
        roots = [bytes.fromhex(PUBLISHED["roots"][size]) for size in (old, new)]
        verify_consistency(old, roots[0], new, roots[1], path)


def test_our_own_vectors_come_out_of_both_implementations() -> None:
    assert [root.hex() for root in ROOTS] == VECTORS["counting"]["roots"]
    stored = VECTORS["counting"]["stored"]
    assert [hashed.hex() for hashed in STORED[: len(stored)]] == stored
    assert len(stored) == stored_count(VECTORS["counting"]["stored_size"])
    for known in VECTORS["counting"]["inclusion"]:
        path = prove_inclusion(known["index"], known["size"], READ)
        assert [hashed.hex() for hashed in path] == known["path"]
    for known in VECTORS["counting"]["consistency"]:
        path = prove_consistency(known["old"], known["new"], READ)
        assert [hashed.hex() for hashed in path] == known["path"]
