"""Signed logs in a bucket: put there by whoever has a copy, and never other than was signed."""

from __future__ import annotations

import random
from collections.abc import Callable
from threading import Thread

import pytest

from kachery_p2p.bucket import log_layout as layout
from kachery_p2p.bucket import log_mirror as mirrors
from kachery_p2p.bucket.log_book import LogBook
from kachery_p2p.bucket.log_layout import LogHead, UnknownHashError
from kachery_p2p.bucket.log_reading import read_segment
from kachery_p2p.bucket.log_tree import LogTree, subtree_at
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.errors import (
    BucketError,
    BucketTakenError,
    BucketUnreachableError,
    LogFormatError,
    ProofError,
)
from kachery_p2p.limits import BUCKET_LOG_SEGMENT_BYTES_MAX
from kachery_p2p.log.proofs import prove_consistency, verify_consistency
from kachery_p2p.log.tree import stored_place
from tests.bucket.log_parts import LOG, Owner, all_of, entries, head_of, mirror


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> int:
    """Segments are full with so many entries."""
    monkeypatch.setattr(mirrors, "BUCKET_LOG_SEGMENT_ENTRIES_MAX", 16)
    monkeypatch.setattr(mirrors, "_FULL_ENTRIES", 8)
    return 16


def keys(bucket: Objects) -> set[str]:
    return {listed.key for listed in bucket.list("log")}


# --- layout ------------------------------------------------------------------------------------


def test_a_place_in_the_tree_is_found_again() -> None:
    for level in range(6):
        for number in range(40):
            assert subtree_at(stored_place(level, number)) == (level, number)


@pytest.mark.parametrize("seed", range(20))
def test_pieces_are_full_subtrees_without_gaps(seed: int) -> None:
    rng = random.Random(seed)
    first = rng.randrange(1 << 20)
    end = first + rng.randrange(1, 1 << 12)
    at = first
    for level, number in layout.pieces(first, end):
        assert number << level == at
        at += 1 << level
    assert at == end


def test_a_changed_bit_of_a_head_is_found(memory_bucket: Objects, book: LogBook) -> None:
    mirror(memory_bucket, book).put(Owner().grow(entries(9)).copy())
    data = head_of(memory_bucket).encode()
    for at in range(0, len(data), 7):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        with pytest.raises(LogFormatError):
            LogHead.decode(bytes(changed), LOG)
    for cut in (0, 10, len(data) - 1):
        with pytest.raises(LogFormatError):
            LogHead.decode(data[:cut], LOG)


def test_a_head_with_one_wrong_hash_proves_nothing(memory_bucket: Objects, book: LogBook) -> None:
    mirror(memory_bucket, book).put(Owner().grow(entries(9)).copy())
    head = head_of(memory_bucket)
    (segment,) = head.segments
    lie = segment._replace(hashes=(bytes(32), *segment.hashes[1:]))
    told = LogHead.decode(head._replace(segments=(lie,)).encode(), LOG)
    with pytest.raises(ProofError):
        told.verify(LOG)


@pytest.mark.parametrize("size", [1, 2, 7, 64, 100])
def test_a_bucket_proves_what_a_member_proves(
    size: int, memory_bucket: Objects, book: LogBook
) -> None:
    owner = Owner()
    for first in range(0, size, 13):
        owner.grow(entries(min(13, size - first), first))
        mirror(memory_bucket, book).put(owner.copy())
    tree = LogTree(head_of(memory_bucket))
    for old in range(1, size + 1):
        try:
            path = prove_consistency(old, size, tree.read_hash)
        except UnknownHashError as unknown:
            named = tree.segment_of(unknown.entry)
            assert named is not None
            tree.take(*named, read_segment(memory_bucket, LOG, *named))
            path = prove_consistency(old, size, tree.read_hash)
        verify_consistency(old, owner.head(old).root, size, owner.head().root, path)


# --- putting it there --------------------------------------------------------------------------


def test_a_log_is_there_and_grows(any_bucket: Objects, book: LogBook) -> None:
    owner = Owner().grow(entries(5))
    pushing = mirror(any_bucket, book)
    assert pushing.put(owner.copy()) == (5, False)
    assert all_of(any_bucket) == owner.entries
    pushing.put(owner.grow(entries(8, 5)).copy())
    assert all_of(any_bucket) == owner.entries
    assert head_of(any_bucket).head == owner.head()
    kept = book.of("place", mirrors.name_of(LOG))
    assert kept is not None
    assert (kept.here, kept.there, kept.said) == (13, 13, None)


