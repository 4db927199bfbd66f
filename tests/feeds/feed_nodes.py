"""Nodes with feeds in the simulated world, each with a disk of its own; and liars among them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import trio

from kachery_p2p.channels.channel import Channel
from kachery_p2p.channels.history import History
from kachery_p2p.content.hashes import FeedId, sha1_of
from kachery_p2p.feeds.service import FeedService
from kachery_p2p.feeds.subfeed import Subfeed
from kachery_p2p.feeds.told import SubfeedName
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeKey
from kachery_p2p.network.discovery import AddressBook
from kachery_p2p.network.histories import Histories
from kachery_p2p.network.meeting import Me
from kachery_p2p.network.memberships import Memberships
from kachery_p2p.network.sessions import Sessions
from kachery_p2p.network.simulated import World

LAB = Channel.shared(b"L" * 20, "lab")
FIELD = Channel.shared(b"F" * 20, "field")
MAIN = sha1_of(b"main")
MIB = 1 << 20

Answer = Callable[[Any, dict[str, Any]], Awaitable[dict[str, Any]]]


async def kept(history: History) -> None:
    """These nodes keep no histories of their own making."""


class Node:
    """A node with nothing but sessions and feeds."""

    def __init__(
        self, lab: FeedLab, number: int, label: str, channels: list[Channel], directory: Path
    ) -> None:
        self.label = label
        self.lab = lab
        self.directory = directory
        self.channels = channels
        self.key = NodeKey.generate(bytes([number]) * NODE_KEY_BYTES)
        self.id = self.key.node_id
        self.link = lab.world.link(self.id)
        self.book = AddressBook(self.id)
        self.memberships = self.made_memberships(channels)
        me = Me(self.key, self.memberships, Random(number).randbytes)
        self.histories = Histories(me, kept)
        self.sessions = Sessions(
            self.link, me, self.book, self.histories, label=label, agent="test"
        )
        (directory / "state").mkdir(parents=True, exist_ok=True)
        self.feeds = FeedService(str(directory), self.id, self.sessions)
        # What a liar answers instead.
        self.lies: dict[str, Answer] = {}
        self.scope = trio.CancelScope()
        self.stopped = trio.Event()

    def made_memberships(self, channels: list[Channel]) -> Memberships:
        return Memberships(channels)

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        with self.scope:
            for op, handler in {**self.feeds.handlers, **self.lies}.items():
                self.sessions.handle(op, handler)
            async with self.feeds.running(), self.sessions.running():
                task_status.started()
                await trio.sleep_forever()
        self.stopped.set()

    async def stop(self) -> None:
        """End it; its disk stays."""
        self.scope.cancel()
        await self.stopped.wait()

    # --- feeds ---------------------------------------------------------------------------------

    async def new_feed(self, *texts: str, channels: list[Channel] | None = None) -> FeedId:
        """A feed with these messages in its subfeed "main"."""
        ids = None if channels is None else [channel.id for channel in channels]
        feed = await self.feeds.create(None, ids)
        if texts:
            await self.feeds.append(feed, MAIN, list(texts))
        return feed

    async def append(self, feed: FeedId, *texts: str) -> int:
        return await self.feeds.append(feed, MAIN, list(texts))

    async def read(
        self, feed: FeedId, first: int = 0, wait_s: float = 5.0, count: int = 1 << 16
    ) -> list[str]:
        """The texts from `first` on, as one call gives them."""
        found, _ = await self.feeds.read(feed, MAIN, first, count, 8 * MIB, wait_s)
        return [message.text for message in found]

    async def read_all(self, feed: FeedId, count: int, wait_s: float = 20.0) -> list[str]:
        """All texts, as soon as there are `count`."""
        texts: list[str] = []
        with trio.fail_after(wait_s):
            while len(texts) < count:
                texts += await self.read(feed, len(texts))
        return texts

    async def subfeed(self, feed: FeedId) -> Subfeed:
        """The inside of the service."""
        return await self.feeds._subfeeds.open(SubfeedName(feed, MAIN))

    async def until(
        self, feed: FeedId, holds: Callable[[Subfeed], bool], wait_s: float = 30
    ) -> None:
        """Wait until something is true of the subfeed."""
        subfeed = await self.subfeed(feed)
        with trio.fail_after(wait_s):
            while not holds(subfeed):
                changed = subfeed.changed
                with trio.move_on_after(0.5):
                    await changed.wait()


class FeedLab:
    """Nodes that know the first one's address, unless said otherwise."""

    def __init__(self, world: World, nursery: trio.Nursery, directory: Path) -> None:
        self.world = world
        self.nursery = nursery
        self.directory = directory
        self.nodes: list[Node] = []
        self._numbers: dict[str, int] = {}

    def made(
        self,
        label: str,
        *channels: Channel,
        kind: type[Node] = Node,
        disk: str | None = None,
        knows: list[Node] | None = None,
    ) -> Node:
        """A node that does not run yet. `disk`: that of another one."""
        number = self._numbers.setdefault(label, len(self._numbers) + 1)
        directory = self.directory / (disk or label)
        node = kind(self, number, label, list(channels or (LAB,)), directory)
        for other in self.nodes[:1] if knows is None else knows:
            node.book.add(other.id, other.link.addresses, by_user=True)
        return node

    async def node(self, label: str, *channels: Channel, **options: Any) -> Node:
        """A running node."""
        return await self.started(self.made(label, *channels, **options))

    async def started(self, node: Node) -> Node:
        self.nodes.append(node)
        await self.nursery.start(node.run)
        return node

    async def restarted(self, node: Node) -> Node:
        """The node after a crash, on the same disk."""
        await self.stopped(node)
        others = [other for other in self.nodes if other is not node]
        return await self.started(
            self.made(node.label, *node.channels, disk=node.directory.name, knows=others[:1])
        )

    async def stopped(self, node: Node) -> None:
        await node.stop()
        self.world.crash(node.id)
        self.nodes.remove(node)

    async def together(self, *nodes: Node) -> None:
        """Wait until each of these has a session with each other of them."""
        with trio.fail_after(60):
            for one in nodes:
                for other in nodes:
                    while other is not one and one.sessions.get(other.id) is None:
                        await one.sessions.changed()


@asynccontextmanager
async def feed_lab(directory: Path, seed: int = 1) -> AsyncIterator[FeedLab]:
    """An empty lab, which ends with all its nodes."""
    async with World(seed=seed) as world, trio.open_nursery() as nursery:
        yield FeedLab(world, nursery, directory)
        nursery.cancel_scope.cancel()
