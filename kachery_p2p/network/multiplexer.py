"""Many streams on one secure channel, each with a receive window that is enforced.

libp2p's own yamux cannot be bounded from outside: it buffers whatever a peer sends
past its window, a write that is cancelled half-way leaves the channel's cipher out of
step, and a writer gives up when its reader pauses five seconds. This one speaks the
same bytes (`yamux`), and these rules hold by construction:

- A peer that sends more than a stream's window is cut off at the header of that frame.
- The windows of all streams of a connection together never exceed
  CONNECTION_BUFFER_BYTES_MAX, nor one of them STREAM_BUFFER_BYTES_MAX.
- One task writes. What streams send waits in a bounded outbox, so a cancelled `send`
  leaves no half frame behind; `close` and `reset` never wait.
- What arrives for a stream that is gone is dropped, and bounded by what its window allowed.
- Until the peer is trusted it gets few streams, small buffers and no growing windows.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import trio

from kachery_p2p.errors import PeerGoneError, ProtocolError
from kachery_p2p.limits import (
    CONNECTION_BUFFER_BYTES_MAX,
    FRAMES_TOGETHER_S,
    OUTBOX_BYTES_MAX,
    OUTBOX_FRAMES_MAX,
    STREAMS_PER_PEER_MAX,
    UNPROVEN_BUFFER_BYTES_MAX,
)
from kachery_p2p.network import yamux
from kachery_p2p.network.muxed_stream import PAYLOAD_BYTES_MAX, MuxedStream

# A batch fills one noise message.
BATCH_BYTES_MAX = PAYLOAD_BYTES_MAX + yamux.HEADER.size


class SecureChannel(Protocol):
    """An encrypted, authenticated byte stream, such as libp2p's noise session."""

    async def read(self, n: int | None = None) -> bytes: ...

    async def write(self, data: bytes) -> None: ...

    def write_now(self, data: bytes) -> bool:
        """Write what need not be waited for; False if some is left, which `flush` writes.

        Not while anything is being written.
        """

    async def flush(self) -> None: ...


