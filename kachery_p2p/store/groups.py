"""Many objects at once, durable by two syncs of the whole file system instead of one each.

Every file is written to a directory of its own under `.tmp`; a first sync puts the bytes
on disk; directories are made and files renamed; a second sync puts the names on disk;
only then is anything acknowledged. Where one sync does not promise that much (network
file systems), each file and each directory is synced on its own, in the same order.

An object that cannot be stored does not stop the others: it has its error as outcome.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.manifests import Manifest
from kachery_p2p.errors import KacheryError, StoreError
from kachery_p2p.limits import GROUP_BYTES_MAX, GROUP_OBJECTS_MAX
from kachery_p2p.store.backlog import Remembered, SourceSeen
from kachery_p2p.store.durable import (
    Aside,
    DurableDirectories,
    Made,
    storage_error,
    sync_directory,
    sync_file,
    sync_filesystem,
    write_all,
    writing_to,
)
from kachery_p2p.store.hashing import hash_bytes
from kachery_p2p.store.index import Index, Rows
from kachery_p2p.store.intake import Intake, Progress, quietly, settled_status
from kachery_p2p.store.objects import Stored, collision, stored, stored_earlier
from kachery_p2p.store.paths import blob_path, parent_of
from kachery_p2p.store.placing import Placing
from kachery_p2p.store.sources import Source, opened_source
from kachery_p2p.store.temps import TempGroup

_ALLOWANCE_BYTES = 16 << 20

log = logging.getLogger(__name__)

# Bytes are content; a path or descriptor names a file.
Item = bytes | Source

Outcome = Stored | KacheryError


class _Written(NamedTuple):
    """An item in its temporary file, and the status of the user's file it came from."""

    path: str
    # Where it is to go.
    target: str
    manifest: Manifest
    root: Root
    source: os.stat_result | None


class _Found(NamedTuple):
    """The files of a group under their names: by number what became of each, and what is known."""

    outcomes: dict[int, Outcome]
    objects: list[Rows]
    sources: list[SourceSeen]


