"""The serving end of a bulk connection: one thread reads requests and sends chunks.

While there is something to send, the thread looks for new requests and cancellations
between two chunks, without waiting; so who floods us with requests is read no faster than
it is served, and sending never waits for reading. The kernel's send buffer is what lets
reading the disk and encrypting overlap with sending.
"""

from __future__ import annotations

import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from mmap import mmap
from typing import Protocol

import trio

from kachery_p2p.content.manifests import chunk_count, chunk_length
from kachery_p2p.errors import PeerBusyError, PeerError, PeerGoneError, ProtocolError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    BATCH_PIECES_BYTES_MAX,
    BULK_REQUEST_BYTES_MAX,
    BULK_REQUESTS_MAX,
    BULK_SERVE_S_MAX,
    CHUNK_BYTES,
    STREAM_IDLE_S_MAX,
)
from kachery_p2p.network.bulk_buffers import PAYLOAD_AT, Share
from kachery_p2p.network.bulk_greeting import Greeted
from kachery_p2p.network.bulk_socket import BulkSocket
from kachery_p2p.network.failures import code_of
from kachery_p2p.network.pace import Lane
from kachery_p2p.wire.batches import BulkBatch
from kachery_p2p.wire.bulk_messages import (
    DATA,
    END,
    FAILURE,
    PIECE_HEADER_BYTES,
    REQUEST,
    URGENT,
    BulkRange,
    check_asker_header,
    encode_failure,
    read_request,
    write_piece_header,
)
from kachery_p2p.wire.messages import FAILED, REFUSED
from kachery_p2p.wire.sealed import HEADER_BYTES, OVERHEAD_BYTES, FrameHeader

log = logging.getLogger(__name__)

_READ_BYTES = 4096


class Served(Protocol):
    """A content that is being served for one request."""

    @property
    def descriptor(self) -> int:
        """Where its bytes are read from, byte n at offset n."""

    @property
    def size(self) -> int:
        """How many bytes the whole content has."""

    def revoked(self) -> bool:
        """True if the peer may not have it any more. Asked in a thread, before each chunk."""

    def close(self) -> None:
        """The request has ended, one way or the other. Called once, in a thread."""


class ServedBatch(ABC):
    """Small blobs that are being served for one request. Used in a thread."""

    @property
    @abstractmethod
    def finished(self) -> bool:
        """True if nothing more is to be answered."""

    @abstractmethod
    def fill(self, payload: memoryview) -> int:
        """Write the next pieces into it, as many as fit and one at least; how many bytes."""

    @abstractmethod
    def revoked(self) -> bool:
        """As of `Served`; asked before each frame."""

    @abstractmethod
    def close(self) -> None:
        """As of `Served`."""


Asked = BulkRange | BulkBatch
# Judges one request when it is served: a Served for a range, a ServedBatch for a batch. Raises
# PeerRefusedError or PeerBusyError. Called in trio.
Serve = Callable[[NodeId, Asked], Awaitable[Served | ServedBatch]]


class _Request:
    """A request that is not answered in full."""

    def __init__(self, number: int, wanted: Asked, *, urgent: bool) -> None:
        self.number = number
        self.wanted = wanted
        self.urgent = urgent
        # The next chunk of a range.
        self.next = wanted.first if isinstance(wanted, BulkRange) else 0
        self.served: Served | ServedBatch | None = None

    @property
    def answered(self) -> bool:
        if isinstance(self.wanted, BulkRange):
            return self.next == self.wanted.end
        return isinstance(self.served, ServedBatch) and self.served.finished

    def close(self) -> None:
        served, self.served = self.served, None
        if served is not None:
            served.close()


