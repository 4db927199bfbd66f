"""What all who append to an own subfeed share: a lock, and where the next record goes.

The node appends, and so do the programs of its user, each by itself: this spares them the way to
the node and back. Whoever writes holds the flock of the file `writers`, for some microseconds,
and nobody waits for the disk with it. In the file lies what the next one needs:

    "kpfw" ‖ u32 standing ‖ boot id 16 ‖ u64 generation ‖ u64 size ‖ u64 end ‖ u64 synced
    ‖ u32 CRC-32                                                                         60 bytes

size and end say where the next record begins; a writer that was killed may have left one more
behind. Everything before `synced` is on the disk; so is what any writer's own sync covered. The
generation is another one each time the node opens the log: who knows of an earlier one may have
slept while it was mended, and has to open it anew. This is about the running system: after a
restart of the computer, or of another computer, it says nothing, and the node looks at the entries
again (`opening`). So it is not synced, but for why nobody may append: a disk can be lost, and be
mounted again, without a restart.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import struct
import sys
import time
from collections.abc import Iterator
from enum import IntEnum
from types import TracebackType
from typing import NamedTuple
from zlib import crc32

from kachery_p2p.errors import FeedBusyError
from kachery_p2p.feeds.disk import sync_data
from kachery_p2p.limits import FEED_LOCK_PAUSE_S, FEED_LOCK_S_MAX
from kachery_p2p.store.durable import write_all

_FIELDS = struct.Struct(">4sI16sQQQQ")
_CRC = struct.Struct(">I")
_BYTES = _FIELDS.size + _CRC.size
_MAGIC = b"kpfw"
_BOOT_BYTES = 16
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_ALL_ARE_TOLD = (4, 14)
_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WAITS = frozenset((errno.EAGAIN, errno.EACCES))


class Standing(IntEnum):
    """Whether who holds the lock may append, and if not, why."""

    OPEN = 0
    # Only the node can tell: it is opening the subfeed.
    UNKNOWN = 1
    STOPPED = 2
    RESTORED = 3
    BEHIND = 4
    FORKED = 5
    ENDED = 6
    GONE = 7


class Shared(NamedTuple):
    """What the file says. Only who holds the lock may believe it, and change it."""

    standing: Standing
    # How many entries there are, and where the next record begins.
    size: int
    end: int
    # Up to where everything is known to be on the disk.
    synced: int
    # Which opening by the node this is of: `Writers.write` sees to it.
    generation: int = 0

    def encode(self) -> bytes:
        """The bytes of the file."""
        standing, size, end, synced, generation = self
        data = _FIELDS.pack(_MAGIC, standing, boot_id(), generation, size, end, synced)
        return data + _CRC.pack(crc32(data))

    @classmethod
    def decode(cls, data: bytes) -> Shared | None:
        """What `data` says; None if that is nothing, or of another start of the computer."""
        if len(data) != _BYTES or data[:4] != _MAGIC:
            return None
        _, standing, boot, generation, size, end, synced = _FIELDS.unpack_from(data)
        if _CRC.unpack_from(data, _FIELDS.size)[0] != crc32(data[: _FIELDS.size]):
            return None
        if boot != boot_id() or not any(boot) or standing not in _STANDINGS:
            return None
        return cls(Standing(standing), size, end, synced, generation)


_STANDINGS = frozenset(Standing)


class Writers:
    """The file `writers` of a subfeed, open as `descriptor`. `with` it: alone among all writers.

    Of one thread at a time.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        # What was read or written last: mostly it still says the same.
        self._last: tuple[bytes, Shared | None] = b"", None
        # True if the lock was not free when it was taken last.
        self.has_waited = False

    def __enter__(self) -> None:
        """FeedBusyError if others hold the lock for too long."""
        try:
            self.take()
        except BaseException:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def take(self, deadline: float | None = None) -> None:
        """Take the lock, which the caller lets go whatever is raised here. FeedBusyError.

        `deadline`, of `time.monotonic`, if the caller has waited for something else before.
        """
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.has_waited = False
        except OSError as error:
            if error.errno not in _WAITS:
                raise
            self.has_waited = True
            self._wait(lock_deadline() if deadline is None else deadline)

    def read(self) -> Shared | None:
        """What it says; None if that is nothing. OSError."""
        data = os.pread(self._descriptor, _BYTES + 1, 0)
        if data != self._last[0]:
            self._last = data, Shared.decode(data)
        return self._last[1]

    def glance(self) -> Shared | None:
        """What it says to one without the lock, in any thread; None if it is just being said.

        OSError.
        """
        return Shared.decode(os.pread(self._descriptor, _BYTES + 1, 0))

    def write(self, shared: Shared) -> None:
        """Say this from now on: of the same generation, unless the node opens the log. OSError."""
        known = self._last[1]
        if known is None or shared.standing is Standing.UNKNOWN:
            # Not one more: who slept longest may know of any.
            shared = shared._replace(generation=int.from_bytes(os.urandom(8), "big"))
        elif shared.generation != known.generation:
            shared = shared._replace(generation=known.generation)
        data = shared.encode()
        write_all(self._descriptor, data, 0)
        self._last = data, shared

    def sync(self) -> None:
        """What it says is on the disk when this returns. OSError."""
        sync_data(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _wait(self, deadline: float) -> None:
        # Not a flock that waits: it has no deadline. The lock is free most of the time, however
        # many write, so who looks again soon gets it.
        pause_s = FEED_LOCK_PAUSE_S
        while time.monotonic() < deadline:
            time.sleep(pause_s)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in _WAITS:
                    raise
            pause_s = min(2 * pause_s, 10 * FEED_LOCK_PAUSE_S)
        raise busy()


def lock_deadline() -> float:
    """Until when who begins to wait now waits for others that write."""
    return time.monotonic() + FEED_LOCK_S_MAX


def busy() -> FeedBusyError:
    """Somebody has held the lock until the deadline."""
    return FeedBusyError(
        f"another process has held the feed for {FEED_LOCK_S_MAX:.0f} s; nothing was appended",
        hint="look for a program of yours that is stopped, or for a disk that hangs",
    )


@contextlib.contextmanager
def shut_for_good(path: str) -> Iterator[None]:
    """While what is in the directory `path` of a subfeed is deleted: nobody appends to it any more.

    FeedBusyError or OSError.
    """
    try:
        descriptor = os.open(f"{path}/writers", _OPEN)
    except (FileNotFoundError, NotADirectoryError):
        yield
        return
    writers = Writers(descriptor)
    try:
        with writers:
            shared = writers.read()
            if shared is not None:
                writers.write(shared._replace(standing=Standing.GONE))
            yield
    finally:
        writers.close()


@functools.cache
def boot_id() -> bytes:
    """What tells this run of the computer from the one before; zeros where nothing does.

    Zeros also where only one descriptor of a file is told that the disk failed: on macOS, and on
    Linux before 4.14. Programs that append beside each other rely on being told, so there the
    node appends for all of them.
    """
    if sys.platform != "linux" or _linux_version() < _ALL_ARE_TOLD:
        return bytes(_BOOT_BYTES)
    try:
        with open(_BOOT_ID, "rb") as file:
            return bytes.fromhex(file.read(64).decode("ascii").strip().replace("-", ""))
    except (OSError, ValueError):
        return bytes(_BOOT_BYTES)


def _linux_version() -> tuple[int, ...]:
    numbers = os.uname().release.replace("-", ".").split(".")
    return tuple(int(number) for number in numbers[:2] if number.isdigit())
