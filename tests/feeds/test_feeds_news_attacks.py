"""Members whose news say more than was signed, or nothing at all: nobody reads a word of it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from kachery_p2p.errors import PeerError
from kachery_p2p.feeds import talks as talks_module
from kachery_p2p.feeds.catchup import Brought
from kachery_p2p.feeds.fetching import _Run, _Supplier
from kachery_p2p.feeds.hands import Hands
from kachery_p2p.feeds.messages import message_entries
from kachery_p2p.feeds.news import Grown
from kachery_p2p.feeds.replica import Heard, Replica
from kachery_p2p.feeds.subfeed import Source, Subfeed
from kachery_p2p.feeds.told import SubfeedName, Told
from kachery_p2p.limits import FEED_NEWS_BURST
from kachery_p2p.log.heads import Head, sign_head
from kachery_p2p.log.proofs import prove_consistency
from tests.feeds.feed_nodes import LAB, MAIN, FeedLab
from tests.feeds.feed_parts import KEY, LOG, NAME, MemoryLog, messages

WAIT_S = 30


class Copy:
    """An owner's log, and the copy of it that a node keeps up to date."""

    def __init__(self, hands: Hands) -> None:
        self.own = MemoryLog(LOG, KEY)
        self.log = MemoryLog()
        self.subfeed = Subfeed(NAME, Replica(self.log), hands)

    def news(self, base: int) -> Told:
        return Replica(self.own).tell_news(base)

    def read(self) -> list[bytes]:
        return list(self.subfeed.recent(0, 99))


@pytest.fixture
async def copy() -> AsyncIterator[Copy]:
    hands = Hands()
    made = Copy(hands)
    made.own.append(messages(5))
    await made.subfeed.hear(made.news(0))
    assert made.read() == messages(5)
    yield made
    hands.close()


async def test_of_news_only_what_was_verified_is_shown(copy: Copy) -> None:
    copy.own.append(messages(1, 5))
    news = copy.news(0)
    forged = [*messages(5, 0, "forged"), news.entries[-1]]
    heard = await copy.subfeed.hear(news._replace(entries=forged))
    assert (heard.first, list(heard.kept)) == (5, messages(1, 5))
    assert copy.read() == copy.log.kept == messages(6)


async def test_what_somebody_else_brought_meanwhile_vouches_for_nothing(copy: Copy) -> None:
    copy.own.append(messages(1, 5))
    honest = copy.news(5)
    head = sign_head(Head(LOG, 6, copy.own.root_at(6), 9_000), KEY)
    forged = Told(head, base=0, entries=messages(6, 0, "forged"))
    may_go_on, hear = threading.Event(), copy.subfeed.replica.hear

    def hear_late(told: Told, grown: Grown | None = None) -> Heard:
        may_go_on.wait(WAIT_S)
        return hear(told, grown)

    copy.subfeed.replica.hear = hear_late  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(copy.subfeed.hear, honest)
        await wait_all_tasks_blocked()
        nursery.start_soon(copy.subfeed.hear, forged)
        await wait_all_tasks_blocked()
        may_go_on.set()
    assert copy.log.signed == head
    assert copy.read() == copy.log.kept == messages(6)


async def test_of_an_answer_only_what_was_missing_is_shown(copy: Copy) -> None:
    judge = copy.own.append(messages(3, 5))
    path = prove_consistency(5, 8, copy.own.read_hash)
    await copy.subfeed.hear(Told(judge, base=5, path=path))
    assert copy.subfeed.replica.is_behind
    source = Source(object(), "lab", judge, own=False)  # type: ignore[arg-type]
    came: list[str] = []

    async def note(name: SubfeedName, channel: str) -> None:
        came.append(channel)

    run = _Run(copy.subfeed, lambda subfeed: None, lambda subfeed, teller: None, note)
    # The first two came with news while the answer was on its way.
    entries = [*messages(2, 3, "forged"), *messages(3, 5)]
    await run._keep([Brought(_Supplier(source, judge), 3, entries, ())])
    assert copy.log.kept == messages(8)
    assert copy.read() == messages(8)
    assert came == ["lab"]


async def test_a_reader_never_sees_what_was_put_before_the_news(
    virtual_clock: MockClock, lab: FeedLab
) -> None:
    author, liar = await lab.node("author"), await lab.node("liar")
    feed = await author.new_feed(*[f'"{number}"' for number in range(5)])
    await liar.read_all(feed, 5)
    reader = await lab.node("reader", knows=[liar])
    await lab.together(reader, liar)
    await reader.read_all(feed, 5)
    liar.feeds._spreading.spread = lambda subfeed: None  # type: ignore[method-assign]
    await author.append(feed, '"5"')
    await liar.until(feed, lambda subfeed: subfeed.replica.readable == 6)
    told = (await liar.subfeed(feed)).replica.tell_news(0)
    forged = message_entries([f'"forged{number}"' for number in range(5)], 1)
    told = told._replace(path=(), entries=[*forged, told.entries[-1]])
    session = liar.sessions.get(reader.id)
    assert session is not None
    await session.request("feed news", {**SubfeedName(feed, MAIN).body(LAB.id), **told.news}, 10)
    assert await reader.read_all(feed, 6) == [f'"{number}"' for number in range(6)]


async def test_news_that_cannot_be_read_are_paid_for_like_others(
    virtual_clock: MockClock, lab: FeedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    author, liar = await lab.node("author"), await lab.node("liar")
    feed = await author.new_feed('"0"')
    await liar.read_all(feed, 1)
    reader = await lab.node("reader", knows=[liar])
    await lab.together(reader, liar)
    await reader.read_all(feed, 1)
    session = liar.sessions.get(reader.id)
    assert session is not None
    news = (await liar.subfeed(feed)).replica.tell().news
    body = {**SubfeedName(feed, MAIN).body(LAB.id), **news, "entries": b"\0\0\0\1"}
    looks = 0

    class Counted(Told):
        @classmethod
        def of(cls, body: dict[str, object], base: int = 0) -> Told:
            nonlocal looks
            looks += "entries" in body
            return Told.of(body, base)

    monkeypatch.setattr(talks_module, "Told", Counted)
    began = trio.current_time()
    for _ in range(FEED_NEWS_BURST + 600):
        with pytest.raises(PeerError):
            await session.request("feed news", body, 60)
    assert looks == FEED_NEWS_BURST + 600
    assert trio.current_time() >= began + 1
