"""The promises of the seam, kept by real hosts and by the simulated world alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.errors import PeerGoneError, PeerUnreachableError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import HELLO_S_MAX, STREAMS_PER_PEER_MAX
from kachery_p2p.network.link import Link, Stream

NewNode = Callable[[], Awaitable[Link]]
ECHO = "/test/echo/1"
MIB = 1 << 20


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some(MIB):
        await stream.send_all(data)
    await stream.close()


async def receive_exactly(stream: Stream, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        data = await stream.receive_some(size - len(received))
        assert data, "the stream ended early"
        received += data
    return bytes(received)


async def ask(stream: Stream, question: bytes) -> bytes:
    await stream.send_all(question)
    return await receive_exactly(stream, len(question))


async def until(true: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not true():  # noqa: ASYNC110
            await trio.sleep(0.002)


async def befriend(one: Link, other: Link) -> NodeId:
    """Connect both ways of knowing each other; answers the other's id."""
    node = await one.connect(other.addresses[0])
    one.admit(node)
    await until(lambda: one.node_id in other.connected())
    other.admit(one.node_id)
    return node


async def a_pair(new_node: NewNode) -> tuple[Link, Link]:
    alice, bob = await new_node(), await new_node()
    bob.accept(ECHO, echo)
    await befriend(alice, bob)
    return alice, bob


async def test_an_address_names_the_node_that_answers_at_it(
    clock: MockClock | None, new_node: NewNode
) -> None:
    alice, bob = await new_node(), await new_node()
    assert bob.addresses[0].endswith(f"/p2p/{bob.node_id.peer_id}")
    assert await alice.connect(bob.addresses[0]) == bob.node_id
    assert alice.connected() == {bob.node_id}


async def test_connecting_again_answers_at_once(clock: MockClock | None, new_node: NewNode) -> None:
    alice, bob = await a_pair(new_node)
    with trio.fail_after(0.5):
        assert await alice.connect(bob.addresses[0]) == bob.node_id


async def test_what_is_sent_comes_back_in_order_and_both_sides_know_each_other(
    clock: MockClock | None, new_node: NewNode
) -> None:
    alice, bob = await a_pair(new_node)
    seen: list[tuple[NodeId, bool]] = []

    async def note(stream: Stream) -> None:
        seen.append((stream.peer, stream.outgoing))
        await echo(stream)

    bob.accept(ECHO, note)
    stream = await alice.open_stream(bob.node_id, ECHO)
    assert (stream.peer, stream.outgoing) == (bob.node_id, True)
    assert await ask(stream, b"hello") == b"hello"
    assert await ask(stream, bytes(range(256))) == bytes(range(256))
    assert seen == [(alice.node_id, False)]


async def test_the_dialled_side_may_open_streams_too(
    clock: MockClock | None, new_node: NewNode
) -> None:
    alice, bob = await a_pair(new_node)
    alice.accept(ECHO, echo)
    stream = await bob.open_stream(alice.node_id, ECHO)
    assert await ask(stream, b"hello") == b"hello"


async def test_more_than_any_buffer_passes_through_a_stream(
    clock: MockClock | None, new_node: NewNode
) -> None:
    alice, bob = await a_pair(new_node)
    sent = bytes(range(256)) * 4096 * 12
    stream = await alice.open_stream(bob.node_id, ECHO)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, sent)
        assert await receive_exactly(stream, len(sent)) == sent


async def test_a_reader_that_pauses_holds_the_writer_back_and_loses_nothing(
    clock: MockClock | None, new_node: NewNode
) -> None:
    alice, bob = await new_node(), await new_node()
    go_on = trio.Event()
    received = trio.Event()

    async def read_late(stream: Stream) -> None:
        await go_on.wait()
        await receive_exactly(stream, 4 * MIB)
        received.set()

    bob.accept(ECHO, read_late)
    await befriend(alice, bob)
    stream = await alice.open_stream(bob.node_id, ECHO)
    with trio.move_on_after(0.3) as waited:
        await stream.send_all(bytes(4 * MIB))
    assert waited.cancelled_caught
    other = await alice.open_stream(bob.node_id, ECHO)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other.send_all, bytes(4 * MIB))
        go_on.set()
        with trio.fail_after(10):
            await received.wait()


