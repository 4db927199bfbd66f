"""Who is asked for a blob, and when: announcers first, everyone in the end, liars or not."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.channels.channel import Channel
from kachery_p2p.content.hashes import ContentHash, Root, sha1_of
from kachery_p2p.errors import NotFoundError, PeerRefusedError
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeId, NodeKey
from kachery_p2p.limits import (
    ANNOUNCED_ASKED_MAX,
    ANNOUNCED_GRACE_S,
    HAVE_GRACE_S,
    INDEX_ABOVE_MEMBERS,
    INDEX_KEEPERS,
)
from kachery_p2p.network.catalogue import Catalogue, Telling
from kachery_p2p.network.prefixes import prefix_of
from kachery_p2p.network.providers import Providers
from kachery_p2p.transfer.holders import Holders
from kachery_p2p.transfer.rounds import Round
from kachery_p2p.transfer.sources import Claim, Source

LAB = Channel.shared(b"L" * 20, "lab")
BYTES = hashlib.shake_128(b"holders").digest(40_000)
CONTENT = sha1_of(BYTES)
# Round trips of the simulated world, and what a disk may add.
QUICK_S = 0.2


class Hints:
    """Announcements as a test has them."""

    def __init__(self, *announced: Any, named: dict[Any, Sequence[Any]] | None = None) -> None:
        self.nodes = [node.id for node in announced]
        self.named = {keeper.id: [n.id for n in nodes] for keeper, nodes in (named or {}).items()}

    def announced(self, content: ContentHash, channel: str) -> list[NodeId]:
        return self.nodes

    def keepers(self, content: ContentHash, channel: str) -> list[NodeId]:
        return list(self.named)

    async def named_by(self, keeper: NodeId, content: ContentHash, channel: str) -> list[NodeId]:
        await trio.sleep(0.01)
        return self.named[keeper]


class Counted:
    """Counts the `have?` that a node gets, and answers as it is told to."""

    def __init__(self, node: Any, how: str = "honest") -> None:
        self.count = 0
        self._honest = node.server._have
        self._how = how
        node.sessions.handle("have", self)

    async def __call__(self, session: Any, body: Any) -> dict[str, Any]:
        self.count += 1
        if self._how == "silent":
            await trio.sleep_forever()
        if self._how == "refuses":
            raise PeerRefusedError("no")
        if self._how == "lies":
            return {"size": 5, "root": bytes([self.count]) * 32, "pinned": True}
        answer: dict[str, Any] = await self._honest(session, body)
        return answer


async def a_lab(lab: Any, *names: str) -> tuple[Any, ...]:
    nodes = [await lab.node(name) for name in names]
    await lab.together(*nodes)
    return tuple(nodes)


def seeker(node: Any, hints: Hints) -> None:
    node.holders = Holders(node.sessions, node.link, hints)
    node.downloads._holders = node.holders


async def timed(node: Any, **how: Any) -> float:
    began = trio.current_time()
    await node.downloads.load(CONTENT, None, lambda state: None, **how)
    assert node.bytes_of(CONTENT) == BYTES
    return trio.current_time() - began


async def test_only_who_announced_is_asked(virtual_clock: MockClock, lab: Any) -> None:
    alice, bob, carol, dora = await a_lab(lab, "alice", "bob", "carol", "dora")
    alice.store(BYTES)
    bob.store(BYTES)
    counts = [Counted(node) for node in (alice, bob, carol)]
    seeker(dora, Hints(alice))
    assert await timed(dora) < QUICK_S
    assert [counted.count for counted in counts] == [1, 0, 0]


async def test_when_nobody_announced_everyone_is_asked_at_once(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, bob, carol = await a_lab(lab, "alice", "bob", "carol")
    alice.store(BYTES)
    seeker(carol, Hints())
    assert await timed(carol) < HAVE_GRACE_S + QUICK_S


@pytest.mark.parametrize("how", ["silent", "refuses", "lies"])
async def test_a_member_that_announces_what_it_has_not_costs_a_grace_at_most(
    virtual_clock: MockClock, lab: Any, how: str
) -> None:
    alice, mallory, bob = await a_lab(lab, "alice", "mallory", "bob")
    alice.store(BYTES)
    Counted(mallory, how)
    seeker(bob, Hints(mallory))

    def wanted(claim: Claim) -> bool:
        return bool(claim.source.node == alice.id)

    began = trio.current_time()
    found = await bob.holders.find(CONTENT, wanted, 10.0)
    assert [claim.source.node for claim in found] == [alice.id]
    assert trio.current_time() - began < ANNOUNCED_GRACE_S + HAVE_GRACE_S + QUICK_S


async def test_claims_that_do_not_agree_give_everyone_a_vote(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, bob, carol, mallory, dora = await a_lab(lab, "alice", "bob", "carol", "mallory", "dora")
    for node in (alice, bob, carol):
        node.store(BYTES)
    Counted(mallory, "lies")
    seeker(dora, Hints(alice, mallory))
    await timed(dora)
    found = await dora.holders.ask(CONTENT, LAB.id)
    assert {claim.source.node for claim in found} == {
        node.id for node in (alice, bob, carol, mallory)
    }
    assert await timed(dora) < 1


class Member:
    """Stands for a session: how its node answers `have?`."""

    def __init__(self, number: int, how: str) -> None:
        self.peer = NodeKey.generate(number.to_bytes(2, "big") * (NODE_KEY_BYTES // 2)).node_id
        self.id = self.peer
        self.how = how
        self.asked = 0

    async def have(self) -> Claim:
        self.asked += 1
        await trio.sleep(0.01 if self.how != "silent" else 3600)
        if self.how == "refuses":
            raise PeerRefusedError("no")
        return Claim(cast(Source, self), 5, Root("ab" * 32), True)


async def one_round(members: list[Member], hints: Any) -> tuple[list[Any], float]:
    """Who claims to hold it, and how long the round took."""

    async def have(session: Any, channel: str, content: ContentHash) -> Claim:
        found: Claim = await session.have()
        return found

    by_node: Any = {(LAB.id, member.peer): member for member in members}
    asking = Round(have, CONTENT, by_node, lambda claim: True)
    began = trio.current_time()
    await asking.run(hints)
    return [claim.source for claim in asking.claims], trio.current_time() - began


@pytest.mark.parametrize("announced", [True, False])
async def test_fifty_liars_and_one_honest_holder_end_in_a_quick_answer(
    autojump_clock: MockClock, announced: bool
) -> None:
    liars = [Member(n, ("silent", "refuses")[n % 2]) for n in range(50)]
    honest = Member(99, "honest")
    hints = Hints(*liars, *([honest] if announced else []))
    claims, took_s = await one_round([*liars, honest], hints)
    assert claims == [honest]
    assert took_s < ANNOUNCED_GRACE_S + HAVE_GRACE_S + 0.1


async def test_of_many_announcers_a_few_are_asked(autojump_clock: MockClock) -> None:
    members = [Member(n, "honest") for n in range(100)]
    claims, took_s = await one_round(members, Hints(*members[:60]))
    assert len(claims) == sum(member.asked for member in members) == ANNOUNCED_ASKED_MAX
    assert took_s < 0.1


async def test_the_index_is_asked_and_then_whom_it_names(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, keeper, other, bob = await a_lab(lab, "alice", "keeper", "other", "bob")
    alice.store(BYTES)
    counts = [Counted(node) for node in (alice, keeper, other)]
    seeker(bob, Hints(named={keeper: [alice], other: []}))
    assert await timed(bob) < QUICK_S
    assert [counted.count for counted in counts] == [1, 0, 0]


async def test_an_index_that_names_nobody_or_the_wrong_ones_hides_nothing(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, keeper, bob = await a_lab(lab, "alice", "keeper", "bob")
    alice.store(BYTES)
    Counted(keeper, "silent")
    seeker(bob, Hints(named={keeper: [keeper]}))
    assert await timed(bob) < 2 * ANNOUNCED_GRACE_S + HAVE_GRACE_S + QUICK_S


async def test_what_nobody_has_is_not_found_though_somebody_announced_it(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, bob = await a_lab(lab, "alice", "bob")
    seeker(bob, Hints(alice))
    with pytest.raises(NotFoundError):
        await timed(bob)


@pytest.mark.parametrize("count", [64, 66, 200])
async def test_in_a_channel_of_many_few_are_asked_when_the_holder_announced(
    autojump_clock: MockClock, count: int
) -> None:
    members = [Member(n, "refuses") for n in range(count)]
    seeking, holder = members[:2]
    holder.how = "honest"
    peers = {member.peer for member in members}

    @functools.cache
    def known_to(node: NodeId) -> Providers:
        made = Providers(node)
        made.set_members({LAB.id: peers - {node}})
        return made

    catalogue = Catalogue()
    catalogue.set(prefix_of(CONTENT), True)
    told = 0
    for member in members:
        slots = known_to(holder.peer).slots_for(member.peer, LAB.id)
        delta = Telling(LAB.id, catalogue).next(slots) if member is not holder else None
        if delta is not None:
            told += 1
            known_to(member.peer).hear(holder.peer, delta)
    assert told <= (count - 1 if count <= INDEX_ABOVE_MEMBERS else INDEX_KEEPERS)
    hints = Hints()
    mine = known_to(seeking.peer)
    hints.nodes = list(mine.holders(CONTENT, LAB.id))
    hints.named = {
        keeper: list(known_to(keeper).holders(CONTENT, LAB.id))
        for keeper in mine.keepers(CONTENT, LAB.id)
    }
    # As `holders` does: whoever is asked and holds it itself says so.
    if holder.peer in hints.named:
        hints.named[holder.peer].append(holder.peer)
    claims, _ = await one_round(members[1:], hints)
    assert claims == [holder]
    assert sum(member.asked for member in members) == 1
