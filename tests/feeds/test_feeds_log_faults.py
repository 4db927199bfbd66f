"""One I/O call in the life of a subfeed fails, whichever it is: a typed error, nothing lost.

A day of an own log and of a copy is lived again and again; each time another one of its calls
fails, or moves fewer bytes than it was asked to. What was acknowledged is there afterwards, and
what was not is there as a whole or not at all.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.errors import (
    ConfigError,
    FeedStoppedError,
    KacheryError,
    StateCorruptError,
    StorageFailedError,
    StorageFullError,
    StoreError,
)
from kachery_p2p.feeds import opened as opened_module
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.log_files import LogFiles
from kachery_p2p.feeds.tombstones import Tombstone
from kachery_p2p.log.heads import SignedHead
from kachery_p2p.log.tree import leaf_hash, root_at
from tests.feeds.feed_parts import KEY, LOG, messages

CALLS_MAX = 400
OS_CALLS = (
    "open",
    "mkdir",
    "pread",
    "pwrite",
    "write",
    "fsync",
    "fdatasync",
    "ftruncate",
    "rename",
)
# Of these calls fewer bytes may be moved than were asked for.
SHORT: dict[str, Callable[[tuple[Any, ...]], tuple[Any, ...]]] = {
    "pwrite": lambda args: (args[0], bytes(args[1])[: max(1, len(args[1]) // 3)], args[2]),
    "write": lambda args: (args[0], bytes(args[1])[: max(1, len(args[1]) // 3)]),
    "pread": lambda args: (args[0], max(1, args[1] // 3), args[2]),
}
Wrong = Callable[[str, Any, tuple[Any, ...]], Any]


class Disk:
    """Counts the calls on everything below `top`; the one numbered `at` goes wrong."""

    def __init__(self, top: str, at: int, wrong: Wrong) -> None:
        self.calls = 0
        # Which call it was, and about what.
        self.spoiled = ""
        self._top = top
        self._at = at
        self._wrong = wrong

    def spoil(self, patch: pytest.MonkeyPatch) -> None:
        for name in OS_CALLS:
            self._wrap(patch, name)

    def _wrap(self, patch: pytest.MonkeyPatch, name: str) -> None:
        really = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            about = self._about(args, kwargs)
            if self._top not in about:
                return really(*args, **kwargs)
            self.calls += 1
            if self.calls == self._at:
                self.spoiled = f"{name} {os.path.basename(about)}"
                return self._wrong(name, partial(really, **kwargs), args)
            return really(*args, **kwargs)

        patch.setattr(os, name, call)

    def _about(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        directory = kwargs.get("dir_fd")
        if directory is not None:
            return f"{os.readlink(f'/proc/self/fd/{directory}')}/{args[0]}"
        return args[0] if isinstance(args[0], str) else os.readlink(f"/proc/self/fd/{args[0]}")


def failing(code: int) -> Wrong:
    def wrong(name: str, really: Any, args: tuple[Any, ...]) -> Any:
        raise OSError(code, os.strerror(code))

    return wrong


def half_written(code: int) -> Wrong:
    """A write that fails after some of its bytes."""

    def wrong(name: str, really: Any, args: tuple[Any, ...]) -> Any:
        if name in ("pwrite", "write"):
            really(*SHORT[name](args))
        raise OSError(code, os.strerror(code))

    return wrong


def short(name: str, really: Any, args: tuple[Any, ...]) -> Any:
    return really(*(SHORT[name](args) if name in SHORT else args))


class Day:
    """What a node does with an own log and a copy; what was acknowledged is noted."""

    def __init__(self, home: str) -> None:
        self.home = home
        self.errors: list[KacheryError] = []
        self.size = 0
        self.kept = 0
        self.heads: list[SignedHead] = []
        self.buried = False
        self.files = LogFiles(f"{home}/feeds")
        self.copies = LogFiles(f"{home}/copies")

    def live(self) -> None:
        steps: list[Callable[[], Any]] = [
            lambda: self._append(1),
            lambda: self._append(1),
            lambda: self._append(4),
            lambda: self._append(0),
            lambda: self._own().close(),
            lambda: self._append(1),
            self._copy_head,
            lambda: self._copy(2),
            lambda: self._copy(9),
            lambda: self._own().check(),
            lambda: self._append(1),
            self._bury_copy,
        ]
        for step in steps:
            try:
                step()
            except KacheryError as error:
                self.errors.append(error)

    def _own(self) -> LogFile:
        return self.files.own(LOG, KEY)

    def _append(self, count: int) -> None:
        own = self._own()
        first = own.append(messages(count, own.size), 1)
        assert own.size == first + count
        self.size = own.size

    def _other(self) -> LogFile:
        return self.copies.copy(LOG)

    def _copy_head(self) -> None:
        self._other().keep([], self._other().frontier(), [], self._own().signed)

    def _copy(self, count: int) -> None:
        copy, own = self._other(), self._own()
        head = own.signed
        if copy.signed is None or head is None:
            return
        entries = own.entries(copy.size, min(count, copy.signed.size - copy.size), 1 << 20)
        if entries:
            frontier, stored = copy.frontier().extended(map(leaf_hash, entries))
            copy.keep(entries, frontier, stored, None)
            self.kept = copy.size

    def _bury_copy(self) -> None:
        root = root_at(0, self._own().read_hash)
        self._other().end(Tombstone(LOG, 0, root, None, 1).signed(KEY))
        self.buried = True


def check_intact(day: Day) -> None:
    """After a restart on a disk that is well again."""
    day.files.close()
    day.copies.close()
    files = LogFiles(f"{day.home}/feeds")
    own = files.own(LOG, KEY)
    assert own.size >= day.size
    assert not own.restored
    entries = own.entries(0, 1_000, 1 << 20)
    assert entries == messages(own.size)
    assert own.check() == ()
    first = own.append(messages(1, own.size), 2)
    assert own.entries(first, 1, 1 << 20) == messages(1, first)
    files.close()
    copies = LogFiles(f"{day.home}/copies")
    copy = copies.copy(LOG)
    assert copy.size >= day.kept
    if day.buried:
        assert copy.tombstone is not None
        assert copy.readable == 0
    else:
        assert copy.tombstone is not None or (
            copy.entries(0, 1_000, 1 << 20) == messages(copy.size)
        )
    copies.close()


FAULTS: dict[str, tuple[Wrong, set[type[KacheryError]]]] = {
    "ENOSPC": (failing(errno.ENOSPC), {StorageFullError, FeedStoppedError}),
    "ENOSPC in the middle": (half_written(errno.ENOSPC), {StorageFullError, FeedStoppedError}),
    "EIO": (failing(errno.EIO), {StorageFailedError, FeedStoppedError}),
    "EIO in the middle": (half_written(errno.EIO), {StorageFailedError, FeedStoppedError}),
    "short": (short, set()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_any_call_that_fails_is_a_typed_error_and_loses_nothing(
    quick_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened_module, "FEED_CHECKPOINT_ENTRIES", 4)
    wrong, kinds = FAULTS[fault]
    failed, number = 0, 0
    for number in range(1, CALLS_MAX + 1):
        home = quick_path / str(number)
        home.mkdir()
        day = Day(str(home))
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(str(home), number, wrong)
            disk.spoil(patch)
            day.live()
        assert {type(error) for error in day.errors} <= kinds, disk.spoiled
        assert all(error.hint for error in day.errors), disk.spoiled
        failed += bool(day.errors)
        check_intact(day)
        if disk.calls < number:
            break
    assert 100 < number < CALLS_MAX
    assert failed > 50 if kinds else failed == 0


# --- full disks, failed syncs -----------------------------------------------------------------


@pytest.fixture
def grown(own: LogFile) -> LogFile:
    own.append(messages(3), 1)
    return own


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("name", ["entries", "hashes", "offsets"])
def test_on_a_full_disk_the_log_is_unchanged_and_the_next_append_works(
    grown: LogFile, code: int, name: str
) -> None:
    path = Path(grown.path, "entries")
    before = path.read_bytes(), grown.size, grown.signed, grown.frontier()
    really = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(name):
            really(fd, bytes(data)[:5], offset)
            raise OSError(code, os.strerror(code))
        return really(fd, data, offset)

    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(StoreError) as caught:
                grown.append(messages(2, 90), 9)
        assert caught.value.hint
        assert (path.read_bytes(), grown.size, grown.signed, grown.frontier()) == before
    # Another entry in the place of the one that was signed and not written: not a fork.
    assert grown.append(messages(2, 3), 2) == 3
    assert grown.entries(0, 9, 1 << 20) == messages(5)
    assert grown.check() == ()


def test_after_a_failed_sync_nothing_is_taken_until_the_log_is_opened_anew(
    grown: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", sync)
        with pytest.raises(FeedStoppedError):
            grown.append(messages(1, 3), 1)
    assert (grown.size, grown.entries(3, 1, 9)) == (3, [])
    for _ in range(2):
        with pytest.raises(FeedStoppedError):
            grown.append(messages(1, 3), 1)
    grown.close()
    written: list[tuple[int, int]] = []
    really = os.pwrite

    def noted(fd: int, data: bytes, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("entries"):
            written.append((offset, len(data)))
        return really(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", noted)
        grown.open()
    # A whole record counts as signed. Its pages look written and may not be: once more.
    assert grown.size == 4
    entries = Path(grown.path, "entries").read_bytes()
    assert written == [(entries.rindex(b"kpfr"), len(entries) - entries.rindex(b"kpfr"))]
    assert grown.append(messages(1, 4), 1) == 4


def test_a_record_that_could_not_be_cut_off_stops_the_log(
    grown: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("entries"):
            really(fd, bytes(data)[:50], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return really(fd, data, offset)

    def failing_cut(fd: int, length: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        patch.setattr(os, "ftruncate", failing_cut)
        with pytest.raises(FeedStoppedError):
            grown.append(messages(1, 3), 1)
    with pytest.raises(FeedStoppedError):
        grown.append(messages(1, 3), 1)
    grown.close()
    grown.open()
    assert grown.append(messages(1, 3), 1) == 3


def test_a_disk_that_may_not_be_written_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(str(tmp_path), 1, failing(errno.EROFS))
        disk.spoil(patch)
        with pytest.raises((StoreError, ConfigError, StateCorruptError)):
            LogFiles(f"{tmp_path}/feeds").own(LOG, KEY)
