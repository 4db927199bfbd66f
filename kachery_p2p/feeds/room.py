"""Room for the records to come: zeros at the end of an own subfeed's file.

A sync of what makes a file longer waits for the journal of the file system too; one of what takes
the place of something that is on the disk does not, which halves what an append costs. So whoever
appends short records writes zeros ahead of them now and then. No record begins with a zero: where
there is one, or nothing, nothing follows. Only after a crash may a record be there whose first
part is not, so whoever opens the log looks for the last byte that is not zero.
"""

from __future__ import annotations

import os

from kachery_p2p.feeds.disk import length_of, read_at
from kachery_p2p.limits import FEED_ROOM_BYTES_MAX, FEED_ROOM_BYTES_MIN, FEED_ROOM_RECORD_BYTES
from kachery_p2p.store.durable import write_all

_BLOCK_BYTES = 1 << 12
_ZEROS = bytes(_BLOCK_BYTES)


def begun_end(fd: int, end: int) -> int:
    """How far the file is written where the last record ended at `end`, and nothing has crashed.

    Less than `end` if the file is shorter; more if a record was at least begun there. OSError.
    """
    first = os.pread(fd, 1, end)
    if first == b"\0":
        return end
    return written_end(fd, end) if first else min(length_of(fd), end)


def noticed_end(fd: int, end: int) -> int:
    """As `begun_end`, but for who only wants to know whether something follows: at once."""
    first = os.pread(fd, 1, end)
    return min(length_of(fd), end) if not first else end + (first != b"\0")


def noticed_end_of(path: str, end: int) -> int:
    """The same of the file `path`. OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return noticed_end(fd, end)
    finally:
        os.close(fd)


def written_end(fd: int, begin: int) -> int:
    """How far the file is written from `begin` on: behind that there is only room, or nothing.

    Less than `begin` if the file is shorter. OSError.
    """
    length = length_of(fd)
    # More zeros than that are no room, but what somebody is to judge: the record before the room
    # may not be known yet, and must be in what is looked at.
    start = max(begin, length - FEED_ROOM_BYTES_MAX - FEED_ROOM_RECORD_BYTES)
    if start >= length:
        return length
    left = _without_zeros(read_at(fd, length - start, start))
    return start + left if left or start == begin else length


def _without_zeros(data: bytes) -> int:
    """How long it is without the zeros at its end; `rstrip` takes 3 ms for a MiB of them."""
    end = len(data)
    while end >= _BLOCK_BYTES and data[end - _BLOCK_BYTES : end] == _ZEROS:
        end -= _BLOCK_BYTES
    start = max(0, end - _BLOCK_BYTES)
    return start + len(data[start:end].rstrip(b"\0"))


def make_room(fd: int, end: int, record_bytes: int) -> int:
    """How far there is room behind `end`, where a record of `record_bytes` ends by now.

    It is made if there is none, and the records are short. OSError.
    """
    length = length_of(fd)
    # A short feed does not become twice as long; and long records are worth a wait.
    wanted = min(end // 2, FEED_ROOM_BYTES_MAX)
    if length > end or record_bytes > FEED_ROOM_RECORD_BYTES or wanted < FEED_ROOM_BYTES_MIN:
        return length
    try:
        write_all(fd, bytes(wanted), end)
    except OSError as error:
        if error.errno is None:  # out of a signal handler
            raise
        # Without it all goes on as well, only slower.
        return length
    return end + wanted
