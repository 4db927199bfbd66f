"""The bulk plane between two honest nodes on loopback: tickets, fetching, serving, ending."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from kachery_p2p.errors import (
    PeerBusyError,
    PeerError,
    PeerGoneError,
    PeerRefusedError,
    PeerUnreachableError,
    ProtocolError,
    VerificationError,
)
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    BULK_BUFFERS_MAX,
    BULK_CONNECTIONS_MAX,
    BULK_CONNECTIONS_PER_PEER_MAX,
    BULK_KEY_FRAMES_MAX,
    BULK_REQUESTS_MAX,
    BULK_TICKET_S_MAX,
    BULK_TICKETS_MAX,
    BULK_TICKETS_PER_PEER_MAX,
    CHUNK_BYTES,
)
from kachery_p2p.network import bulk_dials
from kachery_p2p.network.bulk import BulkPlane, open_bulk_plane, preferred_cipher
from kachery_p2p.network.bulk_asking import BulkConnection
from kachery_p2p.network.bulk_buffers import Buffers, Piece
from kachery_p2p.network.bulk_serving import Asked
from kachery_p2p.network.bulk_tickets import Ticket, Tickets
from kachery_p2p.wire.bulk_messages import BulkRange
from kachery_p2p.wire.sealed import AES_256_GCM, CHACHA20_POLY1305

ALICE = NodeId.of_raw(b"a" * 32)
BOB = NodeId.of_raw(b"b" * 32)
CHANNEL = "0f" * 32
LOOPBACK = ("127.0.0.1", 0)
STALL_S = 0.5
SIZE = 5 * CHUNK_BYTES + 7


def content_bytes() -> bytes:
    return b"".join(number.to_bytes(8, "big") * (1 << 17) for number in range(6))[:SIZE]


def chunks_of(data: bytes) -> dict[int, bytes]:
    return {at // CHUNK_BYTES: data[at : at + CHUNK_BYTES] for at in range(0, SIZE, CHUNK_BYTES)}


CHUNKS = chunks_of(content_bytes())


def wanted(first: int = 0, count: int = 6) -> BulkRange:
    return BulkRange(CHANNEL, b"c" * 20, b"r" * 32, first, count)


class ServedFile:
    def __init__(self, shelf: Shelf, path: Path) -> None:
        self._shelf = shelf
        self.descriptor = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self.descriptor).st_size
        shelf.open += 1

    def revoked(self) -> bool:
        self._shelf.looked()
        return self._shelf.is_revoked

    def close(self) -> None:
        self._shelf.open -= 1
        os.close(self.descriptor)


class Shelf:
    """What a node serves: one file, and what became of the requests for it."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(content_bytes())
        self.path = path
        self.asked: list[tuple[NodeId, BulkRange]] = []
        self.open = 0
        self.is_revoked = False
        self.refusal: PeerError | None = None
        self.looked: Callable[[], None] = lambda: None

    async def serve(self, peer: NodeId, wanted: Asked) -> ServedFile:
        assert isinstance(wanted, BulkRange)
        self.asked.append((peer, wanted))
        if self.refusal is not None:
            raise self.refusal
        return ServedFile(self, self.path)


class Taken:
    """A sink that keeps the bytes of the chunks, in the order in which they came."""

    def __init__(self) -> None:
        self.chunks: dict[int, bytes] = {}
        self.threads: set[int] = set()

    def __call__(self, piece: Piece) -> None:
        self.threads.add(threading.get_ident())
        self.chunks[piece.number] = bytes(piece.data)
        piece.release()


