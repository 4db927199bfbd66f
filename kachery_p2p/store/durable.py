"""What must happen before "stored" may be said, and the errors when it does not happen.

A file is on disk when it was fsynced *and* every directory on the way that gained an
entry was. Of 19,305 objects acknowledged without the directories, 24 were gone after
power cuts (measured); with them, none of 10,992. A failed fsync is final: the kernel
has dropped the pages, so a second one would succeed and mean nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import re
import stat
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from kachery_p2p.errors import (
    StorageFailedError,
    StorageFullError,
    StoreError,
    StorePermissionError,
)

if TYPE_CHECKING:
    import ctypes

Answer = TypeVar("Answer")

_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
_DENIED = frozenset((errno.EACCES, errno.EPERM, errno.EROFS))


class writing_to:
    """Turn what the system says against writing at `place` into the error a user understands."""

    # A class, though used as a function: a generator takes 3 us more, four times an object.

    def __init__(self, place: str) -> None:
        self._place = place

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError):
            raise storage_error(error, self._place) from error


def storage_error(error: OSError, place: str) -> StoreError:
    """The store error that `error`, met while writing at `place`, amounts to."""
    reason = (error.strerror or str(error)).lower()
    if error.errno in _FULL:
        return StorageFullError(
            f"the disk of {place} is full: {reason}",
            hint="free some space, or set KACHERY_STORAGE_DIR to a larger disk",
        )
    if error.errno in _DENIED:
        return StorePermissionError(
            f"the store {place} may not be written by you: {reason}",
            hint="ask its owner for leave, or set KACHERY_STORAGE_DIR to a directory of yours",
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.ELOOP):
        return StorageFailedError(
            f"the store {place} is not a directory, or holds something else where it needs one",
            hint="set KACHERY_STORAGE_DIR to a directory of its own",
        )
    return StorageFailedError(
        f"writing to the store {place} failed: {reason}", hint="check the disk and its cables"
    )


def check_space(directory: str, need: int, reserve: int) -> None:
    """Raise StorageFullError unless `need` more bytes leave `reserve` free where `directory` is."""
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    if need > max(0, free - reserve):
        raise StorageFullError(
            f"need {human_size(need)}, {human_size(free)} free in the store {directory} "
            f"of which {human_size(reserve)} stay in reserve",
            hint="free some space, or set KACHERY_STORAGE_DIR to a larger disk",
        )


def human_size(size: int) -> str:
    """A byte count as people say it: `4.0 GB`."""
    amount = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{size} bytes" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write every byte of `data` at `offset`; the system may take fewer at a time."""
    written = os.pwrite(fd, data, offset)
    if written == len(data):
        return
    view = memoryview(data)[written:]
    offset += written
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


# renameat2 answers so on file systems that know no RENAME_NOREPLACE, and in old kernels.
_NO_NOREPLACE = frozenset((errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP))
_RENAME_NOREPLACE = 1
_AT_FDCWD = -100


def rename_new(old: str, new: str) -> None:
    """Rename `old` to `new`; FileExistsError if that is there.

    Where the system cannot do both at once, it looks first.
    """
    renameat2 = _renameat2()
    if renameat2 is not None:
        names = os.fsencode(old), os.fsencode(new)
        if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE) == 0:
            return
        code = _errno()
        if code not in _NO_NOREPLACE:
            raise OSError(code, os.strerror(code), new)
    if os.path.lexists(new):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
    os.rename(old, new)


@functools.cache
def _renameat2() -> Callable[[int, bytes, int, bytes, int], int] | None:
    import ctypes

    call = getattr(_libc(), "renameat2", None)
    if call is not None:
        path = ctypes.c_char_p
        call.argtypes = (ctypes.c_int, path, ctypes.c_int, path, ctypes.c_uint)
    return call


def _errno() -> int:
    import ctypes

    return ctypes.get_errno()


@functools.cache
def _libc() -> ctypes.CDLL:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


# macOS: fsync leaves the bytes in the drive's cache.
_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)


def sync_file(fd: int) -> None:
    """The file's bytes are on disk when this returns. Raises OSError; never retry."""
    if _FULL_SYNC is not None:
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, _FULL_SYNC)
            return
    os.fsync(fd)


