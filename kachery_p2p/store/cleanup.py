"""What killed processes and vanished nodes left in a store, removed by whoever comes later.

Whatever a living process works on is locked by it. A file of another user that may not
be touched stays, for its owner's next process.

Others may write in a store that several users share. So no path is followed twice: each
directory is opened as a directory, never through a link, and what is in it is removed by
its name there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator

from kachery_p2p.limits import PARTIAL_AGE_S_MAX, TEMP_AGE_S_MAX
from kachery_p2p.store.paths import partial_dir, temp_dir

# As `Partial.discard` removes them: `root`, which carries the lock, last.
_PARTIAL_FILES = ("bits", "pages", "data", "root")


def sweep(store: str) -> int:
    """Remove temporary files and downloads that nobody works on; how many. Never raises."""
    swept = 0
    with contextlib.suppress(OSError), opened_directory(temp_dir(store)) as temps:
        swept += _each(temps, sweep_temp)
    with contextlib.suppress(OSError), opened_directory(partial_dir(store, "")) as nodes:
        swept += _each(nodes, _sweep_node)
    return swept


@contextlib.contextmanager
def opened_directory(path: str, inside: int | None = None) -> Iterator[int]:
    """A descriptor of the directory `path`, in the open directory `inside` if one is given.

    Raises OSError if there is none, or a link or something else stands there.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    # A slash at the end would have a link followed.
    fd = os.open(path.rstrip("/"), flags, dir_fd=inside)
    try:
        yield fd
    finally:
        os.close(fd)


def _each(directory: int, sweep_one: Callable[[int, str], int]) -> int:
    swept = 0
    for name in os.listdir(directory):
        with contextlib.suppress(OSError):
            swept += sweep_one(directory, name)
    return swept


def sweep_temp(temps: int, name: str) -> int:
    """Remove a file or a group that is old and not locked; 1 if it was. Raises OSError if not."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=temps)
    try:
        status = os.fstat(fd)
        if _age_s(status) < TEMP_AGE_S_MAX:
            return 0
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if stat.S_ISDIR(status.st_mode):
            _unlink_all(fd, os.listdir(fd))
            os.rmdir(name, dir_fd=temps)
        else:
            os.unlink(name, dir_fd=temps)
        return 1
    finally:
        os.close(fd)


def _sweep_node(nodes: int, name: str) -> int:
    with opened_directory(name, nodes) as partials:
        swept = _each(partials, _sweep_partial)
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=nodes)
    return swept


def _sweep_partial(partials: int, name: str) -> int:
    with opened_directory(name, partials) as partial:
        if _age_s(os.fstat(partial)) < PARTIAL_AGE_S_MAX:
            return 0
        if any(_is_young(partial, file) for file in _PARTIAL_FILES):
            return 0
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open("root", flags, 0o600, dir_fd=partial)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _unlink_all(partial, _PARTIAL_FILES)
            os.rmdir(name, dir_fd=partials)
        finally:
            os.close(fd)
    return 1


def _unlink_all(directory: int, names: list[str] | tuple[str, ...]) -> None:
    for name in names:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=directory)


def _is_young(partial: int, name: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(name, dir_fd=partial, follow_symlinks=False)
        return _age_s(status) < PARTIAL_AGE_S_MAX
    return False


def _age_s(status: os.stat_result) -> float:
    return time.time() - status.st_mtime
