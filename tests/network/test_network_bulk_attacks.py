"""Attacks on the bulk plane: strangers at the port, servers that lie, askers that flood."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from kachery_p2p.errors import (
    PeerError,
    PeerGoneError,
    PeerTimeoutError,
    PeerUnreachableError,
    ProtocolError,
)
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    BULK_BUFFERS_MAX,
    BULK_HELLO_BYTES_MAX,
    BULK_REQUESTS_MAX,
    BULK_SERVED_BUFFERS_MAX,
    CHUNK_BYTES,
    HELLO_S_MAX,
    UNPROVEN_CONNECTIONS_PER_IP_MAX,
)
from kachery_p2p.network import bulk, bulk_asking, bulk_serving
from kachery_p2p.network.bulk import BulkPlane, open_bulk_plane
from kachery_p2p.network.bulk_asking import BulkConnection
from kachery_p2p.network.bulk_buffers import Piece
from kachery_p2p.network.bulk_greeting import Greeted, greet, welcome
from kachery_p2p.network.bulk_serving import Asked
from kachery_p2p.network.bulk_tickets import Ticket, Tickets
from kachery_p2p.wire.bulk_messages import (
    CANCEL,
    DATA,
    END,
    FAILURE,
    HELLO,
    PIECE_HEADER_BYTES,
    REQUEST,
    BulkRange,
    encode_failure,
    write_piece_header,
)
from kachery_p2p.wire.bulk_messages import encode_hello as encode_hello_payload
from kachery_p2p.wire.sealed import (
    AES_256_GCM,
    HEADER_BYTES,
    TAG_BYTES,
    FrameHeader,
    Sealer,
    encode_hello,
)

ALICE = NodeId.of_raw(b"a" * 32)
BOB = NodeId.of_raw(b"b" * 32)
LOOPBACK = ("127.0.0.1", 0)
STALL_S = 0.5
ANSWER_S = 5.0


class ServedFile:
    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self.descriptor).st_size

    def revoked(self) -> bool:
        return False

    def close(self) -> None:
        os.close(self.descriptor)


def wanted(first: int = 0, count: int = 2) -> BulkRange:
    return BulkRange("0f" * 32, b"c" * 20, b"r" * 32, first, count)


@asynccontextmanager
async def alice_serves(path: Path, chunks: int = 3) -> AsyncIterator[BulkPlane]:
    """A node with a file of some chunks for everybody who has a ticket."""
    await trio.Path(path).write_bytes(os.urandom(chunks * CHUNK_BYTES))

    async def serve(peer: NodeId, wanted: Asked) -> ServedFile:
        return ServedFile(path)

    async with open_bulk_plane(ALICE, [LOOPBACK], serve, stall_s=STALL_S) as alice:
        yield alice


@asynccontextmanager
async def bob_asks() -> AsyncIterator[BulkPlane]:
    async def serve(peer: NodeId, wanted: Asked) -> ServedFile:
        raise AssertionError("nobody asks Bob")

    async with open_bulk_plane(BOB, [], serve, stall_s=STALL_S) as bob:
        yield bob


async def connect(bob: BulkPlane, alice: BulkPlane) -> BulkConnection:
    async def ask(op: str, body: dict[str, Any]) -> dict[str, Any]:
        return alice.offer(BOB, body)

    return await bob.connect(ALICE, ask, ["127.0.0.1"])


async def fetch_all(connection: BulkConnection, chunks: int = 3) -> list[bytes]:
    taken: list[bytes] = []

    def take(piece: Piece) -> None:
        taken.append(bytes(piece.data))
        piece.release()

    await connection.fetch(wanted(0, chunks), take)
    return taken


def ticket_from(alice: BulkPlane) -> Ticket:
    """A ticket that Alice gave to Bob, as Bob keeps it."""
    mine = os.urandom(32)
    offer = alice.offer(BOB, {"random": mine, "cipher": AES_256_GCM})
    return Ticket(offer["ticket"], ALICE, True, offer["cipher"], mine, offer["random"])


@asynccontextmanager
async def dial(alice: BulkPlane) -> AsyncIterator[trio.SocketStream]:
    async with await trio.open_tcp_stream("127.0.0.1", alice.port) as stream:
        yield stream


async def is_turned_out(stream: trio.SocketStream, within_s: float = ANSWER_S) -> bool:
    """True if the other side ends the connection without a word."""
    with trio.fail_after(within_s):
        try:
            return not await stream.receive_some(1)
        except trio.BrokenResourceError:
            return True


# --- strangers ------------------------------------------------------------------------------------


@contextmanager
def many_files() -> Iterator[None]:
    """As many descriptors as a thousand sockets need, both ends being ours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def within_two_seconds() -> Iterator[None]:
    """Seconds of this process: others may keep the computer busy."""
    began = time.process_time()
    with trio.fail_after(20):
        yield
    assert time.process_time() - began < 2


