"""Nodes notice what programs append to their feeds, and tell it to those who follow."""

from __future__ import annotations

import errno
import os
import socket
import threading

import pytest
import trio
import trio.testing

from kachery_p2p.content.hashes import FeedId
from kachery_p2p.errors import FeedEndedError, KeyFileError, StorageFullError
from kachery_p2p.feeds.direct import DirectLog, NotHere
from kachery_p2p.feeds.keys import feed_key_path
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.log_files import LogFiles
from kachery_p2p.feeds.messages import message_entries
from kachery_p2p.feeds.opened import Withdrawn
from kachery_p2p.feeds.poke import decode_poke, encode_poke
from kachery_p2p.feeds.told import SubfeedName
from kachery_p2p.limits import FEED_LOOK_AGAIN_IDLE_S
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


async def filled_by_another(node: Node, feed: FeedId, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the node forget the feed, which nobody uses, for another."""
    monkeypatch.setattr("kachery_p2p.feeds.subfeeds.FEED_IDLE_MAX", 1)
    subfeeds = node.feeds._subfeeds
    for session in list((await node.subfeed(feed)).sources):
        (await node.subfeed(feed)).drop_source(session)
    await node.new_feed('"other"')
    assert subfeeds.open_now(SubfeedName(feed, MAIN)) is None


@pytest.mark.parametrize("opened", [True, False])
async def test_who_follows_a_feed_that_was_forgotten_hears_of_it_all_the_same(
    lab: FeedLab, opened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    feed = await alice.new_feed('"0"')
    assert await bob.read_all(feed, 1) == ['"0"']
    await filled_by_another(alice, feed, monkeypatch)
    alice.feeds._files.close()
    append(program_of(alice, feed), '"1"')
    if opened:  # by who asks for something else
        await alice.subfeed(feed)
    assert await bob.read(feed, 1, wait_s=60) == ['"1"']


async def test_what_came_in_with_an_append_that_failed_is_told(
    lab: FeedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    feed = await alice.new_feed('"0"')
    assert await bob.read_all(feed, 1) == ['"0"']
    append(program_of(alice, feed), '"1"')

    def full(*args: object) -> None:
        raise Withdrawn(OSError(errno.ENOSPC, "full"))

    with monkeypatch.context() as patch:
        patch.setattr("kachery_p2p.feeds.shared_log.write_record", full)
        log = (await alice.feeds._subfeeds.open(SubfeedName(feed, MAIN))).replica.log
        append(program_of(alice, feed), '"2"')
        assert isinstance(log, LogFile)
        with pytest.raises(StorageFullError):
            log.append(message_entries(['"3"'], 1), 1)
    assert not log.has_grown()
    assert await bob.read(feed, 2, wait_s=60) == ['"2"']


@pytest.mark.parametrize("error", [OSError(errno.EIO, "failed"), ValueError("a fault of ours")])
async def test_whatever_goes_wrong_with_one_feed_others_are_looked_after(
    lab: FeedLab, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    bad, good = await alice.new_feed('"0"'), await alice.new_feed('"0"')
    assert await bob.read_all(bad, 1) == await bob.read_all(good, 1) == ['"0"']
    really = LogFile.absorb

    def absorb(log: LogFile) -> tuple[int, list[bytes]]:
        if log.log == SubfeedName(bad, MAIN).log:
            raise error
        return really(log)

    with monkeypatch.context() as patch:
        patch.setattr(LogFile, "absorb", absorb)
        append(program_of(alice, bad), '"1"')
        poke(alice, bad)
        append(program_of(alice, good), '"1"')
        poke(alice, good)
        assert await bob.read(good, 1, wait_s=60) == ['"1"']
    poke(alice, bad)
    assert await bob.read(bad, 1, wait_s=60) == ['"1"']


async def test_feeds_that_there_is_no_room_to_look_after_wait_for_their_turn(
    lab: FeedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kachery_p2p.feeds.growth.FEED_LOOKED_AFTER_MAX", 1)
    monkeypatch.setattr("kachery_p2p.feeds.growth.FEED_NOTICED_S", 1e6)
    alice, bob = await lab.node("alice"), await lab.node("bob")
    feeds = [await alice.new_feed('"0"') for _ in range(4)]
    for feed in feeds:
        assert await bob.read_all(feed, 1) == ['"0"']
        append(program_of(alice, feed), '"1"')
    for feed in feeds:
        poke(alice, feed)
    for feed in feeds:
        assert await bob.read(feed, 1, wait_s=60) == ['"1"']
    assert not alice.feeds._growth._waiting


async def test_files_are_closed_in_a_thread_when_the_node_stops(
    lab: FeedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await lab.node("alice")
    await alice.new_feed('"0"')
    closed: list[threading.Thread] = []
    really = LogFiles.close

    def close(files: LogFiles) -> None:
        closed.append(threading.current_thread())
        really(files)

    monkeypatch.setattr(LogFiles, "close", close)
    await lab.stopped(alice)
    assert len(closed) == 1
    assert closed[0] is not threading.main_thread()


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


async def test_a_feed_whose_key_is_gone_is_left_alone_until_the_key_is_back(lab: FeedLab) -> None:
    alice = await lab.node("alice")
    feed = await alice.new_feed('"0"')
    program = program_of(alice, feed)
    append(program, '"1"')
    key = feed_key_path(str(alice.directory), feed)
    os.rename(key, f"{key}.moved")
    alice = await lab.restarted(alice)
    assert append(program, '"2"') == 2
    with pytest.raises(KeyFileError, match="missing"):
        await alice.read(feed, 0)
    # Nobody would see it.
    with pytest.raises(NotHere):
        append(program, '"3"')
    with pytest.raises(KeyFileError):
        await alice.append(feed, '"3"')
    os.rename(f"{key}.moved", key)
    assert await alice.read(feed, 0) == ['"0"', '"1"', '"2"']
    assert append(program_of(alice, feed), '"3"') == 3


async def test_what_is_far_behind_is_taken_in_without_a_rest(
    lab: FeedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in ("shared_log", "subfeeds"):
        monkeypatch.setattr(f"kachery_p2p.feeds.{room}.FEED_TAKEN_BYTES", 1)
    alice = await lab.node("alice")
    feed = await alice.new_feed('"0"')
    program = program_of(alice, feed)
    for number in range(1, 31):
        append(program, f'"{number}"')
    held = (await alice.subfeed(feed)).replica
    for number in range(31, 61):
        append(program, f'"{number}"')
    poke(alice, feed)
    await trio.testing.wait_all_tasks_blocked(FEED_LOOK_AGAIN_IDLE_S / 2)
    assert held.size == 61


async def test_a_thread_that_cannot_be_begun_costs_a_look_and_nothing_else(
    lab: FeedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    feed = await alice.new_feed('"0"')
    assert await bob.read_all(feed, 1) == ['"0"']
    hands, failed = alice.feeds._subfeeds.hands, trio.Event()
    hands.close()

    def fail() -> None:
        failed.set()
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(hands, "_begin_thread", fail)
        append(program_of(alice, feed), '"1"')
        poke(alice, feed)
        await failed.wait()
        await trio.testing.wait_all_tasks_blocked()
    assert await bob.read(feed, 1, wait_s=60) == ['"1"']
