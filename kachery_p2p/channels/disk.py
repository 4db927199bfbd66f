"""Files that decide who may enter a channel: read only if nobody else could have written them.

Two kinds. Private files (secrets, the list of joined channels) are this user's alone:
0600 in a 0700 directory, written whole or not at all. Public ones (channel files such
as `channels/lab.toml`) may be read by anybody, but changed by this user or root only.
Every check is made on the opened file, not on its name, so that nothing can be put in
its place between the check and the reading.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator

from kachery_p2p.errors import ConfigError, KeyFileError, UnsafeFileError
from kachery_p2p.limits import CHANNEL_FILE_BYTES_MAX

_OTHERS_WRITE = 0o022
_OTHERS_ANYTHING = 0o077
_FOLLOW_NOTHING = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO planted under the name must not hang.
_READ_FILE = _FOLLOW_NOTHING | os.O_NONBLOCK
_TEMP_PREFIX = ".temp-"


@contextlib.contextmanager
def explaining(path: str) -> Iterator[None]:
    """Turn what the system says against `path` into an error for people."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"{path} could not be used: {reason}",
            hint="check the owner and the mode of the file and its directory, and the disk",
        ) from None


# --- private files --------------------------------------------------------------------


def make_private_directory(path: str) -> None:
    """`path` and its parents, 0700 and durable. Raises KeyFileError if it is open to others."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(os.path.abspath(path))
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        sync_directory(os.path.dirname(os.path.abspath(path)))


def check_private_directory(path: str) -> None:
    """Raises KeyFileError unless `path` is a directory of this user, closed to all others."""
    _check_private(path, os.lstat(path), 0o700)


def read_private(path: str, bytes_max: int = CHANNEL_FILE_BYTES_MAX) -> str:
    """The text of a private file, or FileNotFoundError; KeyFileError if it is not private.

    What is not UTF-8 is replaced, and left for whoever parses the text to refuse.
    """
    return read_private_bytes(path, bytes_max).decode("utf-8", "replace")


def read_private_bytes(path: str, bytes_max: int) -> bytes:
    """The bytes of a private file; raises as `read_private` does."""
    with _opened(path, KeyFileError) as fd:
        _check_private(path, os.fstat(fd), 0o600)
        return _read_bytes(fd, path, bytes_max)


def write_private(path: str, text: str) -> None:
    """Make or replace `path`, 0600, as a whole and durably."""
    write_private_bytes(path, text.encode("utf-8"))


def write_private_bytes(path: str, data: bytes) -> None:
    """As `write_private`."""
    temp = os.path.join(os.path.dirname(path), _TEMP_PREFIX + os.urandom(8).hex())
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            _write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temp, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temp)
        raise
    sync_directory(os.path.dirname(path))


def sweep_temporary(directory: str) -> None:
    """Remove what a killed writer left. Only under the lock that all writers take."""
    for name in os.listdir(directory):
        if name.startswith(_TEMP_PREFIX):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(directory, name))


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Alone among the processes that lock `path`; those who wait do so for milliseconds."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def sync_directory(path: str) -> None:
    """The directory's entries are on disk when this returns."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _check_private(path: str, status: os.stat_result, mode: int) -> None:
    hint = f"chmod {mode:o} {path}"
    if stat.S_ISLNK(status.st_mode):
        raise KeyFileError(f"{path} is a symbolic link", hint="put the real one in its place")
    if status.st_uid != os.geteuid():
        raise KeyFileError(
            f"{path} belongs to another user (uid {status.st_uid})",
            hint=f"chown it to yourself, then {hint}",
        )
    if status.st_mode & _OTHERS_ANYTHING:
        raise KeyFileError(
            f"other users may use {path} (mode {stat.S_IMODE(status.st_mode):o})", hint=hint
        )


# --- files that others may read, but not change ------------------------------------------


def read_trusted(path: str, *, secret: bool = False) -> str | None:
    """The text of a file that only this user or root could have written; None if there is none.

    Raises UnsafeFileError if others may write it or its directory, or if either is a
    symbolic link; and, for a `secret`, if others may read it.
    """
    with contextlib.ExitStack() as opened:
        try:
            directory = opened.enter_context(_opened(os.path.dirname(path), UnsafeFileError))
            _check_trusted(os.path.dirname(path), os.fstat(directory), _OTHERS_WRITE)
            fd = opened.enter_context(_opened(path, UnsafeFileError, directory))
        except (FileNotFoundError, NotADirectoryError):
            return None
        _check_trusted(path, os.fstat(fd), _OTHERS_ANYTHING if secret else _OTHERS_WRITE)
        try:
            return _read_bytes(fd, path).decode("utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"{path} is not UTF-8 text")


def _check_trusted(path: str, status: os.stat_result, forbidden: int) -> None:
    if status.st_uid not in (os.geteuid(), 0):
        raise UnsafeFileError(
            f"{path} belongs to another user (uid {status.st_uid})",
            hint="use a copy of your own, if you trust what it says",
        )
    if status.st_mode & forbidden:
        may, mend = ("change", "go-w") if forbidden == _OTHERS_WRITE else ("read", "go-rwx")
        raise UnsafeFileError(
            f"other users may {may} {path} (mode {stat.S_IMODE(status.st_mode):o})",
            hint=f"chmod {mend} {path}",
        )


# --- both ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(
    path: str, unsafe: type[ConfigError | UnsafeFileError], directory: int | None = None
) -> Iterator[int]:
    """A descriptor of `path`, which is no symbolic link; below `directory`, if that is given."""
    name = path if directory is None else os.path.basename(path)
    try:
        fd = os.open(name, _READ_FILE, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise unsafe(f"{path} is a symbolic link", hint="put the real one in its place")
        raise
    try:
        yield fd
    finally:
        os.close(fd)


def _read_bytes(fd: int, path: str, bytes_max: int = CHANNEL_FILE_BYTES_MAX) -> bytes:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise ConfigError(f"{path} is not a file")
    data = os.read(fd, bytes_max + 1)
    if len(data) > bytes_max:
        raise ConfigError(f"{path} is longer than {bytes_max} bytes")
    return data


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
