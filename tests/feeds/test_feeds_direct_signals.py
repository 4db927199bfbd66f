"""Programs whose signal handlers append themselves, or raise; whose threads wait; that fork."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from kachery_p2p.errors import FeedBusyError, FeedStoppedError
from kachery_p2p.feeds import writers as writers_module
from kachery_p2p.feeds.direct import DirectLog, NotHere
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.records import Packed
from kachery_p2p.feeds.writers import Standing
from tests.feeds.direct_logs import said, take_in
from tests.feeds.feed_logs import reopened
from tests.feeds.feed_parts import messages


def at_moment(number: int, signal: Callable[[], None], do: Callable[[], object]) -> bool:
    """Do it, with a signal at its moment of that number; False if it has fewer.

    Python handles signals when a function begins, and when a built-in one is done.
    """
    left = number

    def handle(frame: object, event: str, about: object) -> None:
        nonlocal left
        if event in ("call", "c_return"):
            left -= 1
            if left == 0:
                signal()

    # Collecting garbage has moments of its own, which are not those of `do`.
    gc.disable()
    sys.setprofile(handle)
    try:
        do()
    finally:
        sys.setprofile(None)
        gc.enable()
    return left <= 0


def open_in(path: str) -> int:
    """How many descriptors lead there."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{fd}").startswith(path)
    return found


@pytest.mark.parametrize("is_new", [False, True])
def test_a_signal_handler_appends_at_any_moment_or_is_told_that_it_cannot(
    own: LogFile, direct: Callable[[], DirectLog], is_new: bool
) -> None:
    log, refusals, appended = direct(), 0, 0
    log.append(messages(1, 0, "first"))

    def handler() -> None:
        nonlocal refusals, appended
        try:
            log.append(messages(1, 0, "handler"))
            appended += 1
        except FeedBusyError as error:
            assert error.hint
            refusals += 1

    for number in range(1, 500):
        if is_new:
            log = direct()
        if not at_moment(number, handler, lambda: log.append(messages(1, 0, "program"))):
            break
    assert min(refusals, appended) > 10
    found = take_in(own)
    assert found.count(messages(1, 0, "handler")[0]) == appended
    assert found.count(messages(1, 0, "program")[0]) == refusals + appended + 1
    assert said(own).standing is Standing.OPEN


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_while_the_files_are_opened_leaves_none_open_and_closes_none_twice(
    own: LogFile,
) -> None:
    def moment(number: int) -> tuple[bool, bool]:
        """Whether there was such a moment, and whether anything was closed twice."""
        left, is_twice = number, False

        def handle(frame: FrameType, event: str, about: object) -> None:
            nonlocal left, is_twice
            is_twice |= event == "c_exception" and about is os.close
            # What `os.open` gives out nobody has yet.
            if about is not os.open and event in ("call", "c_return"):
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt

        gc.disable()
        sys.setprofile(handle)
        try:
            made.append(DirectLog(own.path))
        except KeyboardInterrupt:
            return True, is_twice
        finally:
            sys.setprofile(None)
            gc.enable()
        return False, is_twice

    made: list[DirectLog] = []
    number, before = 1, open_in(own.path)
    while moment(number) == (True, False):
        number += 1
    assert moment(number) == (False, False)
    assert number > 50
    made.clear()
    assert open_in(own.path) == before


def test_a_failed_sync_that_a_signal_handler_was_told_of_is_one_of_the_program_too(
    own: LogFile, direct: Callable[[], DirectLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = direct()
    log.append(messages(1))
    inside = False

    def fdatasync(fd: int) -> None:
        nonlocal inside
        if inside:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        inside = True
        with pytest.raises(FeedStoppedError):
            log.append(messages(1, 2))

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with pytest.raises(FeedStoppedError):
        log.append(messages(1, 1))
    assert said(own).standing is Standing.STOPPED


def test_ctrl_c_right_behind_a_failed_sync_does_not_let_the_program_go_on(
    own: LogFile, direct: Callable[[], DirectLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = OSError(errno.EIO, os.strerror(errno.EIO))
    number, moments, was_told = 0, 0, False

    def fdatasync(fd: int) -> None:
        nonlocal was_told
        was_told = True
        raise failure

    def handler() -> None:
        raise KeyboardInterrupt

    while moments < 10:
        number, was_told, log = number + 1, False, direct()
        log.append(messages(1, 0, "first"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fdatasync)
            with contextlib.suppress(KeyboardInterrupt, FeedStoppedError):
                at_moment(number, handler, lambda: log.append(messages(1)))
        if was_told:
            moments += 1
            with pytest.raises(NotHere):
                log.append(messages(1))
        if said(own).standing is Standing.STOPPED:
            reopened(own)


def test_a_time_out_at_any_moment_is_no_failure_of_the_disk(
    own: LogFile, direct: Callable[[], DirectLog]
) -> None:
    log, moments = direct(), 0

    def handler() -> None:
        raise TimeoutError("too late")

    for number in range(1, 500):
        # So that none is left that nobody could tell of.
        log.append(messages(1, 0, "between"))
        try:
            if not at_moment(number, handler, lambda: log.append(messages(1, 0, "program"))):
                break
        except TimeoutError:
            moments += 1
    assert moments == number - 1 > 30
    assert said(own).standing is Standing.OPEN
    assert direct().append(messages(1, 0, "last")) > 1
    assert take_in(own)[-1:] == messages(1, 0, "last")


def test_who_waits_for_another_thread_and_then_for_other_programs_has_one_deadline(
    own: LogFile, direct: Callable[[], DirectLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = direct()
    log.append(messages(1))
    monkeypatch.setattr(writers_module, "FEED_LOCK_S_MAX", 0.05)
    inside, go = threading.Event(), threading.Event()

    def record(*about: Any) -> bytes:
        inside.set()
        assert go.wait(10)
        return encoded(*about)

    encoded = Packed.record
    monkeypatch.setattr(Packed, "record", record)
    thread = threading.Thread(target=log.append, args=[messages(1, 1)])
    thread.start()
    try:
        assert inside.wait(10)
        with pytest.raises(FeedBusyError):
            log.append(messages(1, 9))
    finally:
        go.set()
        thread.join()
    assert log.append(messages(1, 2)) == 2
    assert take_in(own) == messages(3)


def test_a_forked_process_does_not_keep_the_lock_of_a_parent_that_is_killed(
    own: LogFile, direct: Callable[[], DirectLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = direct()
    log.append(messages(1))
    monkeypatch.setattr(writers_module, "FEED_LOCK_S_MAX", 0.05)
    reading, writing = os.pipe()
    # As of another thread, of a log that is not remembered any more.
    log._writers.take()
    child = os.fork()
    if not child:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    try:
        # What remains of a process that is killed.
        log.close()
        assert direct().append(messages(1, 1)) == 1
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(child, 0)
