"""The HTTP door: for clients on other machines, browsers' downloads, curl, and metrics.

    GET       /health                  {"ok": true}
    POST      /api/1/OPERATION         a JSON body; a JSON answer, or lines of JSON with progress
    GET|HEAD  /blobs/sha1/HASH         the bytes, also by Range
    PUT       /blobs/sha1/HASH         store the bytes, if they are what the name says

Every request passes `Guard.check` before its path is even looked at.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Collection
from typing import Any, NoReturn

import h11
import trio

from kachery_p2p.errors import (
    EXIT_CONFIG,
    EXIT_CORRUPT,
    EXIT_DAEMON_DOWN,
    EXIT_IN_USE,
    EXIT_NOT_FOUND,
    EXIT_REFUSED,
    EXIT_STORAGE,
    EXIT_TIMEOUT,
    EXIT_USAGE,
    AddressInUseError,
    ConfigError,
    DaemonProtocolError,
    InvalidRangeError,
    KacheryError,
)
from kachery_p2p.limits import DOOR_CONNECTIONS_MAX
from kachery_p2p.node import http_blobs
from kachery_p2p.node.doors import Call, Handlers, Started, internal_error, run
from kachery_p2p.node.http_guard import Guard, Refused
from kachery_p2p.node.http_wire import Headers, HttpConnection, HttpError, Request
from kachery_p2p.wire.operations import (
    OPERATIONS,
    TOKEN,
    error_from_map,
    error_to_map,
    operation_named,
)

log = logging.getLogger(__name__)

API_PREFIX = "/api/1/"
# A client that was refused in the middle of its upload is given this long to read why.
LINGER_S = 1.0

_STATUS_OF_EXIT = {
    EXIT_USAGE: 400,
    EXIT_NOT_FOUND: 404,
    EXIT_DAEMON_DOWN: 503,
    EXIT_REFUSED: 403,
    EXIT_STORAGE: 507,
    EXIT_CORRUPT: 422,
    EXIT_TIMEOUT: 504,
    EXIT_IN_USE: 409,
    EXIT_CONFIG: 409,
}


async def serve_http_door(
    listen: tuple[str, int],
    token: str,
    handlers: Handlers,
    *,
    names: Collection[str] = (),
    origins: Collection[str] = (),
    task_status: Started[tuple[str, int]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; `task_status` is told the real host and port once it accepts.

    `names` are further host names under which clients may address this daemon,
    `origins` the web pages (`https://host`) whose scripts may.
    """
    listeners = await _open_listeners(*listen)
    port = listeners[0].socket.getsockname()[1]
    door = _Door(Guard(token, names, origins), handlers)
    task_status.started((listen[0], port))
    await trio.serve_listeners(door.welcome, listeners)


async def _open_listeners(host: str, port: int) -> list[trio.SocketListener]:
    try:
        return list(await trio.open_tcp_listeners(port, host=host))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUseError(
                f"another program already listens on {host}:{port}",
                hint="choose another port with --http HOST:PORT, or --http off",
            ) from error
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="choose another address with --http HOST:PORT, or --http off",
        ) from error


class _Door:
    def __init__(self, guard: Guard, handlers: Handlers) -> None:
        self._guard = guard
        self._handlers = handlers
        self._clients = 0

    async def welcome(self, stream: trio.SocketStream) -> None:
        self._clients += 1
        try:
            async with stream:
                # More than that are simply closed: an answer would cost what is to be saved.
                if self._clients <= DOOR_CONNECTIONS_MAX:
                    await _Client(HttpConnection(stream), self._guard, self._handlers).serve()
        except (
            OSError,
            trio.BrokenResourceError,
            trio.ClosedResourceError,
            trio.TooSlowError,
        ) as e:
            log.debug("a client of the HTTP door went away: %r", e)
        except Exception:
            # One client's connection is never worth the daemon.
            log.exception("a connection of the HTTP door failed")
        finally:
            self._clients -= 1


