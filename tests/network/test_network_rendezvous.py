"""Meeting through an introducer that is no member, over real and simulated links."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.channels.channel import Channel
from kachery_p2p.errors import PeerError, PeerGoneError
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeId, NodeKey
from kachery_p2p.limits import (
    HELLO_S_MAX,
    RENDEZVOUS_ENTRIES_PER_TAG_MAX,
    RENDEZVOUS_LONELY_S_MAX,
    RENDEZVOUS_REFRESH_S,
    RENDEZVOUS_REQUESTS_MAX,
    RENDEZVOUS_STREAM_S_MAX,
    RENDEZVOUS_TTL_S,
)
from kachery_p2p.network.discovery import AddressBook
from kachery_p2p.network.link import CONTROL, Link, Stream
from kachery_p2p.network.multiaddrs import address_of
from kachery_p2p.network.noticeboard import Notice
from kachery_p2p.network.rendezvous import RENDEZVOUS, Introducer, Rendezvous
from kachery_p2p.network.simulated import World
from kachery_p2p.wire.codec import FrameDecoder, Message
from kachery_p2p.wire.rendezvous import (
    DAY_S,
    ENTRY_BYTES,
    NONCE_BYTES,
    answer_frame,
    days_at,
    request_frame,
    seal_entry,
    tag_of,
)

NewNode = Callable[[], Awaitable[Link]]
LAB = Channel.shared(b"L" * 20, "lab")
OTHER_LAB = Channel.shared(b"O" * 20, "lab")
NOON = 20_640 * DAY_S + DAY_S // 2
HERE = "198.51.100.1"


def key_number(number: int) -> NodeKey:
    """The key of the fixture's n-th node."""
    return NodeKey.generate(number.to_bytes(2, "big") * (NODE_KEY_BYTES // 2))


def introduce(link: Link, place: str = HERE) -> Introducer:
    return Introducer(link, lambda node: place)


class Member:
    """A node that looks for the others of its channels."""

    def __init__(
        self, link: Link, key: NodeKey, introducers: Sequence[str], *channels: Channel
    ) -> None:
        assert link.node_id == key.node_id
        self.link = link
        self.book = AddressBook(key.node_id)
        self.lonely = True
        self.found = 0
        self.rounds: list[float] = []
        for address in introducers:
            node = NodeId.parse(address.rpartition("/p2p/")[2])
            self.book.add(node, [address], by_user=True)
        self.introducers = frozenset(NodeId.parse(a.rpartition("/")[2]) for a in introducers)
        self.rendezvous = Rendezvous(
            link,
            key,
            self.book,
            channels=lambda: channels,
            introducers=lambda: self._asked(introducers),
            is_lonely=lambda channel: self.lonely,
            found=self._note,
            random=os.urandom,
            now=lambda: NOON + trio.current_time() - self.began,
        )
        self.began = trio.current_time()

    def _asked(self, introducers: Sequence[str]) -> Sequence[str]:
        self.rounds.append(trio.current_time())
        return introducers

    def _note(self) -> None:
        self.found += 1

    def knows(self) -> dict[NodeId, tuple[str, ...]]:
        return {n: c.addresses for n, c in self.book._contacts.items() if n not in self.introducers}


async def until(true: Callable[[], bool], seconds: float = 10) -> None:
    with trio.fail_after(seconds):
        while not true():  # noqa: ASYNC110
            await trio.sleep(0.005)


async def ask(stream: Stream, op: str, body: Message) -> Message:
    await stream.send_all(request_frame(op, body))
    decoder = FrameDecoder()
    while True:
        for message in decoder.feed(await stream.receive_some(1 << 16)):
            return message


async def open_rendezvous(link: Link, introducer: Link) -> Stream:
    node = await link.connect(introducer.addresses[0])
    return await link.open_stream(node, RENDEZVOUS)


async def is_over(stream: Stream) -> None:
    """Wait until the other side ends the stream."""
    try:
        while await stream.receive_some(1 << 16):
            pass
    except PeerGoneError:
        pass


# --- finding each other -------------------------------------------------------------------------


async def test_two_members_find_each_other_through_a_node_that_is_none(
    clock: MockClock | None, new_node: NewNode
) -> None:
    introducer, one, other = [await new_node() for _ in range(3)]
    introduce(introducer)
    alice = Member(one, key_number(2), introducer.addresses, LAB)
    bob = Member(other, key_number(3), introducer.addresses, LAB, OTHER_LAB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alice.rendezvous.run)
        nursery.start_soon(bob.rendezvous.run)
        await until(lambda: bool(alice.found and alice.knows() and bob.knows()), 20)
        nursery.cancel_scope.cancel()
    assert alice.knows() == {other.node_id: other.addresses}
    assert bob.knows() == {one.node_id: one.addresses}


async def test_two_labs_that_both_call_their_channel_lab_do_not_meet(
    clock: MockClock | None, new_node: NewNode
) -> None:
    introducer, one, other = [await new_node() for _ in range(3)]
    board = introduce(introducer).board
    alice = Member(one, key_number(2), introducer.addresses, LAB)
    mallory = Member(other, key_number(3), introducer.addresses, OTHER_LAB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alice.rendezvous.run)
        nursery.start_soon(mallory.rendezvous.run)
        await until(lambda: len(board) == 2 and bool(alice.found and mallory.found))
        # Whoever came first looks again.
        alice.rendezvous.wake()
        mallory.rendezvous.wake()
        await until(lambda: min(alice.found, mallory.found) >= 2)
        nursery.cancel_scope.cancel()
    assert alice.knows() == mallory.knows() == {}


async def test_a_user_is_not_told_that_an_introducer_is_unreached(
    clock: MockClock | None, new_node: NewNode
) -> None:
    introducer, one = await new_node(), await new_node()
    introduce(introducer)
    alice = Member(one, key_number(2), introducer.addresses, LAB)
    alice.book.due(0)
    alice.book.drop(introducer.node_id)
    alice.book.failed(introducer.node_id, 0, 1.0)
    assert alice.book.unreached_by_user() == (introducer.node_id,)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alice.rendezvous.run)
        await until(lambda: alice.book.unreached_by_user() == ())
        await until(lambda: alice.rendezvous.settled)
        nursery.cancel_scope.cancel()


async def test_a_plain_member_among_the_bootstrap_addresses_does_no_harm(
    clock: MockClock | None, new_node: NewNode
) -> None:
    introducer, one, plain = [await new_node() for _ in range(3)]
    introduce(introducer)
    addresses = [*plain.addresses, "/ip4/127.0.0.1/udp/1", *one.addresses, *introducer.addresses]
    alice = Member(one, key_number(2), [a for a in addresses if "/p2p/" in a], LAB)
    alice.rendezvous._introducers = lambda: addresses
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alice.rendezvous.run)
        await until(lambda: bool(alice.found))
        nursery.cancel_scope.cancel()
    contacts = alice.book._contacts
    assert contacts[introducer.node_id].introduces and not contacts[plain.node_id].introduces


