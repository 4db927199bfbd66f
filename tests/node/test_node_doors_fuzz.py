"""Mutated requests at both doors, and hundreds of clients at once: the daemon serves on.

FUZZ_ROUNDS says how many in `make fuzz`.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h11
import pytest
import trio

from kachery_p2p.errors import DaemonProtocolError, KacheryError, ProtocolError
from kachery_p2p.node.doors import Call, Handler
from kachery_p2p.node.http_door import serve_http_door
from kachery_p2p.node.http_guard import Guard
from kachery_p2p.node.http_wire import Request
from kachery_p2p.node.unix_door import serve_unix_door
from kachery_p2p.wire.codec import FrameDecoder, encode_frame
from kachery_p2p.wire.operations import OPERATIONS, OWNER, check_body, operation_named

SEED = 20_431
ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "1000000"))
TOKEN = "ab" * 32
HASH = "b971c6ef19b1d70ae8f0feb989b106c319b36230"
HELLO: dict[str, Any] = {
    "version": 1,
    "node_id": "0" * 64,
    "store": "/s",
    "store_dev": 1,
    "store_ino": 2,
}
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("hello", {"version": 1}),
    ("load", {"content": HASH, "root": "0" * 64, "timeout_s": 1.5, "from_node": "lab-pc"}),
    ("load_range", {"content": HASH, "start": 0, "end": 1 << 40}),
    ("find", {"content": HASH, "from_channel": "lab"}),
    ("share", {"contents": [HASH, HASH], "channels": ["lab"], "pending": True}),
    ("shared", {"after": "0" * 104}),
    ("unshare", {"contents": [HASH], "channel": "lab"}),
    ("status", {}),
]
FRAMES = [encode_frame({"op": op, "body": body}) for op, body in BODIES]
SPICE = [bytes([i]) for i in (0x80, 0x90, 0xA0, 0xC0, 0xC1, 0xC4, 0xC7, 0xCB, 0xD6, 0xD9, 0xDC)]
SPICE += [b"\xdd\xff\xff\xff\xff", b"\xdf\x00\x00\x00\x02", b"\xa2op", b"\xa4body", b"\x91" * 40]
HEAD = (
    "POST /api/1/{op} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer " + TOKEN + "\r\n"
    "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
)
HTTP_SPICE = [b"\r\n", b"\n", b"\x00", b" ", b":", b"\r", b"Content-Length: -1\r\n", b"\xff" * 9]
HTTP_SPICE += [
    b"Transfer-Encoding: chunked\r\n",
    b"Host: x\r\n",
    b"\r\n\r\n",
    b"Range: bytes=-\r\n",
]
HTTP_SPICE += [
    b"Content-Length: 99999999999999999999\r\n",
    b"HTTP/1.1",
    b"\r\n folded",
    b"a" * 20_000,
]


def mutated(request: bytes, spice: list[bytes], rng: random.Random, prefix: int) -> bytearray:
    """`request` with one to four changes behind its first `prefix` bytes."""
    body = bytearray(request[prefix:])
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(body) + 1)
        change = rng.random()
        if change < 0.4 and place < len(body):
            body[place] ^= 1 << rng.randrange(8)
        elif change < 0.6:
            del body[place : place + rng.randint(1, 9)]
        else:
            body[place:place] = rng.choice(spice)
    return body


def mutated_frame(rng: random.Random) -> bytes:
    body = mutated(rng.choice(FRAMES), SPICE, rng, 4)
    length = len(body) if rng.random() < 0.95 else rng.choice((0, len(body) + 1, 1 << 31))
    return length.to_bytes(4, "big") + body


def mutated_http(rng: random.Random, port: int) -> bytes:
    head = HEAD.format(op=rng.choice(BODIES)[0], port=port).encode()
    return bytes(mutated(head, HTTP_SPICE, rng, 0))


class Recorder:
    """A daemon whose handlers check that only what the table allows reaches them."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, call: Call) -> dict[str, Any]:
        self.calls += 1
        operation = OPERATIONS[call.operation]
        assert check_body(operation, call.body) == call.body
        return dict(HELLO) if call.operation == "hello" else {}


@asynccontextmanager
async def doors(config: Path) -> AsyncIterator[tuple[str, int, Recorder]]:
    recorder = Recorder()
    handlers: dict[str, Handler] = dict.fromkeys(OPERATIONS, recorder)
    async with trio.open_nursery() as nursery:
        path = await nursery.start(serve_unix_door, str(config), handlers)
        address = ("127.0.0.1", 0)
        _, port = await nursery.start(serve_http_door, address, TOKEN, handlers)
        yield path, port, recorder
        nursery.cancel_scope.cancel()


