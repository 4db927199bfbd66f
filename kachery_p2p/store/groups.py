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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.manifests import Hashes
from kachery_p2p.errors import KacheryError, StoreError
from kachery_p2p.limits import CHUNK_BYTES, GROUP_BYTES_MAX, GROUP_OBJECTS_MAX
from kachery_p2p.store.backlog import Remembered, SourceSeen
from kachery_p2p.store.directories_ahead import DirectoriesAhead
from kachery_p2p.store.durable import (
    Aside,
    DurableDirectories,
    Made,
    storage_error,
    sync_directory,
    sync_filesystem,
    write_all,
    writing_to,
)
from kachery_p2p.store.hashing import hash_bytes, hash_chunk
from kachery_p2p.store.index import Index, Rows
from kachery_p2p.store.intake import Intake, Progress, quietly, settled_status
from kachery_p2p.store.objects import Stored, collision, stored, stored_earlier
from kachery_p2p.store.paths import blob_path, parent_of
from kachery_p2p.store.placing import Placing
from kachery_p2p.store.sources import Identity, Source, identity, opened_source
from kachery_p2p.store.temps import TempGroup

_ALLOWANCE_BYTES = 16 << 20
# Bytes of which the index is asked with one question, and which wait in memory for its answer.
_SLICE_ITEMS = 256
_SLICE_BYTES = 8 << 20

log = logging.getLogger(__name__)

# Bytes are content; a path or descriptor names a file.
Item = bytes | Source

Outcome = Stored | KacheryError


