"""Room for the records to come: zeros at the end of an own subfeed's file.

A sync of what makes a file longer waits for the journal of the file system too; one of what takes
the place of something that is on the disk does not, which halves what an append costs. So whoever
appends short records writes zeros ahead of them now and then. No record begins with a zero: where
there is one, or nothing, nothing follows. Only after a crash may a record be there whose first
part is not, so whoever opens the log looks for the last byte that is not zero.
"""

from __future__ import annotations

import contextlib
import os

from kachery_p2p.feeds.disk import length_of, read_at
from kachery_p2p.limits import FEED_ROOM_BYTES_MAX, FEED_ROOM_BYTES_MIN, FEED_ROOM_RECORD_BYTES
from kachery_p2p.store.durable import write_all


def begun_end(fd: int, end: int) -> int:
    """How far the file is written where the last record ended at `end`, and nothing has crashed.

    Less than `end` if the file is shorter; more if a record was at least begun there. OSError.
    """
    first = os.pread(fd, 1, end)
    if first == b"\0":
        return end
    return written_end(fd, end) if first else min(length_of(fd), end)


def written_end(fd: int, begin: int) -> int:
    """How far the file is written from `begin` on: behind that there is only room, or nothing.

    Less than `begin` if the file is shorter. OSError.
    """
    length = length_of(fd)
    # More zeros than that are no room, but what somebody is to judge.
    start = max(begin, length - FEED_ROOM_BYTES_MAX)
    if start >= length:
        return length
    data = read_at(fd, length - start, start).rstrip(b"\0")
    return start + len(data) if data or start == begin else length


def written_end_of(path: str, begin: int) -> int:
    """The same of the file `path`. OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return written_end(fd, begin)
    finally:
        os.close(fd)


def make_room(fd: int, end: int, record_bytes: int) -> int:
    """How far there is room behind `end`, where a record of `record_bytes` ends by now.

    It is made if there is none, and the records are short. OSError.
    """
    length = length_of(fd)
    # A short feed does not become twice as long; and long records are worth a wait.
    wanted = min(end // 2, FEED_ROOM_BYTES_MAX)
    if length > end or record_bytes > FEED_ROOM_RECORD_BYTES or wanted < FEED_ROOM_BYTES_MIN:
        return length
    # Without it all goes on as well, only slower.
    with contextlib.suppress(OSError):
        write_all(fd, bytes(wanted), end)
        length = end + wanted
    return length
