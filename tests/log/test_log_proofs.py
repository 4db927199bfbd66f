"""Proofs that are wrong in any way: not one of a million is accepted."""

from __future__ import annotations

import os
import random
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kachery_p2p.errors import LogFormatError, ProofError
from kachery_p2p.limits import LOG_ENTRIES_MAX, PROOF_HASHES_MAX
from kachery_p2p.log.proofs import (
    Path,
    consistency_length,
    decode_path,
    encode_path,
    inclusion_length,
    prove_consistency,
    prove_inclusion,
    verify_consistency,
    verify_inclusion,
)
from kachery_p2p.log.tree import EMPTY_ROOT, Frontier, ReadHash, leaf_hash, node_hash, root_at

SEED = 6_962
FUZZ_ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "1000000"))
HASH = bytes(range(32))

# Two histories that have the first COMMON entries in common.
SIZE_MAX, COMMON = 700, 300


class History(NamedTuple):
    leaves: list[bytes]
    roots: list[bytes]
    read: ReadHash


def history(name: bytes) -> History:
    names = [b"common" if number < COMMON else name for number in range(SIZE_MAX)]
    leaves = [leaf_hash(name + number.to_bytes(4, "big")) for number, name in enumerate(names)]
    read = Frontier().extended(leaves).stored.__getitem__
    return History(leaves, [root_at(size, read) for size in range(SIZE_MAX + 1)], read)


HISTORIES = history(b"one"), history(b"other")


# --- what cannot be asked for ----------------------------------------------------------------


@pytest.mark.parametrize(("index", "size"), [(-1, 5), (5, 5), (6, 5), (0, 0), (2**62, 2**62 + 1)])
def test_an_entry_that_cannot_be_there_has_no_proof(index: int, size: int) -> None:
    with pytest.raises(ProofError, match="has no entry"):
        prove_inclusion(index, size, HISTORIES[0].read)
    with pytest.raises(ProofError, match="has no entry"):
        verify_inclusion(index, size, HASH, (), HASH)


@pytest.mark.parametrize(("old", "new"), [(-1, 5), (6, 5), (0, 2**62 + 1), (2**64, 2**65)])
def test_a_log_that_shrinks_or_is_too_long_has_no_proof(old: int, new: int) -> None:
    with pytest.raises(ProofError, match="no log grows"):
        prove_consistency(old, new, HISTORIES[0].read)
    with pytest.raises(ProofError, match="no log grows"):
        verify_consistency(old, HASH, new, HASH, ())


