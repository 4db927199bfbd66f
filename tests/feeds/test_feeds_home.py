"""Where a log is at home: a backup that was put back is noticed, whatever put it there."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.errors import FeedRestoredError
from kachery_p2p.feeds import disk, home, keys
from kachery_p2p.feeds.direct import DirectLog, NotHere
from kachery_p2p.feeds.keys import FeedKey
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.log_files import LogFiles
from kachery_p2p.feeds.register import Register
from tests.feeds.feed_logs import path_of, reopened
from tests.feeds.feed_parts import KEY, LOG, messages


@pytest.fixture
def backup(own: LogFile, quick_path: Path) -> Iterator[Path]:
    """What was kept of the log with one message, before the second came."""
    own.append(messages(1), 1)
    own.close()
    kept = quick_path / "backup"
    subprocess.run(["cp", "-a", own.path, kept], check=True)
    own.append(messages(1, 1), 2)
    assert own.signed is not None
    own.close()
    yield kept


@pytest.fixture
def own(files: LogFiles, monkeypatch: pytest.MonkeyPatch) -> LogFile:
    """An own log without entries, where inodes have generations."""
    unlike(1, monkeypatch)
    return files.own(LOG, KEY)


def is_taken_for_restored(own: LogFile) -> bool:
    """What the node says, and a program; both say the same."""
    try:
        DirectLog(own.path).close()
        program_refuses = False
    except NotHere as error:
        program_refuses = isinstance(error.why, FeedRestoredError)
    reopened(own)
    assert program_refuses == own.restored
    return own.restored


def unlike(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on inodes are of this generation."""
    monkeypatch.setattr(disk, "_generation", lambda fd: number)


@pytest.mark.parametrize("how", [["-a"], ["-r"], ["-rp"]])
def test_a_backup_that_is_copied_over_the_files_is_noticed(
    own: LogFile, backup: Path, how: list[str]
) -> None:
    inode = path_of(own, "entries").stat().st_ino
    subprocess.run(["cp", *how, f"{backup}/.", own.path], check=True)
    assert path_of(own, "entries").stat().st_ino == inode
    with contextlib.closing(LogFiles(str(Path(own.path).parents[1]))) as restarted:
        log = restarted.own(LOG, KEY)
        assert is_taken_for_restored(log)
        assert log.size == 1
        with pytest.raises(FeedRestoredError):
            log.append(messages(1, 5), 3)
        log.settle()
        assert log.append(messages(1, 5), 3) == 1
        assert not is_taken_for_restored(log)


def test_a_backup_whose_files_get_the_old_inodes_is_noticed_by_their_generation(
    own: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.append(messages(1), 1)
    assert not is_taken_for_restored(own)
    unlike(2, monkeypatch)
    assert is_taken_for_restored(own)
    own.settle()
    assert not is_taken_for_restored(own)


def test_another_mode_owner_or_time_of_everything_is_no_backup(own: LogFile) -> None:
    own.append(messages(1), 1)
    for name in os.listdir(own.path):
        path = path_of(own, name)
        os.chown(path, os.geteuid(), os.getegid(), follow_symlinks=False)
        os.utime(path, ns=(1, 1), follow_symlinks=False)
    for name in ("entries", "place", "log"):
        path_of(own, name).chmod(0o600)
    assert not is_taken_for_restored(own)


def test_what_an_older_version_noted_is_taken_once(
    own: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.append(messages(1), 1)
    place, mark = path_of(own, "place"), path_of(own, "mark")
    now = place.read_bytes()
    older = b"".join(now.splitlines(keepends=True)[:2])
    place.write_bytes(older)
    # It is of a backup that was made before there were marks.
    assert is_taken_for_restored(own)
    mark.unlink()
    path_of(own, "mark.2").unlink()
    assert not is_taken_for_restored(own)
    assert place.read_bytes().startswith(older)
    assert len(place.read_bytes().splitlines()) == len(now.splitlines()) == 4
    unlike(2, monkeypatch)
    assert is_taken_for_restored(own)


def test_an_older_note_that_cannot_be_replaced_stays_good(
    own: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.append(messages(1), 1)
    place = path_of(own, "place")
    place.write_bytes(b"".join(place.read_bytes().splitlines(keepends=True)[:2]))
    for name in ("mark", "mark.2"):
        path_of(own, name).unlink()

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(home, "write_small", full)
        assert not is_taken_for_restored(own)
        assert not is_taken_for_restored(own)
    assert not is_taken_for_restored(own)
    assert path_of(own, "mark").is_symlink()


def test_a_file_system_without_links_has_places_all_the_same(
    own: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "symlink", refuse)
    shutil.rmtree(own.path)
    os.mkdir(own.path, 0o700)
    own.close()
    own.append(messages(1), 1)
    assert not path_of(own, "mark").exists()
    assert not is_taken_for_restored(own)


def test_the_place_of_a_key_that_an_older_version_noted_is_taken_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlike(1, monkeypatch)
    key = FeedKey.generate()
    keys.save(str(tmp_path), key)
    now = keys.place(str(tmp_path), key.feed)
    with contextlib.closing(Register(str(tmp_path / "feeds.db"))) as register:
        register.add_feed(key.feed, b"".join(now.splitlines(keepends=True)[:2]), 1.0)
        assert register.is_at_home(key.feed, now)
        unlike(2, monkeypatch)
        assert not register.is_at_home(key.feed, keys.place(str(tmp_path), key.feed))
