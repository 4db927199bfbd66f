"""The set of logs of a node: how many are open, what closing them costs, and deleting one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import threading
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.errors import FeedBusyError, UnknownFeedError
from kachery_p2p.feeds import disk, log_files
from kachery_p2p.feeds.direct import DirectLog
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.log_files import LogFiles
from kachery_p2p.feeds.messages import message_entries
from kachery_p2p.feeds.told import SubfeedName
from kachery_p2p.feeds.writers import shut_for_good
from tests.feeds.direct_logs import refused, take_in
from tests.feeds.feed_logs import all_of, path_of, reopened
from tests.feeds.feed_nodes import FeedLab
from tests.feeds.feed_parts import FEED, KEY, LOG, messages

OTHER = SubfeedName(FEED, sha1_of(b"other")).log


@pytest.mark.parametrize(
    ("allowed", "logs"), [(256, 16), (1_024, 64), (4_096, 256), (resource.RLIM_INFINITY, 256)]
)
def test_open_logs_take_a_quarter_of_the_descriptors_at_most(
    quick_path: Path, allowed: int, logs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (allowed, allowed))
    assert LogFiles(f"{quick_path}/feeds")._open_max == logs


def test_a_log_that_is_closed_again_and_again_does_not_swell(own: LogFile) -> None:
    own.append(messages(1), 1)
    for number in range(1, 6):
        with contextlib.closing(DirectLog(reopened(own).path)) as program:
            program.append(messages(1, number))
        take_in(own)
    entries = path_of(own, "entries")
    assert entries.read_bytes().count(b"kpfr") == 6
    # A head that somebody was shown is there afterwards, and once.
    shown = own.signed
    for _ in range(3):
        reopened(own)
    assert entries.read_bytes().count(b"kpfr") == 7
    assert own._state.signed == shown


def test_who_deletes_a_log_that_a_stopped_program_holds_keeps_nobody_from_others(
    own: LogFile, files: LogFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.append(messages(1), 1)
    assert own.signed is not None
    monkeypatch.setattr("kachery_p2p.feeds.writers.FEED_LOCK_S_MAX", 0.3)
    waiting = threading.Event()

    def shut(path: str) -> Any:
        waiting.set()
        return shut_for_good(path)

    monkeypatch.setattr(log_files, "shut_for_good", shut)
    failures: list[Exception] = []

    def delete() -> None:
        try:
            files.delete(LOG)
        except FeedBusyError as error:
            failures.append(error)

    lock = os.open(f"{own.path}/writers", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    deleting = threading.Thread(target=delete)
    deleting.start()
    assert waiting.wait(5)
    assert files.own(OTHER, KEY).append(messages(1), 1) == 0
    assert not failures
    deleting.join()
    os.close(lock)
    assert len(failures) == 1
    assert all_of(files.own(LOG, KEY)) == messages(1)
    files.delete(LOG)
    assert not files.has(LOG)


def not_empty(*about: Any, **options: Any) -> None:
    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))


def test_what_cannot_be_removed_of_a_deleted_log_is_swept_later(
    own: LogFile, files: LogFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.append(messages(1), 1)
    program = DirectLog(own.path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", not_empty)
        files.delete(LOG)
    assert refused(program) is None
    with pytest.raises(UnknownFeedError):
        own.append(messages(1, 1), 1)
    assert not files.has(LOG)
    assert any(name.startswith(".deleted-") for name in os.listdir(files.directory))
    LogFiles(files.directory).close()
    assert not any(name.startswith(".deleted-") for name in os.listdir(files.directory))
    assert files.own(LOG, KEY).append(messages(1), 1) == 0


def test_a_log_that_is_opened_while_it_is_deleted_is_deleted_with_it(
    own: LogFile, files: LogFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.append(messages(1), 1)
    own.close()
    path = own.path
    files._known.clear()
    opened: list[LogFile] = []

    def shut(path: str) -> Any:
        if not opened:
            opened.append(files.own(LOG, KEY))
        return shut_for_good(path)

    monkeypatch.setattr(log_files, "shut_for_good", shut)
    files.delete(LOG)
    assert not os.path.exists(path)
    with pytest.raises(UnknownFeedError):
        opened[0].append(messages(1), 1)


def test_files_on_another_computer_are_known_by_how_they_are_mounted(
    own: LogFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert own.is_quick
    device = os.stat(path_of(own, "entries")).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = tmp_path / "mounts"
    monkeypatch.setattr(disk, "_MOUNTS", str(mounts))
    for kind, quick in (("nfs4", False), ("fuse.sshfs", False), ("ext4", True)):
        mounts.write_text(f"9 1 0:1 / / rw - tmpfs x rw\n8 1 {number} / /home rw - {kind} x rw\n")
        disk._is_remote.cache_clear()
        assert reopened(own).is_quick is quick
    own.close()
    assert not own.is_quick


async def test_the_loop_does_not_wait_for_another_computer(
    lab: FeedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kachery_p2p.feeds.files.is_remote", lambda fd: True)
    alice = await lab.node("alice")
    feed = await alice.new_feed('"0"')
    really, loop = LogFile.untaken, threading.get_ident()
    asked: list[int] = []

    def untaken(log: LogFile) -> int:
        asked.append(threading.get_ident())
        return really(log)

    monkeypatch.setattr(LogFile, "untaken", untaken)
    log = (await alice.subfeed(feed)).replica.log
    assert isinstance(log, LogFile)
    with contextlib.closing(DirectLog(log.path)) as program:
        program.append(message_entries(['"1"'], 1))
    assert await alice.read(feed, 0) == ['"0"', '"1"']
    assert asked
    assert loop not in asked
