"""Fork proofs: whoever knows the log's id is convinced, by true ones only."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kachery_p2p.errors import HeadError, LogFormatError, ProofError
from kachery_p2p.identity.keys import NodeId, NodeKey
from kachery_p2p.log.forks import (
    FORK_BYTES_MAX,
    ForkProof,
    Parting,
    first_difference,
    prove_fork,
)
from kachery_p2p.log.heads import HEAD_BYTES, Head, LogId, SignedHead, sign_head
from kachery_p2p.log.tree import Frontier, ReadHash, leaf_hash, node_hash, root_at, stored_place

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors/log.json").read_text())
TAG = bytes.fromhex(VECTORS["log"]["tag"])
KEY = NodeKey(bytes.fromhex(VECTORS["log"]["seed"]), bytes(32))
LOG = LogId(TAG, NodeId(VECTORS["log"]["owner"]), bytes.fromhex(VECTORS["log"]["name"]))
SEED = 394
FUZZ_ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "1000000"))


def history(size: int, differs_from: int | None = None) -> ReadHash:
    """The stored hashes of a log; those of another history from one entry on."""
    names = [
        b"other" if differs_from is not None and number >= differs_from else b"entry"
        for number in range(size)
    ]
    leaves = [leaf_hash(name + number.to_bytes(8, "big")) for number, name in enumerate(names)]
    return Frontier().extended(leaves).stored.__getitem__


def head(size: int, read: ReadHash, time_ms: int = 1, log: LogId = LOG) -> SignedHead:
    return sign_head(Head(log, size, root_at(size, read), time_ms), KEY)


def proved(one: int, other: int, parting: int) -> ForkProof | None:
    """What `prove_fork` makes of histories of two sizes that differ from one entry on."""
    reads = history(one), history(other, parting)
    return prove_fork(head(one, reads[0]), reads[0], head(other, reads[1], 2), reads[1])


# --- vectors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("known", VECTORS["forks"], ids=lambda known: str(known["what"]))
def test_a_fork_proof_of_the_vectors_convinces(known: dict[str, Any]) -> None:
    data = bytes.fromhex(known["fork"])
    fork = ForkProof.decode(data, TAG)
    fork.verify(LOG)
    assert fork.encode() == data
    assert fork.common_entries_max == known["common_entries_max"]


@pytest.mark.parametrize("bad", VECTORS["bad_forks"], ids=lambda bad: str(bad["why"]))
def test_bytes_that_are_no_fork_proof_are_refused(bad: dict[str, str]) -> None:
    with pytest.raises(LogFormatError):
        ForkProof.decode(bytes.fromhex(bad["fork"]), TAG)


@pytest.mark.parametrize("bad", VECTORS["refused_forks"], ids=lambda bad: str(bad["why"]))
def test_a_fork_proof_that_proves_nothing_convinces_nobody(bad: dict[str, str]) -> None:
    fork = ForkProof.decode(bytes.fromhex(bad["fork"]), TAG)
    with pytest.raises((HeadError, ProofError)):
        fork.verify(LOG)


# --- making them -------------------------------------------------------------------------------


def test_two_histories_of_one_size_are_two_heads_of_394_bytes() -> None:
    fork = proved(9, 9, 4)
    assert fork is not None
    assert fork.parting is None
    assert fork.common_entries_max == 8
    fork.verify(LOG)
    assert len(fork.encode()) == 394
    assert ForkProof.decode(fork.encode(), TAG) == fork


def test_two_histories_of_any_two_sizes_part_where_they_first_differ() -> None:
    for one in range(1, 13):
        for other in range(1, 13):
            for parting in range(min(one, other)):
                fork = proved(one, other, parting)
                assert fork is not None
                fork.verify(LOG)
                assert ForkProof.decode(fork.encode(), TAG) == fork
                assert one == other or fork.common_entries_max == parting
                assert fork.common_entries_max >= parting


def test_the_order_in_which_two_heads_are_found_does_not_matter() -> None:
    for sizes in ((9, 9), (7, 12)):
        reads = history(sizes[0]), history(sizes[1], 4)
        heads = [head(size, read) for size, read in zip(sizes, reads, strict=True)]
        fork = prove_fork(heads[0], reads[0], heads[1], reads[1])
        assert fork == prove_fork(heads[1], reads[1], heads[0], reads[0])


def test_a_log_that_grew_has_no_fork() -> None:
    read = history(40)
    assert prove_fork(head(40, read), read, head(40, read, 2), read) is None
    assert prove_fork(head(7, read), read, head(40, read), read) is None
    assert first_difference(40, read, read) is None


@given(st.integers(1, 70), st.data())
def test_the_first_difference_is_found(size: int, data: st.DataObject) -> None:
    parting = data.draw(st.integers(0, size - 1))
    assert first_difference(size, history(size), history(size, parting)) == parting


def test_hashes_that_a_peer_makes_up_prove_nothing() -> None:
    read = history(20)
    honest = head(12, read), head(20, read)
    fork = prove_fork(honest[0], read, honest[1], lambda place: place.to_bytes(32, "big"))
    assert fork is not None
    with pytest.raises(ProofError):
        fork.verify(LOG)


def test_what_one_log_did_says_nothing_about_another() -> None:
    fork = proved(9, 12, 4)
    assert fork is not None
    for other in (LOG._replace(name=bytes(32)), LOG._replace(tag=b"kp2p-chan-head/1")):
        with pytest.raises(HeadError):
            fork.verify(other)


def test_one_history_signed_twice_is_no_fork_however_it_is_put() -> None:
    read = history(9)
    twice = head(9, read, 1), head(9, read, 2)
    with pytest.raises(ProofError, match="do not contradict"):
        ForkProof(*twice).verify(LOG)
    with pytest.raises(ProofError, match="do not contradict"):
        ForkProof(head(5, read), head(9, read)).verify(LOG)
    fork = proved(9, 12, 4)
    assert fork is not None
    assert fork.parting is not None
    same = Parting(4, fork.parting.first, fork.parting.first)
    with pytest.raises(ProofError):
        ForkProof(fork.first, fork.first, same).verify(LOG)


# --- a million entries ----------------------------------------------------------------------------


def monotonous(levels: int) -> ReadHash:
    """The stored hashes of a log that has one entry over and over, as long as 2^levels."""
    hashes = [leaf_hash(b"entry")]
    for _ in range(levels):
        hashes.append(node_hash(hashes[-1], hashes[-1]))

    def read(place: int) -> bytes:
        # A full subtree of level n ends at place 2^(n+1) - 2 of its own; what is before goes.
        while (place + 2) & (place + 1):
            place -= (1 << (place + 1).bit_length() - 1) - 1
        return hashes[(place + 2).bit_length() - 2]

    return read


def changed_at(entry: int, size: int, read: ReadHash) -> ReadHash:
    """The stored hashes of the log that differs in one entry only: just those above it."""
    hashed = leaf_hash(b"another entry")
    others = {stored_place(0, entry): hashed}
    level, number = 0, entry
    while (number | 1) + 1 <= size >> level:
        beside = read(stored_place(level, number ^ 1))
        hashed = node_hash(beside, hashed) if number & 1 else node_hash(hashed, beside)
        level, number = level + 1, number >> 1
        others[stored_place(level, number)] = hashed
    return lambda place: others.get(place) or read(place)


def test_a_fork_of_a_million_entries_is_proved_in_two_kilobytes() -> None:
    # The sizes just below 2^20 have the longest paths.
    size = (1 << 20) - 1
    read = monotonous(20)
    for entry, other_size in ((0, size - 1), (524_288, 1_000_000), (999_999, 1_000_000)):
        other = changed_at(entry, size, read)
        fork = prove_fork(head(size, read), read, head(other_size, other), other)
        assert fork is not None
        fork.verify(LOG)
        assert fork.common_entries_max == entry
        assert 1_000 < len(fork.encode()) <= 1_800


# --- mutations -----------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_fork_proof_is_noticed() -> None:
    fork = proved(5, 7, 2)
    assert fork is not None
    data = fork.encode()
    assert len(data) < FORK_BYTES_MAX
    for at in range(len(data)):
        bad = bytearray(data)
        bad[at] ^= 1 << at % 8
        with pytest.raises((LogFormatError, HeadError, ProofError)):
            ForkProof.decode(bytes(bad), TAG).verify(LOG)


def honest_heads() -> list[SignedHead]:
    """Heads of a log that only grew: no proof about it can be true."""
    read = history(64)
    return [head(size, read, time) for size in range(1, 65) for time in (1, 2)]


def framed(data: bytes, heads: list[SignedHead], rng: random.Random) -> bytes:
    """A fork proof changed to accuse an honest owner: its true heads, and whatever helps."""
    one, other = sorted(rng.sample(heads, 2), key=lambda signed: (signed.size, signed.root))
    rest = bytearray(data[2 * HEAD_BYTES :])
    for _ in range(rng.randint(0, 3)):
        place = rng.randrange(len(rest) + 1)
        change = rng.randrange(4)
        if change == 0 and place < len(rest):
            rest[place] ^= 1 << rng.randrange(8)
        elif change == 1:
            del rest[place : place + 32]
        elif change == 2:
            rest[place:place] = rng.choice([one.root, other.root, bytes(32)])
        else:
            rest[:8] = rng.randrange(64).to_bytes(8, "big")
    return one.encode() + other.encode() + rest


def fuzz(rounds: int, seed: int) -> None:
    """Accuse an honest owner `rounds` times; what convinces anybody fails."""
    heads = honest_heads()
    forks = [proved(one, other, 2) for one in (3, 5, 8, 33) for other in (4, 21, 64)]
    proofs = [fork.encode() for fork in forks if fork is not None]
    for number in range(rounds):
        rng = random.Random(seed * 1_000_003 + number)
        data = framed(rng.choice(proofs), heads, rng)
        try:
            ForkProof.decode(data, TAG).verify(LOG)
        except (LogFormatError, ProofError):
            continue
        except Exception as error:
            raise AssertionError(f"seed {seed}, round {number}: {data.hex()}") from error
        raise AssertionError(f"seed {seed}, round {number} convinces: {data.hex()}")


def test_ten_thousand_false_accusations_convince_nobody() -> None:
    fuzz(10_000, SEED)


@pytest.mark.fuzz
def test_false_accusations_convince_nobody_for_as_long_as_you_like() -> None:
    fuzz(FUZZ_ROUNDS, random.SystemRandom().randrange(2**32))
