"""A member that has a file, and lies about its size: HTTP clients get the file as it is.

A review found that one such member made files shorter over HTTP, without an error: what it
claimed was taken for what the root binds.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h11
import pytest
import trio

import kachery_p2p as kp
from kachery_p2p.errors import InvalidRangeError, LoadTimeoutError
from kachery_p2p.limits import CHUNK_BYTES
from kachery_p2p.network.simulated import World
from kachery_p2p.node.api import Api
from kachery_p2p.node.http_door import serve_http_door
from kachery_p2p.store.blobs import Stored
from tests.transfer.conftest import LAB, Disk, Lab
from tests.transfer.conftest import new_disk as new_disk

DATA = random.Random(1).randbytes(3 * CHUNK_BYTES + 7)
TOKEN = "ab" * 32
SAID = pytest.mark.parametrize("said", [0, 1000, 9_000_000])


class Response:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body


class Scene:
    """A daemon that is asked over HTTP, and in its channel an honest member and one that lies."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.port = 0

    async def begin(self) -> None:
        self.reader = await self.lab.node("reader")
        self.honest = await self.lab.node("honest")
        self.liar = await self.lab.node("liar")
        await self.lab.together(*self.lab.nodes)
        address = ("127.0.0.1", 0)
        _, self.port = await self.lab.nursery.start(
            serve_http_door, address, TOKEN, Api(self._parts()).handlers()
        )

    def _parts(self) -> Any:
        async def not_in_a_batch(*_: object) -> bool:
            return False

        coming = SimpleNamespace(wait_while_in_batches=not_in_a_batch)
        network = SimpleNamespace(
            holders=self.reader.holders,
            downloads=self.reader.downloads,
            sessions=self.reader.sessions,
            batches=SimpleNamespace(coming=coming),
        )

        async def connected() -> SimpleNamespace:
            return network

        return SimpleNamespace(
            blobs=self.reader.disk.blobs,
            grants=self.reader.disk.grants,
            channels=[LAB],
            channel_name=lambda channel: "lab",
            network=connected,
        )

    def give(self, data: bytes, said: int) -> Stored:
        """The honest member has it; the other one says so too, before it, but of a wrong size."""
        stored = self.honest.store(data)

        async def lie(*_: object) -> dict[str, Any]:
            return {"size": said, "root": stored.root.raw, "pinned": True}

        honest_have = self.honest.server._have

        async def answer_late(session: Any, body: dict[str, Any]) -> dict[str, Any]:
            await trio.sleep(0.05)
            return await honest_have(session, body)

        self.liar.sessions.handle("have", lie)
        self.honest.sessions.handle("have", answer_late)
        return stored

    async def ask(self, method: str, stored: Stored, query: str = "", asked: str = "") -> Response:
        """The answer about that file. `asked` is a range; without a `query` no root is given."""
        target = f"/blobs/sha1/{stored.content}{query}"
        headers = [("Host", f"127.0.0.1:{self.port}"), ("Authorization", f"Bearer {TOKEN}")]
        if asked:
            headers.append(("Range", f"bytes={asked}"))
        connection, body = h11.Connection(h11.CLIENT), b""
        request = h11.Request(method=method, target=target, headers=headers)
        with trio.fail_after(30):
            async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
                await stream.send_all(connection.send(request))
                await stream.send_all(connection.send(h11.EndOfMessage()))
                while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                    if event is h11.NEED_DATA:
                        connection.receive_data(await stream.receive_some())
                    elif isinstance(event, h11.Data):
                        body += event.data
                    elif isinstance(event, h11.Response):
                        response = event
        found = {name.decode(): value.decode() for name, value in response.headers}
        return Response(response.status_code, found, body)


@pytest.fixture
async def scene(new_disk: Callable[..., Disk]) -> AsyncIterator[Scene]:
    async with World(seed=1) as world, trio.open_nursery() as nursery:
        made = Scene(Lab(world, nursery, new_disk))
        await made.begin()
        yield made
        nursery.cancel_scope.cancel()


