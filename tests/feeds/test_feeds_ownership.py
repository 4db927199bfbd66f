"""Members that say a feed is theirs: nobody believes it without the feed's key."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.content.hashes import FeedId
from kachery_p2p.errors import FeedUnavailableError
from kachery_p2p.feeds import keys
from kachery_p2p.feeds.keys import FeedKey
from kachery_p2p.feeds.ownership import claim_ownership, proves_ownership
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeKey
from kachery_p2p.network.session import Session
from tests.feeds.feed_nodes import MAIN, FeedLab, Node

KEY = FeedKey(bytes(range(32)))
NODE = NodeKey.generate(bytes(NODE_KEY_BYTES)).node_id
OTHER = NodeKey.generate(bytes([1]) * NODE_KEY_BYTES).node_id


def test_a_claim_is_of_one_node_and_one_feed() -> None:
    claim = claim_ownership(KEY, NODE)
    assert proves_ownership(claim, KEY.feed, NODE)
    assert not proves_ownership(claim, KEY.feed, OTHER)
    assert not proves_ownership(claim, FeedKey(bytes(32)).feed, NODE)
    assert not proves_ownership(bytes(64), KEY.feed, NODE)
    assert not proves_ownership(b"", KEY.feed, NODE)


class Scene:
    """An owner, a liar that follows its feed, and what the owner has answered the liar."""

    def __init__(self, owner: Node, liar: Node, feed: FeedId) -> None:
        self.owner = owner
        self.liar = liar
        self.feed = feed
        self.submitted = 0

    def claim_with(self, claim: bytes) -> None:
        honest = self.liar.feeds.handlers["feed follow"]

        async def follow(session: Session, body: dict[str, Any]) -> dict[str, Any]:
            return {**await honest(session, body), "own": claim}

        async def submit(session: Session, body: dict[str, Any]) -> dict[str, Any]:
            self.submitted += 1
            raise AssertionError("nothing is submitted to it")

        self.liar.sessions.handle("feed follow", follow)
        self.liar.sessions.handle("feed submit", submit)


@pytest.fixture
async def scene(virtual_clock: MockClock, lab: FeedLab) -> Scene:
    owner, liar = await lab.node("owner"), await lab.node("liar")
    feed = await owner.new_feed('"one"')
    await liar.read_all(feed, 1)
    return Scene(owner, liar, feed)


async def test_an_owner_is_known_by_its_key(
    virtual_clock: MockClock, lab: FeedLab, scene: Scene
) -> None:
    subfeed = await scene.liar.subfeed(scene.feed)
    assert [source.own for source in subfeed.sources.values()] == [True]
    assert subfeed.has_author
    # Who has a copy claims nothing.
    reader = await lab.node("reader", knows=[scene.liar])
    await lab.stopped(scene.owner)
    await lab.together(reader, scene.liar)
    assert await reader.read_all(scene.feed, 1) == ['"one"']
    assert not (await reader.subfeed(scene.feed)).has_author


@pytest.mark.parametrize("kind", ["said once more", "junk", "of another feed"])
async def test_who_only_says_so_is_no_owner(
    virtual_clock: MockClock, lab: FeedLab, scene: Scene, kind: str
) -> None:
    key = keys.load_own(str(scene.owner.directory), scene.feed)
    claims = {
        "said once more": claim_ownership(key, scene.owner.id),
        "junk": bytes(range(64)),
        "of another feed": claim_ownership(KEY, scene.liar.id),
    }
    scene.claim_with(claims[kind])
    reader = await lab.node("reader", knows=[scene.owner, scene.liar])
    await lab.together(reader, scene.owner, scene.liar)
    # It costs the honest nothing.
    assert await reader.read_all(scene.feed, 1) == ['"one"']
    subfeed = await reader.subfeed(scene.feed)
    assert {source.session.peer for source in subfeed.sources.values()} == {scene.owner.id}
    lying = reader.sessions.get(scene.liar.id)
    assert lying is not None
    assert subfeed.is_blamed(lying, trio.current_time())
    await scene.owner.feeds.grant(scene.feed, MAIN, reader.id)
    assert await reader.feeds.submit(scene.feed, MAIN, ['"two"']) == [1]
    await lab.stopped(scene.owner)
    await reader.until(scene.feed, lambda subfeed: not subfeed.sources)
    # So buckets are asked, and messages stay with who wants to submit them.
    assert not subfeed.has_author
    with pytest.raises(FeedUnavailableError, match="not connected"):
        await reader.feeds.submit(scene.feed, MAIN, ['"three"'])
    assert scene.submitted == 0


async def test_the_owner_claims_a_subfeed_that_is_not_begun(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    owner, writer = await lab.node("owner"), await lab.node("writer")
    feed = await owner.feeds.create(None, None)
    await owner.feeds.grant(feed, MAIN, writer.id)
    assert await writer.feeds.submit(feed, MAIN, ['"first"']) == [0]


async def test_without_its_key_an_owner_claims_nothing_and_can_be_read(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    owner, reader = await lab.node("owner"), await lab.node("reader")
    feed = await owner.new_feed('"one"')
    keys.remove(str(owner.directory), feed)
    # It is read when it is needed.
    owner.feeds._subfeeds._keys.clear()
    assert await reader.read_all(feed, 1) == ['"one"']
    assert not (await reader.subfeed(feed)).has_author
