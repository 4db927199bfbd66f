"""Who may call what: every operation at both doors, with every credential there is."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from kachery_p2p.node import guests, unix_door
from kachery_p2p.node.doors import Call, Handler
from kachery_p2p.node.http_door import serve_http_door
from kachery_p2p.node.unix_door import serve_unix_door
from kachery_p2p.wire.codec import FrameDecoder, encode_frame
from kachery_p2p.wire.operations import GUEST, OPERATIONS, OWNER, TOKEN

SECRET = "ab" * 32
IN_GROUP, OUTSIDER = 61_001, 61_002
HASH = "b971c6ef19b1d70ae8f0feb989b106c319b36230"
# By what a caller has: the credential that is found in it, or how a stranger is refused.
UNIX: dict[str, tuple[int, str | None]] = {
    "owner": (os.geteuid(), OWNER),
    "guest in group": (IN_GROUP, GUEST),
    "other uid": (OUTSIDER, None),
}
HTTP: dict[str, tuple[dict[str, str], int]] = {
    "token": ({"Authorization": f"Bearer {SECRET}"}, 200),
    "no token": ({}, 401),
    "wrong token": ({"Authorization": "Bearer " + "cd" * 32}, 401),
    "page of another site": (
        {"Authorization": f"Bearer {SECRET}", "Origin": "http://evil.example"},
        403,
    ),
    "rebound name": ({"Authorization": f"Bearer {SECRET}", "Host": "evil.example:{port}"}, 403),
}


class Daemon:
    """Both doors, with handlers that only note that they were called."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.path = ""
        self.port = 0

    def handlers(self) -> dict[str, Handler]:
        return {name: partial(self._note, name) for name in OPERATIONS}

    async def _note(self, name: str, call: Call) -> dict[str, Any]:
        self.called.append(name)
        # Not what the table promises, so the caller is told of an internal error; it did get in.
        return {"content": None}


@asynccontextmanager
async def daemon(config: Path) -> AsyncIterator[Daemon]:
    one = Daemon()
    async with trio.open_nursery() as nursery:
        serve = partial(serve_unix_door, str(config), one.handlers(), auth_group="lab")
        one.path = await nursery.start(serve)
        serve_http = partial(serve_http_door, ("127.0.0.1", 0), SECRET, one.handlers())
        _, one.port = await nursery.start(serve_http)
        yield one
        nursery.cancel_scope.cancel()


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Who is at the Unix door, as the kernel would tell (real users: test_node_guests)."""
    caller = {"uid": os.geteuid()}

    async def is_in_group(uid: int, group: guests.Group) -> bool:
        return uid == IN_GROUP

    monkeypatch.setattr(unix_door, "group_named", lambda name: guests.Group(name, os.getegid()))
    monkeypatch.setattr(unix_door, "peer_uid", lambda connection: caller["uid"])
    monkeypatch.setattr(unix_door, "is_in_group", is_in_group)
    return caller


def body_of(name: str) -> dict[str, Any]:
    """A body that the table takes."""
    values: dict[str, Any] = {
        "content": HASH,
        "contents": [HASH],
        "version": 1,
        "start": 0,
        "end": 1,
        "size": 1,
        "name": "lab",
        "node": "0" * 64,
        "invite": "x",
        "roles": ["read"],
        "feed": "0" * 64,
        "name_hash": HASH,
        "channel": "lab",
        "messages": ["1"],
        "ids": ["0" * 32],
        "first": 0,
        "watches": [],
        "wait_s": 0,
        "nodes": [],
        "seed": "0" * 64,
        "times_ms": [0],
    }
    fields = OPERATIONS[name].body
    return {field: values[field] for field, kind in fields.items() if kind.required}


async def at_unix(path: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
    stream = trio.SocketStream(trio.socket.socket(socket.AF_UNIX))
    await stream.socket.connect(path)
    async with stream:
        frame = encode_frame({"op": name, "body": body})
        if OPERATIONS[name].takes_descriptor:
            descriptor = os.open(__file__, os.O_RDONLY)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))
            await stream.socket.sendmsg([frame], [rights])
            os.close(descriptor)
        else:
            await stream.send_all(frame)
        decoder = FrameDecoder()
        with trio.fail_after(10):
            while not (frames := decoder.feed(await stream.receive_some(1 << 16))):
                pass
        return frames[0]


async def at_http(port: int, name: str, body: dict[str, Any], headers: dict[str, str]) -> int:
    payload = json.dumps(body).encode()
    every = {
        "Host": f"127.0.0.1:{port}",
        "Content-Type": "application/json",
        "Content-Length": str(len(payload)),
        "Connection": "close",
        **{key: value.format(port=port) for key, value in headers.items()},
    }
    method, target = ("PUT", f"/blobs/sha1/{HASH}") if name == "put" else ("POST", f"/api/1/{name}")
    lines = [f"{method} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in every.items())]
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        with trio.fail_after(10):
            await stream.send_all("\r\n".join(lines).encode() + b"\r\n\r\n" + payload)
            raw = b"".join([piece async for piece in stream])
    return int(raw.split()[1])


@pytest.mark.parametrize("caller", UNIX)
async def test_at_the_unix_door(tmp_path: Path, users: dict[str, int], caller: str) -> None:
    users["uid"], credential = UNIX[caller]
    async with daemon(tmp_path) as one:
        for name, operation in OPERATIONS.items():
            answer = await at_unix(one.path, name, body_of(name))
            if credential in operation.needs:
                assert one.called == [name]
            else:
                assert one.called == [], name
                kind = "DaemonAuthError" if credential is None else "DaemonProtocolError"
                assert answer["error"]["name"] == kind, name
            one.called.clear()


@pytest.mark.parametrize("caller", HTTP)
async def test_at_the_http_door(tmp_path: Path, users: dict[str, int], caller: str) -> None:
    headers, refused = HTTP[caller]
    async with daemon(tmp_path) as one:
        for name, operation in OPERATIONS.items():
            status = await at_http(one.port, name, body_of(name), headers)
            if refused == 200 and TOKEN in operation.needs:
                assert one.called == [name]
            else:
                assert one.called == [], name
                # An operation of the other door looks like none at all.
                assert status == (404 if refused == 200 else refused), name
            one.called.clear()
