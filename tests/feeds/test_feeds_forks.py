"""Forks between nodes: copied keys, restored disks, and what everybody does about them."""

from __future__ import annotations

import shutil

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.content.hashes import FeedId
from kachery_p2p.errors import FeedBehindError, FeedForkedError, FeedRestoredError
from kachery_p2p.feeds.names import HEAD_TAG
from kachery_p2p.log.forks import ForkProof
from tests.feeds.feed_nodes import LAB, MAIN, FeedLab, Node


def texts(count: int, what: str = "m") -> list[str]:
    return [f'"{what}{number}"' for number in range(count)]


async def two_writers(lab: FeedLab, common: int) -> tuple[Node, Node, FeedId]:
    """A writer and its clone, which do not hear of each other."""
    author = await lab.node("author")
    feed = await author.new_feed(*texts(common))
    await lab.stopped(author)
    shutil.copytree(author.directory, lab.directory / "clone")
    author = await lab.started(lab.made("author", knows=[]))
    clone = lab.made("clone", disk="clone", knows=[author])
    lab.world.cut(author.id, clone.id)
    await lab.started(clone)
    await clone.feeds.resume_only_copy(feed, MAIN)
    return author, clone, feed


async def is_frozen(node: Node, feed: FeedId, common: int) -> None:
    await node.until(feed, lambda subfeed: subfeed.replica.limit == common, wait_s=120)
    proof = await node.feeds.export_proof(feed, MAIN)
    assert len(proof) <= 2_048
    fork = ForkProof.decode(proof, HEAD_TAG)
    fork.verify((await node.subfeed(feed)).name.log)
    with pytest.raises(FeedForkedError) as raised:
        await node.read(feed, common)
    assert raised.value.evidence == proof


@pytest.mark.parametrize("one, other", [(1, 1), (3, 3), (2, 9), (9, 2)])
async def test_a_reader_of_both_histories_proves_the_fork_and_everybody_hears_of_it(
    one: int, other: int, virtual_clock: MockClock, lab: FeedLab
) -> None:
    author, clone, feed = await two_writers(lab, common=5)
    left = await lab.node("left", knows=[author])
    right = await lab.node("right", knows=[clone])
    lab.world.cut(left.id, clone.id)
    lab.world.cut(right.id, author.id)
    lab.world.cut(right.id, left.id)
    await author.append(feed, *texts(one, "a"))
    await clone.append(feed, *texts(other, "b"))
    assert await left.read_all(feed, 5 + one) == texts(5) + texts(one, "a")
    assert await right.read_all(feed, 5 + other) == texts(5) + texts(other, "b")
    lab.world.heal(left.id, right.id)
    right.book.add(left.id, left.link.addresses, by_user=True)
    right.sessions.look_again()
    for node in (left, right, author, clone):
        await is_frozen(node, feed, 5)
    assert await left.read(feed) == await right.read(feed) == texts(5)
    for writer in (author, clone):
        with pytest.raises(FeedForkedError):
            await writer.append(feed, '"more"')
    late = await lab.node("late", knows=[left])
    assert await late.read_all(feed, 5) == texts(5)
    await is_frozen(late, feed, 5)


async def test_a_fork_is_remembered_after_a_restart(virtual_clock: MockClock, lab: FeedLab) -> None:
    author, clone, feed = await two_writers(lab, common=5)
    reader = await lab.node("reader", knows=[author, clone])
    await author.append(feed, '"a"')
    await clone.append(feed, '"b"')
    await lab.together(reader, author)
    await lab.together(reader, clone)
    await reader.read(feed)
    await is_frozen(reader, feed, 5)
    await lab.stopped(author)
    await lab.stopped(clone)
    reader = await lab.restarted(reader)
    await is_frozen(reader, feed, 5)


async def restored(lab: FeedLab, later: int) -> tuple[Node, Node, FeedId]:
    """A writer that came back from a backup, `later` messages older than what a reader has."""
    reader = await lab.node("reader")
    author = await lab.node("author")
    await lab.together(reader, author)
    feed = await author.new_feed(*texts(5))
    await reader.read_all(feed, 5)
    await lab.stopped(author)
    shutil.copytree(author.directory, lab.directory / "backup")
    author = await lab.started(lab.made("author", knows=[reader]))
    if later:
        await author.append(feed, *texts(later, "later"))
    await reader.until(feed, lambda subfeed: subfeed.replica.readable == 5 + later)
    await lab.stopped(author)
    back = lab.made("author", disk="backup", knows=[reader])
    return reader, back, feed


async def test_a_restored_writer_signs_after_a_member_has_confirmed_its_head(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    reader, back, feed = await restored(lab, later=0)
    await lab.started(back)
    await lab.together(reader, back)
    assert await back.append(feed, '"new"') == 5
    await reader.until(feed, lambda subfeed: subfeed.replica.readable == 6)


async def test_a_restored_writer_catches_up_before_it_signs(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    reader, back, feed = await restored(lab, later=2_000)
    await lab.started(back)
    await lab.together(reader, back)
    assert await back.append(feed, '"new"') == 2_005
    await reader.until(feed, lambda subfeed: subfeed.replica.readable == 2_006)
    assert (await reader.subfeed(feed)).replica.log.fork is None


async def test_a_restored_writer_that_meets_nobody_refuses_until_its_user_vouches(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    reader, back, feed = await restored(lab, later=0)
    await lab.stopped(reader)
    await lab.started(back)
    with pytest.raises(FeedRestoredError):
        await back.append(feed, '"new"')
    await back.feeds.resume_only_copy(feed, MAIN)
    assert await back.append(feed, '"new"') == 5


async def test_a_writer_that_hears_of_a_longer_copy_refuses_until_it_has_it(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    reader, back, feed = await restored(lab, later=3)
    lies = 0

    async def never(session: object, body: object) -> dict[str, object]:
        nonlocal lies
        lies += 1
        await trio.sleep_forever()
        raise AssertionError

    reader.sessions.handle("feed entries", never)
    await lab.started(back)
    await lab.together(reader, back)
    with pytest.raises((FeedBehindError, FeedRestoredError)):
        await back.append(feed, '"new"')
    assert lies
    reader.sessions.handle("feed entries", reader.feeds.handlers["feed entries"])
    await back.until(feed, lambda subfeed: not subfeed.replica.is_behind, wait_s=120)
    assert await back.append(feed, '"new"') == 8


async def test_members_of_other_channels_hear_nothing_of_a_fork(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    author, clone, feed = await two_writers(lab, common=5)
    reader = await lab.node("reader", LAB, knows=[author, clone])
    await author.append(feed, '"a"')
    await clone.append(feed, '"b"')
    await lab.together(reader, author)
    await lab.together(reader, clone)
    await reader.read(feed)
    await is_frozen(reader, feed, 5)
    from tests.feeds.feed_nodes import FIELD

    stranger = await lab.node("stranger", FIELD, knows=[])
    assert (await stranger.subfeed(feed)).replica.log.fork is None