def test_what_is_there_is_not_put_there_again(
    memory_bucket: Objects, book: LogBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Owner().grow(entries(50))
    mirror(memory_bucket, book).put(owner.copy())

    def refuse(*_: object) -> bool:
        raise AssertionError("nothing is to be put there")

    monkeypatch.setattr(Objects, "put_new", refuse)
    monkeypatch.setattr(Objects, "replace", refuse)
    for pushing in (mirror(memory_bucket, book), mirror(memory_bucket, book)):
        assert pushing.put(owner.copy()).there == 50


def test_small_segments_are_put_together(memory_bucket: Objects, book: LogBook) -> None:
    owner, pushing, sent = Owner(), mirror(memory_bucket, book), 0
    for number in range(60):
        pushing.put(owner.grow(entries(1, number)).copy())
        segments = head_of(memory_bucket).segments
        assert len(segments) <= 7
        sent += segments[-1].size
    assert all_of(memory_bucket) == owner.entries
    assert sent < 8 * sum(map(len, owner.entries)), "each entry some log2(60) times at most"


def test_full_segments_stay_as_they_are(
    memory_bucket: Objects, book: LogBook, small_segments: int
) -> None:
    many = small_segments * 20 + 3
    owner = Owner().grow(entries(many))
    pushing = mirror(memory_bucket, book)
    pushing.put(owner.copy())
    before = head_of(memory_bucket).segments
    assert all(len(segment.hashes) < 3 for segment in before[:-1])
    pushing.put(owner.grow(entries(2, many)).copy())
    assert head_of(memory_bucket).segments[: len(before) - 1] == before[:-1]
    assert all_of(memory_bucket) == owner.entries


def test_large_entries_make_segments_of_bounded_size(memory_bucket: Objects, book: LogBook) -> None:
    owner = Owner().grow(entries(11, size=900_000))
    mirror(memory_bucket, book).put(owner.copy())
    head = head_of(memory_bucket)
    assert all(segment.size <= BUCKET_LOG_SEGMENT_BYTES_MAX for segment in head.segments)
    assert all_of(memory_bucket) == owner.entries


def test_replaced_segments_stay_for_a_while_and_then_go(
    memory_bucket: Objects, book: LogBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, pushing = Owner(), mirror(memory_bucket, book)
    for number in range(8):
        pushing.put(owner.grow(entries(1, number)).copy())
    old = keys(memory_bucket)
    assert pushing.clean(LOG) == 0
    assert keys(memory_bucket) == old
    monkeypatch.setattr(mirrors, "BUCKET_LOG_OLD_S", 0.0)
    pushing.put(owner.grow(entries(8, 8)).copy())
    assert pushing.clean(LOG) == 1
    assert len(keys(memory_bucket)) == len(old)
    assert all_of(memory_bucket) == owner.entries


def test_a_prefix_of_another_channel_is_refused(memory_bucket: Objects, book: LogBook) -> None:
    owner = Owner().grow(entries(3))
    mirror(memory_bucket, book).put(owner.copy())
    stranger = mirrors.LogMirror(memory_bucket, "2b" * 32, "other", book)
    with pytest.raises(BucketTakenError):
        stranger.put(owner.copy())


# --- killed and unlucky ------------------------------------------------------------------------


class Failing:
    """Lets only so many writes through; then the node is dead, or the line."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
        self.left = writes
        for name in ("put_new", "replace"):
            monkeypatch.setattr(Objects, name, self._counting(getattr(Objects, name)))

    def _counting(self, write: Callable[..., bool]) -> Callable[..., bool]:
        def counted(*arguments: object) -> bool:
            self.left -= 1
            if self.left < 0:
                raise BucketUnreachableError("killed")
            return write(*arguments)

        return counted


@pytest.mark.parametrize("writes", range(6))
def test_after_each_kill_the_old_log_is_there_whole_and_the_next_start_goes_on(
    writes: int,
    memory_bucket: Objects,
    book: LogBook,
    monkeypatch: pytest.MonkeyPatch,
    small_segments: int,
) -> None:
    owner = Owner().grow(entries(20))
    mirror(memory_bucket, book).put(owner.copy())
    owner.grow(entries(3 * small_segments, 20))
    with monkeypatch.context() as patched:
        Failing(patched, writes)
        try:
            mirror(memory_bucket, book).put(owner.copy())
        except BucketError:
            assert all_of(memory_bucket) == owner.entries[:20]
    mirror(memory_bucket, book).put(owner.copy())
    assert all_of(memory_bucket) == owner.entries
    named = {segment.digest.hex() for segment in head_of(memory_bucket).segments}
    lying = {key.rpartition("/")[2] for key in keys(memory_bucket)} - {"head"}
    noted = {digest.hex() for digest in book.unnamed("place", mirrors.name_of(LOG))}
    assert named <= lying
    assert lying - named == noted, "whatever lies there for nothing is known"


def test_two_that_mirror_at_once_lose_nothing(
    any_bucket: Objects, book: LogBook, other_book: LogBook
) -> None:
    owner = Owner().grow(entries(200))
    faults: list[BaseException] = []

    def push(which: LogBook, sizes: range) -> None:
        pushing = mirror(any_bucket, which)
        try:
            for size in sizes:
                pushing.put(owner.copy(size))
        except BaseException as error:
            faults.append(error)

    threads = [
        Thread(target=push, args=(book, range(10, 200, 30))),
        Thread(target=push, args=(other_book, range(15, 201, 20))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []
    for which in (book, other_book):
        mirror(any_bucket, which).put(owner.copy())
    assert all_of(any_bucket) == owner.entries


def test_who_is_behind_takes_nothing_back(
    any_bucket: Objects, book: LogBook, other_book: LogBook
) -> None:
    owner = Owner().grow(entries(60))
    mirror(any_bucket, book).put(owner.copy())
    told = mirror(any_bucket, other_book).put(owner.copy(40))
    assert told == (60, True)
    assert all_of(any_bucket) == owner.entries


def test_a_newer_time_of_the_same_log_is_put_there(memory_bucket: Objects, book: LogBook) -> None:
    owner = Owner().grow(entries(4))
    pushing = mirror(memory_bucket, book)
    pushing.put(owner.copy())
    pushing.put(owner.copy()._replace(head=owner.head(time_ms=99)))
    assert head_of(memory_bucket).head.time_ms == 99
    pushing.put(owner.copy())
    assert head_of(memory_bucket).head.time_ms == 99
