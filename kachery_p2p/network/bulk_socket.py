"""A TCP socket that a thread works on: it blocks, but never for long without a reason to go on.

Blocking calls move a MiB each and release the interpreter lock, which is what makes the
bulk plane fast (ARCHITECTURE.md). Their deadlines are the kernel's, so that a peer which
goes silent, or sends a byte now and then, is found out; `shut` from another thread ends
every call at once.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time

import trio

from kachery_p2p.errors import PeerGoneError, PeerTimeoutError
from kachery_p2p.limits import CHUNK_BYTES, STALL_BYTES_MIN, STALL_S_MAX

# The kernel gives up a call after this part of what counts as a stall, so that we can judge.
_TICKS = 4


class BulkSocket:
    """One socket, with a thread that receives and sends."""

    def __init__(self, sock: socket.socket, stall_s: float = STALL_S_MAX) -> None:
        self._socket = sock
        self.stall_s = stall_s
        sock.setblocking(True)
        tick = struct.pack("ll", *_seconds_and_micros(stall_s / _TICKS))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, tick)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, tick)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # trio sets 16 KiB, which wakes us 64 times for a chunk: 0.8 of the speed (measured). One
        # chunk keeps the line busy; more would only make an urgent one wait longer.
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, CHUNK_BYTES)
        # The sizes of the kernel's buffers are left to the kernel: it grows them as the line
        # needs, and a size that is set stops at net.core.rmem_max, usually 208 KiB.
        self.last_moved = time.monotonic()

    @classmethod
    def of_stream(cls, stream: trio.SocketStream, stall_s: float = STALL_S_MAX) -> BulkSocket:
        """Take the socket out of trio's hands; the stream is of no use afterwards."""
        return cls(socket.socket(fileno=stream.socket.detach()), stall_s)

    def receive_some(self, view: memoryview, *, wait: bool = True, whole: bool = False) -> int:
        """So many bytes came, at most as `view` takes; 0 if none came within a fraction of a stall.

        With `whole` as many as it takes, if they come in that time; without `wait` those
        that are there. Raises PeerGoneError at the end of the connection.
        """
        flags = socket.MSG_WAITALL if whole else 0
        try:
            count = self._socket.recv_into(view, 0, flags if wait else socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            raise PeerGoneError("the bulk connection broke") from None
        if not count:
            raise PeerGoneError("the bulk connection ended")
        self.last_moved = time.monotonic()
        return count

    def receive_all(self, view: memoryview) -> None:
        """Fill `view`. Raises PeerGoneError, and PeerTimeoutError for a sender that stalls."""
        filled = self.receive_some(view, whole=True) if view else 0
        if filled < len(view):
            pace = _Pace(self.stall_s, "sent")
            pace.judge(filled)
            while filled < len(view):
                filled += pace.judge(self.receive_some(view[filled:], whole=True))

    def send_all(self, view: memoryview) -> None:
        """Send it all. Raises PeerGoneError, and PeerTimeoutError for a reader that stalls."""
        sent = self._send_some(view)
        if sent < len(view):
            pace = _Pace(self.stall_s, "took")
            pace.judge(sent)
            while sent < len(view):
                sent += pace.judge(self._send_some(view[sent:]))

    def _send_some(self, view: memoryview) -> int:
        try:
            count = self._socket.send(view)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            raise PeerGoneError("the bulk connection broke") from None
        self.last_moved = time.monotonic()
        return count

    def send_now(self, data: bytes) -> None:
        """Send without waiting what the kernel's buffer must have room for.

        Raises PeerTimeoutError if it has none: the peer does not read.
        """
        try:
            sent = self._socket.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            raise PeerGoneError("the bulk connection broke") from None
        if sent != len(data):
            raise PeerTimeoutError("does not read what it is sent")

    def shut(self) -> None:
        """End every call, in whatever thread. Harmless twice, and after `close`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the socket back; no thread may be working on it."""
        self._socket.close()


class _Pace:
    """Tells a slow line from a stalled one."""

    def __init__(self, stall_s: float, verb: str) -> None:
        self._stall_s = stall_s
        self._verb = verb
        self._since = time.monotonic()
        self._moved = 0

    def judge(self, count: int) -> int:
        """`count`, bytes that have moved. Raises PeerTimeoutError if they are too few."""
        self._moved += count
        if self._moved >= STALL_BYTES_MIN:
            self._since, self._moved = time.monotonic(), 0
        elif time.monotonic() - self._since >= self._stall_s:
            raise PeerTimeoutError(f"{self._verb} next to nothing for {self._stall_s:g} s")
        return count


def _seconds_and_micros(seconds: float) -> tuple[int, int]:
    return int(seconds), int(seconds % 1 * 1_000_000)
