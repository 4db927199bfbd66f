"""The HTTP door on real sockets: its routes, and the attacks of a web page or a stranger."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from kachery_p2p.errors import (
    AddressInUseError,
    KeyFileError,
    LoadTimeoutError,
    NotFoundError,
    VerificationError,
)
from kachery_p2p.node import http_wire
from kachery_p2p.node.doors import Call, Handler, pieces_in_thread
from kachery_p2p.node.http_blobs import parse_range
from kachery_p2p.node.http_door import serve_http_door
from kachery_p2p.node.token import load_or_create_token

TOKEN = "ab" * 32
BLOB = bytes(range(256)) * 4096
HASH = hashlib.sha1(BLOB).hexdigest()
OTHER = "0" * 40
RESULT = {"path": "/s/x", "size": len(BLOB), "root": None}


class Response:
    def __init__(self, raw: bytes) -> None:
        head, _, self.body = raw.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error


class Daemon:
    """A daemon with one blob, which counts everything that could be a side effect."""

    def __init__(self, blob: Path) -> None:
        self.blob = blob
        self.calls: list[Call] = []
        self.port = 0

    def handlers(self) -> dict[str, Handler]:
        return {
            "load": self.load,
            "load_range": self.load_range,
            "find": self.find,
            "put": self.put,
            "stop": self.stop,
        }

    async def load(self, call: Call) -> dict[str, Any]:
        self._check(call)
        call.attach(os.open(self.blob, os.O_RDONLY))
        return dict(RESULT)

    async def load_range(self, call: Call) -> dict[str, Any]:
        self._check(call)
        call.attach(os.open(self.blob, os.O_RDONLY))
        start, end = call.body["start"], call.body["end"]
        return {"offset": start, "length": end - start, "size": len(BLOB)}

    async def find(self, call: Call) -> dict[str, Any]:
        self._check(call)
        return {"local": True, "size": len(BLOB), "providers": []}

    async def put(self, call: Call) -> dict[str, Any]:
        self.calls.append(call)
        assert call.stream is not None
        data = await trio.to_thread.run_sync(b"".join, pieces_in_thread(call.stream))
        if hashlib.sha1(data).hexdigest() != call.body["content"]:
            raise VerificationError("the bytes are not what the name says")
        return {"content": call.body["content"], "root": None, "size": len(data)}

    async def stop(self, call: Call) -> dict[str, Any]:
        self.calls.append(call)
        return {}

    def _check(self, call: Call) -> None:
        self.calls.append(call)
        if call.body["content"] != HASH:
            raise NotFoundError("nobody has it")

    async def raw(self, data: bytes, *, close: bool = True) -> bytes:
        """What comes back until the daemon closes."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with stream:
            with trio.fail_after(10):
                try:
                    await stream.send_all(data)
                    if close:
                        await stream.send_eof()
                    return b"".join([piece async for piece in stream])
                except trio.BrokenResourceError:
                    return b""

    async def ask(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        *,
        drop: tuple[str, ...] = (),
        **headers: Any,
    ) -> Response:
        every = {
            "Host": f"127.0.0.1:{self.port}",
            "Authorization": f"Bearer {TOKEN}",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        lines = [f"{method} {target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in every.items() if name not in drop]
        head = "\r\n".join(lines).encode() + b"\r\n\r\n"
        return Response(await self.raw(head + body, close=False))


@asynccontextmanager
async def daemon(tmp_path: Path, **more: Any) -> AsyncIterator[Daemon]:
    blob = tmp_path / "blob"
    blob.write_bytes(BLOB)
    one = Daemon(blob)
    handlers = {**one.handlers(), **more.pop("handlers", {})}
    async with trio.open_nursery() as nursery:
        address = ("127.0.0.1", 0)
        serve = partial(serve_http_door, address, TOKEN, handlers, **more)
        _, one.port = await nursery.start(serve)
        yield one
        nursery.cancel_scope.cancel()


# --- who may come in --------------------------------------------------------------------

ATTACKS: dict[str, tuple[int, dict[str, Any]]] = {
    "no token": (401, {"drop": ("Authorization",)}),
    "wrong token": (401, {"Authorization": "Bearer " + "cd" * 32}),
    "empty token": (401, {"Authorization": "Bearer "}),
    "token of another scheme": (401, {"Authorization": f"Basic {TOKEN}"}),
    "rebound name": (403, {"Host": "evil.example"}),
    "rebound name with port": (403, {"Host": "evil.example:{port}"}),
    "right name, no port": (403, {"Host": "localhost"}),
    "right name, wrong port": (403, {"Host": "localhost:1"}),
    "name that only starts right": (403, {"Host": "127.0.0.1.evil.example:{port}"}),
    "empty name": (403, {"Host": ""}),
    "page of another site": (403, {"Origin": "http://evil.example"}),
    "page of no site": (403, {"Origin": "null"}),
    "page of our own": (403, {"Origin": "http://127.0.0.1:{port}"}),
    "websocket": (403, {"Upgrade": "websocket", "Connection": "Upgrade"}),
}
TARGETS = [
    ("POST", "/api/1/stop"),
    ("OPTIONS", "/api/1/stop"),
    ("GET", "/health"),
    ("GET", f"/blobs/sha1/{HASH}"),
    ("PUT", f"/blobs/sha1/{HASH}"),
    ("GET", "/nothing"),
]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(("method", "target"), TARGETS)
async def test_an_attack_is_refused_before_anything_happens(
    tmp_path: Path, attack: str, method: str, target: str
) -> None:
    status, headers = ATTACKS[attack]
    async with daemon(tmp_path) as one:
        filled: dict[str, Any] = {
            k: v.format(port=one.port) if isinstance(v, str) else v for k, v in headers.items()
        }
        answer = await one.ask(method, target, b"{}", **filled)
        assert answer.status == status
        assert answer.error["name"] == "DaemonAuthError"
        assert one.calls == []
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert TOKEN not in answer.body.decode()


@pytest.mark.parametrize(
    ("method", "target", "status", "headers"),
    [
        ("POST", "/api/1/stop", 415, {"Content_Type": "text/plain"}),
        ("POST", "/api/1/stop", 415, {"Content_Type": "application/x-www-form-urlencoded"}),
        ("POST", "/api/1/stop", 415, {"drop": ("Content-Type",)}),
        ("GET", "/api/1/stop", 405, {}),
        ("OPTIONS", "/api/1/stop", 405, {}),
        ("DELETE", f"/blobs/sha1/{HASH}", 405, {}),
        ("POST", "/health", 405, {}),
        ("POST", "/api/1/put", 404, {}),
        ("POST", "/api/1/store", 404, {}),
        ("POST", "/api/1/load_range", 404, {}),
        ("POST", "/api/1/__class__", 404, {}),
        ("POST", "/api/2/stop", 404, {}),
        ("GET", "/", 404, {}),
        ("GET", "/blobs/sha1/../../../etc/passwd", 404, {}),
        ("GET", "/blobs/sha1/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404, {}),
        ("GET", f"/blobs/sha1/{HASH}/../x", 404, {}),
        ("GET", f"/blobs/sha1/{HASH.upper()}", 404, {}),
        ("PUT", "/blobs/sha1/..", 404, {}),
        ("GET", f"/blobs/sha1/{HASH}?root=../../x", 400, {}),
        ("PUT", f"/blobs/sha1/{HASH}", 411, {"drop": ("Content-Length",)}),
    ],
)
async def test_what_is_no_route_does_nothing(
    tmp_path: Path, method: str, target: str, status: int, headers: dict[str, Any]
) -> None:
    headers = {k.replace("_", "-"): v for k, v in headers.items()}
    async with daemon(tmp_path) as one:
        answer = await one.ask(method, target, **headers)
        assert (answer.status, one.calls) == (status, [])
        assert set(answer.error) == {"name", "message", "hint"}


async def test_names_and_origins_of_the_configuration_are_let_in(tmp_path: Path) -> None:
    async with daemon(tmp_path, names=["Lab-PC"], origins=["https://lab.example"]) as one:
        host, origin = f"lab-pc:{one.port}", "https://lab.example"
        answer = await one.ask("GET", "/health", Host=host, Origin=origin)
        assert (answer.status, json.loads(answer.body)) == (200, {"ok": True})


async def test_a_header_sent_twice_is_not_guessed_at(tmp_path: Path) -> None:
    async with daemon(tmp_path) as one:
        head = (
            f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{one.port}\r\n"
            f"Authorization: Bearer x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        )
        assert Response(await one.raw(head.encode())).status == 400


# --- rude and slow clients ----------------------------------------------------------------


@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"A" * 100_000,
        b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000,
        b"\r\n\r\n\r\n",
        b"",
    ],
)
async def test_junk_harms_only_its_own_connection(tmp_path: Path, junk: bytes) -> None:
    async with daemon(tmp_path) as one:
        answer = await one.raw(junk)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
        assert (await one.ask("GET", "/health")).status == 200
        assert one.calls == []


async def test_a_slow_head_a_slow_body_and_an_idle_stranger_are_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_wire, "DOOR_REQUEST_S_MAX", 0.05)
    async with daemon(tmp_path) as one:
        assert await one.raw(b"GET / HT", close=False) == b""
        assert await one.raw(b"", close=False) == b""
        answer = await one.ask("POST", "/api/1/stop", Content_Length="5")
        assert (answer.status, one.calls) == (408, [])


async def test_a_body_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with daemon(tmp_path) as one:
        answer = await one.ask("POST", "/api/1/stop", b" " * (6 << 20))
        assert (answer.status, one.calls) == (413, [])


@pytest.mark.parametrize("body", [b"{", b"[1]", b'{"a": NaN}', b"\xff", b"[" * 100_000, b'{"x":1}'])
async def test_a_body_that_is_no_map_of_the_table_is_refused(tmp_path: Path, body: bytes) -> None:
    async with daemon(tmp_path) as one:
        answer = await one.ask("POST", "/api/1/stop", body)
        assert (answer.status, one.calls) == (400, [])


async def test_a_client_that_leaves_cancels_its_call(tmp_path: Path) -> None:
    begun, cancelled = trio.Event(), trio.Event()

    async def load(call: Call) -> dict[str, Any]:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with daemon(tmp_path, handlers={"load": load}) as one:
        stream = await trio.open_tcp_stream("127.0.0.1", one.port)
        head = (
            f"GET /blobs/sha1/{HASH} HTTP/1.1\r\nHost: 127.0.0.1:{one.port}\r\n"
            f"Authorization: Bearer {TOKEN}\r\n\r\n"
        )
        await stream.send_all(head.encode())
        with trio.fail_after(5):
            await begun.wait()
            await stream.aclose()
            await cancelled.wait()


async def test_a_connection_is_kept_for_the_next_request(tmp_path: Path) -> None:
    async with daemon(tmp_path) as one:
        head = (
            f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{one.port}\r\n"
            f"Authorization: Bearer {TOKEN}\r\n\r\n"
        )
        both = await one.raw(head.encode() * 2)
        assert both.count(b"HTTP/1.1 200") == 2


# --- operations -----------------------------------------------------------------------------


async def test_an_operation_answers_its_result(tmp_path: Path) -> None:
    async with daemon(tmp_path) as one:
        answer = await one.ask("POST", "/api/1/find", json.dumps({"content": HASH}).encode())
        assert (answer.status, json.loads(answer.body)["size"]) == (200, len(BLOB))
        assert answer.headers["cache-control"] == "no-store"
        assert (one.calls[0].uid, one.calls[0].remote) == (None, "127.0.0.1")


async def test_an_error_has_a_status_and_travels_whole(tmp_path: Path) -> None:
    async with daemon(tmp_path) as one:
        for target in ("find", "load"):
            answer = await one.ask(
                "POST", f"/api/1/{target}", json.dumps({"content": OTHER}).encode()
            )
            assert (answer.status, answer.error["name"]) == (404, "NotFoundError")


async def test_a_load_streams_its_progress_in_lines(tmp_path: Path) -> None:
    async def load(call: Call) -> dict[str, Any]:
        call.progress({"bytes": 1})
        await trio.testing.wait_all_tasks_blocked()
        if call.body["timeout_s"] == 0:
            raise LoadTimeoutError("too slow")
        return dict(RESULT)

    async with daemon(tmp_path, handlers={"load": load}) as one:
        for timeout_s, last in ((None, "path"), (0, "error")):
            body = json.dumps({"content": HASH, "timeout_s": timeout_s}).encode()
            answer = await one.ask("POST", "/api/1/load", body)
            lines = [json.loads(line) for line in re.findall(rb"\{.*\}", answer.body)]
            assert answer.status == 200
            assert answer.headers["content-type"] == "application/x-ndjson"
            assert lines[0] == {"progress": {"bytes": 1}}
            assert last in lines[-1]


# --- blobs ------------------------------------------------------------------------------------


async def test_a_blob_is_sent_whole_and_never_interpreted(tmp_path: Path) -> None:
    async with daemon(tmp_path) as one:
        answer = await one.ask("GET", f"/blobs/sha1/{HASH}")
        assert (answer.status, answer.body) == (200, BLOB)
        assert answer.headers["etag"] == f'"sha1-{HASH}"'
        assert answer.headers["content-length"] == str(len(BLOB))
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-disposition"].startswith("attachment")


async def test_head_tells_the_size_without_the_bytes(tmp_path: Path) -> None:
    async with daemon(tmp_path) as one:
        answer = await one.ask("HEAD", f"/blobs/sha1/{HASH}")
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["content-length"] == str(len(BLOB))
        assert [call.operation for call in one.calls] == ["load_range"]


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("0-0", 0, 1),
        ("5-", 5, len(BLOB)),
        ("-5", len(BLOB) - 5, len(BLOB)),
        ("7-99999999", 7, None),
    ],
)
async def test_a_range_is_sent_alone(
    tmp_path: Path, asked: str, start: int, end: int | None
) -> None:
    async with daemon(tmp_path) as one:
        answer = await one.ask("GET", f"/blobs/sha1/{HASH}", Range=f"bytes={asked}")
        end = len(BLOB) if end is None else end
        assert (answer.status, answer.body) == (206, BLOB[start:end])
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(BLOB)}"


