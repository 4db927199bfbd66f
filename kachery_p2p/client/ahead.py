"""Threads that have blocks fetched while their reader still works on those before."""

from __future__ import annotations

import os
import threading

from kachery_p2p.client.blocks import Blocks
from kachery_p2p.errors import KacheryError
from kachery_p2p.limits import (
    OPENED_AHEAD_IDLE_S,
    OPENED_AHEAD_REQUEST_BLOCKS,
    OPENED_AHEAD_THREADS_MAX,
)


class Ahead:
    """Fetches what it was told last; the threads are there only while there is something to do."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._wanted = range(0)
        self._threads = 0

    def want(self, blocks: range) -> None:
        """Fetch these, and nothing more of what was wanted before. Does not wait."""
        if os.getpid() != self._pid:
            # The threads are the parent's.
            self._begin()
        with self._changed:
            self._wanted = blocks
            self._changed.notify_all()
            requests = -(-len(blocks) // OPENED_AHEAD_REQUEST_BLOCKS)
            if self._threads < min(requests, OPENED_AHEAD_THREADS_MAX):
                self._threads += 1
                name = "kachery-p2p read ahead"
                threading.Thread(target=self._work, name=name, daemon=True).start()

    def _work(self) -> None:
        while (blocks := self._next()) is not None:
            try:
                self._blocks.ensure(blocks, ahead=True)
            except (KacheryError, OSError):
                # Whoever comes to read them tries again, and is told what is wrong.
                self.want(range(0))

    def _next(self) -> range | None:
        """The next blocks to fetch; None if for some time there was nothing to do."""
        with self._changed:
            if not self._wanted:
                self._changed.wait(OPENED_AHEAD_IDLE_S)
            if not self._wanted:
                self._threads -= 1
                return None
            blocks = self._wanted[:OPENED_AHEAD_REQUEST_BLOCKS]
            self._wanted = self._wanted[OPENED_AHEAD_REQUEST_BLOCKS:]
            return blocks
