"""What is sent without waiting for a turn of the loop: whole, in order, and within all bounds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.errors import PeerError, PeerGoneError, PeerRefusedError, PeerTimeoutError
from kachery_p2p.limits import PENDING_REQUESTS_MAX
from kachery_p2p.network.multiplexer import Multiplexer
from kachery_p2p.network.muxed_stream import PAYLOAD_BYTES_MAX, MuxedStream
from kachery_p2p.network.session import Handler, Session
from kachery_p2p.network.yamux import HEADER, WINDOW_BYTES_INITIAL
from tests.network.test_network_session import a_session, pong


class _Channel:
    """One side of a channel in memory."""

    def __init__(
        self,
        there: trio.MemorySendChannel[bytes],
        here: trio.MemoryReceiveChannel[bytes],
        written: list[bytes] | None = None,
    ) -> None:
        self._there, self._here = there, here
        self._unsent = b""
        self._written = [] if written is None else written

    async def read(self, n: int | None = None) -> bytes:
        return await self._here.receive()

    async def write(self, data: bytes) -> None:
        await self.flush()
        await self._there.send(data)

    def write_now(self, data: bytes) -> bool:
        assert not self._unsent
        try:
            self._there.send_nowait(data)
        except trio.WouldBlock:
            self._unsent = data
        self._written.append(data)
        return not self._unsent

    async def flush(self) -> None:
        unsent, self._unsent = self._unsent, b""
        if unsent:
            await self._there.send(unsent)


@asynccontextmanager
async def two_streams(
    room: int = 100, written: list[bytes] | None = None
) -> AsyncIterator[tuple[MuxedStream, MuxedStream]]:
    """A stream as both sides have it; what leaves the first without waiting is in `written`."""
    (to_b, at_b), (to_a, at_a) = trio.open_memory_channel(room), trio.open_memory_channel(100)
    opened: list[MuxedStream] = []

    def accept(stream: MuxedStream) -> bool:
        opened.append(stream)
        return True

    a = Multiplexer(_Channel(to_b, at_a, written), outgoing=True, accept=accept)
    b = Multiplexer(_Channel(to_a, at_b), outgoing=False, accept=accept)
    a.trusted = b.trusted = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.run)
        nursery.start_soon(b.run)
        mine = await a.open()
        await trio.testing.wait_all_tasks_blocked()
        yield mine, opened[0]
        nursery.cancel_scope.cancel()


async def received(stream: MuxedStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += await stream.receive(1 << 20)
    return data


async def test_bytes_sent_at_once_arrive_whole_and_in_order_with_those_that_waited() -> None:
    async with two_streams() as (mine, theirs):
        await mine.send(b"1")
        assert mine.send_now(b"2" * PAYLOAD_BYTES_MAX)
        assert mine.send_now(b"3")
        await mine.send(b"4")
        expected = b"1" + b"2" * PAYLOAD_BYTES_MAX + b"34"
        assert await received(theirs, len(expected)) == expected


async def test_the_first_of_several_leaves_before_any_turn_of_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kachery_p2p.network.multiplexer.FRAMES_TOGETHER_S", 3_600)
    written: list[bytes] = []
    async with two_streams(written=written) as (mine, theirs):
        assert mine.send_now(b"1")
        assert [data[HEADER.size :] for data in written] == [b"1"]
        assert mine.send_now(b"2")
        assert mine.send_now(b"3")
        assert len(written) == 1
        assert await received(theirs, 3) == b"123"


async def test_what_the_channel_does_not_take_at_once_waits_in_its_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kachery_p2p.network.multiplexer.FRAMES_TOGETHER_S", 0)
    async with two_streams(room=0) as (mine, theirs):
        for number in range(0, 60, 3):
            assert mine.send_now(bytes([number]))
            assert mine.send_now(bytes([number + 1]))
            await mine.send(bytes([number + 2]))
        assert await received(theirs, 60) == bytes(range(60))


async def test_what_does_not_fit_the_window_or_a_frame_is_not_sent_at_all() -> None:
    async with two_streams() as (mine, theirs):
        assert not mine.send_now(b"x" * (PAYLOAD_BYTES_MAX + 1))
        sent = 0
        while mine.send_now(b"x" * 60_000):
            sent += 60_000
            assert sent <= WINDOW_BYTES_INITIAL
        assert mine.send_now(b"y" * (WINDOW_BYTES_INITIAL - sent))
        assert not mine.send_now(b"z")
        assert (await received(theirs, WINDOW_BYTES_INITIAL)).count(b"x") == sent
        await trio.testing.wait_all_tasks_blocked()
        assert mine.send_now(b"z")
        assert await received(theirs, 1) == b"z"


async def test_on_a_stream_that_was_closed_or_is_gone_nothing_is_sent() -> None:
    async with two_streams() as (mine, theirs):
        mine.close()
        assert not mine.send_now(b"x")
        theirs.reset()
        assert not theirs.send_now(b"x")


async def test_a_request_begun_at_once_is_answered_like_any_other(
    autojump_clock: MockClock,
) -> None:
    async with a_session(handlers={"ping": pong}) as (_, session, _listener):
        asked = [session.ask("ping", {}) for _ in range(3)]
        for one in asked:
            assert one is not None
            assert await session.answer_to(one, 10) == {}


async def test_a_request_too_many_is_not_begun_and_takes_no_place(
    autojump_clock: MockClock,
) -> None:
    async with a_session(handlers={"ping": pong}) as (_, session, _listener):
        begun = []
        while (one := session.ask("ping", {})) is not None:
            begun.append(one)
        assert 0 < len(begun) <= PENDING_REQUESTS_MAX
        for one in begun:
            assert await session.answer_to(one, 10) == {}
        assert await session.request("ping", {}, 10) == {}


async def test_who_waits_for_an_answer_hears_when_it_is_late_or_the_peer_is_gone(
    autojump_clock: MockClock,
) -> None:
    async def sleepy(session: object, body: dict[str, object]) -> dict[str, object]:
        await trio.sleep(20)
        return {}

    async with a_session(handlers={"ping": sleepy}) as (_, session, listener):
        late, cut_off = session.ask("ping", {}), session.ask("ping", {})
        assert late is not None
        assert cut_off is not None
        with pytest.raises(PeerTimeoutError):
            await session.answer_to(late, 1)
        assert listener.session is not None
        listener.session.end()
        with pytest.raises(PeerGoneError):
            await session.answer_to(cut_off, 10)
        with pytest.raises(PeerGoneError):
            session.ask("ping", {})


async def test_a_handler_begins_where_its_request_was_read(autojump_clock: MockClock) -> None:
    began: list[trio.lowlevel.Task] = []
    finished: list[trio.lowlevel.Task] = []

    def begin(session: Session, body: dict[str, Any]) -> Awaitable[dict[str, Any]]:
        began.append(trio.lowlevel.current_task())
        return finish()

    async def finish() -> dict[str, Any]:
        finished.append(trio.lowlevel.current_task())
        return {}

    async with a_session(handlers={"ping": begin}) as (_, session, _listener):
        asked = [session.ask("ping", {}) for _ in range(2)]
        for one in asked:
            assert one is not None
            assert await session.answer_to(one, 10) == {}
    # One task reads, and each request is answered by another.
    assert len(set(began)) == 1
    assert len({*began, *finished}) == 3


async def test_a_handler_that_fails_as_it_begins_costs_its_answer_and_nothing_else(
    autojump_clock: MockClock,
) -> None:
    def fail(session: Session, body: dict[str, Any]) -> Awaitable[dict[str, Any]]:
        raise ValueError("a mistake of ours")

    def refuse(session: Session, body: dict[str, Any]) -> Awaitable[dict[str, Any]]:
        raise PeerRefusedError("no")

    handlers: dict[str, Handler] = {"ping": fail, "have": refuse}
    body = {"channel": "ab" * 32, "content": bytes(20)}
    async with a_session(handlers=handlers) as (_, session, listener):
        with pytest.raises(PeerError, match="failed"):
            await session.request("ping", {}, 10)
        with pytest.raises(PeerRefusedError):
            await session.request("have", body, 10)
        assert not listener.ended.is_set()
