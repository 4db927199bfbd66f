"""Many small blobs that have just come and have the SHA-1 they were asked for, as one group.

The steps are those of `groups`, with the same two syncs, but nothing is looked for beforehand:
whoever asked others for them has looked. Whatever is met that a new content in a sound store
does not meet, the general way begins again from the bytes.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.content.manifests import ChunkHashes, chunk_hashes
from kachery_p2p.errors import StoreError
from kachery_p2p.limits import CHUNK_BYTES, VERIFIED_GROUP_MIN
from kachery_p2p.store.backlog import Remembered
from kachery_p2p.store.directories_ahead import DirectoriesAhead
from kachery_p2p.store.durable import (
    Aside,
    DurableDirectories,
    Made,
    rename_new,
    sync_directory,
    sync_filesystem,
    write_all,
    writing_to,
)
from kachery_p2p.store.groups import Outcome
from kachery_p2p.store.index import Index, Rows
from kachery_p2p.store.objects import Stored
from kachery_p2p.store.paths import blob_path, parent_of
from kachery_p2p.store.sources import Identity, identity
from kachery_p2p.store.temps import TempGroup

log = logging.getLogger(__name__)


class Verified(NamedTuple):
    """A blob of at most one chunk whose bytes have the SHA-1 `content`."""

    content: ContentHash
    data: bytes


class _Written(NamedTuple):
    """A blob in its temporary file."""

    path: str
    hashes: ChunkHashes
    which: Identity


class VerifiedGroups:
    """Stores verified blobs below `directories.top`, a group at a time."""

    def __init__(
        self,
        directories: DurableDirectories,
        index: Index,
        make_room: Callable[[int], None],
        put_one: Callable[[bytes], Outcome],
    ) -> None:
        """`put_one` stores bytes the general way."""
        self._directories = directories
        self._index = index
        self._make_room = make_room
        self._put_one = put_one

    def put(self, blobs: Sequence[Verified]) -> list[Outcome]:
        """What became of each, in their order: all that is Stored is durable.

        Raises a StoreError if the store as a whole cannot be written.
        """
        stored: dict[int, Stored] = {}
        if len(blobs) >= VERIFIED_GROUP_MIN:
            with writing_to(self._directories.top), TempGroup(self._directories) as temps:
                self._make_room(sum(len(blob.data) for blob in blobs))
                group = _Group(self._directories, self._index, temps)
                stored = group.store(self._new(blobs))
        return [stored.get(number) or self._put_one(blob.data) for number, blob in enumerate(blobs)]

    def _new(self, blobs: Sequence[Verified]) -> dict[int, Verified]:
        """Those that this node has never hashed: the root of the others may have to be judged."""
        pinned = self._index.pinned_roots(blob.content for blob in blobs)
        return {
            number: blob
            for number, blob in enumerate(blobs)
            if 0 < len(blob.data) <= CHUNK_BYTES and blob.content not in pinned
        }


class _Group:
    """One group on its way, in the directory `temps`."""

    def __init__(self, directories: DurableDirectories, index: Index, temps: TempGroup) -> None:
        self._directories = directories
        self._index = index
        self._temps = temps
        self._made = Made()

    def store(self, blobs: dict[int, Verified]) -> dict[int, Stored]:
        """Those that were stored, by their number. Raises a StoreError or OSError."""
        top = self._directories.top
        targets = {number: blob_path(top, blob.content) for number, blob in blobs.items()}
        with DirectoriesAhead(self._directories, self._made) as ahead:
            for target in targets.values():
                ahead.wish(parent_of(target))
            written = self._write(blobs)
            if self._temps.synced_at_once:
                sync_filesystem(self._temps.fd)
        placed = {
            number: targets[number]
            for number, one in written.items()
            if self._place(one.path, targets[number])
        }
        with Aside(lambda: _rows(placed, written)) as looked_at:
            self._sync_names(list(placed.values()))
        rows = looked_at.answer()
        self._directories.now_durable(self._made)
        try:
            self._index.note_rows(list(rows.values()), [])
        except StoreError as error:
            log.warning("the index could not note a group that was stored: %s", error)
        stored = {number: written[number].hashes for number in rows}
        return {
            number: Stored(one.content, one.root, one.size, targets[number])
            for number, one in stored.items()
        }

    def _write(self, blobs: dict[int, Verified]) -> dict[int, _Written]:
        written = {}
        for number, (content, data) in blobs.items():
            hashes = chunk_hashes(content, content.raw, data)
            path, fd = self._temps.create()
            try:
                write_all(fd, data, 0)
                which = self._temps.finish(fd)
            finally:
                os.close(fd)
            written[number] = _Written(path, hashes, which)
        return written

    def _place(self, path: str, target: str) -> bool:
        """False if it has no name: something stands there, or a directory is gone."""
        try:
            rename_new(path, target)
        except FileExistsError:
            return False
        except (FileNotFoundError, NotADirectoryError):
            self._directories.forget()
            return False
        return True

    def _sync_names(self, targets: Sequence[str]) -> None:
        if self._temps.synced_at_once:
            sync_filesystem(self._temps.fd)
            return
        for directory in sorted(self._made.parents | {parent_of(target) for target in targets}):
            # Somebody may have removed one, with what was in it: see `_rows`.
            with contextlib.suppress(FileNotFoundError):
                sync_directory(directory)


def _rows(placed: dict[int, str], written: dict[int, _Written]) -> dict[int, Rows]:
    """What the index is to be told, made while the disk is waited for; of those that are there.

    Who may write there may have put another file in the place of one: that is not told.
    """
    rows = {}
    for number, path in placed.items():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            _, one, which = written[number]
            status = os.lstat(path)
            if identity(status) == which:
                rows[number] = Rows(Remembered(one.content, one, one.root, status))
    return rows
