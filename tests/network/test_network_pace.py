"""The gate of a node's line: for threads, for tasks of trio, and on real bulk connections."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.errors import PeerGoneError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import CHUNK_BYTES, RATE_BURST_S, RATE_PIECE_BYTES_MIN, TURN_S_MAX
from kachery_p2p.network.bulk import BulkPlane, open_bulk_plane
from kachery_p2p.network.bulk_asking import BulkConnection
from kachery_p2p.network.bulk_buffers import Piece
from kachery_p2p.network.link import CONTROL, DATA
from kachery_p2p.network.pace import Gate, Pace
from kachery_p2p.network.pace_link import PacedLink
from kachery_p2p.network.simulated import World
from kachery_p2p.wire.bulk_messages import BulkRange

SERVER = NodeId.of_raw(b"s" * 32)
LOOPBACK = ("127.0.0.1", 0)
CHANNEL = "0f" * 32
RATE = 10_000_000
HELD_S = 5.0


# --- in threads -----------------------------------------------------------------------------------


def test_without_a_limit_nothing_waits_and_everything_is_counted() -> None:
    gate = Gate()
    lane, moved = gate.lane("a"), bytearray()
    for _ in range(3):
        with lane.chunk():
            lane.move(memoryview(b"abc"), moved.extend)
    assert bytes(moved) == b"abc" * 3
    assert gate.byte_count == 9
    assert gate.rate > 0


def test_under_a_limit_bytes_go_in_small_pieces_and_all_of_them_go() -> None:
    gate = Gate(1 << 30)
    assert gate.piece_bytes == CHUNK_BYTES + (1 << 16)
    gate = Gate(400_000)
    assert gate.piece_bytes == 20_000
    assert Gate(128 << 10).piece_bytes == RATE_PIECE_BYTES_MIN
    data, pieces = os.urandom(50_001), list[bytes]()
    gate.lane("a").move(memoryview(data), lambda piece: pieces.append(bytes(piece)))
    assert [len(piece) for piece in pieces] == [20_000, 20_000, 10_001]
    assert b"".join(pieces) == data


def test_the_second_connection_of_a_peer_goes_on_when_the_first_one_is_done() -> None:
    gate = Gate()
    first, second, other = gate.lane("a"), gate.lane("a"), gate.lane("b")
    order: list[str] = []
    waiting, done = threading.Event(), threading.Event()

    def go_second() -> None:
        waiting.set()
        with second.chunk():
            order.append("second")
        done.set()

    with first.chunk():
        thread = threading.Thread(target=go_second)
        thread.start()
        assert waiting.wait(HELD_S)
        with other.chunk():
            order.append("other")
        order.append("first")
    assert done.wait(HELD_S)
    thread.join(HELD_S)
    assert order in (["other", "first", "second"], ["second", "other", "first"])


def test_a_turn_that_hangs_does_not_hold_up_the_other_connections_of_its_peer() -> None:
    now = 0.0
    gate = Gate(clock=lambda: now)
    with gate.lane("a").chunk():
        now += TURN_S_MAX
        with gate.lane("a").chunk():
            pass


def test_who_waits_in_a_lane_that_is_closed_is_told() -> None:
    gate = Gate(RATE)
    with gate.lane("x").turn(100 * RATE):
        pass
    lane = gate.lane("a")
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            lane.move(memoryview(b"abc"), lambda piece: None)
        except PeerGoneError as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while not gate._turns.waiting:
        time.sleep(0.001)
    lane.close()
    thread.join(HELD_S)
    assert len(raised) == 1
    assert gate._turns.waiting == 0


def test_threads_of_many_peers_share_a_limit_and_keep_it() -> None:
    gate = Gate(RATE)
    moved: Counter[str] = Counter()
    began = time.monotonic()

    def run(peer: str) -> None:
        lane = gate.lane(peer)
        while time.monotonic() < began + 1.0:
            # Who is told to stop finishes its piece.
            lane.move(memoryview(bytes(gate.piece_bytes)), lambda p: moved.update({peer: len(p)}))

    # Five connections of one peer, one of each other.
    threads = [threading.Thread(target=run, args=(peer,)) for peer in "aaaaabc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * HELD_S)
    elapsed = time.monotonic() - began
    assert moved.total() == gate.byte_count
    assert moved.total() <= RATE * (elapsed + RATE_BURST_S) + gate.piece_bytes
    # The five that were waiting when time was up had one piece more.
    assert moved["a"] - moved["b"] <= 6 * gate.piece_bytes


# --- in trio --------------------------------------------------------------------------------------


@pytest.fixture
def gate() -> Gate:
    return Gate(RATE, clock=trio.current_time)


async def test_tasks_are_served_fairly_and_at_the_rate(
    autojump_clock: MockClock, gate: Gate
) -> None:
    moved: Counter[str] = Counter()

    async def run(peer: str) -> None:
        lane = gate.lane(peer)
        while True:
            async with lane.turn_async(gate.piece_bytes):
                moved[peer] += gate.piece_bytes

    with trio.move_on_after(10):
        async with trio.open_nursery() as nursery:
            for peer in "aaaab":
                nursery.start_soon(run, peer)
    assert abs(moved["a"] - moved["b"]) <= 2 * gate.piece_bytes
    assert abs(moved.total() / (10 * RATE) - 1) < 0.05
    assert gate._turns.waiting == 0


async def test_an_urgent_task_goes_next_within_the_limit(
    autojump_clock: MockClock, gate: Gate
) -> None:
    order: list[str] = []

    async def run(peer: str, urgent: bool) -> None:
        async with gate.lane(peer).turn_async(gate.piece_bytes, urgent=urgent):
            order.append(peer)

    async with gate.lane("x").turn_async(RATE):
        pass
    async with trio.open_nursery() as nursery:
        for peer in ("a", "b", "c"):
            nursery.start_soon(run, peer, False)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(run, "reader", True)
    assert order[0] == "reader"
    assert sorted(order[1:]) == ["a", "b", "c"]


async def test_who_is_cancelled_leaves_the_queue(autojump_clock: MockClock, gate: Gate) -> None:
    async with gate.lane("x").turn_async(RATE):
        pass
    with trio.move_on_after(0.1):
        async with gate.lane("a").turn_async(1):
            raise AssertionError("there is nothing to be had for a second")
    assert gate._turns.waiting == 0
    assert not gate._wakers


async def test_data_streams_keep_the_pace_and_control_streams_do_not_wait(
    autojump_clock: MockClock,
) -> None:
    async with World(seed=1) as world:
        ids = [NodeId.of_raw(bytes([number]) * 32) for number in (1, 2)]
        links = [world.link(node) for node in ids]
        upload, download = Gate(RATE, trio.current_time), Gate(RATE // 2, trio.current_time)
        free = Gate(None, trio.current_time)
        server = PacedLink(links[0], Pace(upload, free))
        client = PacedLink(links[1], Pace(free, download))
        data = bytes(5 * RATE)

        async def send(stream: Any) -> None:
            await stream.send_all(data)
            await stream.close()

        server.accept(DATA, send)
        server.accept(CONTROL, send)
        await client.connect(server.addresses[0])
        client.admit(ids[0])
        server.admit(ids[1])
        assert client.connected() == {ids[0]}
        took = {}
        for name, link, protocol in (
            ("fast", links[1], CONTROL),
            ("up", links[1], DATA),
            ("down", client, DATA),
        ):
            began, count = trio.current_time(), 0
            stream = await link.open_stream(ids[0], protocol)
            while piece := await stream.receive_some(1 << 20):
                count += len(piece)
            assert count == len(data)
            took[name] = trio.current_time() - began
        assert took["fast"] < 1
        assert took["up"] == pytest.approx(5, rel=0.05)
        assert took["down"] == pytest.approx(10, rel=0.05)
        assert upload.byte_count == 2 * len(data)
        assert download.byte_count == len(data)


# --- on bulk connections --------------------------------------------------------------------------


class ServedFile:
    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self.descriptor).st_size

    def revoked(self) -> bool:
        return False

    def close(self) -> None:
        os.close(self.descriptor)


class Lab:
    """A node that serves a file, and peers that ask it."""

    def __init__(self, server: BulkPlane, peers: dict[str, BulkPlane]) -> None:
        self.server = server
        self.peers = peers

    async def connect(self, name: str) -> BulkConnection:
        peer = NodeId.of_raw(name.encode() * 32)

        async def ask(op: str, body: dict[str, Any]) -> dict[str, Any]:
            return self.server.offer(peer, body)

        return await self.peers[name].connect(SERVER, ask, ["127.0.0.1"])


@asynccontextmanager
async def bulk_lab(
    path: Path, names: str = "a", serving: Pace | None = None, asking: Pace | None = None
) -> AsyncIterator[Lab]:
    async def serve(peer: NodeId, wanted: Any) -> ServedFile:
        return ServedFile(path)

    async def nothing(peer: NodeId, wanted: Any) -> ServedFile:
        raise AssertionError("these serve nothing")

    async with AsyncExitStack() as stack:
        plane = open_bulk_plane(SERVER, [LOOPBACK], serve, pace=serving)
        server = await stack.enter_async_context(plane)
        peers: dict[str, BulkPlane] = {}
        for name in names:
            plane = open_bulk_plane(NodeId.of_raw(name.encode() * 32), [], nothing, pace=asking)
            peers[name] = await stack.enter_async_context(plane)
        yield Lab(server, peers)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "served"
    found.write_bytes(b"".join(bytes([n]) * CHUNK_BYTES for n in range(8)))
    return found


def wanted(first: int, count: int) -> BulkRange:
    return BulkRange(CHANNEL, b"c" * 20, b"r" * 32, first, count)


def dropped(piece: Piece) -> None:
    piece.release()


@pytest.mark.parametrize("limited", ["upload", "download"])
async def test_a_limit_on_either_side_is_kept_on_bulk_connections(path: Path, limited: str) -> None:
    rate = 16 << 20
    pace = Pace.limited(up=rate) if limited == "upload" else Pace.limited(down=rate)
    sides = {"serving": pace} if limited == "upload" else {"asking": pace}
    async with bulk_lab(path, **sides) as lab:  # type: ignore[arg-type]
        connection = await lab.connect("a")
        began = time.monotonic()
        with trio.fail_after(20):
            await connection.fetch(wanted(0, 8), dropped)
        elapsed = time.monotonic() - began
        gate = pace.up if limited == "upload" else pace.down
        assert gate.byte_count >= 8 * CHUNK_BYTES
        assert gate.byte_count <= rate * (elapsed + RATE_BURST_S) + gate.piece_bytes


async def test_peers_share_an_upload_limit_whatever_they_ask_for(path: Path) -> None:
    pace = Pace.limited(up=24 << 20)
    came: Counter[str] = Counter()
    async with bulk_lab(path, "ab", serving=pace) as lab:
        done = trio.Event()
        token = trio.lowlevel.current_trio_token()

        async def fetch_for_ever(connection: BulkConnection, name: str) -> None:
            def sink(piece: Piece) -> None:
                piece.release()
                came[name] += 1
                if came["b"] == 8:
                    token.run_sync_soon(done.set)

            while True:
                await connection.fetch(wanted(0, 8), sink)

        async with trio.open_nursery() as nursery:
            connection = await lab.connect("a")
            for _ in range(10):
                nursery.start_soon(fetch_for_ever, connection, "a")
            nursery.start_soon(fetch_for_ever, await lab.connect("b"), "b")
            with trio.fail_after(20):
                await done.wait()
            nursery.cancel_scope.cancel()
    # Chunks in the kernel's buffers, and the one that a had before b asked.
    assert came["a"] <= 8 + 6, came


async def test_an_urgent_request_of_one_peer_passes_the_bulk_of_another_within_the_limit(
    path: Path,
) -> None:
    pace = Pace.limited(up=8 << 20)
    async with bulk_lab(path, "abc", serving=pace) as lab, trio.open_nursery() as nursery:
        for name in "ab":
            connection = await lab.connect(name)
            nursery.start_soon(connection.fetch, wanted(0, 8), dropped)
        reader = await lab.connect("c")
        with trio.fail_after(10):
            while pace.up.byte_count < CHUNK_BYTES:  # noqa: ASYNC110 (threads count)
                await trio.sleep(0.002)
            before = pace.up.byte_count
            await reader.fetch(wanted(5, 1), dropped, urgent=True)
        others = pace.up.byte_count - before - CHUNK_BYTES
        nursery.cancel_scope.cancel()
    # All of it in one go, but for pieces that had their turn already, and what a slow test let by.
    assert others <= CHUNK_BYTES


async def test_closing_a_plane_does_not_wait_for_its_limit(path: Path) -> None:
    pace = Pace.limited(up=128 << 10)
    began = time.monotonic()
    async with bulk_lab(path, "ab", serving=pace) as lab, trio.open_nursery() as nursery:
        for name in "ab":
            nursery.start_soon((await lab.connect(name)).fetch, wanted(0, 8), dropped)
        with trio.fail_after(10):
            while not pace.up._turns.waiting:  # noqa: ASYNC110 (threads wait)
                await trio.sleep(0.002)
        nursery.cancel_scope.cancel()
    # 16 MiB would take two minutes.
    assert time.monotonic() - began < 20
