"""The blob store: immutable bytes under their SHA-1, each acknowledged only when it is safe.

To store is to write a temporary file while hashing it, fsync it, rename it to its
name, and fsync every directory that gained an entry; then to answer. At any moment a
kill or a power cut leaves either the whole object under its name or nothing there.
A file that already stands under the name is never overwritten: good, it stays; bad,
it goes to quarantine; good with another root, it stays and the newcomer is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.manifests import Manifest, RootObject
from kachery_p2p.errors import (
    CorruptObjectError,
    NotFoundError,
    ResolutionError,
    StorageFailedError,
    StoreError,
    VerificationError,
)
from kachery_p2p.limits import DISK_RESERVE_BYTES, INDEX_BUSY_S_MAX
from kachery_p2p.store.copying import Copier, copy_whole
from kachery_p2p.store.durable import (
    DurableDirectories,
    check_space,
    sync_file,
    sync_open_directory,
    write_all,
    writing_to,
)
from kachery_p2p.store.hashing import FileHashes, hash_bytes
from kachery_p2p.store.index import Index
from kachery_p2p.store.objects import Objects, Opened, collision
from kachery_p2p.store.partials import Partial
from kachery_p2p.store.paths import blob_path
from kachery_p2p.store.sources import (
    Source,
    check_unchanged,
    opened_source,
    source_changed,
    unsettled_s,
)
from kachery_p2p.store.temps import TempFile, sweep

__all__ = ["BlobStore", "Opened", "Stored"]

log = logging.getLogger(__name__)

# Below this, a file changed a moment ago is simply read again when it is stored again.
WORTH_SETTLING_BYTES = 64 << 20


class Stored(NamedTuple):
    """What was stored: its two names, its size, and where it lies."""

    content: ContentHash
    root: Root
    size: int
    path: str


class BlobStore:
    """The store in `directory`. Safe in many threads and processes, and beside older tools."""

    def __init__(
        self, directory: str, index: Index, reserve_bytes: int = DISK_RESERVE_BYTES
    ) -> None:
        self.directory = os.path.abspath(directory)
        self.reserve_bytes = reserve_bytes
        self._index = index
        self._directories = DurableDirectories(self.directory)
        self._objects = Objects(self._directories, index)
        self._swept = False

    # --- storing ------------------------------------------------------------------------

    def put_file(self, source: Source) -> Stored:
        """Store a copy of the file at a path, or behind a descriptor, which stays open.

        At once, without reading it, if it was stored before and has not changed.
        Raises SourceFileError, SourceChangedError, HashCollisionError or a StoreError.
        """
        with opened_source(source) as fd:
            status = os.fstat(fd)
            if (earlier := self._stored_earlier(status)) is not None:
                return earlier
            if status.st_size >= WORTH_SETTLING_BYTES:
                time.sleep(unsettled_s(status))
                status = os.fstat(fd)
            settled = not unsettled_s(status)
            stored = self._store_copy(fd, status)
        if settled:
            self._remember_source(status, stored)
        return stored

    def put_bytes(self, data: bytes) -> Stored:
        """Store bytes that are in memory."""
        manifest = hash_bytes(data)
        if (earlier := self._stored(manifest.content, manifest.root)) is not None:
            return earlier
        with self._temp(len(data)) as temp:
            with writing_to(self.directory):
                write_all(temp.fd, data, 0)
            return self._place_temp(temp, manifest)

    def put_stream(
        self, pieces: Iterable[bytes], expected: ContentHash | None = None, size: int = 0
    ) -> Stored:
        """Store bytes as they come; `size` of them are expected (0: not known).

        Raises VerificationError, and keeps nothing, if they do not have the SHA-1 `expected`.
        """
        with self._temp(size) as temp, FileHashes(temp.fd) as hashes:
            length = 0
            for piece in pieces:
                self._check_space(len(piece))
                with writing_to(self.directory):
                    write_all(temp.fd, piece, length)
                    length += len(piece)
                    hashes.grown(length)
            with writing_to(self.directory):
                manifest = hashes.finish(length)
            if expected is not None and manifest.content != expected:
                raise VerificationError(
                    f"the {length} bytes received have the sha1 {manifest.content}, "
                    f"not {expected}: nothing was stored"
                )
            return self._place_temp(temp, manifest)

    def adopt_partial(self, partial: Partial, manifest: Manifest) -> Stored:
        """A finished download becomes the object, without a copy; the partial is closed.

        The caller has hashed every byte: `manifest` carries the SHA-1 it found.
        """
        assert manifest.root_object == partial.root_object, "the manifest of another content"
        assert partial.complete, "chunks are missing"
        try:
            partial.sync()
            stored = self._place(partial.data_fd, partial.data_path, manifest)
            partial.discard()
            return stored
        finally:
            partial.close()

    def _store_copy(self, source: int, status: os.stat_result) -> Stored:
        with self._temp(status.st_size) as temp, FileHashes(temp.fd) as hashes:
            copier = Copier(source, temp.fd, self.directory)
            while copier.copied < status.st_size:
                self._check_space(status.st_size - copier.copied)
                if not copier.step(status.st_size):
                    raise source_changed()
                with writing_to(self.directory):
                    hashes.grown(copier.copied)
            check_unchanged(status, source)
            with writing_to(self.directory):
                manifest = hashes.finish(copier.copied)
            return self._place_temp(temp, manifest)

    @contextlib.contextmanager
    def _temp(self, need: int) -> Iterator[TempFile]:
        with TempFile(self._directories) as temp:
            self._check_space(need)
            if not self._swept:
                self._swept = True
                self.sweep()
            yield temp

    def _check_space(self, need: int) -> None:
        with writing_to(self.directory):
            check_space(self.directory, need, self.reserve_bytes)

    def _place_temp(self, temp: TempFile, manifest: Manifest) -> Stored:
        stored = self._place(temp.fd, temp.path, manifest)
        # Whether it was renamed or another one stood there: nothing of ours to lose remains.
        temp.moved = not os.path.lexists(temp.path)
        return stored

    def _place(self, fd: int, path: str, manifest: Manifest) -> Stored:
        """Make the file at `path` the object, unless a good one stands there already."""
        self._objects.check_pinned(manifest.content, manifest)
        target = blob_path(self.directory, manifest.content)
        with writing_to(self.directory):
            parent = self._make_parent(target)
            with _locked_directory(parent) as parent_fd:
                if not self._stands(manifest):
                    os.fchmod(fd, 0o444)
                    sync_file(fd)
                    os.rename(path, target)
                    sync_open_directory(parent_fd)
                    self._objects.remember(manifest.content, os.fstat(fd), manifest)
                else:
                    # Its writer may be a moment away from doing so.
                    sync_open_directory(parent_fd)
        return Stored(manifest.content, manifest.root, manifest.size, target)

    def _make_parent(self, target: str) -> str:
        parent = os.path.dirname(target)
        self._directories.make(parent)
        if not os.path.isdir(parent):  # somebody removed it since we last looked
            self._directories.forget()
            self._directories.make(parent)
        return parent

    def _stands(self, manifest: Manifest) -> bool:
        """True if the very content stands under its name; a bad file there is moved away."""
        try:
            opened = self._objects.open(manifest.content)
        except CorruptObjectError:
            if os.path.lexists(blob_path(self.directory, manifest.content)):
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

    def _stored_earlier(self, status: os.stat_result) -> Stored | None:
        source = self._index.source_of(status)
        return None if source is None else self._stored(*source)

    def _stored(self, content: ContentHash, root: Root) -> Stored | None:
        known = self.known(content)
        if known is None or known.root != root:
            return None
        return Stored(content, root, known.size, blob_path(self.directory, content))

    def _remember_source(self, status: os.stat_result, stored: Stored) -> None:
        try:
            self._index.remember_source(status, stored.content, stored.root)
        except StoreError as error:
            log.warning("the index could not note what was stored: %s", error)

    # --- finding ------------------------------------------------------------------------

    def find(self, content: ContentHash) -> str | None:
        """Where the object lies, if a regular file is there. It is not read."""
        path = blob_path(self.directory, content)
        try:
            return path if stat.S_ISREG(os.lstat(path).st_mode) else None
        except OSError:
            return None

    def known(self, content: ContentHash) -> RootObject | None:
        """The root object of the stored file, if it is known without reading the file."""
        try:
            status = os.lstat(blob_path(self.directory, content))
        except OSError:
            return None
        return self._index.known(content, status) if stat.S_ISREG(status.st_mode) else None

    def page(self, content: ContentHash, number: int) -> bytes | None:
        """The chunk hashes of a page of a stored file, if the file was hashed."""
        return self._index.page(content, number)

    def pinned_root(self, content: ContentHash) -> Root | None:
        """The root of the bytes this node has itself hashed under `content`, now or earlier."""
        return self._index.pinned_root(content)

    def open_verified(self, content: ContentHash) -> Opened:
        """The object, open, hashed first if this node has not done so; the caller closes it.

        Raises NotFoundError, or CorruptObjectError after moving a bad file to quarantine.
        """
        opened = self._objects.open(content)
        if opened is None:
            raise NotFoundError(f"sha1://{content} is not stored in {self.directory}")
        return opened

    def copy_to(self, content: ContentHash, dest: str, name: str | None = None) -> str:
        """Write a copy to the path `dest`, or as `name` into the directory `dest`; where it is."""
        path = self.find(content)
        if path is None:
            raise NotFoundError(f"sha1://{content} is not stored in {self.directory}")
        with opened_source(path) as fd:
            return copy_whole(fd, _destination(dest, name))

    # --- housekeeping -------------------------------------------------------------------

    def sweep(self) -> int:
        """Remove temporary files whose writers were killed; how many."""
        return sweep(self.directory)


def _destination(dest: str, name: str | None) -> str:
    if not os.path.isdir(dest):
        return dest
    if name is None:
        raise ResolutionError(f"{dest} is a directory", hint="give the name of a file in it")
    from kachery_p2p.content.uris import check_label

    return os.path.join(dest, check_label(name))


@contextlib.contextmanager
def _locked_directory(path: str) -> Iterator[int]:
    """A descriptor of the directory; of several writers of one object the others wait.

    A courtesy that saves needless renames, so it is given up after a while (anybody who
    may read the directory could hold it) and where directories cannot be locked (NFS).
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        patience_ends = time.monotonic() + INDEX_BUSY_S_MAX
        while _busy(fd) and time.monotonic() < patience_ends:
            time.sleep(0.005)
        yield fd
    finally:
        os.close(fd)


def _busy(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