def sync_directory(path: str) -> None:
    """The directory's entries are on disk when this returns."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_open_directory(fd)
    finally:
        os.close(fd)


def sync_open_directory(fd: int) -> None:
    """As `sync_directory`, for a directory that is open."""
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network and FUSE file systems know no fsync of a directory.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise


# statfs magic of the file systems whose syncfs waits for every file and directory, and says
# so when one failed. Network file systems write back without committing; overlays and FUSE
# do not pass on what failed below them.
_SYNCED_AT_ONCE = frozenset((0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0x01021994))


def syncs_at_once(fd: int) -> bool:
    """True if `sync_filesystem` may stand for an fsync of each file, where `fd` is."""
    import ctypes

    if sys.platform != "linux" or _kernel() < (5, 8):  # before 5.8 syncfs kept failures to itself
        return False
    answer = ctypes.create_string_buffer(256)
    if _libc().fstatfs(fd, answer) != 0:
        return False
    return int.from_bytes(answer.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder) in (
        _SYNCED_AT_ONCE
    )


def sync_filesystem(fd: int) -> None:
    """All that was written where `fd` is, since it was opened, is on disk. Raises OSError."""
    import ctypes

    if _libc().syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


# sync_file_range(2): begin writing what is dirty, and do not wait.
_SYNC_FILE_RANGE_WRITE = 2


def start_write_back(fd: int, offset: int, length: int) -> None:
    """Let the disk begin with these bytes, where that can be said; nothing is durable by it."""
    call = _sync_file_range()
    if call is not None:
        call(fd, offset, length, _SYNC_FILE_RANGE_WRITE)


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    import ctypes

    call = getattr(_libc(), "sync_file_range", None)
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call


class Aside(Generic[Answer]):
    """Work done in a thread, while the `with` waits for the disk; then its `answer`."""

    def __init__(self, work: Callable[[], Answer]) -> None:
        self._work = work
        self._done: list[Answer] = []
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="aside", daemon=True)

    def __enter__(self) -> Aside[Answer]:
        try:
            self._thread.start()
        except RuntimeError:  # no more threads to be had: then one after the other
            self._run()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._done.append(self._work())
        except BaseException as error:
            self._failure = error

    def answer(self) -> Answer:
        """What the work answered. Raises what it failed with."""
        if self._failure is not None:
            raise self._failure
        return self._done[0]


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])


class Made:
    """Directories that were made, or found, and that are not yet synced."""

    def __init__(self) -> None:
        self.paths: set[str] = set()
        # The directories that they are in.
        self.parents: set[str] = set()
        # Those whose mode and group are those of the top, so that what is made in them has them.
        self.right: set[str] = set()


class DurableDirectories:
    """Makes directories below one top, and syncs each directory that gained one.

    A directory that was found, not made, is synced too, once: its maker may have been
    killed, or be a moment behind us, before the entry in the parent was on disk.
    """

    # 256 + 65,536 directories come before objects share one; a forgotten one costs one fsync.
    REMEMBERED_MAX = 70_000

    def __init__(self, top: str) -> None:
        self.top = top
        self._done: set[str] = set()

    def make(self, path: str) -> str:
        """`path`, made and durable, with every directory between the top and it."""
        if path not in self._done:
            made = Made()
            self.make_unsynced(path, made)
            self.sync(made)
        return path

    def sync(self, made: Made) -> None:
        """Sync what gained an entry when these were `made`: they are durable when it returns.

        All together, after what was put into them: one commit of the journal is enough.
        """
        for parent in made.parents:
            sync_directory(parent)
        self.now_durable(made)

    def make_unsynced(self, path: str, made: Made) -> None:
        """As `make`, but durable only after `sync`, or when the file system was synced."""
        if self.top not in self._done:
            self._make_top()
            self._done.add(self.top)
        missing = []
        # Another thread may forget all of it at any moment.
        while path != self.top and path not in made.paths and path not in self._done:
            missing.append(path)
            path = path[: path.rindex("/")]
        for new in reversed(missing):
            # What mkdir makes of the umask and the parent is looked at once for each that was here.
            if path in made.right:
                try:
                    os.mkdir(new)
                    made.right.add(new)
                except FileExistsError:
                    pass
            elif self._make_below(new):
                made.right |= {path, new}
            made.paths.add(new)
            made.parents.add(path)
            path = new

    def now_durable(self, made: Made) -> None:
        """The directories `made` unsynced have since been synced with everything else."""
        if not made.paths:
            return
        if len(self._done) + len(made.paths) > self.REMEMBERED_MAX:
            self._done.clear()
        self._done |= made.paths

    def forget(self) -> None:
        """Look again at every directory: somebody removed one."""
        self._done.clear()

    def _make_top(self) -> None:
        """The top with its missing parents. What lies above an existing top is not our affair."""
        missing = []
        path = os.path.abspath(self.top)
        while not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path)
            sync_directory(os.path.dirname(path))

    def _make_below(self, path: str) -> bool:
        """Make one directory; True if it was made, and had the right mode at once."""
        try:
            os.mkdir(path)
            is_new = True
        except FileExistsError:
            if not _made_by_us_just_now(path):
                return False
            is_new = False
        # As open as the top, and of its group: a store that a group may write stays one.
        top, made = os.stat(self.top), os.stat(path)
        if made.st_gid != top.st_gid:
            with contextlib.suppress(OSError):  # a group that we are not in
                os.chown(path, -1, top.st_gid)
        elif made.st_mode & 0o3777 == top.st_mode & 0o3777:
            return is_new
        os.chmod(path, top.st_mode & 0o3777)
        return False


def _made_by_us_just_now(path: str) -> bool:
    """True for an empty directory of ours: its maker may have been killed before the chmod."""
    status = os.stat(path)
    if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode):
        return False
    with os.scandir(path) as entries:
        return next(entries, None) is None