@pytest.mark.parametrize(
    "asked", ["bytes=99999999-", "bytes=-0", "bytes=5-4", "lines=1-2", "bytes="]
)
async def test_a_range_that_cannot_be_is_416_with_the_size(tmp_path: Path, asked: str) -> None:
    async with daemon(tmp_path) as one:
        answer = await one.ask("GET", f"/blobs/sha1/{HASH}", Range=asked)
        assert answer.status == 416
        assert answer.headers["content-range"] == f"bytes */{len(BLOB)}"


async def test_if_range_with_another_entity_sends_the_whole(tmp_path: Path) -> None:
    async with daemon(tmp_path) as one:
        headers: dict[str, Any] = {"Range": "bytes=0-0", "If-Range": '"other"'}
        assert (await one.ask("GET", f"/blobs/sha1/{HASH}", **headers)).status == 200


def test_ranges_are_read_as_the_standard_says() -> None:
    assert parse_range("bytes=0-499", 1000) == (0, 500)
    assert parse_range("bytes=-2000", 1000) == (0, 1000)


async def test_a_blob_that_is_put_comes_in_pieces_and_is_verified(tmp_path: Path) -> None:
    async with daemon(tmp_path) as one:
        answer = await one.ask("PUT", f"/blobs/sha1/{HASH}", BLOB)
        assert (answer.status, json.loads(answer.body)["size"]) == (201, len(BLOB))
        answer = await one.ask("PUT", f"/blobs/sha1/{OTHER}", BLOB)
        assert (answer.status, answer.error["name"]) == (422, "VerificationError")


