"""One SQLite file of state, shared by the threads and processes of one user.

WAL, so that a reader never waits for a writer; one connection of each kind per
process, so that a point read in the daemon's main thread does not wait behind a
write in a worker thread. Opened by the first use. A fork opens its own: SQLite's
connections must not cross one. What to do about a damaged file differs between the
index, which can be rebuilt, and the grants, which cannot: see `Damaged`.

Never on NFS: SQLite's locks do not hold there, and the shared `-wal` needs one machine.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from kachery_p2p.errors import (
    KacheryError,
    StateCorruptError,
    StateVersionError,
    StorageFailedError,
    StorageFullError,
    StorePermissionError,
)
from kachery_p2p.limits import INDEX_BUSY_S_MAX
from kachery_p2p.store.durable import sync_directory

Answer = TypeVar("Answer")
Damaged = Callable[[str], None]

_DAMAGE = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))
_DENIED = frozenset((sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM))
# Connections inherited through a fork. Closing one would release the parent's locks
# and may delete its -wal, so they are kept, unused, for the life of the child.
_inherited: list[_Connections] = []


class Schema(NamedTuple):
    """What a database file must hold: its version and the statements that make it."""

    version: int
    statements: tuple[str, ...]
    # "FULL": a commit is on disk when it returns. "NORMAL": it survives a killed process only.
    synchronous: str
    # Statements that make of an older version the next one, by the older one.
    upgrades: Mapping[int, tuple[str, ...]] = MappingProxyType({})


class _Connections(NamedTuple):
    reader: sqlite3.Connection
    writer: sqlite3.Connection
    reading: threading.RLock
    writing: threading.RLock
    inode: int


class Database:
    """The file at `path`. Methods are safe in any thread of any process of this user."""

    def __init__(self, path: str, schema: Schema, damaged: Damaged) -> None:
        self.path = path
        self._schema = schema
        self._damaged = damaged
        self._pid = os.getpid()
        self._opening = threading.RLock()
        self._open: _Connections | None = None

    def read(self, question: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """What `question` answers from one consistent snapshot."""
        try:
            return self._asked(question)
        except (sqlite3.Error, OSError) as error:
            return self._mended(error, lambda: self._asked(question))

    def _asked(self, question: Callable[[sqlite3.Connection], Answer]) -> Answer:
        connections = self._connections()
        with connections.reading:
            return question(connections.reader)

    def row(self, query: str, values: tuple[object, ...]) -> tuple[Any, ...] | None:
        """The first row that a query answers with; a third of the time that `read` takes."""
        try:
            connections = self._connections()
            with connections.reading:
                return _first(connections.reader, query, values)
        except (sqlite3.Error, OSError) as error:
            return self._mended(
                error, lambda: self._asked(lambda reader: _first(reader, query, values))
            )

    def write(self, change: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """What `change` answers, all of its changes committed, or none."""
        try:
            return self._committed(change)
        except (sqlite3.Error, OSError) as error:
            return self._mended(error, lambda: self._committed(change))

    def _committed(self, change: Callable[[sqlite3.Connection], Answer]) -> Answer:
        connections = self._connections()
        with connections.writing, _transaction(connections.writer) as connection:
            return change(connection)

    def is_current(self) -> bool:
        """False if the file that is open here was removed or replaced since."""
        connections = self._open
        if connections is None:
            return True
        try:
            return os.stat(self.path).st_ino == connections.inode
        except OSError:
            return False

    def close(self) -> None:
        """Close the connections of this process; a later use opens them again."""
        with self._opening:
            connections, self._open = self._open, None
        if connections is not None and self._pid == os.getpid():
            with connections.reading, connections.writing:
                connections.reader.close()
                connections.writer.close()

    def _mended(self, error: Exception, use: Callable[[], Answer]) -> Answer:
        """`use()`, after this error, if the damaged file could be replaced; else a typed error."""
        with self._typed_errors():
            if not isinstance(error, sqlite3.Error) or not _is_damage(error):
                raise error
            self._replace_damaged()
            return use()

    def _replace_damaged(self) -> None:
        with self._opening, _locked_file(f"{self.path}.lock"):
            damaged = self._open
            self.close()
            # Another process may already have put a sound file in its place.
            if damaged is None or damaged.inode == os.stat(self.path).st_ino:
                self._damaged(self.path)

    def _connections(self) -> _Connections:
        if self._pid != os.getpid():
            self._forget_inherited()
        if (connections := self._open) is not None:
            return connections
        with self._opening:
            if self._open is None:
                self._open = self._connect()
            return self._open

    def _forget_inherited(self) -> None:
        if self._open is not None:
            _inherited.append(self._open)
        self._open = None
        self._opening = threading.RLock()
        self._pid = os.getpid()

    def _connect(self) -> _Connections:
        directory = os.path.dirname(self.path)
        os.makedirs(directory, 0o700, exist_ok=True)
        # Many processes may open a new file at once: one after the other makes it.
        with _locked_file(f"{self.path}.lock"):
            _create_private(self.path)
            with contextlib.ExitStack() as undo:
                writer = _connection(self.path)
                undo.callback(writer.close)
                self._prepare(writer)
                reader = _connection(self.path)
                undo.pop_all()
        inode = os.stat(self.path).st_ino
        return _Connections(reader, writer, threading.RLock(), threading.RLock(), inode)

    def _prepare(self, writer: sqlite3.Connection) -> None:
        version = writer.execute("PRAGMA user_version").fetchone()[0]
        if version > self._schema.version:
            raise StateVersionError(
                f"{self.path} was written by a newer kachery_p2p "
                f"(schema {version}, this one reads {self._schema.version})",
                hint="upgrade kachery_p2p",
            )
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute(f"PRAGMA synchronous = {self._schema.synchronous}")
        if version == 0:
            self._run(writer, self._schema.statements)
        elif version < self._schema.version:
            self._back_up(writer, version)
            upgrades = [self._schema.upgrades[n] for n in range(version, self._schema.version)]
            self._run(writer, [statement for upgrade in upgrades for statement in upgrade])

    def _run(self, writer: sqlite3.Connection, statements: Sequence[str]) -> None:
        """Bring the file to the schema's version, or leave it as it was."""
        with _transaction(writer):
            for statement in statements:
                writer.execute(statement)
            writer.execute(f"PRAGMA user_version = {self._schema.version}")

    def _back_up(self, writer: sqlite3.Connection, version: int) -> None:
        """A copy of the older file as PATH.vN, should somebody go back to the older program."""
        copy = f"{self.path}.v{version}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(copy)
        _create_private(copy)
        writer.execute("VACUUM INTO ?", (copy,))

    @contextlib.contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _typed(error, self.path) from error
        except OSError as error:
            raise _typed_opening(error, self.path) from error


