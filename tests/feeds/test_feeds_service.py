"""Feeds between nodes: following, catching up, submitting, and who is answered."""

from __future__ import annotations

import os

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.content.hashes import FeedId, sha1_of
from kachery_p2p.errors import (
    FeedEndedError,
    FeedReadOnlyError,
    FeedUnavailableError,
    UnknownFeedError,
    WriteRefusedError,
)
from kachery_p2p.limits import FEED_SPARSE_ENTRIES
from tests.feeds.feed_nodes import FIELD, LAB, MAIN, MIB, FeedLab

OTHER = sha1_of(b"other")


def texts(count: int, first: int = 0) -> list[str]:
    return [f'{{"n":{number}}}' for number in range(first, first + count)]


async def test_a_reader_gets_what_was_written_before_and_what_is_written_later(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    author, reader = await lab.node("author"), await lab.node("reader")
    feed = await author.new_feed(*texts(3))
    assert await reader.read_all(feed, 3) == texts(3)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def read() -> None:
            assert await reader.read(feed, 3, wait_s=60) == texts(1, 3)

        await trio.testing.wait_all_tasks_blocked()
        await author.append(feed, *texts(1, 3))


async def test_a_subfeed_can_be_followed_before_it_is_begun(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    author, reader = await lab.node("author"), await lab.node("reader")
    feed = await author.new_feed()
    assert await reader.read(feed, wait_s=0.1) == []
    await author.append(feed, *texts(2))
    assert await reader.read(feed, wait_s=1) == texts(2)


async def test_thousands_of_messages_are_caught_up_with(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    author, reader = await lab.node("author"), await lab.node("reader")
    feed = await author.new_feed(*texts(20_000))
    assert await reader.read_all(feed, 20_000) == texts(20_000)


async def test_the_largest_messages_pass(virtual_clock: MockClock, lab: FeedLab) -> None:
    author, reader = await lab.node("author"), await lab.node("reader")
    large = [f'"{letter * (MIB - 60)}"' for letter in "abc"]
    feed = await author.new_feed(*large)
    assert await reader.read_all(feed, 3) == large


async def test_a_late_reader_gets_everything_from_a_copy_when_the_author_is_gone(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    first = await lab.node("bootstrap")
    author, copy = await lab.node("author"), await lab.node("copy")
    await lab.together(first, author, copy)
    feed = await author.new_feed(*texts(3_000))
    await copy.read_all(feed, 3_000)
    await lab.stopped(author)
    late = await lab.node("late")
    assert await late.read_all(feed, 3_000) == texts(3_000)


async def test_a_reader_goes_on_following_after_a_restart(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    author, reader = await lab.node("author"), await lab.node("reader")
    feed = await author.new_feed(*texts(3))
    await reader.read_all(feed, 3)
    reader = await lab.restarted(reader)
    await author.append(feed, *texts(2, 3))
    await reader.until(feed, lambda subfeed: subfeed.replica.readable == 5)


async def test_a_reader_hears_after_a_partition_what_was_written_meanwhile(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    author, reader = await lab.node("author"), await lab.node("reader")
    feed = await author.new_feed(*texts(3))
    await reader.read_all(feed, 3)
    lab.world.cut(author.id, reader.id)
    await author.append(feed, *texts(2, 3))
    await trio.sleep(120)
    assert (await reader.subfeed(feed)).replica.readable == 3
    lab.world.heal(author.id, reader.id)
    await reader.until(feed, lambda subfeed: subfeed.replica.readable == 5, wait_s=120)


async def test_news_reach_a_reader_that_the_author_is_not_connected_to(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    middle = await lab.node("middle")
    author, reader = await lab.node("author"), await lab.node("reader")
    lab.world.cut(author.id, reader.id)
    feed = await author.new_feed(*texts(3))
    await middle.read_all(feed, 3)
    await reader.read_all(feed, 3)
    await author.append(feed, *texts(1, 3))
    await reader.until(feed, lambda subfeed: subfeed.replica.readable == 4)


async def test_single_messages_are_read_far_ahead_of_the_copy(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    author, reader = await lab.node("author"), await lab.node("reader")
    count = FEED_SPARSE_ENTRIES + 2_000
    feed = await author.new_feed(*texts(count))
    at = count - 10
    assert await reader.read(feed, at, count=3) == texts(3, at)


async def test_a_feed_is_read_only_in_the_channels_where_it_is_shared(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    author = await lab.node("author", LAB, FIELD)
    inside, outside = await lab.node("inside", LAB), await lab.node("outside", FIELD)
    feed = await author.new_feed(*texts(3), channels=[LAB])
    assert await inside.read_all(feed, 3) == texts(3)
    with pytest.raises(FeedUnavailableError):
        await outside.read(feed, wait_s=0)
    await author.feeds.share(feed, [FIELD.id])
    outside.feeds._following.look_for(list(outside.feeds._subfeeds.followed))
    assert await outside.read_all(feed, 3) == texts(3)


async def test_a_copy_is_served_only_in_the_channel_in_which_it_came(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    author = await lab.node("author", LAB)
    copy = await lab.node("copy", LAB, FIELD)
    outside = await lab.node("outside", FIELD, knows=[copy])
    feed = await author.new_feed(*texts(3))
    await copy.read_all(feed, 3)
    await lab.together(copy, outside)
    with pytest.raises(FeedUnavailableError):
        await outside.read(feed, wait_s=0)


async def test_a_feed_that_is_shared_no_more_is_told_of_no_more(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    author, reader = await lab.node("author"), await lab.node("reader")
    feed = await author.new_feed(*texts(3))
    await reader.read_all(feed, 3)
    await author.feeds.unshare(feed, LAB.id)
    await author.append(feed, *texts(1, 3))
    await trio.sleep(120)
    assert (await reader.subfeed(feed)).replica.size == 3
    assert (await reader.read(feed)) == texts(3)


async def test_an_offline_author_whom_nobody_mirrors_is_said_to_be(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    await lab.node("other")
    reader = await lab.node("reader")
    with pytest.raises(FeedUnavailableError):
        await reader.read(FeedId("ab" * 32), wait_s=0)


# --- submitting -----------------------------------------------------------------------------------


async def test_a_granted_node_submits_and_the_owner_appends_in_order(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    author, writer = await lab.node("author"), await lab.node("writer")
    feed = await author.new_feed(*texts(1))
    await author.feeds.grant(feed, MAIN, writer.id)
    assert await writer.feeds.submit(feed, MAIN, texts(3, 1)) == [1, 2, 3]
    assert await writer.read_all(feed, 4) == texts(4)
    found, _ = await author.feeds.read(feed, MAIN, 1, 1, MIB, 0)
    assert found[0].submission is not None
    assert found[0].submission.submitter == writer.id


async def test_who_was_not_granted_or_not_for_this_subfeed_is_refused_clearly(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    author, writer = await lab.node("author"), await lab.node("writer")
    feed = await author.new_feed(*texts(1))
    await author.feeds.grant(feed, OTHER, writer.id)
    with pytest.raises(WriteRefusedError, match="Permission denied"):
        await writer.feeds.submit(feed, MAIN, texts(1))
    await author.feeds.grant(feed, MAIN, writer.id)
    await writer.feeds.submit(feed, MAIN, texts(1))
    await author.feeds.revoke(feed, MAIN, writer.id)
    with pytest.raises(WriteRefusedError):
        await writer.feeds.submit(feed, MAIN, texts(1))
    assert (await author.feeds.subfeed(feed, MAIN)).size == 2


async def test_a_repeated_id_is_appended_once_also_after_the_owner_restarted(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    writer, author = await lab.node("writer"), await lab.node("author")
    await lab.together(writer, author)
    feed = await author.new_feed()
    await author.feeds.grant(feed, MAIN, writer.id)
    ids = [os.urandom(16) for _ in range(3)]
    assert await writer.feeds.submit(feed, MAIN, texts(3), ids) == [0, 1, 2]
    assert await writer.feeds.submit(feed, MAIN, texts(3), ids) == [0, 1, 2]
    author = await lab.restarted(author)
    await writer.until(feed, lambda subfeed: any(s.own for s in subfeed.sources.values()))
    mixed = [ids[1], os.urandom(16)]
    assert await writer.feeds.submit(feed, MAIN, texts(2), mixed) == [1, 3]
    # The register may be lost: the ids are in the entries.
    author.feeds.register.forget_submissions((await author.subfeed(feed)).name.log.name)
    assert await writer.feeds.submit(feed, MAIN, texts(3), ids) == [0, 1, 2]
    assert (await author.feeds.subfeed(feed, MAIN)).size == 4


async def test_submitting_to_an_owner_who_is_away_says_so(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    author, writer = await lab.node("author"), await lab.node("writer")
    feed = await author.new_feed(*texts(1))
    await writer.read_all(feed, 1)
    await lab.stopped(author)
    with pytest.raises(FeedUnavailableError):
        await writer.feeds.submit(feed, MAIN, texts(1))


async def test_appending_to_a_foreign_feed_is_refused_in_the_words_of_old(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    author, reader = await lab.node("author"), await lab.node("reader")
    feed = await author.new_feed(*texts(1))
    with pytest.raises(FeedReadOnlyError, match="Cannot append messages to a readonly feed"):
        await reader.append(feed, *texts(1))


# --- the life of a feed ---------------------------------------------------------------------------


async def test_names_stay_here_and_lead_to_the_feed(virtual_clock: MockClock, lab: FeedLab) -> None:
    author = await lab.node("author")
    feed = await author.feeds.create("spikes", None)
    assert await author.feeds.named("spikes") == feed
    await author.feeds.append(feed, MAIN, texts(1), "main")
    info = await author.feeds.info(feed)
    assert info == (feed, True, ("spikes",), (LAB.id,), ((MAIN, "main"),))
    assert [found.feed for found in await author.feeds.feeds()] == [feed]


async def test_a_deleted_feed_is_gone_with_its_key(virtual_clock: MockClock, lab: FeedLab) -> None:
    author, reader = await lab.node("author"), await lab.node("reader")
    feed = await author.new_feed(*texts(1))
    await author.feeds.delete(feed)
    assert await author.feeds.feeds() == []
    with pytest.raises(FeedReadOnlyError):
        await author.append(feed, *texts(1))
    with pytest.raises(FeedUnavailableError):
        await reader.read(feed, wait_s=0)
    with pytest.raises(UnknownFeedError):
        await author.feeds.delete(feed)


async def test_an_ended_feed_is_read_to_its_end_and_names_what_goes_on(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    author, reader = await lab.node("author"), await lab.node("reader")
    feed, successor = await author.new_feed(*texts(3)), await author.new_feed()
    await reader.read_all(feed, 3)
    await author.feeds.end(feed, MAIN, successor)
    with pytest.raises(FeedEndedError):
        await author.append(feed, *texts(1))
    await reader.until(feed, lambda subfeed: subfeed.replica.limit == 3)
    assert await reader.read(feed) == texts(3)
    with pytest.raises(FeedEndedError) as raised:
        await reader.read(feed, 3)
    assert raised.value.hint is not None
    assert successor in raised.value.hint


async def test_watching_tells_which_subfeeds_have_news(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    author, reader = await lab.node("author"), await lab.node("reader")
    one, other = await author.new_feed(*texts(1)), await author.new_feed(*texts(1))
    watches = [(one, MAIN, 1), (other, MAIN, 1)]
    assert await reader.feeds.watch(watches, 3) == []
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def watch() -> None:
            assert await reader.feeds.watch(watches, 60) == [1]

        await trio.testing.wait_all_tasks_blocked()
        await author.append(other, *texts(1, 1))