async def test_an_upload_that_is_broken_off_stores_nothing(tmp_path: Path) -> None:
    async with daemon(tmp_path) as one:
        head = (
            f"PUT /blobs/sha1/{HASH} HTTP/1.1\r\nHost: 127.0.0.1:{one.port}\r\n"
            f"Authorization: Bearer {TOKEN}\r\nContent-Length: {len(BLOB)}\r\n\r\n"
        )
        answer = await one.raw(head.encode() + BLOB[:1000])
        assert b" 201 " not in answer
        assert (await one.ask("GET", "/health")).status == 200


async def test_an_upload_waits_to_be_told_to_go_on(tmp_path: Path) -> None:
    async with daemon(tmp_path) as one:
        answer = await one.ask("PUT", f"/blobs/sha1/{HASH}", BLOB, Expect="100-continue")
        assert answer.status == 100


# --- listening, and the token --------------------------------------------------------------------


async def test_a_port_in_use_is_said_with_a_hint(tmp_path: Path) -> None:
    async with daemon(tmp_path) as one:
        with pytest.raises(AddressInUseError, match=str(one.port)) as caught:
            await serve_http_door(("127.0.0.1", one.port), TOKEN, {})
    assert caught.value.hint is not None and "--http" in caught.value.hint


def test_the_token_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    token = load_or_create_token(str(tmp_path))
    assert re.fullmatch("[0-9a-f]{64}", token)
    assert load_or_create_token(str(tmp_path)) == token
    assert (tmp_path / "api-token").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["api-token"]


@pytest.mark.parametrize("what", ["readable", "damaged", "symlink"])
def test_a_token_file_that_cannot_be_trusted_is_refused(tmp_path: Path, what: str) -> None:
    load_or_create_token(str(tmp_path))
    path = tmp_path / "api-token"
    if what == "readable":
        path.chmod(0o644)
    elif what == "damaged":
        path.write_text("short")
    else:
        path.rename(tmp_path / "moved")
        path.symlink_to("moved")
    with pytest.raises(KeyFileError):
        load_or_create_token(str(tmp_path))
