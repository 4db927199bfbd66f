"""A daemon for the client to talk to: real doors and a real store, but no network."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import InvalidRangeError, KacheryError, NotFoundError, UnknownChannelError
from kachery_p2p.node.doors import Call, Handler, pieces_in_thread
from kachery_p2p.node.http_door import serve_http_door
from kachery_p2p.node.unix_door import serve_unix_door
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.index import Index
from kachery_p2p.wire.operations import error_to_map
from kachery_p2p.wire.packed_names import unpack

TOKEN = "ab" * 32


class FakeDaemon:
    """Serves one store directory through both doors, from a thread of its own.

    `remote` holds what "the network" has: a load brings it into the store.
    """

    def __init__(self, config: Path, store: Path) -> None:
        self.config, self.store_dir = config, store
        self.blobs = BlobStore(str(store), Index(str(config / "state" / "index.db")), 0)
        self.remote: dict[str, bytes] = {}
        self.operations: list[str] = []
        self.shared: list[tuple[str, list[str] | None]] = []
        self.put_in: list[str] = []
        self.fail_with: KacheryError | None = None
        # What happens, in the daemon, before a load is answered.
        self.on_load: Callable[[Call], Awaitable[None]] | None = None
        # What those on the network say the root of everything is.
        self.claimed_root: str | None = None
        # How many of many files it answers for in one call.
        self.answered_max: int | None = None
        self.port = 0

    def handlers(self) -> dict[str, Handler]:
        names = (
            *("hello", "status", "load", "load_many", "load_range", "find"),
            *("share", "store", "put", "stop"),
        )
        return {name: self._counted(name) for name in names}

    def _counted(self, name: str) -> Handler:
        handler: Handler = getattr(self, "_" + name)

        async def counted(call: Call) -> dict[str, Any]:
            self.operations.append(name)
            if self.fail_with is not None:
                raise self.fail_with
            return await handler(call)

        return counted

    async def _hello(self, call: Call) -> dict[str, Any]:
        found = os.stat(self.store_dir)
        return {
            "version": 1,
            "node_id": "12" * 32,
            "store": str(self.store_dir),
            "store_dev": found.st_dev,
            "store_ino": found.st_ino,
        }

    async def _status(self, call: Call) -> dict[str, Any]:
        return {
            "node_id": "12" * 32,
            "addresses": ["/ip4/127.0.0.1/tcp/1/p2p/x"],
            "http": None,
            "channels": [],
            "peers": [],
            "loads": [],
            "label": "",
            "version": "1",
            "store": str(self.store_dir),
            "uptime_s": 1.0,
            "pending_shares": 0,
            "bytes_served": 0,
            "problems": [],
        }

    def _path(self, content: str) -> str:
        if content in self.remote:
            self.blobs.put_bytes(self.remote.pop(content))
        path = self.blobs.find(ContentHash(content))
        if path is None:
            raise NotFoundError(f"no peer has sha1://{content}", hint="ask its owner")
        return path

    async def _load(self, call: Call) -> dict[str, Any]:
        call.progress({"bytes": 1, "size": 2, "sources": ["lab-pc"], "verified": 1})
        await trio.testing.wait_all_tasks_blocked()
        if self.on_load is not None:
            await self.on_load(call)
        path = self._path(call.body["content"])
        call.attach(os.open(path, os.O_RDONLY))
        return {"path": path, "size": os.stat(path).st_size, "root": None}

    async def _load_many(self, call: Call) -> dict[str, Any]:
        contents = unpack(call.body["contents"], ContentHash.CHARS)
        call.progress({"phase": "fetching", "bytes": 1, "files": 0, "files_total": len(contents)})
        await trio.testing.wait_all_tasks_blocked()
        if self.on_load is not None:
            await self.on_load(call)
        failed = []
        answered = contents[: self.answered_max]
        for place, content in enumerate(answered):
            try:
                self._path(content)
            except KacheryError as error:
                failed.append({"place": place, **error_to_map(error)})
        return {"answered": len(answered), "failed": failed}

    async def _load_range(self, call: Call) -> dict[str, Any]:
        if self.on_load is not None:
            await self.on_load(call)
        path = self._path(call.body["content"])
        start, end, size = call.body["start"], call.body["end"], os.stat(path).st_size
        if end > size:
            raise InvalidRangeError("outside")
        call.attach(os.open(path, os.O_RDONLY))
        return {"offset": start, "length": end - start, "size": size}

    async def _find(self, call: Call) -> dict[str, Any]:
        content = call.body["content"]
        path = self.blobs.find(ContentHash(content))
        size = os.stat(path).st_size if path else None
        providers = []
        if content in self.remote and call.body["timeout_s"] != 0:
            size = len(self.remote[content])
            providers = [{"node_id": "34" * 32, "label": "lab-pc", "channel": "lab"}]
        root = self.claimed_root
        return {"local": path is not None, "size": size, "root": root, "providers": providers}

    async def _share(self, call: Call) -> dict[str, Any]:
        channels = call.body["channels"]
        if channels == ["nowhere"]:
            raise UnknownChannelError("not in a channel 'nowhere'")
        contents = call.body["contents"] or []
        here = [c for c in contents if self.blobs.find(ContentHash(c))]
        self.shared += [(content, channels) for content in here]
        missing = [c for c in contents if c not in here]
        return {"shared": len(here), "channels": channels or ["lab"], "missing": missing}

    async def _store(self, call: Call) -> dict[str, Any]:
        assert call.descriptor is not None
        stored = self.blobs.put_file(call.descriptor)
        self.shared.append((stored.content, call.body["channels"]))
        return {"content": stored.content, "root": stored.root, "size": stored.size}

    async def _put(self, call: Call) -> dict[str, Any]:
        assert call.stream is not None
        content = ContentHash(call.body["content"])
        pieces = pieces_in_thread(call.stream)
        stored = await trio.to_thread.run_sync(self.blobs.put_stream, pieces, content)
        self.put_in.append(content)
        return {"content": stored.content, "root": stored.root, "size": stored.size}

    async def _stop(self, call: Call) -> dict[str, Any]:
        self._scope.cancel()
        return {}

    # --- running ----------------------------------------------------------------------------

    def start(self) -> None:
        ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._serve, ready))
        self._thread.start()
        assert ready.wait(10)

    async def _serve(self, ready: threading.Event) -> None:
        self._trio = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as self._scope:
            async with trio.open_nursery() as nursery:
                handlers = self.handlers()
                await nursery.start(serve_unix_door, str(self.config), handlers)
                address = ("127.0.0.1", 0)
                _, self.port = await nursery.start(serve_http_door, address, TOKEN, handlers)
                ready.set()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._trio.run_sync_soon(self._scope.cancel)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def give_network(self, data: bytes) -> str:
        content = hashlib.sha1(data).hexdigest()
        self.remote[content] = data
        return content


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for each test."""
    for name in ("HOST", "PORT", "TOKEN"):
        monkeypatch.delenv(f"KACHERY_DAEMON_{name}", raising=False)
    monkeypatch.setenv("KACHERY_STORAGE_DIR", str(tmp_path / "store"))
    monkeypatch.setenv("KACHERY_P2P_CONFIG_DIR", str(tmp_path / "config"))
    return tmp_path


