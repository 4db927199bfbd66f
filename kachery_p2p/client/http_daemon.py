"""A daemon that is asked over HTTP: on another machine, or in a container."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

from kachery_p2p.client.daemon import Progress, Reply
from kachery_p2p.client.origin import ANYWHERE, Origin
from kachery_p2p.errors import (
    DaemonDownError,
    DaemonProtocolError,
    DaemonTimeoutError,
    InvalidRangeError,
    KacheryError,
)
from kachery_p2p.limits import CALL_S_MAX, DOOR_PIECE_BYTES
from kachery_p2p.wire.operations import (
    OPERATIONS,
    check_progress,
    check_result,
    error_from_map,
)

if TYPE_CHECKING:
    from kachery_p2p.client.progress import Reporter

# A line of progress or a result is a few kilobytes; `share` may list 4,096 hashes, and a message of
# a feed have 1 MiB, of which JSON can make three.
LINE_BYTES_MAX = 4 << 20


class HttpDaemon:
    """The daemon at HOST:PORT. A connection for each call: nothing to lose in threads and forks."""

    def __init__(self, host: str, port: int, token: str) -> None:
        self._host = host
        self._port = port
        self._token = token

    def call(
        self,
        op: str,
        body: dict[str, Any],
        progress: Progress | None = None,
        timeout_s: float | None = None,
        descriptor: int | None = None,
    ) -> Reply:
        """As `UnixDaemon.call`; descriptors do not travel over HTTP."""
        assert descriptor is None, "a descriptor cannot travel over HTTP"
        deadline = _deadline(timeout_s)
        payload = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        with _Exchange(self, deadline) as exchange:
            response = exchange.request("POST", f"/api/1/{op}", payload, headers)
            result = _answer(op, _lines(response, exchange.set_patience), progress)
        return result, None

    def read_blob(
        self, content: str, root: str | None, timeout_s: float | None = None
    ) -> Iterator[bytes]:
        """The blob's bytes in pieces; whoever keeps them verifies them."""
        with _Exchange(self, _deadline(timeout_s)) as exchange:
            response = exchange.request("GET", _blob_target(content, root))
            yield from _pieces(response, exchange.set_patience)

    def read_range(
        self, content: str, root: str | None, start: int, end: int, origin: Origin = ANYWHERE
    ) -> bytes:
        """The bytes from `start` to `end`, which the daemon has verified."""
        headers = {"Range": f"bytes={start}-{end - 1}"}
        target = _blob_target(content, root, origin)
        with _Exchange(self, _deadline(origin.answer_s)) as exchange:
            response = exchange.request("GET", target, None, headers)
            data = b"".join(_pieces(response, exchange.set_patience))
        size = response.getheader("Content-Range", "").rpartition("/")[2]
        if size.isdecimal() and end > int(size):
            # HTTP cuts a range at the end of the file; we do not.
            raise InvalidRangeError(
                f"{start} to {end} does not lie inside the {size} bytes of the file"
            )
        if response.status != 206 or len(data) != end - start:
            raise DaemonProtocolError("the daemon answered with another range than was asked for")
        return data

    def blob_size(self, content: str, root: str | None, origin: Origin = ANYWHERE) -> int:
        """The size of the blob, which the daemon has verified: the first byte's answer tells it."""
        target = _blob_target(content, root, origin)
        try:
            with _Exchange(self, _deadline(origin.answer_s)) as exchange:
                response = exchange.request("GET", target, None, {"Range": "bytes=0-0"})
        except InvalidRangeError:
            # Only an empty file has no first byte.
            return 0
        size = response.getheader("Content-Range", "").rpartition("/")[2]
        if response.status != 206 or not size.isdecimal():
            raise DaemonProtocolError("the daemon did not say how large the file is")
        return int(size)

    def put_blob(self, content: str, file: IO[bytes], reporter: Reporter | None = None) -> None:
        """Hand the daemon a blob that it lacks; `reporter` counts what is sent."""
        size = os.fstat(file.fileno()).st_size
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        with _Exchange(self, None) as exchange:
            body = file if reporter is None else _Sent(file, reporter)
            exchange.request("PUT", _blob_target(content, None), body, headers).read(LINE_BYTES_MAX)

    def open(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(
            self._host, self._port, timeout=CALL_S_MAX, blocksize=DOOR_PIECE_BYTES
        )
        connection.auto_open = 0
        return connection

    @property
    def authorization(self) -> str:
        return f"Bearer {self._token}"

    def down(self, error: OSError) -> DaemonDownError:
        return DaemonDownError(
            f"no daemon answers at {self._host}:{self._port}: {error.strerror or error}",
            hint="check KACHERY_DAEMON_HOST and KACHERY_DAEMON_PORT, and that it runs there",
        )


class _Sent:
    """A file that is counted as it is read."""

    def __init__(self, file: IO[bytes], reporter: Reporter) -> None:
        self._file = file
        self._reporter = reporter

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._reporter.count(len(data))
        return data


class _Exchange:
    """One connection and request. Whatever goes wrong while it is open becomes our own error."""

    def __init__(self, daemon: HttpDaemon, deadline: float | None) -> None:
        self._daemon = daemon
        self._deadline = deadline
        self._connection = daemon.open()
        self._response: http.client.HTTPResponse | None = None

    def __enter__(self) -> _Exchange:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._response is not None:
            self._response.close()
        self._connection.close()
        if isinstance(error, TimeoutError):
            raise DaemonTimeoutError("the daemon did not answer in time") from error
        if isinstance(error, OSError):
            raise self._daemon.down(error) from error
        if isinstance(error, http.client.IncompleteRead):
            raise DaemonProtocolError("the daemon broke off its answer") from error
        if isinstance(error, http.client.HTTPException | json.JSONDecodeError | RecursionError):
            raise DaemonProtocolError("what answers there is not a kachery-p2p daemon") from error

    def request(
        self,
        method: str,
        target: str,
        body: bytes | IO[bytes] | _Sent | None = None,
        headers: dict[str, str] | None = None,
    ) -> http.client.HTTPResponse:
        """The response, if it is a good one; the daemon's error is raised as it was there."""
        self._connection.connect()
        self.set_patience()
        every = {"Authorization": self._daemon.authorization, **(headers or {})}
        # Refused in the middle of an upload: the reason may already have arrived.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.request(method, target, body, every)
        self._response = self._connection.getresponse()
        if self._response.status >= 300:
            raise _error_of(self._response)
        return self._response

    def set_patience(self) -> None:
        """How long the next silence may last."""
        patience = CALL_S_MAX
        if self._deadline is not None:
            patience = min(patience, self._deadline - time.monotonic())
        if patience <= 0:
            raise TimeoutError
        # A response that ends its connection has taken the socket over.
        if self._connection.sock is not None:
            self._connection.sock.settimeout(patience)


def _error_of(response: http.client.HTTPResponse) -> KacheryError:
    try:
        return error_from_map(json.loads(response.read(LINE_BYTES_MAX))["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return DaemonProtocolError(
            f"what answers there (HTTP status {response.status}) is not a kachery-p2p daemon",
            hint="check KACHERY_DAEMON_HOST and KACHERY_DAEMON_PORT",
        )


def _deadline(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s


def _blob_target(content: str, root: str | None, origin: Origin = ANYWHERE) -> str:
    query = {**({"root": root} if root else {}), **origin.fields}
    return f"/blobs/sha1/{content}" + (f"?{urllib.parse.urlencode(query)}" if query else "")


def _pieces(response: http.client.HTTPResponse, before_each: Callable[[], None]) -> Iterator[bytes]:
    while True:
        before_each()
        if not (piece := response.read(DOOR_PIECE_BYTES)):
            return
        yield piece


def _lines(
    response: http.client.HTTPResponse, before_each: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    """Each line's map; a plain JSON answer is one line."""
    while line := response.readline(LINE_BYTES_MAX):
        value = json.loads(line)
        if not isinstance(value, dict):
            raise DaemonProtocolError("the daemon answered something that is not a map")
        yield value
        before_each()


def _answer(op: str, lines: Iterator[dict[str, Any]], progress: Progress | None) -> dict[str, Any]:
    for line in lines:
        if "error" in line:
            raise error_from_map(line["error"])
        if "progress" not in line:
            return check_result(OPERATIONS[op], line)
        update = check_progress(line["progress"])
        if progress is not None:
            progress(update)
    raise DaemonProtocolError("the daemon broke off its answer")
