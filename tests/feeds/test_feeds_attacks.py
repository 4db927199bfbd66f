"""Members that lie about feeds, withhold them, or ask and tell too much: the others go on."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.content.hashes import ContentHash, FeedId
from kachery_p2p.errors import (
    FeedUnavailableError,
    PeerBusyError,
    PeerRefusedError,
    WriteRefusedError,
)
from kachery_p2p.feeds import keys, spreading
from kachery_p2p.feeds.ownership import claim_ownership
from kachery_p2p.feeds.told import SubfeedName, Told
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeKey
from kachery_p2p.limits import FEED_FOLLOWERS_PER_PEER_MAX, FEED_NEWS_BURST
from kachery_p2p.log.heads import LogId
from kachery_p2p.wire.feed_messages import pack, unpack
from tests.feeds.feed_nodes import LAB, MAIN, Answer, FeedLab, Node
from tests.feeds.feed_parts import MemoryLog, messages

COUNT = 5_000
THIEF = NodeKey.generate(bytes([66]) * NODE_KEY_BYTES)
NOTHING = Told().known


def texts(count: int, first: int = 0) -> list[str]:
    return [f'"m{number:0200}"' for number in range(first, first + count)]


class Scene:
    """An author, a liar who has a copy, and a reader who meets both."""

    def __init__(self, lab: FeedLab, author: Node, liar: Node, feed: FeedId) -> None:
        self.lab = lab
        self.author = author
        self.liar = liar
        self.feed = feed
        self.honest = dict(liar.feeds.handlers)
        self.lies_told = 0

    def lie(self, op: str, lie: Answer) -> None:
        async def answer(session: Any, body: dict[str, Any]) -> dict[str, Any]:
            self.lies_told += 1
            return await lie(session, body)

        self.liar.sessions.handle(op, answer)

    async def reader(self) -> Node:
        reader = await self.lab.node("reader", knows=[self.author, self.liar])
        await self.lab.together(reader, self.author, self.liar)
        return reader


@pytest.fixture
async def scene(virtual_clock: MockClock, lab: FeedLab) -> Scene:
    author = await lab.node("author")
    liar = await lab.node("liar")
    feed = await author.new_feed(*texts(COUNT))
    await liar.read_all(feed, COUNT)
    return Scene(lab, author, liar, feed)


async def test_entries_that_were_not_signed_are_refused_and_come_from_somebody_else(
    virtual_clock: MockClock, scene: Scene
) -> None:
    async def changed(session: Any, body: dict[str, Any]) -> dict[str, Any]:
        answer = await scene.honest["feed entries"](session, body)
        entries = unpack(answer["entries"], COUNT)
        wrong = entries[len(entries) // 2]
        entries[len(entries) // 2] = wrong[:-2] + b'!"'
        return {**answer, "entries": pack(entries)}

    scene.lie("feed entries", changed)
    reader = await scene.reader()
    assert await reader.read_all(scene.feed, COUNT) == texts(COUNT)
    subfeed = await reader.subfeed(scene.feed)
    assert scene.lies_told
    assert {session.peer for session in subfeed.sources} == {scene.author.id}


@pytest.mark.parametrize("lack", ["first", "last", "all but one"])
async def test_a_gap_in_what_is_sent_is_noticed(
    lack: str, virtual_clock: MockClock, scene: Scene
) -> None:
    async def gap(session: Any, body: dict[str, Any]) -> dict[str, Any]:
        answer = await scene.honest["feed entries"](session, body)
        entries = unpack(answer["entries"], COUNT)
        kept = {"first": entries[1:], "last": entries[:-1], "all but one": entries[:1]}[lack]
        return {**answer, "entries": pack(kept or entries[:1])}

    scene.lie("feed entries", gap)
    reader = await scene.reader()
    assert await reader.read_all(scene.feed, COUNT) == texts(COUNT)


async def test_a_member_that_never_gives_entries_holds_nobody_up_for_long(
    virtual_clock: MockClock, scene: Scene
) -> None:
    async def never(session: Any, body: dict[str, Any]) -> dict[str, Any]:
        await trio.sleep_forever()
        raise AssertionError

    scene.lie("feed entries", never)
    reader = await scene.reader()
    began = trio.current_time()
    assert await reader.read_all(scene.feed, COUNT, wait_s=60) == texts(COUNT)
    assert trio.current_time() - began < 10
    await scene.author.append(scene.feed, *texts(3, COUNT))
    await reader.until(scene.feed, lambda subfeed: subfeed.replica.readable == COUNT + 3)


def forged(feed: FeedId, key: NodeKey, log: LogId | None = None) -> bytes:
    """A head about the feed that another key signed."""
    other = MemoryLog(LogId(b"kp2p-feed-head/1", key.node_id, bytes(32)), key)
    signed = other.append(messages(COUNT + 5))
    right = SubfeedName(feed, MAIN).log
    return signed._replace(head=signed.head._replace(log=right)).encode()


@pytest.mark.parametrize("what", ["head", "path", "fork", "old head"])
async def test_lies_about_heads_are_not_believed_and_their_teller_is_not_heard(
    what: str, virtual_clock: MockClock, scene: Scene
) -> None:
    old = (await scene.liar.subfeed(scene.feed)).replica.tell().known["head"]

    async def lie(session: Any, body: dict[str, Any]) -> dict[str, Any]:
        answer = await scene.honest["feed follow"](session, body)
        if what == "head":
            return {**answer, "head": forged(scene.feed, THIEF)}
        if what == "fork":
            return {**answer, "fork": min(old, forged(scene.feed, THIEF)) * 2}
        if what == "old head":
            return {**answer, "head": old, "path": b""}
        return {**answer, "path": bytes(32 * 13)}

    scene.lie("feed follow", lie)
    reader = await scene.reader()
    await scene.author.append(scene.feed, *texts(2, COUNT))
    expected = texts(COUNT + 2)
    assert await reader.read_all(scene.feed, COUNT + 2) == expected
    subfeed = await reader.subfeed(scene.feed)
    assert subfeed.replica.log.fork is None
    # A restarted reader has not gone back either.
    reader = await scene.lab.restarted(reader)
    assert (await reader.subfeed(scene.feed)).replica.size == COUNT + 2


async def test_news_for_what_nobody_follows_are_refused_and_cost_nothing(
    virtual_clock: MockClock, scene: Scene
) -> None:
    session = scene.liar.sessions.get(scene.author.id)
    assert session is not None
    for number in range(2_000):
        name = ContentHash.of_raw(number.to_bytes(20, "big"))
        body = SubfeedName(FeedId("ab" * 32), name).body(LAB.id)
        news = {**body, **NOTHING, "base": 0, "path": b"", "entries": b""}
        with pytest.raises(PeerRefusedError):
            await session.request("feed news", news, 10)
    assert len(list(scene.author.feeds._subfeeds)) == 1


async def test_a_flood_of_news_waits_and_others_are_heard(
    virtual_clock: MockClock, scene: Scene
) -> None:
    reader = await scene.reader()
    await reader.read_all(scene.feed, COUNT)
    session = scene.liar.sessions.get(reader.id)
    assert session is not None
    told = (await scene.liar.subfeed(scene.feed)).replica.tell()
    body = {**SubfeedName(scene.feed, MAIN).body(LAB.id), **told.news}
    began = trio.current_time()
    for _ in range(2 * FEED_NEWS_BURST):
        await session.request("feed news", body, 60)
    assert trio.current_time() - began > 1
    await scene.author.append(scene.feed, *texts(1, COUNT))
    await reader.until(scene.feed, lambda subfeed: subfeed.replica.readable == COUNT + 1)


async def test_one_member_follows_no_more_than_its_share(
    virtual_clock: MockClock, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 300
    assert most < FEED_FOLLOWERS_PER_PEER_MAX
    monkeypatch.setattr(spreading, "FEED_FOLLOWERS_PER_PEER_MAX", most)
    session = scene.liar.sessions.get(scene.author.id)
    assert session is not None
    refused = 0
    for number in range(most + 100):
        name = ContentHash.of_raw(number.to_bytes(20, "big"))
        body = {**SubfeedName(scene.feed, name).body(LAB.id), **NOTHING, "follow": True}
        try:
            await session.request("feed follow", body, 10)
        except PeerBusyError:
            refused += 1
    assert refused >= 99
    assert len(list(scene.author.feeds._subfeeds)) == 1
    reader = await scene.reader()
    await reader.read_all(scene.feed, COUNT)
    await scene.author.append(scene.feed, *texts(1, COUNT))
    await reader.until(scene.feed, lambda subfeed: subfeed.replica.readable == COUNT + 1)
    # What is remembered goes with the connection.
    await scene.lab.stopped(scene.liar)
    with trio.fail_after(120):
        while scene.author.sessions.get(scene.liar.id) is not None:
            await scene.author.sessions.changed()
    await trio.testing.wait_all_tasks_blocked()
    assert scene.author.feeds._spreading.total == 1


async def test_a_liar_that_says_it_owns_a_feed_takes_no_message_for_appended(
    virtual_clock: MockClock, scene: Scene
) -> None:
    await scene.lab.stopped(scene.author)
    # Or nobody would submit anything to it.
    own = claim_ownership(keys.load_own(str(scene.author.directory), scene.feed), scene.liar.id)

    async def mine(session: Any, body: dict[str, Any]) -> dict[str, Any]:
        return {**await scene.honest["feed follow"](session, body), "own": own}

    async def taken(session: Any, body: dict[str, Any]) -> dict[str, Any]:
        told = (await scene.liar.subfeed(scene.feed)).replica.tell()
        return {"positions": (7).to_bytes(8, "big"), "head": told.known["head"]}

    scene.lie("feed follow", mine)
    scene.lie("feed submit", taken)
    writer = await scene.lab.node("writer", knows=[scene.liar])
    await scene.lab.together(writer, scene.liar)
    with pytest.raises((FeedUnavailableError, WriteRefusedError)):
        await writer.feeds.submit(scene.feed, MAIN, ['"precious"'])
    assert scene.lies_told >= 2


@pytest.mark.parametrize("count", [100_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
async def test_hosts_of_tiny_entries_need_little_memory(
    count: int, virtual_clock: MockClock, lab: FeedLab
) -> None:
    author, reader = await lab.node("author"), await lab.node("reader")
    feed = await author.feeds.create(None, None)
    batch = 50_000
    for _ in range(count // batch):
        await author.feeds.append(feed, MAIN, ["1"] * batch)
    before = resident_bytes()
    await reader.read(feed, wait_s=60)
    await reader.until(feed, lambda subfeed: subfeed.replica.readable == count, wait_s=600)
    assert resident_bytes() - before < 100 << 20


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
