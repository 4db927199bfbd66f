"""A lie that is found just when others have brought everything is reported all the same."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.errors import PeerGoneError, ProtocolError
from kachery_p2p.limits import CHUNK_BYTES
from kachery_p2p.store.hashing import hash_bytes
from kachery_p2p.transfer.fetch import Fetch
from kachery_p2p.transfer.sources import Source
from kachery_p2p.transfer.suppliers import Suppliers

MIB = CHUNK_BYTES
BYTES = hashlib.shake_128(b"cancelled").digest(12 * MIB)
MANIFEST = hash_bytes(BYTES)


class Honest:
    """Brings chunks over a data stream, each after `pause_s`: so slowly that others are asked."""

    channel = "lab"

    def __init__(self, node: str, pause_s: float = 0.05) -> None:
        self.node = self.name = node
        self.pause_s = pause_s

    async def root_object(self, content: ContentHash, root: Root) -> bytes:
        return MANIFEST.root_object.encode()

    async def page(self, content: ContentHash, root: Root, number: int) -> bytes:
        return MANIFEST.pages[number]

    async def bulk(self) -> Any:
        return None

    async def pull(
        self,
        content: ContentHash,
        root: Root,
        next_range: Callable[[], range | None],
        deliver: Callable[[Source, int, bytes], Awaitable[None]],
    ) -> None:
        while (chunks := next_range()) is not None:
            for number in chunks:
                await trio.sleep(self.pause_s)
                await deliver(self, number, BYTES[number * MIB : (number + 1) * MIB])


class WrongPiece:
    """A chunk of zeros in a buffer of its own."""

    def __init__(self, number: int) -> None:
        self.number, self.data = number, bytes(MIB)

    def release(self) -> None:
        """It is nobody's."""


class LyingConnection:
    """Hands a wrong chunk to the sink, whose complaint never gets to who is waiting."""

    range_chunks, pipelined = 16, 4

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.lied = 0

    async def fetch(self, wanted: Any, sink: Any, *, urgent: bool) -> None:
        def hand_on() -> None:
            with pytest.raises(Exception, match="does not match its hash"):
                sink(WrongPiece(wanted.first))
            self.lied += 1

        await trio.to_thread.run_sync(hand_on)
        await trio.sleep_forever()


class BrokenConnection:
    """Breaks the protocol when everybody has turned away from it."""

    range_chunks, pipelined = 16, 4

    def __init__(self) -> None:
        self.error: Exception | None = None

    async def fetch(self, wanted: Any, sink: Any, *, urgent: bool) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.error = ProtocolError("a chunk that is not the next one due")


class GoneConnection(BrokenConnection):
    async def fetch(self, wanted: Any, sink: Any, *, urgent: bool) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.error = PeerGoneError("the bulk connection was closed")


class InBulk(Honest):
    def __init__(self, node: str, connection: Any) -> None:
        super().__init__(node)
        self.connection = connection

    async def bulk(self) -> Any:
        return self.connection


async def reported(disk: Any, *sources: Any) -> list[tuple[str, str]]:
    """Load the blob from these; who was reported as a liar, and why."""
    told: list[tuple[str, str]] = []

    async def find(failed: Any) -> list[Any]:
        return list(sources)

    suppliers = Suppliers(
        MANIFEST.content,
        known=[],
        find=find,
        wait=trio.sleep,
        patient=True,
        lied=lambda source, what: told.append((source.node, what)),
    )

    async def stored() -> None:
        await trio.lowlevel.checkpoint()

    fetch = Fetch(
        MANIFEST.content,
        MANIFEST.root,
        blobs=disk.blobs,
        node_id="ab" * 32,
        suppliers=suppliers,
        stored=stored,
        tell=lambda *_: None,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch.run)
        await fetch.wait_for(None)
    assert len(disk.objects()) == 1
    return told


async def test_who_sent_wrong_bytes_is_reported_though_its_request_is_cancelled(
    disk: Any, virtual_clock: MockClock
) -> None:
    connection = LyingConnection()
    told = await reported(disk, Honest("honest"), InBulk("liar", connection))
    assert connection.lied
    assert [node for node, _ in told] == ["liar"]
    assert "does not match its hash" in told[0][1]


async def test_who_broke_the_protocol_is_reported_though_its_request_is_cancelled(
    disk: Any, virtual_clock: MockClock
) -> None:
    told = await reported(disk, Honest("honest"), InBulk("rude", BrokenConnection()))
    assert told == [("rude", "a chunk that is not the next one due")]


async def test_who_went_away_meanwhile_is_no_liar(disk: Any, virtual_clock: MockClock) -> None:
    assert await reported(disk, Honest("honest"), InBulk("gone", GoneConnection())) == []


async def test_a_liar_is_reported_once_however_often_it_lied(
    disk: Any, virtual_clock: MockClock
) -> None:
    class Liar(Honest):
        async def pull(self, content: Any, root: Any, next_range: Any, deliver: Any) -> None:
            while (chunks := next_range()) is not None:
                for number in chunks:
                    await deliver(self, number, bytes(MIB))

    told = await reported(disk, Liar("liar"), Honest("honest", pause_s=0.1))
    assert [node for node, _ in told] == ["liar"]
