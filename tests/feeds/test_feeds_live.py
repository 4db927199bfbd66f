"""Feeds over real connections on loopback: sockets, noise, yamux, and real disks."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
import trio.testing

from kachery_p2p.feeds.service import FeedService
from kachery_p2p.feeds.told import SubfeedName
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeId, NodeKey
from kachery_p2p.network.discovery import AddressBook
from kachery_p2p.network.histories import Histories
from kachery_p2p.network.libp2p_host import open_libp2p_link
from kachery_p2p.network.meeting import Me
from kachery_p2p.network.memberships import Memberships
from kachery_p2p.network.sessions import Sessions
from tests.feeds.feed_nodes import LAB, MAIN, MIB, kept


@asynccontextmanager
async def live(
    directory: Path, number: int, known: str | None = None
) -> AsyncIterator[tuple[FeedService, Sessions, str]]:
    """A node with feeds on a real link, and its address."""
    (directory / "state").mkdir(parents=True)
    key = NodeKey.generate(bytes([number]) * NODE_KEY_BYTES)
    book = AddressBook(key.node_id)
    if known is not None:
        book.add(NodeId.parse(known.rpartition("/")[2]), [known], by_user=True)
    me = Me(key, Memberships([LAB]), os.urandom)
    async with open_libp2p_link(key, [("127.0.0.1", 0)]) as link:
        sessions = Sessions(link, me, book, Histories(me, kept), label="live", agent="test")
        feeds = FeedService(str(directory), key.node_id, sessions)
        for op, handler in feeds.handlers.items():
            sessions.handle(op, handler)
        async with feeds.running(), sessions.running():
            yield feeds, sessions, link.addresses[0]


async def test_a_reader_catches_up_hears_news_and_submits_over_a_real_connection(
    tmp_path: Path,
) -> None:
    texts = [f'"{number:0100}"' for number in range(10_000)]
    with trio.fail_after(60):
        async with (
            live(tmp_path / "author", 1) as (author, _, address),
            live(tmp_path / "reader", 2, address) as (reader, sessions, _),
        ):
            while not sessions.all():
                await sessions.changed()
            feed = await author.create(None, None)
            await author.append(feed, MAIN, texts)
            found: list[str] = []
            while len(found) < len(texts):
                messages, _ = await reader.read(feed, MAIN, len(found), 1 << 16, 8 * MIB, 10)
                found += [message.text for message in messages]
            assert found == texts
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def read() -> None:
                    messages, size = await reader.read(feed, MAIN, len(texts), 1, MIB, 30)
                    assert ([message.text for message in messages], size) == (["1"], 10_001)

                await trio.testing.wait_all_tasks_blocked()
                await author.append(feed, MAIN, ["1"])
            await author.grant(feed, MAIN, reader._node_id)
            assert await reader.submit(feed, MAIN, ["2", "3"]) == [10_001, 10_002]
            subfeed = await reader._subfeeds.open(SubfeedName(feed, MAIN))
            while subfeed.readable < 10_003:
                await subfeed.changed.wait()
