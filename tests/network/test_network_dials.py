"""Who is dialled when others invent nodes, swallow packets, or never tell: a simulated town."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.errors import PeerUnreachableError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    ADDRESSES_PER_NODE_MAX,
    DIAL_NODE_S_MAX,
    DIAL_S_MAX,
    DIALS_MAX,
    GREETING_AGAIN_S,
    GREETINGS_MAX,
    HEARSAY_AWAITED_S,
    HEARSAY_DIALS_AT_ONCE,
    HEARSAY_DIALS_MAX,
    HEARSAY_DIALS_PER_S,
    MEMBERS_REFRESH_S,
)
from kachery_p2p.network.dials import Dials
from kachery_p2p.network.greetings import Greetings
from kachery_p2p.network.link import Stream
from kachery_p2p.network.multiaddrs import address_of
from kachery_p2p.network.session import Session
from tests.network.test_network_sessions import Node, Town, a_town

BLACK_HOLE = "10.9.9.9"


def fake(number: int) -> NodeId:
    return NodeId.of_raw(number.to_bytes(32, "big"))


def places(node: NodeId, count: int) -> list[str]:
    """That many addresses of `node` at which nobody answers."""
    return [str(address_of(BLACK_HOLE, port, node)) for port in range(1, count + 1)]


def nobody_answers(town: Town, node: Node, wait_s: float = DIAL_S_MAX) -> list[str]:
    """The addresses that `node` will have dialled in vain, each for `wait_s`."""
    link = town.world.link(node.id)
    connect = link.connect
    dialled: list[str] = []

    async def try_to_connect(address: str) -> NodeId:
        if BLACK_HOLE not in address:
            return await connect(address)
        dialled.append(address)
        await trio.sleep(wait_s)
        raise PeerUnreachableError("nobody answers")

    link.connect = try_to_connect  # type: ignore[method-assign]
    return dialled


def cannot_dial(node: Node, other: Node) -> None:
    link, theirs = node.town.world.link(node.id), other.id.peer_id
    connect = link.connect

    async def try_to_connect(address: str) -> NodeId:
        if address.endswith(theirs):
            raise PeerUnreachableError("a firewall")
        return await connect(address)

    link.connect = try_to_connect  # type: ignore[method-assign]


Answer = Callable[[Session, dict[str, Any]], Awaitable[dict[str, Any]]]


def telling_of(count: int, addresses: int, *, new_each_time: bool = False) -> Answer:
    """Answers whom it knows with so many nodes that it has invented."""
    told = 0

    async def lie(session: Session, body: dict[str, Any]) -> dict[str, Any]:
        nonlocal told
        first = told + 1 if new_each_time else 1
        told += count
        fakes = [fake(number) for number in range(first, first + count)]
        return {"members": [{"node": f.raw, "addresses": places(f, addresses)} for f in fakes]}

    return lie


async def never(session: Session, body: dict[str, Any]) -> dict[str, Any]:
    await trio.sleep_forever()


async def come_again(node: Node, other: Node, every_s: float) -> None:
    """`node` hangs up and comes back, for ever."""
    while True:
        await trio.sleep(every_s)
        for session in node.sessions.all():
            session.end()
        await trio.sleep(0.05)
        contact = node.sessions.book._contacts[other.id]
        contact.failures, contact.due_at = 0, 0.0
        node.sessions.look_again()


async def test_whom_one_member_tells_of_does_not_wait_behind_the_inventions_of_another(
    autojump_clock: MockClock,
) -> None:
    """They once waited for 6 to 10 minutes."""
    async with a_town() as town:
        alice, carol, dave, mallory = (
            town.node(name) for name in ("alice", "carol", "dave", "mallory")
        )
        nobody_answers(town, carol)
        cannot_dial(dave, carol)
        await alice.start()
        await mallory.start()
        mallory.sessions.handle("members", telling_of(200, 3))
        await carol.start(alice, mallory)
        await trio.sleep(20)
        await dave.start(alice)
        # Alice is asked in turn with mallory; then one of sixteen dials has to end.
        await town.until(lambda: "dave" in carol.peers, 2 * MEMBERS_REFRESH_S + DIAL_NODE_S_MAX)


async def test_whom_the_user_names_is_met_at_once_beside_many_members_that_are_gone(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_town() as town:
        alice, bob = town.node("alice"), town.node("bob")
        nobody_answers(town, bob)
        cannot_dial(alice, bob)
        await alice.start()
        running = Node._run

        async def remember(node: Node, task_status: trio.TaskStatus[None]) -> None:
            for number in range(1, 201):
                known = fake(number)
                node.sessions.book.add(known, places(known, 3), proved=True)
            await running(node, task_status)

        monkeypatch.setattr(Node, "_run", remember)
        await bob.start(alice)
        await town.until(lambda: bob.peers == {"alice"}, 2)


async def test_a_member_cannot_make_us_knock_at_ever_more_addresses(
    autojump_clock: MockClock,
) -> None:
    """One that came every second once chose 5,600 addresses a second."""
    async with a_town() as town:
        bob, mallory = town.node("bob"), town.node("mallory")
        dialled = nobody_answers(town, bob, 0.002)
        await bob.start()
        await mallory.start(bob)
        lie = telling_of(250, ADDRESSES_PER_NODE_MAX, new_each_time=True)
        mallory.sessions.handle("members", lie)
        town.nursery.start_soon(come_again, mallory, bob, 1.0)
        await trio.sleep(20)
        nodes_max = HEARSAY_DIALS_AT_ONCE + 21 * HEARSAY_DIALS_PER_S
        assert HEARSAY_DIALS_AT_ONCE < len({a.rpartition("/")[2] for a in dialled}) <= nodes_max
        assert len(dialled) <= nodes_max * ADDRESSES_PER_NODE_MAX
        town.nursery.cancel_scope.cancel()


async def test_who_comes_by_itself_is_dialled_no_more(autojump_clock: MockClock) -> None:
    """The dial once kept the connection, and told of addresses, that the session had left."""
    async with a_town() as town:
        carol, dave = town.node("carol"), town.node("dave")
        nobody_answers(town, carol)
        await carol.start()
        carol.sessions.book.add(dave.id, places(dave.id, 3))
        carol.sessions.look_again()
        await trio.sleep(1)
        assert carol.sessions._meetings == {dave.id: 1}
        await dave.start(carol)
        await town.until(lambda: carol.peers == {"dave"}, 2)
        await trio.sleep(0.1)
        assert carol.sessions._meetings == {dave.id: 1}, "that of the session"


async def test_there_is_one_dial_of_a_node_and_the_newer_one_goes_on(
    autojump_clock: MockClock,
) -> None:
    async with a_town() as town:
        alice, bob = town.node("alice"), town.node("bob")
        nobody_answers(town, alice)
        await bob.start()
        dials = Dials(town.world.link(alice.id))
        streams: list[Stream | None] = []

        async def dial(addresses: list[str], *, is_hearsay: bool) -> None:
            begun = dials.begin(bob.id, trio.current_time(), is_hearsay=is_hearsay)
            streams.append(await dials.open_control(bob.id, addresses, begun))

        old = partial(dial, places(bob.id, 3), is_hearsay=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(old)
            await trio.sleep(1)
            assert dials.room(1) == (DIALS_MAX, HEARSAY_DIALS_MAX - 1)
            with trio.fail_after(1):
                await dial([bob.address], is_hearsay=False)
        assert streams[0] is None and streams[1] is not None
        assert dials.room(2) == (DIALS_MAX, HEARSAY_DIALS_MAX)


async def test_a_member_that_never_tells_whom_it_knows_does_not_hold_up_every_load(
    autojump_clock: MockClock,
) -> None:
    """One that came again every 9 seconds once held up loads for half of the time."""
    async with a_town() as town:
        bob, mallory = town.node("bob"), town.node("mallory")
        await bob.start()
        await mallory.start()
        mallory.sessions.handle("introduce", never)
        mallory.sessions.book.add(bob.id, [bob.address], by_user=True)
        mallory.sessions.look_again()
        town.nursery.start_soon(come_again, mallory, bob, 9.0)
        await town.until(lambda: bob.peers == {"mallory"}, 2)
        began = trio.current_time()
        with trio.fail_after(HEARSAY_AWAITED_S + 0.1):
            while not bob.sessions.settled:
                await bob.sessions.changed()
        assert trio.current_time() > began + 1
        waited = 0
        for _ in range(100):
            await trio.sleep(GREETING_AGAIN_S / 50)
            waited += not bob.sessions.settled
        assert waited <= 100 * (HEARSAY_AWAITED_S + 2) / GREETING_AGAIN_S
        town.nursery.cancel_scope.cancel()


def test_each_node_is_awaited_once_in_a_while_and_until_it_has_told() -> None:
    greetings, alice = Greetings(), fake(1)
    greetings.begin(alice, 0.0)
    greetings.begin(alice, 1.0)
    assert greetings.awaited_until(1.0) == HEARSAY_AWAITED_S
    greetings.end(alice)
    assert greetings.awaited_until(1.0) == HEARSAY_AWAITED_S, "of crossed dials one is enough"
    greetings.end(alice)
    assert greetings.awaited_until(1.0) == 1.0
    greetings.begin(alice, 10.0)
    assert greetings.awaited_until(10.0) == 10.0
    greetings.end(alice)
    greetings.begin_anew()
    greetings.begin(alice, 11.0)
    assert greetings.awaited_until(11.0) == 11.0 + HEARSAY_AWAITED_S
    greetings.end(alice)
    greetings.begin(alice, 11.0 + GREETING_AGAIN_S)
    assert greetings.awaited_until(80.0) == 80.0
    assert greetings.awaited_until(72.0) == 71.0 + HEARSAY_AWAITED_S


def test_the_nodes_that_are_remembered_as_greeted_are_bounded() -> None:
    greetings = Greetings()
    for number in range(1, 10_000):
        greetings.begin(fake(number), number)
        greetings.end(fake(number))
    assert len(greetings._came_at) == GREETINGS_MAX
    assert not greetings._under_way
