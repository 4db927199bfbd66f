"""Files that hold secret keys: 0600 in a 0700 directory, this user's, written whole or not at all.

Every check of a file is made on the opened file, not on its name, so that nothing can be
put in its place between the check and the reading.
"""

from __future__ import annotations

import contextlib
import os
import stat

from kachery_p2p.errors import KeyFileError
from kachery_p2p.limits import KEY_FILE_BYTES_MAX

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO planted under the name must not hang.
_READ_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def make_private_directories(config_dir: str, directory: str) -> None:
    """CONFIG and `directory` below it, private, and durable before a key is put into them."""
    if not os.path.isdir(config_dir):
        os.makedirs(os.path.dirname(os.path.abspath(config_dir)), exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(config_dir, 0o700)
        sync_directory(os.path.dirname(os.path.abspath(config_dir)))
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    sync_directory(os.path.dirname(directory))


def write_durably(path: str, data: bytes) -> None:
    """Make the file `path`, which does not exist yet, with `data` on the disk."""
    fd = os.open(path, _NEW_FILE, 0o600)
    try:
        while data:
            data = data[os.write(fd, data) :]
        os.fsync(fd)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(fd)


def read_private(path: str) -> bytes:
    """The bytes of a key file. KeyFileError unless it is a file, this user's, and closed to all."""
    fd = os.open(path, _READ_FILE)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(f"{path} is not a file")
        check_private(path, status, 0o600)
        data = os.read(fd, KEY_FILE_BYTES_MAX + 1)
    finally:
        os.close(fd)
    if len(data) > KEY_FILE_BYTES_MAX:
        raise KeyFileError(
            f"{path} is too long for a key file (over {KEY_FILE_BYTES_MAX} bytes)",
            hint="restore it from a backup, or move it away",
        )
    return data


def check_private(path: str, status: os.stat_result, mode: int) -> None:
    """Raise KeyFileError unless what has this status is this user's, and closed to all others."""
    hint = f"chmod {mode:o} {path}"
    if stat.S_ISLNK(status.st_mode):
        raise KeyFileError(f"{path} is a symbolic link", hint="put the real file in its place")
    if status.st_uid != os.geteuid():
        raise KeyFileError(
            f"{path} belongs to another user (uid {status.st_uid})",
            hint=f"chown it to yourself, then {hint}; or use a configuration of your own",
        )
    if status.st_mode & 0o077:
        raise KeyFileError(
            f"other users may read {path} (mode {stat.S_IMODE(status.st_mode):o})", hint=hint
        )


def sync_directory(path: str) -> None:
    """The directory's entries are on disk when this returns."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
