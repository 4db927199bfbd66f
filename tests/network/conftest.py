"""Nodes for the tests of the network: real ones on loopback, or in the simulated world."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeKey
from kachery_p2p.network.link import Link
from kachery_p2p.network.simulated import World

NewNode = Callable[[], Awaitable[Link]]


def key_number(number: int) -> NodeKey:
    return NodeKey.generate(number.to_bytes(2, "big") * (NODE_KEY_BYTES // 2))


@pytest.fixture(params=["real", "simulated"])
def clock(request: pytest.FixtureRequest) -> MockClock | None:
    """The clock that the test runs by: pytest-trio uses it when it is one of trio's."""
    return MockClock(autojump_threshold=0) if request.param == "simulated" else None


@pytest.fixture
async def new_node(clock: MockClock | None) -> AsyncIterator[NewNode]:
    """Makes another node of the network under test."""
    count = 0
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(World(seed=1)) if clock else None
        nursery = await stack.enter_async_context(trio.open_nursery())

        async def make() -> Link:
            nonlocal count
            count += 1
            key = key_number(count)
            if world is not None:
                return world.link(key.node_id)
            link: Link = await nursery.start(_live, key)
            return link

        yield make
        nursery.cancel_scope.cancel()


async def _live(key: NodeKey, task_status: Any) -> None:
    from kachery_p2p.network.libp2p_host import open_libp2p_link

    async with open_libp2p_link(key, [("127.0.0.1", 0)]) as link:
        task_status.started(link)
        await trio.sleep_forever()
