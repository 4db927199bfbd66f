"""The files under `sha1/`: found, opened, and never believed before they were hashed.

Any file may lie there: stores are shared with other users and with every older
kachery. What the index does not know is hashed before first use; what does not have
the bytes of its name goes to quarantine, where nobody finds it by that name.
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

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.content.manifests import Manifest, RootObject
from kachery_p2p.errors import (
    CorruptObjectError,
    HashCollisionError,
    NotFoundError,
    StorageFailedError,
    StoreError,
    StorePermissionError,
)
from kachery_p2p.store.durable import DurableDirectories, sync_directory
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


class Objects:
    """The objects of the store below `directories.top`, checked against `index`."""

    def __init__(self, directories: DurableDirectories, index: Index) -> None:
        self._directories = directories
        self._index = index
        self._one_at_a_time = KeyedLocks()

    def open(self, content: ContentHash) -> Opened | None:
        """The object, verified now or earlier, or None if there is none.

        Raises CorruptObjectError after moving a bad file to quarantine, and
        HashCollisionError for a file with the right SHA-1 that is not the content
        which this node has read under that name before.
        """
        opened = self._open_known(content)
        if isinstance(opened, Opened) or opened is None:
            return opened
        with self._one_at_a_time.lock(content):
            for _ in range(READINGS_MAX):
                opened = self._open_known(content)
                if isinstance(opened, Opened) or opened is None:
                    return opened
                if (checked := self._open_unknown(content)) is not None:
                    return checked
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

    def _open_unknown(self, content: ContentHash) -> Opened | None:
        """Hash the object, then open it; None if it changed meanwhile."""
        fd = self._open_regular(content)
        if fd is None:
            return None
        try:
            time.sleep(unsettled_s(os.fstat(fd)))
            status = os.fstat(fd)
            manifest = _hash(fd, status, content)
            if manifest is None or not same_state(status, os.fstat(fd)):
                return None
            self._judge(content, status, manifest)
            opened, fd = Opened(fd, manifest.root_object), None
            return opened
        finally:
            if fd is not None:
                os.close(fd)

    def _judge(self, content: ContentHash, status: os.stat_result, manifest: Manifest) -> None:
        if manifest.content != content:
            raise self._quarantined(content, status, "does not have the bytes of its name")
        self.check_pinned(content, manifest)
        self.remember(content, status, manifest)

    def check_pinned(self, content: ContentHash, manifest: Manifest) -> None:
        """Raise HashCollisionError if other bytes with this SHA-1 were read here before."""
        pinned = self._index.pinned_root(content)
        if pinned is not None and pinned != manifest.root:
            raise collision(content)

    def remember(self, content: ContentHash, status: os.stat_result, manifest: Manifest) -> None:
        """Tell the index. A failure costs a later hashing and is only logged."""
        try:
            self._index.remember(content, status, manifest)
        except StoreError as error:
            log.warning("the index could not note %s: %s", content, error)

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


def _hash(fd: int, status: os.stat_result, content: ContentHash) -> Manifest | None:
    try:
        return hash_file(fd, status.st_size)
    except EndedEarlyError:
        return None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageFailedError(
            f"the file stored as {content} cannot be read: {reason}", hint="check the disk"
        ) from error


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
