"""Nodes that find and keep each other in the simulated world: crossed dials, crashes, cuts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.channels.channel import Channel
from kachery_p2p.channels.history import History
from kachery_p2p.errors import PeerRefusedError, PeerUnreachableError
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeId, NodeKey
from kachery_p2p.limits import (
    DIAL_S_MAX,
    HEARSAY_AWAITED_S,
    KEEPALIVE_IDLE_S,
    KEEPALIVE_S_MAX,
    MEMBERS_REFRESH_S,
    PEERS_MAX,
    REDIAL_S_MAX,
)
from kachery_p2p.network.discovery import AddressBook
from kachery_p2p.network.histories import Histories
from kachery_p2p.network.link import CONTROL, Stream
from kachery_p2p.network.meeting import Me
from kachery_p2p.network.memberships import Memberships
from kachery_p2p.network.multiaddrs import address_of
from kachery_p2p.network.session import Session
from kachery_p2p.network.sessions import Sessions
from kachery_p2p.network.simulated import World
from kachery_p2p.network.simulated_wire import Path

LAB = Channel.shared(b"L" * 20, "lab")
FIELD = Channel.shared(b"F" * 20, "field")
# In order of their ids, so that tests can say whose dial is kept.
KEYS = sorted(
    (NodeKey.generate(bytes([n]) * NODE_KEY_BYTES) for n in range(1, 9)), key=lambda k: k.node_id
)
NOTICED_S = KEEPALIVE_IDLE_S + KEEPALIVE_S_MAX + 1


async def kept(history: History) -> None:
    """These nodes keep no histories: they are in no owned channel."""


class Node:
    """A node with sessions and nothing else; `stop` and `start` are a crash and a new start."""

    def __init__(self, town: Town, number: int, channels: list[Channel], label: str) -> None:
        self.town = town
        self.key = KEYS[number]
        self.id = self.key.node_id
        self.channels = channels
        self.label = label
        self.number = number
        self.starts = 0
        self.sessions: Sessions
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()

    @property
    def address(self) -> str:
        return self.town.world.link(self.id).addresses[0]

    async def start(self, *known: Node) -> None:
        self.starts += 1
        random = Random(f"{self.town.world.seed}/{self.number}/{self.starts}").randbytes
        book = AddressBook(self.id)
        for node in known:
            book.add(node.id, [node.address], by_user=True)
        link = self.town.world.link(self.id)
        me = Me(self.key, Memberships(self.channels), random)
        self.sessions = Sessions(
            link, me, book, Histories(me, kept), label=self.label, agent="test"
        )
        self._scope, self._stopped = trio.CancelScope(), trio.Event()
        await self.town.nursery.start(self._run)

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        with self._scope:
            async with self.sessions.running():
                task_status.started()
                await trio.sleep_forever()
        self._stopped.set()

    async def crash(self) -> None:
        self.town.world.crash(self.id)
        self._scope.cancel()
        await self._stopped.wait()

    @property
    def peers(self) -> set[str]:
        by_id = {node.id: node.label for node in self.town.nodes}
        return {by_id[session.peer] for session in self.sessions.all()}

    def session(self, other: Node) -> Session:
        found = self.sessions.get(other.id)
        assert found is not None
        return found


class Town:
    def __init__(self, world: World, nursery: trio.Nursery) -> None:
        self.world = world
        self.nursery = nursery
        self.nodes: list[Node] = []

    def node(self, label: str, *channels: Channel) -> Node:
        node = Node(self, len(self.nodes), list(channels or [LAB]), label)
        self.nodes.append(node)
        return node

    async def until(self, happened: Callable[[], bool], within_s: float) -> None:
        with trio.fail_after(within_s):
            while not happened():  # noqa: ASYNC110 - a world is looked at, it does not tell
                await trio.sleep(0.05)


@asynccontextmanager
async def a_town(seed: int = 1) -> AsyncIterator[Town]:
    async with World(seed) as world, trio.open_nursery() as nursery:
        yield Town(world, nursery)
        nursery.cancel_scope.cancel()


# --- meeting ------------------------------------------------------------------------------------


async def test_members_meet_and_learn_each_others_names(autojump_clock: MockClock) -> None:
    async with a_town() as town:
        alice, bob = town.node("alice"), town.node("bob")
        await alice.start()
        await bob.start(alice)
        await town.until(lambda: alice.peers == {"bob"} and bob.peers == {"alice"}, 2)
        await town.until(lambda: alice.session(bob).label == "bob", 2)
        assert bob.session(alice).name == f"alice ({alice.id[:8]})"
        assert alice.session(bob).channels == {LAB.id}


async def test_nodes_without_a_common_channel_end_with_no_session_and_no_connection(
    autojump_clock: MockClock,
) -> None:
    async with a_town() as town:
        alice, bob = town.node("alice", LAB), town.node("bob", FIELD)
        await alice.start()
        await bob.start(alice)
        await trio.sleep(3)
        assert alice.peers == bob.peers == set()
        assert town.world.link(alice.id).connected() == frozenset()
        assert "no channel of ours" in bob.sessions.problems[alice.id]
        assert bob.sessions.settled


@pytest.mark.parametrize("seed", range(12))
async def test_crossed_dials_end_in_one_session_on_both_sides(
    seed: int, autojump_clock: MockClock
) -> None:
    """Both dial at the same moment, on paths where one stream may overtake another."""
    async with a_town(seed) as town:
        town.world.set_all_paths(Path(delay_s=0.02, jitter_s=0.06, loss=0.1))
        alice, bob = town.node("alice"), town.node("bob")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.start, bob)
            nursery.start_soon(bob.start, alice)
        await town.until(lambda: bool(alice.peers and bob.peers), 10)
        await trio.sleep(5)
        ours, theirs = alice.session(bob), bob.session(alice)
        assert ours.outgoing is not theirs.outgoing, "the two ends of one stream"
        assert await ours.request("ping", {}, 5) == {}
        assert await theirs.request("ping", {}, 5) == {}
        await trio.sleep(60)
        assert alice.session(bob) is ours and bob.session(alice) is theirs, "it lasts"


async def test_of_crossed_dials_that_of_the_smaller_id_is_kept(autojump_clock: MockClock) -> None:
    async with a_town() as town:
        alice, bob = town.node("alice"), town.node("bob")
        assert alice.id < bob.id
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.start, bob)
            nursery.start_soon(bob.start, alice)
        await trio.sleep(5)
        assert alice.session(bob).outgoing
        assert not bob.session(alice).outgoing


async def test_a_third_member_is_found_through_the_second(autojump_clock: MockClock) -> None:
    async with a_town() as town:
        alice, bob, carol = town.node("alice"), town.node("bob"), town.node("carol")
        await bob.start()
        await alice.start(bob)
        await carol.start(bob)
        await town.until(lambda: carol.peers == {"alice", "bob"}, 3)
        await town.until(lambda: alice.peers == {"bob", "carol"}, 1)


async def test_whom_nobody_told_us_at_first_is_heard_of_when_members_are_asked_again(
    autojump_clock: MockClock,
) -> None:
    """Carol cannot reach Alice herself, and is told nothing new when Alice comes."""
    async with a_town() as town:
        alice, bob, carol = town.node("alice"), town.node("bob"), town.node("carol")
        town.world.cut(alice.id, carol.id)
        await bob.start()
        await carol.start(bob)
        await alice.start(bob)
        await trio.sleep(20)
        assert "alice" not in carol.peers
        town.world.heal(alice.id, carol.id)
        await town.until(lambda: "alice" in carol.peers, MEMBERS_REFRESH_S + REDIAL_S_MAX)


async def test_members_of_one_channel_are_not_told_to_those_of_another(
    autojump_clock: MockClock,
) -> None:
    async with a_town() as town:
        alice = town.node("alice", LAB)
        bob = town.node("bob", LAB, FIELD)
        carol = town.node("carol", FIELD)
        await bob.start()
        await alice.start(bob)
        await carol.start(bob)
        await trio.sleep(2 * MEMBERS_REFRESH_S)
        assert alice.peers == carol.peers == {"bob"}
        assert carol.id not in alice.sessions.book.known()
        assert not alice.sessions.book.addresses_of(carol.id)
        with pytest.raises(PeerRefusedError):
            await alice.session(bob).request("members", {"channel": FIELD.id}, 5)


# --- loss and return ----------------------------------------------------------------------------


async def test_who_crashes_and_comes_back_is_met_again(autojump_clock: MockClock) -> None:
    async with a_town() as town:
        alice, bob = town.node("alice"), town.node("bob")
        await alice.start()
        await bob.start(alice)
        await town.until(lambda: alice.peers == {"bob"}, 2)
        await bob.crash()
        await town.until(lambda: not alice.peers, 2)
        await trio.sleep(30)
        await bob.start()  # it knows nobody: alice must find it
        await town.until(lambda: alice.peers == {"bob"} and bob.peers == {"alice"}, 70)


@pytest.mark.parametrize("who", ["smaller", "larger"])
async def test_a_restart_that_the_other_side_did_not_notice_is_survived(
    who: str, autojump_clock: MockClock
) -> None:
    """A pulled cable, a power cut, a new start: the others still hold the old session."""
    async with a_town() as town:
        alice, bob = town.node("alice"), town.node("bob")
        lost, other = (alice, bob) if who == "smaller" else (bob, alice)
        await other.start()
        await lost.start(other)
        await town.until(lambda: bool(alice.peers and bob.peers), 2)
        old = other.session(lost)
        town.world.silence(lost.id)
        await lost.crash()
        await trio.sleep(3)
        assert other.session(lost) is old
        town.world.wake(lost.id)
        await lost.start(other)
        await town.until(
            lambda: bool(other.peers and lost.peers) and other.session(lost) is not old, 30
        )
        await trio.sleep(10)
        assert await lost.session(other).request("ping", {}, 5) == {}


@pytest.mark.parametrize("seconds", [5, 60, 600])
async def test_after_a_partition_everybody_is_together_again(
    seconds: int, autojump_clock: MockClock
) -> None:
    async with a_town() as town:
        nodes = [town.node(f"n{n}") for n in range(4)]
        for node in nodes:
            await node.start(*nodes[:1])
        await town.until(lambda: all(len(n.peers) == 3 for n in nodes), 5)
        for here in nodes[:2]:
            for there in nodes[2:]:
                town.world.cut(here.id, there.id)
        await trio.sleep(seconds)
        if seconds > NOTICED_S:
            assert all(len(n.peers) == 1 for n in nodes)
        for here in nodes[:2]:
            for there in nodes[2:]:
                town.world.heal(here.id, there.id)
        await town.until(lambda: all(len(n.peers) == 3 for n in nodes), REDIAL_S_MAX + 20)


async def test_the_end_of_a_node_ends_its_sessions_on_both_sides(autojump_clock: MockClock) -> None:
    async with a_town() as town:
        alice, bob = town.node("alice"), town.node("bob")
        await alice.start()
        await bob.start(alice)
        await town.until(lambda: bool(alice.peers and bob.peers), 2)
        bob._scope.cancel()
        await bob._stopped.wait()
        assert bob.sessions.all() == ()
        await town.until(lambda: not alice.peers, 2)


async def test_a_node_that_could_not_be_reached_is_dialled_again_within_seconds(
    autojump_clock: MockClock,
) -> None:
    async with a_town() as town:
        alice, bob = town.node("alice"), town.node("bob")
        await alice.start(bob)
        await town.until(lambda: bob.id in alice.sessions.problems, 30)
        await bob.start()
        await town.until(lambda: alice.peers == {"bob"}, 10)


# --- members that misbehave ---------------------------------------------------------------------


async def raw_member(town: Town, node: Node, target: Node) -> Session:
    """A session of `node` that is not kept by Sessions: for saying what they never say."""
    from kachery_p2p.network.meeting import meet

    link = town.world.link(node.id)
    await link.connect(target.address)
    stream = await link.open_stream(target.id, CONTROL)
    link.admit(target.id)
    me = Me(node.key, Memberships(node.channels), Random(9).randbytes)
    return Session(stream, await meet(stream, me), me.memberships)


async def test_a_member_that_tells_of_ever_more_nodes_is_bounded_and_harms_nobody(
    autojump_clock: MockClock,
) -> None:
    async with a_town() as town:
        alice, bob, mallory = town.node("alice"), town.node("bob"), town.node("mallory")
        await alice.start()
        told = 0

        async def lie(session: Session, body: dict[str, Any]) -> dict[str, Any]:
            nonlocal told
            members = []
            for _ in range(PEERS_MAX):
                told += 1
                fake = NodeId.of_raw(told.to_bytes(32, "big"))
                address = str(address_of("10.9.9.9", 1, fake))
                members.append({"node": fake.raw, "addresses": [address]})
            return {"members": members}

        async def introduce(session: Session, body: dict[str, Any]) -> dict[str, Any]:
            return {"label": "m", "agent": "m", "addresses": []}

        session = await raw_member(town, mallory, alice)
        town.nursery.start_soon(session.run, {"members": lie, "introduce": introduce, "ping": pong})
        await trio.sleep(2 * MEMBERS_REFRESH_S + 1)
        assert told >= 3 * PEERS_MAX
        assert len(alice.sessions.book._contacts) <= PEERS_MAX
        assert len(alice.sessions.problems) <= PEERS_MAX
        # An honest member is met, and dialled again when it is lost, all the same.
        await bob.start(alice)
        await town.until(lambda: "bob" in alice.peers, 5)
        await town.until(lambda: bool(alice.sessions.book.addresses_of(bob.id)), 5)
        await bob.crash()
        await trio.sleep(5)
        await bob.start()
        await town.until(lambda: "bob" in alice.peers, REDIAL_S_MAX)
        town.nursery.cancel_scope.cancel()


async def test_members_do_not_wait_behind_invented_nodes_nor_do_loads(
    autojump_clock: MockClock,
) -> None:
    """Two hundred black holes once made a member wait for minutes, and each load for its most."""
    async with a_town() as town:
        alice, bob, mallory = town.node("alice"), town.node("bob"), town.node("mallory")
        await alice.start()
        link = town.world.link(bob.id)
        connect = link.connect

        async def fall_into_black_holes(address: str) -> NodeId:
            if "10.9.9.9" not in address:
                return await connect(address)
            await trio.sleep(DIAL_S_MAX)
            raise PeerUnreachableError("nobody answers")

        link.connect = fall_into_black_holes  # type: ignore[method-assign]
        fakes = [NodeId.of_raw(n.to_bytes(32, "big")) for n in range(1, 201)]

        async def lie(session: Session, body: dict[str, Any]) -> dict[str, Any]:
            addresses = [
                [str(address_of("10.9.9.9", n, fake)) for n in (1, 2, 3)] for fake in fakes
            ]
            return {
                "members": [
                    {"node": fake.raw, "addresses": its}
                    for fake, its in zip(fakes, addresses, strict=True)
                ]
            }

        await mallory.start()
        mallory.sessions.handle("members", lie)
        await bob.start(alice, mallory)
        await town.until(lambda: bob.peers == {"alice", "mallory"}, 5)
        await town.until(lambda: len(bob.sessions.book._contacts) == 202, 5)
        with trio.fail_after(HEARSAY_AWAITED_S + 1):
            while not bob.sessions.settled:
                await bob.sessions.changed()
        lost = bob.session(alice)
        # It cannot dial bob itself.
        alice.sessions.book._contacts.clear()
        lost.end()
        await town.until(lambda: bob.sessions.get(alice.id) not in (None, lost), 5)


async def test_one_member_too_many_is_sent_away_and_does_not_knock_all_day(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kachery_p2p.network.sessions.PEERS_MAX", 1)
    async with a_town() as town:
        alice, bob, carol = town.node("alice"), town.node("bob"), town.node("carol")
        await alice.start()
        await bob.start(alice)
        await town.until(lambda: alice.peers == {"bob"}, 2)
        knocks = 0
        meet_caller = alice.sessions._meet_caller

        async def count(stream: Stream) -> None:
            nonlocal knocks
            knocks += 1
            await meet_caller(stream)

        town.world.link(alice.id).accept(CONTROL, count)
        await carol.start(alice)
        await trio.sleep(600)
        assert alice.peers == {"bob"}
        assert carol.id not in town.world.link(alice.id).connected()
        assert knocks < 30


async def test_who_leaves_a_channel_is_asked_and_answered_nothing_in_it(
    autojump_clock: MockClock,
) -> None:
    async with a_town() as town:
        alice, bob = town.node("alice", LAB, FIELD), town.node("bob", LAB, FIELD)
        await alice.start()
        await bob.start(alice)
        await town.until(lambda: bool(alice.peers and bob.peers), 2)
        assert await bob.session(alice).request("leave", {"channel": FIELD.id}, 5) == {}
        assert alice.session(bob).channels == {LAB.id}
        with pytest.raises(PeerRefusedError):
            await bob.session(alice).request("members", {"channel": FIELD.id}, 5)
        assert "members" in await bob.session(alice).request("members", {"channel": LAB.id}, 5)


async def test_a_label_that_no_wire_would_carry_does_not_take_the_node_down(
    autojump_clock: MockClock,
) -> None:
    async with a_town() as town:
        alice, bob = town.node("alice"), town.node("b\x1b[31m\u202eob" * 50)
        await alice.start()
        await bob.start(alice)
        await town.until(lambda: bool(alice.peers and bob.peers), 2)
        await town.until(lambda: alice.session(bob).label.startswith("b?[31m?ob"), 2)


async def test_a_mistake_in_one_conversation_does_not_cost_the_others(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_town() as town:
        alice, bob, carol = town.node("alice"), town.node("bob"), town.node("carol")
        await bob.start()
        await carol.start()
        await alice.start()
        note = alice.sessions._note_introduction

        def fail(session: Session, body: dict[str, Any]) -> None:
            if body["label"] == "bob":
                raise ZeroDivisionError
            note(session, body)

        alice.sessions._note_introduction = fail  # type: ignore[method-assign]
        for node in (bob, carol):
            alice.sessions.book.add(node.id, [node.address], by_user=True)
        await town.until(lambda: "carol" in alice.peers, REDIAL_S_MAX + 1)
        await trio.sleep(100)
        assert "carol" in alice.peers


async def pong(session: Session, body: dict[str, Any]) -> dict[str, Any]:
    return {}
