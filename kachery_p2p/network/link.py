"""The seam to the network: authenticated byte streams between nodes, and nothing else.

Everything above this file speaks of nodes and streams; how a stream comes to be is
known to `libp2p_host` (real hosts) and `simulated` (a seeded world on a virtual clock)
alone. Both pass one test suite. A relay for nodes behind NAT would be a third way to
answer `connect`, and needs no change above this seam.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from kachery_p2p.identity.keys import NodeId

# Protocol names on the wire (PROTOCOL.md, "Streams").
CONTROL = "/kachery-p2p/control/1"
DATA = "/kachery-p2p/data/1"
JOIN = "/kachery-p2p/join/1"


class Stream(Protocol):
    """A reliable, ordered byte stream to one authenticated node. One reader and one writer task."""

    @property
    def peer(self) -> NodeId:
        """The node on the other side, as the secure channel authenticated it."""

    @property
    def outgoing(self) -> bool:
        """True if this side opened the stream."""

    async def send_all(self, data: bytes) -> None:
        """Send every byte. Raises PeerGoneError when the stream or its connection is gone."""

    def send_now(self, data: bytes) -> bool:
        """Send every byte without waiting; False if that cannot be, and then none was sent.

        Not while `send_all` is under way.
        """

    async def receive_some(self, bytes_max: int) -> bytes:
        """1 to `bytes_max` bytes as they come; b"" at the end of the stream.

        The end says nothing about completeness: a killed peer looks the same as a
        finished one. Raises PeerGoneError when the stream was reset.
        """

    async def close(self) -> None:
        """Say that nothing more will be sent. Never raises."""

    async def reset(self) -> None:
        """Drop the stream and whatever is buffered, at once, even when cancelled. Never raises."""


StreamHandler = Callable[[Stream], Awaitable[None]]


class Link(Protocol):
    """This node's place in the network."""

    @property
    def node_id(self) -> NodeId: ...

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs others may dial, each ending in /p2p/PEERID; with the real ports."""

    def accept(self, protocol: str, handler: StreamHandler) -> None:
        """Call `handler` in a task of its own for each stream a peer opens under `protocol`.

        The stream is reset when the handler returns or raises; an exception never
        reaches another stream.
        """

    async def connect(self, address: str) -> NodeId:
        """Connect to the node at a multiaddr with /p2p/PEERID, or answer at once if connected.

        Raises PeerUnreachableError (also for an address that is no such multiaddr)
        within DIAL_S_MAX. The id in the address was proved by the other side.
        """

    async def open_stream(self, node: NodeId, protocol: str) -> Stream:
        """A new stream on the present connection to `node`.

        Raises PeerGoneError if there is none or the peer does not speak `protocol`,
        PeerTimeoutError after REQUEST_S_MAX.
        """

    def admit(self, node: NodeId) -> None:
        """`node` has proved membership: its connection leaves the unproven budget.

        A connection, in either direction, that is not admitted within HELLO_S_MAX
        of being made is dropped.
        """

    async def disconnect(self, node: NodeId) -> None:
        """Drop every connection to `node`. Never raises."""

    def place_of(self, node: NodeId) -> str:
        """Where a connected node comes from: its IP, or the /64 of it; "" if it has left."""

    def connected(self) -> frozenset[NodeId]: ...

    def on_disconnected(self, tell: Callable[[NodeId], None]) -> None:
        """Call `tell(node)` whenever the last connection to `node` has ended."""
