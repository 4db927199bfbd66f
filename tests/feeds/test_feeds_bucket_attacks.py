"""What a bucket can lie about a feed: nothing is believed but what its owner has signed."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.bucket import log_layout as layout
from kachery_p2p.bucket.credentials import Credentials
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.urls import parse_bucket_url
from kachery_p2p.content.hashes import FeedId
from kachery_p2p.errors import (
    FeedForkedError,
    FeedUnavailableError,
    PeerRefusedError,
    ProofError,
)
from kachery_p2p.feeds.bucket_member import BucketMember
from kachery_p2p.feeds.told import SubfeedName
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeKey
from kachery_p2p.limits import FEED_BLAME_S
from kachery_p2p.log.heads import sign_head
from kachery_p2p.transfer.buckets import Buckets
from kachery_p2p.wire.feed_messages import pack_numbers
from tests.feeds.feed_buckets import BucketScene, texts
from tests.feeds.feed_nodes import MAIN, Node

MIB = 1 << 20


# --- forks -----------------------------------------------------------------------------------


async def two_histories(scene: BucketScene) -> tuple[FeedId, Node, Node]:
    """Two nodes with the key of one feed, that part after 10 messages."""
    author = await scene.node("author")
    feed = await author.new_feed(*texts(10))
    await scene.lab.stopped(author)
    shutil.copytree(author.directory, author.directory.parent / "twin")
    author = await scene.lab.started(scene.lab.made("author", knows=[]))
    twin = await scene.node("twin")
    await twin.feeds.resume_only_copy(feed, MAIN)
    await author.append(feed, *texts(20, 100))
    await twin.append(feed, *texts(30, 200))
    return feed, author, twin


async def test_a_second_history_in_the_bucket_becomes_a_proof_that_travels(
    virtual_clock: MockClock,
    scene_with_bucket: BucketScene,
) -> None:
    feed, author, twin = await two_histories(scene_with_bucket)
    reader = await scene_with_bucket.node("reader", knows=[author])
    await reader.read_all(feed, 30)
    await scene_with_bucket.lab.stopped(author)
    await scene_with_bucket.mirror(twin, feed)
    await scene_with_bucket.lab.stopped(twin)
    with pytest.raises(FeedForkedError):
        await reader.read(feed, 30, wait_s=60)
    assert await reader.read(feed) == texts(10)
    with pytest.raises(FeedForkedError):
        await reader.read(feed, 10)
    told = await scene_with_bucket.mirror(reader, feed)
    assert told.there >= 10
    cold = await scene_with_bucket.node("cold")
    assert await cold.read_all(feed, 10) == texts(10)
    with pytest.raises(FeedForkedError):
        await cold.read(feed, 10)


async def test_who_mirrors_does_not_write_over_another_history(
    virtual_clock: MockClock, scene_with_bucket: BucketScene
) -> None:
    feed, author, twin = await two_histories(scene_with_bucket)
    await scene_with_bucket.mirror(author, feed)
    with pytest.raises(ProofError):
        await scene_with_bucket.mirror(twin, feed)
    assert scene_with_bucket.head(feed).head.size == 30


# --- lies ------------------------------------------------------------------------------------


async def test_an_older_head_takes_nothing_back(
    virtual_clock: MockClock, scene_with_bucket: BucketScene
) -> None:
    author = await scene_with_bucket.node("author")
    feed = await author.new_feed(*texts(5))
    await scene_with_bucket.mirror(author, feed)
    old = scene_with_bucket.head(feed).encode()
    await author.append(feed, *texts(5, 5))
    await scene_with_bucket.mirror(author, feed)
    await scene_with_bucket.lab.stopped(author)
    reader = await scene_with_bucket.node("reader")
    assert await reader.read_all(feed, 10) == texts(10)
    scene_with_bucket.put_head(feed, old)
    assert await reader.read(feed, 10, wait_s=20) == []
    assert (await reader.feeds.subfeed(feed, MAIN)).size == 10
    reader = await scene_with_bucket.lab.restarted(reader)
    assert await reader.read_all(feed, 10) == texts(10)


async def test_a_head_that_was_not_signed_is_refused(
    virtual_clock: MockClock, scene_with_bucket: BucketScene
) -> None:
    feed = await scene_with_bucket.written(*texts(5))
    head, thief = scene_with_bucket.head(feed), NodeKey.generate(bytes([66]) * NODE_KEY_BYTES)
    theirs = head.head.head._replace(log=head.head.log._replace(owner=thief.node_id))
    forged = sign_head(theirs, thief)._replace(head=head.head.head._replace(time_ms=9))
    scene_with_bucket.put_head(feed, head._replace(head=forged).encode())
    reader = await scene_with_bucket.node("reader")
    with pytest.raises(FeedUnavailableError):
        await reader.read(feed)
    assert (await reader.feeds.subfeed(feed, MAIN)).head_time_ms is None


async def test_forged_proofs_and_endings_are_refused(
    virtual_clock: MockClock, scene_with_bucket: BucketScene
) -> None:
    feed = await scene_with_bucket.written(*texts(5))
    head = scene_with_bucket.head(feed)
    reader = await scene_with_bucket.node("reader")
    for lie in (head._replace(ending=bytes(224)), head._replace(fork=bytes(394))):
        scene_with_bucket.put_head(feed, lie.encode())
        with pytest.raises(FeedUnavailableError):
            await reader.read(feed)
    scene_with_bucket.put_head(feed, head.encode())
    await trio.sleep(FEED_BLAME_S)
    assert await reader.read_all(feed, 5) == texts(5)


def flipped(data: bytes) -> bytes:
    return data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "flipped": flipped,
    "truncated": lambda data: data[: len(data) // 2],
    "a login page": lambda data: b"<html><body>Please log in</body></html>",
    "far too long": lambda data: data + bytes(8 * MIB),
    "swapped": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("what", ["head", "segment"])
async def test_what_is_damaged_is_a_fault_with_a_reason_and_never_believed(
    virtual_clock: MockClock, what: str, damage: str, scene_with_bucket: BucketScene
) -> None:
    feed = await scene_with_bucket.written(*texts(50))
    (key,) = scene_with_bucket.segment_keys(feed)
    key = layout.head_key(SubfeedName(feed, MAIN).log) if what == "head" else key
    sound = scene_with_bucket.bucket.read_whole(key, MIB)
    scene_with_bucket.bucket.put(key, DAMAGE[damage](sound))
    reader = await scene_with_bucket.node("reader")
    if what == "head":
        with pytest.raises(FeedUnavailableError, match="memory:feeds"):
            await reader.read(feed)
    else:
        with pytest.raises(FeedUnavailableError):
            await reader.read(feed)
        assert (await reader.feeds.subfeed(feed, MAIN)).local_size == 0
    assert any("memory:feeds" in said for said in reader.buckets.problems().values())  # type: ignore[attr-defined]
    scene_with_bucket.bucket.put(key, sound)
    await trio.sleep(30)
    assert await reader.read_all(feed, 50) == texts(50)


async def test_a_segment_that_was_put_together_with_others_is_found_anew(
    virtual_clock: MockClock, scene_with_bucket: BucketScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kachery_p2p.bucket.log_mirror.BUCKET_LOG_OLD_S", 0.0)
    author = await scene_with_bucket.node("author")
    feed = await author.new_feed(*texts(5))
    await scene_with_bucket.mirror(author, feed)
    reader = await scene_with_bucket.node("reader")
    # It has read the head, and not the segment yet.
    with monkeypatch.context() as patched:
        patched.setattr(reader.feeds._following, "catch_up", lambda subfeed: None)
        await reader.read(feed, wait_s=0.1)
    old = scene_with_bucket.segment_keys(feed)
    await author.append(feed, *texts(9, 5))
    await scene_with_bucket.mirror(author, feed)
    for key in old:
        scene_with_bucket.bucket.delete(key)
    await scene_with_bucket.lab.stopped(author)
    assert await reader.read_all(feed, 14) == texts(14)


async def test_nothing_is_kept_of_feeds_that_are_not_in_the_bucket() -> None:
    bucket = Objects(parse_bucket_url("memory:no-feeds"), Credentials({}))
    buckets = Buckets()
    buckets.put({"lab": [bucket]})
    member = BucketMember(bucket, "lab", buckets)
    for number in range(20):
        feed = NodeKey.generate(bytes([number]) * NODE_KEY_BYTES).node_id
        body = SubfeedName(FeedId(feed), MAIN).body("lab")
        with pytest.raises(PeerRefusedError):
            await member.request("feed hashes", {**body, "places": pack_numbers([0])}, 10)
        with pytest.raises(PeerRefusedError):
            await member.request(
                "feed entries",
                {**body, "first": 0, "count": 1, "size": 1, "frontier": False},
                10,
            )
    assert not member._reading and not member._trees
