"""Two nodes with feeds, in processes of their own: one writes, the other follows.

Each function is called by child.py. They are what a node has of sessions and feeds, on a real
link; what a client adds by asking its daemon is measured elsewhere.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from kachery_p2p.channels.channel import Channel
from kachery_p2p.channels.history import History
from kachery_p2p.content.hashes import FeedId, sha1_of
from kachery_p2p.feeds.service import FeedService
from kachery_p2p.feeds.told import SubfeedName
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeId, NodeKey
from kachery_p2p.network.discovery import AddressBook
from kachery_p2p.network.histories import Histories
from kachery_p2p.network.lean_import import empty_packages
from kachery_p2p.network.meeting import Me
from kachery_p2p.network.memberships import Memberships
from kachery_p2p.network.sessions import Sessions

CHANNEL = Channel.shared(b"B" * 20, "bench")
MAIN, LIVE = sha1_of(b"main"), sha1_of(b"live")
TEXT = '"' + "x" * 198 + '"'
BATCH = 10_000
FIND_S_MAX = 30.0
APPEND_EVERY_S = 0.01


def write(directory: str, count: int, live: int) -> dict[str, Any]:
    """Print address and feed of a node with `count` messages; then append `live` ones, each of
    which is the time, to another subfeed once somebody follows it; until the follower has gone.
    """
    return trio.run(_write, directory, count, live)


def follow(directory: str, address: str, feed: str, count: int, live: int) -> dict[str, Any]:
    """Seconds to have all messages, verified and durable; and from append to read, of `live`."""
    return trio.run(_follow, directory, address, FeedId(feed), count, live)


async def _write(directory: str, count: int, live: int) -> dict[str, Any]:
    async with _node(directory, None) as (sessions, feeds, address):
        feed = await feeds.create(None, None)
        for first in range(0, count, BATCH):
            await feeds.append(feed, MAIN, [TEXT] * min(BATCH, count - first))
        print(address, feed, flush=True)
        began = time.process_time()
        with trio.fail_after(FIND_S_MAX):
            while not sessions.all():
                await sessions.changed()
        name = SubfeedName(feed, LIVE)
        while sessions.all() and not feeds._spreading.count(name):  # noqa: ASYNC110
            await trio.sleep(APPEND_EVERY_S)
        for _ in range(live):
            await feeds.append(feed, LIVE, [str(time.perf_counter_ns())])
            await trio.sleep(APPEND_EVERY_S)
        while sessions.all():
            await sessions.changed()
        return {"node_cpu_s": time.process_time() - began}


async def _follow(
    directory: str, address: str, feed: FeedId, count: int, live: int
) -> dict[str, Any]:
    async with _node(directory, address) as (sessions, feeds, _):
        with trio.fail_after(FIND_S_MAX):
            while not sessions.all():
                await sessions.changed()
        began, cpu = time.perf_counter(), time.process_time()
        await feeds.read(feed, MAIN, 0, 1, 1 << 20, FIND_S_MAX)
        subfeed = await feeds._subfeeds.open(SubfeedName(feed, MAIN))
        while subfeed.replica.readable < count:
            await subfeed.changed.wait()
        seconds = time.perf_counter() - began
        cpu = time.process_time() - cpu
        waits = [await _wait_for(feeds, feed, position) for position in range(live)]
        return {"seconds": seconds, "transfer_cpu_s": cpu, "waits_ms": waits}


async def _wait_for(feeds: FeedService, feed: FeedId, position: int) -> float:
    """How old a message is when who waited for it has it."""
    while True:
        found, _ = await feeds.read(feed, LIVE, position, 1, 1 << 20, FIND_S_MAX)
        if found:
            return (time.perf_counter_ns() - int(found[0].text)) / 1e6


@asynccontextmanager
async def _node(
    directory: str, known: str | None
) -> AsyncIterator[tuple[Sessions, FeedService, str]]:
    with empty_packages(("libp2p", "libp2p.transport", "libp2p.security", "libp2p.network")):
        from kachery_p2p.network.libp2p_host import open_libp2p_link

    os.makedirs(f"{directory}/state")
    key = NodeKey.generate(os.urandom(NODE_KEY_BYTES))
    book = AddressBook(key.node_id)
    if known is not None:
        book.add(NodeId.parse(known.rpartition("/")[2]), [known], by_user=True)
    me = Me(key, Memberships([CHANNEL]), os.urandom)
    async with open_libp2p_link(key, [("127.0.0.1", 0)]) as link:
        sessions = Sessions(link, me, book, Histories(me, _kept), label="bench", agent="bench")
        feeds = FeedService(directory, key.node_id, sessions)
        for op, handler in feeds.handlers.items():
            sessions.handle(op, handler)
        async with feeds.running(), sessions.running():
            yield sessions, feeds, link.addresses[0]
            sys.stdout.flush()


async def _kept(history: History) -> None:
    """There are no owned channels here."""
