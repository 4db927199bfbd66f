"""Who waits for a download, and what they are told of it."""

from __future__ import annotations

import os
from typing import NamedTuple

import trio

from kachery_p2p.errors import KacheryError
from kachery_p2p.transfer.schedule import Want


class State(NamedTuple):
    """How far a fetch is: bytes verified on disk, and in all (None until that is known)."""

    bytes: int
    size: int | None
    sources: tuple[str, ...]


class Waiter:
    """Somebody who waits for a byte range, or (None) for the whole blob."""

    def __init__(self, byte_range: tuple[int, int] | None) -> None:
        self.byte_range = byte_range
        self.want: Want | None = None
        self.descriptor: int | None = None
        self.error: KacheryError | None = None
        self.done = trio.Event()

    def drop_descriptor(self) -> None:
        """Nobody takes what it was given."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def fail(self, error: KacheryError) -> None:
        if not self.done.is_set():
            self.error = error
            self.done.set()
