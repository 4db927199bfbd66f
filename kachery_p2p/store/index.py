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

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.manifests import (
    HASH_BYTES,
    HEADER_BYTES,
    ChunkHashes,
    Manifest,
    RootObject,
    chunk_hash,
)
from kachery_p2p.errors import DataFormatError, StoreError
from kachery_p2p.limits import CHUNK_BYTES
from kachery_p2p.store.backlog import Backlog, Remembered, SourceSeen
from kachery_p2p.store.database import Database, Schema
from kachery_p2p.store.sources import same_state

log = logging.getLogger(__name__)

# A blob, not five integers: device and inode numbers may be above SQLite's 2^63.
_FILE = struct.Struct(">QQ")
_STATE = struct.Struct(">QQQ")
_MASK = (1 << 64) - 1
# A root object with one page hash.
_ONE_PAGE_BYTES = HEADER_BYTES + HASH_BYTES
_LISTED_AT_ONCE = 1_000
# Old builds of SQLite take no more values in one statement than 999.
_ASKED_AT_ONCE = 500
_MANY_ROOTS = "SELECT content, root FROM objects WHERE content IN "
_MANY_STATES = "SELECT content, file, state FROM objects WHERE content IN "

# What tells a file from another one, and from itself after a change.
FileState = tuple[bytes, bytes]

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


class Index:
    """The index at `path`, shared by this user's processes and threads."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._database = Database(path, SCHEMA, _move_aside)
        self._backlog = Backlog(self._write)

    def is_current(self) -> bool:
        """False if somebody removed or replaced the file since it was opened."""
        return self._database.is_current()

    def close(self) -> None:
        """Write what waits and close the file; a later use opens it again."""
        try:
            self.write_waiting()
        except StoreError as error:
            log.warning("the index could not note what was stored last: %s", error)
        self._database.close()

    def write_waiting(self) -> None:
        """Tell other processes what this one knows of small objects that it stored just now.

        Without it they hash them for themselves. Raises a StoreError.
        """
        self._backlog.write()

    def known(self, content: ContentHash, status: os.stat_result) -> RootObject | None:
        """The root object of the file with this `status`, if it is the file we hashed."""
        if (waiting := self._backlog.object(content)) and same_state(waiting.status, status):
            return waiting.manifest.root_object
        row = self._one(
            "SELECT root_object, root FROM objects WHERE content = ? AND file = ? AND state = ?",
            (content.raw, *state_of(status)),
        )
        return None if row is None else _sound(row[0], row[1])

    def page(self, content: ContentHash, number: int) -> bytes | None:
        """The chunk hashes of page `number` of the pinned manifest, while we hold the file."""
        if waiting := self._backlog.object(content):
            return waiting.manifest.pages[number] if number < len(waiting.manifest.pages) else None
        row = self._one("SELECT root_object FROM objects WHERE content = ?", (content.raw,))
        if row is None or row[0] is None:
            return None
        if only := _only_page(row[0]):
            return None if number else only
        row = self._one(
            "SELECT hashes FROM pages WHERE content = ? AND number = ?", (content.raw, number)
        )
        return None if row is None else bytes(row[0])

    def pinned_root(self, content: ContentHash) -> Root | None:
        """The root of the bytes that this node has hashed under `content`, now or earlier."""
        if waiting := self._backlog.object(content):
            return waiting.root
        row = self._one("SELECT root FROM objects WHERE content = ?", (content.raw,))
        return None if row is None else Root.of_raw(row[0])

    def pinned_roots(self, contents: Iterable[ContentHash]) -> dict[ContentHash, Root]:
        """The pinned roots of those of many contents that have one."""
        self.write_waiting()
        names = [content.raw for content in contents]

        def question(connection: sqlite3.Connection) -> dict[ContentHash, Root]:
            roots = {}
            for at in range(0, len(names), _ASKED_AT_ONCE):
                some = names[at : at + _ASKED_AT_ONCE]
                query = f"{_MANY_ROOTS}({','.join('?' * len(some))})"
                for name, root in connection.execute(query, some):
                    roots[ContentHash.of_raw(name)] = Root.of_raw(root)
            return roots

        return self._database.read(question)

    def known_states(self, contents: Iterable[ContentHash]) -> dict[ContentHash, FileState]:
        """Of those of many contents whose files are known the states in which they are."""
        self.write_waiting()
        names = [content.raw for content in contents]

        def question(connection: sqlite3.Connection) -> dict[ContentHash, FileState]:
            states = {}
            for at in range(0, len(names), _ASKED_AT_ONCE):
                some = names[at : at + _ASKED_AT_ONCE]
                query = f"{_MANY_STATES}({','.join('?' * len(some))})"
                for name, file, state in connection.execute(query, some):
                    if file is not None:
                        states[ContentHash.of_raw(name)] = (file, state)
            return states

        return self._database.read(question)

    def remember(self, content: ContentHash, status: os.stat_result, manifest: Manifest) -> None:
        """The file with this `status` was read whole and has the hashes in `manifest`.

        Written at once if hashing it again would take long, else with others, soon.
        """
        self.keep(Remembered(content, manifest, manifest.root, status))

    def keep(self, one: Remembered) -> None:
        """As `remember`."""
        if one.status.st_size <= CHUNK_BYTES:
            self._backlog.add_object(one)
        else:
            self.note([one])

    def note(self, objects: list[Remembered], sources: Sequence[SourceSeen] = ()) -> None:
        """As `remember` and `remember_source` for many files, in one commit."""
        self.note_rows([Rows(one) for one in objects], sources)

    def note_rows(self, objects: Sequence[Rows], sources: Sequence[SourceSeen]) -> None:
        """As `note`, for whoever made the rows earlier: it takes longer than to write them."""
        self.write_waiting()
        self._write_rows(objects, sources)

    def _write(self, objects: list[Remembered], sources: Sequence[SourceSeen]) -> None:
        self._write_rows([Rows(one) for one in objects], sources)

    def _write_rows(self, objects: Sequence[Rows], sources: Sequence[SourceSeen]) -> None:
        def change(connection: sqlite3.Connection) -> None:
            _remember(connection, objects)
            _remember_sources(connection, sources)

        if objects or sources:
            self._database.write(change)

    def forget(self, content: ContentHash) -> None:
        """The file is gone or bad: it is known no more. Its root stays pinned."""
        self.write_waiting()

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
        if (waiting := self._backlog.source(status)) and same_state(waiting.status, status):
            return waiting.content, waiting.root
        row = self._one(
            "SELECT content, root FROM sources WHERE file = ? AND state = ?", state_of(status)
        )
        return None if row is None else (ContentHash.of_raw(row[0]), Root.of_raw(row[1]))

    def source_contents(self) -> set[ContentHash]:
        """The contents of all files of the user that were ever stored as they are now."""
        self.write_waiting()
        rows = self._database.read(
            lambda connection: connection.execute("SELECT content FROM sources").fetchall()
        )
        return {ContentHash.of_raw(row[0]) for row in rows}

    def remember_source(self, status: os.stat_result, content: ContentHash, root: Root) -> None:
        """The user's file with this `status` was stored as `content`. Written as `remember`."""
        seen = SourceSeen(status, content, root)
        if status.st_size <= CHUNK_BYTES:
            self._backlog.add_source(seen)
        else:
            self.note([], [seen])

    def contents(self) -> Iterator[ContentHash]:
        """The contents whose files are known, in order; what changes meanwhile may be missed."""
        self.write_waiting()
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
        return self._database.row(query, values)


