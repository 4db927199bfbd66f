"""A directory that gets copies of stored files, in it and nowhere else.

A copy is written into a hidden directory inside, synced, and renamed to its name: it is
there whole or not at all, so whoever was interrupted goes on where it stopped. What is
there already is left alone: right, it is not copied again; wrong, it is an error.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from kachery_p2p.client.descent import Descent, Path
from kachery_p2p.client.files import open_stored
from kachery_p2p.content.directories import FileEntry
from kachery_p2p.content.uris import check_label
from kachery_p2p.errors import ResolutionError, StorageFullError, VerificationError
from kachery_p2p.limits import GROUP_BYTES_MAX, GROUP_OBJECTS_MAX, GROUP_OBJECTS_MIN
from kachery_p2p.store.copying import Copier
from kachery_p2p.store.durable import storage_error, sync_file, sync_filesystem, syncs_at_once
from kachery_p2p.store.hashing import hash_file

if TYPE_CHECKING:
    from typing import Self

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_STAGED = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_IN_THE_WAY = frozenset((errno.ENOTDIR, errno.ELOOP, errno.EEXIST, errno.EISDIR))
_STAGING = re.compile(r"\.kp2p-[0-9a-f]{32}\.tmp")


class Copy(NamedTuple):
    """A stored file, and where a copy of it belongs."""

    path: Path
    stored: str
    size: int


class Destination:
    """The directory `top`, made by `make` unless it exists; a context manager.

    Raises ResolutionError, naming the path, when something is in the way or may not be written.
    """

    def __init__(self, top: str) -> None:
        self._top = top
        self._descent: Descent | None = None
        self._kept: set[str] = set()
        if os.path.lexists(top):
            self._open()
        elif not os.path.isdir(parent := os.path.dirname(os.path.abspath(top))):
            raise ResolutionError(f"there is no directory {parent}", hint=f"mkdir -p {parent}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._descent is not None:
            self._descent.close()

    def has(self, path: Path, entry: FileEntry) -> bool:
        """Whether this very file is there, which is read. ResolutionError if something else is."""
        if self._descent is None:
            return False
        try:
            descriptor = os.open(
                check_label(path[-1]), _READ, dir_fd=self._descent.enter(path[:-1])
            )
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._refused(path, error) from error
        try:
            if _is_it(descriptor, entry):
                return True
        finally:
            os.close(descriptor)
        raise self._taken(path)

    def make(self, directories: Iterable[Path]) -> None:
        """Make the directory itself, and in it those at the paths, as far as they are missing."""
        if self._descent is None:
            with self._writing(()), contextlib.suppress(FileExistsError):
                os.mkdir(self._top)
            self._open()
        for path in directories:
            self._enter(path, make=True)
            self._kept.add(path[0])

    def fill(self, copies: Iterable[Copy], progress: Callable[[int], None]) -> None:
        """Write the copies, whose directories `make` has made; each is durable when it appears.

        `progress` is told how many more bytes were copied. Raises StorageFullError as well.
        """
        with self._writing(()), _Staging(self._top_fd, self._kept) as staging:
            for group in _groups(copies):
                staging.begin(together=len(group) >= GROUP_OBJECTS_MIN)
                for copy in group:
                    self._stage(staging, copy, progress)
                staging.sync()
                for number, copy in enumerate(group):
                    self._place(staging, number, copy.path)

    # --- the steps ----------------------------------------------------------------------

    def _open(self) -> None:
        try:
            self._descent = Descent(self._top)
        except OSError as error:
            raise self._refused((), error) from error

    @property
    def _top_fd(self) -> int:
        assert self._descent is not None, "make comes first"
        return self._descent.top_fd

    def _enter(self, path: Path, *, make: bool = False) -> int:
        assert self._descent is not None, "make comes first"
        with self._writing(path):
            return self._descent.enter(path, make=make)

    def _stage(self, staging: _Staging, copy: Copy, progress: Callable[[int], None]) -> None:
        try:
            with self._writing(copy.path):
                staging.write(copy, progress)
        except StorageFullError as error:
            raise self._full(copy.path) from error

    def _place(self, staging: _Staging, number: int, path: Path) -> None:
        directory, name = self._enter(path[:-1]), check_label(path[-1])
        with self._writing(path):
            try:
                os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                staging.rename(number, name, directory)
                return
        # Made since we looked; or a name that this file system holds for the same as another.
        raise self._taken(path)

    def _shown(self, path: Path) -> str:
        return os.path.join(self._top, *path)

    def _taken(self, path: Path) -> ResolutionError:
        return ResolutionError(
            f"{self._shown(path)} is there already, and is not the file of the directory",
            hint="give a new directory, or move away what is there",
        )

    @contextlib.contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._refused(path, error) from error

    def _full(self, path: Path) -> StorageFullError:
        return StorageFullError(
            f"no space is left for {self._shown(path)}",
            hint="free some space and run it again, or load it elsewhere",
        )

    def _refused(self, path: Path, error: OSError) -> ResolutionError | StorageFullError:
        if isinstance(storage_error(error, self._top), StorageFullError):
            return self._full(path)
        if error.errno in _IN_THE_WAY:
            return ResolutionError(
                f"{self._shown(path)} is in the way: it is a link, or not of the right kind",
                hint="give a new directory, or move away what is there",
            )
        reason = (error.strerror or str(error)).lower()
        return ResolutionError(f"{self._shown(path)} cannot be used: {reason}")


def _is_it(descriptor: int, entry: FileEntry) -> bool:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size != entry.size:
        return False
    manifest = hash_file(descriptor, entry.size)
    return manifest.content == entry.content and entry.root in (None, manifest.root)


def _groups(copies: Iterable[Copy]) -> Iterator[list[Copy]]:
    """The copies, as many at a time as may be made anew after a kill."""
    group: list[Copy] = []
    size = 0
    for copy in copies:
        group.append(copy)
        size += copy.size
        if len(group) == GROUP_OBJECTS_MAX or size >= GROUP_BYTES_MAX:
            yield group
            group, size = [], 0
    if group:
        yield group


class _Staging:
    """A hidden, locked directory for copies being written; gone at the end of the `with`.

    Those of processes that were killed are not locked, and removed.
    """

    def __init__(self, top: int, kept: set[str]) -> None:
        self._top = top
        # Directories that the user has there, whatever their names look like.
        self._kept = kept
        self._name = f".kp2p-{os.urandom(16).hex()}.tmp"
        self._fd = -1
        self._count = 0
        self._together = False

    def __enter__(self) -> Self:
        for name in os.listdir(self._top):
            if _STAGING.fullmatch(name) and name not in self._kept:
                _remove_if_left(self._top, name)
        os.mkdir(self._name, 0o700, dir_fd=self._top)
        self._fd = os.open(self._name, _STAGED, dir_fd=self._top)
        _is_locked(self._fd)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _remove(self._top, self._name, self._fd)
        os.close(self._fd)

    def begin(self, *, together: bool) -> None:
        """A new group; if `together`, one sync of the file system stands for one of each file."""
        self._count = 0
        self._together = together and syncs_at_once(self._fd)

    def write(self, copy: Copy, progress: Callable[[int], None]) -> None:
        """Write the next copy. Raises OSError, a StoreError or a LoadFileError."""
        source = open_stored(copy.stored)
        try:
            target = os.open(str(self._count), _NEW, 0o666, dir_fd=self._fd)
            self._count += 1
            try:
                _copy(source, target, copy, progress)
                if not self._together:
                    sync_file(target)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def sync(self) -> None:
        """All of the group is on disk when this returns."""
        if self._together:
            sync_filesystem(self._fd)

    def rename(self, number: int, name: str, directory: int) -> None:
        os.rename(str(number), name, src_dir_fd=self._fd, dst_dir_fd=directory)


def _copy(source: int, target: int, copy: Copy, progress: Callable[[int], None]) -> None:
    copier = Copier(source, target, copy.stored)
    while copier.copied < copy.size:
        count = copier.step(copy.size)
        if not count:
            raise VerificationError(f"the stored file {copy.stored} became shorter while copied")
        progress(count)


def _is_locked(descriptor: int) -> bool:
    """Lock a staging directory; False if a living process has it, or where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_if_left(top: int, name: str) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(name, _STAGED, dir_fd=top)
        try:
            if _is_locked(descriptor):
                _remove(top, name, descriptor)
        finally:
            os.close(descriptor)


def _remove(top: int, name: str, descriptor: int) -> None:
    """Remove the staging directory with the files in it. Never raises."""
    with contextlib.suppress(OSError):
        for inner in os.listdir(descriptor):
            # Only what we write ourselves: whatever else lies there is not ours to remove.
            if inner.isdecimal():
                os.unlink(inner, dir_fd=descriptor)
        os.rmdir(name, dir_fd=top)
