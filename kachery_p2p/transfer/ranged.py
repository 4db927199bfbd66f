"""What a fast source is asked by: ranges of chunks, each handed to a sink in a thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kachery_p2p.errors import PeerError
from kachery_p2p.transfer.assembly import Piece
from kachery_p2p.wire.bulk_messages import BulkRange

# Takes a chunk; must not have kept it if it raises.
Sink = Callable[[Piece], None]


class Ranged(Protocol):
    """A bulk connection to a member, or what reads a bucket by threads."""

    @property
    def error(self) -> PeerError | None:
        """What ended it."""

    @property
    def range_chunks(self) -> int:
        """How many chunks are best asked for at once."""

    @property
    def pipelined(self) -> int:
        """How many such requests keep it busy."""

    async def fetch(self, wanted: BulkRange, sink: Sink, *, urgent: bool = False) -> None:
        """As `BulkConnection.fetch`: `sink` is called, in a thread, with each chunk in order."""
