"""The files under `sha1/`: found, opened, and never believed before they were hashed.

Any file may lie there: stores are shared with other users and with every older
kachery. What the index does not know is hashed, and synced, before first use; what
does not have the bytes of its name goes to quarantine, where nobody finds it by that
name. So what the index knows is whole and on disk.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.manifests import Manifest, RootObject
from kachery_p2p.errors import (
    CorruptObjectError,
    HashCollisionError,
    NotFoundError,
    StorageFailedError,
    StoreError,
    StorePermissionError,
)
from kachery_p2p.store.backlog import Remembered
from kachery_p2p.store.durable import DurableDirectories, sync_directory, sync_file
from kachery_p2p.store.hashing import EndedEarlyError, hash_file
from kachery_p2p.store.index import Index
from kachery_p2p.store.paths import blob_path, quarantine_dir
from kachery_p2p.store.sources import same_state, unsettled_s

log = logging.getLogger(__name__)

# A file that changes under three readings is being written.
READINGS_MAX = 3


class Opened(NamedTuple):
    """A verified object, open for reading. Whoever got it closes it."""

    descriptor: int
    root_object: RootObject

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stored(NamedTuple):
    """What was stored: its two names, its size, and where it lies."""

    content: ContentHash
    root: Root
    size: int
    path: str


def stored_earlier(top: str, index: Index, status: os.stat_result) -> Stored | None:
    """What was stored from the user's file with this `status`, if both are unchanged."""
    source = index.source_of(status)
    return None if source is None else stored(top, index, *source)


def stored(top: str, index: Index, content: ContentHash, root: Root) -> Stored | None:
    """The object with these two names, if it stands and this node has hashed it."""
    path = blob_path(top, content)
    try:
        known = index.known(content, os.lstat(path))
    except OSError:
        return None
    if known is None or known.root != root:
        return None
    return Stored(content, root, known.size, path)


