"""What killed processes and vanished nodes left in a store, removed by whoever comes later.

Whatever a living process works on is locked by it. A file of another user that may not
be touched stays, for its owner's next process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Callable

from kachery_p2p.limits import PARTIAL_AGE_S_MAX, TEMP_AGE_S_MAX
from kachery_p2p.store.paths import partial_dir, temp_dir
from kachery_p2p.store.temps import remove_group

# As `Partial.discard` removes them: `root`, which carries the lock, last.
_PARTIAL_FILES = ("bits", "pages", "data", "root")


def sweep(store: str) -> int:
    """Remove temporary files and downloads that nobody works on; how many. Never raises."""
    swept = _each(temp_dir(store), _sweep_temp)
    nodes = partial_dir(store, "")
    for node in _names(nodes):
        swept += _each(f"{nodes}{node}", _sweep_partial)
        with contextlib.suppress(OSError):
            os.rmdir(f"{nodes}{node}")
    return swept


def _names(directory: str) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(directory)
    return []


def _each(directory: str, sweep_one: Callable[[str], bool]) -> int:
    swept = 0
    for name in _names(directory):
        with contextlib.suppress(OSError):
            swept += sweep_one(f"{directory}/{name}")
    return swept


def _sweep_temp(path: str) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if _age_s(status) < TEMP_AGE_S_MAX:
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if stat.S_ISDIR(status.st_mode):
            remove_group(path)
        else:
            os.unlink(path)
        return not os.path.lexists(path)
    finally:
        os.close(fd)


def _sweep_partial(path: str) -> bool:
    if _age_s(os.stat(path)) < PARTIAL_AGE_S_MAX:
        return False
    if any(_is_young(f"{path}/{name}") for name in _PARTIAL_FILES):
        return False
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(f"{path}/root", flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in _PARTIAL_FILES:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{path}/{name}")
        os.rmdir(path)
        return True
    finally:
        os.close(fd)


def _is_young(path: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return _age_s(os.lstat(path)) < PARTIAL_AGE_S_MAX
    return False


def _age_s(status: os.stat_result) -> float:
    return time.time() - status.st_mtime
