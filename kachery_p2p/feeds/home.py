"""Whether a subfeed's files are where they were written last, or were restored from a backup.

The file `place` names the computer and the inode of `entries`, with its generation, because ext4
gives a freed number out again at once. A backup can also be written over the files, into the same
inodes; for that there is `mark`: a symbolic link with two names. Whatever puts links back (cp, tar,
rsync into a new directory) makes them anew, so they are another inode, or two; while changing the
mode or the owner of everything, as containers do when they start, leaves them what they are.
"""

from __future__ import annotations

import contextlib
import os
import stat

from kachery_p2p.feeds.disk import is_older_place, place_of, read_small, write_small

_MARK, _OTHER_NAME = "mark", "mark.2"
# It leads to a file of the subfeed, so that no tool finds it broken.
_LEADS_TO = "place"


def is_at_home(path: str, entries: int) -> bool:
    """True if the subfeed in the directory `path` was not restored, nor cloned. OSError.

    `entries` is its open file. ConfigError or StateCorruptError if `place` is not one of ours.
    """
    known, here = read_small(f"{path}/place"), place_of(entries)
    if known is None:
        return False
    mark = _mark(path)
    if is_older_place(known, here):
        # There was no mark when it was written: where there is one now, a backup was put.
        return mark is None
    return known == here + _line(mark)


def is_noted(path: str) -> bool:
    """True if it was ever noted where the subfeed is. Raises as `is_at_home`."""
    return read_small(f"{path}/place") is not None


def note_home(path: str, entries: int) -> None:
    """The subfeed is here from now on, and nowhere else; durably. OSError."""
    known, here, mark = read_small(f"{path}/place"), place_of(entries), _mark(path)
    if mark is not None and known == here + _line(mark):
        return
    _remove_mark(path)
    try:
        # Not every file system has links.
        with contextlib.suppress(OSError):
            os.symlink(_LEADS_TO, f"{path}/{_MARK}")
            os.link(f"{path}/{_MARK}", f"{path}/{_OTHER_NAME}", follow_symlinks=False)
        place = here + _line(_mark(path))
        if place != known:
            # This makes the names durable too.
            write_small(f"{path}/place", place)
    except OSError:
        # With one that is not noted it would look like a backup. It may be noted all the same.
        if not is_at_home(path, entries):
            _remove_mark(path)
        raise


def _remove_mark(path: str) -> None:
    for name in (_MARK, _OTHER_NAME):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}/{name}")


def _mark(path: str) -> os.stat_result | None:
    """What the system says of the mark, if there is one."""
    try:
        return os.lstat(f"{path}/{_MARK}")
    except FileNotFoundError:
        return None


def _line(mark: os.stat_result | None) -> bytes:
    """What `place` says of the mark: the same text only for the same link with both its names."""
    if mark is None:
        return b""
    if not stat.S_ISLNK(mark.st_mode):
        return b"mark none\n"
    return f"mark {mark.st_ino} names {mark.st_nlink}\n".encode()
