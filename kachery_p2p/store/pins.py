"""Pins: contents that stay in the store, however little they are used.

Kept apart from the index because they cannot be rebuilt; on the disk when a call returns.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import StateCorruptError
from kachery_p2p.store.database import Database, Schema

SCHEMA = Schema(
    version=1,
    statements=("CREATE TABLE pins (content BLOB PRIMARY KEY, time REAL NOT NULL) WITHOUT ROWID",),
    synchronous="FULL",
)


class Pins:
    """The pins in the file at `path`. Safe in any thread or process."""

    def __init__(self, path: str) -> None:
        self._database = Database(path, SCHEMA, _refuse_damaged)

    def close(self) -> None:
        """Close the file; a later use opens it again."""
        self._database.close()

    def add(self, contents: Iterable[ContentHash]) -> None:
        """From now on they are pinned."""
        rows = [(content.raw, time.time()) for content in contents]
        self._database.write(
            lambda connection: connection.executemany(
                "INSERT OR IGNORE INTO pins VALUES (?, ?)", rows
            )
        )

    def remove(self, contents: Iterable[ContentHash]) -> int:
        """They are pinned no more; how many were."""
        rows = [(content.raw,) for content in contents]
        return self._database.write(
            lambda connection: (
                connection.executemany("DELETE FROM pins WHERE content = ?", rows).rowcount
            )
        )

    def has(self, content: ContentHash) -> bool:
        """Whether it is pinned now."""
        return (
            self._database.row("SELECT 1 FROM pins WHERE content = ?", (content.raw,)) is not None
        )

    def all(self) -> set[ContentHash]:
        """All that is pinned."""
        rows = self._database.read(
            lambda connection: connection.execute("SELECT content FROM pins").fetchall()
        )
        return {ContentHash.of_raw(row[0]) for row in rows}


def _refuse_damaged(path: str) -> None:
    raise StateCorruptError(
        f"the file of pins {path} is damaged",
        hint="restore it from a backup, or move it away and pin the files again",
    )
