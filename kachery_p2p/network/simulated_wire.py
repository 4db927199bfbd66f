"""The wires of the simulated world: bytes that take their time, or are held up.

A pipe is one direction of one stream. Each segment gets its time of arrival when it is
sent, from the path's delay, jitter, loss and bandwidth, drawn from a random number
generator of the pipe's own: what one pipe draws does not depend on the order in which
tasks happen to run. A reliable stream shows loss as lateness (retransmission), so that
is what it is here.
"""

from __future__ import annotations

import math
from collections import deque
from random import Random
from typing import NamedTuple
from weakref import WeakSet

import trio

from kachery_p2p.errors import PeerGoneError

SEGMENT_BYTES_MAX = 64 << 10
# Sent and not yet read, as yamux's first window has it.
BUFFER_BYTES_MAX = 256 << 10
RETRANSMIT_S = 0.2
RETRANSMITS_MAX = 6


class Path(NamedTuple):
    """What lies between two nodes, one way."""

    delay_s: float = 0.000_5
    jitter_s: float = 0.0
    loss: float = 0.0
    bytes_per_s: float = math.inf

    def lateness_s(self, random: Random) -> float:
        """How long a segment is under way, its retransmissions included."""
        late = self.delay_s + self.jitter_s * random.random()
        wait = RETRANSMIT_S
        for _ in range(RETRANSMITS_MAX):
            if self.loss <= random.random():
                break
            late += wait
            wait *= 2
        return late


class Direction:
    """From one node to another: the path, whether it is cut, and when it is free again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cut = False
        self.free_at = 0.0
        self.pipes: WeakSet[Pipe] = WeakSet()
        self._changed = trio.Event()

    def set_cut(self, cut: bool) -> None:
        self.cut = cut
        self._changed.set()
        self._changed = trio.Event()
        for pipe in list(self.pipes) if not cut else []:
            pipe.healed()

    def arrival(self, size: int, random: Random) -> float:
        """When `size` bytes sent now have arrived."""
        now = trio.current_time()
        self.free_at = max(now, self.free_at) + size / self.path.bytes_per_s
        return self.free_at + self.path.lateness_s(random)

    async def travel(self, random: Random) -> None:
        """Wait as long as a small message is under way, a cut included."""
        await trio.sleep_until(self.arrival(0, random))
        while self.cut:
            await self._changed.wait()
            await trio.sleep(self.path.lateness_s(random))


class Pipe:
    """One direction of one stream."""

    def __init__(self, direction: Direction, random: Random) -> None:
        self._direction = direction
        self._random = random
        self._segments: deque[tuple[float, bytes]] = deque()
        self._unread = 0
        self._ended_at: float | None = None
        self._gone: str | None = None
        self._stopped: str | None = None
        self._changed = trio.Event()
        direction.pipes.add(self)

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        for at in range(0, len(data), SEGMENT_BYTES_MAX):
            while self._stopped is None and self._unread >= BUFFER_BYTES_MAX:
                await self._changed.wait()
            self._refuse_if_closed()
            part = bytes(data[at : at + SEGMENT_BYTES_MAX])
            self._segments.append((self._next_arrival(len(part)), part))
            self._unread += len(part)
            self._touch()
        self._refuse_if_closed()

    def close(self) -> None:
        if self._ended_at is None and self._stopped is None:
            self._ended_at = self._next_arrival(0)
            self._touch()

    async def receive(self, bytes_max: int) -> bytes:
        await trio.lowlevel.checkpoint()
        while True:
            due = self._segments[0][0] if self._segments else self._ended_at
            now = trio.current_time()
            if due is not None and due <= now and not self._direction.cut:
                return self._take(bytes_max)
            if self._gone is not None:
                raise PeerGoneError(self._gone)
            await self._wait(due - now if due is not None and due > now else math.inf)

    def stop_sending(self, why: str) -> None:
        """The sending side is over; what it has sent is still under way."""
        self._stopped = self._stopped or why
        self._touch()

    def stop_receiving(self, why: str, *, keep: bool = False) -> None:
        """The receiving side is over; `keep` what has arrived, and all if its end was sent."""
        if self._gone is None and not (keep and self._ended_at is not None):
            self._gone = why
            self._ended_at = None
            now = trio.current_time()
            self._segments = deque(s for s in self._segments if keep and s[0] <= now)
        self._touch()

    @property
    def closed(self) -> bool:
        return self._ended_at is not None

    def healed(self) -> None:
        """The path is whole again: what was held up is sent anew, in order."""
        now = trio.current_time()
        late = now + self._direction.path.lateness_s(self._random)
        self._segments = deque((at if at > now else late, part) for at, part in self._segments)
        if self._ended_at is not None and self._ended_at <= now:
            self._ended_at = late
        self._touch()

    def _refuse_if_closed(self) -> None:
        if self._stopped is not None:
            raise PeerGoneError(self._stopped)
        if self._ended_at is not None:
            raise PeerGoneError("the stream was closed for sending by this node")

    def _next_arrival(self, size: int) -> float:
        last = self._segments[-1][0] if self._segments else 0.0
        return max(last, self._direction.arrival(size, self._random))

    def _take(self, bytes_max: int) -> bytes:
        if not self._segments:
            return b""
        due, part = self._segments.popleft()
        if len(part) > bytes_max:
            self._segments.appendleft((due, part[bytes_max:]))
            part = part[:bytes_max]
        self._unread -= len(part)
        self._touch()
        return part

    async def _wait(self, seconds_max: float) -> None:
        with trio.move_on_after(seconds_max):
            await self._changed.wait()

    def _touch(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