class _Client:
    """Requests of one connection, one after the other."""

    def __init__(self, connection: HttpConnection, guard: Guard, handlers: Handlers) -> None:
        self._connection = connection
        self._guard = guard
        self._handlers = handlers

    async def serve(self) -> None:
        while await self._serve_one():
            pass

    async def _serve_one(self) -> bool:
        """Serve one request; False when the connection is at its end."""
        try:
            request = await self._connection.next_request()
            if request is None:
                return False
            await self._answer(request)
        except h11.RemoteProtocolError as error:
            await self._answer_error(HttpError(error.error_status_hint, "this is not HTTP/1.1"))
        if self._connection.next_cycle():
            return True
        await self._connection.linger(LINGER_S)
        return False

    async def _answer(self, request: Request) -> None:
        try:
            self._guard.check(request, self._connection.local)
            self._connection.trusted = True
            await self._route(request)
        except (h11.RemoteProtocolError, trio.BrokenResourceError, trio.TooSlowError, OSError):
            raise
        except KacheryError as error:
            await self._answer_error(error)
        except Exception:
            log.exception("a request to the HTTP door failed")
            await self._answer_error(internal_error())

    async def _answer_error(self, error: KacheryError) -> None:
        headers: Headers = ()
        if isinstance(error, Refused) and error.status == 401:
            headers = (("WWW-Authenticate", "Bearer"),)
        elif isinstance(error, http_blobs.UnsatisfiableRangeError):
            headers = (("Content-Range", f"bytes */{error.size}"),)
        elif isinstance(error, _WrongMethod):
            headers = (("Allow", ", ".join(error.allowed)),)
        reply = {"error": error_to_map(error)}
        await self._connection.respond_json(status_of(error), reply, headers)

    async def _route(self, request: Request) -> None:
        if request.path == "/health":
            _check_method(request, "GET", "HEAD")
            await self._connection.whole_body()
            await self._connection.respond_json(200, {"ok": True})
        elif request.path.startswith(API_PREFIX):
            _check_api(request)
            await self._serve_operation(request)
        elif request.path.startswith(http_blobs.PREFIX):
            _check_method(request, *http_blobs.METHODS)
            await http_blobs.serve_blob(self._connection, request, self._handlers)
        else:
            raise HttpError(404, "no such page")

    async def _serve_operation(self, request: Request) -> None:
        operation = operation_named(request.path.removeprefix(API_PREFIX), TOKEN)
        body = _parse_json(await self._connection.whole_body())
        call = Call(operation, body, remote=self._connection.remote)
        try:
            lines = _Lines(self._connection)
            tell = lines.tell if operation.streams else None
            reply = await run(
                call, self._handlers, gone=self._connection.wait_until_gone, tell=tell
            )
        finally:
            call.close_attached()
        if reply is None:
            raise trio.BrokenResourceError("the client left during its call")
        await self._send_reply(reply, lines, streams=operation.streams)

    async def _send_reply(self, reply: dict[str, Any], lines: _Lines, *, streams: bool) -> None:
        failed = "error" in reply
        answer = reply if failed else reply["ok"]
        if streams and (lines.begun or not failed):
            await lines.end(answer)
            return
        status = status_of(error_from_map(reply["error"])) if failed else 200
        await self._connection.respond_json(status, answer)


class _Lines:
    """A response in lines of JSON. An error after the first line can only be a line itself."""

    def __init__(self, connection: HttpConnection) -> None:
        self._connection = connection
        self.begun = False

    async def tell(self, update: dict[str, Any]) -> None:
        await self._send({"progress": update})

    async def end(self, reply: dict[str, Any]) -> None:
        await self._send(reply)
        await self._connection.finish()

    async def _send(self, line: dict[str, Any]) -> None:
        if not self.begun:
            self.begun = True
            kind = ("Content-Type", "application/x-ndjson")
            await self._connection.start(200, [kind, ("Cache-Control", "no-store")])
        await self._connection.send_data(json.dumps(line).encode() + b"\n")


class _WrongMethod(HttpError):
    def __init__(self, method: str, allowed: tuple[str, ...]) -> None:
        super().__init__(405, f"the method {method[:16]} is not allowed here")
        self.allowed = allowed


def _check_method(request: Request, *allowed: str) -> None:
    if request.method not in allowed:
        raise _WrongMethod(request.method, allowed)


def _check_api(request: Request) -> None:
    """Before the body is read: route, method and type (a form that a page posts has another)."""
    name = request.path.removeprefix(API_PREFIX)
    if name not in OPERATIONS or TOKEN not in OPERATIONS[name].needs or name == "put":
        raise HttpError(404, "no such operation")
    _check_method(request, "POST")
    kind = (request.header("content-type") or "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HttpError(415, "the content type must be application/json")


def _parse_json(body: bytes) -> object:
    try:
        return json.loads(body, parse_constant=_refuse_constant) if body.strip() else {}
    except (ValueError, RecursionError):
        raise HttpError(400, "the body is not JSON") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def status_of(error: KacheryError) -> int:
    """The HTTP status that says most nearly what the error says."""
    if isinstance(error, HttpError | Refused):
        return error.status
    if isinstance(error, InvalidRangeError):
        return 416
    if isinstance(error, DaemonProtocolError):
        return 400
    return _STATUS_OF_EXIT.get(error.exit_code, 500)