class Objects:
    """The objects of the store below `directories.top`, checked against `index`."""

    def __init__(self, directories: DurableDirectories, index: Index) -> None:
        self._directories = directories
        self._index = index
        self._one_at_a_time = KeyedLocks()

    def open(self, content: ContentHash, *, anew: bool = False) -> Opened | None:
        """The object, verified now or (unless `anew`) earlier, or None if there is none.

        Raises CorruptObjectError after moving a bad file to quarantine, and
        HashCollisionError for a file with the right SHA-1 that is not the content
        which this node has read under that name before.
        """
        opened = _UNKNOWN if anew else self._open_known(content)
        if isinstance(opened, Opened) or opened is None:
            return opened
        with self._one_at_a_time.lock(content):
            for _ in range(READINGS_MAX):
                # Another thread may have hashed it while we waited.
                opened = _UNKNOWN if anew else self._open_known(content)
                if isinstance(opened, Opened) or opened is None:
                    return opened
                if (checked := self._open_unknown(content, anew)) is not None:
                    return checked
        if not os.path.lexists(blob_path(self._directories.top, content)):
            return None
        raise NotFoundError(
            f"the file stored as {content} is still being written",
            hint="try again when its writer has finished",
        )

    def _open_known(self, content: ContentHash) -> Opened | _Unknown | None:
        fd = self._open_regular(content)
        if fd is None:
            return None
        try:
            root_object = self._index.known(content, os.fstat(fd))
            if root_object is not None:
                opened, fd = Opened(fd, root_object), None
                return opened
            return _UNKNOWN
        finally:
            if fd is not None:
                os.close(fd)

    def _open_unknown(self, content: ContentHash, anew: bool) -> Opened | None:
        """Hash the object, then open it; None if it changed meanwhile, or is gone."""
        fd = self._open_regular(content)
        if fd is None:
            return None
        try:
            if anew:
                _read_from_disk(fd)
            read = read_settled(fd, f"stored as {content}")
            if read is None:
                return None
            self._judge(content, fd, *read)
            opened, fd = Opened(fd, read.manifest.root_object), None
            return opened
        finally:
            if fd is not None:
                os.close(fd)

    def _judge(
        self, content: ContentHash, fd: int, status: os.stat_result, manifest: Manifest
    ) -> None:
        if manifest.content != content:
            raise self._quarantined(content, status, "does not have the bytes of its name")
        self.check_pinned(content, manifest)
        if self._index.known(content, status) == manifest.root_object:
            return
        if self._made_durable(fd, blob_path(self._directories.top, content)):
            self.remember(content, status, manifest)

    def _made_durable(self, fd: int, path: str) -> bool:
        """Sync a file that its writer may not have synced; False if the disk failed.

        What we may not sync (directories that we may pass but not read) is their owner's.
        """
        try:
            sync_file(fd)
            self._directories.make(os.path.dirname(path))
            sync_directory(os.path.dirname(path))
        except OSError as error:
            log.info("%s could not be synced: %s", path, error)
            return error.errno not in (errno.EIO, errno.ENOSPC, errno.EDQUOT)
        return True

    def check_pinned(self, content: ContentHash, manifest: Manifest) -> None:
        """Raise HashCollisionError if other bytes with this SHA-1 were read here before."""
        pinned = self._index.pinned_root(content)
        if pinned is not None and pinned != manifest.root:
            raise collision(content)

    def remember(self, content: ContentHash, status: os.stat_result, manifest: Manifest) -> None:
        """Tell the index. A failure costs a later hashing and is only logged."""
        self.tell_index(Remembered(content, manifest, manifest.root, status))

    def tell_index(self, one: Remembered) -> None:
        """As `remember`."""
        try:
            self._index.keep(one)
        except StoreError as error:
            log.warning("the index could not note %s: %s", one.content, error)

    def _open_regular(self, content: ContentHash) -> int | None:
        path = blob_path(self._directories.top, content)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):  # a symbolic link; a socket or FIFO
                raise self._quarantined(content, os.lstat(path), "is not a file") from error
            reason = (error.strerror or str(error)).lower()
            raise StorePermissionError(
                f"the stored file {path} cannot be read: {reason}"
            ) from error
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode):
            return fd
        os.close(fd)
        raise self._quarantined(content, status, "is not a file")

    def _quarantined(
        self, content: ContentHash, status: os.stat_result, what: str
    ) -> CorruptObjectError:
        path = blob_path(self._directories.top, content)
        kept = f"{quarantine_dir(self._directories.top)}/{content}.{time.time_ns()}"
        try:
            present = os.lstat(path)
            # Somebody may have put a good one in its place since we looked.
            if (present.st_dev, present.st_ino) == (status.st_dev, status.st_ino):
                self._directories.make(os.path.dirname(kept))
                os.rename(path, kept)
                sync_directory(os.path.dirname(path))
            self._index.forget(content)
        except (OSError, StoreError) as error:
            log.error("%s %s, and could not be moved to quarantine: %s", path, what, error)
            return CorruptObjectError(
                f"the file stored as {content} {what}, and may not be moved by you",
                hint=f"ask the owner of the store to remove {path}",
            )
        log.error("%s %s: moved to %s", path, what, kept)
        return CorruptObjectError(
            f"the file stored as {content} {what}: it was moved to {kept}",
            hint="load it again to get a good copy from another node",
        )


class _Unknown:
    """There is a file, and the index does not know it."""


_UNKNOWN = _Unknown()


class Read(NamedTuple):
    """A file that was read whole and did not change meanwhile."""

    status: os.stat_result
    manifest: Manifest


def read_settled(fd: int, which: str) -> Read | None:
    """Hash an open file; None if it changed meanwhile. Raises StorageFailedError."""
    time.sleep(unsettled_s(os.fstat(fd)))
    status = os.fstat(fd)
    try:
        manifest = hash_file(fd, status.st_size)
    except EndedEarlyError:
        return None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageFailedError(
            f"the file {which} cannot be read: {reason}", hint="check the disk"
        ) from error
    return Read(status, manifest) if same_state(status, os.fstat(fd)) else None


def _read_from_disk(fd: int) -> None:
    """Drop what is in memory of the file: a flipped bit on the disk would not show there."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def collision(content: ContentHash) -> HashCollisionError:
    """The error for a second content with one SHA-1, and a line in the log: this is an attack."""
    log.error("two different contents have the SHA-1 %s", content)
    return HashCollisionError(
        f"two different contents have the sha1 {content}: the one stored first was kept",
        hint="one of them was forged; ask both authors how they made theirs",
    )


class KeyedLocks:
    """A lock for each key in use: the second who wants a key waits for the first."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold the lock of `key`."""
        with self._guard:
            lock, users = self._locks.get(key, (threading.Lock(), 0))
            self._locks[key] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._guard:
                lock, users = self._locks.pop(key)
                if users > 1:
                    self._locks[key] = (lock, users - 1)
