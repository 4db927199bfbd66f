"""Fork proofs: the owner of a log signed two histories, and anybody can see it.

Whoever knows the log's id can check one; nobody but the owner's key can make one true.

    one size     head ‖ head, the one with the smaller root first: same size, other root;
                 if it is known where they part, the rest as below
    two sizes    head ‖ head, the smaller size first ‖ u64 entry
                 ‖ leaf hash ‖ path in the first ‖ leaf hash ‖ path in the second:
                 both logs have that entry, and it is not the same one

The lengths of the paths follow from the entry's number and the sizes (`proofs.inclusion_length`),
so a proof has one spelling. 394 bytes, or about 1.8 KB for logs of a million entries.
"""

from __future__ import annotations

from typing import NamedTuple

from kachery_p2p.errors import LogFormatError, ProofError
from kachery_p2p.limits import PROOF_HASHES_MAX
from kachery_p2p.log.heads import HEAD_BYTES, LogId, SignedHead
from kachery_p2p.log.proofs import (
    Path,
    decode_path,
    inclusion_length,
    prove_inclusion,
    verify_inclusion,
)
from kachery_p2p.log.tree import HASH_BYTES, ReadHash, stored_place, subtrees

_HEADS_BYTES = 2 * HEAD_BYTES
_INDEX_BYTES = 8
FORK_BYTES_MAX = _HEADS_BYTES + _INDEX_BYTES + 2 * (1 + PROOF_HASHES_MAX) * HASH_BYTES


class Branch(NamedTuple):
    """The leaf hash of one history's entry, and its path to the root of one of the two heads."""

    leaf: bytes
    path: Path


class Parting(NamedTuple):
    """An entry that the two histories do not share: what each of them has there."""

    entry: int
    first: Branch
    second: Branch


class ForkProof(NamedTuple):
    """Two heads that cannot both be true. May be anything until `verify` has passed.

    `parting` may be None if both heads have one size.
    """

    first: SignedHead
    second: SignedHead
    parting: Parting | None = None

    @classmethod
    def of_one_size(cls, one: SignedHead, other: SignedHead) -> ForkProof:
        """The proof that two verified heads with the same size and different roots are."""
        assert one.size == other.size
        assert one.root != other.root
        return cls(one, other) if one.root < other.root else cls(other, one)

    @property
    def common_entries_max(self) -> int:
        """How many entries, at most, the two histories share from the beginning.

        Exactly as many if the proof is `prove_fork`'s and has a parting.
        """
        return self.first.size - 1 if self.parting is None else self.parting.entry

    def encode(self) -> bytes:
        """The bytes of the proof, as it is kept for ever and passed on."""
        parts = [self.first.encode(), self.second.encode()]
        if self.parting is not None:
            parts.append(self.parting.entry.to_bytes(_INDEX_BYTES, "big"))
            for leaf, path in self.parting[1:]:
                parts += [leaf, *path]
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes, tag: bytes) -> ForkProof:
        """The proof about a log of the kind `tag` that `data` spells; LogFormatError if none.

        Nothing is verified yet.
        """
        if not _HEADS_BYTES <= len(data) <= FORK_BYTES_MAX:
            raise LogFormatError(f"a fork proof cannot have {len(data)} bytes")
        first = SignedHead.decode(data[:HEAD_BYTES], tag)
        second = SignedHead.decode(data[HEAD_BYTES:_HEADS_BYTES], tag)
        if (first.size, first.root) >= (second.size, second.root):
            raise LogFormatError("the heads of a fork proof are the same or in the wrong order")
        rest = data[_HEADS_BYTES:]
        if first.size != second.size or rest:
            return cls(first, second, _decode_parting(rest, first.size, second.size))
        return cls(first, second)

    def verify(self, log: LogId) -> None:
        """Pass if this proves that `log` has forked; HeadError or ProofError if not."""
        self.first.verify(log)
        self.second.verify(log)
        if self.parting is None:
            if self.first.size != self.second.size or self.first.root == self.second.root:
                raise ProofError("the two heads do not contradict each other")
            return
        index, first, second = self.parting
        verify_inclusion(index, self.first.size, first.leaf, first.path, self.first.root)
        verify_inclusion(index, self.second.size, second.leaf, second.path, self.second.root)
        if first.leaf == second.leaf:
            raise ProofError(f"the two histories have the same entry {index}")


def prove_fork(
    one: SignedHead,
    read_one: ReadHash,
    other: SignedHead,
    read_other: ReadHash,
    *,
    exact: bool = False,
) -> ForkProof | None:
    """The proof that two verified heads of one log are of two histories; None if they are not.

    Takes the stored hashes of both, some 4 log2(size) reads of each. One of the two is
    usually asked of a peer: a peer that lies gives a proof that does not verify.
    Heads of one size need no hashes, unless it is to be known `exact`ly where they part.
    """
    assert one.log == other.log
    if (one.size, one.root) > (other.size, other.root):
        one, read_one, other, read_other = other, read_other, one, read_one
    if one.size == other.size and (one.root == other.root or not exact):
        return None if one.root == other.root else ForkProof.of_one_size(one, other)
    index = first_difference(one.size, read_one, read_other)
    if index is None:
        return None
    branches = (
        Branch(read(stored_place(0, index)), prove_inclusion(index, signed.size, read))
        for signed, read in ((one, read_one), (other, read_other))
    )
    return ForkProof(one, other, Parting(index, *branches))


def first_difference(size: int, read_one: ReadHash, read_other: ReadHash) -> int | None:
    """The first of `size` entries that two logs do not share; None if they share them all."""
    for level, number in subtrees(0, size):
        if _same((level, number), read_one, read_other):
            continue
        while level:
            level, number = level - 1, 2 * number
            number += _same((level, number), read_one, read_other)
        return number
    return None


def _same(subtree: tuple[int, int], read_one: ReadHash, read_other: ReadHash) -> bool:
    place = stored_place(*subtree)
    return read_one(place) == read_other(place)


def _decode_parting(data: bytes, first_size: int, second_size: int) -> Parting:
    """What follows two heads of different sizes, the smaller first."""
    index = int.from_bytes(data[:_INDEX_BYTES], "big")
    if len(data) < _INDEX_BYTES or index >= first_size:
        raise LogFormatError("the fork proof is about no entry of both histories")
    lengths = [1 + inclusion_length(index, size) for size in (first_size, second_size)]
    rest = data[_INDEX_BYTES:]
    if len(rest) != sum(lengths) * HASH_BYTES:
        raise LogFormatError(f"the paths of a fork proof have {len(rest)} bytes, not their length")
    middle = lengths[0] * HASH_BYTES
    return Parting(index, _decode_branch(rest[:middle]), _decode_branch(rest[middle:]))


def _decode_branch(data: bytes) -> Branch:
    return Branch(data[:HASH_BYTES], decode_path(data[HASH_BYTES:]))