async def unix_stream(path: str) -> trio.SocketStream:
    """Raises BlockingIOError while too many others wait to be accepted."""
    plain = socket.socket(socket.AF_UNIX)
    plain.setblocking(False)
    try:
        plain.connect(path)
    except BlockingIOError:
        plain.close()
        raise
    return trio.SocketStream(trio.socket.from_stdlib_socket(plain))


async def say_hello(path: str) -> None:
    """An honest client is served within two seconds."""
    with trio.fail_after(2):
        async with await unix_stream(path) as stream:
            await stream.send_all(FRAMES[0])
            assert FrameDecoder().feed(await stream.receive_some(1 << 16)) == [{"ok": HELLO}]


async def provoke(stream: trio.abc.HalfCloseableStream, data: bytes) -> None:
    """Send it and read whatever comes until the door closes."""
    with trio.fail_after(10), contextlib.suppress(trio.BrokenResourceError):
        async with stream:
            await stream.send_all(data)
            await stream.send_eof()
            while await stream.receive_some(1 << 16):
                pass


async def fuzz_doors(tmp_path: Path, rounds: int) -> None:
    rng = random.Random(SEED)
    before = len(os.listdir("/proc/self/fd"))
    async with doors(tmp_path) as (path, port, recorder):
        for number in range(rounds):
            if number % 2:
                await provoke(await unix_stream(path), mutated_frame(rng))
            else:
                await provoke(
                    await trio.open_tcp_stream("127.0.0.1", port), mutated_http(rng, port)
                )
            if number % 500 == 0:
                await say_hello(path)
        await say_hello(path)
        assert recorder.calls > 2
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def fuzz_requests(rounds: int) -> int:
    """As the Unix door reads them, without a socket: how many were refused."""
    rng, refused = random.Random(SEED), 0
    for number in range(rounds):
        frame = mutated_frame(rng)
        try:
            for request in FrameDecoder().feed(frame):
                operation = operation_named(request.get("op"), OWNER)
                Call(operation, request.get("body", {}), uid=os.geteuid())
        except (ProtocolError, DaemonProtocolError):
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {SEED}, frame {number}: {frame.hex()}") from error
    return refused


def fuzz_heads(rounds: int) -> int:
    """As the HTTP door reads them, without a socket: how many were refused."""
    rng, refused = random.Random(SEED), 0
    guard = Guard(TOKEN)
    for number in range(rounds):
        head = mutated_http(rng, 80)
        server = h11.Connection(h11.SERVER)
        try:
            server.receive_data(head)
            event = server.next_event()
            if isinstance(event, h11.Request):
                guard.check(Request(event), ("127.0.0.1", 80))
        except (h11.RemoteProtocolError, KacheryError):
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {SEED}, head {number}: {head!r}") from error
    return refused


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are counted in /proc")
async def test_a_thousand_mutated_requests_leave_both_doors_open(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await fuzz_doors(tmp_path, 1_000)
    failures = [r.getMessage() for r in caplog.records if "connection" in r.getMessage()]
    assert not [line for line in failures if "failed" in line]


def test_twenty_thousand_mutated_requests_are_understood_or_refused() -> None:
    assert 10_000 < fuzz_requests(20_000) < 20_000
    assert 2_000 < fuzz_heads(5_000) < 5_000


@pytest.mark.fuzz
async def test_mutated_requests_at_both_doors_for_long(tmp_path: Path) -> None:
    # A connection for each costs a hundred times what reading one costs.
    await fuzz_doors(tmp_path, max(ROUNDS // 100, 1))


@pytest.mark.fuzz
def test_mutated_requests_are_understood_or_refused_for_long() -> None:
    assert fuzz_requests(ROUNDS) > ROUNDS // 2
    assert fuzz_heads(ROUNDS) > ROUNDS // 3


async def test_five_hundred_clients_at_once_are_all_served(tmp_path: Path) -> None:
    async with doors(tmp_path) as (path, _, recorder):
        with trio.fail_after(20):
            async with trio.open_nursery() as clients:
                for _ in range(500):
                    clients.start_soon(hello_patiently, path)
        assert recorder.calls == 500


async def hello_patiently(path: str) -> None:
    """As the client does: when hundreds queue, the kernel refuses some for a moment."""
    while True:
        try:
            stream = await unix_stream(path)
            break
        except BlockingIOError:
            await trio.sleep(0.01)
    async with stream:
        await stream.send_all(FRAMES[0])
        assert FrameDecoder().feed(await stream.receive_some(1 << 16)) == [{"ok": HELLO}]
