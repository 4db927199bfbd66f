"""Grants: which content this node may serve in which channel. Holding a file grants nothing.

Kept apart from the index because they cannot be rebuilt, and written through to the
disk before a call returns. What was stored before any channel was joined is *pending*:
granted nowhere until the user says where.
"""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import StateCorruptError
from kachery_p2p.limits import GRANT_CHANGES_MAX
from kachery_p2p.store import guests
from kachery_p2p.store.common_commits import CommonCommits
from kachery_p2p.store.database import Database, Schema
from kachery_p2p.store.shares import Share

SCHEMA = Schema(
    version=2,
    statements=(
        "CREATE TABLE grants (content BLOB NOT NULL, channel TEXT NOT NULL, why TEXT NOT NULL,"
        " time REAL NOT NULL, PRIMARY KEY (content, channel)) WITHOUT ROWID",
        "CREATE INDEX grants_by_channel ON grants (channel)",
        "CREATE TABLE pending (content BLOB PRIMARY KEY, why TEXT NOT NULL, time REAL NOT NULL)"
        " WITHOUT ROWID",
        *guests.TABLES,
    ),
    synchronous="FULL",
    upgrades={1: guests.TABLES},
)

# `why` of a content that a member of the channel gave us: whoever else wants it can ask there too.
FETCHED = "fetched"
# What only guests shared until now, or what was only fetched, is from now on shared by the
# node's own user: it then says so, and `cache prune` lets it be.
_TAKE_OVER = (
    " ON CONFLICT (content, channel) DO UPDATE SET why = excluded.why, time = excluded.time"
    f" WHERE why = '{guests.WHY}' OR (why = '{FETCHED}' AND excluded.why != '{FETCHED}')"
)
# Old builds of SQLite take no more values in one statement than 999.
_ASKED_AT_ONCE = 500
_MANY_GRANTS = "SELECT content FROM grants WHERE channel = ? AND content IN "
# What one call of `pending` lists at most: 4,096 hashes are 160 KiB.
PENDING_LISTED_MAX = 4_096


