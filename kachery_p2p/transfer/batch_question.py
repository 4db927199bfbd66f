"""One question for many small blobs, from asking to judging what comes.

What comes is judged in the thread that received it: a blob counts when its bytes have its
SHA-1. What the judge says is handed over in trio, once a frame.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.errors import VerificationError
from kachery_p2p.limits import BATCH_ASKED_BYTES
from kachery_p2p.store.hashing import hash_bytes
from kachery_p2p.transfer.batch_asking import BatchSource
from kachery_p2p.transfer.batch_groups import HeldBytes
from kachery_p2p.wire.batches import BYTES, LARGE, Told

# A number of the load, the content that it stands for, and its root if that is known.
Numbered = tuple[int, ContentHash, Root | None]


class Judged(NamedTuple):
    """What came of a content: its bytes, verified, or why none (`wire.batches`)."""

    number: int
    outcome: int
    data: bytes


class Question:
    """A question to one source, and its part of the memory that all of them share."""

    def __init__(self, source: BatchSource, held: HeldBytes) -> None:
        self.source = source
        self._held = held
        # The content whose bytes are looked at, or were wrong; None before any came.
        self.judging: ContentHash | None = None
        self._kept = 0
        self._judged: deque[Judged] = deque()

    @asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        """Memory for the answer, which is waited for; what is not kept of it is given back."""
        await self._held.take(BATCH_ASKED_BYTES)
        try:
            yield
        finally:
            self._held.give_back(BATCH_ASKED_BYTES - self._kept)

    def keep(self, byte_count: int) -> None:
        """So many bytes of the answer are someone else's to give back."""
        self._kept += byte_count

    async def ask(
        self, wanted: Sequence[Numbered], note: Callable[[Iterable[Judged]], None]
    ) -> None:
        """`note` what came, in trio, until the answer has ended.

        Raises VerificationError for wrong bytes, after what came before them was noted,
        and PeerErrors.
        """
        token = trio.lowlevel.current_trio_token()

        def hand_over() -> None:
            # One by one: a thread may be adding to them.
            judged = [self._judged.popleft() for _ in range(len(self._judged))]
            if judged:
                note(judged)

        def take(told: Sequence[Told]) -> None:
            try:
                for one in told:
                    self.judging = wanted[one.place][1]
                    self._judged.append(_judged(wanted[one.place], one))
            finally:
                token.run_sync_soon(hand_over)

        try:
            await self.source.ask([content.raw for _, content, _ in wanted], take)
        finally:
            # No thread is judging any more.
            hand_over()


def _judged(wanted: Numbered, told: Told) -> Judged:
    number, content, root = wanted
    if told.outcome != BYTES:
        return Judged(number, told.outcome, b"")
    data = bytes(told.data)
    if hashlib.sha1(data, usedforsecurity=False).hexdigest() != content:
        raise VerificationError("sent bytes that do not have the hash asked for")
    if root is not None and hash_bytes(data).root != root:
        # Two contents with one SHA-1, or a wrong root in the URI: who loads it alone says which.
        return Judged(number, LARGE, b"")
    return Judged(number, BYTES, data)