def _first(
    reader: sqlite3.Connection, query: str, values: tuple[object, ...]
) -> tuple[Any, ...] | None:
    found: tuple[Any, ...] | None = reader.execute(query, values).fetchone()
    return found


def _connection(path: str) -> sqlite3.Connection:
    return sqlite3.connect(
        path, timeout=INDEX_BUSY_S_MAX, isolation_level=None, check_same_thread=False
    )


def _create_private(path: str) -> None:
    """An empty file of mode 0600, whose mode SQLite gives to its -wal and -shm too."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        sync_directory(os.path.dirname(path))


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def _locked_file(path: str) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _is_damage(error: sqlite3.Error) -> bool:
    return _primary_code(error) in _DAMAGE


def _primary_code(error: sqlite3.Error) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def _typed_opening(error: OSError, path: str) -> KacheryError:
    reason = (error.strerror or str(error)).lower()
    message = f"the state file {path} cannot be opened: {reason}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFullError(message, hint="free some space on its disk")
    if error.errno == errno.EIO:
        return StorageFailedError(message, hint="check the disk and its cables")
    return StorePermissionError(message, hint="check the owner and the mode of its directory")


def _typed(error: sqlite3.Error, path: str) -> KacheryError:
    code = _primary_code(error)
    if code in _DAMAGE:
        return StateCorruptError(f"the state file {path} is damaged")
    if code == sqlite3.SQLITE_FULL:
        return StorageFullError(f"no space is left for the state file {path}")
    if code in _DENIED:
        return StorePermissionError(f"the state file {path} may not be written by you")
    return StorageFailedError(f"the state file {path} cannot be used: {error}")
