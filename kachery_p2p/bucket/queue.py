"""What is to be put into buckets, and what was: a file that outlives the node.

One row for each content and bucket, so nothing is put there twice. Commands add to it while
the daemon works it off; a row is never taken away.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import StateCorruptError
from kachery_p2p.limits import UPLOAD_RETRY_S_MAX, UPLOAD_RETRY_S_MIN
from kachery_p2p.store.database import Database, Schema

WAITING, DONE, LEFT_OUT = "waiting", "done", "left out"
MIRRORED, REQUESTED = "mirrored", "requested"
SCHEMA = Schema(
    version=1,
    statements=(
        # `place`: as `place_of` names it; `next_at`: not before, in seconds since 1970.
        "CREATE TABLE uploads (place TEXT NOT NULL, content BLOB NOT NULL, label TEXT,"
        " why TEXT NOT NULL, state TEXT NOT NULL, size INTEGER, tries INTEGER NOT NULL,"
        " next_at REAL NOT NULL, said TEXT, PRIMARY KEY (place, content)) WITHOUT ROWID",
        "CREATE INDEX uploads_due ON uploads (place, state, next_at)",
    ),
    synchronous="FULL",
)


class Upload(NamedTuple):
    """One content on its way into one bucket."""

    place: str
    content: ContentHash
    label: str | None
    # MIRRORED by the channel's policy, or REQUESTED.
    why: str
    # WAITING, DONE or LEFT_OUT.
    state: str
    size: int | None
    tries: int
    next_at: float
    # Why it failed last, or was left out.
    said: str | None


class Counts(NamedTuple):
    """How far one bucket is."""

    waiting: int
    failing: int
    done: int
    left_out: int
    # The reason of the latest failure.
    said: str | None


class UploadQueue:
    """The queue in the file at `path`. Safe in any thread or process."""

    def __init__(self, path: str) -> None:
        self._database = Database(path, SCHEMA, _refuse_damaged)

    def close(self) -> None:
        """Close the file; a later use opens it again."""
        self._database.close()

    def add(
        self, place: str, contents: Sequence[ContentHash], why: str, label: str | None = None
    ) -> int:
        """Let these be put there; how many were not known yet. On disk when it returns.

        If it is REQUESTED, it is tried at once, whatever is known of it: what was put there may
        have been taken out since. To find it there costs one look.
        """
        rows = [(place, content.raw, label, why, WAITING) for content in contents]

        def change(connection: sqlite3.Connection) -> int:
            before = connection.total_changes
            connection.executemany(
                "INSERT OR IGNORE INTO uploads VALUES (?, ?, ?, ?, ?, NULL, 0, 0, NULL)",
                rows,
            )
            added = connection.total_changes - before
            if why == REQUESTED:
                connection.executemany(
                    f"UPDATE uploads SET state = '{WAITING}', why = '{REQUESTED}', next_at = 0,"  # noqa: S608
                    " tries = 0 WHERE place = ? AND content = ?",
                    [row[:2] for row in rows],
                )
            return added

        return self._database.write(change)

    def due(self, place: str, now: float, count_max: int) -> list[Upload]:
        """What may be tried now, oldest wish first."""
        return self._rows(
            f"place = ? AND state = '{WAITING}' AND next_at <= ? ORDER BY next_at LIMIT ?",
            (place, now, count_max),
        )

    def of(self, place: str, content: ContentHash) -> Upload | None:
        """What is known of one content."""
        found = self._rows("place = ? AND content = ?", (place, content.raw))
        return found[0] if found else None

    def done(self, upload: Upload, size: int) -> None:
        """It is there."""
        self._set(upload, DONE, size, 0, 0.0, None)

    def left_out(self, upload: Upload, why: str) -> None:
        """It is not tried again, unless somebody asks for it."""
        self._set(upload, LEFT_OUT, None, upload.tries, 0.0, why)

    def failed(self, upload: Upload, why: str, now: float, rest_s: float = 0.0) -> None:
        """It is tried again, after a time that doubles, and `rest_s` at least."""
        doubled = UPLOAD_RETRY_S_MIN * 2.0 ** min(upload.tries, 32)
        next_at = now + max(rest_s, min(UPLOAD_RETRY_S_MAX, doubled))
        self._set(upload, WAITING, None, upload.tries + 1, next_at, why)

    def counts(self, place: str) -> Counts:
        """How far the bucket is."""

        def question(connection: sqlite3.Connection) -> Counts:
            counted = dict(
                connection.execute(
                    "SELECT CASE WHEN state = 'waiting' AND tries > 0 THEN 'failing'"
                    " ELSE state END, count(*) FROM uploads WHERE place = ? GROUP BY 1",
                    (place,),
                )
            )
            latest = connection.execute(
                "SELECT said FROM uploads WHERE place = ? AND said IS NOT NULL"
                " AND state = ? ORDER BY next_at DESC LIMIT 1",
                (place, WAITING),
            ).fetchone()
            failing = counted.get("failing", 0)
            return Counts(
                counted.get(WAITING, 0) + failing,
                failing,
                counted.get(DONE, 0),
                counted.get(LEFT_OUT, 0),
                latest[0] if latest else None,
            )

        return self._database.read(question)

    def _set(
        self, upload: Upload, state: str, size: int | None, tries: int, next_at: float, said: Any
    ) -> None:
        values = (state, size, tries, next_at, said, upload.place, upload.content.raw)
        self._database.write(
            lambda connection: connection.execute(
                "UPDATE uploads SET state = ?, size = ?, tries = ?, next_at = ?, said = ?"
                " WHERE place = ? AND content = ?",
                values,
            )
        )

    def _rows(self, where: str, values: tuple[object, ...]) -> list[Upload]:
        query = (
            "SELECT place, content, label, why, state, size, tries, next_at, said FROM uploads"  # noqa: S608
            f" WHERE {where}"
        )
        rows = self._database.read(lambda connection: connection.execute(query, values).fetchall())
        return [Upload(row[0], ContentHash.of_raw(row[1]), *row[2:]) for row in rows]


def place_of(bucket: str, channel_id: str) -> str:
    """What the queue calls the bucket with this `BucketUrl.node`, used by a channel."""
    return f"{bucket}:{channel_id}"


def queue_path(config_dir: str) -> str:
    """Where the queue of a configuration is."""
    return f"{config_dir}/state/uploads.db"


def _refuse_damaged(path: str) -> None:
    raise StateCorruptError(
        f"the file of uploads {path} is damaged",
        hint="move it away: what channels mirror is looked through anew, and `kachery-p2p bucket"
        " push` asks for the rest",
    )
