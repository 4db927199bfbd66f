"""Asking one member for many small blobs at once: on a bulk connection, else on a data stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from kachery_p2p.errors import PeerGoneError, PeerTimeoutError
from kachery_p2p.limits import BATCH_ASKED_BYTES, STALL_BYTES_MIN, STALL_S_MAX
from kachery_p2p.network.bulk_sessions import Bulk
from kachery_p2p.network.failures import error_of
from kachery_p2p.network.link import DATA, Link, Stream
from kachery_p2p.network.session import Session
from kachery_p2p.transfer.sources import send_in_time
from kachery_p2p.wire.batches import BatchAnswer, BatchRequest, BulkBatch, Told
from kachery_p2p.wire.codec import FrameDecoder, Message

_READ_BYTES = 1 << 18

# Called with the pieces of each frame, whose bytes are there only until it returns; in any thread.
Take = Callable[[Sequence[Told]], None]


class BatchSource:
    """A member of a channel, who may have small blobs that are granted there."""

    def __init__(self, session: Session, link: Link, channel: str, bulk: Bulk | None) -> None:
        self.session = session
        self.channel = channel
        self._link = link
        self._bulk = bulk

    @property
    def name(self) -> str:
        """How people know it. A peer chooses its label, so blame goes by `node`."""
        return self.session.name

    @property
    def node(self) -> str:
        return self.session.peer

    async def ask(self, contents: Sequence[bytes], take: Take) -> None:
        """Ask for these; returns when the answer has ended, which may be before all of them came.

        Raises what `take` raises, PeerRefusedError if nothing may be had there at all,
        PeerTimeoutError when too little comes for STALL_S_MAX, and other PeerErrors.
        """
        wanted = BulkBatch(self.channel, tuple(contents), BATCH_ASKED_BYTES)
        connection = None if self._bulk is None else await self._bulk.connection(self.session)
        if connection is not None:
            await connection.fetch_batch(wanted, take)
            return
        stream = await self._link.open_stream(self.session.peer, DATA)
        try:
            await self._ask_on(stream, wanted, take)
        except PeerTimeoutError:
            # Half-open: without this the next request would hang on the same dead connection.
            self.session.suspect()
            raise
        finally:
            await stream.reset()

    async def _ask_on(self, stream: Stream, wanted: BulkBatch, take: Take) -> None:
        request = BatchRequest(1, wanted)
        await send_in_time(stream, request.frame())
        answer = BatchAnswer(request)
        messages = _Messages(stream, self.session.noticed)
        while not answer.ended:
            found = answer.receive(await messages.next())
            if isinstance(found, tuple):
                raise error_of(*found)
            take(found)


class _Messages:
    """Messages off a data stream, STALL_BYTES_MIN or a whole one in each STALL_S_MAX."""

    def __init__(self, stream: Stream, moved: Callable[[], None]) -> None:
        self._stream = stream
        self._moved = moved
        self._decoder = FrameDecoder()
        self._ready: list[Message] = []

    async def next(self) -> Message:
        while not self._ready:
            with trio.move_on_after(STALL_S_MAX) as waiting:
                await self._receive_a_piece()
            if waiting.cancelled_caught:
                raise PeerTimeoutError(f"sent nearly nothing for {STALL_S_MAX:g} s")
        return self._ready.pop(0)

    async def _receive_a_piece(self) -> None:
        received = 0
        while received < STALL_BYTES_MIN and not self._ready:
            data = await self._stream.receive_some(_READ_BYTES)
            if not data:
                raise PeerGoneError("ended the transfer early")
            self._moved()
            received += len(data)
            self._ready.extend(self._decoder.feed(data))
