"""One I/O call in the life of a store fails, whichever it is: a typed error, nothing lost.

A day of a store (files, bytes, streams, a group, a link, a removal, a verification) is
lived again and again; each time another one of its first 200 calls fails, or moves fewer
bytes than it was asked to.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kachery_p2p.content.hashes import ContentHash, sha1_of
from kachery_p2p.errors import (
    CorruptObjectError,
    KacheryError,
    LoadFileError,
    StorageFailedError,
    StorageFullError,
    StoreError,
)
from kachery_p2p.store import blobs, groups, intake, objects, placing, small, temps
from kachery_p2p.store.blobs import BlobStore, Stored
from kachery_p2p.store.index import Index

CALLS_MAX = 200
SMALL = [b"%d" % number for number in range(4)]
LARGE = hashlib.shake_128(b"large").digest(20_000)
STREAMED = hashlib.shake_128(b"stream").digest(30_000)
OS_CALLS = (
    "open",
    "mkdir",
    "chmod",
    "fchmod",
    "pread",
    "preadv",
    "pwrite",
    "copy_file_range",
    "fsync",
    "unlink",
)
# Of the calls on the store these move bytes, and may move fewer than they were asked to.
SHORT: dict[str, Callable[[tuple[Any, ...]], tuple[Any, ...]]] = {
    "pwrite": lambda args: (args[0], bytes(args[1])[: max(1, len(args[1]) // 3)], args[2]),
    "copy_file_range": lambda args: (args[0], args[1], max(1, args[2] // 3), *args[3:]),
    "preadv": lambda args: (args[0], [args[1][0][: max(1, len(args[1][0]) // 3)]], args[2]),
}


class Disk:
    """Counts the calls on everything below `top`; the one numbered `at` goes wrong."""

    def __init__(
        self, top: str, at: int, wrong: Callable[[str, Any, tuple[Any, ...]], Any]
    ) -> None:
        self.calls = 0
        self._top = top
        self._at = at
        self._wrong = wrong

    def spoil(self, patch: pytest.MonkeyPatch) -> None:
        for name in OS_CALLS:
            self._wrap(patch, os, name)
        self._wrap(patch, placing, "rename_new")
        self._wrap(patch, small, "rename_new")
        self._wrap(patch, groups, "sync_filesystem")

    def _wrap(self, patch: pytest.MonkeyPatch, module: ModuleType, name: str) -> None:
        really = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if not self._is_ours(args):
                return really(*args, **kwargs)
            self.calls += 1
            if self.calls == self._at:
                return self._wrong(name, really, args)
            return really(*args, **kwargs)

        patch.setattr(module, name, call)

    def _is_ours(self, args: tuple[Any, ...]) -> bool:
        about = args[0] if isinstance(args[0], str) else os.readlink(f"/proc/self/fd/{args[0]}")
        return self._top in about and "/config" not in about


def failing(code: int) -> Callable[[str, Any, tuple[Any, ...]], Any]:
    def wrong(name: str, really: Any, args: tuple[Any, ...]) -> Any:
        raise OSError(code, os.strerror(code))

    return wrong


def short(name: str, really: Any, args: tuple[Any, ...]) -> Any:
    return really(*(SHORT[name](args) if name in SHORT else args))


class Day:
    """What a user does, each step with its own error; what was acknowledged is noted."""

    def __init__(self, home: str) -> None:
        self.index = Index(f"{home}/config/index.db")
        self.store = BlobStore(f"{home}/store", self.index, 0)
        self.acknowledged: set[ContentHash] = set()
        self.errors: list[KacheryError] = []
        self._home = home

    def live(self) -> None:
        steps: list[Callable[[], Any]] = [
            lambda: self.store.put_bytes(b"first"),
            lambda: self.store.put_file(f"{self._home}/user/large"),
            lambda: self.store.put_file(f"{self._home}/user/small"),
            lambda: self.store.put_stream([STREAMED[:99], STREAMED[99:]], sha1_of(STREAMED)),
            lambda: list(self.store.put_many([*SMALL, f"{self._home}/user/large"])),
            lambda: self.store.link_file(f"{self._home}/user/linked"),
            lambda: self.store.open_verified(sha1_of(b"planted")).close(),
            lambda: self.store.open_verified(sha1_of(LARGE)).close(),
            lambda: self.store.copy_to(sha1_of(LARGE), f"{self._home}/copy"),
            self._remove,
            lambda: [one.error for one in self.store.verify_store() if one.error],
        ]
        for step in steps:
            try:
                self._note(step())
            except KacheryError as error:
                self.errors.append(error)

    def _remove(self) -> None:
        # To ask for it may be enough: what was not acknowledged as removed may be gone.
        self.acknowledged.discard(sha1_of(b"first"))
        self.store.remove(sha1_of(b"first"))

    def _note(self, answer: Any) -> None:
        for one in answer if isinstance(answer, list) else [answer]:
            if isinstance(one, Stored):
                self.acknowledged.add(one.content)
            elif isinstance(one, KacheryError):
                self.errors.append(one)


@pytest.fixture
def day(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Day]:
    monkeypatch.setattr(blobs, "GROUP_OBJECTS_MIN", 3)
    monkeypatch.setattr(intake, "CHUNK_BYTES", 1_000)  # "large" is copied by the kernel
    # Nothing here changes a file behind the store's back, so nothing need settle.
    monkeypatch.setattr(objects, "unsettled_s", lambda status: 0)
    large, small, linked = LARGE, b"small", b"linked"

    def make(number: int) -> Day:
        home = quick_path / str(number)
        (home / "user").mkdir(parents=True)
        for name, data in (("large", large), ("small", small), ("linked", linked)):
            (home / "user" / name).write_bytes(data)
        planted = home / "store" / "sha1" / sha1_of(b"planted")[:2] / sha1_of(b"planted")[2:4]
        planted = planted / sha1_of(b"planted")[4:6] / sha1_of(b"planted")
        planted.parent.mkdir(parents=True)
        planted.write_bytes(b"planted")
        return Day(str(home))

    return make


def objects_in(store: str) -> Iterator[Path]:
    return (path for path in Path(store).glob("sha1/*/*/*/*") if path.is_file())


def check_intact(day: Day) -> None:
    # Only what could not even be removed is left for the sweeper.
    for left in Path(day.store.directory).glob(".tmp/*"):
        os.utime(left, (1, 1))
        assert day.store.sweep() == 1
    assert list(Path(day.store.directory).glob(".tmp/*")) == []
    for path in objects_in(day.store.directory):
        assert path.name == sha1_of(path.read_bytes())
    for content in day.acknowledged:
        with day.store.open_verified(content):
            pass
    # And works again.
    again = day.store
    assert list(again.put_many([*SMALL, b"new"]))[-1] == again.put_bytes(b"new")
    assert again.put_file(f"{os.path.dirname(again.directory)}/user/large").size == len(LARGE)
    again.open_verified(again.link_file(f"{again.directory}/../user/linked").content).close()
    assert all(one.error is None for one in again.verify_store())


FAULTS: dict[str, tuple[Callable[[str, Any, tuple[Any, ...]], Any], set[type[StoreError]]]] = {
    "ENOSPC": (failing(errno.ENOSPC), {StorageFullError}),
    "EIO": (failing(errno.EIO), {StorageFailedError}),
    "short": (short, set()),
}


# Which call is the so-and-so-many-th depends on whether a file had settled when it was stored,
# so that an alternation would leave out now these and now those calls.
@pytest.mark.parametrize("at_once", [True, False], ids=["syncfs", "fsync"])
@pytest.mark.parametrize("fault", FAULTS)
def test_any_call_that_fails_is_a_typed_error_and_loses_nothing(
    day: Callable[[int], Day], fault: str, at_once: bool
) -> None:
    wrong, kinds = FAULTS[fault]
    failed, number = 0, 0
    for number in range(1, CALLS_MAX + 1):
        today = day(number)
        today.index.pinned_root(sha1_of(b""))  # open before the disk goes wrong
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(temps, "syncs_at_once", lambda fd: at_once)
            disk = Disk(os.path.dirname(today.store.directory), number, wrong)
            disk.spoil(patch)
            today.live()
        assert not [e for e in today.errors if not isinstance(e, StoreError | LoadFileError)]
        assert not any(isinstance(error, CorruptObjectError) for error in today.errors)
        assert all(error.hint for error in today.errors if type(error) in kinds)
        failed += bool(today.errors)
        check_intact(today)
        today.index.close()
        today.store.close()
        if disk.calls < number:
            break
    assert number > 100
    assert failed > 50 if kinds else failed == 0
