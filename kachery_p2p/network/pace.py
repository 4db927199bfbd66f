"""The pace of a node: how much it sends and receives, and in whose turn.

One `Gate` for each direction, for both planes and all peers. Threads (bulk connections)
and tasks of trio (data streams) ask it through a `Lane` of their own; who decides is pure
(`pace_turns`, `pace_bucket`). Without a limit a turn is a whole chunk, and is waited for
only if the same peer has another one in hand. Under a limit it is a small piece, and
pieces of all peers are dealt out as the limit allows. What is slowed down is not lost: a
sender waits, a receiver reads later, and then asks for less.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio

from kachery_p2p.errors import PeerGoneError
from kachery_p2p.limits import (
    BULK_PAYLOAD_BYTES_MAX,
    RATE_PIECE_BYTES_MIN,
    RATE_PIECE_S,
    TURN_LOOK_S,
)
from kachery_p2p.network.pace_bucket import Meter, TokenBucket
from kachery_p2p.network.pace_turns import Turn, Turns


class Gate:
    """One direction of a node's line, with at most `limit` bytes a second; None: no limit.

    `clock` tells the time in any thread. All methods may be called from any thread.
    """

    def __init__(
        self, limit: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit = limit
        self.piece_bytes = BULK_PAYLOAD_BYTES_MAX
        self._bucket: TokenBucket | None = None
        if limit is not None:
            in_time = max(int(limit * RATE_PIECE_S), RATE_PIECE_BYTES_MIN)
            self.piece_bytes = min(in_time, self.piece_bytes)
            self._bucket = TokenBucket(limit)
        self._clock = clock
        self._lock = threading.Lock()
        self._turns = Turns(self.piece_bytes)
        self._meter = Meter()
        # How to wake who waits for a turn.
        self._wakers: dict[Turn, Callable[[], None]] = {}

    def lane(self, peer: str) -> Lane:
        """A connection's or stream's way through."""
        return Lane(self, peer)

    @property
    def byte_count(self) -> int:
        """What has moved in all."""
        return self._meter.byte_count

    @property
    def rate(self) -> float:
        """Bytes a second, just now."""
        with self._lock:
            return self._meter.rate(self._clock())

    def _note(self, byte_count: int) -> None:
        with self._lock:
            self._meter.add(byte_count, self._clock())

    def _ask(self, turn: Turn) -> bool:
        """True if it may begin at once."""
        with self._lock:
            self._turns.ask(turn)
            self._grant()
            return turn.granted_at is not None

    def _end(self, turn: Turn) -> None:
        with self._lock:
            self._turns.end(turn)
            self._wakers.pop(turn, None)
            if self._turns.waiting:
                self._grant()

    def _wait_s(self, turn: Turn, wake: Callable[[], None]) -> float | None:
        """Seconds after which to ask again, unless woken before; None: the turn has begun."""
        with self._lock:
            self._grant()
            if turn.granted_at is not None:
                return None
            self._wakers[turn] = wake
            now = self._clock()
            paid_s = self._bucket.wait_s(now) if self._bucket is not None else 0.0
            # If something may go, this one waits for an earlier turn of its own peer.
            return min(paid_s or self._turns.wait_s(now), TURN_LOOK_S)

    def _grant(self) -> None:
        """Begin every turn that may begin now."""
        now = self._clock()
        while self._turns.waiting and (self._bucket is None or not self._bucket.wait_s(now)):
            turn = self._turns.next(now)
            if turn is None:
                return
            if self._bucket is not None:
                self._bucket.take(turn.byte_count, now)
            wake = self._wakers.pop(turn, None)
            if wake is not None:
                wake()


class Lane:
    """The way of one connection or stream through a gate. In one thread, or task, at a time."""

    def __init__(self, gate: Gate, peer: str) -> None:
        self._gate = gate
        self._peer = peer
        self._closed = False
        self._wake: Callable[[], None] | None = None

    @property
    def limited(self) -> bool:
        return self._gate.limit is not None

    @property
    def piece_bytes(self) -> int:
        """What one turn may carry."""
        return self._gate.piece_bytes

    def close(self) -> None:
        """Nobody gets a turn here any more; who waits for one is woken. From any thread."""
        self._closed = True
        wake = self._wake
        if wake is not None:
            wake()

    # --- in threads -------------------------------------------------------------------------------

    def turn(self, byte_count: int, *, urgent: bool = False) -> _InTurn:
        """Inside, so many bytes may be moved. Raises PeerGoneError once the lane is closed."""
        return _InTurn(self, Turn(self._peer, byte_count, urgent=urgent))

    def _wait(self, turn: Turn) -> None:
        woken = threading.Event()
        self._wake = woken.set
        try:
            while (wait_s := self._gate._wait_s(turn, woken.set)) is not None:
                woken.wait(wait_s)
                self._check()
        finally:
            self._wake = None

    def _check(self) -> None:
        if self._closed:
            raise PeerGoneError("the bulk connection was closed")

    def chunk(self, *, urgent: bool = False) -> contextlib.AbstractContextManager[None]:
        """Inside, a chunk is read and sent, by `move`. Without a limit this is its turn."""
        if self.limited:
            return contextlib.nullcontext()
        return self.turn(self.piece_bytes, urgent=urgent)

    def move(
        self, view: memoryview, do: Callable[[memoryview], None], *, urgent: bool = False
    ) -> None:
        """`do` it with all of `view`: under a limit piece by piece, each in its turn."""
        if not self.limited:
            do(view)
            self.note(len(view))
            return
        for at in range(0, len(view), self.piece_bytes):
            piece = view[at : at + self.piece_bytes]
            with self.turn(len(piece), urgent=urgent):
                do(piece)
            self.note(len(piece))

    def note(self, byte_count: int) -> None:
        """So many bytes have moved."""
        self._gate._note(byte_count)

    # --- in trio ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def turn_async(self, byte_count: int, *, urgent: bool = False) -> AsyncIterator[None]:
        """As `turn`."""
        turn = Turn(self._peer, byte_count, urgent=urgent)
        try:
            if not self._gate._ask(turn):
                await self._wait_async(turn)
            yield
        finally:
            self._gate._end(turn)

    async def _wait_async(self, turn: Turn) -> None:
        token = trio.lowlevel.current_trio_token()
        while True:
            woken = trio.Event()

            def wake(woken: trio.Event = woken) -> None:
                # The loop may have ended, and with it whoever waited.
                with contextlib.suppress(trio.RunFinishedError):
                    token.run_sync_soon(woken.set)

            wait_s = self._gate._wait_s(turn, wake)
            if wait_s is None:
                return
            with trio.move_on_after(wait_s):
                await woken.wait()


class _InTurn:
    """A turn in a thread. (contextlib's decorator would double what a chunk costs.)"""

    __slots__ = ("_lane", "_turn")

    def __init__(self, lane: Lane, turn: Turn) -> None:
        self._lane = lane
        self._turn = turn

    def __enter__(self) -> None:
        try:
            if not self._lane._gate._ask(self._turn):
                self._lane._wait(self._turn)
        except BaseException:
            self._lane._gate._end(self._turn)
            raise

    def __exit__(self, *_: object) -> None:
        self._lane._gate._end(self._turn)


class Pace(NamedTuple):
    """Both directions of a node's line."""

    up: Gate
    down: Gate

    @classmethod
    def limited(
        cls,
        up: int | None = None,
        down: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Pace:
        """With these limits, in bytes a second; None or 0: none."""
        return cls(Gate(up or None, clock), Gate(down or None, clock))
