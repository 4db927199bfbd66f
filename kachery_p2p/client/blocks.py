"""The blocks of a content that is not stored here, brought by the daemon: each of them once.

The daemon of this computer hands over the file into which it writes what it has verified:
then only which blocks are there is remembered here, and they are read from that file. A
daemon elsewhere sends the bytes, of which the last ones are kept.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from kachery_p2p.client.loading import fetch_range, fetch_size, open_range
from kachery_p2p.client.origin import Origin
from kachery_p2p.content.uris import Uri
from kachery_p2p.errors import DaemonProtocolError, LoadFileError, LoadTimeoutError
from kachery_p2p.limits import (
    CHUNK_BYTES,
    OPENED_AHEAD_BLOCKS_MAX,
    OPENED_AHEAD_SENT_BLOCKS_MAX,
    OPENED_BLOCKS_MAX,
    OPENED_READ_BYTES_MAX,
)


def open_blocks(wanted: Uri, origin: Origin) -> Blocks:
    """The blocks of a content that has a root. Raises what a load raises."""
    opened = open_range(wanted, 0, 0, origin)
    if opened is not None:
        return FileBlocks(wanted, origin, *opened)
    return SentBlocks(wanted, origin, fetch_size(wanted, origin))


class Blocks(ABC):
    """Blocks of 1 MiB, for any number of threads; a forked process goes on with its own."""

    # How many may be read in one go, and fetched ahead of those.
    run_max = OPENED_READ_BYTES_MAX // CHUNK_BYTES
    ahead_max = OPENED_AHEAD_BLOCKS_MAX

    def __init__(self, wanted: Uri, origin: Origin, size: int) -> None:
        self.size = size
        self.count = -(-size // CHUNK_BYTES)
        self._wanted = wanted
        self._origin = origin
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        # Those that a thread of this process is fetching.
        self._under_way: set[int] = set()

    def ensure(self, blocks: range, *, ahead: bool = False) -> None:
        """They are all here when this returns, fetched by whichever thread came first.

        Raises what a load raises. `ahead`: nobody waits for them, so nothing is shown.
        """
        while (run := self._next_run(blocks, wait=not ahead)) is not None:
            with self._fetching(run):
                start, end = run.start * CHUNK_BYTES, min(run.stop * CHUNK_BYTES, self.size)
                self._fetch(run, start, end, shown=not ahead)

    def _next_run(self, blocks: range, *, wait: bool) -> range | None:
        """What of `blocks` this thread is to fetch now: it is under way from here on."""
        if os.getpid() != self._pid:
            # The threads that were fetching, and may hold the lock, are the parent's.
            self._begin()
        with self._changed:
            while True:
                missing = [n for n in blocks if not self._has(n)]
                free = [n for n in missing if n not in self._under_way]
                if free or not missing or not wait:
                    break
                if not self._changed.wait(self._origin.timeout_s):
                    raise LoadTimeoutError("the bytes did not arrive within the time allowed")
            if not free:
                return None
            stop = next(n for n in range(free[0] + 1, blocks.stop + 1) if n not in free)
            self._under_way.update(range(free[0], stop))
            return range(free[0], stop)

    @contextmanager
    def _fetching(self, run: range) -> Iterator[None]:
        try:
            yield
        finally:
            with self._changed:
                self._under_way.difference_update(run)
                self._changed.notify_all()

    @abstractmethod
    def _has(self, number: int) -> bool:
        """Whether a block is here. Called with the lock held."""

    @abstractmethod
    def _fetch(self, run: range, start: int, end: int, *, shown: bool) -> None:
        """Have these blocks, bytes `start` to `end`, brought."""

    @abstractmethod
    def read_into(self, offset: int, target: memoryview) -> int:
        """Fill `target` from `offset` on, with bytes of blocks that are here; how many.

        0 if they are not here (any more): `ensure` them again.
        """

    @abstractmethod
    def close(self) -> None:
        """Nothing is read any more. Harmless twice."""


class FileBlocks(Blocks):
    """Blocks that are read from the file into which the daemon writes them."""

    def __init__(self, wanted: Uri, origin: Origin, descriptor: int, size: int) -> None:
        super().__init__(wanted, origin, size)
        self._descriptor: int | None = descriptor
        # A bit for each block; of no other file than the one behind the descriptor.
        self._here = bytearray(-(-self.count // 8))

    def _has(self, number: int) -> bool:
        return bool(self._here[number >> 3] >> (number & 7) & 1)

    def _fetch(self, run: range, start: int, end: int, *, shown: bool) -> None:
        opened = open_range(self._wanted, start, end, self._origin, shown=shown)
        if opened is None:
            raise LoadFileError("the settings name another daemon now", hint="open the file again")
        descriptor, size = opened
        if size != self.size:
            os.close(descriptor)
            raise DaemonProtocolError("the daemon handed over a file of another size")
        with self._changed:
            self._adopt(descriptor)
            for number in run:
                self._here[number >> 3] |= 1 << (number & 7)

    def _adopt(self, descriptor: int) -> None:
        """Read from this file from now on: it is the newest."""
        kept = self._descriptor
        if kept is None or os.path.sameopenfile(kept, descriptor):
            os.close(descriptor)
        else:
            # The blob was stored otherwise meanwhile, or its download began anew.
            self._here = bytearray(len(self._here))
            self._descriptor = descriptor
            os.close(kept)

    def read_into(self, offset: int, target: memoryview) -> int:
        blocks = range(offset // CHUNK_BYTES, -(-(offset + len(target)) // CHUNK_BYTES))
        with self._changed:
            if self._descriptor is None:
                raise ValueError("the file is closed")
            # Not so if another thread has just been handed another file.
            if not all(map(self._has, blocks)):
                return 0
            count = os.preadv(self._descriptor, [target], offset)
        if not count:
            raise LoadFileError("the file became shorter while it was read", hint="try again")
        return count

    def close(self) -> None:
        with self._changed:
            descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


class SentBlocks(Blocks):
    """Blocks that came over HTTP, of which the last ones are kept."""

    run_max = ahead_max = OPENED_AHEAD_SENT_BLOCKS_MAX

    def __init__(self, wanted: Uri, origin: Origin, size: int) -> None:
        super().__init__(wanted, origin, size)
        self._data: OrderedDict[int, bytes] = OrderedDict()

    def _has(self, number: int) -> bool:
        return number in self._data

    def _fetch(self, run: range, start: int, end: int, *, shown: bool) -> None:
        data = fetch_range(self._wanted, start, end, self._origin)
        with self._changed:
            for number in run:
                at = (number - run.start) * CHUNK_BYTES
                self._data[number] = data[at : at + CHUNK_BYTES]
            while len(self._data) > OPENED_BLOCKS_MAX + 2 * self.ahead_max:
                self._data.popitem(last=False)

    def read_into(self, offset: int, target: memoryview) -> int:
        filled = 0
        while filled < len(target):
            number, at = divmod(offset + filled, CHUNK_BYTES)
            with self._changed:
                block = self._data.get(number)
                if block is None:
                    break
                self._data.move_to_end(number)
            piece = memoryview(block)[at : at + len(target) - filled]
            target[filled : filled + len(piece)] = piece
            filled += len(piece)
        return filled

    def close(self) -> None:
        with self._changed:
            self._data.clear()
