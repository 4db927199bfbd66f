"""What came in one channel is told in another only when somebody there has it as well."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.content.hashes import FeedId
from kachery_p2p.errors import PeerRefusedError
from kachery_p2p.feeds.permits import row
from kachery_p2p.feeds.told import SubfeedName
from tests.feeds.feed_nodes import FIELD, LAB, MAIN, FeedLab, Node

QUIET_S = 10


async def channels_of(node: Node, feed: FeedId) -> set[str]:
    """The channels in which the node tells of its copy."""
    return set(node.feeds.register.copied_in(row(SubfeedName(feed, MAIN))))


async def entries_asked_for(spy: Node, reader: Node, feed: FeedId, size: int) -> None:
    session = spy.sessions.get(reader.id)
    assert session is not None
    body = {**SubfeedName(feed, MAIN).body(FIELD.id), "first": 0, "count": 10, "size": size}
    await session.request("feed entries", {**body, "frontier": False}, 5)


@pytest.mark.parametrize("told", ["the head it was asked with", "an old head"])
async def test_a_head_is_no_reason_to_tell_of_a_feed_where_it_is_not_shared(
    virtual_clock: MockClock, lab: FeedLab, told: str
) -> None:
    author = await lab.node("author", LAB)
    feed = await author.new_feed('"once known"', channels=[LAB])
    old = (await author.subfeed(feed)).replica.shown
    assert old is not None
    await author.append(feed, '"secret"')
    reader = await lab.node("reader", LAB, FIELD, knows=[author])
    await reader.read_all(feed, 2)
    spy, lies = lab.made("spy", FIELD, knows=[reader]), 0

    async def lie(session: Any, body: dict[str, Any]) -> dict[str, Any]:
        nonlocal lies
        lies += 1
        head = old.encode() if told == "an old head" else body["head"]
        return {"head": head, "fork": b"", "tombstone": b"", "path": b"", "own": b""}

    spy.lies["feed follow"] = lie
    await lab.started(spy)
    await lab.together(reader, spy)
    await trio.sleep(QUIET_S)
    await author.append(feed, '"secret too"')
    await reader.read_all(feed, 3)
    await trio.sleep(QUIET_S)
    assert lies
    assert await channels_of(reader, feed) == {LAB.id}
    for size in (2, 3):
        with pytest.raises(PeerRefusedError):
            await entries_asked_for(spy, reader, feed, size)


async def test_a_feed_that_is_shared_in_both_channels_is_handed_on_in_both(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    author = await lab.node("author", LAB, FIELD)
    feed = await author.new_feed('"0"', '"1"', channels=[LAB, FIELD])
    reader = await lab.node("reader", LAB, FIELD, knows=[author])
    await reader.read_all(feed, 2)
    await trio.sleep(QUIET_S)
    assert await channels_of(reader, feed) == {LAB.id, FIELD.id}
    await lab.stopped(author)
    late = await lab.node("late", FIELD, knows=[reader])
    assert await late.read_all(feed, 2) == ['"0"', '"1"']
