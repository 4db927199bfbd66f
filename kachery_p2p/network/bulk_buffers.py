"""Buffers for chunks under way, so many and no more, used again and again.

A transfer at full speed would otherwise allocate, and the kernel clear, a GiB a second. All
methods may be called from any thread.
"""

from __future__ import annotations

import threading
import time
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

from kachery_p2p.errors import PeerBusyError, PeerGoneError
from kachery_p2p.limits import (
    BULK_BUFFER_S_MAX,
    BULK_BUFFERS_KEPT_MAX,
    BULK_BUFFERS_MAX,
    BULK_BUFFERS_PER_CONNECTION_MAX,
)
from kachery_p2p.wire.bulk_messages import PIECE_HEADER_BYTES
from kachery_p2p.wire.sealed import SEALED_BYTES_MAX

_PAGE_BYTES = 4096
# Where the payload of a DATA frame begins in a buffer, so that the chunk in it begins with a page:
# the kernel copies a chunk to and from a file faster then (3 % of all processor time, measured).
PAYLOAD_AT = _PAGE_BYTES - PIECE_HEADER_BYTES


class Buffers:
    """A number of buffers, each of which fits one whole frame, or its payload at PAYLOAD_AT."""

    def __init__(
        self, count_max: int = BULK_BUFFERS_MAX, kept_max: int = BULK_BUFFERS_KEPT_MAX
    ) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        # How many wait for one: telling nobody costs more than giving a buffer back.
        self._waiting = 0
        self._left = count_max
        self._kept_max = kept_max
        self._free: list[mmap] = []

    def share(self, count_max: int = BULK_BUFFERS_PER_CONNECTION_MAX) -> Share:
        """A connection's part of them."""
        return Share(self, count_max)

    @property
    def left(self) -> int:
        """How many nobody holds."""
        return self._left


class Share:
    """What one connection may hold of the buffers."""

    def __init__(self, buffers: Buffers, count_max: int) -> None:
        self._buffers = buffers
        self._count_max = count_max
        self._held = 0
        self._closed = False

    def take(self, count: int, wait_s: float = BULK_BUFFER_S_MAX) -> list[mmap]:
        """`count` buffers at once, so that nobody holds one and waits for the next.

        What they hold is anybody's. Raises PeerBusyError when there are none for
        `wait_s`, PeerGoneError once the share is closed.
        """
        assert count <= self._count_max
        pool = self._buffers
        with pool._lock:
            if not self._room_for(count):
                self._wait_for_room(count, wait_s)
            if self._closed:
                raise PeerGoneError("the bulk connection was closed")
            self._held += count
            pool._left -= count
            return [pool._free.pop() if pool._free else self._new() for _ in range(count)]

    def _wait_for_room(self, count: int, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        pool = self._buffers
        pool._waiting += 1
        try:
            while not self._closed and not self._room_for(count):
                left = deadline - time.monotonic()
                if left <= 0 or not pool._changed.wait(left):
                    raise PeerBusyError("this computer cannot keep up: no buffer became free")
        finally:
            pool._waiting -= 1

    def _room_for(self, count: int) -> bool:
        return count <= self._buffers._left and self._held + count <= self._count_max

    @staticmethod
    def _new() -> mmap:
        return mmap(-1, _PAGE_BYTES + SEALED_BYTES_MAX, flags=MAP_PRIVATE | MAP_ANONYMOUS)

    def give_back(self, buffer: mmap) -> None:
        """The buffer is nobody's any more; also after `close`."""
        pool = self._buffers
        with pool._lock:
            self._held -= 1
            pool._left += 1
            if len(pool._free) < pool._kept_max:
                pool._free.append(buffer)
            if pool._waiting:
                pool._changed.notify_all()

    def close(self) -> None:
        """Wake whoever waits: no buffer is given out any more."""
        with self._buffers._changed:
            self._closed = True
            self._buffers._changed.notify_all()


class Piece:
    """A chunk as it arrived, in a buffer that is its taker's until `release`.

    The connection receives on meanwhile, as long as it has other buffers; so what is
    done with a piece (verify, write, hash) overlaps with receiving the next ones.
    """

    __slots__ = ("_buffer", "_share", "data", "number")

    def __init__(self, number: int, data: memoryview, buffer: mmap, share: Share) -> None:
        self.number = number
        self.data = data
        self._buffer: mmap | None = buffer
        self._share = share

    def release(self) -> None:
        """Give the buffer back, from any thread; `data` cannot be read any more. Harmless twice.

        Views made of `data` have to be released before.
        """
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            self.data.release()
            self._share.give_back(buffer)
