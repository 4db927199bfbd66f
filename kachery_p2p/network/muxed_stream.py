"""One stream of a multiplexer: its buffer, its two windows, and how far each side has closed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from kachery_p2p.errors import PeerGoneError, ProtocolError
from kachery_p2p.limits import STREAM_BUFFER_BYTES_MAX, WINDOW_GROWTH_S
from kachery_p2p.network import yamux

if TYPE_CHECKING:
    from kachery_p2p.network.multiplexer import Multiplexer

# With its header it fills one noise message (65,535 bytes less its 16-byte tag).
PAYLOAD_BYTES_MAX = 65_519 - yamux.HEADER.size


class MuxedStream:
    """One stream of a Multiplexer: a buffer, two windows, and how far each side has closed."""

    def __init__(self, mux: Multiplexer, number: int) -> None:
        self.number = number
        self._mux = mux
        self._buffer = bytearray()
        self._window_size = yamux.WINDOW_BYTES_INITIAL
        self._window_left = yamux.WINDOW_BYTES_INITIAL
        self._taken = 0
        self._grown_at = trio.current_time()
        self._credit = yamux.WINDOW_BYTES_INITIAL
        self._sent_all = False
        self._received_all = False
        self._gone: str | None = None
        self._changed = trio.Event()

    # --- for the owner of the stream ------------------------------------------------------

    async def send(self, data: bytes) -> None:
        """Hand over every byte, waiting for the peer's window and for the outbox."""
        await trio.lowlevel.checkpoint_if_cancelled()
        at = 0
        while at < len(data):
            await self._may_send()
            part = bytes(data[at : at + min(self._credit, PAYLOAD_BYTES_MAX)])
            self._credit -= len(part)
            self._mux.post(yamux.data_frame(self.number, part))
            at += len(part)
        # Not before it was posted: a small message would leave a turn of the loop later.
        await trio.lowlevel.cancel_shielded_checkpoint()
        self._refuse_if_closed()

    def send_now(self, data: bytes) -> bool:
        """Hand over every byte if nothing has to be waited for; False if none was."""
        is_open = self._gone is None and not self._sent_all and self._mux.has_room
        if not is_open or len(data) > min(self._credit, PAYLOAD_BYTES_MAX):
            return False
        self._credit -= len(data)
        self._mux.post_now(yamux.data_frame(self.number, data))
        return True

    async def receive(self, bytes_max: int) -> bytes:
        """1 to `bytes_max` bytes, or b"" after the peer's last. Cancelled, it loses nothing."""
        await trio.lowlevel.checkpoint()
        while not self._buffer:
            if self._received_all:
                return b""
            if self._gone is not None:
                raise PeerGoneError(self._gone)
            await self._change()
        data = bytes(memoryview(self._buffer)[:bytes_max])
        del self._buffer[: len(data)]
        self._return_credit(len(data))
        return data

    def close(self) -> None:
        """Send nothing more."""
        if not self._sent_all and self._gone is None:
            self._sent_all = True
            self._mux.post(yamux.frame(yamux.WINDOW_UPDATE, yamux.FIN, self.number, 0))
            self._forget_if_over()

    def reset(self) -> None:
        """Drop the stream and its buffer now, and tell the peer."""
        if self._gone is None and not (self._sent_all and self._received_all):
            self._mux.post(yamux.frame(yamux.WINDOW_UPDATE, yamux.RST, self.number, 0))
        self._received_all = False
        self.lose_by_reset("the stream was reset by this node")

    # --- for the multiplexer --------------------------------------------------------------

    def admit_frame(self, length: int) -> None:
        """Raises ProtocolError if the peer may not send `length` bytes more."""
        if length > self._window_left or (length and self._received_all):
            raise ProtocolError("a peer sent more than the window of a stream")
        self._window_left -= length

    def received(self, payload: bytes) -> None:
        self._buffer += payload
        self._mux.buffered += len(payload)
        self._changed.set()

    def finish_receiving(self) -> None:
        self._received_all = True
        self._changed.set()
        self._forget_if_over()

    def add_credit(self, length: int) -> None:
        self._credit += length
        self._changed.set()

    def lose(self, why: str) -> None:
        """The stream is over with its connection: what has arrived stays readable."""
        self._gone = self._gone or why
        self._changed.set()
        self._mux.forget(self)

    def lose_by_reset(self, why: str) -> None:
        """The stream is over, and with it what has arrived, unless all had arrived."""
        if not self._received_all:
            self._drop_buffer()
        self.lose(why)

    @property
    def window_size(self) -> int:
        return self._window_size

    @property
    def window_left(self) -> int:
        """What the peer may still send."""
        return self._window_left

    # --- inside ---------------------------------------------------------------------------

    async def _change(self) -> None:
        self._changed = trio.Event() if self._changed.is_set() else self._changed
        await self._changed.wait()

    async def _may_send(self) -> None:
        while True:
            self._refuse_if_closed()
            if not self._credit:
                await self._change()
            elif not self._mux.has_room:
                await self._mux.room()
            else:
                return

    def _refuse_if_closed(self) -> None:
        if self._gone is not None:
            raise PeerGoneError(self._gone)
        if self._sent_all:
            raise PeerGoneError("the stream was closed for sending by this node")

    def _return_credit(self, taken: int) -> None:
        self._mux.buffered -= taken
        self._taken += taken
        if self._received_all or self._gone is not None or self._taken * 2 < self._window_size:
            return
        credit = self._taken + self._growth()
        self._taken = 0
        self._window_left += credit
        self._mux.post(yamux.frame(yamux.WINDOW_UPDATE, 0, self.number, credit))

    def _growth(self) -> int:
        """Double the window of a reader that empties it fast: the path is long, or fat."""
        now = trio.current_time()
        quick = now - self._grown_at < WINDOW_GROWTH_S
        self._grown_at = now
        room = min(STREAM_BUFFER_BYTES_MAX - self._window_size, self._mux.window_room)
        growth = max(0, min(self._window_size, room)) if quick else 0
        self._window_size += growth
        self._mux.windows += growth
        return growth

    def _drop_buffer(self) -> None:
        self._mux.buffered -= len(self._buffer)
        self._buffer.clear()

    def _forget_if_over(self) -> None:
        if self._sent_all and self._received_all:
            self._mux.forget(self)
