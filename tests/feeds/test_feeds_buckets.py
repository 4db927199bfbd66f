"""Feeds from a bucket while their author sleeps, and beside members that do not."""

from __future__ import annotations

import shutil

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.errors import FeedEndedError
from kachery_p2p.feeds.bucket_copies import Shown
from kachery_p2p.feeds.told import SubfeedName
from kachery_p2p.limits import BUCKET_LOG_POLL_S
from tests.feeds.feed_buckets import BucketScene, texts
from tests.feeds.feed_nodes import FIELD, LAB, MAIN


async def test_a_reader_alone_gets_a_feed_whose_author_sleeps(
    virtual_clock: MockClock, scene_with_bucket: BucketScene
) -> None:
    feed = await scene_with_bucket.written(*texts(2_500))
    reader = await scene_with_bucket.node("reader")
    assert await reader.read_all(feed, 2_500) == texts(2_500)
    info = await reader.feeds.subfeed(feed, MAIN)
    assert (info.size, info.behind, info.sources) == (
        2_500,
        False,
        (scene_with_bucket.bucket.node,),
    )


async def test_a_copy_grows_from_the_bucket_over_several_segments(
    virtual_clock: MockClock, scene_with_bucket: BucketScene
) -> None:
    author = await scene_with_bucket.node("author")
    feed = await author.new_feed(*texts(40))
    await scene_with_bucket.mirror(author, feed)
    reader = await scene_with_bucket.node("reader")
    assert await reader.read_all(feed, 40) == texts(40)
    for first in (40, 53, 60):
        await author.append(feed, *texts(13, first))
        await scene_with_bucket.mirror(author, feed)
    await scene_with_bucket.lab.stopped(author)
    assert await reader.read_all(feed, 79) == texts(53) + texts(13, 53) + texts(13, 60)


async def test_whoever_waits_hears_from_the_bucket_what_was_put_there_later(
    virtual_clock: MockClock,
    scene_with_bucket: BucketScene,
) -> None:
    author = await scene_with_bucket.node("author")
    feed = await author.new_feed(*texts(3))
    await scene_with_bucket.mirror(author, feed)
    reader = await scene_with_bucket.node("reader")
    assert await reader.read_all(feed, 3) == texts(3)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def read() -> None:
            began = trio.current_time()
            assert await reader.read(feed, 3, wait_s=60) == texts(2, 3)
            assert trio.current_time() < began + 2 + 2 * BUCKET_LOG_POLL_S

        await trio.sleep(2)
        await author.append(feed, *texts(2, 3))
        await scene_with_bucket.mirror(author, feed)


async def test_the_bucket_is_asked_at_a_bounded_rate(
    virtual_clock: MockClock, scene_with_bucket: BucketScene
) -> None:
    feed = await scene_with_bucket.written(*texts(3))
    reader = await scene_with_bucket.node("reader")
    await reader.read_all(feed, 3)
    before = scene_with_bucket.bucket.reads
    assert await reader.read(feed, 3, wait_s=100) == []
    assert 10 < scene_with_bucket.bucket.reads - before <= 100 / BUCKET_LOG_POLL_S + 2
    before = scene_with_bucket.bucket.reads
    await trio.sleep(100)
    assert scene_with_bucket.bucket.reads == before, "nobody waits"


async def test_the_bucket_is_not_asked_while_the_author_is_connected(
    virtual_clock: MockClock, scene_with_bucket: BucketScene
) -> None:
    author = await scene_with_bucket.node("author")
    feed = await author.new_feed(*texts(3))
    await scene_with_bucket.mirror(author, feed)
    reader = await scene_with_bucket.node("reader", knows=[author])
    await scene_with_bucket.lab.together(author, reader)
    before = scene_with_bucket.bucket.reads
    assert await reader.read_all(feed, 3) == texts(3)
    assert await reader.read(feed, 3, wait_s=60) == []
    assert scene_with_bucket.bucket.reads == before


async def test_members_and_the_bucket_are_sources_side_by_side(
    virtual_clock: MockClock, scene_with_bucket: BucketScene
) -> None:
    author = await scene_with_bucket.node("author")
    feed = await author.new_feed(*texts(500))
    follower = await scene_with_bucket.node("follower", knows=[author])
    await follower.read_all(feed, 500)
    await author.append(feed, *texts(500, 500))
    await follower.read_all(feed, 1_000)
    await scene_with_bucket.mirror(follower, feed)
    await scene_with_bucket.lab.stopped(author)
    reader = await scene_with_bucket.node("reader", knows=[follower])
    await scene_with_bucket.lab.together(follower, reader)
    assert await reader.read_all(feed, 1_000) == texts(1_000)


async def test_a_single_message_far_ahead_comes_with_a_proof(
    virtual_clock: MockClock, scene_with_bucket: BucketScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kachery_p2p.feeds.waiting.FEED_SPARSE_ENTRIES", 100)
    feed = await scene_with_bucket.written(*texts(3_000))
    reader = await scene_with_bucket.node("reader")
    subfeed = await reader.subfeed(feed)
    monkeypatch.setattr(reader.feeds._following, "catch_up", lambda subfeed: None)
    assert await reader.read(feed, 2_900, count=2) == texts(2, 2_900)
    assert subfeed.replica.readable == 0


async def test_a_tombstone_travels(
    virtual_clock: MockClock, scene_with_bucket: BucketScene
) -> None:
    author = await scene_with_bucket.node("author")
    feed = await author.new_feed(*texts(5))
    await author.feeds.end(feed, MAIN, None)
    await scene_with_bucket.mirror(author, feed)
    await scene_with_bucket.lab.stopped(author)
    reader = await scene_with_bucket.node("reader")
    assert await reader.read_all(feed, 5) == texts(5)
    with pytest.raises(FeedEndedError):
        await reader.read(feed, 5)


async def test_a_restored_feed_is_confirmed_by_the_bucket(
    virtual_clock: MockClock, scene_with_bucket: BucketScene
) -> None:
    author = await scene_with_bucket.node("author")
    feed = await author.new_feed(*texts(4))
    backup = scene_with_bucket.directory / "backup"
    await scene_with_bucket.lab.stopped(author)
    shutil.copytree(author.directory, backup)
    author = await scene_with_bucket.lab.started(
        scene_with_bucket.lab.made("author", kind=scene_with_bucket.kind, knows=[])
    )
    await author.append(feed, *texts(3, 4))
    await scene_with_bucket.mirror(author, feed)
    await scene_with_bucket.lab.stopped(author)
    shutil.rmtree(author.directory)
    shutil.copytree(backup, author.directory)
    author = await scene_with_bucket.lab.started(
        scene_with_bucket.lab.made("author", kind=scene_with_bucket.kind, knows=[])
    )
    assert await author.append(feed, *texts(1, 7)) == 7
    assert await author.read_all(feed, 8) == texts(8)


async def test_what_a_member_could_be_told_is_to_lie_there(
    virtual_clock: MockClock, scene_with_bucket: BucketScene
) -> None:
    author = await scene_with_bucket.node("author")
    shared, private = await author.new_feed(*texts(2)), await author.new_feed(channels=[])
    await author.append(private, *texts(1))
    follower = await scene_with_bucket.node("follower", knows=[author])
    await follower.read_all(shared, 2)
    name = SubfeedName(shared, MAIN)
    assert author.feeds.copies.listed({LAB.id}) == [Shown(name, LAB.id, True)]
    assert follower.feeds.copies.listed({LAB.id}) == [Shown(name, LAB.id, False)]
    assert author.feeds.copies.listed({FIELD.id}) == []
