"""Batches on bulk connections: many small blobs in few frames, and servers and askers that lie."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio

from kachery_p2p.errors import (
    PeerError,
    PeerGoneError,
    PeerRefusedError,
    PeerTimeoutError,
    ProtocolError,
    VerificationError,
)
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    BATCH_CONTENTS_MAX,
    BATCH_PIECES_BYTES_MAX,
    BULK_BUFFERS_MAX,
    BULK_SERVED_BUFFERS_MAX,
    CHUNK_BYTES,
)
from kachery_p2p.network.bulk import BulkPlane, open_bulk_plane
from kachery_p2p.network.bulk_asking import BulkConnection
from kachery_p2p.network.bulk_greeting import Greeted, greet, welcome
from kachery_p2p.network.bulk_serving import Asked, ServedBatch
from kachery_p2p.network.bulk_tickets import Ticket, Tickets
from kachery_p2p.wire.batches import (
    BYTES,
    LARGE,
    PIECE_BYTES,
    REFUSED,
    BulkBatch,
    Told,
    write_piece,
)
from kachery_p2p.wire.bulk_messages import DATA, END, FAILURE, REQUEST, encode_failure
from kachery_p2p.wire.sealed import AES_256_GCM, HEADER_BYTES, FrameHeader

ALICE = NodeId.of_raw(b"a" * 32)
BOB = NodeId.of_raw(b"b" * 32)
LOOPBACK = ("127.0.0.1", 0)
STALL_S = 0.5
ANSWER_S = 5.0
CHANNEL = "0f" * 32


def batch_of(count: int, bytes_max: int = 4 * CHUNK_BYTES) -> BulkBatch:
    names = tuple(number.to_bytes(20, "big") for number in range(count))
    return BulkBatch(CHANNEL, names, bytes_max)


class Shelf(ServedBatch):
    """Answers with the same outcomes whatever it is asked for, `per_frame` of them in each."""

    def __init__(self, told: Sequence[tuple[int, bytes]], per_frame: int = 1_000) -> None:
        self._told = list(enumerate(told))
        self._per_frame = per_frame
        self.is_revoked = False
        self.closed = 0

    @property
    def finished(self) -> bool:
        return not self._told

    def fill(self, payload: memoryview) -> int:
        assert len(payload) == BATCH_PIECES_BYTES_MAX
        at = 0
        for _ in range(min(self._per_frame, len(self._told))):
            place, (outcome, data) = self._told.pop(0)
            write_piece(place, outcome, len(data), payload[at:])
            at += PIECE_BYTES
            payload[at : at + len(data)] = data
            at += len(data)
        return at

    def revoked(self) -> bool:
        return self.is_revoked

    def close(self) -> None:
        self.closed += 1


@asynccontextmanager
async def alice_serves(shelf: Shelf) -> AsyncIterator[BulkPlane]:
    async def serve(peer: NodeId, wanted: Asked) -> ServedBatch:
        assert peer == BOB
        assert isinstance(wanted, BulkBatch)
        return shelf

    async with open_bulk_plane(ALICE, [LOOPBACK], serve, stall_s=STALL_S) as alice:
        yield alice


@asynccontextmanager
async def bob_asks() -> AsyncIterator[BulkPlane]:
    async def serve(peer: NodeId, wanted: Asked) -> ServedBatch:
        raise AssertionError("nobody asks Bob")

    async with open_bulk_plane(BOB, [], serve, stall_s=STALL_S) as bob:
        yield bob


async def connect(bob: BulkPlane, alice: BulkPlane) -> BulkConnection:
    async def ask(op: str, body: dict[str, Any]) -> dict[str, Any]:
        return alice.offer(BOB, body)

    return await bob.connect(ALICE, ask, ["127.0.0.1"])


class Taken:
    """A sink that keeps what it was told, frame by frame."""

    def __init__(self) -> None:
        self.frames: list[list[tuple[int, int, bytes]]] = []

    def __call__(self, told: list[Told]) -> None:
        self.frames.append([(one.place, one.outcome, bytes(one.data)) for one in told])

    @property
    def all(self) -> list[tuple[int, int, bytes]]:
        return [one for frame in self.frames for one in frame]


# --- honest ones ----------------------------------------------------------------------------------


async def test_many_blobs_come_in_a_few_frames_each_with_its_outcome() -> None:
    told = [(BYTES, bytes([n]) * 4096) for n in range(200)]
    told[7], told[9], told[11] = (REFUSED, b""), (LARGE, b""), (BYTES, b"")
    shelf = Shelf(told, per_frame=100)
    async with alice_serves(shelf) as alice, bob_asks() as bob:
        taken = Taken()
        await (await connect(bob, alice)).fetch_batch(batch_of(200), taken)
        assert [len(frame) for frame in taken.frames] == [100, 100]
        assert taken.all == [(n, *one) for n, one in enumerate(told)]
        assert bob._buffers.left == BULK_BUFFERS_MAX
        assert alice._served_buffers.left == BULK_SERVED_BUFFERS_MAX
    assert shelf.closed == 1


async def test_an_answer_may_end_early_and_the_connection_is_used_on() -> None:
    async with alice_serves(Shelf([(BYTES, b"a")] * 3)) as alice, bob_asks() as bob:
        connection, taken = await connect(bob, alice), Taken()
        await connection.fetch_batch(batch_of(8), taken)
        assert len(taken.all) == 3
        assert connection.usable
        assert await connect(bob, alice) is connection


async def test_a_removal_between_two_frames_ends_the_answer() -> None:
    shelf = Shelf([(BYTES, b"a" * 1000)] * 1000, per_frame=1)
    async with alice_serves(shelf) as alice, bob_asks() as bob:
        taken = Taken()

        def take(told: list[Told]) -> None:
            taken(told)
            shelf.is_revoked = True

        with pytest.raises(PeerRefusedError):
            await (await connect(bob, alice)).fetch_batch(batch_of(1000), take)
        assert len(taken.all) < 1000


async def test_a_sink_that_raises_ends_its_batch_and_no_other() -> None:
    async with alice_serves(Shelf([(BYTES, b"a")] * 10, per_frame=2)) as alice, bob_asks() as bob:
        connection = await connect(bob, alice)

        def refuse(told: list[Told]) -> None:
            raise VerificationError("sent other bytes")

        with pytest.raises(VerificationError):
            await connection.fetch_batch(batch_of(10), refuse)
        assert connection.usable
        with trio.fail_after(ANSWER_S):  # what was on its way is dropped
            while not connection.idle or bob._buffers.left < BULK_BUFFERS_MAX:  # noqa: ASYNC110
                await trio.sleep(0.01)


# --- a server that lies ---------------------------------------------------------------------------


class HostileEnd:
    """One end of a bulk connection, played by hand: it has the keys."""

    def __init__(self, greeted: Greeted) -> None:
        self.stream = greeted.stream
        self._sealer = greeted.sealer
        self._opener = greeted.opener

    async def hear(self) -> FrameHeader:
        header = await self.receive_all(HEADER_BYTES)
        found = FrameHeader.decode(header)
        self._opener.open(header, await self.receive_all(found.sealed_length), 0.0)
        return found

    async def receive_all(self, count: int) -> bytes:
        received = bytearray()
        with trio.fail_after(ANSWER_S):
            while len(received) < count:
                more = await self.stream.receive_some(count - len(received))
                assert more
                received += more
        return bytes(received)

    async def send(self, kind: int, payload: bytes = b"", request: int = 1) -> None:
        await self.stream.send_all(self._sealer.seal(kind, 0, request, payload, 0.0))


Act = Callable[[HostileEnd], Awaitable[None]]


def piece(place: int, data: bytes = b"x", outcome: int = BYTES) -> bytes:
    head = memoryview(bytearray(PIECE_BYTES))
    write_piece(place, outcome, len(data), head)
    return bytes(head) + data


async def batch_from(act: Act, error: type[PeerError], match: str | None = None) -> int:
    """Ask a hostile server for three blobs of one MiB in all: how many reached the sink."""
    taken, tickets = Taken(), Tickets(trio.current_time)

    async def ask(op: str, body: dict[str, Any]) -> dict[str, Any]:
        ticket = Ticket(os.urandom(16), BOB, False, body["cipher"], b"h" * 32, body["random"])
        tickets.add(ticket)
        offer = {"ticket": ticket.id, "random": ticket.mine, "cipher": ticket.cipher}
        return {**offer, "port": listener.socket.getsockname()[1]}

    async def play() -> None:
        async with await listener.accept() as stream:
            end = HostileEnd(await welcome(stream, ALICE, tickets))
            await end.hear()
            with suppress(trio.BrokenResourceError):
                await act(end)
            await trio.sleep_forever()

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, bob_asks() as bob, trio.open_nursery() as nursery:
        nursery.start_soon(play)
        connection = await bob.connect(ALICE, ask, ["127.0.0.1"])
        with trio.fail_after(ANSWER_S), pytest.raises(error, match=match):
            await connection.fetch_batch(batch_of(3, CHUNK_BYTES), taken)
        if error is not PeerRefusedError:
            await connection.closed.wait()
            assert not connection.usable
        assert bob._buffers.left == BULK_BUFFERS_MAX, "a buffer was lost"
        nursery.cancel_scope.cancel()
    return len(taken.all)


@pytest.mark.parametrize(
    ("payload", "match"),
    [
        (b"", "no piece"),
        (piece(0)[:7], "cut off"),
        (piece(0)[:-1], "longer than its frame"),
        (piece(1), "not the next one due"),
        (piece(0) + piece(0), "not the next one due"),
        (b"".join(piece(n) for n in range(4)), "not the next one due"),
        (piece(0, bytes(CHUNK_BYTES)) + piece(1), "more bytes"),
        (b"\0\0\0\0\xff\xff\xff\xff" + b"x", "no small blob has"),
        (b"\0\0\1\0\0\0\0\1x", "no small blob has"),
        (b"\0\0\4\0\0\0\0\0", "no small blob has"),
        (b"\0\0\0\1\0\0\0\0", "no small blob has"),
    ],
    ids=[
        "nothing",
        "half a header",
        "half a piece",
        "another one",
        "one twice",
        "more than were asked for",
        "more bytes than were asked for",
        "the largest length",
        "a refusal with bytes",
        "no outcome",
        "a reserved byte",
    ],
)
async def test_a_frame_that_is_not_what_is_due_ends_the_connection(
    payload: bytes, match: str
) -> None:
    async def act(end: HostileEnd) -> None:
        await end.send(DATA, payload)

    assert await batch_from(act, ProtocolError, match) == 0


async def test_an_answer_that_never_ends_is_cut_at_the_first_piece_too_many() -> None:
    async def act(end: HostileEnd) -> None:
        for place in range(60_000):
            await end.send(DATA, piece(place))

    assert await batch_from(act, ProtocolError, "not the next one due") == 3


async def test_an_end_before_anything_came_is_no_answer() -> None:
    async def act(end: HostileEnd) -> None:
        await end.send(END)

    assert await batch_from(act, ProtocolError, "before all") == 0


async def test_an_answer_that_stops_is_a_timeout_and_one_that_is_cut_is_none() -> None:
    async def stop(end: HostileEnd) -> None:
        await end.send(DATA, piece(0))

    async def cut(end: HostileEnd) -> None:
        await end.send(DATA, piece(0))
        await end.stream.aclose()

    assert await batch_from(stop, PeerTimeoutError) == 1
    assert await batch_from(cut, PeerGoneError) == 1


async def test_a_failure_in_the_middle_ends_the_batch() -> None:
    async def act(end: HostileEnd) -> None:
        await end.send(DATA, piece(0))
        await end.send(FAILURE, encode_failure("refused"))

    assert await batch_from(act, PeerRefusedError) == 1


# --- an asker that misbehaves ---------------------------------------------------------------------


@asynccontextmanager
async def as_asker(alice: BulkPlane) -> AsyncIterator[HostileEnd]:
    mine = os.urandom(32)
    offer = alice.offer(BOB, {"random": mine, "cipher": AES_256_GCM})
    ticket = Ticket(offer["ticket"], ALICE, True, offer["cipher"], mine, offer["random"])
    async with await trio.open_tcp_stream("127.0.0.1", alice.port) as stream:
        yield HostileEnd(await greet(stream, BOB, ticket))


def names(count: int) -> bytes:
    return b"".join(number.to_bytes(20, "big") for number in range(count))


HEAD = b"\2\0\0\0" + bytes(32)
BOUND = CHUNK_BYTES.to_bytes(4, "big")


@pytest.mark.parametrize(
    "payload",
    [
        HEAD + BOUND,
        HEAD + BOUND + names(BATCH_CONTENTS_MAX + 1),
        HEAD + BOUND + names(3_000),
        HEAD + BOUND + names(2)[:-1],
        HEAD + bytes(4) + names(1),
        HEAD + b"\xff\xff\xff\xff" + names(1),
        HEAD[:-3],
        b"\2",
        b"\2\0\0\1" + HEAD[4:] + BOUND + names(1),
    ],
    ids=[
        "nothing",
        "one too many",
        "3,000",
        "half a content",
        "no bytes",
        "4 GiB",
        "half a head",
        "its kind",
        "reserved",
    ],
)
async def test_a_question_that_breaks_the_protocol_ends_that_connection_and_no_other(
    payload: bytes,
) -> None:
    shelf = Shelf([(BYTES, b"a")])
    async with alice_serves(shelf) as alice, bob_asks() as bob:
        honest = await connect(bob, alice)
        async with as_asker(alice) as asker:
            await asker.send(REQUEST, payload)
            with trio.fail_after(ANSWER_S), suppress(trio.BrokenResourceError):
                while await asker.stream.receive_some(1 << 16):
                    pass
        taken = Taken()
        await honest.fetch_batch(batch_of(1), taken)
        assert taken.all == [(0, BYTES, b"a")]


async def test_a_million_contents_are_cut_at_the_header() -> None:
    async with alice_serves(Shelf([])) as alice, as_asker(alice) as asker:
        header = bytes((REQUEST, 0, 0, 0)) + (1).to_bytes(4, "big")
        await asker.stream.send_all(header + (20_000_000).to_bytes(4, "big"))
        with trio.fail_after(ANSWER_S), suppress(trio.BrokenResourceError):
            assert not await asker.stream.receive_some(1)


async def test_who_leaves_in_the_middle_leaves_nothing_open() -> None:
    shelf = Shelf([(BYTES, bytes(CHUNK_BYTES))] * 64, per_frame=1)
    async with alice_serves(shelf) as alice:
        async with as_asker(alice) as asker:
            await asker.send(REQUEST, batch_of(64).encode())
            await asker.receive_all(CHUNK_BYTES)
        with trio.fail_after(ANSWER_S):
            while not shelf.closed or alice._served_buffers.left < BULK_SERVED_BUFFERS_MAX:  # noqa: ASYNC110
                await trio.sleep(0.01)
    assert shelf.closed == 1
