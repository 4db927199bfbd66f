"""Files on their way into the store: STORE/.tmp/<random>, locked while their writer lives.

The name cannot be guessed and is never followed, so nobody can plant a link under it.
What a killed process leaves is unlocked, and swept by a later one (`cleanup`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from kachery_p2p.store.durable import (
    DurableDirectories,
    storage_error,
    sync_file,
    syncs_at_once,
    writing_to,
)
from kachery_p2p.store.paths import temp_dir
from kachery_p2p.store.sources import Identity, identity

Answer = TypeVar("Answer")

# Everybody who may come near reads an object, and nobody writes to it.
OBJECT_MODE = 0o444

_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class TempFile:
    """A new, empty, locked file; removed at the end of the `with` unless it was `moved`."""

    def __init__(self, directories: DurableDirectories) -> None:
        self._directories = directories
        self.path = f"{temp_dir(directories.top)}/{os.urandom(16).hex()}"
        self.fd = -1
        self.moved = False

    def __enter__(self) -> TempFile:
        try:
            self.fd = self._create()
        except FileNotFoundError:
            with writing_to(self._directories.top):
                self.fd = _in_temp_dir(self._directories, self._create)
        except OSError as error:
            raise storage_error(error, self._directories.top) from error
        lock(self.fd)
        return self

    def _create(self) -> int:
        return os.open(self.path, _NEW_FILE, 0o600)

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


class TempGroup:
    """A new, locked directory for the files of a group; removed at the end of the `with`.

    One lock and one descriptor for all of them, whatever their number.
    """

    def __init__(self, directories: DurableDirectories) -> None:
        self._directories = directories
        self.path = f"{temp_dir(directories.top)}/{os.urandom(16).hex()}"
        self.fd = -1
        self.synced_at_once = False
        self._count = 0

    def __enter__(self) -> TempGroup:
        with writing_to(self._directories.top):
            _in_temp_dir(self._directories, lambda: os.mkdir(self.path, 0o700))
            try:
                self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                os.rmdir(self.path)
                raise
            lock(self.fd)
            self.synced_at_once = syncs_at_once(self.fd)
        return self

    def create(self) -> tuple[str, int]:
        """The path and the descriptor of a new file, which whoever asked for it closes."""
        self._count += 1
        path = f"{self.path}/{self._count}"
        return path, os.open(path, _NEW_FILE, OBJECT_MODE)

    def finish(self, fd: int) -> Identity:
        """The new file has all its bytes: which one it is, by whatever path it is looked at later.

        It is synced here where the file system is not synced as a whole.
        """
        status = os.fstat(fd)
        if status.st_mode & 0o777 != OBJECT_MODE:  # the umask took some of it
            os.fchmod(fd, OBJECT_MODE)
        if not self.synced_at_once:
            sync_file(fd)
        return identity(status)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _remove_group(self.fd, self.path)
        os.close(self.fd)


def _in_temp_dir(directories: DurableDirectories, make: Callable[[], Answer]) -> Answer:
    """What `make` makes in the directory of temporary files, which somebody may have removed."""
    path = temp_dir(directories.top)
    directories.make(path)
    try:
        return make()
    except FileNotFoundError:
        directories.forget()
        directories.make(path)
        return make()


def _remove_group(fd: int, path: str) -> None:
    """Remove the open directory of a group with what is in it. Never raises."""
    # By its descriptor: in a store of several users, another may stand at its path by now.
    with contextlib.suppress(OSError):
        for name in os.listdir(fd):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=fd)
    with contextlib.suppress(OSError):
        os.rmdir(path)


def lock(fd: int) -> None:
    """Lock what is being written. Where there are no locks its age alone protects it."""
    try:  # noqa: SIM105 (`suppress` takes 1 us more, for each object)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pass