async def test_a_thousand_silent_sockets_keep_no_honest_peer_out_and_cost_little(
    tmp_path: Path,
) -> None:
    with many_files(), ExitStack() as sockets:
        async with alice_serves(tmp_path / "file") as alice, bob_asks() as bob:
            before = psutil.Process().memory_info().rss
            made = [sockets.enter_context(socket.socket()) for _ in range(1000)]
            for one in made:
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", alice.port))
            with within_two_seconds():
                connection = await connect(bob, alice)
            with trio.fail_after(ANSWER_S):
                while len(alice._door) > UNPROVEN_CONNECTIONS_PER_IP_MAX:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            await wait_all_tasks_blocked(0.05)
            # The other ends of the sockets are in this process too.
            assert psutil.Process().memory_info().rss - before < 16 << 20
            assert len(alice._door) <= UNPROVEN_CONNECTIONS_PER_IP_MAX
            kept = [one for one in made if not has_ended(one)]
            assert len(kept) <= UNPROVEN_CONNECTIONS_PER_IP_MAX
            assert len(await fetch_all(connection)) == 3


def has_ended(one: socket.socket) -> bool:
    """True if the other side has closed it."""
    try:
        return not one.recv(1)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


async def test_sockets_that_trickle_keep_no_honest_peer_out(tmp_path: Path) -> None:
    async with alice_serves(tmp_path / "file") as alice, bob_asks() as bob:

        async def trickle() -> None:
            async with dial(alice) as stream:
                with suppress(trio.BrokenResourceError):
                    for byte in encode_hello(b"x" * 16) + bytes(100):
                        await stream.send_all(bytes((byte,)))
                        await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(trickle)
            with within_two_seconds():
                assert len(await fetch_all(await connect(bob, alice))) == 3
            nursery.cancel_scope.cancel()


class _Talker:
    """A stranger who says all that it may; counts what the other side takes of it."""

    def __init__(self, said: bytes) -> None:
        self._said = said
        self.taken = 0

    async def receive_some(self, bytes_max: int) -> bytes:
        await trio.lowlevel.checkpoint()
        self.taken += bytes_max
        more, self._said = self._said[:bytes_max], self._said[bytes_max:]
        return more

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()


async def test_a_stranger_makes_us_hold_less_than_128_bytes() -> None:
    tickets = Tickets(lambda: 0.0)
    ticket = Ticket(b"i" * 16, BOB, False, AES_256_GCM, b"m" * 32, b"t" * 32)
    tickets.add(ticket)
    key, _ = ticket.as_listener(ALICE).keys()
    longest = encode_hello_payload() + bytes(BULK_HELLO_BYTES_MAX - 4)
    hello = Sealer(key, AES_256_GCM, time.monotonic()).seal(HELLO, 0, 0, longest, time.monotonic())
    talker = _Talker(encode_hello(ticket.id) + hello + bytes(1 << 20))
    await welcome(talker, ALICE, tickets)  # type: ignore[arg-type]
    assert talker.taken <= 128


async def test_a_stranger_is_turned_out_in_time_however_slowly_it_talks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert HELLO_S_MAX == 5.0
    monkeypatch.setattr(bulk, "HELLO_S_MAX", 0.3)
    async with alice_serves(tmp_path / "file") as alice:
        ticket = ticket_from(alice)
        for beginning in (b"", encode_hello(ticket.id)[:10], encode_hello(ticket.id)):
            async with dial(alice) as stream:
                if beginning:
                    await stream.send_all(beginning)
                assert await is_turned_out(stream, 2)
        assert len(alice._tickets) == 1, "who only knows a ticket's id has used it up"
        assert not len(alice._door)


