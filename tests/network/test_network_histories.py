"""Histories of owned channels among simulated nodes: who is let in, put out, and lied to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.channels.changes import Change, Created, MemberRemoved, MemberSet
from kachery_p2p.channels.channel import Channel
from kachery_p2p.channels.history import History
from kachery_p2p.channels.keeper import Keeper, self_member
from kachery_p2p.channels.permissions import PROVIDE, READ, SHARED_MEMBER_ROLES
from kachery_p2p.errors import NotAMemberError, PeerError, PeerGoneError, PeerRefusedError
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeId, NodeKey
from kachery_p2p.network.discovery import AddressBook
from kachery_p2p.network.histories import Histories
from kachery_p2p.network.meeting import Me
from kachery_p2p.network.memberships import Memberships
from kachery_p2p.network.session import Session
from kachery_p2p.network.sessions import Sessions
from kachery_p2p.network.simulated import World

CHANNEL_KEY = NodeKey.generate(bytes([99]) * NODE_KEY_BYTES)
LAB = Channel.owned(CHANNEL_KEY.node_id, b"E" * 20, "lab")
KEYS = [NodeKey.generate(bytes([n]) * NODE_KEY_BYTES) for n in range(1, 9)]
YEAR_3000 = 32_503_680_000
_random = Random(7)


def asked(change: Change, by: NodeKey) -> tuple[Change, NodeId, bytes]:
    return change, by.node_id, _random.randbytes(16)


def member_set(key: NodeKey, roles: frozenset[str] = SHARED_MEMBER_ROLES) -> MemberSet:
    return MemberSet(self_member(key, "somebody", roles))


def founded(keeper: NodeKey, *members: NodeKey) -> History:
    """The history of the channel that `keeper` has founded, with these members."""
    changes = [
        asked(Created("lab", bytes(32), YEAR_3000), keeper),
        asked(MemberSet(self_member(keeper, "keeper")), keeper),
        *(asked(member_set(key), keeper) for key in members),
    ]
    return Keeper(History.empty(LAB.id), CHANNEL_KEY).founded(changes, 1_000_000)


class Node:
    """Sessions and histories of one node."""

    def __init__(self, realm: Realm, key: NodeKey, history: History | None) -> None:
        self.realm = realm
        self.key = key
        self.id = key.node_id
        self.saved: list[History] = []
        self.memberships = Memberships([LAB], [history or History.empty(LAB.id)])
        random = Random(f"{self.id}").randbytes
        self.me = Me(key, self.memberships, random)
        self.histories = Histories(self.me, self._save)
        self.link = realm.world.link(self.id)
        self.book = AddressBook(self.id)
        self.sessions = Sessions(
            self.link, self.me, self.book, self.histories, label="node", agent="test"
        )

    async def _save(self, history: History) -> None:
        await trio.lowlevel.checkpoint()
        self.saved.append(history)

    @property
    def history(self) -> History:
        found = self.memberships.history(LAB.id)
        assert found is not None
        return found

    @property
    def address(self) -> str:
        return self.link.addresses[0]

    async def start(self, *known: Node) -> Node:
        for node in known:
            self.book.add(node.id, [node.address], by_user=True)
        await self.realm.nursery.start(self._run)
        return self

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        async with self.sessions.running():
            task_status.started()
            await trio.sleep_forever()

    def knows(self, other: Node) -> bool:
        """True if a session with the other, as a member, is there."""
        session = self.sessions.get(other.id)
        return session is not None and LAB.id in session.channels

    async def record(self, change: Change) -> None:
        """Let this node, the keeper, sign a change."""
        request = asked(change, self.key)

        def signed(now: History) -> History:
            return Keeper(now, CHANNEL_KEY).recorded([request], 2_000_000 + now.size)

        await self.histories.change(LAB.id, signed)


class Realm:
    def __init__(self, world: World, nursery: trio.Nursery) -> None:
        self.world = world
        self.nursery = nursery

    def node(self, key: NodeKey, history: History | None = None) -> Node:
        return Node(self, key, history)

    async def until(self, happened: Callable[[], bool], within_s: float = 5.0) -> None:
        with trio.fail_after(within_s):
            while not happened():  # noqa: ASYNC110 - a world is looked at, it does not tell
                await trio.sleep(0.05)


@asynccontextmanager
async def a_realm(seed: int = 1) -> AsyncIterator[Realm]:
    async with World(seed) as world, trio.open_nursery() as nursery:
        yield Realm(world, nursery)
        nursery.cancel_scope.cancel()


KEEPER, ALICE, BOB, CAROL = KEYS[:4]


# --- meeting ------------------------------------------------------------------------------------


async def test_members_meet_and_the_one_who_knows_nothing_learns_all(
    autojump_clock: MockClock,
) -> None:
    async with a_realm() as realm:
        keeper = await realm.node(KEEPER, founded(KEEPER, ALICE)).start()
        alice = await realm.node(ALICE).start(keeper)
        await realm.until(lambda: alice.knows(keeper) and keeper.knows(alice))
        assert alice.history.head == keeper.history.head
        assert alice.saved[-1].size == keeper.history.size


async def test_a_member_with_an_older_history_accepts_whom_only_the_newer_one_names(
    autojump_clock: MockClock,
) -> None:
    async with a_realm() as realm:
        old = founded(KEEPER, BOB)
        new = Keeper(old, CHANNEL_KEY).recorded([asked(member_set(ALICE), KEEPER)], 3_000_000)
        bob = await realm.node(BOB, old).start()
        alice = await realm.node(ALICE, new).start(bob)
        await realm.until(lambda: alice.knows(bob) and bob.knows(alice))
        assert bob.history.head == new.head


async def test_who_knows_the_secret_but_is_in_no_history_is_not_met(
    autojump_clock: MockClock,
) -> None:
    async with a_realm() as realm:
        keeper = await realm.node(KEEPER, founded(KEEPER, ALICE)).start()
        mallory = await realm.node(BOB).start(keeper)
        await trio.sleep(20)
        assert not keeper.sessions.all()
        assert not mallory.sessions.all()
        assert mallory.history.size == 0, "nothing of who is a member was told to it"


async def test_a_new_member_is_known_to_all_connected_members_within_a_moment(
    autojump_clock: MockClock,
) -> None:
    async with a_realm() as realm:
        keeper = await realm.node(KEEPER, founded(KEEPER, ALICE, BOB)).start()
        alice = await realm.node(ALICE).start(keeper)
        bob = await realm.node(BOB).start(alice)
        await realm.until(lambda: bob.knows(alice) and alice.knows(keeper))
        await keeper.record(member_set(CAROL))
        await realm.until(lambda: bob.history.size == keeper.history.size, 1.0)
        carol = await realm.node(CAROL).start(bob)
        await realm.until(lambda: bob.knows(carol) and carol.knows(bob))


# --- putting out ----------------------------------------------------------------------------------


async def test_a_removed_member_is_cut_off_everywhere_within_five_seconds_and_told_the_proof(
    autojump_clock: MockClock,
) -> None:
    async with a_realm() as realm:
        keeper = await realm.node(KEEPER, founded(KEEPER, ALICE, BOB)).start()
        alice = await realm.node(ALICE).start(keeper)
        bob = await realm.node(BOB).start(keeper, alice)
        await realm.until(lambda: alice.knows(bob) and bob.knows(alice) and bob.knows(keeper))
        await keeper.record(MemberRemoved(bob.id))
        await realm.until(lambda: not keeper.sessions.get(bob.id), 5.0)
        await realm.until(lambda: not alice.sessions.get(bob.id), 5.0)
        assert bob.memberships.is_removed_from(LAB.id)
        assert not bob.memberships.roles(bob.id, LAB.id)
        assert alice.knows(keeper)


async def test_a_removed_member_that_was_away_learns_it_when_it_comes_back(
    autojump_clock: MockClock,
) -> None:
    async with a_realm() as realm:
        history = founded(KEEPER, ALICE, BOB)
        keeper = await realm.node(KEEPER, history).start()
        await keeper.record(MemberRemoved(BOB.node_id))
        bob = await realm.node(BOB, history).start(keeper)
        await realm.until(lambda: bob.memberships.is_removed_from(LAB.id))
        assert not keeper.sessions.all()
        assert bob.history.size == history.size, "it learns nothing else"


async def test_who_was_removed_and_set_again_is_a_member_again(autojump_clock: MockClock) -> None:
    async with a_realm() as realm:
        keeper = await realm.node(KEEPER, founded(KEEPER, BOB)).start()
        bob = await realm.node(BOB).start(keeper)
        await realm.until(lambda: bob.knows(keeper))
        await keeper.record(MemberRemoved(bob.id))
        await realm.until(lambda: bob.memberships.is_removed_from(LAB.id))
        await keeper.record(member_set(BOB))
        await realm.until(lambda: bob.knows(keeper) and keeper.knows(bob), 70)


async def test_a_request_of_a_removed_member_is_refused_before_the_session_ends(
    autojump_clock: MockClock,
) -> None:
    async with a_realm() as realm:
        keeper = await realm.node(KEEPER, founded(KEEPER, BOB)).start()
        bob = await realm.node(BOB).start(keeper)
        await realm.until(lambda: bob.knows(keeper) and keeper.knows(bob))
        session = bob.sessions.get(keeper.id)
        assert session is not None
        assert await session.request("members", {"channel": LAB.id}, 5) == {"members": []}
        await keeper.record(MemberRemoved(bob.id))
        with pytest.raises(PeerError):
            await session.request("members", {"channel": LAB.id}, 5)


async def test_roles_take_effect_on_sessions_that_are_open(autojump_clock: MockClock) -> None:
    async with a_realm() as realm:
        keeper = await realm.node(KEEPER, founded(KEEPER, BOB)).start()
        bob = await realm.node(BOB).start(keeper)
        await realm.until(lambda: bob.knows(keeper) and keeper.knows(bob))
        await keeper.record(member_set(BOB, frozenset({READ})))
        session = keeper.sessions.get(bob.id)
        assert session is not None
        assert session.may(LAB.id, READ)
        assert not session.may(LAB.id, PROVIDE)
        await realm.until(lambda: not bob.sessions.may(LAB.id, PROVIDE))


# --- liars ----------------------------------------------------------------------------------------


async def session_to(node: Node, other: Node) -> Session:
    await node.realm.until(lambda: node.sessions.get(other.id) is not None)
    session = node.sessions.get(other.id)
    assert session is not None
    return session


@pytest.mark.parametrize("junk", [b"x" * 197, b"", b"\0" * 197])
async def test_a_head_that_the_channels_key_did_not_sign_changes_nothing(
    autojump_clock: MockClock, junk: bytes
) -> None:
    async with a_realm() as realm:
        keeper = await realm.node(KEEPER, founded(KEEPER, BOB)).start()
        bob = await realm.node(BOB).start(keeper)
        session = await session_to(bob, keeper)
        before = keeper.history
        body = {"channel": LAB.id, "head": junk, "fork": b"", "notice": b""}
        await session.request("history", body, 5)
        await trio.sleep(1)
        assert keeper.history is before
        assert keeper.knows(bob)


async def test_a_member_that_shows_an_old_head_takes_nothing_back(
    autojump_clock: MockClock,
) -> None:
    async with a_realm() as realm:
        old = founded(KEEPER, BOB)
        assert old.head is not None
        keeper = await realm.node(KEEPER, old).start()
        bob = await realm.node(BOB).start(keeper)
        session = await session_to(bob, keeper)
        await keeper.record(member_set(CAROL))
        before = keeper.history
        body = {"channel": LAB.id, "head": old.head.encode(), "fork": b"", "notice": b""}
        answer = await session.request("history", body, 5)
        assert before.head is not None
        assert answer["head"] == before.head.encode()
        assert keeper.history is before


async def test_two_histories_of_one_key_are_proved_kept_and_told_to_everybody(
    autojump_clock: MockClock,
) -> None:
    async with a_realm() as realm:
        common = founded(KEEPER, ALICE, BOB)
        one = Keeper(common, CHANNEL_KEY).recorded([asked(member_set(CAROL), KEEPER)], 3_000_000)
        mallory = KEYS[5]
        two = Keeper(common, CHANNEL_KEY).recorded(
            [asked(member_set(mallory), KEEPER), asked(member_set(KEYS[6]), KEEPER)], 3_000_001
        )
        keeper = await realm.node(KEEPER, one).start()
        alice = await realm.node(ALICE, one).start(keeper)
        bob = await realm.node(BOB, two).start(keeper)
        await realm.until(lambda: keeper.history.fork is not None, 10)
        await realm.until(lambda: alice.history.fork is not None, 10)
        await realm.until(lambda: bob.history.fork is not None, 10)
        for node in (keeper, alice, bob):
            assert not node.history.roster.roles_of(CAROL.node_id)
            assert not node.history.roster.roles_of(mallory.node_id)
            assert node.history.roster.roles_of(BOB.node_id)
            assert node.saved[-1].fork is not None


async def test_an_outsider_that_asks_for_entries_gets_none(autojump_clock: MockClock) -> None:
    async with a_realm() as realm:
        keeper = await realm.node(KEEPER, founded(KEEPER, ALICE)).start()
        mallory = realm.node(BOB)
        await mallory.link.connect(keeper.address)
        from kachery_p2p.network.link import CONTROL
        from kachery_p2p.network.meeting import meet

        stream = await mallory.link.open_stream(keeper.id, CONTROL)
        session = Session(stream, await meet(stream, mallory.me), mallory.memberships)
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                with pytest.raises((NotAMemberError, PeerError)):
                    await session.run({})

            nursery.start_soon(run)
            with pytest.raises((PeerRefusedError, PeerGoneError)):
                await session.request("entries", {"channel": LAB.id, "first": 0}, 5)
            nursery.cancel_scope.cancel()


async def test_a_member_that_floods_news_which_it_never_backs_up_costs_one_task(
    autojump_clock: MockClock,
) -> None:
    async with a_realm() as realm:
        old = founded(KEEPER, ALICE, BOB)
        newer = Keeper(old, CHANNEL_KEY).recorded([asked(member_set(CAROL), KEEPER)], 3_000_000)
        assert newer.head is not None
        alice = await realm.node(ALICE, old).start()
        bob = await realm.node(BOB, old).start(alice)
        session = await session_to(bob, alice)
        asked_for = 0

        async def never(session: Session, body: dict[str, Any]) -> dict[str, Any]:
            nonlocal asked_for
            asked_for += 1
            await trio.sleep_forever()
            raise AssertionError

        bob.sessions.handle("entries", never)
        assert alice.histories._nursery is not None
        before = len(alice.histories._nursery.child_tasks)
        body = {"channel": LAB.id, "head": newer.head.encode(), "fork": b"", "notice": b""}
        for _ in range(500):
            await session.request("history", body, 5)
        assert len(alice.histories._nursery.child_tasks) <= before + 1
        assert asked_for <= 1
        assert alice.history.size == old.size
