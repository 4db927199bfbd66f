"""What a writer may sign and a reader believes, told as the stories that could go wrong."""

from __future__ import annotations

import random

import pytest

from kachery_p2p.errors import (
    HeadError,
    LogBehindError,
    LogForkedError,
    LogStoppedError,
    ProofError,
    StateCorruptError,
)
from kachery_p2p.identity.keys import NodeKey
from kachery_p2p.log.forks import ForkProof, prove_fork
from kachery_p2p.log.heads import Head, LogId, SignedHead, sign_head
from kachery_p2p.log.proofs import Path, prove_consistency
from kachery_p2p.log.rules import Reader, Verdict, Writer
from kachery_p2p.log.tree import EMPTY_ROOT, Frontier, leaf_hash, root_at

KEY = NodeKey(bytes(range(32)), bytes(32))
STRANGER = NodeKey(bytes(range(1, 33)), bytes(32))
LOG = LogId(b"kp2p-test-log/1\0", KEY.node_id, bytes(32))


class Owner:
    """A writer with the disk it would have, which keeps all it signed."""

    def __init__(self, log: LogId = LOG, key: NodeKey = KEY) -> None:
        self.log, self.key = log, key
        self.stored: list[bytes] = []
        self.heads: list[SignedHead] = []
        self.writer = Writer(log, key)

    def append(self, *entries: str, time_ms: int = 1) -> SignedHead:
        batch = self.writer.sign((leaf_hash(entry.encode()) for entry in entries), time_ms)
        self.stored += batch.stored
        self.heads.append(batch.signed)
        self.writer.written()
        return batch.signed

    def read(self, place: int) -> bytes:
        return self.stored[place]

    def restarted(self) -> Writer:
        size = self.heads[-1].size if self.heads else 0
        last = self.heads[-1] if self.heads else None
        return Writer(self.log, self.key, Frontier.at(size, self.read), last)

    def copy(self) -> Owner:
        """A second copy of the same disk and key, as a restored backup is."""
        other = Owner(self.log, self.key)
        other.stored, other.heads = list(self.stored), list(self.heads)
        other.writer = other.restarted()
        return other

    def path(self, old: SignedHead, new: SignedHead) -> Path:
        return prove_consistency(old.size, new.size, self.read)


def forked(common: int = 3) -> tuple[Owner, Owner]:
    """Two copies of one log that went different ways after some common entries."""
    one = Owner()
    one.append(*(f"common {number}" for number in range(common)))
    return one, one.copy()


# --- the writer -----------------------------------------------------------------------------


def test_a_batch_of_any_length_has_one_head() -> None:
    owner = Owner()
    first = owner.append("a", "b", "c", time_ms=7)
    assert (first.size, first.time_ms) == (3, 7)
    assert first.root == root_at(3, owner.read)
    first.verify(LOG)
    assert owner.append("d").size == 4


def test_a_log_that_never_had_an_entry_can_be_signed() -> None:
    head = Owner().append(time_ms=5)
    assert (head.size, head.root, head.time_ms) == (0, EMPTY_ROOT, 5)


def test_signing_again_without_entries_renews_the_same_root() -> None:
    owner = Owner()
    first, again = owner.append("a", time_ms=1), owner.append(time_ms=86_400_000)
    assert (again.size, again.root) == (first.size, first.root)
    assert again.time_ms == 86_400_000


def test_a_clock_that_goes_back_does_not_take_the_log_along() -> None:
    owner = Owner()
    owner.append("a", time_ms=1_000)
    assert owner.append("b", time_ms=10).time_ms == 1_000


def test_a_restart_goes_on_where_the_disk_ends() -> None:
    owner = Owner()
    owner.append("a", "b", "c")
    owner.writer = owner.restarted()
    again = owner.append("d", "e")
    whole = Owner()
    assert whole.append("a", "b", "c", "d", "e").root == again.root


@pytest.mark.parametrize("size", [0, 2])
def test_a_disk_that_lost_entries_is_not_written_to(size: int) -> None:
    owner = Owner()
    owner.append("a", "b", "c")
    with pytest.raises(StateCorruptError, match="last signed head"):
        Writer(LOG, KEY, Frontier.at(size, owner.read), owner.heads[-1])


def test_entries_without_a_head_are_not_a_log() -> None:
    with pytest.raises(StateCorruptError):
        Writer(LOG, KEY, Frontier().extended([leaf_hash(b"a")]).frontier, None)


def test_a_changed_entry_on_disk_is_noticed_at_the_start() -> None:
    owner = Owner()
    owner.append("a", "b")
    owner.stored[1] = leaf_hash(b"B")
    owner.stored[2] = Frontier().extended(owner.stored[:2]).frontier.root
    with pytest.raises(StateCorruptError):
        owner.restarted()


