"""Programs that append to an own subfeed: killed ones, failing disks, crashes with several."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import sys
from collections.abc import Callable

import pytest

from kachery_p2p.errors import (
    FeedBusyError,
    FeedStoppedError,
    StateCorruptError,
    StorageFailedError,
    StorageFullError,
)
from kachery_p2p.feeds import writers as writers_module
from kachery_p2p.feeds.direct import DirectLog
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.records import encode_record
from kachery_p2p.feeds.writers import Standing
from tests.feeds.direct_logs import failing, refused, said, take_in
from tests.feeds.feed_logs import all_of, crashed, path_of, reopened
from tests.feeds.feed_parts import messages

# --- what a writer leaves that was killed ---------------------------------------------------------


def put(own: LogFile, data: bytes) -> None:
    with path_of(own, "entries").open("ab") as file:
        file.write(data)


def test_a_record_that_its_writer_could_not_tell_of_counts(
    own: LogFile, direct: Callable[[], DirectLog]
) -> None:
    log = direct()
    log.append(messages(1))
    put(own, encode_record(1, messages(2, 1), None))
    assert log.append(messages(1, 3)) == 3
    put(own, encode_record(4, messages(1, 4), None))
    assert own.append(messages(1, 5), 1) == 5
    assert all_of(own) == messages(6)


@pytest.mark.parametrize("cut", [1, 31, 32, 40, -1])
@pytest.mark.parametrize("who", ["program", "node", "restart"])
def test_a_record_that_was_begun_and_never_finished_is_cut_off(
    own: LogFile, direct: Callable[[], DirectLog], cut: int, who: str
) -> None:
    log = direct()
    log.append(messages(1))
    put(own, encode_record(1, messages(1, 99), None)[:cut])
    if who == "program":
        assert log.append(messages(1, 1)) == 1
    elif who == "node":
        assert own.append(messages(1, 1), 1) == 1
    else:
        reopened(own)
        assert direct().append(messages(1, 1)) == 1
    take_in(own)
    assert all_of(own) == messages(2)
    assert path_of(own, "entries").read_bytes().count(b"m99") == 0


def test_what_is_damaged_is_neither_written_behind_nor_cut_off(
    own: LogFile, direct: Callable[[], DirectLog]
) -> None:
    log = direct()
    log.append(messages(1))
    record = bytearray(encode_record(1, messages(3, 1), None))
    record[60] ^= 1
    put(own, bytes(record))
    before = path_of(own, "entries").read_bytes()
    assert refused(log) is None
    with pytest.raises(StateCorruptError):
        own.append(messages(1, 4), 1)
    assert path_of(own, "entries").read_bytes() == before


def test_a_program_that_is_stopped_with_the_lock_is_not_waited_for_for_ever(
    own: LogFile, direct: Callable[[], DirectLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = direct()
    log.append(messages(1))
    monkeypatch.setattr(writers_module, "FEED_LOCK_S_MAX", 0.05)
    with path_of(own, "writers").open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        for append in (log.append, lambda entries: own.append(entries, 1)):
            with pytest.raises(FeedBusyError) as caught:
                append(messages(1, 1))
            assert caught.value.hint
        assert own.entries(0, 9, 999) == []
    assert log.append(messages(1, 1)) == 1
    assert own.append(messages(1, 2), 1) == 2


def test_ctrl_c_at_any_moment_leaves_the_lock_to_others(
    own: LogFile, direct: Callable[[], DirectLog]
) -> None:
    other, moments = direct(), 0
    with path_of(own, "writers").open("rb") as looking:
        for number in range(1, 500):
            log, left = direct(), number

            # Python handles signals when a function begins, and when a built-in one is done.
            def interrupt(frame: object, event: str, about: object) -> None:
                nonlocal left
                if event in ("call", "c_return"):
                    left -= 1
                    if left == 0:
                        raise KeyboardInterrupt

            # What collects garbage swallows it.
            gc.disable()
            sys.setprofile(interrupt)
            try:
                log.append(messages(1, 0, "some"))
                break
            except KeyboardInterrupt:
                moments += 1
            finally:
                sys.setprofile(None)
                gc.enable()
            fcntl.flock(looking, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(looking, fcntl.LOCK_UN)
            other.append(messages(1, 0, "other"))
    assert moments > 30
    assert take_in(own).count(messages(1, 0, "other")[0]) == moments


# --- failures of the disk -------------------------------------------------------------------------


def test_after_a_failed_sync_nobody_appends_until_the_node_has_opened_the_log_anew(
    own: LogFile, direct: Callable[[], DirectLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = direct(), direct()
    other.append(messages(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing("fdatasync", errno.EIO))
        with pytest.raises(FeedStoppedError):
            one.append(messages(1, 1))
    assert said(own).standing is Standing.STOPPED
    assert refused(one) is None
    assert isinstance(refused(other), FeedStoppedError)
    assert isinstance(refused(direct()), FeedStoppedError)
    for _ in range(2):
        with pytest.raises(FeedStoppedError):
            own.append(messages(1, 1), 1)
    reopened(own)
    # A whole record counts as signed.
    assert all_of(own) == messages(2)
    assert direct().append(messages(1, 2)) == 2


def test_when_the_sync_of_the_node_fails_programs_stop_too(
    own: LogFile, direct: Callable[[], DirectLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = direct()
    log.append(messages(2))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing("fdatasync", errno.EIO))
        with pytest.raises(FeedStoppedError):
            own.absorb()
    assert (own.size, own.signed) == (0, None)
    assert isinstance(refused(log), FeedStoppedError)
    assert own.absorb() == (0, [])
    reopened(own)
    assert all_of(own) == messages(2)


def test_who_slept_while_a_failure_was_mended_does_not_stop_the_log_once_more(
    own: LogFile, direct: Callable[[], DirectLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeping, other = direct(), direct()
    other.append(messages(1))

    def fail_late(fd: int) -> None:
        monkeypatch.setattr(os, "fdatasync", failing("fdatasync", errno.EIO))
        with pytest.raises(FeedStoppedError):
            other.append(messages(1, 2))
        assert said(own).standing is Standing.STOPPED
        monkeypatch.undo()
        reopened(own)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail_late)
    with pytest.raises(FeedStoppedError):
        sleeping.append(messages(1, 1))
    assert said(own).standing is Standing.OPEN
    assert all_of(own) == messages(3)
    assert refused(sleeping) is None
    assert direct().append(messages(1, 3)) == 3


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_on_a_full_disk_nothing_has_happened_and_the_next_append_works(
    own: LogFile, direct: Callable[[], DirectLog], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    log = direct()
    log.append(messages(1))
    before = path_of(own, "entries").read_bytes(), said(own)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing("pwrite", code))
        with pytest.raises((StorageFullError, StorageFailedError)) as caught:
            log.append(messages(1, 1))
    assert caught.value.hint
    assert (path_of(own, "entries").read_bytes(), said(own)) == before
    assert log.append(messages(1, 1)) == 1
    assert take_in(own) == messages(2)


def test_a_write_that_fails_stops_all(
    own: LogFile, direct: Callable[[], DirectLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = direct()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing("pwrite", errno.EIO))
        with pytest.raises(FeedStoppedError):
            log.append(messages(1))
    assert isinstance(refused(direct()), FeedStoppedError)
    reopened(own)
    assert direct().append(messages(1)) == 0


def test_where_the_next_record_goes_is_found_out_if_it_could_not_be_said(
    own: LogFile, direct: Callable[[], DirectLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = direct()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing("pwrite", errno.EIO, "writers"))
        for number in range(3):
            assert log.append(messages(1, number)) == number
    assert direct().append(messages(1, 3)) == 3
    assert take_in(own) == messages(4)


# --- a crash with several writers -----------------------------------------------------------------


def unsynced(own: LogFile, count: int, doubtful: bool) -> list[int]:
    """Records behind the first, as several programs write them at once; where each begins."""
    at = [path_of(own, "entries").stat().st_size]
    for number in range(count):
        entries = messages(30, 1 + 30 * number)
        behind = at[-1] - at[0] if doubtful else 0
        record = encode_record(1 + 30 * number, entries, None, behind)
        put(own, record)
        at.append(at[-1] + len(record))
    return at


def lose(own: LogFile, begin: int, end: int) -> None:
    """What never reached the disk reads as zeros."""
    data = path_of(own, "entries").read_bytes()
    path_of(own, "entries").write_bytes(data[:begin] + bytes(end - begin) + data[end:])


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_records_that_several_writers_had_not_synced_are_cut_off_after_a_crash(
    own: LogFile, lost: int
) -> None:
    own.append(messages(1), 1)
    at = unsynced(own, 3, doubtful=True)
    crashed(own)
    lose(own, at[lost] + 10, at[lost] + 200)
    path_of(own, "hashes").unlink()
    own.open()
    assert all_of(own) == messages(1 + 30 * lost)
    first = own.append(messages(1, 500), 1)
    assert first == 1 + 30 * lost
    assert all_of(reopened(own))[-1:] == messages(1, 500)


def test_what_a_later_record_says_was_on_the_disk_is_never_cut_off(own: LogFile) -> None:
    own.append(messages(1), 1)
    at = unsynced(own, 2, doubtful=False)
    crashed(own)
    lose(own, at[0] + 10, at[0] + 200)
    path_of(own, "hashes").unlink()
    before = path_of(own, "entries").read_bytes()
    with pytest.raises(StateCorruptError):
        own.open()
    assert path_of(own, "entries").read_bytes() == before


def test_a_flipped_bit_is_no_crash(own: LogFile) -> None:
    own.append(messages(1), 1)
    at = unsynced(own, 2, doubtful=True)
    crashed(own)
    data = bytearray(path_of(own, "entries").read_bytes())
    data[at[0] + 100] ^= 4
    path_of(own, "entries").write_bytes(data)
    path_of(own, "hashes").unlink()
    with pytest.raises(StateCorruptError):
        own.open()
