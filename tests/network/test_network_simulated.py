"""What the simulated world adds to the seam: paths, cuts, crashes and silence, from a seed."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.errors import PeerGoneError, PeerTimeoutError, PeerUnreachableError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import DIAL_S_MAX, REQUEST_S_MAX, STREAMS_PER_PEER_MAX
from kachery_p2p.network.link import Stream
from kachery_p2p.network.simulated import World
from kachery_p2p.network.simulated_link import SimulatedLink
from kachery_p2p.network.simulated_wire import Path

ALICE, BOB, CAROL = (NodeId.of_raw(bytes([number]) * 32) for number in (1, 2, 3))
ECHO = "/test/echo/1"


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some(1 << 20):
        await stream.send_all(data)


async def a_pair(world: World) -> tuple[SimulatedLink, SimulatedLink]:
    alice, bob = world.link(ALICE), world.link(BOB)
    bob.accept(ECHO, echo)
    await alice.connect(bob.addresses[0])
    alice.admit(BOB)
    bob.admit(ALICE)
    return alice, bob


async def ask(stream: Stream, question: bytes) -> bytes:
    await stream.send_all(question)
    received = b""
    while len(received) < len(question):
        received += await stream.receive_some(1 << 20)
    return received


async def test_a_round_trip_takes_both_delays(autojump_clock: MockClock) -> None:
    async with World(seed=1) as world:
        alice, _ = await a_pair(world)
        world.set_path(ALICE, BOB, Path(delay_s=0.05))
        stream = await alice.open_stream(BOB, ECHO)
        started = trio.current_time()
        assert await ask(stream, b"x") == b"x"
        assert trio.current_time() - started == pytest.approx(0.1)


async def test_bandwidth_is_shared_by_the_streams_of_a_path(autojump_clock: MockClock) -> None:
    async with World(seed=1) as world:
        alice, _ = await a_pair(world)
        world.set_path(ALICE, BOB, Path(bytes_per_s=1_000_000), one_way=True)
        streams = [await alice.open_stream(BOB, ECHO) for _ in range(4)]
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(ask, stream, bytes(200_000))
        assert trio.current_time() - started == pytest.approx(0.8, rel=0.05)


async def test_the_same_seed_gives_the_same_world_and_another_seed_another(
    autojump_clock: MockClock,
) -> None:
    async def times(seed: int) -> list[float]:
        found = []
        async with World(seed) as world:
            world.set_all_paths(Path(delay_s=0.02, jitter_s=0.03, loss=0.2))
            alice, _ = await a_pair(world)
            stream = await alice.open_stream(BOB, ECHO)
            for _ in range(50):
                started = trio.current_time()
                assert await ask(stream, b"x") == b"x"
                found.append(round(trio.current_time() - started, 9))
        return found

    first = await times(1)
    assert first == await times(1)
    assert first != await times(2)


async def test_loss_delays_bytes_but_neither_drops_nor_reorders_them(
    autojump_clock: MockClock,
) -> None:
    sent = bytes(range(256)) * 8192
    async with World(seed=3) as world:
        world.set_all_paths(Path(delay_s=0.01, jitter_s=0.05, loss=0.2))
        alice, _ = await a_pair(world)
        stream = await alice.open_stream(BOB, ECHO)
        received = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, sent)
            while len(received) < len(sent):
                received += await stream.receive_some(1 << 20)
        assert received == sent
        assert trio.current_time() > 1


async def test_a_cut_holds_everything_up_and_a_heal_lets_it_through(
    autojump_clock: MockClock,
) -> None:
    async with World(seed=1) as world:
        alice, bob = await a_pair(world)
        stream = await alice.open_stream(BOB, ECHO)
        world.cut(ALICE, BOB)
        await stream.send_all(b"held up")
        with trio.move_on_after(3600) as waited:
            await stream.receive_some(10)
        assert waited.cancelled_caught
        assert alice.connected() == {BOB} and bob.connected() == {ALICE}
        world.heal(ALICE, BOB)
        with trio.fail_after(1):
            assert await stream.receive_some(10) == b"held up"


async def test_a_one_way_cut_lets_the_other_way_through(autojump_clock: MockClock) -> None:
    async with World(seed=1) as world:
        alice, bob = await a_pair(world)
        got = trio.Event()

        async def note(stream: Stream) -> None:
            assert await stream.receive_some(1) == b"x"
            got.set()
            await stream.send_all(b"y")
            await trio.sleep_forever()

        bob.accept(ECHO, note)
        stream = await alice.open_stream(BOB, ECHO)
        world.cut(BOB, ALICE, one_way=True)
        await stream.send_all(b"x")
        with trio.fail_after(1):
            await got.wait()
        with trio.move_on_after(10) as waited:
            await stream.receive_some(1)
        assert waited.cancelled_caught
        world.heal(BOB, ALICE, one_way=True)
        assert await stream.receive_some(1) == b"y"


async def test_a_silent_peer_is_a_timeout_and_goes_on_when_it_wakes(
    autojump_clock: MockClock,
) -> None:
    async with World(seed=1) as world:
        alice, _ = await a_pair(world)
        stream = await alice.open_stream(BOB, ECHO)
        world.silence(BOB)
        started = trio.current_time()
        with pytest.raises(PeerTimeoutError):
            await alice.open_stream(BOB, ECHO)
        assert trio.current_time() - started == pytest.approx(REQUEST_S_MAX)
        world.wake(BOB)
        assert await ask(stream, b"x") == b"x"


async def test_a_stream_beyond_the_bound_that_never_gets_room_is_a_timeout(
    autojump_clock: MockClock,
) -> None:
    async with World(seed=1) as world:
        alice, _ = await a_pair(world)
        for _ in range(STREAMS_PER_PEER_MAX):
            await alice.open_stream(BOB, ECHO)
        started = trio.current_time()
        with pytest.raises(PeerTimeoutError):
            await alice.open_stream(BOB, ECHO)
        assert trio.current_time() - started == pytest.approx(REQUEST_S_MAX)


async def test_dialling_into_a_cut_takes_no_longer_than_a_dial_may(
    autojump_clock: MockClock,
) -> None:
    async with World(seed=1) as world:
        alice, bob = world.link(ALICE), world.link(BOB)
        world.cut(ALICE, BOB)
        started = trio.current_time()
        with pytest.raises(PeerUnreachableError):
            await alice.connect(bob.addresses[0])
        assert trio.current_time() - started == pytest.approx(DIAL_S_MAX)


async def test_a_crash_ends_every_stream_stops_the_handlers_and_a_restart_is_reached(
    autojump_clock: MockClock,
) -> None:
    async with World(seed=1) as world:
        alice, bob = await a_pair(world)
        told: list[NodeId] = []
        alice.on_disconnected(told.append)
        stopped = trio.Event()

        async def hold(stream: Stream) -> None:
            try:
                await trio.sleep_forever()
            finally:
                stopped.set()

        bob.accept("/test/hold/1", hold)
        stream = await alice.open_stream(BOB, "/test/hold/1")
        world.crash(BOB)
        with trio.fail_after(1), pytest.raises(PeerGoneError):
            await stream.receive_some(1)
        with trio.fail_after(1):
            await stopped.wait()
        assert told == [BOB]
        with pytest.raises(PeerUnreachableError):
            await alice.connect(bob.addresses[0])
        again = world.link(BOB)
        assert again is not bob and again.addresses == bob.addresses
        again.accept(ECHO, echo)
        await alice.connect(again.addresses[0])
        assert await ask(await alice.open_stream(BOB, ECHO), b"x") == b"x"


async def test_a_node_that_is_not_there_refuses_at_once(autojump_clock: MockClock) -> None:
    async with World(seed=1) as world:
        alice, bob = world.link(ALICE), world.link(BOB)
        with trio.fail_after(1), pytest.raises(PeerUnreachableError):
            await alice.connect(bob.addresses[0].replace("10.0.0.2", "10.9.9.9"))
        assert CAROL not in alice.connected()


async def test_broken_connections_are_gone_on_both_sides_and_can_be_made_again(
    autojump_clock: MockClock,
) -> None:
    async with World(seed=1) as world:
        alice, bob = await a_pair(world)
        stream = await alice.open_stream(BOB, ECHO)
        world.break_connections(ALICE, BOB)
        assert not alice.connected() and not bob.connected()
        with pytest.raises(PeerGoneError):
            await stream.send_all(b"x")
        await alice.connect(bob.addresses[0])
        assert await ask(await alice.open_stream(BOB, ECHO), b"x") == b"x"
