"""The door that strangers may knock at: who is let in, and what those who only knock cost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.channels.admission import Admitted, Applicant, Door, Waiting
from kachery_p2p.channels.changes import Change, Created, MemberSet
from kachery_p2p.channels.channel import Channel
from kachery_p2p.channels.history import History
from kachery_p2p.channels.invites import Invite, Issued
from kachery_p2p.channels.keeper import Keeper, self_member
from kachery_p2p.channels.permissions import READ
from kachery_p2p.errors import InviteRefusedError, KeeperAsleepError, PeerError
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeKey
from kachery_p2p.limits import ADMISSIONS_MAX, HELLO_S_MAX
from kachery_p2p.network.admissions import Admissions, ask_to_enter
from kachery_p2p.network.link import JOIN, Stream
from kachery_p2p.network.meeting import Me
from kachery_p2p.network.memberships import Memberships
from kachery_p2p.network.simulated import World

CHANNEL_KEY = NodeKey.generate(bytes([99]) * NODE_KEY_BYTES)
SECRET = b"E" * 20
LAB = Channel.owned(CHANNEL_KEY.node_id, SECRET, "lab")
NOW = 1_000
LATER = 32_503_680_000


def key(number: int) -> NodeKey:
    return NodeKey.generate(bytes([number]) * NODE_KEY_BYTES)


KEEPER, JOINER = key(1), key(2)


def founded() -> History:
    changes: list[Change] = [
        Created("lab", bytes(32), LATER),
        MemberSet(self_member(KEEPER, "keeper")),
    ]
    asked = [(one, KEEPER.node_id, bytes([n]) * 16) for n, one in enumerate(changes)]
    return Keeper(History.empty(LAB.id), CHANNEL_KEY).founded(asked, NOW * 1000)


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The virtual clock would run on while a thread works: what would be in one runs in place."""

    async def run_sync(call: Callable[..., Any], *args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return call(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


class Desk:
    """The keeper's invites, in memory."""

    def __init__(self, issued: Issued) -> None:
        self.issued = issued
        self.history = founded()
        self.admitted: list[Applicant] = []
        self.asleep = False

    def find(self, invite_id: bytes) -> Door | None:
        found = self.issued.invite_id == invite_id
        return Door(self.issued, self.history) if found else None

    def now(self) -> float:
        return NOW

    async def admit(self, applicant: Applicant) -> bytes:
        if self.asleep:
            raise KeeperAsleepError("the keeper is asleep")
        self.admitted.append(applicant)
        return SECRET


class Town:
    def __init__(self, world: World) -> None:
        self.world = world
        link = world.link(KEEPER.node_id)
        self.address = link.addresses[0]
        admitters = ((KEEPER.node_id, (self.address,)),)
        self.invite = Invite(LAB.id, "lab", b"s" * 16, LATER, admitters)
        issued = Issued(self.invite.secret, NOW, LATER, None, frozenset({READ}), 0)
        self.desk = Desk(issued)
        me = Me(KEEPER, Memberships([LAB], [self.desk.history]), Random(1).randbytes)
        Admissions(link, me, self.desk)

    async def ask(self, invite: Invite | None = None) -> Admitted | Waiting:
        link = self.world.link(JOINER.node_id)
        await link.connect(self.address)
        me = Me(JOINER, Memberships(), Random(2).randbytes)
        return await ask_to_enter(link, me, invite or self.invite, KEEPER.node_id, "joiner")

    async def knock(self, number: int) -> Stream:
        link = self.world.link(key(number).node_id)
        await link.connect(self.address)
        return await link.open_stream(KEEPER.node_id, JOIN)


@asynccontextmanager
async def a_town() -> AsyncIterator[Town]:
    async with World(1) as world:
        yield Town(world)


async def test_who_has_the_invite_is_let_in_with_its_roles(autojump_clock: MockClock) -> None:
    async with a_town() as town:
        answer = await town.ask()
        assert isinstance(answer, Admitted)
        assert answer.entry_secret == SECRET
        assert answer.roles == frozenset({READ})
        assert [a.member.node for a in town.desk.admitted] == [JOINER.node_id]


async def test_who_has_to_wait_for_the_keeper_is_told_so(autojump_clock: MockClock) -> None:
    async with a_town() as town:
        town.desk.asleep = True
        answer = await town.ask()
        assert answer == Waiting("the keeper is asleep")


async def test_who_made_the_invite_up_is_refused_and_nobody_is_admitted(
    autojump_clock: MockClock,
) -> None:
    async with a_town() as town:
        with pytest.raises(InviteRefusedError):
            await town.ask(town.invite._replace(secret=b"x" * 16))
        assert town.desk.admitted == []


JUNK = {
    "no length": b"\0\0\0\0",
    "impossible length": b"\xff" * 64,
    "an empty map": b"\0\0\0\x01\x80",
    "another protocol": b"GET / HTTP/1.1\r\n",
}


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
async def test_junk_ends_its_own_talk_only(autojump_clock: MockClock, junk: bytes) -> None:
    async with a_town() as town:
        stream = await town.knock(7)
        await stream.send_all(junk)
        with pytest.raises(PeerError):
            while await stream.receive_some(1):
                raise AssertionError("junk was answered")
            raise PeerError("the stream ended")
        assert isinstance(await town.ask(), Admitted)


async def test_a_crowd_that_knocks_and_says_nothing_is_bounded_and_gone_in_seconds(
    autojump_clock: MockClock,
) -> None:
    async with a_town() as town:
        for number in range(10, 10 + 2 * ADMISSIONS_MAX):
            await town.knock(number)
        await trio.sleep(0.1)
        with pytest.raises(PeerError):
            await town.ask()
        # Whoever proves no membership loses its connection.
        await trio.sleep(HELLO_S_MAX + 1)
        assert isinstance(await town.ask(), Admitted)


async def test_one_stranger_has_one_talk_and_its_other_streams_are_reset(
    autojump_clock: MockClock,
) -> None:
    async with a_town() as town:
        link = town.world.link(key(9).node_id)
        await link.connect(town.address)
        first = await link.open_stream(KEEPER.node_id, JOIN)
        await trio.sleep(0.1)
        second = await link.open_stream(KEEPER.node_id, JOIN)
        with trio.fail_after(1), pytest.raises(PeerError):
            await second.receive_some(1)
        with trio.move_on_after(1) as waiting:
            await first.receive_some(1)
        assert waiting.cancelled_caught, "the first is still listened to"
        assert isinstance(await town.ask(), Admitted)
