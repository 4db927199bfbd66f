"""Single messages far ahead: none behind an end, and none of a history that nobody has compared."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from kachery_p2p.errors import FeedUnavailableError
from kachery_p2p.feeds.fetching import Fetching
from kachery_p2p.feeds.hands import Hands
from kachery_p2p.feeds.replica import Replica, Standing
from kachery_p2p.feeds.subfeed import Source, Subfeed
from kachery_p2p.feeds.tombstones import End, Tombstone
from kachery_p2p.log.forks import prove_fork
from kachery_p2p.log.proofs import prove_consistency
from kachery_p2p.log.tree import Frontier
from kachery_p2p.wire.feed_messages import pack
from tests.feeds.feed_parts import KEY, LOG, NAME, MemoryLog, messages

COMMON = 20


def log_of(*parts: list[bytes]) -> MemoryLog:
    made = MemoryLog(LOG, KEY)
    for part in parts:
        made.append(part)
    return made


class Teller:
    """A session with somebody who has a log."""

    peer = "ab" * 32

    def __init__(self, log: MemoryLog) -> None:
        self.log = log

    async def request(self, op: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        first = body["first"]
        entries = self.log.kept[first : first + body["count"]]
        path = prove_consistency(first + len(entries), body["size"], self.log.read_hash)
        frontier = Frontier.at(first, self.log.read_hash).hashes
        return {"entries": pack(entries), "path": b"".join(path), "frontier": b"".join(frontier)}


@pytest.fixture
async def subfeed() -> AsyncIterator[Subfeed]:
    hands = Hands()
    yield Subfeed(NAME, Replica(MemoryLog()), hands)
    hands.close()


async def came(name: object, channel: str) -> None:
    raise AssertionError("nothing is kept")


def fetching() -> Fetching:
    return Fetching(lambda subfeed: None, lambda subfeed, session: None, came)


def tells(subfeed: Subfeed, log: MemoryLog, standing: Standing) -> None:
    source = Source(Teller(log), "lab", log.signed, own=False)  # type: ignore[arg-type]
    subfeed.note_source(source, standing)


async def test_nothing_behind_a_tombstone_is_shown(subfeed: Subfeed) -> None:
    own = log_of(messages(30))
    memory = subfeed.replica.log
    assert isinstance(memory, MemoryLog)
    memory.signed = own.signed
    memory.tombstone = End.of([Tombstone(LOG, 25, own.root_at(25), None, 5).signed(KEY)])
    tells(subfeed, own, Standing.AGREES)
    assert await fetching().single(subfeed, 22, 10) == messages(3, 22)
    with pytest.raises(FeedUnavailableError):
        await fetching().single(subfeed, 25, 10)


async def test_no_more_is_shown_than_was_asked_for(subfeed: Subfeed) -> None:
    own = log_of(messages(30))
    memory = subfeed.replica.log
    assert isinstance(memory, MemoryLog)
    memory.signed = own.signed
    tells(subfeed, own, Standing.AGREES)
    two = sum(map(len, messages(2, 10)))
    assert await fetching().single(subfeed, 10, 10, two) == messages(2, 10)
    assert await fetching().single(subfeed, 10, 10, 1) == messages(1, 10)


@pytest.mark.parametrize("which", ["one", "two", "third"])
async def test_after_a_fork_only_what_both_histories_share_is_shown(
    subfeed: Subfeed, which: str
) -> None:
    common = messages(COMMON)
    logs = {
        "one": log_of(common, messages(5, COMMON, "one")),
        "two": log_of(common, messages(6, COMMON, "two")),
        # It parts from both much earlier, and is in nobody's proof.
        "third": log_of(messages(3), messages(25, 3, "third")),
    }
    one, two = logs["one"], logs["two"]
    assert one.signed is not None
    assert two.signed is not None
    fork = prove_fork(one.signed, one.read_hash, two.signed, two.read_hash, exact=True)
    assert fork is not None
    subfeed.replica.convict(fork)
    assert subfeed.replica.limit == COMMON
    tells(subfeed, logs[which], Standing.FORKED)
    if which == "third":
        with pytest.raises(FeedUnavailableError):
            await fetching().single(subfeed, 18, 10)
    else:
        assert await fetching().single(subfeed, 18, 10) == messages(2, 18)
