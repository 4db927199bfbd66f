"""A daemon with feeds, in a thread: its own handlers at both doors, and a network of one node."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trio

from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeKey
from kachery_p2p.network.memberships import Memberships
from kachery_p2p.node.config import NodeConfig
from kachery_p2p.node.feeds_api import FeedsApi
from kachery_p2p.node.http_door import serve_http_door
from kachery_p2p.node.parts import Parts
from kachery_p2p.node.unix_door import serve_unix_door
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.grants import Grants
from kachery_p2p.store.index import Index
from tests.feeds.feed_nodes import LAB, feed_lab

TOKEN = "ab" * 32


class FeedDaemon:
    """The daemon of a configuration directory, which is in the channel `lab`, alone."""

    def __init__(self, config: Path, store: Path) -> None:
        self.config = config
        self.grants = Grants(str(config / "state" / "grants.db"))
        blobs = BlobStore(str(store), Index(str(config / "state" / "index.db")), 0)
        key = NodeKey.generate(b"n" * NODE_KEY_BYTES)
        node_config = NodeConfig(str(config), str(store))
        made: Any = (node_config, key, Memberships([LAB]), (), blobs, self.grants)
        self.parts = Parts(*made)
        self.port = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._serve,))

    def __enter__(self) -> FeedDaemon:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._trio.run_sync_soon(self._scope.cancel)
        self._thread.join(10)
        self.grants.close()
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._trio = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as self._scope:
            async with feed_lab(self.config.parent) as lab, trio.open_nursery() as nursery:
                node = await lab.node("node", disk=self.config.name)

                async def service() -> Any:
                    return node.feeds

                network: Any = SimpleNamespace(feeds=SimpleNamespace(service=service))
                self.parts.connected(network)
                handlers = FeedsApi(self.parts).handlers()
                await nursery.start(serve_unix_door, str(self.config), handlers)
                address = ("127.0.0.1", 0)
                _, self.port = await nursery.start(serve_http_door, address, TOKEN, handlers)
                self._ready.set()
