"""The private files of a subfeed: opened as ours or not at all, and what the system says of them.

A subfeed is a directory, 0700, of files, 0600. Checks are made on what was opened, not on
its name, so that nothing can be put in its place between the check and the use.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import stat
import struct
import sys
from collections.abc import Iterator

from kachery_p2p.channels.disk import read_private_bytes, write_private_bytes
from kachery_p2p.errors import (
    ConfigError,
    KacheryError,
    KeyFileError,
    StateCorruptError,
    StorageFailedError,
    StorageFullError,
    StorePermissionError,
)
from kachery_p2p.store.durable import sync_directory, sync_file, write_all

FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
# After these something was certainly not written as a whole.
NOT_WRITTEN = FULL | {errno.EFBIG}
_DENIED = frozenset((errno.EACCES, errno.EPERM, errno.EROFS))
_OTHERS_ANYTHING = 0o077
# O_NONBLOCK: opening a FIFO planted under the name must not hang.
_PRIVATE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Files of a subfeed that are read as a whole: fork proofs and tombstones are below 5 KB.
SMALL_FILE_BYTES_MAX = 1 << 14
# What is written once more at a time.
_REWRITTEN_BYTES = 1 << 20
_OFFSET_MAX = (1 << 63) - 1
_MACHINE_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_MACHINE_TAG = b"kachery-p2p/machine/1\0"
_OLDER_PLACE_LINES = 2
_MOUNTS = "/proc/self/mountinfo"
_REMOTE = ("nfs", "cifs", "smb", "fuse", "ceph", "9p", "lustre", "gpfs", "beegfs", "afs", "gfs2")
# FS_IOC_GETVERSION, _IOR('v', 1, long) on most processors; elsewhere it is no such call. In spite
# of its type a file system puts an int there.
_LONG = struct.Struct("l")
_GENERATION = struct.Struct("I")
_GET_GENERATION = 2 << 30 | _LONG.size << 16 | ord("v") << 8 | 1


@contextlib.contextmanager
def using(path: str) -> Iterator[None]:
    """Turn what the system says against the subfeed at `path` into the error a user understands."""
    try:
        yield
    except OSError as error:
        raise feed_error(error, path) from error


def feed_error(error: OSError, path: str) -> KacheryError:
    """The error that `error`, met in the directory `path` of a subfeed, amounts to."""
    reason = (error.strerror or str(error)).lower()
    if error.errno in FULL:
        return StorageFullError(
            f"the disk is full, so the feed in {path} takes no more: {reason}",
            hint="free some space; nothing that was appended is lost",
        )
    if error.errno in _DENIED:
        return StorePermissionError(
            f"the feed in {path} may not be used by you: {reason}",
            hint="check the owner and the mode of the configuration directory",
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.EISDIR, errno.ENXIO):
        return StateCorruptError(
            f"{path} is not the directory of a feed: {reason}", hint="move away what is there"
        )
    return StorageFailedError(
        f"the disk failed with the feed in {path}: {reason}", hint="check the disk and its cables"
    )


def open_directory(path: str) -> int:
    """A descriptor of the directory `path`, which is ours alone. OSError or ConfigError."""
    fd = os.open(path, _DIRECTORY)
    try:
        _check_private(path, os.fstat(fd), 0o700)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_file(directory: int, path: str, *, make: bool = True) -> int:
    """A descriptor of the file `path` in the directory, which is ours alone. It is made if it is
    not there, or FileNotFoundError.
    """
    flags = _PRIVATE if make else _PRIVATE & ~os.O_CREAT
    fd = os.open(os.path.basename(path), flags, 0o600, dir_fd=directory)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise StateCorruptError(f"{path} is not a file", hint="move it away")
        _check_private(path, status, 0o600)
    except BaseException:
        os.close(fd)
        raise
    return fd


def make_directories(top: str, *names: str) -> str:
    """TOP/NAME/NAME..., each private and durable. The path of the last."""
    path = top
    for name in ("", *names):
        path = f"{path}/{name}" if name else path
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        # Found, not made: its maker may have been killed before its name was on the disk.
        sync_directory(os.path.dirname(path))
    return path


def read_small(path: str) -> bytes | None:
    """The bytes of a small file of a subfeed; None if there is none."""
    try:
        return read_private_bytes(path, SMALL_FILE_BYTES_MAX)
    except FileNotFoundError:
        return None
    except KeyFileError as error:
        raise ConfigError(str(error), hint=error.hint) from None
    except ConfigError as error:
        raise StateCorruptError(str(error), hint="move the file away") from None


def write_small(path: str, data: bytes) -> None:
    """Make or replace a small file of a subfeed, as a whole and durably. OSError."""
    assert len(data) <= SMALL_FILE_BYTES_MAX
    write_private_bytes(path, data)


def sync_data(fd: int) -> None:
    """The file's bytes, and its length, are on disk when this returns. OSError; never retry."""
    if sys.platform == "linux":
        os.fdatasync(fd)
    else:
        sync_file(fd)


