"""What this node knows of the files it has hashed itself: the index of a store.

A file is *known* while device, inode, size, mtime and ctime are those it had when
both its hashes were computed; anything else is hashed before it is served. The
index is kept in the node's own state directory, not in the store, which others may
write. It can be lost without harm: files are then hashed again.

A content's root stays *pinned* after its file has changed or gone: that we have read
those bytes remains true, and a second root for one SHA-1 is a forgery.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.manifests import Manifest, RootObject
from kachery_p2p.errors import DataFormatError
from kachery_p2p.store.database import Database, Schema

log = logging.getLogger(__name__)

# A blob, not five integers: device and inode numbers may be above SQLite's 2^63.
_FILE = struct.Struct(">QQ")
_STATE = struct.Struct(">QQQ")
_MASK = (1 << 64) - 1
_LISTED_AT_ONCE = 1_000

SCHEMA = Schema(
    version=1,
    statements=(
        "CREATE TABLE objects (content BLOB PRIMARY KEY, file BLOB, state BLOB,"
        " root BLOB NOT NULL, root_object BLOB)",
        "CREATE TABLE pages (content BLOB NOT NULL, number INTEGER NOT NULL,"
        " hashes BLOB NOT NULL, PRIMARY KEY (content, number))",
        "CREATE TABLE sources (file BLOB PRIMARY KEY, state BLOB NOT NULL,"
        " content BLOB NOT NULL, root BLOB NOT NULL)",
    ),
    synchronous="NORMAL",
)


class Remembered(NamedTuple):
    """A file with this status was read whole and has the hashes of the manifest."""

    manifest: Manifest
    root: Root
    status: os.stat_result


class Index:
    """The index at `path`, shared by this user's processes and threads."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._database = Database(path, SCHEMA, _move_aside)

    def is_current(self) -> bool:
        """False if somebody removed or replaced the file since it was opened."""
        return self._database.is_current()

    def close(self) -> None:
        """Close the file; a later use opens it again."""
        self._database.close()

    def known(self, content: ContentHash, status: os.stat_result) -> RootObject | None:
        """The root object of the file with this `status`, if it is the file we hashed."""
        row = self._one(
            "SELECT root_object, root FROM objects WHERE content = ? AND file = ? AND state = ?",
            (content.raw, *_identity(status)),
        )
        return None if row is None else _sound(row[0], row[1])

    def page(self, content: ContentHash, number: int) -> bytes | None:
        """The chunk hashes of page `number` of the pinned manifest, while we hold the file."""
        row = self._one(
            "SELECT hashes FROM pages WHERE content = ? AND number = ?", (content.raw, number)
        )
        return None if row is None else bytes(row[0])

    def pinned_root(self, content: ContentHash) -> Root | None:
        """The root of the bytes that this node has hashed under `content`, now or earlier."""
        row = self._one("SELECT root FROM objects WHERE content = ?", (content.raw,))
        return None if row is None else Root.of_raw(row[0])

    def pinned_roots(self, contents: Iterable[ContentHash]) -> dict[ContentHash, Root]:
        """The pinned roots of those of many contents that have one."""

        def question(connection: sqlite3.Connection) -> dict[ContentHash, Root]:
            roots = {}
            for content in contents:
                query = "SELECT root FROM objects WHERE content = ?"
                if (row := connection.execute(query, (content.raw,)).fetchone()) is not None:
                    roots[content] = Root.of_raw(row[0])
            return roots

        return self._database.read(question)

    def remember(self, content: ContentHash, status: os.stat_result, manifest: Manifest) -> None:
        """The file with this `status` was read whole and has the hashes in `manifest`."""
        self._database.write(
            lambda connection: _remember(
                connection, [Remembered(manifest, manifest.root, status)], content
            )
        )

    def note(
        self,
        objects: Sequence[Remembered],
        sources: Sequence[tuple[os.stat_result, ContentHash, Root]] = (),
    ) -> None:
        """As `remember` and `remember_source` for many files, in one commit."""

        def change(connection: sqlite3.Connection) -> None:
            _remember(connection, objects)
            for source in sources:
                _remember_source(connection, *source)

        if objects or sources:
            self._database.write(change)

    def forget(self, content: ContentHash) -> None:
        """The file is gone or bad: it is known no more. Its root stays pinned."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM pages WHERE content = ?", (content.raw,))
            connection.execute(
                "UPDATE objects SET file = NULL, state = NULL, root_object = NULL"
                " WHERE content = ?",
                (content.raw,),
            )

        self._database.write(change)

    def source_of(self, status: os.stat_result) -> tuple[ContentHash, Root] | None:
        """What was stored from the user's file with this `status`, if it has not changed since."""
        row = self._one(
            "SELECT content, root FROM sources WHERE file = ? AND state = ?", _identity(status)
        )
        return None if row is None else (ContentHash.of_raw(row[0]), Root.of_raw(row[1]))

    def remember_source(self, status: os.stat_result, content: ContentHash, root: Root) -> None:
        """The user's file with this `status` was stored as `content`."""
        self._database.write(lambda connection: _remember_source(connection, status, content, root))

    def contents(self) -> Iterator[ContentHash]:
        """The contents whose files are known, in order; what changes meanwhile may be missed."""
        last = b""
        while rows := self._contents_after(last):
            yield from (ContentHash.of_raw(row[0]) for row in rows)
            last = rows[-1][0]

    def _contents_after(self, last: bytes) -> list[tuple[bytes]]:
        query = (
            "SELECT content FROM objects WHERE content > ? AND file IS NOT NULL"
            " ORDER BY content LIMIT ?"
        )
        return self._database.read(
            lambda connection: connection.execute(query, (last, _LISTED_AT_ONCE)).fetchall()
        )

    def _one(self, query: str, values: tuple[object, ...]) -> tuple[bytes, ...] | None:
        def question(connection: sqlite3.Connection) -> tuple[bytes, ...] | None:
            found: tuple[bytes, ...] | None = connection.execute(query, values).fetchone()
            return found

        return self._database.read(question)