@pytest.mark.parametrize(
    "first_bytes",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x13/multistream/1.0.0\n/noise\n",
        encode_hello(b"x" * 16),
        bytes(24),
        os.urandom(4096),
    ],
    ids=["http", "libp2p", "unknown ticket", "zeros", "noise"],
)
async def test_who_shows_no_ticket_is_turned_out_without_a_word(
    tmp_path: Path, first_bytes: bytes
) -> None:
    async with alice_serves(tmp_path / "file") as alice:
        ticket_from(alice)
        async with dial(alice) as stream:
            await stream.send_all(first_bytes)
            assert await is_turned_out(stream)


async def test_a_stolen_ticket_is_worth_nothing_without_its_keys_and_is_not_spoilt(
    tmp_path: Path,
) -> None:
    async with alice_serves(tmp_path / "file") as alice:
        ticket = ticket_from(alice)
        for guess in (b"x" * 32, bytes(32)):
            async with dial(alice) as stream:
                with pytest.raises(PeerGoneError):
                    await greet(stream, BOB, ticket._replace(mine=guess))
        # Another node that knows everything but is not Bob: the ids are in the keys.
        async with dial(alice) as stream:
            with pytest.raises(PeerGoneError):
                await greet(stream, NodeId.of_raw(b"m" * 32), ticket)
        async with dial(alice) as stream:
            await greet(stream, BOB, ticket)


@pytest.mark.parametrize("length", [65, 1 << 20, (1 << 20) + (1 << 16) + 1, 0xFFFFFFFF])
async def test_a_hello_that_announces_much_is_cut_at_its_header(
    tmp_path: Path, length: int
) -> None:
    async with alice_serves(tmp_path / "file") as alice:
        ticket = ticket_from(alice)
        header = bytes((HELLO, 0, 0, 0)) + bytes(4) + length.to_bytes(4, "big")
        async with dial(alice) as stream:
            await stream.send_all(encode_hello(ticket.id) + header)
            assert await is_turned_out(stream)