async def test_an_end_comes_after_everything_that_was_sent(
    clock: MockClock | None, new_node: NewNode
) -> None:
    alice, bob = await new_node(), await new_node()

    async def answer_and_go(stream: Stream) -> None:
        await stream.send_all(b"x" * 100_000)
        await stream.close()

    bob.accept(ECHO, answer_and_go)
    await befriend(alice, bob)
    stream = await alice.open_stream(bob.node_id, ECHO)
    assert await receive_exactly(stream, 100_000) == b"x" * 100_000
    assert await stream.receive_some(10) == b""


async def test_closing_one_way_leaves_the_other_open(
    clock: MockClock | None, new_node: NewNode
) -> None:
    alice, bob = await a_pair(new_node)
    stream = await alice.open_stream(bob.node_id, ECHO)
    await stream.send_all(b"last")
    await stream.close()
    with pytest.raises(PeerGoneError):
        await stream.send_all(b"more")
    assert await receive_exactly(stream, 4) == b"last"
    assert await stream.receive_some(10) == b""


async def test_a_handler_that_returns_without_closing_resets_its_stream(
    clock: MockClock | None, new_node: NewNode
) -> None:
    alice, bob = await new_node(), await new_node()

    async def ignore(stream: Stream) -> None:
        await stream.receive_some(1)

    bob.accept(ECHO, ignore)
    await befriend(alice, bob)
    stream = await alice.open_stream(bob.node_id, ECHO)
    await stream.send_all(b"x")
    with trio.fail_after(5), pytest.raises(PeerGoneError):
        await stream.receive_some(1)


async def test_a_handler_that_fails_harms_only_its_own_stream(
    clock: MockClock | None, new_node: NewNode, caplog: pytest.LogCaptureFixture
) -> None:
    alice, bob = await a_pair(new_node)
    good = await alice.open_stream(bob.node_id, ECHO)

    async def fail(stream: Stream) -> None:
        await stream.receive_some(1)
        raise ExceptionGroup("several", [ValueError("\x1b[31mred"), KeyError()])

    bob.accept("/test/fail/1", fail)
    bad = await alice.open_stream(bob.node_id, "/test/fail/1")
    await bad.send_all(b"x")
    with trio.fail_after(5), pytest.raises(PeerGoneError):
        await bad.receive_some(1)
    assert await ask(good, b"still here") == b"still here"
    assert "\x1b" not in caplog.text


async def test_a_reset_stream_is_gone_for_both_and_no_other(
    clock: MockClock | None, new_node: NewNode
) -> None:
    alice, bob = await new_node(), await new_node()
    gone = trio.Event()

    async def wait_for_reset(stream: Stream) -> None:
        with pytest.raises(PeerGoneError):
            await stream.receive_some(1)
        with pytest.raises(PeerGoneError):
            await stream.send_all(b"x")
        gone.set()

    bob.accept("/test/reset/1", wait_for_reset)
    bob.accept(ECHO, echo)
    await befriend(alice, bob)
    other = await alice.open_stream(bob.node_id, ECHO)
    stream = await alice.open_stream(bob.node_id, "/test/reset/1")
    await stream.reset()
    with trio.fail_after(5):
        await gone.wait()
    with pytest.raises(PeerGoneError):
        await stream.receive_some(1)
    assert await ask(other, b"x") == b"x"
    await stream.close()
    await stream.reset()


async def test_a_cancelled_receive_loses_nothing(
    clock: MockClock | None, new_node: NewNode
) -> None:
    alice, bob = await a_pair(new_node)
    stream = await alice.open_stream(bob.node_id, ECHO)
    with trio.move_on_after(0.05) as waited:
        await stream.receive_some(1)
    assert waited.cancelled_caught
    assert await ask(stream, b"still in order") == b"still in order"


async def test_a_cancelled_send_harms_no_other_stream(
    clock: MockClock | None, new_node: NewNode
) -> None:
    alice, bob = await a_pair(new_node)

    async def never_read(stream: Stream) -> None:
        await trio.sleep_forever()

    bob.accept("/test/never/1", never_read)
    good = await alice.open_stream(bob.node_id, ECHO)
    for _ in range(5):
        stream = await alice.open_stream(bob.node_id, "/test/never/1")
        with trio.move_on_after(0.05):
            await stream.send_all(bytes(2 * MIB))
        with trio.CancelScope() as cancelled:
            cancelled.cancel()
            await stream.reset()
    assert await ask(good, b"x" * 100_000) == b"x" * 100_000


