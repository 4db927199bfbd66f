"""The node's side of a log that programs append to: what fails on the way, and what is left."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.channels import disk
from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.errors import (
    FeedBusyError,
    FeedEndedError,
    FeedStoppedError,
    StateCorruptError,
    StorageFailedError,
    StorageFullError,
)
from kachery_p2p.feeds import ending, opened, shared_log, writers
from kachery_p2p.feeds.direct import DirectLog
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.log_files import LogFiles
from kachery_p2p.feeds.opening import Recovery
from kachery_p2p.feeds.told import SubfeedName
from kachery_p2p.feeds.writers import Standing
from tests.feeds.direct_logs import refused, said, take_in
from tests.feeds.feed_logs import all_of, crashed, flip, path_of, reopened
from tests.feeds.feed_parts import FEED, KEY, LOG, messages


@pytest.fixture
def program(own: LogFile) -> Iterator[DirectLog]:
    """A program that appends to the log, in which one message is."""
    own.append(messages(1), 1)
    log = DirectLog(own.path)
    yield log
    log.close()


@contextlib.contextmanager
def failing(where: Any, name: str, code: int) -> Iterator[None]:
    """Calls of this end so, and do nothing."""

    def fail(*args: Any) -> None:
        raise OSError(code, os.strerror(code))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, fail)
        yield


def full(*args: Any) -> None:
    raise opened.Withdrawn(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


@pytest.mark.parametrize("late", [False, True])
def test_what_others_appended_stays_when_an_append_of_the_node_fails(
    own: LogFile, program: DirectLog, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    program.append(messages(2, 1))
    with monkeypatch.context() as patch:
        patch.setattr(shared_log, "write_record", full)
        if late:  # they come when the node has just looked
            patch.setattr(shared_log.SharedLog, "_catch_up", lambda log: None)
        with pytest.raises(StorageFullError):
            own.append(messages(1, 99), 1)
    assert own.size == (1 if late else 3)
    assert take_in(own) == (messages(2, 1) if late else [])
    assert not own.has_grown()
    program.append(messages(1, 3))
    assert own.absorb() == (3, messages(1, 3))
    own.finish(None, 5)
    assert own.readable == 4
    assert all_of(own) == messages(4)


@pytest.mark.parametrize("zeros", [0, 7, 100, 5_000])
@pytest.mark.parametrize(("record", "at"), [(0, 40), (4, 40), (4, 10)])
def test_zeros_behind_an_acknowledged_record_with_a_flipped_bit_cut_nothing_off(
    own: LogFile, program: DirectLog, zeros: int, record: int, at: int
) -> None:
    entries = path_of(own, "entries")
    begins = []
    for number in range(1, 6):
        begins.append(entries.stat().st_size)
        program.append(messages(1, number))
    crashed(own)
    path_of(own, "hashes").unlink()
    path_of(own, "offsets").unlink()
    flip(entries, begins[record] + at)
    with entries.open("ab") as file:
        file.write(bytes(zeros))
    before = entries.read_bytes()
    with pytest.raises(StateCorruptError):
        own.open()
    assert entries.read_bytes() == before


def test_a_sector_that_a_crash_left_unwritten_is_cut_off_with_its_record(own: LogFile) -> None:
    entries = path_of(own, "entries")
    # So that the record has twelve bytes in a sector of their own.
    own.append([bytes(b"x" * (512 - len(messages(1)[0]) - 72 + 12))], 1)
    begin = entries.stat().st_size
    own.append(messages(1), 1)
    end = entries.stat().st_size
    assert (end % 512, begin < 512 < end) == (12, True)
    crashed(own)
    path_of(own, "hashes").unlink()
    data = entries.read_bytes()
    entries.write_bytes(data[:512] + bytes(12) + bytes(100))
    own.open()
    assert own.size == 1
    assert entries.stat().st_size == begin


@pytest.mark.parametrize("name", ["write_small", "sync_directory"])
def test_only_an_end_that_is_on_the_disk_counts(
    own: LogFile, program: DirectLog, name: str
) -> None:
    where = ending if name == "write_small" else disk
    with failing(where, name, errno.ENOSPC), pytest.raises(StorageFullError):
        own.finish(None, 5)
    if name == "write_small":
        assert (own.tombstone, said(own).standing) == (None, Standing.OPEN)
        program.append(messages(1, 1))
        own.finish(None, 6)
    # Else it is there, though nobody knows for how long: so nothing may come behind it.
    assert own.tombstone is not None
    assert own.tombstone.tombstone.size == own.size == own.readable
    assert isinstance(refused(program), FeedEndedError)


def test_a_sync_that_fails_when_a_log_is_ended_stops_all_who_append(
    own: LogFile, program: DirectLog
) -> None:
    program.append(messages(1, 1))
    with failing(shared_log, "sync_data", errno.EIO), pytest.raises(FeedStoppedError):
        own.finish(None, 5)
    assert said(own).standing is Standing.STOPPED
    assert isinstance(refused(program), FeedStoppedError)
    assert own.tombstone is None
    assert all_of(reopened(own)) == messages(2)


def test_after_a_failed_sync_of_a_program_the_node_shows_nothing_more(
    own: LogFile, program: DirectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("kachery_p2p.feeds.direct.sync_data", failed_sync)
        with pytest.raises(FeedStoppedError):
            program.append(messages(1, 1))
    # A sync of ours would succeed, and mean nothing.
    assert take_in(own) == []
    assert own.size == 1
    with pytest.raises(FeedStoppedError):
        own.finish(None, 5)
    assert all_of(reopened(own)) == messages(2)


def test_what_is_being_synced_is_waited_for_by_who_asks_meanwhile(
    own: LogFile, program: DirectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.append(messages(1, 1))
    begun, go_on = threading.Event(), threading.Event()

    def sync(descriptor: int) -> None:
        begun.set()
        assert go_on.wait(60)
        os.fdatasync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(shared_log, "sync_data", sync)
        looking = threading.Thread(target=own.absorb)
        looking.start()
        assert begun.wait(60)
        # Else who has just appended would be told that nothing is there.
        grown = own.has_grown()
        go_on.set()
        looking.join()
    assert grown
    assert not own.has_grown()
    assert all_of(own) == messages(2)


def failed_sync(fd: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_sync_that_fails_when_an_entry_is_mended_stops_all_who_append(
    own: LogFile, program: DirectLog
) -> None:
    with failing(opened, "write_all", errno.ENOSPC), pytest.raises(StorageFullError):
        own.mend(0, messages(1)[0])
    assert said(own).standing is Standing.OPEN
    with failing(opened, "sync_data", errno.EIO), pytest.raises(FeedStoppedError):
        own.mend(0, messages(1)[0])
    assert isinstance(refused(program), FeedStoppedError)
    with pytest.raises(FeedStoppedError):
        own.append(messages(1, 1), 1)
    reopened(own).mend(0, messages(1)[0])
    assert own.append(messages(1, 1), 1) == 1


def test_making_hashes_anew_asks_nothing_of_the_disk_that_could_be_missed(
    own: LogFile, program: DirectLog
) -> None:
    program.append(messages(1, 1))
    path = path_of(own, "hashes")
    path.write_bytes(bytes(len(path.read_bytes())))
    with failing(os, "fdatasync", errno.EIO):
        assert own.entries(0, 9, 999) == messages(1)
    assert take_in(own) == messages(1, 1)


@pytest.mark.parametrize("first", [True, False])
def test_on_a_full_disk_a_log_whose_standing_cannot_be_said_is_read_all_the_same(
    own: LogFile, files: LogFiles, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.append(messages(1), 1)
    own.close()
    if first:
        path_of(own, "writers").unlink()
    really = os.pwrite
    writes: list[int] = []

    def write(fd: int, data: Any, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("writers"):
            writes.append(fd)
            if first or len(writes) > 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return really(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", write)
        assert all_of(files.own(LOG, KEY)) == messages(1)
        with contextlib.closing(DirectLog(own.path)) as program:
            assert refused(program) is None
        assert own.append(messages(1, 1), 1) == 1
    # There is space again: the next append says how it stands.
    assert own.append(messages(1, 2), 1) == 2
    with contextlib.closing(DirectLog(own.path)) as program:
        assert program.append(messages(1, 3)) == 3


def test_a_log_is_not_read_with_the_lock_held(
    own: LogFile, program: DirectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.close()
    seen: list[object] = []
    really: Callable[..., Any] = Recovery.state

    def look(*args: Any, **options: Any) -> Any:
        seen.append(refused(program))
        return really(*args, **options)

    monkeypatch.setattr(Recovery, "state", look)
    monkeypatch.setattr("kachery_p2p.feeds.writers.FEED_LOCK_S_MAX", 0.05)
    own.open()
    # It was told to ask the node, and did not wait.
    assert seen == [None]
    assert own.size == 1


def test_a_disk_that_fails_while_a_log_is_ended_is_a_typed_error(
    own: LogFile, program: DirectLog
) -> None:
    with failing(ending, "write_small", errno.EIO), pytest.raises(StorageFailedError):
        own.finish(None, 5)
    assert program.append(messages(1, 1)) == 1


def test_only_so_many_logs_are_open_whoever_opens_them(quick_path: Path) -> None:
    files = LogFiles(f"{quick_path}/feeds", open_max=2)
    logs = [files.own(SubfeedName(FEED, sha1_of(b"%d" % n)).log, KEY) for n in range(5)]
    for log in logs:
        log.append(messages(1), 1)
        assert log.signed is not None
    # When they were closed their heads were put behind the entries: that is nobody's growth.
    assert [log.has_grown() for log in logs] == [False] * 5
    for log in logs:
        with contextlib.closing(DirectLog(log.path)) as program:
            program.append(messages(1, 1))
        assert log.has_grown()
        assert files.has_grown(log.log, 1)
        while log.has_grown():
            log.absorb()
        assert all_of(log) == messages(2)
        assert sum(log.is_open for log in logs) <= 2
    files.close()


def test_logs_that_are_opened_by_many_threads_close_each_other_without_end(
    quick_path: Path,
) -> None:
    files = LogFiles(f"{quick_path}/feeds", open_max=1)
    logs = [files.own(SubfeedName(FEED, sha1_of(b"%d" % n)).log, KEY) for n in range(3)]

    def use(log: LogFile) -> None:
        for number in range(5):
            assert log.append(messages(1, number), 1) == number

    threads = [threading.Thread(target=use, args=[log], daemon=True) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert [log.size for log in logs] == [5, 5, 5]
    files.close()


def test_what_is_opened_as_a_copy_takes_nothing_from_programs(
    own: LogFile, program: DirectLog, quick_path: Path
) -> None:
    assert own.signed is not None
    own.close()
    with contextlib.closing(LogFiles(f"{quick_path}/config/feeds")) as files:
        copy = files.copy(LOG)
        assert (copy.owned, copy.size) == (False, 1)
        assert refused(program) is None
    # The key is back.
    own.open()
    with contextlib.closing(DirectLog(own.path)) as later:
        assert later.append(messages(1, 1)) == 1
    own.close()
    # As a copy it would have messages that nobody signed: they are no reason to delete them.
    files = LogFiles(f"{quick_path}/config/feeds")
    with pytest.raises(StateCorruptError) as caught:
        files.copy(LOG)
    files.close()
    assert "do not delete" in (caught.value.hint or "")


@pytest.fixture
def outpaced(program: DirectLog, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The node takes in one message at a time, and three more come meanwhile, so many times."""
    rounds = [30]
    really = shared_log.SharedLog._absorb
    number = iter(range(100, 1_000))

    def absorb(log: shared_log.SharedLog, *args: Any, alone: bool = False) -> None:
        # They cannot write while the node has the lock.
        if rounds[0] > 0 and not alone:
            rounds[0] -= 1
            for _ in range(3):
                program.append(messages(1, next(number)))
        really(log, *args, alone=alone)

    monkeypatch.setattr(shared_log, "FEED_TAKEN_BYTES", 1)
    monkeypatch.setattr(shared_log, "FEED_TAKEN_ALONE_BYTES", 200)
    program.append(messages(3, 1))
    with monkeypatch.context() as patch:
        patch.setattr(shared_log.SharedLog, "_absorb", absorb)
        yield rounds


