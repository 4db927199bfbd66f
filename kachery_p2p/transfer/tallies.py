"""What came from each source, useful or in vain. Pure."""

from __future__ import annotations

from typing import NamedTuple


class SourceState(NamedTuple):
    """What a source did so far. `rate` is in bytes a second, None before it can be told."""

    source: str
    rate: float | None
    received_bytes: int
    wasted_bytes: int
    outstanding_chunks: int


class Tally:
    """Bytes of verified chunks: those that were needed, and those that were here already."""

    def __init__(self) -> None:
        self.received_bytes = 0
        self.wasted_bytes = 0

    def count(self, byte_count: int, wasted: bool) -> None:
        if wasted:
            self.wasted_bytes += byte_count
        else:
            self.received_bytes += byte_count