@pytest.fixture
def far(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """The scene, whose daemon is that of the client in this process."""
    monkeypatch.setenv("KACHERY_DAEMON_HOST", "127.0.0.1")
    monkeypatch.setenv("KACHERY_DAEMON_PORT", str(scene.port))
    monkeypatch.setenv("KACHERY_DAEMON_TOKEN", TOKEN)
    monkeypatch.setenv("KACHERY_STORAGE_DIR", str(tmp_path / "client-store"))
    monkeypatch.setenv("KACHERY_P2P_CONFIG_DIR", str(tmp_path / "client-config"))
    return scene


def root_of(stored: Stored) -> str:
    return f"?root={stored.root}"


def uri_of(stored: Stored) -> str:
    return f"sha1://{stored.content}/x.dat?root={stored.root}"


# --- whoever speaks HTTP --------------------------------------------------------------------------


@SAID
async def test_head_tells_the_size_that_the_root_binds(scene: Scene, said: int) -> None:
    stored = scene.give(DATA, said)
    answer = await scene.ask("HEAD", stored, root_of(stored))
    assert (answer.status, answer.headers["content-length"]) == (200, str(len(DATA)))


@SAID
@pytest.mark.parametrize(("asked", "start"), [("0-", 0), ("-9", len(DATA) - 9), ("2000-", 2000)])
async def test_a_range_ends_where_the_file_does(
    scene: Scene, said: int, asked: str, start: int
) -> None:
    stored = scene.give(DATA, said)
    answer = await scene.ask("GET", stored, root_of(stored), asked)
    extent = f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"
    assert (answer.status, answer.headers["content-range"]) == (206, extent)
    assert answer.body == DATA[start:]


@SAID
async def test_a_range_beyond_the_file_is_refused_with_its_size(scene: Scene, said: int) -> None:
    stored = scene.give(DATA, said)
    answer = await scene.ask("GET", stored, root_of(stored), f"{len(DATA)}-")
    assert (answer.status, answer.headers["content-range"]) == (416, f"bytes */{len(DATA)}")


@SAID
async def test_without_a_root_the_whole_file_shows_its_size(scene: Scene, said: int) -> None:
    stored = scene.give(DATA, said)
    head = await scene.ask("HEAD", stored)
    assert head.headers["content-length"] == str(len(DATA))
    answer = await scene.ask("GET", stored, "", "5-")
    assert (answer.status, answer.body) == (206, DATA[5:])


async def test_an_empty_file_has_no_bytes_whatever_is_said(scene: Scene) -> None:
    stored = scene.give(b"", 1000)
    head = await scene.ask("HEAD", stored, root_of(stored))
    assert (head.status, head.headers["content-length"]) == (200, "0")
    answer = await scene.ask("GET", stored, root_of(stored), "0-")
    assert (answer.status, answer.headers["content-range"]) == (416, "bytes */0")


async def test_what_only_the_liar_says_it_has_has_no_size(scene: Scene) -> None:
    stored = scene.give(DATA, 1000)
    scene.honest.disk.grants.revoke([stored.content], LAB.id)
    for method, asked in (("HEAD", ""), ("GET", "0-")):
        answer = await scene.ask(method, stored, f"{root_of(stored)}&timeout_s=0.5", asked)
        assert (answer.status, answer.headers.get("content-range")) == (504, None)


async def test_a_range_of_what_is_here_takes_no_time_of_the_network(scene: Scene) -> None:
    stored = scene.reader.store(DATA)
    answer = await scene.ask("GET", stored, f"{root_of(stored)}&timeout_s=0", "-9")
    assert (answer.status, answer.body) == (206, DATA[-9:])


async def test_both_halves_of_a_range_end_in_the_time_that_the_client_allows(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed: list[float] = []
    stored = scene.give(DATA, 1000)
    load_range = scene.reader.downloads.load_range

    async def slow(*given: Any) -> tuple[int, int]:
        began = trio.current_time()
        await trio.sleep(0.1)
        found = await load_range(*given)
        allowed.append(trio.current_effective_deadline() - began)
        return found

    monkeypatch.setattr(scene.reader.downloads, "load_range", slow)
    answer = await scene.ask("GET", stored, f"{root_of(stored)}&timeout_s=20", "0-9")
    assert answer.body == DATA[:10]
    first, second = allowed
    assert 15 < first <= 20 and second <= first - 0.1


# --- our own client -------------------------------------------------------------------------------


@SAID
async def test_a_file_is_opened_whole(far: Scene, said: int) -> None:
    uri = uri_of(far.give(DATA, said))

    def read() -> tuple[bytes, int, bytes]:
        with kp.open(uri) as file:
            data = file.read()
            end = file.seek(0, 2)
            file.seek(-9, 2)
            return data, end, file.read()

    data, end, last = await trio.to_thread.run_sync(read)
    assert hashlib.sha1(data).digest() == hashlib.sha1(DATA).digest()
    assert (end, last) == (len(DATA), DATA[-9:])


@SAID
async def test_bytes_are_loaded_up_to_the_end_of_the_file_and_no_further(
    far: Scene, said: int
) -> None:
    uri, size = uri_of(far.give(DATA, said)), len(DATA)
    load = trio.to_thread.run_sync
    assert await load(kp.load_bytes, uri, 2 * CHUNK_BYTES, size) == DATA[2 * CHUNK_BYTES :]
    assert await load(kp.load_bytes, uri, size, size) == b""
    for start, end in ((size + 1, size + 1), (0, size + 1)):
        with pytest.raises(InvalidRangeError):
            await load(kp.load_bytes, uri, start, end)


async def test_an_empty_file_is_opened_as_one(far: Scene) -> None:
    uri = uri_of(far.give(b"", 1000))

    def read() -> bytes:
        with kp.open(uri) as file:
            return file.read()

    assert await trio.to_thread.run_sync(read) == b""
    assert await trio.to_thread.run_sync(kp.load_bytes, uri, 0, 0) == b""
    with pytest.raises(InvalidRangeError):
        await trio.to_thread.run_sync(kp.load_bytes, uri, 1, 1)


async def test_what_only_the_liar_says_it_has_is_not_opened(far: Scene) -> None:
    stored = far.give(DATA, 1000)
    far.honest.disk.grants.revoke([stored.content], LAB.id)
    with pytest.raises(LoadTimeoutError):
        await trio.to_thread.run_sync(lambda: kp.open(uri_of(stored), timeout=0.5))