def run_daemon(config: Path, store: Path) -> Iterator[FakeDaemon]:
    config.mkdir(mode=0o700, exist_ok=True)
    store.mkdir(exist_ok=True)
    daemon = FakeDaemon(config, store)
    daemon.start()
    yield daemon
    daemon.stop()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    """A daemon with the client's own store directory."""
    yield from run_daemon(tmp_path / "config", tmp_path / "store")


@pytest.fixture
def distant(tmp_path: Path) -> Iterator[FakeDaemon]:
    """A daemon of the client's configuration, with another store directory."""
    yield from run_daemon(tmp_path / "config", tmp_path / "their-store")


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    """A daemon of which the client knows only host, port and token."""
    for one in run_daemon(tmp_path / "their-config", tmp_path / "their-store"):
        monkeypatch.setenv("KACHERY_DAEMON_HOST", "127.0.0.1")
        monkeypatch.setenv("KACHERY_DAEMON_PORT", str(one.port))
        monkeypatch.setenv("KACHERY_DAEMON_TOKEN", TOKEN)
        yield one


@pytest.fixture
def start_daemon() -> Iterator[Callable[[Path, Path], FakeDaemon]]:
    """A function that starts a daemon with the directories given."""
    with contextlib.ExitStack() as stack:
        start = contextlib.contextmanager(run_daemon)
        yield lambda config, store: stack.enter_context(start(config, store))