class Multiplexer:
    """All streams of one connection. `run` it until the connection ends.

    `accept` is told of each stream that the peer opens, and answers whether to keep it.
    """

    def __init__(
        self, channel: SecureChannel, *, outgoing: bool, accept: Callable[[MuxedStream], bool]
    ) -> None:
        self._channel = channel
        self._accept = accept
        self._streams: dict[int, MuxedStream] = {}
        self._next_number = 1 if outgoing else 2
        self._opened = 0
        # What the windows of streams that are gone still allowed the peer to send.
        self._stray_bytes_max = 0
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._posted = trio.Event()
        # The writer waits for something to be posted.
        self._is_idle = False
        self._wrote_at = 0.0
        self._taken = trio.Event()
        self._over: str | None = None
        self.trusted = False
        self.buffered = 0
        self.windows = 0

    async def run(self) -> None:
        """Carry frames until the channel ends or the peer breaks a rule, then lose every stream.

        Returns when the peer ended the connection, and raises what broke it otherwise.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_frames)
                await self._read_frames()
                nursery.cancel_scope.cancel()
        finally:
            self._over = "the connection to the peer ended"
            for stream in list(self._streams.values()):
                stream.lose(self._over)
            self._outbox.clear()
            self._outbox_bytes = 0
            self._taken.set()

    async def open(self) -> MuxedStream:
        """A new stream. Waits while STREAMS_PER_PEER_MAX of ours are open."""
        await trio.lowlevel.checkpoint()
        while self._over is None and not self._may_open():
            await self.room()
        if self._over is not None:
            raise PeerGoneError(self._over)
        stream = self._add(self._next_number)
        self._next_number += 2
        self._opened += 1
        self.post(yamux.frame(yamux.WINDOW_UPDATE, yamux.SYN, stream.number, 0))
        return stream

    async def leave(self) -> None:
        """Say goodbye, and wait until the channel has taken everything that was posted."""
        self.post(yamux.frame(yamux.GO_AWAY, 0, 0, 0))
        while self._over is None and self._outbox_bytes:
            await self.room()

    # --- for the streams ------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        return self._outbox_bytes < OUTBOX_BYTES_MAX and len(self._outbox) < OUTBOX_FRAMES_MAX // 2

    async def room(self) -> None:
        """Wait until something left the outbox, a stream ended or the connection did."""
        self._taken = trio.Event() if self._taken.is_set() else self._taken
        await self._taken.wait()

    @property
    def window_room(self) -> int:
        """How much all windows together may still grow."""
        # Half is kept for new streams: STREAMS_PER_PEER_MAX first windows are 16 MiB.
        return CONNECTION_BUFFER_BYTES_MAX // 2 - self.windows if self.trusted else 0

    @property
    def has_window(self) -> bool:
        """Whether one more stream may have its first window."""
        return self.windows + yamux.WINDOW_BYTES_INITIAL <= CONNECTION_BUFFER_BYTES_MAX

    def post(self, frame: bytes) -> None:
        if self._over is None:
            self._outbox.append(frame)
            self._outbox_bytes += len(frame)
            self._posted.set()

    def post_now(self, frame: bytes) -> None:
        """Post a frame that need not wait for the writer's turn if nothing is before it."""
        now = time.perf_counter()
        # Of several that come at once all but the first share a packet.
        is_first = now >= self._wrote_at + FRAMES_TOGETHER_S
        if not (is_first and self._is_idle) or self._outbox or self._over is not None:
            self.post(frame)
            return
        self._wrote_at = now
        if not self._channel.write_now(frame):
            self._is_idle = False
            self._posted.set()

    def forget(self, stream: MuxedStream) -> None:
        if self._streams.pop(stream.number, None) is not None:
            self._stray_bytes_max += stream.window_left
            self.windows -= stream.window_size
            self._opened -= self._is_ours(stream.number)
            self._taken.set()

    # --- inside ---------------------------------------------------------------------------

    def _may_open(self) -> bool:
        return self._opened < STREAMS_PER_PEER_MAX and self.has_room and self.has_window

    def _is_ours(self, number: int) -> bool:
        return number % 2 == self._next_number % 2

    def _add(self, number: int) -> MuxedStream:
        stream = MuxedStream(self, number)
        self._streams[number] = stream
        self.windows += stream.window_size
        return stream

    async def _write_frames(self) -> None:
        while True:
            while not self._outbox:
                self._posted = trio.Event()
                self._is_idle = True
                await self._posted.wait()
                self._is_idle = False
                await self._channel.flush()
            batch = [self._outbox.popleft()]
            size = len(batch[0])
            while self._outbox and size + len(self._outbox[0]) <= BATCH_BYTES_MAX:
                batch.append(self._outbox.popleft())
                size += len(batch[-1])
            await self._channel.write(b"".join(batch))
            self._outbox_bytes -= size
            self._taken.set()

    async def _read_frames(self) -> None:
        frames = yamux.FrameReader()
        while data := await self._channel.read():
            for piece in frames.feed(data):
                if piece.kind == yamux.GO_AWAY:
                    return
                if piece.kind == yamux.PING:
                    self._answer_ping(piece)
                else:
                    self._take(piece)

    def _answer_ping(self, piece: yamux.Piece) -> None:
        if piece.flags & yamux.SYN:
            self._answer(yamux.frame(yamux.PING, yamux.ACK, 0, piece.length))

    def _answer(self, frame: bytes) -> None:
        # Answers are not held back by the outbox's room, so a peer that makes us answer
        # without reading the answers is cut off instead.
        if len(self._outbox) > OUTBOX_FRAMES_MAX:
            raise ProtocolError("a peer does not read the answers it asks for")
        self.post(frame)

    def _take(self, piece: yamux.Piece) -> None:
        if piece.first and piece.flags & yamux.SYN:
            self._opened_by_peer(piece.stream)
        stream = self._streams.get(piece.stream)
        if stream is None:
            self._take_stray(piece)
            return
        if piece.kind == yamux.WINDOW_UPDATE:
            stream.add_credit(piece.length)
        else:
            self._take_data(stream, piece)
        if piece.last and piece.flags & yamux.RST:
            stream.lose_by_reset("the stream was reset by the peer")
        elif piece.last and piece.flags & yamux.FIN:
            stream.finish_receiving()

    def _take_stray(self, piece: yamux.Piece) -> None:
        """Pass over what was sent to a stream before the peer heard that it is gone."""
        if piece.kind == yamux.DATA and piece.first:
            self._stray_bytes_max -= piece.length
            if self._stray_bytes_max < 0:
                raise ProtocolError("a peer goes on sending to streams that are gone")

    def _take_data(self, stream: MuxedStream, piece: yamux.Piece) -> None:
        if piece.first:
            stream.admit_frame(piece.length)
        bytes_max = CONNECTION_BUFFER_BYTES_MAX if self.trusted else UNPROVEN_BUFFER_BYTES_MAX
        if self.buffered + len(piece.payload) > bytes_max:
            raise ProtocolError("a peer sent more than a connection may hold unread")
        stream.received(piece.payload)

    def _opened_by_peer(self, number: int) -> None:
        if self._is_ours(number) or number == 0 or number in self._streams:
            raise ProtocolError("a peer opened a stream under a number that is not free")
        stream = self._add(number)
        self._answer(yamux.frame(yamux.WINDOW_UPDATE, yamux.ACK, number, 0))
        if self.windows > CONNECTION_BUFFER_BYTES_MAX or not self._accept(stream):
            stream.reset()
