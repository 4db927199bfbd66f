"""The Unix door on real sockets: what clients get, and what those get who attack it."""

from __future__ import annotations

import array
import gc
import os
import socket
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from kachery_p2p.errors import ConfigError, NotFoundError
from kachery_p2p.limits import FRAME_BYTES_MAX
from kachery_p2p.node import unix_door
from kachery_p2p.node.doors import Call, Handler
from kachery_p2p.node.unix_door import serve_unix_door
from kachery_p2p.wire.codec import FrameDecoder, encode_frame

HASH = "b971c6ef19b1d70ae8f0feb989b106c319b36230"
LOADED = {"path": "/store/x", "size": 3, "root": None}
HELLO = {"version": 1, "node_id": "0" * 64, "store": "/s", "store_dev": 1, "store_ino": 2}


class Client:
    """A client that can also misbehave."""

    def __init__(self, path: Path) -> None:
        self.socket = trio.socket.socket(socket.AF_UNIX)
        self._path = path
        self._decoder = FrameDecoder()
        self._frames: list[dict[str, Any]] = []
        self.descriptors: list[int] = []

    async def __aenter__(self) -> Client:
        await self.socket.connect(str(self._path))
        return self

    async def __aexit__(self, *error: object) -> None:
        self.socket.close()
        for descriptor in self.descriptors:
            os.close(descriptor)

    async def send(self, message: dict[str, Any], *descriptors: int) -> None:
        rights = array.array("i", descriptors).tobytes()
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else []
        await self.socket.sendmsg([encode_frame(message)], ancillary)

    async def receive(self) -> dict[str, Any] | None:
        with trio.fail_after(5):
            while not self._frames:
                try:
                    data, ancillary, _, _ = await self.socket.recvmsg(1 << 16, 64)
                except ConnectionResetError:
                    return None
                for _, _, payload in ancillary:
                    self.descriptors.extend(array.array("i", payload))
                if not data:
                    return None
                self._frames.extend(self._decoder.feed(data))
        return self._frames.pop(0)

    async def call(self, op: str, body: dict[str, Any], *descriptors: int) -> dict[str, Any]:
        await self.send({"op": op, "body": body}, *descriptors)
        answer = await self.receive()
        assert answer is not None
        return answer


@asynccontextmanager
async def door(config: Path, **handlers: Handler) -> AsyncIterator[Path]:
    async with trio.open_nursery() as nursery:
        path = await nursery.start(serve_unix_door, str(config), handlers)
        yield Path(path)
        nursery.cancel_scope.cancel()


async def hello(call: Call) -> dict[str, Any]:
    return dict(HELLO)


def load_body(**more: Any) -> dict[str, Any]:
    return {"content": HASH, **more}


async def test_one_connection_serves_one_call_after_another(tmp_path: Path) -> None:
    async with door(tmp_path, hello=hello) as path, Client(path) as client:
        for _ in range(3):
            assert await client.call("hello", {"version": 1}) == {"ok": HELLO}


async def test_the_handler_sees_who_calls_and_every_field_of_the_table(tmp_path: Path) -> None:
    seen: list[Call] = []

    async def load(call: Call) -> dict[str, Any]:
        seen.append(call)
        return dict(LOADED)

    async with door(tmp_path, load=load) as path, Client(path) as client:
        await client.call("load", load_body())
    sources = dict.fromkeys(("from_channel", "from_node", "timeout_s"))
    assert seen[0].body == {"content": HASH, "root": None, **sources}
    assert (seen[0].uid, seen[0].guest, seen[0].remote) == (os.getuid(), None, None)


async def test_the_socket_and_its_directory_are_for_their_owner_only(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.mkdir(mode=0o755)
    async with door(config, hello=hello) as path:
        assert stat.S_IMODE(config.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


async def test_a_stale_socket_is_replaced_and_any_other_file_is_not(tmp_path: Path) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "daemon.sock"))
    stale.close()
    async with door(tmp_path, hello=hello) as path, Client(path) as client:
        assert "ok" in await client.call("hello", {"version": 1})
    (tmp_path / "daemon.sock").write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"):
        await serve_unix_door(str(tmp_path), {})
    assert (tmp_path / "daemon.sock").read_text() == "precious"