class Rows:
    """What the index holds of one object: a row, and one for each page if it has chunks."""

    __slots__ = ("of_pages", "row")

    def __init__(self, one: Remembered) -> None:
        content, manifest, root = one.content.raw, one.manifest, one.root.raw
        self.of_pages: Sequence[tuple[bytes, int, bytes]] = ()
        # Behind the root object is the page if there is but one chunk: most have but one row.
        if isinstance(manifest, ChunkHashes):
            encoded = manifest.encoded + manifest.page
        elif manifest.size > CHUNK_BYTES:
            encoded, pages = manifest.root_object.encode(), enumerate(manifest.pages)
            self.of_pages = [(content, number, page) for number, page in pages]
        else:
            encoded = b"".join((manifest.root_object.encode(), *manifest.pages))
        self.row = (content, *state_of(one.status), root, encoded)


def _remember(connection: sqlite3.Connection, objects: Sequence[Rows]) -> None:
    # In the order of the table, so that neighbours are written one after the other.
    rows = sorted(one.row for one in objects)
    connection.executemany("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?)", rows)
    connection.executemany(
        "INSERT OR REPLACE INTO pages VALUES (?, ?, ?)",
        [page for one in objects for page in one.of_pages],
    )


def _remember_sources(connection: sqlite3.Connection, sources: Sequence[SourceSeen]) -> None:
    connection.executemany(
        "INSERT OR REPLACE INTO sources VALUES (?, ?, ?, ?)",
        ((*state_of(seen.status), seen.content.raw, seen.root.raw) for seen in sources),
    )


def state_of(status: os.stat_result) -> FileState:
    """The state of the file with this status, as the index keeps it."""
    file = _FILE.pack(status.st_dev & _MASK, status.st_ino & _MASK)
    state = _STATE.pack(
        status.st_size & _MASK, status.st_mtime_ns & _MASK, status.st_ctime_ns & _MASK
    )
    return file, state


def _only_page(encoded: bytes) -> bytes | None:
    """The page behind the root object of a row; None if it is elsewhere, or a bit has flipped."""
    page = encoded[_ONE_PAGE_BYTES:]
    return page if page and chunk_hash(page) == encoded[HEADER_BYTES:_ONE_PAGE_BYTES] else None


def _sound(encoded: bytes, root: bytes) -> RootObject | None:
    """The root object of a row, or None, so that the file is hashed again, if a bit has flipped."""
    try:
        alone = encoded[:_ONE_PAGE_BYTES] if _only_page(encoded) else encoded
        root_object = RootObject.decode(alone)
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