async def test_an_introducer_may_be_a_member_with_a_session_of_its_own(
    clock: MockClock | None, new_node: NewNode
) -> None:
    introducer, one = await new_node(), await new_node()
    introduce(introducer)
    met = trio.Event()

    async def converse(stream: Stream) -> None:
        met.set()
        await trio.sleep_forever()

    introducer.accept(CONTROL, converse)
    node = await one.connect(introducer.addresses[0])
    control = await one.open_stream(node, CONTROL)
    await met.wait()
    one.admit(node)
    introducer.admit(one.node_id)
    alice = Member(one, key_number(2), introducer.addresses, LAB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alice.rendezvous.run)
        await until(lambda: bool(alice.found))
        nursery.cancel_scope.cancel()
    await control.send_all(b"still here")
    assert introducer.node_id in one.connected()


async def test_a_dial_that_hangs_up_on_the_shared_connection_costs_a_second_at_most(
    clock: MockClock | None, new_node: NewNode
) -> None:
    introducer, one = await new_node(), await new_node()
    introduce(introducer)
    serve = introducer._handlers[RENDEZVOUS]  # type: ignore[attr-defined]
    hung_up = 0

    async def hang_up_first(stream: Stream) -> None:
        nonlocal hung_up
        if not hung_up:
            hung_up += 1
            await one.disconnect(introducer.node_id)
        else:
            await serve(stream)

    introducer.accept(RENDEZVOUS, hang_up_first)
    alice = Member(one, key_number(2), introducer.addresses, LAB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alice.rendezvous.run)
        await until(lambda: bool(alice.found), 5)
        nursery.cancel_scope.cancel()
    assert hung_up == 1


# --- when it is asked, in the simulated world -----------------------------------------------------


@pytest.fixture
def virtual() -> MockClock:
    return MockClock(autojump_threshold=0)


async def rounds_of(member: Member, seconds: float) -> list[float]:
    """How long the pauses between its rounds were."""
    with trio.move_on_after(seconds):
        await member.rendezvous.run()
    times = member.rounds
    return [later - sooner for sooner, later in zip(times, times[1:], strict=False)]


