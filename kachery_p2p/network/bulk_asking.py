"""The asking end of a bulk connection: requests go out, a thread hands the chunks on.

The thread receives a frame, opens it, and calls the request's `sink` with the chunk;
what the sink does not do itself it may leave to other threads, for the chunk's buffer is
its own until released. Only what opened reaches a sink, only chunks that were asked for,
each once and in order.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from mmap import mmap
from typing import Protocol

import trio

from kachery_p2p.errors import (
    PeerError,
    PeerGoneError,
    PeerTimeoutError,
    ProtocolError,
)
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    BULK_PIPELINED,
    BULK_RANGE_CHUNKS,
    BULK_REQUESTS_MAX,
    STREAM_IDLE_S_MAX,
)
from kachery_p2p.network.bulk_buffers import PAYLOAD_AT, Piece, Share
from kachery_p2p.network.bulk_greeting import Greeted
from kachery_p2p.network.bulk_socket import BulkSocket
from kachery_p2p.network.failures import error_of
from kachery_p2p.network.pace import Lane
from kachery_p2p.wire.batches import BulkBatch, DueBatch, Told
from kachery_p2p.wire.bulk_messages import (
    CANCEL,
    DATA,
    END,
    REQUEST,
    REQUEST_NUMBER_MAX,
    URGENT,
    BulkRange,
    DueChunks,
    check_server_header,
    read_failure,
)
from kachery_p2p.wire.sealed import HEADER_BYTES, FrameHeader

log = logging.getLogger(__name__)

Sink = Callable[[Piece], None]
# Gets the pieces of a frame of a batch, whose bytes are there only until it returns.
BatchSink = Callable[[list[Told]], None]


class _Due(Protocol):
    """What of an answer has not come."""

    @property
    def may_end(self) -> bool: ...

    def receive(self, payload: memoryview) -> tuple[int, int]: ...


class _Asked:
    """A request whose END has not come."""

    def __init__(self, due: _Due, sink: Sink) -> None:
        self.due = due
        self.sink = sink
        self.urgent = False
        self.done = trio.Event()
        self.error: Exception | None = None
        # Nobody waits for it any more: what still comes is dropped.
        self.dropped = False
        self.in_sink = False
        self.left_sink = trio.Event()


class BulkConnection:
    """A connection to `peer` on which we ask for chunks."""

    # How many chunks are best asked for at once, and how many such requests keep it busy.
    range_chunks = BULK_RANGE_CHUNKS
    pipelined = BULK_PIPELINED

    def __init__(self, greeted: Greeted, wire: BulkSocket, share: Share, lane: Lane) -> None:
        self.peer: NodeId = greeted.ticket.peer
        self.bytes_received = 0
        self.closed = trio.Event()
        self._wire = wire
        self._share = share
        self._lane = lane
        self._sealer = greeted.sealer
        self._opener = greeted.opener
        self._requests_max = min(BULK_REQUESTS_MAX, greeted.requests_max)
        self._token = trio.lowlevel.current_trio_token()
        self._changed = trio.Event()
        self._sending = threading.Lock()
        # Guards what follows, which the thread and trio share.
        self._lock = threading.Lock()
        self._asked: dict[int, _Asked] = {}
        self._last_number = 0
        self._last_asked = time.monotonic()
        self._error: PeerError | None = None

    @property
    def usable(self) -> bool:
        """True while new requests may be made: it is open, and its keys are not nearly used up."""
        now = time.monotonic()
        retired = self._opener.retired(now) or self._sealer.retired(now)
        return self._error is None and not retired

    @property
    def error(self) -> PeerError | None:
        """Why it ended; None while it is open."""
        return self._error

    @property
    def idle(self) -> bool:
        """True if nothing is asked for."""
        return not self._asked

    @property
    def last_moved(self) -> float:
        """When (`time.monotonic`) bytes last came or went."""
        return self._wire.last_moved

    async def fetch(self, wanted: BulkRange, sink: Sink, *, urgent: bool = False) -> None:
        """Have `sink` called, in a thread, with each chunk of `wanted`, in order.

        Returns when all of them came. Of more than the peer takes at once (16) the later
        calls wait. `urgent` requests are served before others. After this has returned or
        raised, cancelled or not, the sink is not called again; pieces it kept stay its own
        until it releases them. A sink that raises ends the fetch with its exception, and
        must not have kept the piece.

        Raises PeerRefusedError, PeerBusyError or PeerError as the peer says;
        PeerTimeoutError, PeerGoneError and ProtocolError when the connection has ended.
        """
        await self._fetch(wanted.encode(), _Asked(DueChunks(wanted), sink), urgent)

    async def fetch_batch(self, wanted: BulkBatch, sink: BatchSink) -> None:
        """Have `sink` called, in a thread, with the pieces of each frame that answers `wanted`.

        The answer may end before all of them came; for the rest see `fetch`.
        """
        due = DueBatch(wanted)

        def take(piece: Piece) -> None:
            sink(due.pieces)
            piece.release()

        await self._fetch(wanted.encode(), _Asked(due, take), False)

    async def _fetch(self, payload: bytes, asked: _Asked, urgent: bool) -> None:
        asked.urgent = urgent
        number = await self._ask(asked, payload, URGENT if urgent else 0)
        try:
            await asked.done.wait()
        finally:
            with trio.CancelScope(shield=True):
                await self._leave(number, asked)
        if asked.error is not None:
            raise asked.error

    async def _ask(self, asked: _Asked, payload: bytes, flags: int) -> int:
        while True:
            with self._lock:
                if self._error is not None:
                    raise _copy(self._error)
                if len(self._asked) < self._requests_max:
                    number = self._enter(asked)
                    break
            await self._changed.wait()
        self._send(REQUEST, flags, number, payload)
        return number

    def _enter(self, asked: _Asked) -> int:
        if self._last_number == REQUEST_NUMBER_MAX:
            raise PeerGoneError("every request number of the bulk connection was used")
        self._last_number += 1
        self._asked[self._last_number] = asked
        self._last_asked = time.monotonic()
        return self._last_number

    async def _leave(self, number: int, asked: _Asked) -> None:
        """No chunk reaches the sink any more when this returns."""
        with self._lock:
            untold = not (asked.done.is_set() or asked.dropped)
            asked.dropped = True
            in_sink = asked.in_sink
        if untold:
            with contextlib.suppress(PeerError):
                self._send(CANCEL, 0, number, b"")
        if in_sink:
            await asked.left_sink.wait()

    def _send(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """Send a small frame, from any thread. Raises PeerError, and has then ended all."""
        try:
            with self._sending:
                frame = self._sealer.seal(kind, flags, number, payload, time.monotonic())
                self._wire.send_now(frame)
        except PeerError as error:
            self._fail(error)
            raise

    def _fail(self, error: PeerError) -> None:
        """End the connection for this reason, from any thread."""
        with self._lock:
            self._error = self._error or error
        self.shut()

    def shut(self) -> None:
        """End the connection: its thread ends soon. Harmless twice."""
        with self._lock:
            self._error = self._error or PeerGoneError("the bulk connection was closed")
        self._share.close()
        self._lane.close()
        self._wire.shut()

    # --- the thread ---------------------------------------------------------------------------

    def work(self) -> PeerError:
        """Receive until the connection ends; answers why it did. Runs in a thread."""
        try:
            header = memoryview(bytearray(HEADER_BYTES))
            while True:
                self._receive_frame(header)
        except PeerError as error:
            self._fail(error)
        except Exception:
            log.exception("a bulk connection with %s failed", self.peer[:16])
            self._fail(PeerError("failed at our side"))
        assert self._error is not None
        return self._error

    def ended(self) -> None:
        """Tell everybody who waits; called in trio when the thread is no more."""
        self.shut()
        assert self._error is not None
        with self._lock:
            asked, self._asked = self._asked, {}
        for one in asked.values():
            one.error = one.error or _copy(self._error)
            one.in_sink = False
            one.left_sink.set()
            one.done.set()
        self._wire.close()
        self._tell()
        self.closed.set()

    def _receive_frame(self, header: memoryview) -> None:
        received = self._wire.receive_some(header, whole=True)
        if not received:
            self._judge_silence()
            return
        self._wire.receive_all(header[received:])
        found = FrameHeader.decode(header)
        check_server_header(found)
        asked = self._asked_as(found.request)
        if found.kind == DATA:
            self._receive_chunk(found, header, asked)
        else:
            self._end_request(found, self._receive_small(found, header), asked)

    def _judge_silence(self) -> None:
        with self._lock:
            since = max(self._wire.last_moved, self._last_asked)
            waiting = bool(self._asked)
        silent_s = time.monotonic() - since
        if waiting and silent_s >= self._wire.stall_s:
            raise PeerTimeoutError(f"sent nothing for {self._wire.stall_s:g} s")
        if silent_s >= STREAM_IDLE_S_MAX:
            raise PeerGoneError("the bulk connection was idle for long")

    def _asked_as(self, number: int) -> _Asked:
        with self._lock:
            asked = self._asked.get(number)
        if asked is None:
            raise ProtocolError("a bulk frame for no request of ours")
        return asked

    def _receive_small(self, found: FrameHeader, header: memoryview) -> bytes:
        sealed = memoryview(bytearray(found.sealed_length))
        self._wire.receive_all(sealed)
        return self._opener.open(header, sealed, time.monotonic())

    def _receive_chunk(self, found: FrameHeader, header: memoryview, asked: _Asked) -> None:
        sealed, opened = self._share.take(2)
        try:
            piece = self._open_chunk(found, header, sealed, opened, asked)
        except BaseException:
            self._share.give_back(opened)
            raise
        finally:
            self._share.give_back(sealed)
        self._hand_on(found.request, asked, piece)

    def _open_chunk(
        self, found: FrameHeader, header: memoryview, sealed: mmap, opened: mmap, asked: _Asked
    ) -> Piece:
        received = memoryview(sealed)[: found.sealed_length]
        self._lane.move(received, self._wire.receive_all, urgent=asked.urgent)
        payload = memoryview(opened)[PAYLOAD_AT : PAYLOAD_AT + found.length]
        self._opener.open_into(header, received, payload, time.monotonic())
        number, begins = asked.due.receive(payload)
        self.bytes_received += found.length - begins
        return Piece(number, payload[begins:], opened, self._share)

    def _hand_on(self, number: int, asked: _Asked, piece: Piece) -> None:
        with self._lock:
            asked.in_sink = wanted = not asked.dropped
        if not wanted:
            piece.release()
            return
        try:
            asked.sink(piece)
        except Exception as error:
            piece.release()
            self._sink_failed(number, asked, error)
        finally:
            with self._lock:
                asked.in_sink = False
                awaited = asked.dropped
            if awaited:
                self._token.run_sync_soon(asked.left_sink.set)

    def _sink_failed(self, number: int, asked: _Asked, error: Exception) -> None:
        with self._lock:
            asked.error = error
            told, asked.dropped = asked.dropped, True
        self._token.run_sync_soon(asked.done.set)
        if not told:
            self._send(CANCEL, 0, number, b"")

    def _end_request(self, found: FrameHeader, payload: bytes, asked: _Asked) -> None:
        if found.kind == END:
            if not asked.due.may_end and not asked.dropped:
                raise ProtocolError("the end of an answer before all of its chunks")
        elif asked.error is None:
            asked.error = error_of(*read_failure(payload))
        with self._lock:
            del self._asked[found.request]
        self._token.run_sync_soon(self._settle, asked)

    def _settle(self, asked: _Asked) -> None:
        asked.done.set()
        self._tell()

    def _tell(self) -> None:
        """Wake those who wait for a place among the requests."""
        self._changed.set()
        self._changed = trio.Event()


def _copy(error: PeerError) -> PeerError:
    """For each who waits an exception of its own: a traceback belongs to one of them."""
    return type(error)(str(error), hint=error.hint)