class BulkServing:
    """A connection to `peer` on which we answer requests."""

    def __init__(
        self, greeted: Greeted, wire: BulkSocket, share: Share, serve: Serve, lane: Lane
    ) -> None:
        self.peer: NodeId = greeted.ticket.peer
        self.bytes_sent = 0
        self._wire = wire
        self._share = share
        self._serve = serve
        self._lane = lane
        self._sealer = greeted.sealer
        self._opener = greeted.opener
        self._requests: dict[int, _Request] = {}
        self._last_number = 0
        self._cancels = 0
        self._last_frame = time.monotonic()
        # What was received of frames that are not complete.
        self._unread = bytearray()
        self._received = memoryview(bytearray(_READ_BYTES))

    @property
    def idle(self) -> bool:
        """True if nothing is asked for."""
        return not self._requests

    @property
    def last_moved(self) -> float:
        """When (`time.monotonic`) bytes last came or went."""
        return self._wire.last_moved

    def shut(self) -> None:
        """End the connection: the thread ends soon. Harmless twice."""
        self._share.close()
        self._lane.close()
        self._wire.shut()

    def ended(self) -> None:
        """The thread is no more."""
        self._wire.close()

    # --- the thread ---------------------------------------------------------------------------

    def work(self) -> PeerError:
        """Answer requests until the connection ends; answers why it did. Runs in a thread."""
        try:
            while True:
                self._read_requests()
                if self._requests:
                    self._serve_next()
        except PeerError as error:
            return error
        except Exception:
            log.exception("serving %s failed", self.peer[:16])
            return PeerError("failed at our side")
        finally:
            for request in self._requests.values():
                request.close()

    def _read_requests(self) -> None:
        """Take what the peer has sent; wait for it only if there is nothing to do."""
        count = self._wire.receive_some(self._received, wait=not self._requests)
        self._unread += self._received[:count]
        while (frame := self._next_frame()) is not None:
            self._take(*frame)
        # Counted from whole frames: part of one, byte after byte, keeps no connection alive.
        if not self._requests and time.monotonic() - self._last_frame >= STREAM_IDLE_S_MAX:
            raise PeerGoneError("the bulk connection was idle for long")

    def _next_frame(self) -> tuple[FrameHeader, bytes] | None:
        if len(self._unread) < HEADER_BYTES:
            return None
        header = bytes(self._unread[:HEADER_BYTES])
        found = FrameHeader.decode(header)
        check_asker_header(found)
        end = HEADER_BYTES + found.sealed_length
        assert end <= OVERHEAD_BYTES + BULK_REQUEST_BYTES_MAX
        if len(self._unread) < end:
            return None
        sealed = bytes(self._unread[HEADER_BYTES:end])
        del self._unread[:end]
        return found, self._opener.open(header, sealed, time.monotonic())

    def _take(self, header: FrameHeader, payload: bytes) -> None:
        self._last_frame = time.monotonic()
        if header.kind == REQUEST:
            self._enter(header, read_request(payload))
            return
        self._cancels += 1
        if header.request > self._last_number or self._cancels > self._last_number:
            raise ProtocolError("a request is cancelled that was not made, or twice")
        request = self._requests.get(header.request)
        if request is not None:
            self._finish(request, END, b"")

    def _enter(self, header: FrameHeader, wanted: Asked) -> None:
        if header.request <= self._last_number:
            raise ProtocolError("a request with the number of another one")
        if len(self._requests) >= BULK_REQUESTS_MAX:
            raise ProtocolError("more requests than we said we take")
        self._last_number = header.request
        urgent = bool(header.flags & URGENT)
        self._requests[header.request] = _Request(header.request, wanted, urgent=urgent)

    def _serve_next(self) -> None:
        """Send the next chunk of the first request, of the first urgent one if there is one."""
        waiting = self._requests.values()
        request = next((one for one in waiting if one.urgent), None) or next(iter(waiting))
        try:
            served = self._opened(request)
            with self._lane.chunk(urgent=request.urgent):
                self._send_chunk(request, served)
        except _CannotServe as failure:
            self._finish(request, FAILURE, failure.payload)
            return
        if request.answered:
            self._finish(request, END, b"")

    def _opened(self, request: _Request) -> Served | ServedBatch:
        """What the request is served from. Raises _CannotServe for one that is not (any more)."""
        if request.served is None:
            request.served = self._judged(request.wanted)
            if isinstance(request.wanted, BulkRange):
                _begin_range(request.wanted, request.served)
        if request.served.revoked():
            raise _CannotServe(REFUSED)
        return request.served

    def _judged(self, wanted: Asked) -> Served | ServedBatch:
        try:
            return trio.from_thread.run(self._judge_in_time, wanted)
        except PeerError as error:
            raise _CannotServe(code_of(error), str(error)) from None
        except trio.RunFinishedError:
            raise PeerGoneError("this node is stopping") from None

    async def _judge_in_time(self, wanted: Asked) -> Served | ServedBatch:
        with trio.move_on_after(BULK_SERVE_S_MAX):
            return await self._serve(self.peer, wanted)
        raise PeerBusyError("did not find it in time")

    def _send_chunk(self, request: _Request, served: Served | ServedBatch) -> None:
        plain, frame = self._two_buffers()
        try:
            try:
                if isinstance(served, ServedBatch):
                    end = self._seal_pieces(request, served, plain, frame)
                else:
                    end = self._seal_chunk(request, served, plain, frame)
            finally:
                # Before sending: a peer that reads slowly is to hold up no more than one frame.
                self._share.give_back(plain)
            sealed = memoryview(frame)[:end]
            self._lane.move(sealed, self._wire.send_all, urgent=request.urgent)
        finally:
            self._share.give_back(frame)

    def _seal_chunk(self, request: _Request, served: Served, plain: mmap, frame: mmap) -> int:
        number = request.next
        length = chunk_length(served.size, number)
        payload = memoryview(plain)[PAYLOAD_AT : PAYLOAD_AT + PIECE_HEADER_BYTES + length]
        write_piece_header(number, length, payload)
        _read_chunk(served.descriptor, payload[PIECE_HEADER_BYTES:], number * CHUNK_BYTES)
        self.bytes_sent += length
        request.next += 1
        return self._seal(DATA, request.number, payload, memoryview(frame))

    def _seal_pieces(self, request: _Request, served: ServedBatch, plain: mmap, frame: mmap) -> int:
        payload = memoryview(plain)[PAYLOAD_AT : PAYLOAD_AT + BATCH_PIECES_BYTES_MAX]
        payload = payload[: served.fill(payload)]
        assert payload, "who asked takes a frame without a piece for a broken protocol"
        self.bytes_sent += len(payload)
        return self._seal(DATA, request.number, payload, memoryview(frame))

    def _two_buffers(self) -> list[mmap]:
        try:
            return self._share.take(2, BULK_SERVE_S_MAX)
        except PeerBusyError as error:
            raise _CannotServe(code_of(error), "is serving too many others") from None

    def _finish(self, request: _Request, kind: int, payload: bytes) -> None:
        del self._requests[request.number]
        request.close()
        self._last_frame = time.monotonic()
        frame = memoryview(bytearray(len(payload) + OVERHEAD_BYTES))
        end = self._seal(kind, request.number, payload, frame)
        self._wire.send_all(frame[:end])

    def _seal(self, kind: int, number: int, payload: bytes | memoryview, frame: memoryview) -> int:
        return self._sealer.seal_into(kind, 0, number, payload, frame, time.monotonic())


class _CannotServe(Exception):
    """What to send instead of the (next) chunk."""

    def __init__(self, code: str, text: str = "") -> None:
        super().__init__(code)
        self.payload = encode_failure(code, text)


def _read_chunk(descriptor: int, view: memoryview, offset: int) -> None:
    read = 0
    while read < len(view):
        try:
            count = os.preadv(descriptor, [view[read:]], offset + read)
        except OSError as error:
            log.warning("cannot read what is served: %s", error)
            raise _CannotServe(FAILED, "an object could not be read") from None
        if not count:
            raise _CannotServe(FAILED, "an object became shorter while it was served")
        read += count


def _begin_range(wanted: BulkRange, served: Served | ServedBatch) -> None:
    """Have the disk bring the whole request while its first chunks are sent. _CannotServe."""
    assert not isinstance(served, ServedBatch)
    if wanted.end > chunk_count(served.size):
        raise _CannotServe(REFUSED)
    if hasattr(os, "posix_fadvise"):  # macOS has it not
        start, length = wanted.first * CHUNK_BYTES, wanted.count * CHUNK_BYTES
        os.posix_fadvise(served.descriptor, start, length, os.POSIX_FADV_WILLNEED)