class _Recorder:
    """A stream that keeps what was sent."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.sent = b""

    async def send_all(self, data: bytes) -> None:
        self.sent += data
        await self._stream.send_all(data)

    async def receive_some(self, bytes_max: int) -> bytes:
        return bytes(await self._stream.receive_some(bytes_max))


async def test_a_recorded_hello_cannot_be_played_again(tmp_path: Path) -> None:
    async with (
        alice_serves(tmp_path / "file") as alice,
        dial(alice) as stream,
        dial(alice) as again,
    ):
        recorder = _Recorder(stream)
        await greet(recorder, BOB, ticket_from(alice))  # type: ignore[arg-type]
        await again.send_all(recorder.sent)
        assert await is_turned_out(again)


async def test_an_expired_ticket_opens_nothing(tmp_path: Path) -> None:
    async with alice_serves(tmp_path / "file") as alice:
        ticket = ticket_from(alice)
        alice._tickets._valid = {i: (t, 0.0) for i, (t, _) in alice._tickets._valid.items()}
        async with dial(alice) as stream:
            with pytest.raises(PeerGoneError):
                await greet(stream, BOB, ticket)


async def test_a_ticket_that_expires_during_the_hello_opens_nothing(tmp_path: Path) -> None:
    async with alice_serves(tmp_path / "file") as alice:
        ticket = ticket_from(alice)
        hello = encode_hello(ticket.id)
        async with dial(alice) as stream:
            await stream.send_all(hello)
            await wait_all_tasks_blocked(0.05)
            alice.forget(BOB)
            rest = _Skip(_Recorder(stream), len(hello))
            with pytest.raises((PeerGoneError, ProtocolError)):
                await greet(rest, BOB, ticket)  # type: ignore[arg-type]
            assert not alice.peers()


class _Skip:
    """A stream whose first bytes were sent already."""

    def __init__(self, stream: _Recorder, count: int) -> None:
        self._stream = stream
        self._count = count

    async def send_all(self, data: bytes) -> None:
        await self._stream.send_all(data[self._count :])

    async def receive_some(self, bytes_max: int) -> bytes:
        return await self._stream.receive_some(bytes_max)


async def test_a_ticket_of_another_peer_is_not_dialled_back(tmp_path: Path) -> None:
    async with alice_serves(tmp_path / "file") as alice:
        ticket = ticket_from(alice)
        other = NodeId.of_raw(b"m" * 32)
        with pytest.raises(PeerError):
            await alice.dial_back(other, {"ticket": ticket.id, "port": 1}, ["127.0.0.1"])
        with pytest.raises(PeerError):
            await alice.dial_back(BOB, {"ticket": b"x" * 16, "port": 1}, ["127.0.0.1"])
        with pytest.raises(PeerUnreachableError):
            await alice.dial_back(BOB, {"ticket": ticket.id, "port": 1}, ["127.0.0.1"])
        # Used up by the attempt: it must not be good for two directions.
        async with dial(alice) as stream:
            with pytest.raises(PeerGoneError):
                await greet(stream, BOB, ticket)


# --- a server that lies ---------------------------------------------------------------------------

Act = Callable[["HostileEnd"], Awaitable[None]]


class HostileEnd:
    """One end of a bulk connection, played by hand: it has the keys."""

    def __init__(self, greeted: Greeted) -> None:
        self.stream = greeted.stream
        self.sealer = greeted.sealer
        self.opener = greeted.opener

    async def hear(self) -> FrameHeader:
        header = await self.receive_all(HEADER_BYTES)
        found = FrameHeader.decode(header)
        self.opener.open(header, await self.receive_all(found.sealed_length), 0.0)
        return found

    async def receive_all(self, count: int) -> bytes:
        received = bytearray()
        with trio.fail_after(ANSWER_S):
            while len(received) < count:
                more = await self.stream.receive_some(count - len(received))
                assert more
                received += more
        return bytes(received)

    def sealed(self, kind: int, payload: bytes = b"", request: int = 1) -> bytes:
        return self.sealer.seal(kind, 0, request, payload, 0.0)

    async def send(self, kind: int, payload: bytes = b"", request: int = 1) -> None:
        await self.stream.send_all(self.sealed(kind, payload, request))


def piece(number: int, data: bytes = b"x" * CHUNK_BYTES, length: int | None = None) -> bytes:
    payload = bytearray(PIECE_HEADER_BYTES) + data
    write_piece_header(number, len(data) if length is None else length, memoryview(payload))
    return bytes(payload)


async def fetch_from(act: Act, error: type[PeerError], match: str | None = None) -> list[int]:
    """Ask a hostile server for two chunks: the numbers of those that reached the sink."""
    taken: list[int] = []

    def take(piece: Piece) -> None:
        taken.append(piece.number)
        assert bytes(piece.data) == b"x" * len(piece.data), "what did not open reached the sink"
        piece.release()

    tickets = Tickets(trio.current_time)

    async def ask(op: str, body: dict[str, Any]) -> dict[str, Any]:
        ticket = Ticket(os.urandom(16), BOB, False, body["cipher"], b"h" * 32, body["random"])
        tickets.add(ticket)
        port = listener.socket.getsockname()[1]
        offer = {"ticket": ticket.id, "random": ticket.mine, "cipher": ticket.cipher}
        return {**offer, "port": port}

    async def play() -> None:
        async with await listener.accept() as stream:
            hostile = HostileEnd(await welcome(stream, ALICE, tickets))
            await hostile.hear()
            with suppress(trio.BrokenResourceError):
                await act(hostile)
            await trio.sleep_forever()

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, bob_asks() as bob, trio.open_nursery() as nursery:
        nursery.start_soon(play)
        connection = await bob.connect(ALICE, ask, ["127.0.0.1"])
        with trio.fail_after(ANSWER_S), pytest.raises(error, match=match):
            await connection.fetch(wanted(), take)
        await connection.closed.wait()
        assert not connection.usable
        assert bob._buffers.left == BULK_BUFFERS_MAX, "a buffer was lost"
        nursery.cancel_scope.cancel()
    return taken


async def test_a_chunk_that_was_not_asked_for_ends_the_connection() -> None:
    async def act(hostile: HostileEnd) -> None:
        await hostile.send(DATA, piece(7))

    assert await fetch_from(act, ProtocolError, "not the next one due") == []


async def test_a_chunk_sent_twice_ends_the_connection() -> None:
    async def act(hostile: HostileEnd) -> None:
        await hostile.send(DATA, piece(0))
        await hostile.send(DATA, piece(0))

    assert await fetch_from(act, ProtocolError, "not the next one due") == [0]


async def test_chunks_out_of_order_end_the_connection() -> None:
    async def act(hostile: HostileEnd) -> None:
        await hostile.send(DATA, piece(1))

    assert await fetch_from(act, ProtocolError, "not the next one due") == []


async def test_an_answer_that_never_ends_is_cut_at_the_first_chunk_too_many() -> None:
    async def act(hostile: HostileEnd) -> None:
        with pytest.raises(trio.BrokenResourceError):
            for number in range(1000):
                await hostile.send(DATA, piece(number))

    assert await fetch_from(act, ProtocolError, "not the next one due") == [0, 1]


@pytest.mark.parametrize(
    "payload",
    [
        piece(0, b"x" * (CHUNK_BYTES + 1)),
        piece(0, b"x" * 10, length=11),
        piece(0, b"x" * 10, length=9),
        piece(0, b"x" * 10, length=0xFFFFFFFF),
        piece(0, b""),
        b"",
        b"\0" * 7,
    ],
    ids=["too long", "says more", "says less", "negative", "nothing", "empty", "cut"],
)
async def test_a_chunk_of_a_wrong_length_ends_the_connection(payload: bytes) -> None:
    async def act(hostile: HostileEnd) -> None:
        await hostile.send(DATA, payload)

    assert await fetch_from(act, ProtocolError) == []


@pytest.mark.parametrize("length", [(1 << 20) + (1 << 16) + 1, 1 << 31, 0xFFFFFFFF])
async def test_a_frame_that_announces_too_much_is_cut_at_its_header(length: int) -> None:
    async def act(hostile: HostileEnd) -> None:
        header = bytes((DATA, 0, 0, 0)) + (1).to_bytes(4, "big") + length.to_bytes(4, "big")
        await hostile.stream.send_all(header)

    assert await fetch_from(act, ProtocolError, "of at most") == []


@pytest.mark.parametrize("kind", [0, HELLO, REQUEST, CANCEL, 7, 255])
async def test_a_kind_of_frame_that_a_server_does_not_send_ends_the_connection(kind: int) -> None:
    async def act(hostile: HostileEnd) -> None:
        await hostile.send(kind)

    assert await fetch_from(act, ProtocolError, "does not send") == []


@pytest.mark.parametrize("request_number", [0, 2, 0xFFFFFFFF])
async def test_an_answer_to_no_request_ends_the_connection(request_number: int) -> None:
    async def act(hostile: HostileEnd) -> None:
        await hostile.send(DATA, piece(0), request_number)

    assert await fetch_from(act, ProtocolError) == []


async def test_an_end_before_all_chunks_is_no_end() -> None:
    async def act(hostile: HostileEnd) -> None:
        await hostile.send(DATA, piece(0))
        await hostile.send(END)

    assert await fetch_from(act, ProtocolError, "before all of its chunks") == [0]


async def test_a_failure_after_some_chunks_is_a_failure() -> None:
    async def act(hostile: HostileEnd) -> None:
        await hostile.send(DATA, piece(0))
        await hostile.send(FAILURE, encode_failure("failed", "\x1b[2J disk"))
        await hostile.send(DATA, piece(1))

    assert await fetch_from(act, PeerError, r"^failed: \?\[2J disk$") == [0]


@pytest.mark.parametrize("chunks", [0, 1, 2])
async def test_the_end_of_the_connection_is_not_the_end_of_an_answer(chunks: int) -> None:
    """Also after the last chunk: only END says that there was no more to say."""

    async def act(hostile: HostileEnd) -> None:
        for number in range(chunks):
            await hostile.send(DATA, piece(number))
        await hostile.stream.aclose()

    assert await fetch_from(act, PeerGoneError) == list(range(chunks))


@pytest.mark.parametrize("place", [HEADER_BYTES - 1, HEADER_BYTES, CHUNK_BYTES // 2, -1])
async def test_a_frame_that_is_cut_off_is_no_frame(place: int) -> None:
    async def act(hostile: HostileEnd) -> None:
        await hostile.stream.send_all(hostile.sealed(DATA, piece(0))[:place])
        await hostile.stream.aclose()

    assert await fetch_from(act, PeerGoneError) == []


@pytest.mark.parametrize("place", [1, 7, HEADER_BYTES + 3, HEADER_BYTES + CHUNK_BYTES, -1])
async def test_a_flipped_bit_reaches_no_sink_nor_does_what_the_cipher_left(place: int) -> None:
    async def act(hostile: HostileEnd) -> None:
        await hostile.send(DATA, piece(0))
        frame = bytearray(hostile.sealed(DATA, piece(1)))
        frame[place] ^= 1
        await hostile.stream.send_all(bytes(frame))

    # Place 7 makes it a frame of a request that there is not, before anything is opened.
    assert await fetch_from(act, ProtocolError) == [0]


async def test_frames_replayed_reordered_or_spliced_on_the_way_reach_no_sink() -> None:
    async def replay(hostile: HostileEnd) -> None:
        frame = hostile.sealed(DATA, piece(0))
        await hostile.stream.send_all(frame + frame)

    async def reorder(hostile: HostileEnd) -> None:
        first, second = hostile.sealed(DATA, piece(0)), hostile.sealed(DATA, piece(1))
        await hostile.stream.send_all(second + first)

    async def splice(hostile: HostileEnd) -> None:
        first, second = (hostile.sealed(DATA, piece(n, b"x" * 1000)) for n in (0, 1))
        await hostile.stream.send_all(first[:500] + second[500:])

    for act, taken in ((replay, [0]), (reorder, []), (splice, [])):
        assert await fetch_from(act, ProtocolError, "does not open") == taken


async def test_a_source_that_goes_silent_is_a_timeout() -> None:
    async def act(hostile: HostileEnd) -> None:
        await hostile.send(DATA, piece(0))

    assert await fetch_from(act, PeerTimeoutError, "nothing for") == [0]


async def test_a_source_that_sends_a_byte_at_a_time_is_a_timeout() -> None:
    async def act(hostile: HostileEnd) -> None:
        for byte in hostile.sealed(DATA, piece(0)):
            await hostile.stream.send_all(bytes((byte,)))
            await trio.sleep(STALL_S / 20)

    assert await fetch_from(act, PeerTimeoutError, "next to nothing") == []


# --- an asker that misbehaves ---------------------------------------------------------------------


@asynccontextmanager
async def as_asker(alice: BulkPlane) -> AsyncIterator[HostileEnd]:
    """The asking end of a bulk connection to Alice, played by hand."""
    async with dial(alice) as stream:
        yield HostileEnd(await greet(stream, BOB, ticket_from(alice)))


async def ends(stream: trio.SocketStream) -> None:
    """Read until the other side has ended the connection."""
    with trio.fail_after(ANSWER_S):
        try:
            while await stream.receive_some(1 << 20):
                pass
        except trio.BrokenResourceError:
            pass


@pytest.mark.parametrize("count", [BULK_REQUESTS_MAX, BULK_REQUESTS_MAX + 1])
async def test_a_request_more_than_are_taken_ends_that_connection_and_no_other(
    tmp_path: Path, count: int
) -> None:
    async with alice_serves(tmp_path / "file") as alice, bob_asks() as bob:
        honest = await connect(bob, alice)
        async with as_asker(alice) as asker:
            asked = wanted(0, 1).encode()
            requests = [asker.sealed(REQUEST, asked, number) for number in range(1, count + 1)]
            await asker.stream.send_all(b"".join(requests))
            if count > BULK_REQUESTS_MAX:
                await ends(asker.stream)
            else:
                await asker.receive_all(count * (CHUNK_BYTES + PIECE_HEADER_BYTES + 56))
        assert len(await fetch_all(honest)) == 3


async def test_a_flood_of_requests_is_read_no_faster_than_it_is_served(tmp_path: Path) -> None:
    async with alice_serves(tmp_path / "file") as alice, bob_asks() as bob:
        honest = await connect(bob, alice)
        async with as_asker(alice) as asker:
            with trio.fail_after(ANSWER_S), pytest.raises(trio.BrokenResourceError):
                for number in range(1, 1 << 20):
                    await asker.send(REQUEST, wanted().encode(), number)
        assert len(await fetch_all(honest)) == 3


async def test_who_never_reads_is_given_up_while_others_are_served(tmp_path: Path) -> None:
    chunks = 40  # more than the kernel's buffers hold on both ends
    async with alice_serves(tmp_path / "file", chunks) as alice, bob_asks() as bob:
        honest = await connect(bob, alice)
        async with as_asker(alice) as asker:
            await asker.send(REQUEST, wanted(0, chunks).encode())
            assert len(await fetch_all(honest)) == 3
            with trio.fail_after(ANSWER_S):
                while len(alice._connections) > 1:  # noqa: ASYNC110 (a thread ends it)
                    await trio.sleep(0.01)
            assert len(await fetch_all(honest)) == 3
        with trio.fail_after(ANSWER_S):
            while alice._served_buffers.left != BULK_SERVED_BUFFERS_MAX:  # noqa: ASYNC110
                await trio.sleep(0.01)


@pytest.mark.parametrize(
    "frames",
    [
        [(REQUEST, wanted().encode(), 1), (REQUEST, wanted().encode(), 1)],
        [(REQUEST, wanted().encode(), 5), (REQUEST, wanted().encode(), 4)],
        [(REQUEST, b"\2" + bytes(95), 1)],
        [(REQUEST, b"", 1)],
        [(REQUEST, wanted().encode() + b"\0", 1)],
        [(REQUEST, wanted().encode(), 0)],
        [(CANCEL, b"", 1)],
        [(REQUEST, wanted().encode(), 1), (CANCEL, b"", 1), (CANCEL, b"", 1)],
        [(CANCEL, b"x", 1)],
        [(DATA, piece(0), 1)],
        [(REQUEST, wanted().encode(), 1), (DATA, b"", 1)],
        [(HELLO, bytes(4), 1)],
        [(99, b"", 1)],
        [(REQUEST, wanted().encode(), 1), (99, b"", 1)],
    ],
    ids=[
        "a number twice",
        "numbers going down",
        "another kind of request",
        "an empty request",
        "a byte too many",
        "number zero",
        "a cancel of nothing",
        "a cancel too many",
        "a cancel with something in it",
        "data",
        "data for a request",
        "a second hello",
        "no kind",
        "no kind for a request",
    ],
)
async def test_an_asker_that_breaks_the_protocol_is_cut_off(
    tmp_path: Path, frames: list[tuple[int, bytes, int]]
) -> None:
    async with alice_serves(tmp_path / "file") as alice, as_asker(alice) as asker:
        for kind, payload, number in frames:
            with suppress(trio.BrokenResourceError):
                await asker.send(kind, payload, number)
        await ends(asker.stream)


@pytest.mark.parametrize("length", [(1 << 16) + 1, 1 << 20, 0xFFFFFFFF])
async def test_a_request_that_announces_much_is_cut_at_its_header(
    tmp_path: Path, length: int
) -> None:
    async with alice_serves(tmp_path / "file") as alice, as_asker(alice) as asker:
        header = bytes((REQUEST, 0, 0, 0)) + (1).to_bytes(4, "big") + length.to_bytes(4, "big")
        await asker.stream.send_all(header)
        await ends(asker.stream)


async def test_a_request_that_was_touched_is_not_answered(tmp_path: Path) -> None:
    async with alice_serves(tmp_path / "file") as alice, as_asker(alice) as asker:
        frame = bytearray(asker.sealed(REQUEST, wanted().encode()))
        frame[-TAG_BYTES - 1] ^= 1  # one chunk more
        await asker.stream.send_all(bytes(frame))
        await ends(asker.stream)
        assert not alice.bytes_sent


async def test_part_of_a_request_byte_after_byte_keeps_no_connection_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_serving, "STREAM_IDLE_S_MAX", 0.5)
    async with alice_serves(tmp_path / "file") as alice, as_asker(alice) as asker:
        with trio.fail_after(ANSWER_S), pytest.raises(trio.BrokenResourceError):
            for byte in asker.sealed(REQUEST, wanted().encode()) * 10:
                await asker.stream.send_all(bytes((byte,)))
                await trio.sleep(0.05)


async def test_a_connection_on_which_nothing_is_asked_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with alice_serves(tmp_path / "file") as alice, bob_asks() as bob:
        for room in (bulk_serving, bulk_asking):
            monkeypatch.setattr(room, "STREAM_IDLE_S_MAX", 0.3)
            connection = await connect(bob, alice)
            await fetch_all(connection)
            with trio.fail_after(ANSWER_S):
                await connection.closed.wait()
            monkeypatch.undo()