def test_a_head_on_disk_that_is_not_ours_is_refused() -> None:
    head = sign_head(Head(LOG._replace(owner=STRANGER.node_id), 0, EMPTY_ROOT, 1), STRANGER)
    with pytest.raises(HeadError):
        Writer(LOG, KEY, Frontier(), head)


def test_a_writer_needs_the_key_of_its_log() -> None:
    with pytest.raises(AssertionError):
        Writer(LOG, STRANGER)


def test_after_a_failed_write_nothing_more_is_signed() -> None:
    writer = Writer(LOG, KEY)
    signed = writer.sign([leaf_hash(b"a")], 1).signed
    writer.failed()
    for _ in range(2):
        with pytest.raises(LogStoppedError) as caught:
            writer.sign([leaf_hash(b"b")], 2)
        assert "restart" in str(caught.value.hint)
    # What was signed counts as signed.
    assert writer.signed == signed


def test_nothing_is_signed_while_the_last_batch_is_not_on_disk() -> None:
    writer = Writer(LOG, KEY)
    writer.sign([leaf_hash(b"a")], 1)
    with pytest.raises(AssertionError, match="written"):
        writer.sign([leaf_hash(b"b")], 2)


def test_never_two_roots_of_one_size_whatever_happens() -> None:
    rng = random.Random(9162)
    owner, roots = Owner(), dict[int, bytes]()
    for number in range(400):
        entries = [f"{number} {part}" for part in range(rng.randrange(4))]
        head = owner.append(*entries, time_ms=rng.randrange(1_000))
        assert roots.setdefault(head.size, head.root) == head.root
        if rng.random() < 0.2:
            owner.writer = owner.restarted()
    times = [head.time_ms for head in owner.heads]
    assert times == sorted(times)


# --- a writer that hears of another copy ----------------------------------------------------------


def test_a_writer_that_is_behind_its_own_log_appends_nothing() -> None:
    ahead, behind = forked()
    longer = ahead.append("later")
    with pytest.raises(LogBehindError, match="4 entries exists"):
        behind.writer.heard(longer, behind.read)
    with pytest.raises(LogBehindError):
        behind.append("mine")


def test_a_writer_that_hears_its_own_heads_goes_on() -> None:
    owner = Owner()
    for entry in "abcdefg":
        owner.append(entry)
    for head in owner.heads:
        owner.writer.heard(head, owner.read)
    assert owner.append("h").size == 8


def test_two_copies_that_both_wrote_find_out_with_evidence() -> None:
    one, other = forked()
    theirs = other.append("other")
    one.append("one")
    with pytest.raises(LogForkedError) as caught:
        one.writer.heard(theirs, one.read)
    ForkProof.decode(caught.value.evidence, LOG.tag).verify(LOG)
    with pytest.raises(LogForkedError):
        one.append("more")


def test_a_shorter_history_that_is_not_ours_is_a_fork_too() -> None:
    one, other = forked()
    theirs = other.append("other")
    one.append("one", "more", "and more")
    with pytest.raises(LogForkedError):
        one.writer.heard(theirs, one.read)
    with pytest.raises(LogForkedError):
        one.append("even more")
    # A longer copy does not make it forgotten.
    with pytest.raises(LogBehindError):
        one.writer.heard(other.append("1", "2", "3", "4", "5"), one.read)
    with pytest.raises(LogForkedError):
        one.append("even more")


def test_a_stranger_cannot_stop_a_writer() -> None:
    owner = Owner()
    owner.append("a")
    forged = sign_head(Head(LOG._replace(owner=STRANGER.node_id), 9, bytes(32), 1), STRANGER)
    for head in (forged, forged._replace(head=forged.head._replace(log=LOG))):
        with pytest.raises(HeadError):
            owner.writer.heard(head, owner.read)
    assert owner.append("b").size == 2


# --- the reader ---------------------------------------------------------------------------


def test_a_reader_follows_a_log_that_grows() -> None:
    owner, reader = Owner(), Reader(LOG)
    for number in range(40):
        head = owner.append(*(f"{number} {part}" for part in range(number % 4)), time_ms=number)
        path = () if reader.best is None else owner.path(reader.best, head)
        assert reader.offer(head, path) in (Verdict.NEWER, Verdict.RENEWED)
        assert reader.best == head
        assert reader.readable_entries == head.size
    assert Reader(LOG, reader.best).best == reader.best


def test_a_reader_makes_of_heads_what_they_are() -> None:
    owner, reader = Owner(), Reader(LOG)
    first, renewed = owner.append("a", "b", time_ms=1), owner.append(time_ms=5)
    longer = owner.append("c", time_ms=5)
    assert reader.offer(renewed) is Verdict.NEWER
    assert reader.offer(renewed) is Verdict.KNOWN
    assert reader.offer(first) is Verdict.KNOWN
    assert reader.offer(longer, owner.path(renewed, longer)) is Verdict.NEWER
    assert reader.offer(first) is Verdict.OLDER
    assert reader.offer(first, owner.path(first, longer)) is Verdict.OLDER
    assert reader.best == longer