def test_who_appends_faster_than_the_node_takes_in_waits_for_it_a_little(
    own: LogFile, outpaced: list[int]
) -> None:
    first = own.append(messages(1, 99), 1)
    # It came to its turn though they would have gone on for long.
    assert outpaced[0] > 20
    outpaced[0] = 0
    take_in(own)
    found = all_of(own)
    assert found.index(messages(1, 99)[0]) == first
    assert len(found) == len(set(found)) == own.size


@pytest.mark.parametrize("ends", [True, False])
def test_the_lock_is_not_had_for_long_however_much_comes(
    own: LogFile, program: DirectLog, outpaced: list[int], ends: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_log, "FEED_TAKEN_ALONE_BYTES", 1)
        patch.setattr(shared_log, "FEED_LOCK_S_MAX", 0.0)
        with pytest.raises(FeedBusyError, match="more than was taken in"):
            own.finish(None, 5) if ends else own.append(messages(1, 99), 1)
    outpaced[0] = 0
    assert own.tombstone is None
    program.append(messages(1, 98))
    own.finish(None, 5)
    assert messages(1, 99)[0] not in all_of(own)
    assert all_of(own)[-1:] == messages(1, 98)


def test_why_nobody_may_append_is_on_the_disk_before_what_it_is_about(
    own: LogFile, program: DirectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Standing] = []
    monkeypatch.setattr(writers, "sync_data", lambda fd: synced.append(said(own).standing))
    reopened(own)
    with contextlib.closing(DirectLog(own.path)) as later:
        later.append(messages(1, 1))
    own.append(messages(1, 2), 2)
    assert synced == []
    with failing(writers, "sync_data", errno.EIO), pytest.raises(StorageFailedError):
        own.finish(None, 5)
    assert own.tombstone is None
    assert said(own).standing is Standing.OPEN
    own.finish(None, 5)
    assert synced == [Standing.ENDED]
