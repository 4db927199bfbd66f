"""One subfeed on the disk: what is appended and kept is there again, and what may not be is not."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kachery_p2p.content.hashes import FeedId
from kachery_p2p.errors import (
    FeedBehindError,
    FeedEndedError,
    FeedForkedError,
    FeedReadOnlyError,
    FeedRestoredError,
    HeadError,
    ProofError,
    UnknownFeedError,
)
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.log_files import LogFiles
from kachery_p2p.feeds.tombstones import Tombstone
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeKey
from kachery_p2p.log.forks import ForkProof
from kachery_p2p.log.proofs import prove_inclusion, verify_inclusion
from kachery_p2p.log.tree import EMPTY_ROOT, Frontier, leaf_hash, root_at
from tests.feeds.feed_logs import all_of, copied, crashed, reopened
from tests.feeds.feed_parts import KEY, LOG, messages

STRANGER = NodeKey.generate(bytes([78]) * NODE_KEY_BYTES)
SUCCESSOR = FeedId(STRANGER.node_id)


@pytest.fixture
def other(quick_path: Path) -> LogFiles:
    """The subfeeds of another node."""
    (quick_path / "other").mkdir()
    return LogFiles(f"{quick_path}/other/feeds")


# --- appending and reading ------------------------------------------------------------------


def test_what_was_appended_is_read_before_and_after_a_restart(own: LogFile) -> None:
    entries = messages(30)
    assert own.append(entries[:1], 5) == 0
    assert own.append(entries[1:30], 6) == 1
    assert (own.size, own.readable) == (30, 30)
    assert own.signed is not None
    assert (own.signed.size, own.signed.time_ms) == (30, 6)
    assert all_of(own) == entries
    before = own.signed, own.frontier()
    reopened(own)
    assert (own.signed, own.frontier()) == before
    assert all_of(own) == entries
    assert own.append(messages(1, 30), 7) == 30


def test_a_log_that_is_new_has_nothing(own: LogFile) -> None:
    assert (own.size, own.signed, own.fork, own.tombstone, own.restored) == (
        0,
        None,
        None,
        None,
        False,
    )
    assert own.entries(0, 10, 10) == []
    assert own.check() == ()
    reopened(own)
    assert own.size == 0
    assert not own.restored


def test_a_head_is_signed_anew_without_an_entry(own: LogFile) -> None:
    own.append(messages(3), 5)
    assert own.append([], 90) == 3
    assert own.signed is not None
    assert (own.signed.size, own.signed.time_ms) == (3, 90)
    reopened(own)
    assert own.signed.time_ms == 90
    assert all_of(own) == messages(3)


def test_a_head_is_signed_when_somebody_asks_and_after_a_crash_of_the_same_entries(
    own: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    signatures = 0
    really = NodeKey.sign

    def counted(key: NodeKey, tag: bytes, body: bytes) -> bytes:
        nonlocal signatures
        signatures += 1
        return really(key, tag, body)

    monkeypatch.setattr(NodeKey, "sign", counted)
    for number in range(50):
        own.append(messages(1, number), number)
    assert signatures == 0
    head = own.signed
    assert head is not None
    assert (head.size, head.root, head.time_ms) == (50, own.frontier().root, 49)
    assert own.signed is head
    assert signatures == 1
    crashed(own)
    own.open()
    again = own.signed
    assert again is not None
    again.verify(LOG)
    assert (again.size, again.root) == (head.size, head.root)
    assert again.time_ms >= head.time_ms


@pytest.mark.parametrize("seed", range(5))
def test_any_batches_are_read_back_in_any_pieces(own: LogFile, seed: int) -> None:
    rng = random.Random(seed)
    entries = [rng.randbytes(rng.choice([0, 1, 20, 300, 5_000])) for _ in range(400)]
    while own.size < len(entries):
        own.append(entries[own.size : own.size + rng.choice([0, 1, 2, 50])], 1)
        if rng.random() < 0.1:
            reopened(own)
    for _ in range(200):
        first, count, size = rng.randrange(410), rng.randrange(1, 90), rng.randrange(1, 9_000)
        found = own.entries(first, count, size)
        assert found == entries[first : first + len(found)]
        assert len(found) <= count
        assert len(found) <= 1 or sum(map(len, found)) <= size
        more = entries[first : first + len(found) + 1]
        assert found or first >= own.size
        at_end = first + len(found) >= own.size
        assert len(found) == count or sum(map(len, more)) > size or at_end


def test_proofs_are_made_of_the_stored_hashes(own: LogFile) -> None:
    for first in range(0, 40, 5):
        own.append(messages(5, first), 1)
    assert own.signed is not None
    root = own.signed.root
    for position in (0, 17, 39):
        path = prove_inclusion(position, 40, own.read_hash)
        verify_inclusion(position, 40, leaf_hash(messages(1, position)[0]), path, root)
    assert root_at(25, own.read_hash) == Frontier.at(25, own.read_hash).root


def test_readers_and_a_writer_do_not_disturb_each_other(own: LogFile) -> None:
    own.append(messages(10), 1)
    failures: list[BaseException] = []
    over = threading.Event()

    def read() -> None:
        try:
            while not over.is_set():
                assert all_of(own)[:10] == messages(10)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(10, 200):
        own.append(messages(1, number), 1)
        if number % 20 == 0:
            own.close()
    over.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert all_of(own) == messages(200)


# --- copies ---------------------------------------------------------------------------------


def test_a_copy_keeps_the_head_first_and_the_entries_as_they_come(
    own: LogFile, other: LogFiles
) -> None:
    own.append(messages(20), 1)
    copy = other.copy(LOG)
    assert not copy.owned
    copy.keep([], copy.frontier(), [], own.signed)
    assert (copy.size, copy.signed) == (0, own.signed)
    reopened(copy)
    assert (copy.size, copy.signed) == (0, own.signed)
    copied(own, copy)
    reopened(copy)
    assert all_of(copy) == messages(20)
    assert copy.signed == own.signed
    assert copy.frontier() == own.frontier()


def test_a_copy_does_not_go_back_to_an_older_head(own: LogFile, other: LogFiles) -> None:
    own.append(messages(2), 1)
    older = own.signed
    own.append(messages(2, 2), 2)
    copy = other.copy(LOG)
    copied(own, copy)
    copy.keep([], copy.frontier(), [], older)
    assert copy.signed == own.signed
    assert reopened(copy).signed == own.signed


def test_nothing_is_appended_to_a_copy(own: LogFile, other: LogFiles) -> None:
    with pytest.raises(FeedReadOnlyError, match="Cannot append messages to a readonly feed"):
        other.copy(LOG).append(messages(1), 1)


@pytest.mark.parametrize("count", [1, 3])
def test_entries_that_no_head_covers_are_not_kept(
    own: LogFile, other: LogFiles, count: int
) -> None:
    own.append(messages(2), 1)
    copy = other.copy(LOG)
    entries = messages(count)
    frontier, stored = copy.frontier().extended(map(leaf_hash, entries))
    with pytest.raises(AssertionError):
        copy.keep(entries, frontier, stored, own.signed if count > 2 else None)
    assert (copy.size, copy.signed) == (0, None)


def test_the_key_makes_an_own_log_of_a_copy_which_must_be_settled(
    own: LogFile, other: LogFiles
) -> None:
    own.append(messages(2), 1)
    copy = other.copy(LOG)
    copied(own, copy)
    mine = other.own(LOG, KEY)
    assert mine is copy
    assert (mine.owned, mine.restored) == (True, True)


# --- what may not be appended ---------------------------------------------------------------


def cloned(log_file: LogFile, files: LogFiles) -> LogFile:
    """The log in a copy of its directory, as a restored backup is."""
    log_file.close()
    name = LOG.name.hex()
    shutil.copytree(log_file.path, f"{files.directory}/{name[:2]}/{name}")
    os.chmod(files.directory, 0o700)
    return files.own(LOG, KEY)


def test_a_restored_copy_refuses_until_it_is_settled(own: LogFile, other: LogFiles) -> None:
    own.append(messages(3), 1)
    restored = cloned(own, other)
    assert restored.restored
    assert all_of(restored) == messages(3)
    with pytest.raises(FeedRestoredError) as caught:
        restored.append(messages(1, 3), 2)
    assert caught.value.hint
    reopened(restored)
    assert restored.restored
    restored.settle()
    assert restored.append(messages(1, 3), 2) == 3
    assert not reopened(restored).restored
    assert not own.restored


def test_another_computer_is_another_place(own: LogFile, monkeypatch: pytest.MonkeyPatch) -> None:
    own.append(messages(3), 1)
    monkeypatch.setattr("kachery_p2p.feeds.disk._machine", lambda: "elsewhere")
    reopened(own)
    assert own.restored
    with pytest.raises(FeedRestoredError):
        own.append(messages(1), 1)


def test_a_log_that_begins_while_its_key_is_away_counts_as_restored(files: LogFiles) -> None:
    log_file = files.own(LOG, KEY, away=True)
    assert log_file.restored
    with pytest.raises(FeedRestoredError):
        log_file.append(messages(1), 1)
    log_file.settle()
    assert log_file.append(messages(1), 1) == 0
    assert not reopened(log_file).restored


def test_a_restored_copy_that_is_behind_catches_up_and_goes_on(
    own: LogFile, other: LogFiles
) -> None:
    own.append(messages(3), 1)
    restored = cloned(own, other)
    own.append(messages(4, 3), 2)
    restored.settle()  # somebody says that it is the only one, and is wrong
    restored.keep([], restored.frontier(), [], own.signed)
    with pytest.raises(FeedBehindError, match="7 messages"):
        restored.append(messages(1, 3), 2)
    with pytest.raises(FeedBehindError):
        reopened(restored).append(messages(1, 3), 2)
    copied(own, restored)
    assert restored.append(messages(1, 7), 3) == 7
    assert all_of(restored) == messages(8)


def test_after_a_fork_nothing_is_appended_or_read_beyond_it(own: LogFile, other: LogFiles) -> None:
    own.append(messages(3), 1)
    twin = cloned(own, other)
    twin.settle()
    own.append(messages(1, 3), 2)
    twin.append(messages(1, 3, what="other"), 2)
    assert own.signed is not None
    assert twin.signed is not None
    fork = ForkProof.of_one_size(own.signed, twin.signed)
    own.convict(fork)
    assert (own.size, own.readable, own.fork) == (4, 3, fork)
    assert all_of(own) == messages(3)
    with pytest.raises(FeedForkedError) as caught:
        own.append(messages(1), 3)
    assert ForkProof.decode(caught.value.evidence, LOG.tag) == fork
    assert reopened(own).fork == fork
    with pytest.raises(FeedForkedError):
        own.append(messages(1), 3)
    with pytest.raises(FeedForkedError):
        copied(twin, own)


def test_the_proof_of_the_earlier_fork_is_kept(own: LogFile, other: LogFiles) -> None:
    proofs = []
    for size in (4, 2):
        one, two = (
            Tree(messages(size - 1) + messages(1, 9, what=what)).head for what in ("one", "two")
        )
        proofs.append(ForkProof.of_one_size(one, two))
    for number in (0, 1, 0):
        own.convict(proofs[number])
    assert own.fork == proofs[1]
    assert reopened(own).fork == proofs[1]


def test_a_made_up_fork_convicts_nobody(own: LogFile) -> None:
    own.append(messages(3), 1)
    assert own.signed is not None
    head = own.signed.head._replace(root=leaf_hash(b""))
    fake = ForkProof.of_one_size(own.signed, own.signed._replace(head=head))
    with pytest.raises(HeadError):
        own.convict(fake)
    assert own.fork is None
    assert own.append(messages(1, 3), 1) == 3


class Tree:
    """Entries, and the head that the owner signs of them."""

    def __init__(self, entries: list[bytes]) -> None:
        from kachery_p2p.log.heads import Head, sign_head

        self.frontier = Frontier().extended(map(leaf_hash, entries)).frontier
        self.head = sign_head(Head(LOG, self.frontier.size, self.frontier.root, 1), KEY)


def tombstone(size: int, root: bytes, successor: FeedId | None = None, time: int = 9) -> Tombstone:
    return Tombstone(LOG, size, root, successor, time).signed(KEY)


def test_after_a_tombstone_nothing_is_appended_or_read_beyond_it(own: LogFile) -> None:
    own.append(messages(3), 1)
    root = root_at(2, own.read_hash)
    own.end(tombstone(2, root, SUCCESSOR))
    assert own.readable == 2
    assert all_of(own) == messages(2)
    with pytest.raises(FeedEndedError) as caught:
        own.append(messages(1), 3)
    assert caught.value.hint == f"it goes on as feed://{SUCCESSOR}"
    reopened(own)
    assert own.tombstone is not None
    assert own.tombstone.tombstone.successor == SUCCESSOR
    with pytest.raises(FeedEndedError):
        own.append([], 3)


def test_a_copy_is_kept_up_to_the_tombstone_and_not_beyond(own: LogFile, other: LogFiles) -> None:
    own.append(messages(5), 1)
    copy = other.copy(LOG)
    copy.keep([], copy.frontier(), [], own.signed)
    copy.end(tombstone(3, root_at(3, own.read_hash)))
    for end in (3, 5):
        entries = messages(end - copy.size, copy.size)
        frontier, stored = copy.frontier().extended(map(leaf_hash, entries))
        if end == 3:
            copy.keep(entries, frontier, stored, None)
        else:
            with pytest.raises(FeedEndedError):
                copy.keep(entries, frontier, stored, None)
    assert all_of(copy) == messages(3)


def test_of_several_tombstones_the_smallest_counts_and_a_contradiction_is_said(
    own: LogFile,
) -> None:
    own.append(messages(5), 1)
    roots = [root_at(size, own.read_hash) for size in range(6)]
    for size, successor in ((4, None), (5, SUCCESSOR), (3, None)):
        own.end(tombstone(size, roots[size], successor))
    assert own.readable == 3
    for log_file in (own, reopened(own)):
        assert log_file.tombstone is not None
        assert log_file.tombstone.tombstone.size == 3
        assert log_file.tombstone.rival is not None
        assert log_file.tombstone.rival.successor == SUCCESSOR
        with pytest.raises(FeedEndedError) as caught:
            own.append(messages(1), 3)
        assert "two successors" in str(caught.value.hint)


def test_a_tombstone_of_another_history_or_of_a_stranger_ends_nothing(own: LogFile) -> None:
    own.append(messages(3), 1)
    with pytest.raises(ProofError):
        own.end(tombstone(3, leaf_hash(b"")))
    signed = Tombstone(LOG._replace(owner=STRANGER.node_id), 0, EMPTY_ROOT, None, 1)
    with pytest.raises(HeadError):
        own.end(signed.signed(STRANGER))
    with pytest.raises(HeadError):
        own.end(signed.signed(STRANGER)._replace(log=LOG))
    assert own.tombstone is None
    assert own.append(messages(1, 3), 1) == 3


# --- two processes, deletion ----------------------------------------------------------------

ANOTHER = """
import os, sys
sys.path.insert(0, os.getcwd())
from kachery_p2p.errors import FeedInUseError
from kachery_p2p.feeds.log_files import LogFiles
from tests.feeds.feed_logs import all_of, copied, crashed, flip, grown, path_of, reopened
from tests.feeds.feed_parts import KEY, LOG, messages
files = LogFiles(sys.argv[1])
try:
    print(files.own(LOG, KEY).append(messages(1), 1))
except FeedInUseError as error:
    print("in use", bool(error.hint))
"""


def test_two_processes_never_append_to_one_log(files: LogFiles, own: LogFile) -> None:
    def another() -> str:
        command = [sys.executable, "-c", ANOTHER, files.directory]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    own.append(messages(3), 1)
    assert another() == "in use True"
    files.close()
    assert another() == "3"
    assert own.append(messages(1), 1) == 4
    assert own.check() == ()
    Tree(all_of(own)).head.verify(LOG)


def test_a_deleted_log_is_gone_for_whoever_has_it(files: LogFiles, own: LogFile) -> None:
    own.append(messages(3), 1)
    path = Path(own.path)
    files.delete(LOG)
    assert not path.exists()
    assert files.get(LOG) is None
    for use in (
        lambda: own.append(messages(1), 1),
        lambda: own.entries(0, 1, 1),
        lambda: own.read_hash(0),
        own.check,
        own.settle,
    ):
        with pytest.raises(UnknownFeedError):
            use()
    again = files.copy(LOG)
    assert again is not own
    assert again.size == 0