async def test_a_protocol_that_is_not_spoken_is_refused(
    clock: MockClock | None, new_node: NewNode
) -> None:
    alice, bob = await a_pair(new_node)
    with pytest.raises(PeerGoneError):
        await alice.open_stream(bob.node_id, "/test/unknown/1")
    stream = await alice.open_stream(bob.node_id, ECHO)
    assert await ask(stream, b"x") == b"x"


async def test_there_is_no_stream_to_a_node_that_is_not_connected(
    clock: MockClock | None, new_node: NewNode
) -> None:
    alice, bob = await new_node(), await new_node()
    with pytest.raises(PeerGoneError):
        await alice.open_stream(bob.node_id, ECHO)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "127.0.0.1:20432",
        "/ip4/127.0.0.1/tcp/20432",
        "/ip4/127.0.0.1/udp/20432/quic-v1/p2p/{peer}",
        "/ip4/127.0.0.1/tcp/20432/ws/p2p/{peer}",
        "/ip4/127.0.0.1/tcp/0/p2p/{peer}",
        "/ip4/127.0.0.1/tcp/99999/p2p/{peer}",
        "/ip4/::1/tcp/20432/p2p/{peer}",
        "/ip6/fe80::1%eth0/tcp/20432/p2p/{peer}",
        "/dns/a b/tcp/20432/p2p/{peer}",
        "/unix/tmp/tcp/20432/p2p/{peer}",
        "/ip4/127.0.0.1/tcp/20432/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        "/ip4/127.0.0.1/tcp/20432/p2p/{peer}/p2p-circuit/p2p/{peer}",
        "/ip4/127.0.0.1/tcp/20432/p2p/" + "1" * 5000,
    ],
)
async def test_what_is_no_address_of_a_node_is_not_dialled(
    clock: MockClock | None, new_node: NewNode, address: str
) -> None:
    alice, bob = await new_node(), await new_node()
    with pytest.raises(PeerUnreachableError):
        await alice.connect(address.format(peer=bob.node_id.peer_id))


async def test_another_node_at_the_address_is_not_connected_to(
    clock: MockClock | None, new_node: NewNode
) -> None:
    alice, bob, carol = await new_node(), await new_node(), await new_node()
    wrong = bob.addresses[0].replace(bob.node_id.peer_id, carol.node_id.peer_id)
    with pytest.raises(PeerUnreachableError):
        await alice.connect(wrong)
    assert alice.connected() == frozenset()
    assert await alice.connect(bob.addresses[0]) == bob.node_id


async def test_a_node_does_not_connect_to_itself(
    clock: MockClock | None, new_node: NewNode
) -> None:
    alice = await new_node()
    with pytest.raises(PeerUnreachableError):
        await alice.connect(alice.addresses[0])


async def test_disconnecting_is_told_once_to_each_side(
    clock: MockClock | None, new_node: NewNode
) -> None:
    alice, bob = await a_pair(new_node)
    told: list[tuple[str, NodeId]] = []
    alice.on_disconnected(lambda node: told.append(("alice", node)))
    bob.on_disconnected(lambda node: told.append(("bob", node)))
    stream = await alice.open_stream(bob.node_id, ECHO)
    await alice.disconnect(bob.node_id)
    assert alice.connected() == frozenset()
    with pytest.raises(PeerGoneError):
        await stream.receive_some(1)
    await until(lambda: len(told) == 2)
    assert sorted(told) == [("alice", bob.node_id), ("bob", alice.node_id)]
    await alice.disconnect(bob.node_id)


async def test_last_words_before_a_disconnect_are_still_read(
    clock: MockClock | None, new_node: NewNode
) -> None:
    alice, bob = await new_node(), await new_node()
    heard: list[bytes] = []
    read_on = trio.Event()
    done = trio.Event()

    async def listen(stream: Stream) -> None:
        await read_on.wait()
        heard.append(await receive_exactly(stream, 100_000))
        with pytest.raises(PeerGoneError):
            await stream.receive_some(1)
        done.set()

    bob.accept(ECHO, listen)
    await befriend(alice, bob)
    stream = await alice.open_stream(bob.node_id, ECHO)
    await stream.send_all(b"x" * 100_000)
    await alice.disconnect(bob.node_id)
    await until(lambda: not bob.connected())
    read_on.set()
    with trio.fail_after(5):
        await done.wait()
    assert heard == [b"x" * 100_000]