async def test_a_path_too_long_for_a_socket_is_reached_another_way(tmp_path: Path) -> None:
    config = tmp_path / ("x" * 120)
    async with door(config, hello=hello):
        directory = os.open(config, os.O_RDONLY)
        try:
            async with Client(Path(f"/proc/self/fd/{directory}/daemon.sock")) as client:
                assert "ok" in await client.call("hello", {"version": 1})
        finally:
            os.close(directory)


async def test_an_error_travels_with_its_name_and_hint(tmp_path: Path) -> None:
    async def load(call: Call) -> dict[str, Any]:
        raise NotFoundError("nobody has it", hint="ask")

    async with door(tmp_path, load=load) as path, Client(path) as client:
        answer = await client.call("load", load_body())
    assert answer["error"] == {"name": "NotFoundError", "message": "nobody has it", "hint": "ask"}


async def test_an_error_out_of_a_nursery_is_the_error_itself(tmp_path: Path) -> None:
    async def load(call: Call) -> dict[str, Any]:
        raise ExceptionGroup("nursery", [NotFoundError("nobody has it")])

    async with door(tmp_path, load=load) as path, Client(path) as client:
        answer = await client.call("load", load_body())
    assert answer["error"]["name"] == "NotFoundError"


async def test_a_mistake_in_a_handler_is_logged_and_the_connection_lives(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def load(call: Call) -> dict[str, Any]:
        raise KeyError("secret detail")

    async def stop(call: Call) -> dict[str, Any]:
        return {}

    async with door(tmp_path, load=load, stop=stop) as path, Client(path) as client:
        answer = await client.call("load", load_body())
        assert await client.call("stop", {}) == {"ok": {}}
    assert answer["error"]["name"] == "DaemonError"
    assert answer["error"]["message"] == "internal error"
    assert "secret detail" in caplog.text


async def test_a_result_that_the_table_forbids_is_our_mistake(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def load(call: Call) -> dict[str, Any]:
        return {"path": 7}

    async with door(tmp_path, load=load) as path, Client(path) as client:
        answer = await client.call("load", load_body())
    assert answer["error"]["message"] == "internal error"
    assert "'path'" in caplog.text


async def test_progress_is_coalesced_and_the_result_comes_last(tmp_path: Path) -> None:
    async def load(call: Call) -> dict[str, Any]:
        for count in range(10_000):
            call.progress({"bytes": count, "sources": ["lab-pc"]})
        await trio.testing.wait_all_tasks_blocked()
        return dict(LOADED)

    async with door(tmp_path, load=load) as path, Client(path) as client:
        first = await client.call("load", load_body())
        assert first == {"progress": {"bytes": 9_999, "sources": ["lab-pc"]}}
        assert await client.receive() == {"ok": LOADED}


async def test_a_quiet_call_says_that_it_is_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kachery_p2p.node.doors.DOOR_HEARTBEAT_S", 0.01)
    done = trio.Event()

    async def load(call: Call) -> dict[str, Any]:
        await done.wait()
        return dict(LOADED)

    async with door(tmp_path, load=load) as path, Client(path) as client:
        assert await client.call("load", load_body()) == {"progress": {}}
        assert await client.receive() == {"progress": {}}
        done.set()
        while "progress" in (answer := await client.receive() or {}):
            pass
        assert answer == {"ok": LOADED}


async def test_a_descriptor_rides_along_with_the_result(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(b"abc")

    async def load(call: Call) -> dict[str, Any]:
        call.attach(os.open(blob, os.O_RDONLY))
        return dict(LOADED)

    before = open_descriptors()
    async with door(tmp_path / "c", load=load) as path, Client(path) as client:
        await client.call("load", load_body())
        assert os.pread(client.descriptors[0], 9, 0) == b"abc"
    assert open_descriptors() == before


async def test_a_descriptor_that_a_client_sends_is_read_and_closed(tmp_path: Path) -> None:
    async def store(call: Call) -> dict[str, Any]:
        assert call.descriptor is not None
        size = len(os.pread(call.descriptor, 99, 0))
        return {"content": HASH, "root": None, "size": size}

    source = tmp_path / "source"
    source.write_bytes(b"12345")
    before = open_descriptors()
    async with door(tmp_path / "c", store=store) as path, Client(path) as client:
        with source.open("rb") as file:
            answer = await client.call("store", {}, file.fileno())
        assert answer["ok"]["size"] == 5
    assert open_descriptors() == before


@pytest.mark.parametrize("what", ["directory", "fifo", "socket", "two", "none", "unasked"])
async def test_descriptors_that_were_not_asked_for_are_refused_and_closed(
    tmp_path: Path, what: str
) -> None:
    calls: list[Call] = []

    async def never(call: Call) -> dict[str, Any]:
        calls.append(call)
        return {}

    os.mkfifo(tmp_path / "fifo")
    regular = os.open(tmp_path / "regular", os.O_RDWR | os.O_CREAT)
    sent = {
        "directory": [os.open(tmp_path, os.O_RDONLY)],
        "fifo": [os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)],
        "socket": [socket.socket().detach()],
        "two": [regular, regular],
        "none": [],
        "unasked": [regular],
    }
    opened = {d for descriptors in sent.values() for d in descriptors}
    before = open_descriptors()
    async with door(tmp_path / "c", store=never, stop=never) as path, Client(path) as client:
        answer = await client.call("stop" if what == "unasked" else "store", {}, *sent[what])
        assert answer["error"]["name"] == "DaemonProtocolError"
        assert "error" in await client.call("store", {})
    assert calls == []
    assert open_descriptors() == before
    for descriptor in opened:
        os.close(descriptor)


async def test_a_flood_of_descriptors_ends_the_connection(tmp_path: Path) -> None:
    before = open_descriptors()
    async with door(tmp_path, hello=hello) as path, Client(path) as client:
        for _ in range(4):
            await client.socket.sendmsg(
                [b"\0"],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 0]).tobytes())],
            )
        assert "error" in (await client.receive() or {})
        assert await client.receive() is None
    assert open_descriptors() == before


