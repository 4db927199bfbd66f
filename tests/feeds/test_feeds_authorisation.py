"""Every message about feeds, from everyone who may send one: exactly what PROTOCOL.md says.

The matrix of the other messages is in `tests/transfer/test_transfer_authorisation.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.channels.changes import MemberRemoved
from kachery_p2p.channels.channel import Channel
from kachery_p2p.channels.history import History
from kachery_p2p.channels.keeper import Keeper
from kachery_p2p.content.hashes import FeedId, sha1_of
from kachery_p2p.errors import (
    FeedUnavailableError,
    NotAMemberError,
    PeerGoneError,
    PeerRefusedError,
)
from kachery_p2p.feeds.told import SubfeedName, Told
from kachery_p2p.network.memberships import Memberships
from kachery_p2p.wire.feed_messages import FEED_OPERATIONS, pack
from tests.feeds.feed_nodes import MAIN, FeedLab, Node
from tests.transfer.test_transfer_authorisation import (
    CHANNEL_KEY,
    FIELD,
    KEYS,
    LAB,
    asked,
    founded,
    session_of,
)

ALL = ("outsider", "removed", "reader", "provider", "admin")
READERS = dict(zip(ALL, ("gone", "no", "yes", "no", "yes"), strict=True))
EXPECTED = {
    "feed follow": READERS,
    "feed entries": READERS,
    "feed hashes": READERS,
    # News are heard of what this node follows, from whom it follows: of its own feed from nobody.
    "feed news": dict(zip(ALL, ("gone", "no", "no", "no", "no"), strict=True)),
    # All were granted to write, but it takes the role too (that of an admin has all), and to read.
    "feed submit": dict(zip(ALL, ("gone", "no", "no", "no", "yes"), strict=True)),
}


class Owned(Node):
    """A node that keeps the channel `lab`, and is in `field`."""

    def made_memberships(self, channels: list[Channel]) -> Memberships:
        return Memberships(channels, [founded(self.key)])


class Knowing(Node):
    """A node that has the history of `lab` from its keeper, and is a reader there."""

    history: History

    def made_memberships(self, channels: list[Channel]) -> Memberships:
        self.key = KEYS["reader"]
        self.id = self.key.node_id
        self.link = self.lab.world.link(self.id)
        return Memberships(channels, [Knowing.history])


@pytest.fixture
async def keeper(virtual_clock: MockClock, lab: FeedLab) -> Node:
    return await lab.node("keeper", LAB, FIELD, kind=Owned)


async def feed_of(keeper: Node, channel: Channel = LAB) -> FeedId:
    feed = await keeper.new_feed('"one"', '"two"', channels=[channel])
    for key in KEYS.values():
        await keeper.feeds.grant(feed, MAIN, key.node_id)
    return feed


def body_of(
    op: str, feed: FeedId, channel: Channel = LAB, name: bytes = MAIN.raw
) -> dict[str, Any]:
    which = {"channel": channel.id, "feed": feed.raw, "name": name}
    nothing = Told().known
    bodies: dict[str, dict[str, Any]] = {
        "feed follow": {**which, **nothing, "follow": True},
        "feed news": {**which, **nothing, "base": 0, "path": b"", "entries": b""},
        "feed entries": {**which, "first": 0, "count": 2, "size": 2, "frontier": False},
        "feed hashes": {**which, "places": bytes(8)},
        "feed submit": {**which, "ids": bytes(16), "messages": pack([b'"three"'])},
    }
    return bodies[op]


async def outcome(op: str, body: dict[str, Any], who: str, keeper: Node, lab: Any) -> str:
    try:
        async with session_of(who, keeper, lab) as session:
            await session.request(op, body, 10)
        return "yes"
    except PeerRefusedError:
        return "no"
    except (NotAMemberError, PeerGoneError):
        return "gone"
    except BaseExceptionGroup as group:
        if group.subgroup(PeerRefusedError):
            return "no"
        assert group.subgroup((NotAMemberError, PeerGoneError))
        return "gone"


def test_no_message_about_feeds_is_without_a_row() -> None:
    assert EXPECTED.keys() == FEED_OPERATIONS.keys()


@pytest.mark.parametrize("who", ALL)
@pytest.mark.parametrize("op", EXPECTED)
async def test_each_kind_of_node_is_answered_as_documented(
    op: str, who: str, virtual_clock: MockClock, keeper: Node, lab: FeedLab
) -> None:
    feed = await feed_of(keeper)
    expected = EXPECTED[op][who]
    assert await outcome(op, body_of(op, feed), who, keeper, lab) == expected
    size = (await keeper.feeds.subfeed(feed, MAIN)).size
    assert size == 2 + (op == "feed submit" and expected == "yes")
    followers = keeper.feeds._spreading.count(SubfeedName(feed, MAIN))
    assert followers == (op == "feed follow" and expected == "yes")


@pytest.mark.parametrize("op", EXPECTED)
async def test_what_is_shared_in_one_channel_is_not_told_of_in_another(
    op: str, virtual_clock: MockClock, keeper: Node, lab: FeedLab
) -> None:
    feed = await feed_of(keeper, LAB)
    assert await outcome(op, body_of(op, feed, FIELD), "admin", keeper, lab) == "no"


@pytest.mark.parametrize("op", EXPECTED)
async def test_an_unknown_feed_and_one_that_is_not_shared_get_the_same_refusal(
    op: str, virtual_clock: MockClock, keeper: Node, lab: FeedLab
) -> None:
    hidden = await feed_of(keeper, FIELD)
    unknown = FeedId("ab" * 32)
    found = [await outcome(op, body_of(op, f), "admin", keeper, lab) for f in (hidden, unknown)]
    assert found == ["no", "no"]


async def test_who_is_removed_while_it_follows_hears_no_more(
    virtual_clock: MockClock, lab: FeedLab, quick_path: Path
) -> None:
    keeper = await lab.node("keeper", LAB, kind=Owned)
    feed = await keeper.new_feed('"one"')
    known = keeper.memberships.history(LAB.id)
    assert known is not None
    Knowing.history = known
    reader = await lab.node("reader", LAB, kind=Knowing)
    await lab.together(keeper, reader)
    assert await reader.read(feed) == ['"one"']
    signer = Keeper(known, CHANNEL_KEY)
    changed = signer.recorded([asked(MemberRemoved(reader.id), keeper.key)], 2_000_000)
    await keeper.histories.change(LAB.id, lambda now: changed)
    await keeper.append(feed, '"secret"')
    await trio.sleep(60)
    assert (await reader.subfeed(feed)).replica.size == 1
    assert keeper.feeds._spreading.total == 0
    with pytest.raises(FeedUnavailableError):
        await reader.feeds.read(feed, sha1_of(b"another"), 0, 1, 1_000, 0)
