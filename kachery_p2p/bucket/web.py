"""A small HTTP/1.1 client for mirrors: blocking, for threads, and patient with nobody.

It keeps connections, follows a few redirects, and hands over a body no faster than it is
taken. A body that comes slower than STALL_BYTES_MIN in STALL_S_MAX is given up.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from kachery_p2p.bucket.faults import busy, refused, unreachable, wrong_answer
from kachery_p2p.errors import BucketBusyError
from kachery_p2p.limits import (
    BUCKET_CONNECT_S_MAX,
    BUCKET_HEADERS_MAX,
    BUCKET_HEADERS_S_MAX,
    BUCKET_IDLE_CONNECTIONS_MAX,
    BUCKET_REASON_BYTES_MAX,
    BUCKET_REDIRECTS_MAX,
    BUCKET_RETRY_AFTER_S_MAX,
    STALL_BYTES_MIN,
    STALL_S_MAX,
)

_GONE = {404, 410}
_REFUSED = {401, 403}
_BUSY = {429, 503}
_MOVED = {301, 302, 303, 307, 308}
# ValueError: what a server sends may be no number, no address, or not ASCII.
_FAILURES = (OSError, http.client.HTTPException, ValueError)


class Answer(NamedTuple):
    """The beginning of an answer, and its body, which is to be read or closed."""

    status: int
    headers: Mapping[str, str]
    body: Iterator[bytes]

    @property
    def length(self) -> int | None:
        """How long the server says the body is."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isdecimal() and len(text) < 19 else None