def test_a_renewal_is_no_fork() -> None:
    owner, reader = Owner(), Reader(LOG)
    reader.offer(owner.append("a", time_ms=1))
    assert reader.offer(owner.append(time_ms=2)) is Verdict.RENEWED
    assert reader.fork is None


@pytest.mark.parametrize("path", [(), (bytes(32),), (bytes(32),) * 3])
def test_a_longer_log_is_not_believed_without_a_proof(path: Path) -> None:
    owner, reader = Owner(), Reader(LOG)
    first = owner.append("a", "b", "c")
    reader.offer(first)
    with pytest.raises(ProofError):
        reader.offer(owner.append("d"), path)
    assert reader.best == first


def test_a_head_that_the_owner_did_not_sign_changes_nothing() -> None:
    owner, reader = Owner(), Reader(LOG)
    head = owner.append("a")
    with pytest.raises(HeadError):
        reader.offer(head._replace(signature=bytes(64)))
    with pytest.raises(HeadError):
        reader.offer(head._replace(head=head.head._replace(size=7)))
    assert reader.best is None
    assert reader.readable_entries == 0


def test_two_roots_of_one_size_are_a_fork_at_once() -> None:
    one, other = forked()
    reader = Reader(LOG)
    reader.offer(one.append("one"))
    with pytest.raises(LogForkedError) as caught:
        reader.offer(other.append("other"))
    assert reader.fork == ForkProof.decode(caught.value.evidence, LOG.tag)
    assert reader.fork is not None
    reader.fork.verify(LOG)
    assert reader.readable_entries == 3


def test_a_history_that_does_not_continue_ours_is_not_believed_until_the_fork_is_proved() -> None:
    one, other = forked()
    reader = Reader(LOG)
    ours, theirs = one.append("one"), other.append("other", "more")
    reader.offer(ours)
    with pytest.raises(ProofError):
        reader.offer(theirs, other.path(ours, theirs))
    fork = prove_fork(ours, one.read, theirs, other.read)
    assert fork is not None
    reader.convict(fork)
    assert reader.best == ours
    assert reader.readable_entries == 3
    with pytest.raises(LogForkedError, match="only 3 entries") as caught:
        reader.offer(one.append("later"), one.path(ours, one.heads[-1]))
    assert caught.value.evidence == fork.encode()


def test_a_reader_that_hears_of_the_fork_first_reads_what_is_common() -> None:
    one, other = forked()
    common = one.heads[0]
    fork = prove_fork(one.append("one"), one.read, other.append("other", "more"), other.read)
    assert fork is not None
    reader = Reader(LOG)
    reader.convict(fork)
    assert reader.readable_entries == 3
    with pytest.raises(LogForkedError):
        reader.offer(other.heads[-1])
    assert reader.offer(common, one.path(common, one.heads[-1])) is Verdict.OLDER
    # And so after a restart.
    again = Reader(LOG, reader.best, reader.fork)
    assert again.readable_entries == 3


def test_of_several_forks_the_earliest_counts() -> None:
    one, other = forked()
    heads = [
        (one.append("one"), other.append("other", "more")),
        (one.append("1", "2"), other.append("2", "1")),
    ]
    early = prove_fork(heads[0][0], one.read, heads[0][1], other.read)
    late = ForkProof.of_one_size(one.append("x"), other.append())
    assert early is not None
    for order in ((early, late), (late, early)):
        reader = Reader(LOG)
        for fork in order:
            reader.convict(fork)
        assert reader.fork == early
        assert reader.readable_entries == 3


def test_nobody_is_convicted_by_a_proof_that_proves_nothing() -> None:
    owner = Owner()
    heads = owner.append("a"), owner.append(time_ms=9)
    reader = Reader(LOG)
    with pytest.raises(ProofError):
        reader.convict(ForkProof(*heads))
    stranger = LOG._replace(owner=STRANGER.node_id)
    theirs = [sign_head(Head(stranger, 1, bytes([n] * 32), 1), STRANGER) for n in (1, 2)]
    with pytest.raises(HeadError):
        reader.convict(ForkProof(theirs[0], theirs[1]))
    assert reader.fork is None
    assert reader.offer(heads[0]) is Verdict.NEWER


def test_state_that_was_tampered_with_is_refused() -> None:
    owner = Owner()
    head = owner.append("a")
    with pytest.raises(HeadError):
        Reader(LOG, head._replace(head=head.head._replace(size=2)))
    with pytest.raises(ProofError):
        Reader(LOG, head, ForkProof(head, head))
