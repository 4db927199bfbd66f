"""How far the logs of this node's channels are in their buckets: a file that outlives the node.

One row for each log and bucket: what is there, as this node has last written or found it, and
when the next try is due. And one for each segment that may lie there without being named by a
head: it is noted before it is put there, so whatever is killed meanwhile leaves nothing unknown.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any, NamedTuple

from kachery_p2p.errors import StateCorruptError
from kachery_p2p.limits import UPLOAD_RETRY_S_MAX, UPLOAD_RETRY_S_MIN
from kachery_p2p.store.database import Database, Schema

FEED, HISTORY = "feed", "history"
SCHEMA = Schema(
    version=1,
    statements=(
        # `place`: as `queue.place_of` names it; `log`: the last part of its directory there.
        "CREATE TABLE logs (place TEXT NOT NULL, log TEXT NOT NULL, kind TEXT NOT NULL,"
        " name TEXT NOT NULL, here INTEGER NOT NULL, there INTEGER NOT NULL, head BLOB,"
        " tries INTEGER NOT NULL, next_at REAL NOT NULL, said TEXT, PRIMARY KEY (place, log))"
        " WITHOUT ROWID",
        "CREATE TABLE unnamed (place TEXT NOT NULL, log TEXT NOT NULL, digest BLOB NOT NULL,"
        " until REAL NOT NULL, PRIMARY KEY (place, log, digest)) WITHOUT ROWID",
    ),
    synchronous="FULL",
)
_SETTLE = "DELETE FROM unnamed WHERE place = ? AND log = ? AND digest = ?"


class Kept(NamedTuple):
    """One log in one bucket."""

    place: str
    log: str
    # FEED or HISTORY, and how people know it.
    kind: str
    name: str
    # Entries that this node has, and those that are there.
    here: int
    there: int
    # The object that names them (`log_layout`), as this node last wrote or found it.
    head: bytes | None
    tries: int
    next_at: float
    # Why it failed last.
    said: str | None


class LogBook:
    """The book in the file at `path`. Safe in any thread or process."""

    def __init__(self, path: str) -> None:
        self._database = Database(path, SCHEMA, _refuse_damaged)

    def close(self) -> None:
        """Close the file; a later use opens it again."""
        self._database.close()

    def known(self, place: str, log: str, kind: str, name: str) -> Kept:
        """What is known of a log that is to be there; noted if it is new."""
        found = self.of(place, log)
        if found is None:
            self._write(
                "INSERT OR IGNORE INTO logs VALUES (?, ?, ?, ?, 0, 0, NULL, 0, 0, NULL)",
                (place, log, kind, name),
            )
            found = self.of(place, log)
        assert found is not None
        return found

    def of(self, place: str, log: str) -> Kept | None:
        """What is known of a log in a bucket."""
        rows = self._rows("SELECT * FROM logs WHERE place = ? AND log = ?", place, log)
        return Kept(*rows[0]) if rows else None

    def in_place(self, place: str) -> list[Kept]:
        """All that is known of a bucket, without the heads."""
        rows = self._rows(
            "SELECT place, log, kind, name, here, there, NULL, tries, next_at, said"
            " FROM logs WHERE place = ? ORDER BY kind, name",
            place,
        )
        return [Kept(*row) for row in rows]

    def failed(self, kept: Kept, here: int, why: str, now: float, rest_s: float = 0.0) -> float:
        """It is tried again, after a time that doubles, and `rest_s` at least; when."""
        doubled = UPLOAD_RETRY_S_MIN * 2.0 ** min(kept.tries, 32)
        next_at = now + max(rest_s, min(UPLOAD_RETRY_S_MAX, doubled))
        self._write(
            "UPDATE logs SET here = ?, tries = tries + 1, next_at = ?, said = ?"
            " WHERE place = ? AND log = ?",
            (here, next_at, why, kept.place, kept.log),
        )
        return next_at

    def done(
        self, kept: Kept, head: bytes, named: Iterable[bytes], old: Iterable[bytes], until: float
    ) -> None:
        """The head is there, and says so many entries are `here` and `there` as `kept` does.

        It names the segments `named`; those in `old` are named no more, and stay until then.
        """
        place, log = kept.place, kept.log

        def change(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE logs SET here = ?, there = ?, head = ?, name = ?, tries = 0, next_at = 0,"
                " said = NULL WHERE place = ? AND log = ?",
                (kept.here, kept.there, head, kept.name, place, log),
            )
            connection.executemany(
                "INSERT OR IGNORE INTO unnamed VALUES (?, ?, ?, ?)",
                [(place, log, digest, until) for digest in old],
            )
            connection.executemany(_SETTLE, [(place, log, digest) for digest in named])

        self._database.write(change)

    def about_to_put(self, place: str, log: str, digest: bytes, until: float) -> bool:
        """A segment is going to be put there; False if that was begun before."""
        changed = self._write(
            "INSERT OR IGNORE INTO unnamed VALUES (?, ?, ?, ?)", (place, log, digest, until)
        )
        return changed == 1

    def unnamed(self, place: str, log: str) -> dict[bytes, float]:
        """The segments that may lie there for nothing, and until when they stay."""
        query = "SELECT digest, until FROM unnamed WHERE place = ? AND log = ?"
        return dict(self._rows(query, place, log))

    def removed(self, place: str, log: str, digests: Iterable[bytes]) -> None:
        """These segments lie there no more, or are named by a head."""
        rows = [(place, log, digest) for digest in digests]
        self._database.write(lambda connection: connection.executemany(_SETTLE, rows))

    def _write(self, statement: str, values: tuple[object, ...]) -> int:
        def change(connection: sqlite3.Connection) -> int:
            return connection.execute(statement, values).rowcount

        return self._database.write(change)

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return self._database.read(lambda connection: connection.execute(query, values).fetchall())


def book_path(config_dir: str) -> str:
    """Where the book of a configuration is."""
    return f"{config_dir}/state/bucket_logs.db"


def _refuse_damaged(path: str) -> None:
    raise StateCorruptError(
        f"the file {path}, which says how far logs are in their buckets, is damaged",
        hint="move it away: it is made anew from what lies in the buckets",
    )
