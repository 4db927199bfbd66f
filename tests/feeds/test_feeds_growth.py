"""Nodes notice what programs append to their feeds, and tell it to those who follow."""

from __future__ import annotations

import socket

import pytest
import trio

from kachery_p2p.content.hashes import FeedId
from kachery_p2p.errors import FeedEndedError
from kachery_p2p.feeds.direct import DirectLog, NotHere
from kachery_p2p.feeds.messages import message_entries
from kachery_p2p.feeds.poke import decode_poke, encode_poke
from kachery_p2p.feeds.told import SubfeedName
from tests.feeds.feed_nodes import MAIN, FeedLab, Node


def program_of(node: Node, feed: FeedId) -> DirectLog:
    """A program of the node's user, which appends to the feed."""
    name = SubfeedName(feed, MAIN).log.name.hex()
    return DirectLog(f"{node.directory}/feeds/{name[:2]}/{name}")


def append(program: DirectLog, *texts: str) -> int:
    return program.append(message_entries(texts, 1))


def poke(node: Node, feed: FeedId) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as telling:
        telling.connect(f"{node.directory}/feeds.sock")
        telling.send(encode_poke(feed, MAIN))


@pytest.mark.parametrize("told", [True, False])
async def test_what_a_program_appends_reaches_those_who_follow(lab: FeedLab, told: bool) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    feed = await alice.new_feed('"0"')
    assert await bob.read_all(feed, 1) == ['"0"']
    program = program_of(alice, feed)
    for number in range(1, 6):
        assert append(program, f'"{number}"') == number
        if told:
            poke(alice, feed)
        assert await bob.read(feed, number, wait_s=60) == [f'"{number}"']
    assert await alice.append(feed, '"6"') == 6
    assert await bob.read(feed, 6, wait_s=60) == ['"6"']


async def test_a_member_that_asks_is_answered_with_all_of_it(lab: FeedLab) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    feed = await alice.new_feed('"0"')
    append(program_of(alice, feed), '"1"', '"2"')
    assert await bob.read_all(feed, 3) == ['"0"', '"1"', '"2"']


async def test_what_was_appended_just_before_a_crash_is_told_when_the_node_is_back(
    lab: FeedLab,
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    feed = await alice.new_feed('"0"')
    assert await bob.read_all(feed, 1) == ['"0"']
    append(program_of(alice, feed), '"1"')
    # It has heard nothing of it yet.
    assert (await bob.subfeed(feed)).replica.size == 1
    alice = await lab.restarted(alice)
    assert await bob.read_all(feed, 2) == ['"0"', '"1"']
    append(program_of(alice, feed), '"2"')
    poke(alice, feed)
    assert await bob.read_all(feed, 3) == ['"0"', '"1"', '"2"']


async def test_an_end_comes_after_all_that_programs_have_appended(lab: FeedLab) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    feed = await alice.new_feed('"0"')
    program = program_of(alice, feed)
    append(program, '"1"')
    await alice.feeds.end(feed, MAIN, None)
    with pytest.raises(NotHere) as caught:
        append(program, '"2"')
    assert isinstance(caught.value.why, FeedEndedError)
    assert await bob.read_all(feed, 2) == ['"0"', '"1"']
    with pytest.raises(FeedEndedError):
        await bob.read(feed, 2)


async def test_words_about_other_feeds_make_nothing(lab: FeedLab) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    feed = await alice.new_feed('"0"')
    assert await bob.read_all(feed, 1) == ['"0"']
    before = sorted(bob.directory.rglob("*"))
    for other in (feed, FeedId("ab" * 32)):
        poke(bob, other)
    await trio.sleep(5)
    assert sorted(bob.directory.rglob("*")) == before
    assert not bob.feeds._growth._looking


def test_a_poke_names_a_subfeed_and_nothing_else_is_one() -> None:
    feed = FeedId("cd" * 32)
    data = encode_poke(feed, MAIN)
    assert data == b"kpg1" + feed.raw + MAIN.raw
    assert decode_poke(data) == (feed, MAIN)
    for wrong in (b"", data[:-1], data + b"\0", b"kpg2" + data[4:], bytes(56)):
        assert decode_poke(wrong) is None
