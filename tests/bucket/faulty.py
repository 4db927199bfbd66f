"""A server for HTTP and S3 that misbehaves as it is told, and counts what it was asked.

It speaks as much of S3 as reading needs (no signature is checked), so that the same faults
meet the mirror's client and the library for clouds.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

PIECE = b"x" * 65_536


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]

    @property
    def span(self) -> tuple[int, int] | None:
        text = self.headers.get("range", "")
        if not text.startswith("bytes="):
            return None
        first, _, last = text.removeprefix("bytes=").partition("-")
        return int(first), int(last) + 1


@dataclass
class Stored:
    data: bytes
    metadata: dict[str, str] = field(default_factory=dict)


# What to send for a request; None: as it should be.
Fault = Callable[["Faulty", Request, socket.socket], bool]


class Faulty:
    """A server on loopback with objects by their path. `fault` may answer instead."""

    def __init__(self) -> None:
        self.objects: dict[str, Stored] = {}
        self.requests: list[Request] = []
        self.fault: Fault | None = None
        self.closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        # All that there ever were.
        self.connections: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def put(self, path: str, data: bytes, **metadata: str) -> None:
        self.objects[path] = Stored(data, metadata)

    def close(self) -> None:
        self.closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.end_connections()
        for thread in [self._accepting, *self._threads]:
            thread.join(10)
            assert not thread.is_alive()

    def end_connections(self) -> None:
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(connection)
            self.connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as stream:
                while (request := self._read(stream)) is not None:
                    self.requests.append(request)
                    if self.fault is None or not self.fault(self, request, connection):
                        self.answer(request, connection)
        except (OSError, ValueError):
            pass
        finally:
            self._open.discard(connection)

    def _read(self, stream: object) -> Request | None:
        line = stream.readline().decode()  # type: ignore[attr-defined]
        if not line:
            return None
        method, path, _ = line.split()
        headers = {}
        while header := stream.readline().decode().strip():  # type: ignore[attr-defined]
            name, _, value = header.partition(":")
            headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", 0))
        stream.read(length)  # type: ignore[attr-defined]
        return Request(method, unquote(path), headers)

    def answer(self, request: Request, connection: socket.socket) -> None:
        """As it should be."""
        stored = self.objects.get(request.path)
        if stored is None:
            send(connection, 404, b"<Error><Code>NoSuchKey</Code></Error>", request=request)
            return
        self.send_stored(stored, request, connection)

    def send_stored(self, stored: Stored, request: Request, connection: socket.socket) -> None:
        headers = {f"x-amz-meta-{name}": value for name, value in stored.metadata.items()}
        headers |= {"ETag": '"1"', "Last-Modified": "Sat, 21 Nov 2026 08:00:00 GMT"}
        size, span = len(stored.data), request.span
        if span is None:
            send(connection, 200, stored.data, request=request, headers=headers)
            return
        start, end = span[0], min(span[1], size)
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        send(connection, 206, stored.data[start:end], request=request, headers=headers)


def send(
    connection: socket.socket,
    status: int,
    body: bytes,
    *,
    request: Request | None = None,
    length: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """One answer. `length` is what is said of the body, if it is not the truth."""
    told = {"Content-Length": str(len(body) if length is None else length), **(headers or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    begin = f"HTTP/1.1 {status} Status\r\n{lines}\r\n".encode()
    is_head = request is not None and request.method == "HEAD"
    connection.sendall(begin if is_head else begin + body)


# --- faults ------------------------------------------------------------------------------------


def status(code: int, headers: Mapping[str, str] | None = None) -> Fault:
    """Every answer is this status."""

    def fault(server: Faulty, request: Request, connection: socket.socket) -> bool:
        send(connection, code, b"no", request=request, headers=headers)
        return True

    return fault


def only_get(fault: Fault) -> Fault:
    """The fault in answers to GET, all else as it should be."""

    def choosing(server: Faulty, request: Request, connection: socket.socket) -> bool:
        return request.method == "GET" and fault(server, request, connection)

    return choosing


def flipping(server: Faulty, request: Request, connection: socket.socket) -> bool:
    """One bit of each body is another."""
    stored = server.objects.get(request.path)
    if stored is None:
        return False
    data = bytearray(stored.data)
    at = request.span[0] if request.span else 0
    data[min(at, len(data) - 1)] ^= 1
    server.send_stored(Stored(bytes(data), stored.metadata), request, connection)
    return True


def cutting_off(server: Faulty, request: Request, connection: socket.socket) -> bool:
    """Half of the body comes, then the connection ends."""
    stored = server.objects.get(request.path)
    if stored is None:
        return False
    start, end = request.span or (0, len(stored.data))
    end = min(end, len(stored.data))
    send(
        connection,
        206 if request.span else 200,
        stored.data[start : (start + end) // 2],
        length=end - start,
        headers={"Content-Range": f"bytes {start}-{end - 1}/{len(stored.data)}"},
    )
    connection.shutdown(socket.SHUT_RDWR)
    return True


def page(server: Faulty, request: Request, connection: socket.socket) -> bool:
    """A login page, with status 200, whatever is asked for."""
    send(
        connection,
        200,
        b"<html><body>Please log in</body></html>",
        request=request,
        headers={"Content-Type": "text/html"},
    )
    return True


def endless(server: Faulty, request: Request, connection: socket.socket) -> bool:
    """A body that never ends, and says nothing of its length."""
    stored = server.objects.get(request.path)
    size = len(stored.data) if stored else 1
    start, end = request.span or (0, size)
    connection.sendall(
        f"HTTP/1.1 {206 if request.span else 200} OK\r\nTransfer-Encoding: chunked\r\n"
        f"Content-Range: bytes {start}-{min(end, size) - 1}/{size}\r\n"
        'ETag: "1"\r\nLast-Modified: Sat, 21 Nov 2026 08:00:00 GMT\r\n\r\n'.encode()
    )
    while not server.closing.is_set():
        connection.sendall(f"{len(PIECE):x}\r\n".encode() + PIECE + b"\r\n")
    return True


def frozen(server: Faulty, request: Request, connection: socket.socket) -> bool:
    """The request is read, and nothing comes."""
    server.closing.wait()
    return True


def swapping(server: Faulty, request: Request, connection: socket.socket) -> bool:
    """The bytes of another object, as many."""
    stored = server.objects.get(request.path)
    if stored is None:
        return False
    other = bytes(byte ^ 0xFF for byte in stored.data)
    server.send_stored(Stored(other, stored.metadata), request, connection)
    return True


@contextlib.contextmanager
def running_faulty() -> Iterator[Faulty]:
    server = Faulty()
    try:
        yield server
    finally:
        server.close()