async def test_introducers_are_asked_often_while_a_channel_has_no_peer(virtual: MockClock) -> None:
    async with World(seed=3) as world:
        introducer, link = (world.link(key_number(n).node_id) for n in (1, 2))
        introduce(introducer)
        alice = Member(link, key_number(2), introducer.addresses, LAB)
        pauses = await rounds_of(alice, 600)
        assert pauses[0] < 8 and len(pauses) > 10
        assert max(pauses) <= RENDEZVOUS_LONELY_S_MAX + 1


async def test_introducers_are_asked_rarely_when_every_channel_has_peers_and_again_when_one_is_lost(
    virtual: MockClock,
) -> None:
    async with World(seed=3) as world:
        introducer, link = (world.link(key_number(n).node_id) for n in (1, 2))
        introduce(introducer)
        alice = Member(link, key_number(2), introducer.addresses, LAB)
        alice.lonely = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.rendezvous.run)
            await trio.sleep(3600)
            asked = len(alice.rounds)
            assert 3600 / RENDEZVOUS_REFRESH_S <= asked <= 2 * 3600 / RENDEZVOUS_REFRESH_S + 1
            assert alice.book.unreached_by_user() == ()
            alice.lonely = True
            await trio.sleep(20)
            assert len(alice.rounds) > asked
            asked = len(alice.rounds)
            alice.rendezvous.wake()
            await trio.sleep(1)
            assert len(alice.rounds) == asked + 1
            nursery.cancel_scope.cancel()


async def test_an_introducer_that_never_answers_is_given_up_in_time(virtual: MockClock) -> None:
    async with World(seed=3) as world:
        introducer, link = (world.link(key_number(n).node_id) for n in (1, 2))

        async def silent(stream: Stream) -> None:
            introducer.admit(stream.peer)
            await trio.sleep_forever()

        introducer.accept(RENDEZVOUS, silent)
        alice = Member(link, key_number(2), introducer.addresses, LAB)
        link.proven.add(introducer.node_id)
        pauses = await rounds_of(alice, 600)
        assert max(pauses) < RENDEZVOUS_STREAM_S_MAX + RENDEZVOUS_LONELY_S_MAX + 5
        assert alice.found == 0


async def test_members_meet_across_midnight_and_after_a_crash_old_entries_are_gone(
    virtual: MockClock,
) -> None:
    async with World(seed=3) as world:
        introducer, one, other = (world.link(key_number(n).node_id) for n in (1, 2, 3))
        board = introduce(introducer).board
        alice = Member(one, key_number(2), introducer.addresses, LAB)
        bob = Member(other, key_number(3), introducer.addresses, LAB)
        alice.lonely = False
        with trio.move_on_after(11.99 * 3600):
            await alice.rendezvous.run()
        assert len(board) == 2, "tonight she is registered under both days"
        await trio.sleep(0.02 * 3600)
        with trio.move_on_after(60):
            await bob.rendezvous.run()
        assert set(bob.knows()) == {one.node_id}
        await trio.sleep(RENDEZVOUS_TTL_S)
        tomorrow = tag_of(LAB.discovery_key, 20_641)
        assert board.under(tomorrow, trio.current_time()) == []


async def test_the_introducer_drops_a_stranger_after_five_seconds(virtual: MockClock) -> None:
    async with World(seed=3) as world:
        introducer, link = (world.link(key_number(n).node_id) for n in (1, 2))
        introduce(introducer)
        stream = await open_rendezvous(link, introducer)
        began = trio.current_time()
        await is_over(stream)
        assert trio.current_time() - began <= HELLO_S_MAX + 1
        assert introducer.connected() == frozenset()


# --- attacks ------------------------------------------------------------------------------------


async def test_who_has_no_key_finds_nothing_under_a_million_guesses_nor_the_channels_id(
    clock: MockClock | None, new_node: NewNode
) -> None:
    introducer, one, stranger = [await new_node() for _ in range(3)]
    board = introduce(introducer).board
    alice = Member(one, key_number(2), introducer.addresses, LAB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alice.rendezvous.run)
        await until(lambda: len(board) == 1)
        nursery.cancel_scope.cancel()
    # What a stranger may know: the channel's id and name, the members' ids, the day.
    day = days_at(NOON)[0]
    guesses = [LAB.id.encode(), bytes.fromhex(LAB.id), b"lab", one.node_id.raw, b"", bytes(32)]
    tags = [tag_of(guess, day) for guess in guesses] + [bytes(32), bytes.fromhex(LAB.id)]
    stream = await open_rendezvous(stranger, introducer)
    for tag in tags:
        assert await ask(stream, "lookup", {"tag": tag}) == {"ok": {"entries": []}}
    assert all(not board.under(os.urandom(32), trio.current_time()) for _ in range(100_000))
    assert len(board.under(tag_of(LAB.discovery_key, day), trio.current_time())) == 1