BAD_BODIES: list[dict[str, Any]] = [
    {"content": "../../etc/passwd"},
    {"content": HASH.upper()},
    {"content": HASH, "root": "0" * 63},
    {"content": HASH, "timeout_s": -1},
    {"content": HASH, "timeout_s": True},
    {"content": HASH, "surprise": 1},
    {"content": None},
    {},
]


@pytest.mark.parametrize("body", BAD_BODIES)
async def test_a_body_that_the_table_forbids_never_reaches_the_handler(
    tmp_path: Path, body: dict[str, Any]
) -> None:
    async with door(tmp_path, load=hello) as path, Client(path) as client:
        answer = await client.call("load", body)
        assert answer["error"]["name"] == "DaemonProtocolError"
        assert "error" in await client.call("load", {})


@pytest.mark.parametrize("request_", [{}, {"op": "put"}, {"op": 7}, {"op": "nope"}, {"op": []}])
async def test_what_is_no_operation_of_this_door_is_refused(
    tmp_path: Path, request_: dict[str, Any]
) -> None:
    async with door(tmp_path, hello=hello) as path, Client(path) as client:
        await client.send(request_)
        answer = await client.receive()
        assert answer is not None and answer["error"]["name"] == "DaemonProtocolError"
        assert "ok" in await client.call("hello", {"version": 1})


