"""Submitted messages: nothing is acknowledged that is not there, and nobody else's no is final."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.content.hashes import FeedId
from kachery_p2p.errors import FeedUnavailableError, PeerRefusedError, WriteRefusedError
from kachery_p2p.feeds import keys
from kachery_p2p.feeds.ownership import claim_ownership
from kachery_p2p.wire.feed_messages import pack_numbers
from tests.feeds.feed_nodes import LAB, MAIN, FeedLab, Node


async def liar_who_has_the_key(lab: FeedLab, owner: Node, feed: FeedId) -> Node:
    """It does not run yet, and has the honest handlers otherwise."""
    liar = lab.made("liar", LAB, knows=[owner])
    honest = liar.feeds.handlers["feed follow"]
    key = keys.load_own(str(owner.directory), feed)

    async def follow(session: Any, body: dict[str, Any]) -> dict[str, Any]:
        return {**await honest(session, body), "own": claim_ownership(key, liar.id)}

    liar.lies["feed follow"] = follow
    return liar


async def test_two_messages_are_not_in_one_place(virtual_clock: MockClock, lab: FeedLab) -> None:
    owner = await lab.node("owner", LAB)
    feed = await owner.new_feed('"first"')
    member = await lab.node("member", LAB)
    await owner.feeds.grant(feed, MAIN, member.id)
    await member.read_all(feed, 1)
    ids = [os.urandom(16), os.urandom(16)]
    assert await member.feeds.submit(feed, MAIN, ['"A"'], ids[:1]) == [1]
    liar = await liar_who_has_the_key(lab, owner, feed)

    async def submit(session: Any, body: dict[str, Any]) -> dict[str, Any]:
        head = (await liar.subfeed(feed)).replica.shown
        assert head is not None
        return {"positions": pack_numbers([1] * (len(body["ids"]) // 16)), "head": head.encode()}

    liar.lies["feed submit"] = submit
    await lab.started(liar)
    await liar.read_all(feed, 2)
    liar.book.add(member.id, member.link.addresses, by_user=True)
    await lab.together(member, liar)
    await lab.stopped(owner)
    with pytest.raises(FeedUnavailableError, match="one place"):
        await member.feeds.submit(feed, MAIN, ['"B"', '"A"'], [ids[1], ids[0]])


@pytest.mark.parametrize("granted", [True, False])
async def test_the_no_of_somebody_who_only_says_that_it_is_the_owner_is_not_final(
    virtual_clock: MockClock, lab: FeedLab, granted: bool
) -> None:
    owner = await lab.node("owner", LAB)
    feed = await owner.new_feed('"first"')
    liar = await liar_who_has_the_key(lab, owner, feed)

    async def submit(session: Any, body: dict[str, Any]) -> dict[str, Any]:
        raise PeerRefusedError("no")

    liar.lies["feed submit"] = submit
    await lab.started(liar)
    await liar.read_all(feed, 1)
    member = await lab.node("member", LAB, knows=[owner, liar])
    if granted:
        await owner.feeds.grant(feed, MAIN, member.id)
    await lab.together(owner, liar, member)
    await member.read_all(feed, 1)
    subfeed = await member.subfeed(feed)
    with trio.fail_after(60):
        while sum(source.own for source in subfeed.sources.values()) < 2:
            await subfeed.sources_changed.wait()
    # The liar is asked first.
    subfeed.sources = dict(sorted(subfeed.sources.items(), key=lambda s: s[0].peer != liar.id))
    if granted:
        assert await member.feeds.submit(feed, MAIN, ['"A"']) == [1]
        return
    with pytest.raises(WriteRefusedError):
        await member.feeds.submit(feed, MAIN, ['"A"'])


@pytest.mark.parametrize("grown", [True, False])
async def test_ids_of_messages_that_a_restored_log_lacks_are_not_acknowledged(
    virtual_clock: MockClock, lab: FeedLab, grown: bool
) -> None:
    owner = await lab.node("owner", LAB)
    feed = await owner.new_feed('"first"')
    await lab.stopped(owner)
    kept = lab.directory / "backup"
    shutil.copytree(owner.directory / "feeds", kept)
    owner = await lab.started(lab.made("owner", LAB, disk="owner"))
    id = os.urandom(16)
    assert await owner.feeds.submit(feed, MAIN, ['"B"'], [id]) == [1]
    await lab.stopped(owner)
    shutil.rmtree(owner.directory / "feeds")
    shutil.copytree(kept, owner.directory / "feeds")
    owner = await lab.started(lab.made("owner", LAB, disk="owner"))
    await owner.subfeed(feed)
    await owner.feeds.resume_only_copy(feed, MAIN)
    if grown:
        await owner.append(feed, '"other"')
    there = ['"first"', '"other"'][: 1 + grown]
    assert await owner.feeds.submit(feed, MAIN, ['"B"'], [id]) == [len(there)]
    assert await owner.feeds.submit(feed, MAIN, ['"B"'], [id]) == [len(there)]
    assert await owner.read(feed) == [*there, '"B"']