def entry_of(key: NodeKey, *, day: int, expires: int, channel: Channel = LAB) -> bytes:
    address = str(address_of("198.51.100.7", 20432, key.node_id))
    return seal_entry(key, channel.discovery_key, day, [address], expires, os.urandom(NONCE_BYTES))


async def test_of_what_a_lying_introducer_answers_only_what_members_say_now_is_taken(
    clock: MockClock | None, new_node: NewNode
) -> None:
    introducer, one = await new_node(), await new_node()
    day, soon = days_at(NOON)[0], NOON + 600
    carol, dave = key_number(100), key_number(101)
    good = entry_of(carol, day=day, expires=soon)
    answers = [
        os.urandom(ENTRY_BYTES),
        bytes(ENTRY_BYTES),
        entry_of(dave, day=day, expires=NOON - 3600),
        entry_of(dave, day=day - 1, expires=soon),
        entry_of(dave, day=day, expires=NOON + DAY_S),
        entry_of(dave, day=day, expires=soon, channel=OTHER_LAB),
        good[:500] + bytes([good[500] ^ 1]) + good[501:],
        good,
    ]

    async def lie(stream: Stream) -> None:
        decoder = FrameDecoder()
        while data := await stream.receive_some(1 << 16):
            for message in decoder.feed(data):
                known = message["op"] == "lookup"
                await stream.send_all(answer_frame({"entries": answers} if known else {}))

    introducer.accept(RENDEZVOUS, lie)
    alice = Member(one, key_number(2), introducer.addresses, LAB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alice.rendezvous.run)
        await until(lambda: bool(alice.found))
        nursery.cancel_scope.cancel()
    assert set(alice.knows()) == {carol.node_id}


JUNK = [
    b"",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    (1 << 20).to_bytes(4, "big") + bytes(1000),
    b"\0\0\0\x05hello",
    b"\0\0\0\x01\x80",
    b"GET / HTTP/1.1\r\n\r\n",
    request_frame("lookup", {"tag": b"short"}),
    request_frame("register", {"tag": bytes(32), "entry": bytes(ENTRY_BYTES), "ttl": -1}),
    request_frame("register", {"tag": bytes(32), "entry": bytes(ENTRY_BYTES + 1), "ttl": 60}),
    request_frame("lookup", {"tag": bytes(32)})[:-1],
]


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: repr(junk[:12]))
async def test_junk_ends_its_stream_and_nothing_else(
    clock: MockClock | None, new_node: NewNode, junk: bytes
) -> None:
    introducer, stranger, honest = [await new_node() for _ in range(3)]
    made = introduce(introducer)
    other = await open_rendezvous(honest, introducer)
    stream = await open_rendezvous(stranger, introducer)
    await stream.send_all(junk)
    await stream.close()
    with trio.fail_after(5):
        await is_over(stream)
    assert await ask(other, "lookup", {"tag": bytes(32)}) == {"ok": {"entries": []}}
    assert len(made.board) == 0
    await until(lambda: made._talking == {honest.node_id})


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: repr(junk[:12]))
async def test_an_introducer_that_answers_junk_is_given_up_and_asked_again_later(
    clock: MockClock | None, new_node: NewNode, junk: bytes
) -> None:
    introducer, one = await new_node(), await new_node()
    answered = 0

    async def babble(stream: Stream) -> None:
        nonlocal answered
        answered += 1
        await stream.receive_some(4)
        await stream.send_all(junk)
        await stream.close()
        await trio.sleep(0.2)

    introducer.accept(RENDEZVOUS, babble)
    alice = Member(one, key_number(2), introducer.addresses, LAB)
    with trio.fail_after(10):
        await alice.rendezvous._ask_everybody()
    assert answered and not alice.found
    assert not alice.book._contacts[introducer.node_id].introduces


