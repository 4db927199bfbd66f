"""Grants: which content this node may serve in which channel. Holding a file grants nothing.

Kept apart from the index because they cannot be rebuilt, and written through to the
disk before a call returns. What was stored before any channel was joined is *pending*:
granted nowhere until the user says where.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import StateCorruptError
from kachery_p2p.store.database import Database, Schema
from kachery_p2p.store.shares import Share

SCHEMA = Schema(
    version=1,
    statements=(
        "CREATE TABLE grants (content BLOB NOT NULL, channel TEXT NOT NULL, why TEXT NOT NULL,"
        " time REAL NOT NULL, PRIMARY KEY (content, channel)) WITHOUT ROWID",
        "CREATE INDEX grants_by_channel ON grants (channel)",
        "CREATE TABLE pending (content BLOB PRIMARY KEY, why TEXT NOT NULL, time REAL NOT NULL)"
        " WITHOUT ROWID",
    ),
    synchronous="FULL",
)

# What one call of `pending` lists at most: 4,096 hashes are 160 KiB.
PENDING_LISTED_MAX = 4_096


class Grants:
    """The grants of one node, in the file at `path`. Safe in any thread or process."""

    def __init__(self, path: str) -> None:
        self._database = Database(path, SCHEMA, _refuse_damaged)

    def close(self) -> None:
        """Close the file; a later use opens it again."""
        self._database.close()

    def grant(
        self,
        contents: Iterable[ContentHash],
        channel_ids: Sequence[str] | None,
        why: str,
        time: float,
    ) -> None:
        """Let `contents` be served in the channels; None = no channel yet, pending.

        On disk when it returns. A grant given before stays as it was, and content that
        is granted somewhere does not become pending again.
        """
        listed = None if channel_ids is None else tuple(channel_ids)
        self.keep([Share(content, listed, why, time) for content in contents])

    def keep(self, shares: Sequence[Share]) -> None:
        """As `grant`, for many different shares in one commit: what `take_shares` hands over."""

        def change(connection: sqlite3.Connection) -> None:
            for share in shares:
                _grant_one(connection, share)

        self._database.write(change)

    def grant_pending(self, channel_ids: Sequence[str], why: str, time: float) -> int:
        """Let all that is pending be served in the channels (one at least); how many that was."""
        assert channel_ids, "pending content needs a channel to leave that state"

        def change(connection: sqlite3.Connection) -> int:
            for channel in channel_ids:
                connection.execute(
                    "INSERT OR IGNORE INTO grants SELECT content, ?, ?, ? FROM pending",
                    (channel, why, time),
                )
            return connection.execute("DELETE FROM pending").rowcount

        return self._database.write(change)

    def revoke(self, contents: Iterable[ContentHash], channel_id: str) -> None:
        """Serve `contents` in the channel no more."""
        rows = [(content.raw, channel_id) for content in contents]
        self._database.write(
            lambda connection: connection.executemany(
                "DELETE FROM grants WHERE content = ? AND channel = ?", rows
            )
        )

    def forget(self, content: ContentHash) -> None:
        """Serve `content` nowhere, and let it wait for no channel: it was removed."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM grants WHERE content = ?", (content.raw,))
            connection.execute("DELETE FROM pending WHERE content = ?", (content.raw,))

        self._database.write(change)

    def move(self, old_channel_id: str, new_channel_id: str) -> int:
        """What is granted in the old channel is granted in the new one instead; how many."""

        def change(connection: sqlite3.Connection) -> int:
            connection.execute(
                "INSERT OR IGNORE INTO grants SELECT content, ?, why, time FROM grants"
                " WHERE channel = ?",
                (new_channel_id, old_channel_id),
            )
            return connection.execute(
                "DELETE FROM grants WHERE channel = ?", (old_channel_id,)
            ).rowcount

        return 0 if old_channel_id == new_channel_id else self._database.write(change)

    def is_granted(self, content: ContentHash, channel_id: str) -> bool:
        """True if `content` may be served in the channel. 5 us."""
        return bool(
            self._rows(
                "SELECT 1 FROM grants WHERE content = ? AND channel = ?", content.raw, channel_id
            )
        )

    def channels_of(self, content: ContentHash) -> tuple[str, ...]:
        """The channels where `content` may be served."""
        rows = self._rows(
            "SELECT channel FROM grants WHERE content = ? ORDER BY channel", content.raw
        )
        return tuple(row[0] for row in rows)

    def count(self, channel_id: str) -> int:
        """How many contents may be served in the channel."""
        return int(self._rows("SELECT count(*) FROM grants WHERE channel = ?", channel_id)[0][0])

    def pending_count(self) -> int:
        """How many contents were stored before there was a channel to share them in."""
        return int(self._rows("SELECT count(*) FROM pending")[0][0])

    def pending(self) -> tuple[ContentHash, ...]:
        """Pending contents, oldest first, at most PENDING_LISTED_MAX of them."""
        rows = self._rows(
            "SELECT content FROM pending ORDER BY time, content LIMIT ?", PENDING_LISTED_MAX
        )
        return tuple(ContentHash.of_raw(row[0]) for row in rows)

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return self._database.read(lambda connection: connection.execute(query, values).fetchall())


def _grant_one(connection: sqlite3.Connection, share: Share) -> None:
    raw = share.content.raw
    if share.channels is None:
        connection.execute(
            "INSERT OR IGNORE INTO pending SELECT ?1, ?2, ?3"
            " WHERE NOT EXISTS (SELECT 1 FROM grants WHERE content = ?1)",
            (raw, share.why, share.time),
        )
        return
    for channel in share.channels:
        connection.execute(
            "INSERT OR IGNORE INTO grants VALUES (?, ?, ?, ?)",
            (raw, channel, share.why, share.time),
        )
    if share.channels:
        connection.execute("DELETE FROM pending WHERE content = ?", (raw,))


def _refuse_damaged(path: str) -> None:
    raise StateCorruptError(
        f"the file of grants {path} is damaged",
        hint="restore it from a backup, or move it away and share the files again",
    )