def test_the_longest_log_has_proofs_within_the_bound() -> None:
    full = LOG_ENTRIES_MAX
    assert inclusion_length(0, full) == inclusion_length(full - 1, full) == 62
    assert consistency_length(full - 1, full) == PROOF_HASHES_MAX
    assert consistency_length(full // 2 - 1, full) == PROOF_HASHES_MAX
    assert consistency_length(full // 2, full) == 1


def monotonous(place: int) -> bytes:
    """The stored hashes of a log that has one entry over and over, as long as can be."""
    # A full subtree of level n ends at place 2^(n+1) - 2 of its own; what is before it goes.
    while (place + 2) & (place + 1):
        place -= (1 << (place + 1).bit_length() - 1) - 1
    return MONOTONOUS[(place + 2).bit_length() - 2]


MONOTONOUS = [leaf_hash(b"entry")]
for _ in range(62):
    MONOTONOUS.append(node_hash(MONOTONOUS[-1], MONOTONOUS[-1]))


@given(st.integers(1, LOG_ENTRIES_MAX), st.data())
def test_logs_of_any_length_have_proofs_that_hold(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    root = root_at(size, monotonous)
    path = prove_inclusion(index, size, monotonous)
    verify_inclusion(index, size, MONOTONOUS[0], path, root)
    old = index + 1
    path = prove_consistency(old, size, monotonous)
    assert len(path) <= PROOF_HASHES_MAX
    verify_consistency(old, root_at(old, monotonous), size, root, path)
    if path:
        with pytest.raises(ProofError):
            verify_consistency(old, root, size, root, path)


def test_a_proof_about_the_longest_log_is_checked_in_no_time() -> None:
    with pytest.raises(ProofError, match="is not in the log"):
        verify_inclusion(0, LOG_ENTRIES_MAX, HASH, (HASH,) * 62, HASH)
    with pytest.raises(ProofError, match="does not continue"):
        verify_consistency(1, HASH, LOG_ENTRIES_MAX, HASH, (HASH,) * 62)
    with pytest.raises(ProofError, match="1000000 hashes"):
        verify_inclusion(0, LOG_ENTRIES_MAX, HASH, (HASH,) * 1_000_000, HASH)


@pytest.mark.parametrize("bad", [HASH[:31], HASH + b"\0", b"", "0" * 32, None, 7, bytearray(HASH)])
def test_what_is_no_hash_is_refused_wherever_it_stands(bad: bytes) -> None:
    for arguments in (
        (0, 2, bad, (HASH,), HASH),
        (0, 2, HASH, (bad,), HASH),
        (0, 2, HASH, (HASH,), bad),
    ):
        with pytest.raises(ProofError, match="32 bytes"):
            verify_inclusion(*arguments)
    for roots, path in (((bad, HASH), (HASH,)), ((HASH, bad), (HASH,)), ((HASH, HASH), (bad,))):
        with pytest.raises(ProofError, match="32 bytes"):
            verify_consistency(1, roots[0], 2, roots[1], path)


def test_equal_sizes_are_consistent_only_with_equal_roots() -> None:
    verify_consistency(5, HASH, 5, HASH, ())
    with pytest.raises(ProofError, match="different roots"):
        verify_consistency(5, HASH, 5, EMPTY_ROOT, ())
    with pytest.raises(ProofError, match="without entries"):
        verify_consistency(0, HASH, 0, HASH, ())


def test_two_histories_are_not_consistent_with_any_proof_of_either() -> None:
    one, other = HISTORIES
    for old, new in ((COMMON + 1, SIZE_MAX), (512, 513), (COMMON + 1, COMMON + 2)):
        for told in HISTORIES:
            path = prove_consistency(old, new, told.read)
            with pytest.raises(ProofError):
                verify_consistency(old, one.roots[old], new, other.roots[new], path)


# --- paths as bytes ---------------------------------------------------------------------------


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=PROOF_HASHES_MAX))
def test_a_path_is_read_as_it_was_written(hashes: list[bytes]) -> None:
    assert decode_path(encode_path(tuple(hashes))) == tuple(hashes)


@pytest.mark.parametrize("length", [1, 31, 33, 63 * 32 + 1, 64 * 32, 1_000_000 * 32])
def test_bytes_that_are_no_path_are_refused(length: int) -> None:
    with pytest.raises(LogFormatError):
        decode_path(bytes(length))


# --- mutations ----------------------------------------------------------------------------------


def mutated_path(path: Path, rng: random.Random) -> Path:
    """`path` with one change, which may by chance be none."""
    hashes = list(path)
    place = rng.randrange(len(hashes) + 1)
    change = rng.randrange(8)
    if change == 0 or not hashes:
        hashes.insert(place, rng.choice([HASH, EMPTY_ROOT, *hashes]))
    elif change == 1:
        del hashes[place - 1]
    elif change == 2:
        hashes.insert(place, hashes[place - 1])
    elif change == 3:
        rng.shuffle(hashes)
    elif change == 4:
        hashes[place - 1] = hashes[place - 1][: rng.randrange(32)]
    elif change == 5:
        hashes[place - 1] = rng.randbytes(32)
    else:
        hashes[place - 1] = flipped(hashes[place - 1], rng)
    return tuple(hashes)


def flipped(data: bytes, rng: random.Random) -> bytes:
    bit = rng.randrange(8 * len(data))
    return (int.from_bytes(data, "big") ^ 1 << bit).to_bytes(len(data), "big")


def near(number: int, rng: random.Random) -> int:
    """Another number, mostly one that is easily mistaken for it."""
    return rng.choice(
        [number - 1, number + 1, number ^ 1 << rng.randrange(10), rng.randrange(SIZE_MAX)]
        + [-number, number + 2**62, number + 2**64, 0]
    )


def include_wrongly(rng: random.Random) -> bool:
    """Check one mutated proof of inclusion; True if it was accepted, and rightly so."""
    told, of = rng.choice(HISTORIES), rng.choice(HISTORIES)
    size = rng.randint(1, SIZE_MAX)
    index = rng.randrange(size)
    path = prove_inclusion(index, size, told.read)
    # The size and the root come together, from a signed head: here of either history.
    leaf, root = told.leaves[index], of.roots[size]
    match rng.randrange(6):
        case 0:
            index = near(index, rng)
        case 1:
            leaf = rng.choice([flipped(leaf, rng), root, *path, rng.choice(of.leaves)])
        case 2:
            size = rng.randint(1, SIZE_MAX)
            root = of.roots[size]
        case 3:
            root = rng.choice([flipped(root, rng), leaf, *path, rng.choice(told.roots)])
        case _:
            path = mutated_path(path, rng)
    try:
        verify_inclusion(index, size, leaf, path, root)
    except ProofError:
        return False
    # A root names a history and a size here, for no two of them are the same by accident.
    owner = next(one for one in HISTORIES if one.roots[size] == root)
    assert leaf == owner.leaves[index]
    assert path == prove_inclusion(index, size, owner.read)
    return True


def grow_wrongly(rng: random.Random) -> bool:
    """Check one mutated proof of consistency; True if it was accepted, and rightly so."""
    told, one, other = rng.choice(HISTORIES), rng.choice(HISTORIES), rng.choice(HISTORIES)
    new = rng.randint(1, SIZE_MAX)
    old = rng.randint(1, new)
    path = prove_consistency(old, new, told.read)
    old_root, new_root = one.roots[old], other.roots[new]
    match rng.randrange(6):
        case 0:
            old = rng.randint(0, SIZE_MAX)
            old_root = one.roots[old]
        case 1:
            new = rng.randint(0, SIZE_MAX)
            new_root = other.roots[new]
        case 2:
            old_root = rng.choice([flipped(old_root, rng), new_root, *path])
        case 3:
            new_root = rng.choice([flipped(new_root, rng), old_root, *path])
        case _:
            path = mutated_path(path, rng)
    try:
        verify_consistency(old, old_root, new, new_root, path)
    except ProofError:
        return False
    owners = [h for h in HISTORIES if (h.roots[old], h.roots[new]) == (old_root, new_root)]
    assert owners, f"{old} to {new} entries of no single history"
    assert path == prove_consistency(old, new, owners[0].read)
    return True


def fuzz(rounds: int, seed: int) -> int:
    """How many of `rounds` mutated proofs were accepted, because the change was none."""
    accepted = 0
    for number in range(rounds):
        rng = random.Random(seed * 1_000_003 + number)
        try:
            accepted += include_wrongly(rng) if number & 1 else grow_wrongly(rng)
        except Exception as error:
            raise AssertionError(f"seed {seed}, round {number}") from error
    return accepted


def test_forty_thousand_mutated_proofs_and_no_false_one_accepted() -> None:
    # Some changes are none, such as the root of the other history where both have but one.
    assert 0 < fuzz(40_000, SEED) < 8_000


@pytest.mark.fuzz
def test_mutated_proofs_are_refused_for_as_long_as_you_like() -> None:
    assert 0 < fuzz(FUZZ_ROUNDS, random.SystemRandom().randrange(2**32)) < FUZZ_ROUNDS // 5