class Grants:
    """The grants of one node, in the file at `path`. Safe in any thread or process."""

    def __init__(self, path: str) -> None:
        self._database = Database(path, SCHEMA, _refuse_damaged)
        self._watches: list[Watch] = []
        self._commits = CommonCommits(self._keep)

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
        self._commits.make(shares)
        self._tell((share.content, channel) for share in shares for channel in share.channels or ())

    def _keep(self, shares: Sequence[Share]) -> None:
        def change(connection: sqlite3.Connection) -> None:
            # In their order: those of one kind at once.
            for is_pending, some in itertools.groupby(shares, lambda one: one.channels is None):
                (_keep_pending if is_pending else _grant_each)(connection, list(some))

        self._database.write(change)

    def grant_pending(self, channel_ids: Sequence[str], why: str, time: float) -> int:
        """Let all that is pending be served in the channels (one at least); how many that was."""
        assert channel_ids, "pending content needs a channel to leave that state"

        def change(connection: sqlite3.Connection) -> int:
            for channel in channel_ids:
                connection.execute(
                    "INSERT INTO grants SELECT content, ?, ?, ? FROM pending"  # noqa: S608
                    " WHERE true" + _TAKE_OVER,
                    (channel, why, time),
                )
            return connection.execute("DELETE FROM pending").rowcount

        count = self._database.write(change)
        self._tell(None)
        return count

    def grant_as_guest(
        self, contents: Sequence[ContentHash], channel_ids: Sequence[str], uid: int, time: float
    ) -> None:
        """Let `contents` be served in the channels because the guest `uid` shares them."""
        grants = self._database.write(
            lambda connection: guests.share(connection, contents, channel_ids, uid, time)
        )
        self._tell(grants)

    def end(
        self, contents: Sequence[ContentHash], channel_id: str | None, uid: int | None = None
    ) -> int:
        """End what one user shares of `contents` (channel None: everywhere); how many grants.

        `uid` None is the node's own user, who then also lets nothing of it wait for a
        channel. What others share too is still served.
        """

        def change(connection: sqlite3.Connection) -> tuple[list[guests.Grant], int]:
            if uid is not None:
                return guests.end_of_guest(connection, contents, channel_id, uid), 0
            waiting = 0
            for content in contents if channel_id is None else ():
                query = "DELETE FROM pending WHERE content = ?"
                waiting += connection.execute(query, (content.raw,)).rowcount
            return guests.end_of_owner(connection, contents, channel_id), waiting

        ended, waiting = self._database.write(change)
        self._tell(ended)
        return len(ended) + waiting

    def page(
        self, after: str | None, channel_id: str | None, uid: int | None, count_max: int
    ) -> list[guests.Granted]:
        """What one user shares, by content: the next ones behind the grant with the key `after`."""
        return self._database.read(
            lambda connection: guests.page(connection, after, channel_id, uid, count_max)
        )

    def revoke(self, contents: Iterable[ContentHash], channel_id: str) -> None:
        """Serve `contents` in the channel no more, whoever shares them."""
        listed = list(contents)
        rows = [(content.raw, channel_id) for content in listed]

        def change(connection: sqlite3.Connection) -> None:
            for table in ("grants", "guests"):
                connection.executemany(
                    f"DELETE FROM {table} WHERE content = ? AND channel = ?",  # noqa: S608
                    rows,
                )

        self._database.write(change)
        self._tell((content, channel_id) for content in listed)

    def forget(self, content: ContentHash) -> None:
        """Serve `content` nowhere, and let it wait for no channel: it was removed."""

        def change(connection: sqlite3.Connection) -> list[str]:
            raw = (content.raw,)
            found = connection.execute("SELECT channel FROM grants WHERE content = ?", raw)
            channels = [row[0] for row in found]
            connection.execute("DELETE FROM grants WHERE content = ?", raw)
            connection.execute("DELETE FROM guests WHERE content = ?", raw)
            connection.execute("DELETE FROM pending WHERE content = ?", raw)
            return channels

        self._tell((content, channel) for channel in self._database.write(change))

    def only_fetched(self) -> set[ContentHash]:
        """The contents that came from members of the channels, and that nobody here shares."""
        rows = self._rows(
            "SELECT content FROM grants WHERE why = ? EXCEPT SELECT content FROM grants"
            " WHERE why != ? EXCEPT SELECT content FROM pending EXCEPT SELECT content FROM guests",
            FETCHED,
            FETCHED,
        )
        return {ContentHash.of_raw(row[0]) for row in rows}

    def forget_fetched(self, content: ContentHash) -> bool:
        """As `forget`, if it is one of `only_fetched` at this very moment; else False."""
        others = (
            "SELECT 1 FROM pending WHERE content = ?1 UNION ALL"
            " SELECT 1 FROM guests WHERE content = ?1"
        )

        def change(connection: sqlite3.Connection) -> list[str]:
            raw = (content.raw,)
            grants = connection.execute("SELECT channel, why FROM grants WHERE content = ?", raw)
            found = dict(grants.fetchall())
            if set(found.values()) != {FETCHED} or connection.execute(others, raw).fetchone():
                return []
            connection.execute("DELETE FROM grants WHERE content = ?", raw)
            return list(found)

        channels = self._database.write(change)
        self._tell((content, channel) for channel in channels)
        return bool(channels)

    def move(self, old_channel_id: str, new_channel_id: str) -> int:
        """What is granted in the old channel is granted in the new one instead; how many."""

        def change(connection: sqlite3.Connection) -> int:
            connection.execute(
                "INSERT OR IGNORE INTO grants SELECT content, ?, why, time FROM grants"
                " WHERE channel = ?",
                (new_channel_id, old_channel_id),
            )
            connection.execute(
                "UPDATE OR REPLACE guests SET channel = ? WHERE channel = ?",
                (new_channel_id, old_channel_id),
            )
            return connection.execute(
                "DELETE FROM grants WHERE channel = ?", (old_channel_id,)
            ).rowcount

        if old_channel_id == new_channel_id:
            return 0
        count = self._database.write(change)
        self._tell(None)
        return count

    def is_granted(self, content: ContentHash, channel_id: str) -> bool:
        """True if `content` may be served in the channel. 5 us."""
        return bool(
            self._rows(
                "SELECT 1 FROM grants WHERE content = ? AND channel = ?", content.raw, channel_id
            )
        )

    def granted_of(self, contents: Iterable[ContentHash], channel_id: str) -> set[ContentHash]:
        """Those of many contents that may be served in the channel. 1 us for each."""
        names = [content.raw for content in contents]

        def question(connection: sqlite3.Connection) -> set[ContentHash]:
            found = set()
            for at in range(0, len(names), _ASKED_AT_ONCE):
                some = names[at : at + _ASKED_AT_ONCE]
                query = f"{_MANY_GRANTS}({','.join('?' * len(some))})"
                for row in connection.execute(query, (channel_id, *some)):
                    found.add(ContentHash.of_raw(row[0]))
            return found

        return self._database.read(question)

    def channels_of(self, content: ContentHash) -> tuple[str, ...]:
        """The channels where `content` may be served."""
        rows = self._rows(
            "SELECT channel FROM grants WHERE content = ? ORDER BY channel", content.raw
        )
        return tuple(row[0] for row in rows)

    def count(self, channel_id: str) -> int:
        """How many contents may be served in the channel."""
        return int(self._rows("SELECT count(*) FROM grants WHERE channel = ?", channel_id)[0][0])

    def contents(
        self, channel_id: str, after: ContentHash | None, count_max: int
    ) -> list[ContentHash]:
        """What may be served in the channel, in ascending order: the next ones behind `after`."""
        rows = self._rows(
            "SELECT content FROM grants WHERE channel = ? AND content > ? ORDER BY content LIMIT ?",
            channel_id,
            b"" if after is None else after.raw,
            count_max,
        )
        return [ContentHash.of_raw(row[0]) for row in rows]

    def pending_count(self) -> int:
        """How many contents were stored before there was a channel to share them in."""
        return int(self._rows("SELECT count(*) FROM pending")[0][0])

    def pending(self, skipped: int = 0) -> tuple[ContentHash, ...]:
        """Pending contents after the `skipped`, oldest first, PENDING_LISTED_MAX at most."""
        rows = self._rows(
            "SELECT content FROM pending ORDER BY time, content LIMIT ? OFFSET ?",
            PENDING_LISTED_MAX,
            skipped,
        )
        return tuple(ContentHash.of_raw(row[0]) for row in rows)

    def watch(self) -> Watch:
        """Be told of changes from now on, whoever makes them."""
        watch = Watch(self._database)
        self._watches.append(watch)
        return watch

    def _tell(self, changed: Iterable[tuple[ContentHash, str]] | None) -> None:
        listed = None if changed is None else list(changed)
        for watch in self._watches:
            watch.note(listed)

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return self._database.read(lambda connection: connection.execute(query, values).fetchall())