def read_at(fd: int, length: int, offset: int) -> bytes:
    """The bytes of the file from `offset` on; fewer only where it ends. OSError."""
    if offset + length > _OFFSET_MAX:  # from a damaged file
        return b""
    data = os.pread(fd, length, offset)
    # A file system may give less: taken for the end, that would cut a log off.
    while 0 < len(data) < length and (more := os.pread(fd, length - len(data), offset + len(data))):
        data += more
    return data


def length_of(fd: int) -> int:
    """How long the file is. OSError."""
    # Not fstat: whoever asks for the time of change has each write note it anew, in the journal.
    return os.lseek(fd, 0, os.SEEK_END)


def is_remote(fd: int) -> bool:
    """True if even how long the file is may have to be asked of another computer. OSError."""
    return _is_remote(os.fstat(fd).st_dev)


@functools.lru_cache(maxsize=64)
def _is_remote(device: int) -> bool:
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError), open(_MOUNTS, encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            # proc(5): id, parent, device, ..., " - ", type, ...
            mount, _, what = line.partition(" - ")
            if mount.split(" ")[2:3] == [number]:
                return what.startswith(_REMOTE)
    return False


def rewrite(fd: int, begin: int, end: int) -> None:
    """Write what is there once more, for whoever was not told that a sync of it failed. OSError."""
    while begin < end:
        data = read_at(fd, min(_REWRITTEN_BYTES, end - begin), begin)
        write_all(fd, data, begin)
        begin += len(data) or end


def place_of(fd: int) -> bytes:
    """What tells this file on this computer from a copy of it, elsewhere or restored.

    The number of its device is left out: it changes when a computer starts. The generation of its
    inode, where there is one, tells it from a file that was given the same number later.
    """
    place = f"machine {_machine()}\ninode {os.fstat(fd).st_ino}\n"
    generation = _generation(fd)
    return (place if generation is None else f"{place}generation {generation}\n").encode()


def is_older_place(known: bytes, here: bytes) -> bool:
    """True if `known` names the place `here` as it was done before generations and marks were."""
    return known.count(b"\n") == _OLDER_PLACE_LINES and here.startswith(known)


def _generation(fd: int) -> int | None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            said = fcntl.ioctl(fd, _GET_GENERATION, bytes(_LONG.size))
            return _GENERATION.unpack_from(said)[0]  # type: ignore[no-any-return]
    return None


def _machine() -> str:
    """A name for this computer, if it has one: not its machine-id, which is confidential."""
    for path in _MACHINE_FILES:
        with contextlib.suppress(OSError), open(path, "rb") as file:
            if name := file.read(256).strip():
                return hashlib.sha256(_MACHINE_TAG + name).hexdigest()
    return "unknown"


def _check_private(path: str, status: os.stat_result, mode: int) -> None:
    if status.st_uid != os.geteuid():
        raise ConfigError(
            f"{path} belongs to another user (uid {status.st_uid})",
            hint=f"chown it to yourself, then chmod {mode:o} {path}",
        )
    if status.st_mode & _OTHERS_ANYTHING:
        raise ConfigError(
            f"other users may use {path} (mode {stat.S_IMODE(status.st_mode):o})",
            hint=f"chmod {mode:o} {path}",
        )
