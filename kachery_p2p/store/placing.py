"""A finished file gets its name, unless the very content stands there already.

What stands under a name is never overwritten: good, it stays; bad, it goes to
quarantine first; good with another root, it stays and the newcomer is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.content.manifests import Hashes, Manifest
from kachery_p2p.errors import CorruptObjectError, StorageFailedError
from kachery_p2p.limits import INDEX_BUSY_S_MAX
from kachery_p2p.store.durable import (
    DurableDirectories,
    Made,
    rename_new,
    sync_directory,
    sync_file,
    sync_open_directory,
    writing_to,
)
from kachery_p2p.store.objects import Objects, collision
from kachery_p2p.store.paths import blob_path, old_link_paths, parent_of

# A bad file that is quarantined, or a good one that is removed, makes room for one more try.
_RENAMES_MAX = 3


class Placing:
    """Gives files their names below `directories.top`."""

    def __init__(self, directories: DurableDirectories, objects: Objects) -> None:
        self._directories = directories
        self._objects = objects

    def place(self, fd: int, path: str, manifest: Manifest) -> bool:
        """Make the open file at `path` the object; durable when it returns.

        False if the content stands there already: the file is then still at `path`.
        """
        self._objects.check_pinned(manifest.content, manifest)
        target = blob_path(self._directories.top, manifest.content)
        with writing_to(self._directories.top):
            made = Made()
            with self._parent(target, made) as parent_fd:
                placed = self._synced_and_renamed(fd, path, target, manifest)
                # What stands needs the sync too: its writer may be a moment away from doing so.
                sync_open_directory(parent_fd)
            self._directories.sync(made)
            if placed:
                self._objects.remember(manifest.content, os.fstat(fd), manifest)
        return placed

    def _synced_and_renamed(self, fd: int, path: str, target: str, manifest: Manifest) -> bool:
        if os.path.lexists(target) and self._stands(target, manifest):
            return False
        os.fchmod(fd, 0o444)
        sync_file(fd)
        return self._renamed(path, target, manifest)

    def place_unsynced(self, path: str, target: str, manifest: Hashes, made: Made) -> bool:
        """Make the synced file at `path` the object at `target`; False if it stands there already.

        The caller syncs the directories `made` and that of the object, and tells the index.
        Raises OSError.
        """
        parent = parent_of(target)
        try:
            self._directories.make_unsynced(parent, made)
            return self._renamed(path, target, manifest)
        except FileNotFoundError:  # somebody removed the directory since we last looked
            self._directories.forget()
            self._directories.make(parent)
            return self._renamed(path, target, manifest)

    def _renamed(self, path: str, target: str, manifest: Hashes) -> bool:
        """True if the file has its name now, False if the very content has it."""
        for _ in range(_RENAMES_MAX):
            try:
                rename_new(path, target)
                return True
            except FileExistsError:
                if self._stands(target, manifest):
                    return False
        raise StorageFailedError(f"{target} appears and vanishes as often as it is looked at")

    def remove(self, content: ContentHash) -> int | None:
        """Remove the object, durably, with what older packages noted of a link; its size.

        None if there was neither; 0 for a note alone.
        """
        path = blob_path(self._directories.top, content)
        freed = None
        with writing_to(self._directories.top):
            with (
                contextlib.suppress(FileNotFoundError),
                LockedDirectory(os.path.dirname(path)) as parent_fd,
            ):
                if not stat.S_ISDIR((status := os.lstat(path)).st_mode):
                    os.unlink(path)
                    freed = status.st_size
                    sync_open_directory(parent_fd)
            for note in old_link_paths(self._directories.top, content):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    os.unlink(note)
                    sync_directory(os.path.dirname(note))
                    freed = freed or 0
        return freed

    def _parent(self, target: str, made: Made) -> LockedDirectory:
        parent = os.path.dirname(target)
        try:
            self._directories.make_unsynced(parent, made)
            return LockedDirectory(parent)
        except FileNotFoundError:  # somebody removed it since we last looked
            self._directories.forget()
            self._directories.make(parent)
            return LockedDirectory(parent)

    def _stands(self, target: str, manifest: Hashes) -> bool:
        """True if the very content stands under its name; a bad file there is moved away."""
        try:
            opened = self._objects.open(manifest.content)
        except CorruptObjectError:
            if os.path.lexists(target):
                raise StorageFailedError(
                    f"a bad file stands in the store as {manifest.content}",
                    hint="ask the owner of the store to remove it",
                )
            return False
        if opened is None:
            return False
        opened.close()
        if opened.root_object.root != manifest.root:
            raise collision(manifest.content)
        return True


class LockedDirectory:
    """A descriptor of the directory; of several writers of one object the others wait.

    A courtesy that saves needless renames, so it is given up after a while (anybody who
    may read the directory could hold it) and where directories cannot be locked (NFS).
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> int:
        try:
            patience_ends = time.monotonic() + INDEX_BUSY_S_MAX
            while _busy(self._fd) and time.monotonic() < patience_ends:
                time.sleep(0.005)
        except BaseException:
            os.close(self._fd)
            raise
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _busy(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
