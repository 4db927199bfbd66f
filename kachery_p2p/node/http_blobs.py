"""GET, HEAD and PUT /blobs/sha1/HASH, for clients that share no disk with the daemon."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import parse_qs

import trio

from kachery_p2p.errors import InvalidRangeError
from kachery_p2p.limits import DOOR_PIECE_BYTES
from kachery_p2p.node.doors import Call, Handlers, answer, run
from kachery_p2p.node.http_wire import Headers, HttpConnection, HttpError, Request
from kachery_p2p.wire.operations import TOKEN, error_from_map, operation_named

PREFIX = "/blobs/sha1/"
METHODS = ("GET", "HEAD", "PUT")


async def serve_blob(connection: HttpConnection, request: Request, handlers: Handlers) -> None:
    """Answer one request for one blob. Raises KacheryError while nothing has been sent yet."""
    blob = _Blob(connection, request, handlers)
    if request.method == "PUT":
        await blob.put()
        return
    await connection.whole_body()
    if request.method == "HEAD":
        await blob.head()
    elif (asked := request.header("range")) is not None and blob.range_applies():
        await blob.get_range(asked)
    else:
        await blob.get()


class _Blob:
    """One blob as named by a request's path, which is never used as a path of a file."""

    def __init__(self, connection: HttpConnection, request: Request, handlers: Handlers) -> None:
        self._connection = connection
        self._request = request
        self._handlers = handlers
        self._content = request.path.removeprefix(PREFIX)
        if len(self._content) != 40 or self._content.strip("0123456789abcdef"):
            raise HttpError(404, "no such page")
        query = _parse_query(request.query)
        self._name = {"content": self._content, "root": query.get("root")}
        self._sources = {key: query.get(key) for key in ("from_channel", "from_node")}
        self._timeout_s = _seconds(query.get("timeout_s"))

    async def put(self) -> None:
        length = self._request.header("content-length")
        if length is None or self._request.header("transfer-encoding") is not None:
            raise HttpError(411, "the content length must be given")
        body = {"content": self._content, "size": int(length[:20])}
        call = self._call("put", body, stream=self._connection.body())
        stored = _result(await answer(call, self._handlers))
        await self._connection.respond_json(201, stored)

    async def head(self) -> None:
        size = await self._size()
        await self._connection.start(200, self._headers(size))
        await self._connection.finish()

    async def get(self) -> None:
        body = {**self._name, **self._sources, "timeout_s": self._timeout_s}
        call = self._call("load", body)
        try:
            loaded = _result(await self._run(call))
            size = loaded["size"]
            await self._send_blob(call, 200, self._headers(size), offset=0, length=size)
        finally:
            call.close_attached()

    async def get_range(self, asked: str) -> None:
        began = trio.current_time()
        size = await self._size()
        start, end = parse_range(asked, size)
        call = self._range_call(start, end, spent_s=trio.current_time() - began)
        try:
            found = _result(await self._run(call))
            extent = ("Content-Range", f"bytes {start}-{end - 1}/{size}")
            headers = [*self._headers(end - start), extent]
            await self._send_blob(call, 206, headers, offset=found["offset"], length=end - start)
        finally:
            call.close_attached()

    def range_applies(self) -> bool:
        """If-Range with another entity asks for the whole: our entities never change."""
        condition = self._request.header("if-range")
        return condition is None or condition == self._etag

    @property
    def _etag(self) -> str:
        return f'"sha1-{self._content}"'

    def _headers(self, length: int) -> Headers:
        return (
            ("Content-Type", "application/octet-stream"),
            ("Content-Length", str(length)),
            ("Content-Disposition", f'attachment; filename="{self._content}"'),
            ("Accept-Ranges", "bytes"),
            ("ETag", self._etag),
            ("Cache-Control", "private, max-age=31536000, immutable"),
        )

    def _call(self, name: str, body: dict[str, Any], **more: Any) -> Call:
        remote = self._connection.remote
        return Call(operation_named(name, TOKEN), body, remote=remote, **more)

    def _range_call(self, start: int, end: int, *, spent_s: float = 0.0) -> Call:
        """`load_range`: it has no route of its own because this is its route.

        `spent_s` of the time that the client allows are over.
        """
        timeout_s = self._timeout_s
        if timeout_s is not None and spent_s:
            timeout_s = max(timeout_s - spent_s, 0.0)
        body = {**self._name, **self._sources, "timeout_s": timeout_s, "start": start, "end": end}
        operation = operation_named("load_range", "owner")
        return Call(operation, body, remote=self._connection.remote)

    async def _run(self, call: Call) -> dict[str, Any]:
        reply = await run(call, self._handlers, gone=self._connection.wait_until_gone)
        if reply is None:
            raise trio.BrokenResourceError("the client left during its call")
        return reply

    async def _size(self) -> int:
        """The blob's size as its root binds it; without a root the whole is fetched first.

        `find` would be quicker, but tells what some member claims: one that lies could have
        the blob cut short here.
        """
        call = self._range_call(0, 0)
        try:
            return int(_result(await self._run(call))["size"])
        finally:
            call.close_attached()

    async def _send_blob(
        self, call: Call, status: int, headers: Headers, *, offset: int, length: int
    ) -> None:
        descriptor = call.attached
        assert descriptor is not None, f"{call.operation} must attach a descriptor"
        await self._connection.start(status, headers)
        end = offset + length
        while offset < end:
            wanted = min(DOOR_PIECE_BYTES, end - offset)
            piece = await trio.to_thread.run_sync(os.pread, descriptor, wanted, offset)
            if not piece:
                # The length has been promised: all that is left is to break off visibly.
                raise trio.BrokenResourceError("the blob became shorter while it was sent")
            await self._connection.send_data(piece)
            offset += len(piece)
        await self._connection.finish()


def _parse_query(text: str) -> dict[str, str]:
    """Each key's first value. What a browser or a proxy adds does not disturb."""
    try:
        return {key: values[0] for key, values in parse_qs(text, max_num_fields=8).items()}
    except ValueError:
        raise HttpError(400, "the query has too many fields") from None


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        raise HttpError(400, "timeout_s must be a number of seconds") from None


def _result(reply: dict[str, Any]) -> dict[str, Any]:
    if "error" in reply:
        raise error_from_map(reply["error"])
    result: dict[str, Any] = reply["ok"]
    return result


class UnsatisfiableRangeError(InvalidRangeError):
    """Carries the size that `Content-Range: bytes */SIZE` must tell."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the range does not lie inside the {size} bytes of the file")
        self.size = size


def parse_range(text: str, size: int) -> tuple[int, int]:
    """Start and end (exclusive) of a `bytes=` range with one part (RFC 9110, section 14)."""
    unit, _, spec = text.partition("=")
    first, dash, last = spec.strip().partition("-")
    digits = first + last
    if unit.strip().lower() != "bytes" or not dash or not (digits.isascii() and digits.isdecimal()):
        raise UnsatisfiableRangeError(size)
    if len(digits) > 40:
        raise UnsatisfiableRangeError(size)
    if first:
        start, end = int(first), min(int(last) + 1, size) if last else size
    else:
        start, end = max(0, size - int(last)), size
    if start >= end:
        raise UnsatisfiableRangeError(size)
    return start, end
