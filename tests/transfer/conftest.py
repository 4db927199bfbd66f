"""For the tests of transfers: real stores, and a virtual clock that is fair to threads."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.channels.channel import Channel
from kachery_p2p.channels.history import History
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeKey
from kachery_p2p.network.discovery import AddressBook
from kachery_p2p.network.histories import Histories
from kachery_p2p.network.meeting import Me
from kachery_p2p.network.memberships import Memberships
from kachery_p2p.network.sessions import Sessions
from kachery_p2p.network.simulated import World
from kachery_p2p.store.blobs import BlobStore, Stored
from kachery_p2p.store.grants import Grants
from kachery_p2p.store.index import Index
from kachery_p2p.transfer.download import Downloads
from kachery_p2p.transfer.holders import Holders
from kachery_p2p.transfer.partial_serving import Offers
from kachery_p2p.transfer.progress import View
from kachery_p2p.transfer.serve import Server

LAB = Channel.shared(b"L" * 20, "lab")
FIELD = Channel.shared(b"F" * 20, "field")


async def kept(history: History) -> None:
    """These nodes keep no histories: they are in no owned channel."""


class Disk:
    """What one node has on disk."""

    def __init__(self, directory: Path, reserve_bytes: int = 0) -> None:
        self.directory = directory
        self.index = Index(str(directory / "state" / "index.db"))
        self.blobs = BlobStore(str(directory / "store"), self.index, reserve_bytes)
        self.grants = Grants(str(directory / "state" / "grants.db"))

    def close(self) -> None:
        self.index.close()
        self.grants.close()

    def objects(self) -> list[Path]:
        """Every file that stands under a content name."""
        return [path for path in self.directory.glob("store/sha1/*/*/*/*") if path.is_file()]

    def partials(self) -> list[Path]:
        """Every download that was put down."""
        return list(self.directory.glob("store/.partial/*/*"))


@pytest.fixture
def new_disk(tmp_path: Path) -> Iterator[Callable[..., Disk]]:
    with ExitStack() as stack:

        def make(name: str = "here", reserve_bytes: int = 0) -> Disk:
            disk = Disk(tmp_path / name, reserve_bytes)
            stack.callback(disk.close)
            return disk

        yield make


@pytest.fixture
def disk(new_disk: Callable[..., Disk]) -> Disk:
    return new_disk()


@pytest.fixture
def virtual_clock(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> MockClock:
    """Time passes when every task waits for it, and stands still while a thread is at work.

    (trio's own autojump takes a task that waits for a thread for idle, and would let
    deadlines pass in the microseconds that a disk needs.) One that waits for the loop is not.
    """
    at_work = 0
    in_thread, from_thread = trio.to_thread.run_sync, trio.from_thread.run

    def note(change: int) -> None:
        nonlocal at_work
        at_work += change
        autojump_clock.autojump_threshold = math.inf if at_work else 0

    async def run_sync(*args: Any, **options: Any) -> Any:
        note(+1)
        try:
            return await in_thread(*args, **options)
        finally:
            note(-1)

    def run(afn: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
        async def waited_for() -> Any:
            note(-1)
            try:
                return await afn(*args)
            finally:
                note(+1)

        return from_thread(waited_for, **options)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    monkeypatch.setattr(trio.from_thread, "run", run)
    return autojump_clock


class Node:
    """Everything a node is made of but its doors, in the simulated world."""

    def __init__(self, lab: Lab, number: int, label: str, channels: list[Channel]) -> None:
        self.disk: Disk = lab.new_disk(label)
        self.key = NodeKey.generate(bytes([number]) * NODE_KEY_BYTES)
        self.id = self.key.node_id
        self.label = label
        self.link = lab.world.link(self.id)
        self.book = AddressBook(self.id)
        self.memberships = self.made_memberships(channels)
        me = Me(self.key, self.memberships, Random(number).randbytes)
        self.histories = Histories(me, kept)
        self.sessions = Sessions(
            self.link, me, self.book, self.histories, label=label, agent="test"
        )
        self.offers = Offers()
        self.server = Server(
            sessions=self.sessions,
            link=self.link,
            blobs=self.disk.blobs,
            grants=self.disk.grants,
            offers=self.offers,
        )
        self.holders = Holders(self.sessions, self.link)
        self.downloads = Downloads(
            holders=self.holders,
            blobs=self.disk.blobs,
            grants=self.disk.grants,
            node_id=self.id,
            offers=self.offers,
        )
        self.told: list[View] = []

    def made_memberships(self, channels: list[Channel]) -> Memberships:
        return Memberships(channels)

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.server.run)
            async with self.downloads.running(), self.sessions.running():
                task_status.started()
                await trio.sleep_forever()

    def store(self, data: bytes, *channels: Channel) -> Stored:
        """Store and share `data`, in channel lab unless said otherwise."""
        stored = self.disk.blobs.put_bytes(data)
        self.share(stored.content, *channels)
        return stored

    def share(self, content: ContentHash, *channels: Channel) -> None:
        self.disk.grants.grant([content], [c.id for c in channels or (LAB,)], "test", 0.0)

    async def load(self, stored: Stored, *, root: bool = False) -> bytes:
        """The bytes that stand in this node's store after a load."""
        await self.downloads.load(stored.content, stored.root if root else None, self.told.append)
        return self.bytes_of(stored.content)

    def bytes_of(self, content: ContentHash) -> bytes:
        """What stands in this node's store."""
        path = self.disk.blobs.find(content)
        assert path is not None
        return Path(path).read_bytes()


class Lab:
    """Nodes that know the first one's address."""

    def __init__(self, world: World, nursery: trio.Nursery, new_disk: Callable[..., Disk]) -> None:
        self.world = world
        self.nursery = nursery
        self.new_disk = new_disk
        self.nodes: list[Node] = []

    async def node(self, label: str, *channels: Channel, kind: type[Node] = Node) -> Node:
        node = kind(self, len(self.nodes) + 1, label, list(channels or (LAB,)))
        for other in self.nodes[:1]:
            node.book.add(other.id, other.link.addresses, by_user=True)
        self.nodes.append(node)
        await self.nursery.start(node.run)
        return node

    async def together(self, *nodes: Node) -> None:
        """Wait until each of these has a session with each other of them."""
        with trio.fail_after(30):
            for one in nodes:
                for other in nodes:
                    while other is not one and one.sessions.get(other.id) is None:
                        await one.sessions.changed()


@pytest.fixture
async def lab(virtual_clock: MockClock, new_disk: Callable[..., Disk]) -> AsyncIterator[Lab]:
    async with World(seed=1) as world, trio.open_nursery() as nursery:
        yield Lab(world, nursery, new_disk)
        nursery.cancel_scope.cancel()
