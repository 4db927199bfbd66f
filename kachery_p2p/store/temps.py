"""Files on their way into the store: STORE/.tmp/<random>, locked while their writer lives.

The name cannot be guessed and is never followed, so nobody can plant a link under it.
What a killed process leaves is unlocked, and swept by a later one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from types import TracebackType

from kachery_p2p.limits import TEMP_AGE_S_MAX
from kachery_p2p.store.durable import DurableDirectories, writing_to
from kachery_p2p.store.paths import temp_dir


class TempFile:
    """A new, empty, locked file; removed at the end of the `with` unless it was `moved`."""

    def __init__(self, directories: DurableDirectories) -> None:
        self._directories = directories
        self.path = f"{temp_dir(directories.top)}/{os.urandom(16).hex()}"
        self.fd = -1
        self.moved = False

    def __enter__(self) -> TempFile:
        with writing_to(self._directories.top):
            self._directories.make(temp_dir(self._directories.top))
            try:
                self.fd = self._create()
            except FileNotFoundError:  # somebody removed the directory since we last looked
                self._directories.forget()
                self._directories.make(temp_dir(self._directories.top))
                self.fd = self._create()
        return self

    def _create(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self.path, flags, 0o600)
        # Without locks (some network file systems) its age alone protects it from sweeping.
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.moved:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        os.close(self.fd)


def sweep(store: str) -> int:
    """Remove the temporary files of killed writers; how many. Never raises for a single file."""
    swept = 0
    directory = temp_dir(store)
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            with contextlib.suppress(OSError):
                swept += _sweep_one(f"{directory}/{name}")
    return swept


def _sweep_one(path: str) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if time.time() - os.fstat(fd).st_mtime < TEMP_AGE_S_MAX:
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
        return True
    finally:
        os.close(fd)
