"""Files that are linked, not copied: the user's own file stands for the object.

A link is a promise of the user's that the file will stay; so nothing is believed of it
that was not looked at. While device, inode, size, mtime and ctime are those it had when
it was hashed, it is what it was. Otherwise it is hashed again: the same content is
fine, other content ends the link. A file that is gone may come back (a disk that is not
mounted), so its link stays.

The links of older packages lie in the store as JSON. They are only hints where to look:
the file is hashed before it is used, whatever they say, and they are never changed.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from typing import NamedTuple

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.manifests import RootObject
from kachery_p2p.errors import LinkChangedError, NotFoundError, StoreError
from kachery_p2p.store.database import Database, Schema
from kachery_p2p.store.index import Index
from kachery_p2p.store.objects import (
    READINGS_MAX,
    KeyedLocks,
    Opened,
    Read,
    Stored,
    collision,
    read_settled,
)
from kachery_p2p.store.old_links import old_links
from kachery_p2p.store.paths import blob_path
from kachery_p2p.store.sources import source_changed

log = logging.getLogger(__name__)

SCHEMA = Schema(
    version=1,
    statements=(
        # Numbers as text: device and inode may be above SQLite's 2^63.
        "CREATE TABLE links (content BLOB PRIMARY KEY, root BLOB NOT NULL, path BLOB NOT NULL,"
        " dev TEXT NOT NULL, ino TEXT NOT NULL, size INTEGER NOT NULL,"
        " mtime_ns TEXT NOT NULL, ctime_ns TEXT NOT NULL) WITHOUT ROWID",
    ),
    synchronous="FULL",
)
# Files that older links name and that were read and found to be something else: a hundred
# bytes each. Without it each request would read them again.
_REFUSED_MAX = 1_024


class Link(NamedTuple):
    """A file at `path`, of `size` bytes then, that stands for an object."""

    content: ContentHash
    path: str
    size: int
    ours: bool


class Links:
    """The links of one node, in the file at `path`, and those of older packages in `store`."""

    def __init__(self, path: str, store: str, index: Index) -> None:
        self._path = path
        self._store = store
        self._index = index
        self._database = Database(path, SCHEMA, _move_aside)
        self._one_at_a_time = KeyedLocks()
        self._refused: set[tuple[str, tuple[int, ...]]] = set()

    def close(self) -> None:
        """Close the file; a later use opens it again."""
        self._database.close()

    def add(self, path: str, fd: int) -> Stored:
        """Link the open file at `path`, reading it unless it was stored or linked before."""
        for _ in range(READINGS_MAX):
            status = os.fstat(fd)
            known = self._index.source_of(status)
            if known is None:
                read = read_settled(fd, path)
                if read is None:
                    continue
                status, known = read.status, (read.manifest.content, read.manifest.root)
                self._learn(read)
            self.put(*known, path, status)
            return Stored(*known, status.st_size, path)
        raise source_changed()

    def _learn(self, read: Read) -> None:
        """The index knows a file that stands for its content, unless an object does already."""
        content, root = read.manifest.content, read.manifest.root
        if self._index.pinned_root(content) not in (None, root):
            raise collision(content)
        if not os.path.lexists(blob_path(self._store, content)):
            self._index.remember(content, read.status, read.manifest)
        self._index.remember_source(read.status, content, root)

    def put(self, content: ContentHash, root: Root, path: str, status: os.stat_result) -> None:
        """From now on the file at `path` stands for `content`. On disk when it returns."""
        row = (
            content.raw,
            root.raw,
            os.fsencode(path),
            str(status.st_dev),
            str(status.st_ino),
            status.st_size,
            str(status.st_mtime_ns),
            str(status.st_ctime_ns),
        )
        self._database.write(
            lambda connection: connection.execute(
                "INSERT OR REPLACE INTO links VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row
            )
        )

    def drop(self, content: ContentHash) -> bool:
        """The link is no more; False if there was none. The user's file is not touched."""
        if not os.path.exists(self._path):
            return False
        return self._database.write(
            lambda connection: (
                connection.execute("DELETE FROM links WHERE content = ?", (content.raw,)).rowcount
                > 0
            )
        )

    @property
    def exist(self) -> bool:
        """False if no file was ever linked, by us or by kachery-cloud."""
        return os.path.exists(self._path) or os.path.exists(f"{self._store}/linked_files")

    def all(self) -> Iterator[Link]:
        """Our links, in the order of their contents."""
        for row in self._rows("SELECT content, path, size FROM links ORDER BY content"):
            yield _link(row)

    def get(self, content: ContentHash) -> Link | None:
        """Our link of `content`."""
        rows = self._rows("SELECT content, path, size FROM links WHERE content = ?", content.raw)
        return _link(rows[0]) if rows else None

    def find(self, content: ContentHash) -> str | None:
        """The path of a file that is linked as `content` and has the right size; not read."""
        for link in self._candidates(content):
            try:
                status = os.stat(link.path)
            except (OSError, ValueError):
                continue
            # One of ours that has another size now: to open it is to say so.
            if stat.S_ISREG(status.st_mode) and (link.ours or link.size == status.st_size):
                return link.path
        return None

    def open(self, content: ContentHash, *, anew: bool = False) -> tuple[Opened, str] | None:
        """The linked file, verified now or (unless `anew`) earlier, and its path; or None.

        Raises LinkChangedError if it has other content now; our link is then removed.
        """
        for link in self._candidates(content):
            with self._one_at_a_time.lock(content):
                if (opened := self._open(link, anew)) is not None:
                    return opened, link.path
        return None

    def _candidates(self, content: ContentHash) -> Iterator[Link]:
        if (ours := self.get(content)) is not None:
            yield ours
        for old in old_links(self._store, content):
            yield Link(content, old.path, old.size, ours=False)

    def _open(self, link: Link, anew: bool) -> Opened | None:
        fd = _open_regular(link.path)
        if fd is None:
            return None
        try:
            known = None if anew else self._index.known(link.content, os.fstat(fd))
            if (root_object := known or self._hashed(link, fd)) is None:
                return None
            opened, fd = Opened(fd, root_object), None
            return opened
        finally:
            if fd is not None:
                os.close(fd)

    def _hashed(self, link: Link, fd: int) -> RootObject | None:
        """Read the file; what it is, if it is what it was linked as."""
        if not link.ours and (link.path, _state(os.fstat(fd))) in self._refused:
            return None
        read = self._read(link, fd)
        if read.manifest.content != link.content:
            self._refuse(link, read.status)
            return None
        try:
            self._learn(read)
            if link.ours:
                self.put(link.content, read.manifest.root, link.path, read.status)
        except StoreError as error:
            log.warning("the index could not note %s: %s", link.path, error)
        return read.manifest.root_object

    @staticmethod
    def _read(link: Link, fd: int) -> Read:
        for _ in range(READINGS_MAX):
            read = read_settled(fd, f"{link.path}, linked as {link.content},")
            if read is not None:
                return read
        raise NotFoundError(
            f"the file {link.path}, linked as {link.content}, is being written",
            hint="try again when its writer has finished",
        )

    def _refuse(self, link: Link, status: os.stat_result) -> None:
        if link.ours:
            self.drop(link.content)
            raise LinkChangedError(
                f"the file {link.path}, linked as {link.content}, has other content now: "
                "the link was removed",
                hint="link or store the file again for a new URI",
            )
        log.warning("%s is not the content %s it was linked as", link.path, link.content)
        if len(self._refused) >= _REFUSED_MAX:
            self._refused.clear()
        self._refused.add((link.path, _state(status)))

    def _rows(self, query: str, *values: object) -> list[tuple[bytes, bytes, int]]:
        # Most nodes link nothing: they are not asked to keep a database for it.
        if not os.path.exists(self._path):
            return []

        def question(connection: sqlite3.Connection) -> list[tuple[bytes, bytes, int]]:
            return connection.execute(query, values).fetchall()

        return self._database.read(question)


def _link(row: tuple[bytes, bytes, int]) -> Link:
    return Link(ContentHash.of_raw(row[0]), os.fsdecode(row[1]), row[2], ours=True)


def _open_regular(path: str) -> int | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def _state(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _move_aside(path: str) -> None:
    kept = f"{path}.damaged-{time.time_ns()}"
    log.warning("the links in %s are damaged: kept as %s; link your files again", path, kept)
    for suffix in ("-wal", "-shm"):
        if os.path.exists(path + suffix):
            os.rename(path + suffix, kept + suffix)
    os.rename(path, kept)
