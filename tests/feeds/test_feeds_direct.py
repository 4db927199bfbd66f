"""Programs that append to an own subfeed beside the node: nothing lost, nothing twice, no fork."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.content.hashes import FeedId
from kachery_p2p.errors import (
    FeedBehindError,
    FeedEndedError,
    FeedForkedError,
    FeedRestoredError,
    StorageFullError,
)
from kachery_p2p.feeds import replica as replica_module
from kachery_p2p.feeds import writers as writers_module
from kachery_p2p.feeds.direct import DirectLog, NotHere, OpenedAnew
from kachery_p2p.feeds.disk import sync_data
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.log_files import LogFiles
from kachery_p2p.feeds.replica import Replica
from kachery_p2p.feeds.told import Told
from kachery_p2p.feeds.writers import Standing
from kachery_p2p.log.forks import ForkProof
from kachery_p2p.log.heads import Head, sign_head
from kachery_p2p.log.proofs import prove_consistency
from kachery_p2p.log.rules import Writer
from kachery_p2p.log.tree import Frontier, leaf_hash
from tests.feeds.direct_logs import refused, said, take_in
from tests.feeds.feed_logs import all_of, path_of, reopened
from tests.feeds.feed_parts import KEY, LOG, messages

SUCCESSOR = FeedId("cd" * 32)


# --- together with the node ----------------------------------------------------------------------


def test_what_programs_append_is_taken_in_in_order(
    own: LogFile, direct: Callable[[], DirectLog]
) -> None:
    one, other = direct(), direct()
    expected: list[bytes] = []
    for append in (one.append, other.append, lambda e: own.append(e, 5), one.append, other.append):
        entries = messages(3, len(expected))
        assert append(entries) == len(expected)
        expected += entries
    assert own.has_grown()
    assert own.size == 9
    assert own.absorb() == (9, expected[9:])
    assert not own.has_grown()
    assert all_of(own) == expected
    assert own.frontier() == Frontier().extended(map(leaf_hash, expected)).frontier
    assert own.signed is not None
    assert (own.signed.size, own.signed.root) == (15, own.frontier().root)
    assert own.check() == ()
    reopened(own)
    assert all_of(own) == expected
    assert direct().append(messages(1, 15)) == 15


def test_nothing_is_shown_or_signed_before_the_node_has_synced_it(
    own: LogFile, direct: Callable[[], DirectLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    direct().append(messages(2))
    seen: list[tuple[int, object]] = []
    really = os.fdatasync

    def looking(fd: int) -> None:
        seen.append((own.size, own.signed))
        really(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", looking)
        own.absorb()
    assert seen == [(0, None)]
    assert own.size == 2


def test_the_node_can_be_told_of_what_is_written_before_the_disk_has_it(
    own: LogFile, direct: Callable[[], DirectLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, steps = direct(), list[str]()
    log.append(messages(1))
    take_in(own)

    def sync(descriptor: int) -> None:
        steps.append("synced")
        sync_data(descriptor)

    monkeypatch.setattr("kachery_p2p.feeds.direct.sync_data", sync)

    def written() -> None:
        # The lock is free, and the node syncs it itself before it shows it.
        steps.append("told")
        assert own.absorb() == (1, messages(2, 1))

    assert log.append(messages(2, 1), written) == 1
    assert steps == ["told", "synced"]


def test_a_program_appends_while_the_node_is_away_and_the_node_finds_it(
    own: LogFile, files: LogFiles, direct: Callable[[], DirectLog]
) -> None:
    own.append(messages(2), 1)
    files.close()
    assert direct().append(messages(3, 2)) == 2
    again = LogFiles(files.directory)
    assert all_of(again.own(LOG, KEY)) == messages(5)
    Writer(LOG, KEY, again.own(LOG, KEY).frontier(), again.own(LOG, KEY).signed)
    again.close()


def test_many_threads_of_one_program_and_the_node_append_at_once(
    own: LogFile, direct: Callable[[], DirectLog]
) -> None:
    one, other = direct(), direct()
    places: dict[int, list[int]] = {}

    def append(number: int, to: Callable[[list[bytes]], int]) -> None:
        places[number] = [to(messages(1, k, f"t{number}-")) for k in range(30)]

    targets = [one.append, one.append, other.append, lambda entries: own.append(entries, 1)]
    threads = [
        threading.Thread(target=append, args=(number, to)) for number, to in enumerate(targets)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    take_in(own)
    found = all_of(own)
    assert sorted(sum(places.values(), [])) == list(range(120)) == list(range(len(found)))
    for number, at in places.items():
        assert [found[position] for position in at] == messages(30, 0, f"t{number}-")
        assert at == sorted(at)


def test_a_long_tail_is_taken_in_in_pieces(
    own: LogFile, direct: Callable[[], DirectLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kachery_p2p.feeds.shared_log.FEED_TAKEN_BYTES", 1_000)
    log = direct()
    for number in range(60):
        log.append(messages(1, number))
    first, taken = own.absorb()
    assert (first, 10 < len(taken) < 30) == (0, True)
    assert [*taken, *take_in(own)] == messages(60)
    assert all_of(own) == messages(60)


# --- where the node has to be asked ---------------------------------------------------------------


def test_a_log_that_the_node_never_opened_is_not_appended_to(tmp_path: Path) -> None:
    with pytest.raises(NotHere):
        DirectLog(f"{tmp_path}/nothing")


def test_the_copy_of_somebodys_log_is_not_appended_to(files: LogFiles) -> None:
    copy = files.copy(LOG)
    with pytest.raises(NotHere):
        DirectLog(copy.path)


def test_after_a_restart_of_the_computer_the_node_looks_first(
    own: LogFile, direct: Callable[[], DirectLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = direct()
    log.append(messages(1))
    monkeypatch.setattr(writers_module, "boot_id", lambda: b"another boot id!")
    assert refused(direct()) is None
    reopened(own)
    assert direct().append(messages(1, 1)) == 1
    assert all_of(own) == messages(1)
    assert take_in(own) == messages(1, 1)


def test_where_nothing_tells_one_start_from_the_next_the_node_does_it(
    own: LogFile, direct: Callable[[], DirectLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers_module, "boot_id", lambda: bytes(16))
    reopened(own)
    assert refused(direct()) is None
    assert own.append(messages(1), 1) == 0
    assert own.append(messages(1, 1), 1) == 1


def test_a_file_that_was_put_in_the_place_of_the_entries_is_not_written(
    own: LogFile, direct: Callable[[], DirectLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kachery_p2p.feeds.direct.FEED_PLACE_S", 0.0)
    log = direct()
    log.append(messages(1))
    entries = path_of(own, "entries")
    entries.rename(f"{entries}.moved")
    with pytest.raises(NotHere):
        direct()
    assert refused(log) is None
    entries.write_bytes(b"")
    assert refused(log) is None
    assert Path(f"{entries}.moved").read_bytes().count(b"kpfr") == 1


def test_a_log_whose_directory_was_moved_away_is_for_the_node(
    own: LogFile, direct: Callable[[], DirectLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kachery_p2p.feeds.direct.FEED_PLACE_S", 0.0)
    log = direct()
    log.append(messages(1))
    Path(own.path).rename(f"{own.path}.moved")
    for _ in range(2):
        assert refused(log) is None
    Path(f"{own.path}.moved").rename(own.path)


def test_who_has_a_lock_that_was_deleted_does_not_append_beside_the_others(
    own: LogFile, direct: Callable[[], DirectLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kachery_p2p.feeds.direct.FEED_PLACE_S", 0.0)
    log = direct()
    log.append(messages(1))
    path_of(own, "writers").unlink()
    assert refused(log) is None
    reopened(own)
    assert refused(log) is None
    assert direct().append(messages(1, 1)) == 1


def test_what_the_node_has_opened_anew_is_opened_anew_here_too(
    own: LogFile, direct: Callable[[], DirectLog]
) -> None:
    log = direct()
    log.append(messages(1))
    before = said(own).generation
    reopened(own)
    assert said(own).generation != before
    for _ in range(2):
        with pytest.raises(OpenedAnew):
            log.append(messages(1, 1))
    assert direct().append(messages(1, 1)) == 1


@pytest.mark.parametrize(("system", "told"), [("linux", True), ("darwin", False)])
def test_where_not_everybody_is_told_that_the_disk_failed_only_the_node_appends(
    own: LogFile, monkeypatch: pytest.MonkeyPatch, system: str, told: bool
) -> None:
    read = writers_module.boot_id.__wrapped__
    monkeypatch.setattr(writers_module, "_linux_version", lambda: (4, 18))
    monkeypatch.setattr("sys.platform", system)
    assert any(read()) is told
    monkeypatch.setattr(writers_module, "_linux_version", lambda: (3, 10))
    assert not any(read())


def test_a_restored_log_is_not_appended_to_before_somebody_has_made_sure(
    own: LogFile, files: LogFiles, direct: Callable[[], DirectLog]
) -> None:
    own.append(messages(2), 1)
    files.close()
    path_of(own, "place").write_text("machine another\ninode 1\n")
    with pytest.raises(NotHere) as caught:
        direct()
    assert isinstance(caught.value.why, FeedRestoredError)
    own.open()
    assert said(own).standing is Standing.RESTORED
    own.settle()
    assert direct().append(messages(1, 2)) == 2


def test_an_ended_log_has_all_that_was_appended_before_and_nothing_after(
    own: LogFile, direct: Callable[[], DirectLog]
) -> None:
    log = direct()
    log.append(messages(3))
    own.finish(SUCCESSOR, 9)
    assert own.tombstone is not None
    assert (own.tombstone.tombstone.size, own.tombstone.tombstone.successor) == (3, SUCCESSOR)
    assert all_of(own) == messages(3)
    assert isinstance(refused(log), FeedEndedError)
    assert isinstance(refused(direct()), FeedEndedError)
    reopened(own)
    assert isinstance(refused(direct()), FeedEndedError)


def test_an_end_that_could_not_be_kept_lets_programs_go_on(
    own: LogFile, direct: Callable[[], DirectLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log = direct()
    with monkeypatch.context() as patch:
        patch.setattr("kachery_p2p.feeds.ending.write_small", full)
        with pytest.raises(StorageFullError):
            own.finish(None, 9)
    assert said(own).standing is Standing.OPEN
    assert log.append(messages(1)) == 0


def test_a_forked_log_and_one_that_is_behind_are_not_appended_to(
    own: LogFile, direct: Callable[[], DirectLog]
) -> None:
    log = direct()
    log.append(messages(2))
    take_in(own)
    longer = Frontier().extended(map(leaf_hash, messages(5))).frontier
    head = sign_head(Head(LOG, 5, longer.root, 7), KEY)
    own.keep([], own.frontier(), [], head)
    assert isinstance(refused(log), FeedBehindError)
    other = sign_head(Head(LOG, 5, leaf_hash(b"other"), 7), KEY)
    own.convict(ForkProof.of_one_size(head, other))
    assert isinstance(refused(log), FeedForkedError)


def test_a_head_from_elsewhere_is_compared_anew_if_programs_have_appended_meanwhile(
    own: LogFile, direct: Callable[[], DirectLog]
) -> None:
    own.append(messages(2), 1)
    longer, stored = Frontier().extended(map(leaf_hash, messages(5)))
    told = Told(sign_head(Head(LOG, 5, longer.root, 7), KEY), base=2)
    told = told._replace(path=prove_consistency(2, 5, stored.__getitem__))
    replica = Replica(own)
    assert replica.best is not None
    direct().append(messages(1, 2))
    # Nothing of it was kept, so nobody is told that it was.
    assert replica.hear(told).standing is replica_module.Standing.UNKNOWN
    assert own.signed is not None
    assert (own.size, own.signed.size) == (3, 3)
    assert all_of(own) == messages(3)
    assert said(own).standing is Standing.OPEN
    assert own.append(messages(1, 3), 1) == 3


def test_a_deleted_log_takes_nothing_more(
    own: LogFile, files: LogFiles, direct: Callable[[], DirectLog]
) -> None:
    log = direct()
    log.append(messages(1))
    files.delete(LOG)
    assert refused(log) is None
    again = files.own(LOG, KEY)
    assert again.size == 0
    assert refused(log) is None
    assert direct().append(messages(1)) == 0
