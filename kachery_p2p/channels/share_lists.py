"""The share list, which every store asks for: read anew only if it may have changed.

To read it takes a listing and some TOML, 200 us and more; to see by their inodes, sizes and
times that neither the directory of the channels nor a file in it has changed, 2 us each.
A change shows in the ctime, which moves in ticks of up to 10 ms: what was changed a moment
before it was read could change again unseen, and is read again the next time.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import NamedTuple

from kachery_p2p.channels.joined import channels_dir, share_list

# Two ticks of the slowest kernel clock (100 Hz).
SETTLED_NS = 20_000_000


class _Reading(NamedTuple):
    directory: str
    # The directory and the files in it that say what is joined, as they were before.
    statuses: dict[str, os.stat_result]
    ids: tuple[str, ...]

    def is_settled(self, began_ns: int) -> bool:
        """Whether every change since the reading began must show in a ctime."""
        return all(one.st_ctime_ns + SETTLED_NS < began_ns for one in self.statuses.values())

    def is_current(self) -> bool:
        try:
            return all(_state(os.lstat(path)) == _state(s) for path, s in self.statuses.items())
        except OSError:
            return False


# One: who changes the configuration directory between two calls rarely changes it back.
_kept: _Reading | None = None


def current_share_list(config_dir: str) -> tuple[str, ...]:
    """What `joined.share_list` says at this moment; raises as it does."""
    global _kept
    directory, kept = channels_dir(config_dir), _kept
    if kept is not None and kept.directory == directory and kept.is_current():
        return kept.ids
    began_ns = time.time_ns()
    try:
        status = os.lstat(directory)
    except FileNotFoundError:  # nothing was ever joined
        return ()
    statuses = {directory: status, **_files_in(directory)}
    reading = _Reading(directory, statuses, tuple(share_list(config_dir)))
    _kept = reading if reading.is_settled(began_ns) else None
    return reading.ids


def _files_in(directory: str) -> dict[str, os.stat_result]:
    paths = (f"{directory}/{name}" for name in os.listdir(directory) if name.endswith(".toml"))
    found = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # a channel that is being left right now
            found[path] = os.lstat(path)
    return found


def _state(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_dev,
        status.st_ino,
        status.st_mode,
        status.st_uid,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
