"""The blob store: immutable bytes under their SHA-1, each acknowledged only when it is safe.

To store is to write a temporary file while hashing it, fsync it, rename it to its
name, and fsync every directory that gained an entry; then to answer. At any moment a
kill or a power cut leaves either the whole object under its name or nothing there.
A file that already stands under the name is never overwritten (`placing`). Many objects
at once share two syncs of the file system (`groups`). A file may also be linked instead
of copied (`links`); what is said of objects below holds for linked files too, but they
are the user's: they are never moved, changed or removed.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import stat
from collections.abc import Iterable, Iterator

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.manifests import Manifest, RootObject, chunk_hashes
from kachery_p2p.errors import (
    KacheryError,
    NotFoundError,
    StoreError,
    VerificationError,
)
from kachery_p2p.limits import CHUNK_BYTES, DISK_RESERVE_BYTES, GROUP_OBJECTS_MIN
from kachery_p2p.store.cleanup import sweep
from kachery_p2p.store.copying import copy_whole, destination_of
from kachery_p2p.store.durable import DurableDirectories
from kachery_p2p.store.groups import Group, Item, Outcome
from kachery_p2p.store.hashing import hash_bytes, sha1_of_chunk
from kachery_p2p.store.index import Index
from kachery_p2p.store.intake import Intake, Progress, quietly, settled_status
from kachery_p2p.store.known_files import KnownFiles
from kachery_p2p.store.links import Links
from kachery_p2p.store.listing import Checked, Listed, list_objects
from kachery_p2p.store.objects import Objects, Opened, Stored, stored, stored_earlier
from kachery_p2p.store.partials import Partial
from kachery_p2p.store.paths import blob_path, parent_of
from kachery_p2p.store.placing import Placing
from kachery_p2p.store.small import Named, SmallObjects, ignored
from kachery_p2p.store.sources import Source, opened_source
from kachery_p2p.store.temps import TempFile
from kachery_p2p.store.verified import VerifiedGroups

__all__ = ["BlobStore", "Checked", "Item", "Listed", "Opened", "Outcome", "Stored"]

log = logging.getLogger(__name__)


class BlobStore:
    """The store in `directory`. Safe in many threads and processes, and beside older tools."""

    def __init__(
        self, directory: str, index: Index, reserve_bytes: int = DISK_RESERVE_BYTES
    ) -> None:
        self.directory = os.path.abspath(directory)
        self._index = index
        self._directories = DurableDirectories(self.directory)
        self._intake = Intake(self.directory, reserve_bytes)
        self._objects = Objects(self._directories, index)
        self._placing = Placing(self._directories, self._objects)
        self.known_files = KnownFiles(self.directory, index)
        self._small = SmallObjects(self._directories, self._objects, index, self._make_room)
        self.verified = VerifiedGroups(
            self._directories, index, self._make_room, lambda data: self._put_one(data, quietly)
        )
        links = os.path.join(os.path.dirname(index.path), "links.db")
        self._links = Links(links, self.directory, index)
        self._swept = False

    @property
    def reserve_bytes(self) -> int:
        """How much of the disk is kept free."""
        return self._intake.reserve_bytes

    def close(self) -> None:
        """Close what the store itself has open (not the index); a later use opens it again."""
        self._links.close()

    # --- storing ------------------------------------------------------------------------

    def put_file(self, source: Source, progress: Progress = quietly) -> Stored:
        """Store a copy of the file at a path, or behind a descriptor, which stays open.

        At once, without reading it, if it was stored before and has not changed.
        `progress` is told how many more bytes were taken. Raises SourceFileError,
        SourceChangedError, HashCollisionError or a StoreError.
        """
        with opened_source(source) as fd:
            status, settled = settled_status(fd)
            earlier = stored_earlier(self.directory, self._index, status)
            if earlier is not None:
                progress(earlier.size)
                return earlier
            with TempFile(self._directories) as temp:
                self._make_room(status.st_size)
                manifest = self._intake.take_file(temp.fd, fd, status, progress)
                kept = self._place_temp(temp, manifest)
        if settled:
            self._remember_source(status, kept)
        return kept

    def put_bytes(self, data: bytes, named: Named = ignored) -> Stored:
        """Store bytes that are in memory.

        What `named` makes durable of its own, told of the content when that has its name, is
        on the disk with it: together they take less time. What it raises is raised.
        """
        if 0 < len(data) <= CHUNK_BYTES:
            content, sha1 = sha1_of_chunk(data)
            kept = self._small.put(data, content, sha1, named)
            if kept is not None:
                return kept
            manifest = chunk_hashes(content, sha1, data).manifest
        else:
            manifest = hash_bytes(data)
        kept = self._put_whole(data, manifest)
        named(kept.content)
        return kept

    def _put_whole(self, data: bytes, manifest: Manifest) -> Stored:
        earlier = stored(self.directory, self._index, manifest.content, manifest.root)
        if earlier is not None:
            return earlier
        with TempFile(self._directories) as temp:
            self._make_room(len(data))
            self._intake.take_bytes(temp.fd, data)
            return self._place_temp(temp, manifest)

    def put_stream(
        self, pieces: Iterable[bytes], expected: ContentHash | None = None, size: int = 0
    ) -> Stored:
        """Store bytes as they come; `size` of them are expected (0: not known).

        Raises VerificationError, and keeps nothing, if they do not have the SHA-1 `expected`.
        """
        with TempFile(self._directories) as temp:
            self._make_room(size)
            manifest = self._intake.take_stream(temp.fd, pieces)
            if expected is not None and manifest.content != expected:
                raise VerificationError(
                    f"the {manifest.size} bytes received have the sha1 {manifest.content}, "
                    f"not {expected}: nothing was stored"
                )
            return self._place_temp(temp, manifest)

    def put_many(self, items: Iterable[Item], progress: Progress = quietly) -> Iterator[Outcome]:
        """Store many: bytes as content, paths and descriptors as files, when iterated over.

        Yields what became of each, in their order: Stored, durable by then, or the error
        for which this one was not. Below 64 each is made durable by itself; from then on
        groups of them share the waits for the disk, and are answered together: what has
        not been answered may have to be stored again after a kill. Raises a StoreError if
        the store as a whole cannot be written. `progress` is told of files, as in `put_file`.
        """
        items = iter(items)
        first = list(itertools.islice(items, GROUP_OBJECTS_MIN))
        if len(first) < GROUP_OBJECTS_MIN:
            for item in first:
                yield self._put_one(item, progress)
            return
        items = itertools.chain(first, items)
        for item in items:
            group = Group(self._directories, self._intake, self._placing, self._index, progress)
            yield from group.store(itertools.chain([item], items))
            self._sweep_once()

    def _put_one(self, item: Item, progress: Progress) -> Outcome:
        try:
            return (
                self.put_bytes(item) if isinstance(item, bytes) else self.put_file(item, progress)
            )
        except KacheryError as error:
            return error

    def link_file(self, path: str | os.PathLike[str]) -> Stored:
        """Let the file at `path` stand for its content, without a copy; it is read once.

        It is served and loaded from where it lies, as long as it keeps its bytes. Raises
        SourceFileError, SourceChangedError, HashCollisionError or a StoreError.
        """
        path = os.path.abspath(os.fspath(path))
        with opened_source(path) as fd:
            return self._links.add(path, fd)

    def adopt_partial(self, partial: Partial, manifest: Manifest) -> Stored:
        """A finished download becomes the object, without a copy; the partial is no more.

        The caller has hashed every byte: `manifest` carries the SHA-1 it found. After an error
        the partial is there still, and the caller closes or discards it.
        """
        assert manifest.root_object == partial.root_object, "the manifest of another content"
        assert partial.complete, "chunks are missing"
        partial.sync()
        self._placing.place(partial.data_fd, partial.data_path, manifest)
        partial.discard()
        return self._stored(manifest)

    def _make_room(self, need: int) -> None:
        self._intake.check_space(need)
        self._sweep_once()

    def _place_temp(self, temp: TempFile, manifest: Manifest) -> Stored:
        temp.moved = self._placing.place(temp.fd, temp.path, manifest)
        return self._stored(manifest)

    def _stored(self, manifest: Manifest) -> Stored:
        path = blob_path(self.directory, manifest.content)
        return Stored(manifest.content, manifest.root, manifest.size, path)

    def flush_index(self) -> None:
        """Let other processes know what the index of this one knows: they need not hash it."""
        try:
            self._index.write_waiting()
        except StoreError as error:
            log.warning("the index could not note what was stored: %s", error)

    def _remember_source(self, status: os.stat_result, kept: Stored) -> None:
        try:
            self._index.remember_source(status, kept.content, kept.root)
        except StoreError as error:
            log.warning("the index could not note what was stored: %s", error)

    # --- finding ------------------------------------------------------------------------

    def find(self, content: ContentHash) -> str | None:
        """Where the object should be had from: its path, or that of a linked file, not read."""
        path = blob_path(self.directory, content)
        try:
            if stat.S_ISREG(os.lstat(path).st_mode):
                return path
        except OSError:
            pass
        return self._links.find(content)

    def find_each(self, contents: Iterable[ContentHash]) -> list[str | None]:
        """As `find` of each, in less time for those that are not here."""
        links = self._links.exist

        def found(content: ContentHash) -> str | None:
            # Without its directory there is neither the object nor a note of kachery-client's.
            if not links and not os.path.exists(parent_of(blob_path(self.directory, content))):
                return None
            return self.find(content)

        return [found(content) for content in contents]

    def known(self, content: ContentHash) -> RootObject | None:
        """The root object of the stored file, if it is known without reading the file."""
        path = self.find(content)
        try:
            return None if path is None else self._index.known(content, os.stat(path))
        except OSError:
            return None

    def page(self, content: ContentHash, number: int) -> bytes | None:
        """The chunk hashes of a page of a stored file, if the file was hashed."""
        return self._index.page(content, number)

    def pinned_root(self, content: ContentHash) -> Root | None:
        """The root of the bytes this node has itself hashed under `content`, now or earlier."""
        return self._index.pinned_root(content)

    def open_verified(self, content: ContentHash) -> Opened:
        """The object, open, hashed first if this node has not done so; the caller closes it.

        Raises NotFoundError (LinkChangedError if it was linked and has changed), or
        CorruptObjectError after moving a bad file to quarantine.
        """
        return self._open(content)[0]

    def vouch(self, contents: Iterable[ContentHash]) -> dict[ContentHash, KacheryError | None]:
        """For each content, None if it may be granted; else why not.

        It may if this node has hashed the file as it stands; now, if not before. Otherwise
        it is a NotFoundError, or a CorruptObjectError, whose file is in quarantine by then.
        """
        return {content: self._vouched(content) for content in contents}

    def _vouched(self, content: ContentHash) -> KacheryError | None:
        try:
            self.open_verified(content).close()
        except KacheryError as error:
            return error
        return None

    def local_path(self, content: ContentHash) -> str:
        """A path to load the content from: the object, or a linked file that is verified.

        The object itself is trusted, as `find` finds it; raises as `open_verified`.
        """
        path = self.find(content)
        if path is not None and path == blob_path(self.directory, content):
            return path
        opened, path = self._open(content)
        opened.close()
        return path

    def _open(self, content: ContentHash, *, anew: bool = False) -> tuple[Opened, str]:
        opened = self._objects.open(content, anew=anew)
        if opened is not None:
            return opened, blob_path(self.directory, content)
        linked = self._links.open(content, anew=anew)
        if linked is None:
            raise self._not_found(content)
        return linked

    def _not_found(self, content: ContentHash) -> NotFoundError:
        link = self._links.get(content)
        if link is None:
            return NotFoundError(f"sha1://{content} is not stored in {self.directory}")
        return NotFoundError(
            f"sha1://{content} was linked to {link.path}, which is not there",
            hint="put the file back, or remove the link",
        )

    def copy_to(self, content: ContentHash, dest: str, name: str | None = None) -> str:
        """Write a copy to the path `dest`, or as `name` into the directory `dest`; where it is."""
        with opened_source(self.local_path(content)) as fd:
            return copy_whole(fd, destination_of(dest, name))

    # --- looking after it ---------------------------------------------------------------

    def list_objects(self) -> Iterator[Listed]:
        """All objects with their sizes, then the linked files; nothing is read."""
        yield from list_objects(self.directory)
        for link in self._links.all():
            if not os.path.lexists(blob_path(self.directory, link.content)):
                yield Listed(link.content, link.size, link.path, linked=True)

    def linked_contents(self) -> set[ContentHash]:
        """The contents that files of the user's stand for, whether objects do too or not."""
        return {link.content for link in self._links.all()}

    def is_linked(self, content: ContentHash) -> bool:
        """Whether it is one of `linked_contents`."""
        return self._links.get(content) is not None

    def source_contents(self) -> set[ContentHash]:
        """The contents of the user's files that were stored here."""
        return self._index.source_contents()

    def verify(self, content: ContentHash) -> RootObject:
        """Hash the object anew, from the disk, whatever is known. Raises as `open_verified`."""
        with self._open(content, anew=True)[0] as opened:
            return opened.root_object

    def verify_store(
        self, sample: float = 1.0, rng: random.Random | None = None
    ) -> Iterator[Checked]:
        """`verify` all objects and linked files, or that share of them which `rng` picks.

        Bad ones are in quarantine when they are yielded, with the error that says so.
        """
        rng = rng or random.Random()  # noqa: S311 (a sample, not a secret)
        for listed in self.list_objects():
            if sample >= 1 or rng.random() < sample:
                yield from self._checked(listed, anew=True)

    def rebuild_index(self) -> Iterator[Checked]:
        """Hash what this node has never hashed, and forget what is gone; yields what was hashed."""
        for listed in self.list_objects():
            if self.known(listed.content) is None:
                yield from self._checked(listed, anew=False)
        for content in self._index.contents():
            if self.find(content) is None:
                self._index.forget(content)

    def _checked(self, listed: Listed, *, anew: bool) -> Iterator[Checked]:
        try:
            self._open(listed.content, anew=anew)[0].close()
        except KacheryError as error:
            # Removed since it was listed: nothing to say about.
            if listed.linked or not isinstance(error, NotFoundError):
                yield Checked(listed, error)
        else:
            yield Checked(listed, None)

    def remove(self, content: ContentHash) -> int:
        """Remove the object, or end the link; how many bytes that freed.

        Its grants are the caller's to revoke. Raises NotFoundError if it is not there.
        """
        freed = self._placing.remove(content)
        unlinked = self._links.drop(content)
        if freed is None and not unlinked:
            raise self._not_found(content)
        self._index.forget(content)
        return freed or 0

    def sweep(self) -> int:
        """Remove what killed writers and vanished nodes left; how many files or downloads."""
        return sweep(self.directory)

    def _sweep_once(self) -> None:
        if not self._swept:
            self._swept = True
            self.sweep()