class Group:
    """One group of objects on its way into the store below `directories.top`."""

    def __init__(
        self,
        directories: DurableDirectories,
        intake: Intake,
        placing: Placing,
        index: Index,
        progress: Progress = quietly,
    ) -> None:
        self._directories = directories
        self._top = directories.top
        self._intake = intake
        self._placing = placing
        self._index = index
        self._progress = progress
        self._made = Made()
        self._outcomes: dict[int, Outcome] = {}
        self._written: dict[int, _Written] = {}
        # Further items with the content of an earlier one, which shares its outcome.
        self._same: dict[int, int] = {}
        self._first_with: dict[ContentHash, int] = {}
        self._bytes = 0
        self._allowance = 0

    def store(self, items: Iterable[Item]) -> list[Outcome]:
        """What became of those items that made up the group, in their order.

        Reads no further than the last of them. All that is Stored is durable.
        """
        with TempGroup(self._directories) as temps:
            for number, item in enumerate(items):
                self._write(temps, number, item)
                if number + 1 == GROUP_OBJECTS_MAX or self._bytes >= GROUP_BYTES_MAX:
                    break
            if self._written and self._bytes_synced(temps):
                self._place(temps)
        for number, other in self._same.items():
            self._outcomes[number] = self._outcomes[other]
        return [self._outcomes[number] for number in sorted(self._outcomes)]

    # --- first the bytes ------------------------------------------------------------------

    def _write(self, temps: TempGroup, number: int, item: Item) -> None:
        try:
            if isinstance(item, bytes):
                outcome = self._write_bytes(temps, item)
            else:
                outcome = self._write_file(temps, item)
            if isinstance(outcome, Stored):
                self._outcomes[number] = outcome
                return
            self._bytes += outcome.manifest.size
            other = self._first_with.setdefault(outcome.manifest.content, number)
            if other == number:
                self._written[number] = outcome
            elif self._written[other].root == outcome.root:
                self._same[number] = other
            else:
                raise collision(outcome.manifest.content)
        except KacheryError as error:
            self._outcomes[number] = error
        except OSError as error:
            self._outcomes[number] = storage_error(error, self._top)

    def _write_bytes(self, temps: TempGroup, data: bytes) -> _Written | Stored:
        manifest = hash_bytes(data)
        root = manifest.root
        if (earlier := stored(self._top, self._index, manifest.content, root)) is not None:
            return earlier
        self._check_space(len(data))
        with temps.create() as temp:
            write_all(temp.fd, data, 0)
            self._finish(temps, temp.fd)
        return _Written(temp.path, self._path(manifest), manifest, root, None)

    def _write_file(self, temps: TempGroup, source: Source) -> _Written | Stored:
        with opened_source(source) as fd:
            status, settled = settled_status(fd)
            if (earlier := stored_earlier(self._top, self._index, status)) is not None:
                self._progress(earlier.size)
                return earlier
            self._check_space(status.st_size)
            with temps.create() as temp:
                manifest = self._intake.take_file(temp.fd, fd, status, self._progress)
                self._finish(temps, temp.fd)
        target, seen = self._path(manifest), status if settled else None
        return _Written(temp.path, target, manifest, manifest.root, seen)

    def _check_space(self, need: int) -> None:
        """Look at the disk again for each 16 MiB, by which a group may enter the reserve."""
        if need > self._allowance:
            self._intake.check_space(need)
            self._allowance = _ALLOWANCE_BYTES
        else:
            self._allowance -= need

    @staticmethod
    def _finish(temps: TempGroup, fd: int) -> None:
        os.fchmod(fd, 0o444)
        if not temps.synced_at_once:
            sync_file(fd)

    def _bytes_synced(self, temps: TempGroup) -> bool:
        if not temps.synced_at_once:
            return True  # each file was synced when it was written
        with Aside(self._make_directories) as made:
            synced = self._succeeded(lambda: sync_filesystem(temps.fd))
        made.answer()
        return synced

    def _make_directories(self) -> None:
        for written in self._written.values():
            # What is wrong with one shows when its file is renamed.
            with contextlib.suppress(OSError, StoreError):
                self._directories.make_unsynced(parent_of(written.target), self._made)

    def _succeeded(self, sync: Callable[[], None]) -> bool:
        """True if all is on disk; otherwise that is the outcome of whatever was written."""
        try:
            with writing_to(self._top):
                sync()
        except StoreError as error:
            # Never tried again: the kernel may have dropped the pages that failed.
            self._outcomes |= dict.fromkeys(self._written, error)
            return False
        return True

    # --- then the names -------------------------------------------------------------------

    def _place(self, temps: TempGroup) -> None:
        pinned = self._index.pinned_roots(
            [written.manifest.content for written in self._written.values()]
        )
        placed: dict[int, bool] = {}
        for number, (path, target, manifest, root, _) in self._written.items():
            try:
                if pinned and pinned.get(manifest.content, root) != root:
                    raise collision(manifest.content)
                placed[number] = self._placing.place_unsynced(path, target, manifest, self._made)
            except KacheryError as error:
                self._outcomes[number] = error
            except OSError as error:
                self._outcomes[number] = storage_error(error, self._top)
        self._written = {number: self._written[number] for number in placed}
        with Aside(lambda: self._looked_at(placed)) as looking:
            synced = self._succeeded(lambda: self._sync_names(temps))
        found = looking.answer()
        if not synced:
            return
        self._directories.now_durable(self._made)
        self._outcomes |= found.outcomes
        try:
            self._index.note_rows(found.objects, found.sources)
        except StoreError as error:
            log.warning("the index could not note a group that was stored: %s", error)

    def _sync_names(self, temps: TempGroup) -> None:
        if temps.synced_at_once:
            sync_filesystem(temps.fd)
            return
        entered = {parent_of(written.target) for written in self._written.values()}
        for directory in sorted(self._made.parents | entered):
            with contextlib.suppress(FileNotFoundError):  # see `_looked_at`
                sync_directory(directory)

    def _looked_at(self, placed: dict[int, bool]) -> _Found:
        """What may be said, and the index be told, as soon as the names are on disk."""
        found = _Found({}, [], [])
        for number, (_, path, manifest, root, source) in self._written.items():
            content = manifest.content
            try:
                status = os.lstat(path)
            except OSError as error:  # removed by somebody, perhaps with its directory
                found.outcomes[number] = storage_error(error, self._top)
                continue
            found.outcomes[number] = Stored(content, root, manifest.size, path)
            if placed[number]:
                # Made here, while the disk is waited for, and not before the commit.
                found.objects.append(Rows(Remembered(content, manifest, root, status)))
            if source is not None:
                found.sources.append(SourceSeen(source, content, root))
        return found

    def _path(self, manifest: Manifest) -> str:
        return blob_path(self._top, manifest.content)