class Web:
    """Connections to the servers of one mirror."""

    def __init__(self, name: str, redirects_max: int = BUCKET_REDIRECTS_MAX) -> None:
        self._name = name
        self._redirects_max = redirects_max
        self._idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections that nobody uses."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    @contextlib.contextmanager
    def get(
        self, url: str, method: str = "GET", span: tuple[int, int] | None = None
    ) -> Iterator[Answer | None]:
        """The answer to a request for `url`, of which only the bytes `span`; None if it is gone.

        Raises BucketUnreachableError, BucketBusyError, BucketRefusedError, BucketAnswerError.
        """
        headers = {"User-Agent": "kachery-p2p", "Accept-Encoding": "identity"}
        if span is not None:
            headers["Range"] = f"bytes={span[0]}-{span[1] - 1}"
        for _ in range(self._redirects_max + 1):
            with self._request(url, method, headers) as response:
                if response.status in _MOVED:
                    url = self._moved(url, response)
                    continue
                yield self._judged(response)
                return
        raise wrong_answer(self._name, "sends us round in circles")

    @contextlib.contextmanager
    def _request(
        self, url: str, method: str, headers: Mapping[str, str]
    ) -> Iterator[http.client.HTTPResponse]:
        connection, response = self._sent(url, method, headers)
        try:
            yield response
            if method == "HEAD":
                # Nothing comes, but only then it is over for the library.
                response.read()
        finally:
            if response.isclosed() and not response.will_close:
                self._keep(url, connection)
            else:
                response.close()
                connection.close()

    def _sent(
        self, url: str, method: str, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """A connection on which the answer begins. One that was kept may have ended meanwhile."""
        split = urlsplit(url)
        path = (split.path or "/") + (f"?{split.query}" if split.query else "")
        while True:
            connection, is_kept = self._connection(split.scheme, split.netloc)
            try:
                with _within(connection, BUCKET_HEADERS_S_MAX):
                    connection.request(method, path, headers=dict(headers))
                    response = connection.getresponse()
            except _FAILURES as error:
                connection.close()
                if is_kept and not isinstance(error, TimeoutError):
                    continue
                raise self._failure(error) from None
            if len(response.headers) > BUCKET_HEADERS_MAX:
                connection.close()
                raise wrong_answer(self._name, "sent far too many headers")
            return connection, response

    def _connection(self, scheme: str, host: str) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            idle = self._idle.get((scheme, host))
            if idle:
                return idle.pop(), True
        connection: http.client.HTTPConnection | None = None
        try:
            connection = _unconnected(scheme, host)
            connection.connect()
            connection.sock.settimeout(STALL_S_MAX)
        except _FAILURES as error:
            if connection is not None:
                connection.close()
            raise self._failure(error) from None
        return connection, False

    def _keep(self, url: str, connection: http.client.HTTPConnection) -> None:
        split = urlsplit(url)
        with self._lock:
            idle = self._idle.setdefault((split.scheme, split.netloc), [])
            if len(idle) < BUCKET_IDLE_CONNECTIONS_MAX:
                idle.append(connection)
                return
        connection.close()

    def _judged(self, response: http.client.HTTPResponse) -> Answer | None:
        status = response.status
        if status in (200, 206):
            headers = {name.lower(): value for name, value in response.headers.items()}
            return Answer(status, headers, self._body(response))
        with contextlib.suppress(*_FAILURES):
            # What is short is read, so that the connection can be kept.
            response.read1(BUCKET_REASON_BYTES_MAX)
        if status in _GONE:
            return None
        if status in _REFUSED:
            raise refused(self._name)
        if status in _BUSY:
            raise _busy_for(busy(self._name, str(status)), response.headers.get("Retry-After"))
        raise wrong_answer(self._name, f"answered with status {status}")

    def _body(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        moved_at, came = time.monotonic(), 0
        while True:
            try:
                piece = response.read1(STALL_BYTES_MIN)
            except _FAILURES as error:
                raise self._failure(error) from None
            if not piece:
                return
            came += len(piece)
            if came >= STALL_BYTES_MIN:
                moved_at, came = time.monotonic(), 0
            elif time.monotonic() - moved_at > STALL_S_MAX:
                raise unreachable(self._name, f"it sent nearly nothing for {STALL_S_MAX:g} s")
            yield piece

    def _moved(self, url: str, response: http.client.HTTPResponse) -> str:
        with contextlib.suppress(*_FAILURES):
            response.read1(BUCKET_REASON_BYTES_MAX)
        try:
            target = _address(urljoin(url, response.headers.get("Location", "")))
        except ValueError:
            raise wrong_answer(self._name, "sends us to something that is no address") from None
        scheme = urlsplit(target).scheme
        # Never from a protected connection to an open one.
        if scheme != "https" and scheme != urlsplit(url).scheme:
            raise wrong_answer(self._name, "sends us to another kind of address")
        return target

    def _failure(self, error: Exception) -> Exception:
        if isinstance(error, TimeoutError):
            return unreachable(self._name, "it took too long")
        if isinstance(error, ConnectionRefusedError):
            return unreachable(self._name, "nothing listens there")
        if isinstance(error, ssl.SSLCertVerificationError):
            return unreachable(self._name, "its certificate is not trusted here")
        if isinstance(error, http.client.HTTPException | ValueError):
            return wrong_answer(self._name, "does not speak HTTP as it should")
        return unreachable(self._name, (getattr(error, "strerror", None) or "it failed").lower())


def _unconnected(scheme: str, host: str) -> http.client.HTTPConnection:
    if scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(host, timeout=BUCKET_CONNECT_S_MAX, context=context)
    return http.client.HTTPConnection(host, timeout=BUCKET_CONNECT_S_MAX)


def _address(text: str) -> str:
    """The same, if it can be asked for. Raises ValueError."""
    # Reading the port is what judges it. A request line is ASCII (RFC 9112, 3.2).
    if urlsplit(text).port == 0 or not text.isascii():
        raise ValueError("no address")
    return text


@contextlib.contextmanager
def _within(connection: http.client.HTTPConnection, seconds: float) -> Iterator[None]:
    """End the connection if what is done inside takes longer.

    The timeout of the socket begins anew with every byte, of which a server may drip one a second.
    """

    def end() -> None:
        with contextlib.suppress(OSError, AttributeError):
            connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _busy_for(error: BucketBusyError, retry_after: str | None) -> BucketBusyError:
    """The error, with the seconds that the server asks us to stay away (RFC 9110, 10.2.3)."""
    text = (retry_after or "").strip()
    seconds = 0.0
    if text.isdecimal() and len(text) < 10:
        seconds = float(text)
    elif text:
        # The library for dates raises each of these, as a number in it is too large or none.
        with contextlib.suppress(ValueError, TypeError, OverflowError, OSError):
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
    error.retry_after_s = min(max(seconds, 0.0), BUCKET_RETRY_AFTER_S_MAX)
    return error