class Changes(NamedTuple):
    """Since the last look: what may be granted or not any more, or that it is not known what.

    To be looked up, not believed: two threads may have told of their changes in any order.
    """

    touched: dict[tuple[ContentHash, str], None]
    unknown: bool


class Watch:
    """Tells of changes to the grants. Those of other processes are noticed, but not which.

    The first look finds `unknown` changes: all that there is.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._changes = Changes({}, True)
        # SQLite's count of commits by other connections, as our reader and our writer see it:
        # only our writer's tells which were made by other processes.
        self._seen: object = None
        self._seen_of_others: object = None

    def note(self, changed: list[tuple[ContentHash, str]] | None) -> None:
        """This process has changed these grants; None = many."""
        with self._lock:
            touched, unknown = self._changes
            if changed is not None:
                touched.update(dict.fromkeys(changed))
            if changed is None or len(touched) > GRANT_CHANGES_MAX:
                self._changes = Changes({}, True)
            else:
                self._changes = Changes(touched, unknown)

    def has_changed(self) -> bool:
        """True if there may be something to take. 5 us; waits for no other commit."""
        return any(self._changes) or self._database.read(_commits_of_others) != self._seen

    def take(self) -> Changes:
        """What changed since the last `take`. May wait for another thread's or process's commit."""
        self._seen = self._database.read(_commits_of_others)
        of_others = self._database.write(_commits_of_others)
        with self._lock:
            touched, unknown = self._changes
            self._changes = Changes({}, False)
        unknown |= of_others != self._seen_of_others
        self._seen_of_others = of_others
        return Changes(touched, unknown)


def _commits_of_others(connection: sqlite3.Connection) -> tuple[int, int]:
    # The count means nothing on another connection, should the file have been opened anew.
    return id(connection), connection.execute("PRAGMA data_version").fetchone()[0]


def _keep_pending(connection: sqlite3.Connection, shares: Sequence[Share]) -> None:
    connection.executemany(
        "INSERT OR IGNORE INTO pending SELECT ?1, ?2, ?3"
        " WHERE NOT EXISTS (SELECT 1 FROM grants WHERE content = ?1)",
        [(share.content.raw, share.why, share.time) for share in shares],
    )
    connection.executemany(
        "UPDATE grants SET why = ? WHERE content = ? AND why = ?",
        [(share.why, share.content.raw, FETCHED) for share in shares],
    )


def _grant_each(connection: sqlite3.Connection, shares: Sequence[Share]) -> None:
    connection.executemany(
        "INSERT INTO grants VALUES (?, ?, ?, ?)" + _TAKE_OVER,  # noqa: S608
        [
            (share.content.raw, channel, share.why, share.time)
            for share in shares
            for channel in share.channels or ()
        ],
    )
    connection.executemany(
        "DELETE FROM pending WHERE content = ?",
        [(share.content.raw,) for share in shares if share.channels],
    )


def _refuse_damaged(path: str) -> None:
    raise StateCorruptError(
        f"the file of grants {path} is damaged",
        hint="restore it from a backup, or move it away and share the files again",
    )