class _Written(NamedTuple):
    """An item in its temporary file, and the status of the user's file it came from."""

    path: str
    # Where it is to go.
    target: str
    hashes: Hashes
    which: Identity
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
        # Those of which the index was not asked whether it knows another root.
        self._unasked: list[int] = []
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
            with DirectoriesAhead(self._directories, self._made) as ahead:
                self._write(temps, items, ahead)
                synced = bool(self._written) and self._bytes_synced(temps)
            if synced:
                self._place(temps)
        for number, other in self._same.items():
            self._outcomes[number] = self._outcomes[other]
        return [self._outcomes[number] for number in sorted(self._outcomes)]

    def _slices(self, items: Iterable[Item]) -> Iterator[list[bytes] | Source]:
        """The items of the group: what is in memory some at a time, a file alone."""
        some: list[bytes] = []
        size = 0
        for count, item in enumerate(items, 1):
            if isinstance(item, bytes):
                some.append(item)
                size += len(item)
            if some and (
                len(some) == _SLICE_ITEMS
                or size >= _SLICE_BYTES
                or count == GROUP_OBJECTS_MAX
                or not isinstance(item, bytes)
            ):
                yield some
                some, size = [], 0
            if not isinstance(item, bytes):
                yield item
            if count == GROUP_OBJECTS_MAX or self._bytes >= GROUP_BYTES_MAX:
                return
        if some:
            yield some

    # --- first the bytes ------------------------------------------------------------------

    def _write(self, temps: TempGroup, items: Iterable[Item], ahead: DirectoriesAhead) -> None:
        first = 0
        for some in self._slices(items):
            if isinstance(some, list):
                self._write_values(temps, first, some)
                count = len(some)
            else:
                with self._outcome_of(first):
                    self._note(first, self._write_file(temps, first, some))
                count = 1
            for number in range(first, first + count):
                if (written := self._written.get(number)) is not None:
                    ahead.wish(parent_of(written.target))
            first += count

    @contextlib.contextmanager
    def _outcome_of(self, number: int) -> Iterator[None]:
        """What is raised is what became of the item."""
        try:
            yield
        except KacheryError as error:
            self._outcomes[number] = error
        except OSError as error:
            self._outcomes[number] = storage_error(error, self._top)

    def _note(self, number: int, outcome: _Written | Stored) -> None:
        """The item was written now, or was stored before. HashCollisionError."""
        if isinstance(outcome, Stored):
            self._outcomes[number] = outcome
            return
        content = outcome.hashes.content
        self._bytes += outcome.hashes.size
        other = self._first_with.setdefault(content, number)
        if other == number:
            self._written[number] = outcome
        elif self._written[other].hashes.root == outcome.hashes.root:
            self._same[number] = other
        else:
            raise collision(content)

    def _write_values(self, temps: TempGroup, first: int, values: Sequence[bytes]) -> None:
        hashed = [_hashes(data) for data in values]
        try:
            pinned = self._index.pinned_roots([hashes.content for hashes in hashed])
        except StoreError as error:
            self._outcomes |= dict.fromkeys(range(first, first + len(values)), error)
            return
        number = first - 1
        for data, hashes in zip(values, hashed, strict=True):
            number += 1
            known = pinned.get(hashes.content) if pinned else None
            try:  # `_outcome_of` takes 2 us more, for each object
                self._note(number, self._write_value(temps, data, hashes, known))
            except KacheryError as error:
                self._outcomes[number] = error
            except OSError as error:
                self._outcomes[number] = storage_error(error, self._top)

    def _write_value(
        self, temps: TempGroup, data: bytes, hashes: Hashes, pinned: Root | None
    ) -> _Written | Stored:
        """Unless it stands; `pinned` is the root that the index knows, without which it cannot."""
        if pinned is not None:
            if pinned != hashes.root:
                raise collision(hashes.content)
            earlier = stored(self._top, self._index, hashes.content, pinned)
            if earlier is not None:
                return earlier
        self._check_space(len(data))
        path, fd = temps.create()
        try:
            write_all(fd, data, 0)
            which = temps.finish(fd)
        except BaseException:
            _remove(path)
            raise
        finally:
            os.close(fd)
        return _Written(path, blob_path(self._top, hashes.content), hashes, which, None)

    def _write_file(self, temps: TempGroup, number: int, source: Source) -> _Written | Stored:
        with opened_source(source) as fd:
            status, settled = settled_status(fd)
            if (earlier := stored_earlier(self._top, self._index, status)) is not None:
                self._progress(earlier.size)
                return earlier
            self._check_space(status.st_size)
            path, temp = temps.create()
            try:
                manifest = self._intake.take_file(temp, fd, status, self._progress)
                which = temps.finish(temp)
            except BaseException:
                _remove(path)
                raise
            finally:
                os.close(temp)
        self._unasked.append(number)
        seen = status if settled else None
        return _Written(path, blob_path(self._top, manifest.content), manifest, which, seen)

    def _check_space(self, need: int) -> None:
        """Look at the disk again for each 16 MiB, by which a group may enter the reserve."""
        if need > self._allowance:
            self._intake.check_space(need)
            self._allowance = _ALLOWANCE_BYTES
        else:
            self._allowance -= need

    def _bytes_synced(self, temps: TempGroup) -> bool:
        if not temps.synced_at_once:
            return True  # each file was synced when it was written
        return self._succeeded(lambda: sync_filesystem(temps.fd))

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
        pinned = self._pinned_late()
        placed: dict[int, bool] = {}
        for number, (path, target, hashes, _, _) in self._written.items():
            try:
                if pinned and pinned.get(hashes.content, hashes.root) != hashes.root:
                    raise collision(hashes.content)
                placed[number] = self._placing.place_unsynced(path, target, hashes, self._made)
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

    def _pinned_late(self) -> dict[ContentHash, Root]:
        """The known roots of those of which the index was not asked yet."""
        contents = [
            self._written[number].hashes.content
            for number in self._unasked
            if number in self._written
        ]
        return self._index.pinned_roots(contents) if contents else {}

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
        for number, (_, path, hashes, which, source) in self._written.items():
            content, root = hashes.content, hashes.root
            try:
                status = os.lstat(path)
            except OSError as error:  # removed by somebody, perhaps with its directory
                found.outcomes[number] = storage_error(error, self._top)
                continue
            found.outcomes[number] = Stored(content, root, hashes.size, path)
            # Who may write there may have put another file in its place: that one is hashed before
            # anything is believed of it.
            if placed[number] and identity(status) == which:
                # Made here, while the disk is waited for, and not before the commit.
                found.objects.append(Rows(Remembered(content, hashes, root, status)))
            if source is not None:
                found.sources.append(SourceSeen(source, content, root))
        return found


def _hashes(data: bytes) -> Hashes:
    return hash_chunk(data) if 0 < len(data) <= CHUNK_BYTES else hash_bytes(data)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