async def test_a_node_has_one_rendezvous_stream_at_a_time_and_it_has_an_end(
    clock: MockClock | None, new_node: NewNode
) -> None:
    introducer, one = await new_node(), await new_node()
    made = introduce(introducer)
    first = await open_rendezvous(one, introducer)
    assert "ok" in await ask(first, "lookup", {"tag": bytes(32)})
    with trio.fail_after(5), suppress(PeerGoneError):
        await is_over(await one.open_stream(introducer.node_id, RENDEZVOUS))
    for _ in range(RENDEZVOUS_REQUESTS_MAX - 1):
        assert "ok" in await ask(first, "lookup", {"tag": bytes(32)})
    with trio.fail_after(5):
        await is_over(first)
    await first.reset()
    await until(lambda: made._talking == set())
    again = await one.open_stream(introducer.node_id, RENDEZVOUS)
    assert "ok" in await ask(again, "lookup", {"tag": bytes(32)})


async def flood_once(introducer: Link, link: Link, requests: int) -> None:
    """One connection that only registers, and reads no answer."""
    try:
        stream = await open_rendezvous(link, introducer)
        for _ in range(requests):
            body: Message = {"tag": os.urandom(32), "entry": os.urandom(ENTRY_BYTES), "ttl": 7200}
            await stream.send_all(request_frame("register", body))
        await stream.close()
        await is_over(stream)
    except PeerError:
        pass
    finally:
        await link.disconnect(introducer.node_id)


async def test_a_thousand_connections_that_only_register_keep_nobody_from_meeting(
    virtual: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kachery_p2p.network.noticeboard.RENDEZVOUS_ENTRIES_MAX", 500)
    async with World(seed=5) as world:
        introducer = world.link(key_number(1).node_id)
        honest = [world.link(key_number(n).node_id) for n in (2, 3)]
        places: dict[NodeId, str] = {link.node_id: link.host for link in honest}
        board = Introducer(introducer, lambda node: places.get(node, HERE)).board
        alice, bob = (
            Member(link, key_number(n), introducer.addresses, LAB)
            for n, link in zip((2, 3), honest, strict=True)
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.rendezvous.run)
            await until(lambda: bool(alice.found))
            async with trio.open_nursery() as crowd:
                for number in range(1000):
                    link = world.link(NodeId.of_raw((10_000 + number).to_bytes(32, "big")))
                    crowd.start_soon(flood_once, introducer, link, 3)
            assert len(board) == 500
            nursery.start_soon(bob.rendezvous.run)
            await until(lambda: bool(bob.knows()))
            assert set(bob.knows()) == {honest[0].node_id}
            nursery.cancel_scope.cancel()


# How soon depends on what else the computer does: not for every run.
@pytest.mark.soak
async def test_a_real_crowd_that_only_registers_is_bounded_and_honest_nodes_still_meet() -> None:
    from kachery_p2p.network.libp2p_host import open_libp2p_link

    here = [("127.0.0.1", 0)]
    async with open_libp2p_link(key_number(1), here) as introducer:
        board = introduce(introducer).board
        async with (
            open_libp2p_link(key_number(2), here) as one,
            open_libp2p_link(key_number(3), here) as other,
            trio.open_nursery() as nursery,
        ):
            alice = Member(one, key_number(2), introducer.addresses, LAB)
            bob = Member(other, key_number(3), introducer.addresses, LAB)
            for number in range(100, 116):
                nursery.start_soon(flood_from, introducer, key_number(number))
            nursery.start_soon(alice.rendezvous.run)
            nursery.start_soon(bob.rendezvous.run)
            await until(lambda: bool(alice.knows() and bob.knows()), 15)
            nursery.cancel_scope.cancel()
    assert len(board) > RENDEZVOUS_ENTRIES_PER_TAG_MAX


async def flood_from(introducer: Link, key: NodeKey) -> None:
    from kachery_p2p.network.libp2p_host import open_libp2p_link

    async with open_libp2p_link(key, []) as link:
        for _ in range(2):
            await flood_once(introducer, link, 200)


async def test_an_entry_that_a_member_left_is_not_moved_by_another_node(
    clock: MockClock | None, new_node: NewNode
) -> None:
    introducer, mallory = await new_node(), await new_node()
    board = introduce(introducer).board
    tag = tag_of(LAB.discovery_key, days_at(NOON)[0])
    alice = key_number(100).node_id
    board.put(tag, alice, Notice(b"a" * ENTRY_BYTES, trio.current_time() + 600, HERE), 0)
    stream = await open_rendezvous(mallory, introducer)
    body: Any = {"tag": tag, "entry": b"m" * ENTRY_BYTES, "ttl": 60}
    assert await ask(stream, "register", body) == {"ok": {}}
    found = (await ask(stream, "lookup", {"tag": tag}))["ok"]["entries"]
    assert found == [b"a" * ENTRY_BYTES, b"m" * ENTRY_BYTES]