def _remember(
    connection: sqlite3.Connection,
    objects: Sequence[Remembered],
    content: ContentHash | None = None,
) -> None:
    """Note the objects, under the name `content` if it is given."""
    names = [(content or one.manifest.content).raw for one in objects]
    connection.executemany("DELETE FROM pages WHERE content = ?", ((name,) for name in names))
    connection.executemany(
        "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?)",
        (
            (name, *_identity(one.status), one.root.raw, one.manifest.root_object.encode())
            for name, one in zip(names, objects, strict=True)
        ),
    )
    connection.executemany(
        "INSERT INTO pages VALUES (?, ?, ?)",
        (
            (name, number, page)
            for name, one in zip(names, objects, strict=True)
            for number, page in enumerate(one.manifest.pages)
        ),
    )


def _remember_source(
    connection: sqlite3.Connection, status: os.stat_result, content: ContentHash, root: Root
) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO sources VALUES (?, ?, ?, ?)",
        (*_identity(status), content.raw, root.raw),
    )


def _identity(status: os.stat_result) -> tuple[bytes, bytes]:
    file = _FILE.pack(status.st_dev & _MASK, status.st_ino & _MASK)
    state = _STATE.pack(
        status.st_size & _MASK, status.st_mtime_ns & _MASK, status.st_ctime_ns & _MASK
    )
    return file, state


def _sound(encoded: bytes, root: bytes) -> RootObject | None:
    """The root object of a row, or None, so that the file is hashed again, if a bit has flipped."""
    try:
        root_object = RootObject.decode(encoded)
    except DataFormatError:
        return None
    return root_object if root_object.root.raw == root else None


def _move_aside(path: str) -> None:
    kept = f"{path}.damaged-{time.time_ns()}"
    log.warning("the index %s is damaged: kept as %s; stored files are hashed again", path, kept)
    for suffix in ("-wal", "-shm"):
        if os.path.exists(path + suffix):
            os.rename(path + suffix, kept + suffix)
    os.rename(path, kept)
