"""Values on their way into the store: bytes of at most one chunk, in memory, new here.

Most of what is stored is such, and one by one: the disk takes a few hundred microseconds,
and the general way (`placing`) as long around its system calls, because anything may have
happened to the store meanwhile. This way takes the same steps with the same syncs, but looks
for nothing beforehand, and does what needs no disk while the disk takes the bytes. Whatever it
meets that a new content in a sound store does not, it stops at, and the general way begins
again from the bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.content.manifests import chunk_hashes
from kachery_p2p.store.backlog import Remembered
from kachery_p2p.store.durable import (
    DurableDirectories,
    Made,
    rename_new,
    start_write_back,
    storage_error,
    sync_directory,
    sync_file,
    write_all,
)
from kachery_p2p.store.index import Index
from kachery_p2p.store.objects import Objects, Stored
from kachery_p2p.store.paths import blob_path, parent_of
from kachery_p2p.store.temps import TempFile

Named = Callable[[ContentHash], None]


def ignored(content: ContentHash) -> None:
    """For whoever has nothing to do with the names."""


class SmallObjects:
    """Stores new contents of at most one chunk below `directories.top`, each durably."""

    def __init__(
        self,
        directories: DurableDirectories,
        objects: Objects,
        index: Index,
        make_room: Callable[[int], None],
    ) -> None:
        self._top = directories.top
        self._directories = directories
        self._objects = objects
        self._index = index
        self._make_room = make_room

    def put(
        self, data: bytes, content: ContentHash, sha1: bytes, named: Named = ignored
    ) -> Stored | None:
        """Store `data`, which has this SHA-1; durable when it returns.

        None, and nothing is stored, if it is not new, or the store is not as it was left.
        Otherwise `named` is told once it has its name, before that is durable, so that both
        may become so together. Raises a StoreError, and what `named` raises.
        """
        # One question instead of two: what was never hashed here is not stored as far as we
        # know, and has no root from which this one might differ.
        if self._index.pinned_root(content) is not None:
            return None
        path = blob_path(self._top, content)
        try:
            with TempFile(self._directories) as temp:
                self._make_room(len(data))
                write_all(temp.fd, data, 0)
                # All that needs no disk is done while the disk takes the bytes.
                start_write_back(temp.fd, 0, len(data))
                hashes = chunk_hashes(content, sha1, data)
                if not self._place(temp, path, content, named):
                    return None
                status = os.fstat(temp.fd)
        except OSError as error:
            raise storage_error(error, self._top) from error
        self._objects.tell_index(Remembered(content, hashes, hashes.root, status))
        return Stored(content, hashes.root, len(data), path)

    def _place(self, temp: TempFile, path: str, content: ContentHash, named: Named) -> bool:
        """The bytes, the name, what `named` writes, then the directories on the way are on disk.

        False if it has no name: something stands there, or a directory is gone.
        """
        parent, made = parent_of(path), Made()
        try:
            self._directories.make_unsynced(parent, made)
            os.fchmod(temp.fd, 0o444)
            sync_file(temp.fd)
            rename_new(temp.path, path)
        except FileExistsError:
            return False
        except FileNotFoundError:
            self._directories.forget()
            return False
        temp.moved = True
        # First: what it syncs takes the names along in one commit of the journal, where it
        # lies on the same disk, and leaves the syncs below little to do. It saves a fifth.
        named(content)
        sync_directory(parent)
        self._directories.sync(made)
        return True
