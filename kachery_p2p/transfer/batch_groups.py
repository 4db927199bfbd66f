"""Small blobs that have come: made durable many at a time, then granted where they came from."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import trio

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import KacheryError
from kachery_p2p.limits import (
    BATCH_GROUP_BYTES,
    BATCH_GROUP_OBJECTS,
    BATCH_GROUP_S,
    BATCH_GROUPS_MAX,
    BATCH_HELD_BYTES_MAX,
    BATCH_WRITERS_MAX,
)
from kachery_p2p.store.blobs import BlobStore, Stored
from kachery_p2p.store.grants import FETCHED, Grants
from kachery_p2p.store.shares import Share
from kachery_p2p.store.verified import Verified


class Arrived(NamedTuple):
    """A blob whose bytes have the SHA-1 `content`, and the channel in which it was served."""

    number: int
    content: ContentHash
    data: bytes
    channel: str


# Told of each blob of a group what became of it: None if it is stored, for good.
Tell = Callable[[Arrived, KacheryError | None], None]


class HeldBytes:
    """How many bytes of batches are on their way, or wait for the disk, in this node."""

    def __init__(self, most: int = BATCH_HELD_BYTES_MAX) -> None:
        self._most = most
        self._held = 0
        self._changed = trio.Event()

    async def take(self, count: int) -> None:
        """Wait until there is room for so many more."""
        assert count <= self._most
        await trio.lowlevel.checkpoint()
        while self._held + count > self._most:
            await self._changed.wait()
        self._held += count

    def give_back(self, count: int) -> None:
        """So many fewer are held."""
        self._held -= count
        assert self._held >= 0
        self._changed.set()
        self._changed = trio.Event()


class GroupWriter:
    """Writes groups of blobs; one for all loads of a node."""

    def __init__(self, blobs: BlobStore, grants: Grants, held: HeldBytes) -> None:
        self._blobs = blobs
        self._held = held
        self._grants = grants
        self._places = trio.Semaphore(BATCH_WRITERS_MAX)

    async def write(self, group: Sequence[Arrived], tell: Tell) -> None:
        """Store and grant them, and tell of each; not to be stopped half-way."""
        try:
            async with self._places:
                with trio.CancelScope(shield=True):
                    outcomes = await trio.to_thread.run_sync(self._written, group)
        finally:
            self._held.give_back(sum(len(arrived.data) for arrived in group))
        for arrived, outcome in zip(group, outcomes, strict=True):
            tell(arrived, outcome)

    def _written(self, group: Sequence[Arrived]) -> list[KacheryError | None]:
        try:
            verified = [Verified(arrived.content, arrived.data) for arrived in group]
            outcomes = self._blobs.verified.put(verified)
            now = time.time()
            self._grants.keep(
                [
                    Share(arrived.content, (arrived.channel,), FETCHED, now)
                    for arrived, outcome in zip(group, outcomes, strict=True)
                    if isinstance(outcome, Stored)
                ]
            )
        except KacheryError as error:
            return [error] * len(group)
        return [one if isinstance(one, KacheryError) else None for one in outcomes]


class Grouping:
    """What one load has waiting to be written with `write`, in tasks of `nursery`.

    A group is begun when enough has come, or a moment after its first blob. While as many
    as may be are being written, the next one grows: the slower the disk, the larger the
    groups, and the fewer the waits for it.
    """

    def __init__(
        self, nursery: trio.Nursery, write: Callable[[Sequence[Arrived]], Awaitable[None]]
    ) -> None:
        self.bytes_waiting = 0
        self._nursery = nursery
        self._write = write
        self._waiting: list[Arrived] = []
        self._writing = 0
        # What waits is not to wait for more.
        self._due = False
        self._begun = trio.Event()

    def add(self, arrived: Arrived) -> None:
        """One more."""
        if not self._waiting:
            self._nursery.start_soon(self._flush_soon, self._begun)
        self._waiting.append(arrived)
        self.bytes_waiting += len(arrived.data)
        self._begin_group()

    def flush(self) -> None:
        """Write what waits as soon as can be."""
        self._due = True
        self._begin_group()

    async def _flush_soon(self, begun: trio.Event) -> None:
        with trio.move_on_after(BATCH_GROUP_S):
            await begun.wait()
        if not begun.is_set():
            self.flush()

    def _begin_group(self) -> None:
        many = len(self._waiting) >= BATCH_GROUP_OBJECTS or self.bytes_waiting >= BATCH_GROUP_BYTES
        if not self._waiting or self._writing >= BATCH_GROUPS_MAX or not (many or self._due):
            return
        group, self._waiting, self.bytes_waiting = self._waiting, [], 0
        self._begun.set()
        self._begun, self._due = trio.Event(), False
        self._writing += 1
        self._nursery.start_soon(self._write_group, group)

    async def _write_group(self, group: list[Arrived]) -> None:
        try:
            await self._write(group)
        finally:
            self._writing -= 1
        self._begin_group()
