"""Nodes that announce to each other in the simulated world, and members that misbehave."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.channels.channel import Channel
from kachery_p2p.channels.history import History
from kachery_p2p.content.hashes import ContentHash, sha1_of
from kachery_p2p.errors import (
    PeerBusyError,
    PeerError,
    PeerRefusedError,
    ProtocolError,
)
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeId, NodeKey
from kachery_p2p.limits import (
    ANNOUNCE_BATCH_S,
    ANNOUNCE_BYTES_PER_S,
    ANNOUNCE_PREFIXES_MAX,
    ANNOUNCED_PER_PEER_MAX,
    INDEX_KEEPERS,
)
from kachery_p2p.network.announcer import Announcer
from kachery_p2p.network.discovery import AddressBook
from kachery_p2p.network.histories import Histories
from kachery_p2p.network.meeting import Me
from kachery_p2p.network.memberships import Memberships
from kachery_p2p.network.prefixes import prefix_of
from kachery_p2p.network.session import Session
from kachery_p2p.network.sessions import Sessions
from kachery_p2p.network.simulated import World
from kachery_p2p.store.grants import Grants

LAB = Channel.shared(b"L" * 20, "lab")
FIELD = Channel.shared(b"F" * 20, "field")
A, B, C = (sha1_of(name) for name in (b"a", b"b", b"c"))
SOON_S = 2 * ANNOUNCE_BATCH_S + 0.5


async def kept(history: History) -> None:
    """These nodes keep no histories: they are in no owned channel."""


class Node:
    """A node with sessions and announcements; it holds whatever it has granted."""

    def __init__(self, town: Town, number: int, channels: list[Channel]) -> None:
        self.town = town
        self.key = NodeKey.generate(number.to_bytes(2, "big") * (NODE_KEY_BYTES // 2))
        self.id = self.key.node_id
        self.grants = Grants(str(town.directory / f"{number}.db"))
        self.channels = channels
        self.lost: set[ContentHash] = set()
        self.starts = 0
        self.announcer: Announcer
        self.sessions: Sessions
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()

    async def start(self, *known: Node, speaks: bool = True) -> None:
        self.starts += 1
        link = self.town.world.link(self.id)
        book = AddressBook(self.id)
        for node in known:
            book.add(node.id, self.town.world.link(node.id).addresses, by_user=True)
        memberships = Memberships(self.channels)
        me = Me(self.key, memberships, Random(f"{self.id}/{self.starts}").randbytes)
        histories = Histories(me, kept)
        self.sessions = Sessions(link, me, book, histories, label="", agent="test")
        self.announcer = Announcer(
            sessions=self.sessions,
            grants=self.grants,
            holds=lambda content: content not in self.lost,
            node_id=self.id,
        )
        self._scope, self._stopped = trio.CancelScope(), trio.Event()
        await self.town.nursery.start(self._run, speaks)

    async def _run(self, speaks: bool, task_status: trio.TaskStatus[None]) -> None:
        with self._scope:
            async with self.sessions.running(), trio.open_nursery() as nursery:
                if speaks:
                    nursery.start_soon(self.announcer.run)
                task_status.started()
                await trio.sleep_forever()
        self._stopped.set()

    async def stop(self) -> None:
        self.town.world.crash(self.id)
        self._scope.cancel()
        await self._stopped.wait()

    def grant(self, *contents: ContentHash, channel: Channel = LAB) -> None:
        self.grants.grant(contents, [channel.id], "test", 0.0)

    def knows(self, content: ContentHash, channel: Channel = LAB) -> set[NodeId]:
        return set(self.announcer.announced(content, channel.id))

    def heard_of(self, other: Node) -> int:
        return self.announcer.providers.count_of(other.id)

    def session(self, other: Node) -> Session:
        found = self.sessions.get(other.id)
        assert found is not None
        return found


class Town:
    def __init__(self, world: World, nursery: trio.Nursery, directory: Path) -> None:
        self.world = world
        self.nursery = nursery
        self.directory = directory
        self.nodes: list[Node] = []

    def node(self, *channels: Channel) -> Node:
        self.nodes.append(Node(self, len(self.nodes) + 1, list(channels or [LAB])))
        return self.nodes[-1]

    async def until(self, happened: Callable[[], bool], within_s: float = SOON_S) -> None:
        with trio.fail_after(within_s):
            while not happened():  # noqa: ASYNC110 - a world is looked at, it does not tell
                await trio.sleep(0.05)


@asynccontextmanager
async def a_town(directory: Path) -> AsyncIterator[Town]:
    town: Town | None = None
    try:
        async with World(1) as world, trio.open_nursery() as nursery:
            town = Town(world, nursery, directory)
            yield town
            nursery.cancel_scope.cancel()
    finally:
        for node in town.nodes if town else ():
            node.grants.close()


@pytest.fixture
async def town(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[Town]:
    async def in_place(work: Callable[..., Any], *arguments: Any) -> Any:
        # In a thread the virtual clock would run away while the disk is at work.
        await trio.lowlevel.checkpoint()
        return work(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", in_place)
    async with a_town(tmp_path) as town:
        yield town


async def two(town: Town, *channels: Channel) -> tuple[Node, Node]:
    """Two nodes that have met; the first announces nothing of its own accord."""
    alice, bob = town.node(*channels), town.node(*channels)
    await alice.start(speaks=False)
    await bob.start(alice)
    await town.until(lambda: bool(alice.sessions.get(bob.id) and bob.sessions.get(alice.id)))
    await trio.sleep(SOON_S)
    return alice, bob


def body(
    seq: int = 0,
    reset: bool = True,
    add: bytes = b"",
    drop: bytes = b"",
    channel: Channel = LAB,
) -> dict[str, Any]:
    return {"channel": channel.id, "seq": seq, "reset": reset, "add": add, "drop": drop}


# --- members that behave ------------------------------------------------------------------------


async def test_what_is_granted_is_announced_to_the_members_of_that_channel_only(
    autojump_clock: MockClock,
    town: Town,
) -> None:
    alice, bob, carol = town.node(LAB, FIELD), town.node(LAB), town.node(FIELD)
    alice.grant(A)
    alice.grant(B, channel=FIELD)
    await alice.start()
    await bob.start(alice)
    await carol.start(alice)
    await town.until(lambda: bob.knows(A) == {alice.id} == carol.knows(B, FIELD), 5)
    await trio.sleep(SOON_S)
    assert (bob.heard_of(alice), carol.heard_of(alice)) == (1, 1)
    assert bob.knows(B) == carol.knows(A, FIELD) == set()


async def test_grants_and_revocations_are_told_within_a_second(
    autojump_clock: MockClock, town: Town
) -> None:
    alice, bob = town.node(), town.node()
    await alice.start()
    await bob.start(alice)
    await trio.sleep(2)
    alice.grant(A, B)
    await town.until(lambda: bob.knows(A) == bob.knows(B) == {alice.id}, 1.0)
    alice.grants.revoke([A], LAB.id)
    await town.until(lambda: bob.knows(A) == set(), 1.0)
    alice.grants.forget(B)
    await town.until(lambda: bob.knows(B) == set(), 1.0)
    assert bob.heard_of(alice) == 0


async def test_what_another_process_grants_is_told_too(
    autojump_clock: MockClock, town: Town
) -> None:
    alice, bob = town.node(), town.node()
    alice.grant(C)
    await alice.start()
    await bob.start(alice)
    await town.until(lambda: bob.knows(C) == {alice.id}, 5)
    other_process = Grants(str(town.directory / "1.db"))
    other_process.grant([A], [LAB.id], "test", 0.0)
    other_process.forget(C)
    await town.until(lambda: bob.knows(A) == {alice.id} and not bob.knows(C))
    other_process.close()


async def test_what_is_granted_and_not_held_is_not_announced(
    autojump_clock: MockClock, town: Town
) -> None:
    alice, bob = town.node(), town.node()
    alice.grant(A, B)
    alice.lost.add(A)
    await alice.start()
    await bob.start(alice)
    await town.until(lambda: bob.knows(B) == {alice.id}, 5)
    assert bob.knows(A) == set()


async def test_announcements_end_with_the_connection_and_begin_anew_with_the_next(
    autojump_clock: MockClock,
    town: Town,
) -> None:
    alice, bob = town.node(), town.node()
    alice.grant(A, B)
    await alice.start()
    await bob.start(alice)
    await town.until(lambda: bob.knows(A) == {alice.id}, 5)
    await alice.stop()
    await town.until(lambda: bob.heard_of(alice) == 0, 5)
    alice.grants.revoke([A], LAB.id)
    await alice.start()
    await town.until(lambda: bob.knows(B) == {alice.id}, 10)
    assert bob.knows(A) == set()


async def test_many_announcements_arrive_in_pieces_and_a_sender_of_ours_is_never_refused(
    autojump_clock: MockClock, town: Town, caplog: pytest.LogCaptureFixture
) -> None:
    alice, bob = town.node(), town.node()
    contents = [ContentHash.of_raw(Random(n).randbytes(20)) for n in range(35_000)]
    alice.grant(*contents)
    await alice.start()
    with caplog.at_level(logging.WARNING):
        await bob.start(alice)
        await town.until(lambda: bob.heard_of(alice) == len(contents), 30)
    assert "rate-limited" not in caplog.text


async def test_who_left_the_channel_is_neither_told_nor_heard(
    autojump_clock: MockClock, town: Town
) -> None:
    alice, bob = town.node(), town.node()
    alice.grant(A)
    bob.grant(A)
    await alice.start()
    await bob.start(alice)
    await town.until(lambda: bob.heard_of(alice) == alice.heard_of(bob) == 1, 5)
    await bob.session(alice).request("leave", {"channel": LAB.id}, 5)
    await town.until(lambda: alice.heard_of(bob) == 0)
    with pytest.raises(PeerRefusedError):
        await bob.session(alice).request("announce", body(add=A.raw[:8]), 5)
    alice.grant(B)
    await trio.sleep(5)
    assert bob.knows(B) == set()


async def test_in_a_large_channel_each_prefix_is_told_to_its_keepers_only(
    autojump_clock: MockClock, town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kachery_p2p.network.providers.INDEX_ABOVE_MEMBERS", 6)
    monkeypatch.setattr("kachery_p2p.network.providers.INDEX_UNTIL_MEMBERS", 5)
    nodes = [town.node() for _ in range(9)]
    contents = [sha1_of(b"%d" % number) for number in range(60)]
    holder, others = nodes[0], nodes[1:]
    holder.grant(*contents)
    for node in nodes:
        await node.start(*nodes[:1])
    wanted = INDEX_KEEPERS * len(contents)
    mine = sum(len(holder.announcer.keepers(c, LAB.id)) < INDEX_KEEPERS for c in contents)
    await town.until(lambda: all(len(node.sessions.all()) == 8 for node in nodes), 60)

    def told() -> int:
        return sum(node.heard_of(holder) for node in others)

    # What was told before the channel was large is taken back.
    await trio.sleep(10)
    mine = sum(len(holder.announcer.keepers(c, LAB.id)) < INDEX_KEEPERS for c in contents)
    assert told() == wanted - mine
    for content in contents:
        keepers = others[0].announcer.keepers(content, LAB.id)
        named = [await others[0].announcer.named_by(k, content, LAB.id) for k in keepers]
        assert all(names == (holder.id,) for names in named)
    holder.grants.revoke(contents[:30], LAB.id)
    await town.until(lambda: told() < wanted - mine)
    assert await others[0].announcer.named_by(holder.id, contents[0], LAB.id) == ()


# --- members that do not ------------------------------------------------------------------------


async def test_a_million_from_one_member_are_noted_at_the_pace_allowed_and_given_back(
    autojump_clock: MockClock, town: Town, caplog: pytest.LogCaptureFixture
) -> None:
    alice, bob = await two(town)
    full = os.urandom(8 * ANNOUNCE_PREFIXES_MAX)
    messages = ANNOUNCED_PER_PEER_MAX // ANNOUNCE_PREFIXES_MAX + 1
    refused = 0
    began = trio.current_time()
    for seq in range(messages):
        add = Random(seq).randbytes(len(full))
        while True:
            try:
                await alice.session(bob).request("announce", body(seq, not seq, add), 5)
                break
            except PeerBusyError:
                refused += 1
                await trio.sleep(0.2)
    assert bob.heard_of(alice) == ANNOUNCED_PER_PEER_MAX
    assert bob.announcer.providers.bytes_used < 16_000_000
    assert trio.current_time() - began > 0.8 * 8 * ANNOUNCED_PER_PEER_MAX / ANNOUNCE_BYTES_PER_S
    assert refused
    assert caplog.text.count(f"peer rate-limited: node {alice.id}") in (1, 2)
    await alice.stop()
    await town.until(lambda: not bob.sessions.all(), 40)
    await town.until(lambda: bob.announcer.providers.bytes_used == 0)


async def test_a_flood_is_refused_and_nobody_else_hears_of_it(
    autojump_clock: MockClock, town: Town
) -> None:
    alice, bob = await two(town)
    carol = town.node()
    await carol.start(alice, bob)
    await town.until(lambda: len(bob.sessions.all()) == 2, 5)
    outcomes: list[str] = []

    async def flood(seq: int) -> None:
        try:
            add = Random(seq).randbytes(8 * ANNOUNCE_PREFIXES_MAX)
            await alice.session(bob).request("announce", body(0, True, add), 30)
            outcomes.append("taken")
        except PeerError as error:
            outcomes.append(type(error).__name__)

    async with trio.open_nursery() as nursery:
        for seq in range(300):
            nursery.start_soon(flood, seq)
    assert outcomes.count("PeerBusyError") > 280
    assert len(outcomes) == 300
    assert bob.heard_of(alice) <= ANNOUNCE_PREFIXES_MAX
    assert carol.heard_of(alice) == carol.heard_of(bob) == 0
    assert await carol.session(bob).request("ping", {}, 2) == {}


async def test_coming_back_brings_no_new_allowance_and_leaves_nothing_behind(
    autojump_clock: MockClock, town: Town
) -> None:
    alice, bob = await two(town)
    taken = 0
    for turn in range(12):
        for seq in range(20):
            add = Random(seq).randbytes(8 * ANNOUNCE_PREFIXES_MAX)
            try:
                await alice.session(bob).request("announce", body(seq, True, add), 5)
                taken += 1
            except PeerBusyError:
                break
        await alice.stop()
        await alice.start(bob, speaks=False)
        await town.until(lambda: alice.sessions.get(bob.id) is not None, 60)
        await town.until(lambda: bob.heard_of(alice) == 0, 5)
    spent_s = trio.current_time()
    per_s = ANNOUNCE_BYTES_PER_S / (8 * ANNOUNCE_PREFIXES_MAX)
    assert taken <= 8 + spent_s * per_s + 1
    assert bob.announcer.providers.bytes_used == 0
    assert len(bob.announcer._hearing) == 1


@pytest.mark.parametrize(("seq", "reset"), [(1, False), (2, False), (0, False), (5, False)])
async def test_wrong_sequence_numbers_end_what_was_announced_and_not_the_session(
    autojump_clock: MockClock, town: Town, seq: int, reset: bool
) -> None:
    alice, bob = await two(town)
    session = alice.session(bob)
    if seq != 1:
        await session.request("announce", body(add=A.raw[:8]), 5)
        assert bob.knows(A) == {alice.id}
    with pytest.raises(ProtocolError, match="out of sequence"):
        await session.request("announce", body(seq, reset, B.raw[:8]), 5)
    assert bob.heard_of(alice) == 0
    await session.request("announce", body(9, True, C.raw[:8]), 5)
    assert bob.knows(C) == {alice.id}


async def test_a_channel_that_is_unknown_or_not_the_senders_is_refused_alike(
    autojump_clock: MockClock, town: Town
) -> None:
    alice, bob = town.node(LAB), town.node(LAB, FIELD)
    await alice.start(speaks=False)
    await bob.start(alice)
    await town.until(lambda: bool(alice.sessions.get(bob.id)))
    said = set()
    for channel in (FIELD.id, "00" * 32):
        for op, request in (
            ("announce", {**body(add=A.raw[:8]), "channel": channel}),
            ("holders", {"channel": channel, "content": A.raw}),
        ):
            with pytest.raises(PeerRefusedError) as caught:
                await alice.session(bob).request(op, request, 5)
            said.add(str(caught.value))
    assert len(said) == 1
    assert bob.announcer.providers.count == 0


@pytest.mark.parametrize("wrong", [{"add": b"1234567"}, {"drop": bytes(8 * 8_192 + 8)}])
async def test_prefixes_of_odd_length_end_the_session(
    autojump_clock: MockClock, town: Town, wrong: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = await two(town)
    session = bob.session(alice)
    # Past our own check, which would not send such a thing.
    monkeypatch.setattr("kachery_p2p.wire.conversation._own", lambda check, op, request: request)
    with pytest.raises(PeerError):
        await alice.session(bob).request("announce", {**body(), **wrong}, 5)
    await town.until(lambda: bob.sessions.get(alice.id) is not session, 5)
    assert bob.heard_of(alice) == 0


async def test_a_peer_that_takes_nothing_is_left_alone_for_longer_each_time(
    autojump_clock: MockClock, town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = await two(town)
    asked: list[float] = []

    async def refuse(session: Session, request: dict[str, Any]) -> dict[str, Any]:
        asked.append(trio.current_time())
        raise ProtocolError("never in sequence")

    alice.sessions.handle("announce", refuse)
    bob.grant(A)
    await trio.sleep(120)
    waits = [later - earlier for earlier, later in zip(asked, asked[1:])]
    assert waits == sorted(waits)
    assert 5 < len(asked) < 10


async def test_a_failure_while_looking_at_the_grants_is_made_up_for(
    autojump_clock: MockClock, town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = town.node()
    holdings = Announcer(
        sessions=await started(node), grants=node.grants, holds=lambda c: True, node_id=node.id
    ).holdings
    await holdings.look([LAB.id])
    node.grant(A)

    def broken(*_: object) -> set[ContentHash]:
        raise OSError("disk")

    monkeypatch.setattr(Grants, "granted_of", broken)
    with pytest.raises(OSError, match="disk"):
        await holdings.look([LAB.id])
    monkeypatch.undo()
    assert await holdings.look([LAB.id])
    assert prefix_of(A) in holdings.catalogue(LAB.id).held
    assert not await holdings.look([LAB.id])
    assert not await holdings.look([]) or holdings.channels() == []


async def started(node: Node) -> Sessions:
    await node.start(speaks=False)
    return node.sessions
