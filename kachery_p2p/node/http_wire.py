"""HTTP/1.1 on one trio stream, by h11, with a bound and a deadline on everything."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import h11
import trio

from kachery_p2p.errors import DaemonProtocolError
from kachery_p2p.limits import (
    DOOR_IDLE_S_MAX,
    DOOR_PIECE_BYTES,
    DOOR_REQUEST_BYTES_MAX,
    DOOR_REQUEST_S_MAX,
)

Headers = Sequence[tuple[str, str]]

# Sent with every answer: nothing here is for a browser to interpret, frame or hand to another page.
_ALWAYS: Headers = (
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
)


class HttpError(DaemonProtocolError):
    """A request that HTTP has a status for."""

    def __init__(self, status: int, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class Request:
    """The head of a request: method, path and query text, and headers that may come once."""

    def __init__(self, event: h11.Request) -> None:
        self.method = event.method.decode("ascii")
        target, _, self.query = event.target.decode("ascii").partition("?")
        self.path = target
        self._headers: dict[str, list[str]] = {}
        for name, value in event.headers:
            self._headers.setdefault(name.decode("ascii"), []).append(value.decode("latin-1"))

    def header(self, name: str) -> str | None:
        """The header's value; None if absent. A header sent twice is refused, not guessed at."""
        values = self._headers.get(name, [])
        if len(values) > 1:
            raise HttpError(400, f"the header {name} came more than once")
        return values[0] if values else None


class HttpConnection:
    """One client's connection: requests one after the other, each with one response."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        # h11 itself bounds the head of a request: 16 KiB.
        self._h11 = h11.Connection(h11.SERVER)
        # Who has not shown a token yet may not occupy a place for long.
        self.trusted = False

    async def next_request(self) -> Request | None:
        """The next request's head, or None when the client has gone, idles or dawdles.

        Raises h11.RemoteProtocolError for what is not HTTP.
        """
        idle_s_max = DOOR_IDLE_S_MAX if self.trusted else DOOR_REQUEST_S_MAX
        event: object = None
        with trio.move_on_after(idle_s_max) as idle:
            while (event := self._h11.next_event()) is h11.NEED_DATA:
                if self._h11.trailing_data[0]:
                    idle.deadline = min(idle.deadline, trio.current_time() + DOOR_REQUEST_S_MAX)
                await self._receive()
        return Request(event) if isinstance(event, h11.Request) else None

    @property
    def local(self) -> tuple[str, int]:
        """The address and port that the client connected to."""
        address, port = self.stream.socket.getsockname()[:2]
        return str(address), int(port)

    @property
    def remote(self) -> str:
        return str(self.stream.socket.getpeername()[0])

    async def _receive(self) -> None:
        try:
            data = await self.stream.receive_some(DOOR_PIECE_BYTES)
        except trio.BrokenResourceError:
            data = b""
        self._h11.receive_data(data)

    async def body(self) -> AsyncGenerator[bytes, None]:
        """The request's body in pieces of at most 256 KiB, each within its deadline."""
        if self._h11.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        while True:
            event = await self._next_body_event()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            else:
                return

    async def _next_body_event(self) -> object:
        try:
            with trio.fail_after(DOOR_REQUEST_S_MAX):
                while (event := self._h11.next_event()) is h11.NEED_DATA:
                    await self._receive()
        except trio.TooSlowError:
            raise HttpError(408, "the body came too slowly") from None
        except h11.RemoteProtocolError:
            raise HttpError(400, "the body ended before it was complete") from None
        return event

    async def whole_body(self) -> bytes:
        """The body of an operation: small, and complete within one deadline."""
        parts, size = [], 0
        try:
            with trio.fail_after(DOOR_REQUEST_S_MAX):
                async with contextlib.aclosing(self.body()) as pieces:
                    async for piece in pieces:
                        size += len(piece)
                        if size > DOOR_REQUEST_BYTES_MAX:
                            raise HttpError(413, "the body is too large")
                        parts.append(piece)
        except trio.TooSlowError:
            raise HttpError(408, "the body came too slowly") from None
        return b"".join(parts)

    async def wait_until_gone(self) -> None:
        """Return when the client has gone. A next request that comes early is kept for its turn."""
        while not self._h11.trailing_data[1]:
            await self._receive()
            if self._h11.trailing_data[0]:
                await trio.sleep_forever()

    async def start(self, status: int, headers: Headers) -> None:
        await self._send(
            h11.Response(
                status_code=status,
                headers=[
                    *headers,
                    *_ALWAYS,
                    *([] if self._reusable else [("Connection", "close")]),
                ],
            )
        )

    async def send_data(self, data: bytes) -> None:
        await self._send(h11.Data(data=data))

    async def finish(self) -> None:
        await self._send(h11.EndOfMessage())

    async def respond_json(
        self, status: int, value: Mapping[str, Any], headers: Headers = ()
    ) -> None:
        """A whole response, unless one was begun already: then the connection is beyond repair."""
        if self._h11.our_state is not h11.SEND_RESPONSE and self._h11.our_state is not h11.IDLE:
            raise trio.BrokenResourceError("a response was already begun")
        body = json.dumps(value).encode() + b"\n"
        length = ("Content-Length", str(len(body)))
        kind = ("Content-Type", "application/json")
        await self.start(status, [kind, length, ("Cache-Control", "no-store"), *headers])
        await self.send_data(body)
        await self.finish()

    @property
    def _reusable(self) -> bool:
        """Whether the request was read to its end, so that the next one can follow."""
        return self._h11.their_state is h11.DONE

    async def _send(self, event: h11.Event) -> None:
        data = self._h11.send(event)
        if data:
            with trio.fail_after(DOOR_REQUEST_S_MAX):
                await self.stream.send_all(data)

    def next_cycle(self) -> bool:
        """Ready for the next request; False if the connection must be closed."""
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
            return True
        return False

    async def linger(self, seconds: float) -> None:
        """Let the client read the last answer: closing on unread bytes wipes it out (RFC 9112)."""
        with trio.move_on_after(seconds), contextlib.suppress(trio.BrokenResourceError, OSError):
            await self.stream.send_eof()
            while await self.stream.receive_some(DOOR_PIECE_BYTES):
                pass
