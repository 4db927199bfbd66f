"""A link whose data streams keep the pace of the node; everything else passes as it is.

What control and join streams carry is little, and is to come through when the line is
full: no limit holds it up.
"""

from __future__ import annotations

from collections.abc import Callable

from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import STALL_BYTES_MIN
from kachery_p2p.network.link import DATA, Link, Stream, StreamHandler
from kachery_p2p.network.pace import Lane, Pace


class PacedLink:
    """`link`, with the chunks on its data streams at the pace of `pace`."""

    def __init__(self, link: Link, pace: Pace) -> None:
        self._link = link
        self._pace = pace

    @property
    def node_id(self) -> NodeId:
        return self._link.node_id

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._link.addresses

    def accept(self, protocol: str, handler: StreamHandler) -> None:
        """As of a link: what the handler sends on a data stream are chunks."""

        async def handle(stream: Stream) -> None:
            await handler(PacedSending(stream, self._pace.up.lane(stream.peer)))

        self._link.accept(protocol, handle if protocol == DATA else handler)

    async def connect(self, address: str) -> NodeId:
        return await self._link.connect(address)

    async def open_stream(self, node: NodeId, protocol: str) -> Stream:
        """As of a link: what comes on a data stream are chunks."""
        stream = await self._link.open_stream(node, protocol)
        return PacedReceiving(stream, self._pace.down.lane(node)) if protocol == DATA else stream

    def admit(self, node: NodeId) -> None:
        self._link.admit(node)

    async def disconnect(self, node: NodeId) -> None:
        await self._link.disconnect(node)

    def place_of(self, node: NodeId) -> str:
        return self._link.place_of(node)

    def connected(self) -> frozenset[NodeId]:
        return self._link.connected()

    def on_disconnected(self, tell: Callable[[NodeId], None]) -> None:
        self._link.on_disconnected(tell)


class _Paced:
    """A stream, all of which passes as it is."""

    def __init__(self, stream: Stream, lane: Lane) -> None:
        self._stream = stream
        self._lane = lane

    @property
    def peer(self) -> NodeId:
        return self._stream.peer

    @property
    def outgoing(self) -> bool:
        return self._stream.outgoing

    async def send_all(self, data: bytes) -> None:
        await self._stream.send_all(data)

    def send_now(self, data: bytes) -> bool:
        # What is paced waits for its turn.
        return False

    async def receive_some(self, bytes_max: int) -> bytes:
        return await self._stream.receive_some(bytes_max)

    async def close(self) -> None:
        await self._stream.close()

    async def reset(self) -> None:
        await self._stream.reset()


class PacedSending(_Paced):
    """A stream on which we send chunks, in pieces, each in its turn."""

    async def send_all(self, data: bytes) -> None:
        piece_bytes = min(self._lane.piece_bytes, STALL_BYTES_MIN)
        for at in range(0, len(data), piece_bytes):
            piece = data[at : at + piece_bytes]
            async with self._lane.turn_async(len(piece)):
                await self._stream.send_all(piece)
            self._lane.note(len(piece))


class PacedReceiving(_Paced):
    """A stream on which chunks come: under a limit what came is paid before more is read."""

    async def receive_some(self, bytes_max: int) -> bytes:
        if not self._lane.limited:
            data = await self._stream.receive_some(bytes_max)
        else:
            data = await self._stream.receive_some(min(bytes_max, self._lane.piece_bytes))
            async with self._lane.turn_async(len(data)):
                pass
        self._lane.note(len(data))
        return data