class Pair:
    """Bob asks, Alice serves; what a control stream would carry is a call."""

    def __init__(self, alice: BulkPlane, bob: BulkPlane, shelf: Shelf) -> None:
        self.alice = alice
        self.bob = bob
        self.shelf = shelf
        self.asked: list[str] = []
        self.alice_may_be_dialled = True

    async def ask(self, op: str, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(op)
        if op == "bulk back":
            return await self.alice.dial_back(BOB, body, ["127.0.0.1"])
        offer = self.alice.offer(BOB, body)
        return offer if self.alice_may_be_dialled else {**offer, "port": 0}

    async def connect(self) -> BulkConnection:
        return await self.bob.connect(ALICE, self.ask, ["127.0.0.1"])


async def nothing(peer: NodeId, wanted: Asked) -> ServedFile:
    raise PeerRefusedError("serves nothing")


@asynccontextmanager
async def planes(shelf: Shelf, *, bob_listens: bool = False) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(
            open_bulk_plane(ALICE, [LOOPBACK], shelf.serve, stall_s=STALL_S)
        )
        places = [LOOPBACK] if bob_listens else []
        bob = await stack.enter_async_context(
            open_bulk_plane(BOB, places, nothing, stall_s=STALL_S)
        )
        yield Pair(alice, bob, shelf)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "recording")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that a thread is about to bring about."""
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110 (threads know nothing of trio's events)
            await trio.sleep(0.002)


def fresh(peer: NodeId = BOB, number: int = 0) -> Ticket:
    ticket_id = number.to_bytes(16, "big")
    return Ticket(ticket_id, peer, False, AES_256_GCM, b"m" * 32, b"t" * 32)


# --- fetching -------------------------------------------------------------------------------------


async def test_chunks_come_in_order_verified_by_length_and_in_a_thread(shelf: Shelf) -> None:
    async with planes(shelf) as pair:
        connection = await pair.connect()
        taken = Taken()
        await connection.fetch(wanted(), taken)
        assert taken.chunks == CHUNKS
        assert list(taken.chunks) == sorted(taken.chunks)
        assert taken.threads.isdisjoint({threading.get_ident()})
        assert shelf.asked == [(BOB, wanted())]
        assert pair.bob.bytes_received == pair.alice.bytes_sent == SIZE
        await until(lambda: shelf.open == 0)


async def test_a_connection_is_kept_and_used_again(shelf: Shelf) -> None:
    async with planes(shelf) as pair:
        connection = await pair.connect()
        for first in range(6):
            taken = Taken()
            await (await pair.connect()).fetch(wanted(first, 1), taken)
            assert taken.chunks == {first: CHUNKS[first]}
        assert await pair.connect() is connection
        assert pair.asked == ["bulk"]
        assert pair.bob.peers() == {ALICE}
        assert pair.alice.peers() == {BOB}
        assert 0 <= (pair.bob.silence_s(ALICE) or 0) < 5
        assert pair.bob.silence_s(BOB) is None


async def test_many_who_connect_at_once_share_one_connection(shelf: Shelf) -> None:
    async with planes(shelf) as pair:
        found: list[BulkConnection] = []

        async def connect() -> None:
            found.append(await pair.connect())

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(connect)
        assert len(found) == 10
        assert len(set(found)) == 1


async def test_more_fetches_than_the_peer_takes_at_once_wait_for_their_turn(shelf: Shelf) -> None:
    async with planes(shelf) as pair:
        connection = await pair.connect()
        taken = [Taken() for _ in range(3 * BULK_REQUESTS_MAX)]
        async with trio.open_nursery() as nursery:
            for number, one in enumerate(taken):
                nursery.start_soon(connection.fetch, wanted(number % 6, 1), one)
        for number, one in enumerate(taken):
            assert one.chunks == {number % 6: CHUNKS[number % 6]}
        assert connection.idle


async def test_an_urgent_request_passes_one_that_is_being_served(shelf: Shelf) -> None:
    order: list[int] = []
    gate, may_go = threading.Event(), threading.Event()

    def look() -> None:
        gate.set()
        assert may_go.wait(5)

    async with planes(shelf) as pair:
        connection = await pair.connect()
        shelf.looked = look

        def note(piece: Piece) -> None:
            order.append(piece.number)
            piece.release()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.fetch, wanted(0, 5), note)
            await until(gate.is_set)  # Alice is about to send the first chunk
            nursery.start_soon(lambda: connection.fetch(wanted(5, 1), note, urgent=True))
            await until(lambda: len(connection._asked) == 2)
            may_go.set()
    assert order == [0, 5, 1, 2, 3, 4]


async def test_pieces_may_be_kept_while_the_next_ones_come_but_not_more_than_a_few(
    shelf: Shelf,
) -> None:
    kept: list[Piece] = []
    async with planes(shelf) as pair:
        pair.bob._buffers = Buffers(count_max=4)
        connection = await pair.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.fetch, wanted(), kept.append)
            # The third piece needs two buffers, and gets them: the fourth does not.
            await until(lambda: len(kept) == 3)
            with trio.move_on_after(0.1):
                await until(lambda: len(kept) > 3)
            assert [bytes(piece.data) for piece in kept] == [CHUNKS[n] for n in range(3)]
            while len(kept) < 6 or any(piece._buffer for piece in kept):
                for piece in kept:
                    piece.release()
                    piece.release()
                await trio.sleep(0.002)
        assert len(kept) == 6
        assert pair.bob._buffers.left == 4


async def test_an_empty_wait_is_no_stall(shelf: Shelf) -> None:
    async with planes(shelf) as pair:
        connection = await pair.connect()
        await trio.sleep(2.5 * STALL_S)  # longer than what would be a stall in a transfer
        await connection.fetch(wanted(), Taken())


# --- answers that are none ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "refusal", [PeerRefusedError("secret reason"), PeerBusyError("is hashing it"), PeerError("no")]
)
async def test_each_request_is_judged_when_it_is_served(shelf: Shelf, refusal: PeerError) -> None:
    async with planes(shelf) as pair:
        connection = await pair.connect()
        await connection.fetch(wanted(), Taken())
        shelf.refusal = refusal
        taken = Taken()
        with pytest.raises(type(refusal)) as caught:
            await connection.fetch(wanted(), taken)
        assert "secret" not in str(caught.value)
        assert not taken.chunks
        shelf.refusal = None
        await connection.fetch(wanted(), taken)
        assert taken.chunks == CHUNKS


async def test_a_range_beyond_the_content_is_refused_like_what_is_absent(shelf: Shelf) -> None:
    async with planes(shelf) as pair:
        connection = await pair.connect()
        with pytest.raises(PeerRefusedError):
            await connection.fetch(wanted(5, 2), Taken())
        await until(lambda: shelf.open == 0)


async def test_leave_that_is_taken_back_cuts_a_transfer_between_two_chunks(shelf: Shelf) -> None:
    async with planes(shelf) as pair:
        connection = await pair.connect()
        looks = 0

        def look() -> None:
            nonlocal looks
            looks += 1
            shelf.is_revoked = looks == 3

        shelf.looked = look
        taken = Taken()
        with pytest.raises(PeerRefusedError):
            await connection.fetch(wanted(), taken)
        assert taken.chunks == {n: CHUNKS[n] for n in (0, 1)}
        await until(lambda: shelf.open == 0)


async def test_a_file_that_became_shorter_is_a_failure_and_not_other_bytes(shelf: Shelf) -> None:
    async with planes(shelf) as pair:
        connection = await pair.connect()
        shelf.looked = lambda: os.truncate(shelf.path, CHUNK_BYTES + 5)
        taken = Taken()
        with pytest.raises(PeerError, match="became shorter"):
            await connection.fetch(wanted(), taken)
        assert taken.chunks == {0: CHUNKS[0]}


async def test_a_mistake_of_the_serving_side_ends_the_connection_and_nothing_else(
    shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("a mistake of ours")

    async with planes(shelf) as pair:
        connection = await pair.connect()
        shelf.looked = fail
        with pytest.raises(PeerGoneError):
            await connection.fetch(wanted(), Taken())
        assert "a mistake of ours" in caplog.text
        shelf.looked = lambda: None
        await (await pair.connect()).fetch(wanted(), Taken())


# --- giving up ------------------------------------------------------------------------------------


async def test_a_cancelled_fetch_calls_its_sink_no_more_and_leaves_the_connection_usable(
    shelf: Shelf,
) -> None:
    async with planes(shelf) as pair:
        connection = await pair.connect()
        inside, may_leave, left = threading.Event(), threading.Event(), threading.Event()
        seen: list[int] = []

        def sink(piece: Piece) -> None:
            seen.append(piece.number)
            inside.set()
            assert may_leave.wait(5)
            piece.release()
            left.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.fetch, wanted(), sink)
            await until(inside.is_set)
            threading.Timer(0.1, may_leave.set).start()
            nursery.cancel_scope.cancel()
        assert left.is_set(), "the fetch returned while its sink was still at work"
        taken = Taken()
        await connection.fetch(wanted(), taken)
        assert taken.chunks == CHUNKS
        assert seen == [0]
        assert connection.usable


async def test_what_is_cancelled_is_not_sent_any_more(shelf: Shelf) -> None:
    looks = 0
    blocked, may_go = threading.Event(), threading.Event()

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            blocked.set()
            assert may_go.wait(5)

    shelf.looked = look
    async with planes(shelf) as pair:
        connection = await pair.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.fetch, wanted(), Taken())
            await until(blocked.is_set)
            nursery.cancel_scope.cancel()
        may_go.set()
        await until(lambda: connection.idle and shelf.open == 0)
        assert pair.alice.bytes_sent == 2 * CHUNK_BYTES


async def test_a_sink_that_raises_ends_its_fetch_alone(shelf: Shelf) -> None:
    def refuse(piece: Piece) -> None:
        if piece.number == 2:
            raise VerificationError("not the bytes that were promised")
        piece.release()

    async with planes(shelf) as pair:
        connection = await pair.connect()
        taken = Taken()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.fetch, wanted(), taken)
            with pytest.raises(VerificationError):
                await connection.fetch(wanted(), refuse)
        assert taken.chunks == CHUNKS
        await until(lambda: connection.idle)
        assert pair.bob._buffers.left == BULK_BUFFERS_MAX


async def test_a_peer_that_is_forgotten_is_cut_off_at_once_on_both_sides(shelf: Shelf) -> None:
    async with planes(shelf) as pair:
        for forgetting, forgotten in ((pair.alice, BOB), (pair.bob, ALICE)):
            connection = await pair.connect()
            pair.alice.offer(BOB, {"random": b"r" * 32, "cipher": AES_256_GCM})
            async with trio.open_nursery() as nursery:

                def forget(piece: Piece) -> None:
                    piece.release()
                    trio.from_thread.run_sync(forgetting.forget, forgotten)

                async def fetch(sink: Callable[[Piece], None] = forget) -> None:
                    with pytest.raises(PeerGoneError):
                        await connection.fetch(wanted(0, 6), sink)

                nursery.start_soon(fetch)
            with pytest.raises(PeerGoneError):
                await connection.fetch(wanted(), Taken())
            assert not connection.usable
            await until(lambda: not pair.alice.peers() and not pair.bob.peers())
        assert len(pair.alice._tickets) == 1  # only that of the second round, which Bob forgot
        await (await pair.connect()).fetch(wanted(), Taken())


async def test_closing_a_plane_in_the_middle_of_everything_leaves_no_thread(shelf: Shelf) -> None:
    before = threading.active_count()
    with trio.fail_after(5):
        async with planes(shelf) as pair:
            connection = await pair.connect()
            shelf.looked = lambda: time.sleep(0.05)
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(connection.fetch, wanted(), Taken())
                await until(lambda: pair.bob.bytes_received > 0)
                nursery.cancel_scope.cancel()
    assert shelf.open == 0
    # trio keeps threads for later: those that are left are of that kind, and are idle.
    assert all("work" not in thread.name for thread in threading.enumerate())
    assert threading.active_count() <= before + 4


# --- how a connection comes about -----------------------------------------------------------------


async def test_a_provider_that_cannot_be_dialled_dials_back(shelf: Shelf) -> None:
    async with planes(shelf, bob_listens=True) as pair:
        pair.alice_may_be_dialled = False
        connection = await pair.connect()
        taken = Taken()
        await connection.fetch(wanted(), taken)
        assert taken.chunks == CHUNKS
        assert pair.asked == ["bulk", "bulk back"]
        assert await pair.connect() is connection
        assert not len(pair.bob._tickets)
        assert not len(pair.alice._tickets)


async def test_dead_addresses_are_passed_over(shelf: Shelf) -> None:
    async with planes(shelf) as pair:
        connection = await pair.bob.connect(ALICE, pair.ask, ["127.0.0.2", "127.0.0.1"])
        await connection.fetch(wanted(), Taken())


async def test_of_many_addresses_the_first_that_answers_is_taken_and_the_others_left(
    shelf: Shelf,
) -> None:
    async with planes(shelf) as pair:
        # The first accepts connections and never says a word.
        async with (await trio.open_tcp_listeners(pair.alice.port, host="127.0.0.3"))[0]:
            hosts = ["127.0.0.3", *["127.0.0.2"] * 3, "127.0.0.1", "127.0.0.1"]
            with trio.fail_after(2):
                connection = await pair.bob.connect(ALICE, pair.ask, hosts)
                await connection.fetch(wanted(), Taken())
        assert len(pair.alice._connections) == len(pair.bob._connections) == 1


class _Said:
    """A connection that was greeted, as far as a dial looks at it."""

    def __init__(self) -> None:
        self.stream = self.socket = self
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


async def test_of_two_dials_that_are_answered_in_one_moment_one_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bulk_dials, "BULK_DIAL_STAGGER_S", 0)
    answered, greeted = trio.Event(), {"one": _Said(), "two": _Said()}

    async def dial(host: str) -> Any:
        await answered.wait()
        return greeted[host]

    dials = bulk_dials.Dials(dial)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dials.run, list(greeted))
        await wait_all_tasks_blocked(0.01)
        answered.set()
    closed = [said for said in greeted.values() if said.is_closed]
    assert len(closed) == 1
    kept: Any = dials.greeted
    assert kept in greeted.values()
    assert kept not in closed


async def test_when_neither_can_dial_the_other_it_is_said(shelf: Shelf) -> None:
    async with planes(shelf) as pair:
        pair.alice_may_be_dialled = False
        with pytest.raises(PeerUnreachableError):
            await pair.connect()
        assert pair.asked == ["bulk"]  # nobody could dial back: Bob has no port


async def test_when_the_dial_back_fails_too_it_is_said_and_nothing_is_left(shelf: Shelf) -> None:
    async with planes(shelf, bob_listens=True) as pair:
        pair.alice_may_be_dialled = False
        pair.bob.port = 1  # nobody listens there
        with pytest.raises(PeerUnreachableError, match="neither node can dial the other"):
            await pair.connect()
        assert not pair.bob._dialled_back
        assert not len(pair.bob._tickets)
        assert not pair.bob._connecting


async def test_a_connection_whose_keys_are_nearly_used_up_is_replaced_while_it_finishes(
    shelf: Shelf,
) -> None:
    async with planes(shelf) as pair:
        first = await pair.connect()
        inside, may_leave = threading.Event(), threading.Event()

        def sink(piece: Piece) -> None:
            inside.set()
            assert may_leave.wait(5)
            piece.release()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.fetch, wanted(), sink)
            await until(inside.is_set)
            first._sealer._count.frames = BULK_KEY_FRAMES_MAX * 7 // 8
            assert not first.usable
            second = await pair.connect()
            assert second is not first
            await second.fetch(wanted(), Taken())
            may_leave.set()


async def test_of_too_many_connections_of_one_peer_the_oldest_ends(shelf: Shelf) -> None:
    async with planes(shelf) as pair:
        made = []
        for _ in range(BULK_CONNECTIONS_PER_PEER_MAX + 1):
            made.append(await pair.connect())
            made[-1]._opener._count.frames = BULK_KEY_FRAMES_MAX * 7 // 8
        await made[0].closed.wait()
        assert [one.closed.is_set() for one in made] == [True] + [False] * (len(made) - 1)


async def test_with_as_many_connections_as_there_may_be_no_ticket_is_given(shelf: Shelf) -> None:
    async with planes(shelf) as pair:
        connection = await pair.connect()
        kept = pair.alice._connections
        pair.alice._connections = kept * BULK_CONNECTIONS_MAX
        with pytest.raises(PeerBusyError):
            pair.alice.offer(BOB, {"random": b"r" * 32, "cipher": AES_256_GCM})
        pair.alice._connections = kept
        await connection.fetch(wanted(), Taken())


def test_aes_is_preferred_where_the_computer_has_it(tmp_path: Path) -> None:
    cpu_info = tmp_path / "cpuinfo"
    assert preferred_cipher(cpu_info) == AES_256_GCM  # macOS has no such file
    cpu_info.write_text("flags\t\t: fpu aes avx\n")
    assert preferred_cipher(cpu_info) == AES_256_GCM
    cpu_info.write_text("Features\t: fp asimd evtstrm crc32\n")
    assert preferred_cipher(cpu_info) == CHACHA20_POLY1305


async def test_a_node_without_aes_is_served_with_the_other_cipher(shelf: Shelf) -> None:
    async with planes(shelf) as pair:
        pair.bob._cipher = CHACHA20_POLY1305
        taken = Taken()
        await (await pair.connect()).fetch(wanted(), taken)
        assert taken.chunks == CHUNKS


# --- tickets, on a clock of their own -------------------------------------------------------------


def test_a_ticket_is_good_once_and_for_ten_seconds() -> None:
    now = 0.0
    tickets = Tickets(lambda: now)
    used, late = fresh(number=1), fresh(number=2)
    tickets.add(used)
    tickets.add(late)
    assert tickets.find(used.id) is used
    assert tickets.consume(used)
    assert not tickets.consume(used)
    assert tickets.find(used.id) is None
    now = BULK_TICKET_S_MAX
    assert tickets.find(late.id) is None
    assert not tickets.consume(late)
    tickets.add(fresh(number=3))
    assert len(tickets) == 1  # what had expired is gone


def test_a_peer_that_asks_for_many_tickets_loses_its_own_oldest() -> None:
    tickets = Tickets(lambda: 0.0)
    other = fresh(peer=ALICE, number=99)
    tickets.add(other)
    made = [fresh(number=number) for number in range(BULK_TICKETS_PER_PEER_MAX + 1)]
    for ticket in made:
        tickets.add(ticket)
    assert tickets.find(made[0].id) is None
    assert all(tickets.find(ticket.id) is ticket for ticket in [*made[1:], other])
    tickets.forget_peer(BOB)
    assert len(tickets) == 1


def test_a_ticket_does_not_take_the_place_of_one_with_the_same_id() -> None:
    tickets = Tickets(lambda: 0.0)
    first = fresh()
    tickets.add(first)
    with pytest.raises(ProtocolError):
        tickets.add(fresh(peer=ALICE))
    assert tickets.find(first.id) is first


def test_tickets_are_bounded_in_all_and_nobody_elses_is_taken() -> None:
    tickets = Tickets(lambda: 0.0)
    for number in range(BULK_TICKETS_MAX):
        tickets.add(fresh(NodeId.of_raw(number.to_bytes(32, "big")), number))
    with pytest.raises(PeerBusyError):
        tickets.add(fresh(number=BULK_TICKETS_MAX))
    assert tickets.find(fresh(number=0).id) is not None


def test_a_ticket_does_not_show_what_its_keys_are_made_of() -> None:
    assert "mmm" not in repr(fresh())
    assert b"m".hex() * 8 not in repr(fresh())