@pytest.mark.parametrize(
    "junk",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\0",
        (FRAME_BYTES_MAX + 1).to_bytes(4, "big"),
        b"\xff\xff\xff\xff",
        b"\0\0\0\x01\xc1",
        b"\0\0\0\x01\x90",
        encode_frame({"op": "hello"}) * 2,
    ],
)
async def test_junk_ends_that_connection_and_no_other(tmp_path: Path, junk: bytes) -> None:
    async with door(tmp_path, hello=hello) as path, Client(path) as good:
        assert "ok" in await good.call("hello", {"version": 1})
        async with Client(path) as bad:
            await bad.socket.send(junk)
            answer = await bad.receive()
            assert answer is not None and answer["error"]["name"] == "DaemonProtocolError"
            assert await bad.receive() is None
        assert "ok" in await good.call("hello", {"version": 1})


async def test_a_request_that_is_not_finished_in_time_ends_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_door, "DOOR_REQUEST_S_MAX", 0.05)
    async with door(tmp_path, hello=hello) as path, Client(path) as client:
        await client.socket.send(encode_frame({"op": "hello"})[:7])
        assert await client.receive() is None


@pytest.mark.parametrize("rudely", [False, True])
async def test_a_client_that_leaves_or_talks_cancels_its_call(tmp_path: Path, rudely: bool) -> None:
    begun, cancelled = trio.Event(), trio.Event()

    async def load(call: Call) -> dict[str, Any]:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with door(tmp_path, load=load) as path, Client(path) as client:
        await client.send({"op": "load", "body": load_body()})
        await begun.wait()
        if rudely:
            await client.send({"op": "load", "body": load_body()})
        else:
            client.socket.close()
        with trio.fail_after(5):
            await cancelled.wait()


async def test_when_all_places_are_taken_the_idle_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_door, "DOOR_CONNECTIONS_MAX", 2)
    async with (
        door(tmp_path, hello=hello) as path,
        Client(path) as first,
        Client(path) as second,
        Client(path) as third,
    ):
        for client in (first, second, third):
            assert "ok" in await client.call("hello", {"version": 1})
            # A client counts as idle when its call is over, a moment after it is answered.
            await trio.testing.wait_all_tasks_blocked()
        assert await first.receive() is None
        assert "ok" in await second.call("hello", {"version": 1})


async def test_who_waits_for_a_place_gets_it_when_a_call_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_door, "DOOR_CONNECTIONS_MAX", 1)
    begun, done = trio.Event(), trio.Event()

    async def load(call: Call) -> dict[str, Any]:
        begun.set()
        await done.wait()
        return dict(LOADED)

    async with (
        door(tmp_path, load=load, hello=hello) as path,
        Client(path) as busy,
        Client(path) as waiting,
    ):
        await busy.send({"op": "load", "body": load_body()})
        await begun.wait()
        await waiting.send({"op": "hello", "body": {"version": 1}})
        await trio.testing.wait_all_tasks_blocked()
        done.set()
        assert "ok" in (await waiting.receive() or {})


async def test_too_many_waiting_clients_are_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_door, "DOOR_CONNECTIONS_MAX", 1)
    monkeypatch.setattr(unix_door, "DOOR_WAITING_MAX", 0)
    async with door(tmp_path, hello=hello) as path, Client(path) as first:
        await trio.testing.wait_all_tasks_blocked()
        async with Client(path) as second:
            answer = await second.receive()
            assert answer is not None and "too many" in answer["error"]["message"]
        assert "ok" in await first.call("hello", {"version": 1})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_is_refused_before_he_is_heard(tmp_path: Path) -> None:
    async with door(tmp_path, hello=hello) as path:
        # As if the file modes had failed.
        for directory in (tmp_path, *tmp_path.parents[:3]):
            directory.chmod(0o755)
        path.chmod(0o666)
        script = (
            "import os,socket,sys\n"
            "os.setgroups([]);os.setresgid(65534,65534,65534);os.setresuid(65534,65534,65534)\n"
            "s=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1])\n"
            "print(s.makefile('rb').read())"
        )
        run = await trio.run_process(
            [sys.executable, "-c", script, str(path)], capture_stdout=True, capture_stderr=True
        )
    assert b"DaemonAuthError" in run.stdout
    assert b"socket belongs to user root" in run.stdout


def open_descriptors() -> int:
    gc.collect()  # what an earlier test has left
    return len(os.listdir("/proc/self/fd"))
