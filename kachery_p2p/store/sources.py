"""The user's file that is to be stored: opened safely, and watched for changes.

A change of a file is seen by its ctime, which moves in ticks of up to 10 ms: a file
written a moment ago may be written again within the same tick, and look unchanged.
So a stat is only trusted for later when it was *settled* before the reading began.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator

from kachery_p2p.errors import SourceChangedError, SourceFileError

Source = str | os.PathLike[str] | int

# Two ticks of the slowest kernel clock (100 Hz).
SETTLED_NS = 20_000_000


@contextlib.contextmanager
def opened_source(source: Source) -> Iterator[int]:
    """A descriptor of the regular file at a path; a descriptor given stays the caller's."""
    if isinstance(source, int):
        _check_regular(source, "the file")
        yield source
        return
    path = os.fspath(source)
    fd = _open(path)
    try:
        _check_regular(fd, path)
        yield fd
    finally:
        os.close(fd)


def _open(path: str) -> int:
    try:
        # O_NONBLOCK: opening a FIFO would wait for its writer.
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise SourceFileError(f"there is no file {path}", hint="check the path") from error
    except PermissionError as error:
        raise SourceFileError(
            f"{path} may not be read by you", hint="ask its owner for leave to read it"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise SourceFileError(f"{path!r} cannot be opened: {reason.lower()}") from error


def _check_regular(fd: int, name: str) -> None:
    try:
        mode = os.fstat(fd).st_mode
    except OSError as error:
        raise SourceFileError(f"{name} is not open") from error
    if stat.S_ISDIR(mode):
        raise SourceFileError(f"{name} is a directory", hint="`store_dir` stores a directory")
    if not stat.S_ISREG(mode):
        raise SourceFileError(
            f"{name} is not a regular file but a pipe, socket or device",
            hint="write its content to a file first",
        )


def check_unchanged(before: os.stat_result, fd: int) -> None:
    """Raise SourceChangedError if the file is not what it was before it was read."""
    after = os.fstat(fd)
    try:
        longer = after.st_size == before.st_size and os.pread(fd, 1, before.st_size)
    except OSError as error:
        raise unreadable(error) from error
    if longer or _state(before) != _state(after):
        raise source_changed()


def unreadable(error: OSError) -> SourceFileError:
    """The error for a file that was opened and then could not be read."""
    reason = (error.strerror or str(error)).lower()
    return SourceFileError(f"the file could not be read: {reason}", hint="check its disk")


def source_changed() -> SourceChangedError:
    """The error for a file that was written to while it was read."""
    return SourceChangedError(
        "the file was written to while it was being stored",
        hint="store it again when its writer has finished",
    )


def _state(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


# What a file keeps when it is renamed, which changes its ctime.
Identity = tuple[int, int, int, int, int]


def identity(status: os.stat_result) -> Identity:
    """Which file it is, whose, and since when it has these bytes."""
    return status.st_dev, status.st_ino, status.st_uid, status.st_size, status.st_mtime_ns


def same_state(one: os.stat_result, other: os.stat_result) -> bool:
    """True if nothing says that the file changed between the two looks."""
    return _state(one) == _state(other)


def unsettled_s(status: os.stat_result) -> float:
    """How long until a further change of the file must show in its ctime; 0 when it must now."""
    missing = status.st_ctime_ns + SETTLED_NS - time.time_ns()
    # A ctime in the future means that the clock was set back, and says nothing.
    return max(0, min(missing, SETTLED_NS)) / 1e9