async def test_a_disconnected_node_can_be_connected_to_again(
    clock: MockClock | None, new_node: NewNode
) -> None:
    alice, bob = await a_pair(new_node)
    await alice.disconnect(bob.node_id)
    await until(lambda: not bob.connected())
    await befriend(alice, bob)
    stream = await alice.open_stream(bob.node_id, ECHO)
    assert await ask(stream, b"again") == b"again"


async def test_a_handler_may_disconnect_its_own_peer_and_go_on(
    clock: MockClock | None, new_node: NewNode
) -> None:
    alice, bob = await new_node(), await new_node()
    went_on = trio.Event()

    async def leave(stream: Stream) -> None:
        await stream.receive_some(1)
        await bob.disconnect(stream.peer)
        went_on.set()

    bob.accept(ECHO, leave)
    await befriend(alice, bob)
    stream = await alice.open_stream(bob.node_id, ECHO)
    await stream.send_all(b"x")
    with trio.fail_after(5), pytest.raises(PeerGoneError):
        while await stream.receive_some(1):
            pass
    with trio.fail_after(5):
        await went_on.wait()


async def test_when_both_dial_at_once_both_are_connected_and_an_end_is_told_once(
    clock: MockClock | None, new_node: NewNode
) -> None:
    alice, bob = await new_node(), await new_node()
    told: list[NodeId] = []
    for link in (alice, bob):
        link.accept(ECHO, echo)
        link.on_disconnected(told.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alice.connect, bob.addresses[0])
        nursery.start_soon(bob.connect, alice.addresses[0])
    alice.admit(bob.node_id)
    bob.admit(alice.node_id)
    for one, other in ((alice, bob), (bob, alice)):
        assert await ask(await one.open_stream(other.node_id, ECHO), b"x") == b"x"
    assert told == []
    await alice.disconnect(bob.node_id)
    await until(lambda: not bob.connected())
    assert sorted(told) == sorted([alice.node_id, bob.node_id])


async def test_connects_that_run_at_once_share_one_connection(
    clock: MockClock | None, new_node: NewNode
) -> None:
    alice, bob = await new_node(), await new_node()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(alice.connect, bob.addresses[0])
    assert alice.connected() == {bob.node_id}


async def test_a_node_that_is_not_admitted_is_dropped_in_time_and_an_admitted_one_is_not(
    clock: MockClock | None, new_node: NewNode
) -> None:
    alice, bob, carol = await new_node(), await new_node(), await new_node()
    bob.accept(ECHO, echo)
    await befriend(alice, bob)
    told: list[NodeId] = []
    bob.on_disconnected(told.append)
    await carol.connect(bob.addresses[0])
    carol.admit(bob.node_id)
    started = trio.current_time()
    with trio.fail_after(HELLO_S_MAX + 2):
        while not told:  # noqa: ASYNC110
            await trio.sleep(0.05)
    assert HELLO_S_MAX - 1 < trio.current_time() - started < HELLO_S_MAX + 1
    assert told == [carol.node_id]
    await until(lambda: not carol.connected())
    assert await ask(await alice.open_stream(bob.node_id, ECHO), b"x") == b"x"


async def test_a_node_may_not_be_flooded_with_streams_and_our_own_excess_waits(
    clock: MockClock | None, new_node: NewNode
) -> None:
    alice, bob = await a_pair(new_node)
    streams = [await alice.open_stream(bob.node_id, ECHO) for _ in range(STREAMS_PER_PEER_MAX)]
    opened = trio.Event()

    async def open_one_more() -> None:
        await alice.open_stream(bob.node_id, ECHO)
        opened.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_one_more)
        with trio.move_on_after(0.2):
            await opened.wait()
        assert not opened.is_set()
        # The other side has to hear of the reset before it takes one more.
        assert await ask(streams[1], b"x") == b"x"
        await streams[1].close()
        assert await streams[1].receive_some(1) == b""
        with trio.fail_after(5):
            await opened.wait()
