"""What this node knows of feeds beside their entries: CONFIG/state/feeds.db.

Own feeds and their names, names of subfeeds as they were told here, in which channels a feed is
shared, in which one a copy came, who may write, what is followed, and which submissions are in a
log already. It cannot be rebuilt, so it is on the disk before a call returns, as the grants are.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from kachery_p2p.content.hashes import ContentHash, FeedId
from kachery_p2p.errors import InvalidNameError, LogError, StateCorruptError, UnknownFeedError
from kachery_p2p.feeds.disk import is_older_place
from kachery_p2p.feeds.messages import Submission
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import FEED_NAME_CHARS_MAX, FEED_ROWS_MAX, FEEDS_MAX
from kachery_p2p.store.database import Database, Schema

SCHEMA = Schema(
    version=1,
    statements=(
        "CREATE TABLE feeds (feed BLOB PRIMARY KEY, place BLOB NOT NULL, time REAL NOT NULL)"
        " WITHOUT ROWID",
        "CREATE TABLE names (name TEXT PRIMARY KEY, feed BLOB NOT NULL) WITHOUT ROWID",
        "CREATE TABLE subfeeds (feed BLOB NOT NULL, name_hash BLOB NOT NULL, name TEXT,"
        " PRIMARY KEY (feed, name_hash)) WITHOUT ROWID",
        "CREATE TABLE shared (feed BLOB NOT NULL, channel TEXT NOT NULL, time REAL NOT NULL,"
        " PRIMARY KEY (feed, channel)) WITHOUT ROWID",
        "CREATE TABLE copies (feed BLOB NOT NULL, name_hash BLOB NOT NULL, channel TEXT NOT NULL,"
        " time REAL NOT NULL, PRIMARY KEY (feed, name_hash, channel)) WITHOUT ROWID",
        "CREATE TABLE writers (feed BLOB NOT NULL, name_hash BLOB NOT NULL, node BLOB NOT NULL,"
        " time REAL NOT NULL, PRIMARY KEY (feed, name_hash, node)) WITHOUT ROWID",
        "CREATE TABLE followed (feed BLOB NOT NULL, name_hash BLOB NOT NULL, time REAL NOT NULL,"
        " PRIMARY KEY (feed, name_hash)) WITHOUT ROWID",
        "CREATE TABLE submitted (subfeed BLOB NOT NULL, node BLOB NOT NULL, id BLOB NOT NULL,"
        " position INTEGER NOT NULL, PRIMARY KEY (subfeed, node, id)) WITHOUT ROWID",
        "CREATE TABLE noted (subfeed BLOB PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID",
    ),
    synchronous="FULL",
)
# What is forgotten with a feed, beside its name.
_OF_FEED = ("feeds", "subfeeds", "shared", "copies", "writers", "followed")
_OF_SUBFEED = ("subfeeds", "copies", "writers", "followed")


class Subfeed(NamedTuple):
    """A subfeed, and its name as JSON text or plain text, where somebody here has told it."""

    feed: FeedId
    name_hash: ContentHash
    name: str | None = None


class Register:
    """The register of one node, in the file at `path`. Safe in any thread or process."""

    def __init__(self, path: str) -> None:
        self._database = Database(path, SCHEMA, _refuse_damaged)

    def close(self) -> None:
        """Close the file; a later use opens it again."""
        self._database.close()

    # --- own feeds ----------------------------------------------------------------------------

    def add_feed(self, feed: FeedId, place: bytes, time: float, name: str | None = None) -> None:
        """Note an own feed, whose key file is at `place` (`keys.place`), and its name.

        LogError if the name is another feed's, or there are too many.
        """
        if name is not None:
            _check_name(name)

        def change(connection: sqlite3.Connection) -> None:
            if _count(connection, "feeds") >= FEEDS_MAX:
                raise LogError(f"this node has {FEEDS_MAX:,} feeds", hint="delete one")
            connection.execute(
                "INSERT INTO feeds VALUES (?1, ?2, ?3) ON CONFLICT (feed) DO UPDATE SET place = ?2",
                (feed.raw, place, time),
            )
            if name is not None:
                _insert_name(connection, name, feed)

        self._database.write(change)

    def own_feeds(self) -> list[FeedId]:
        """The own feeds, the oldest first."""
        rows = self._rows("SELECT feed FROM feeds ORDER BY time, feed LIMIT ?", FEEDS_MAX)
        return [FeedId.of_raw(row[0]) for row in rows]

    def is_own(self, feed: FeedId) -> bool:
        """True if the feed is one of this node's."""
        return bool(self._rows("SELECT 1 FROM feeds WHERE feed = ?", feed.raw))

    def is_at_home(self, feed: FeedId, place: bytes) -> bool:
        """True if the key file is where it was noted; else a log that is not here may be elsewhere:
        its key was restored or cloned.
        """
        rows = self._rows("SELECT place FROM feeds WHERE feed = ?", feed.raw)
        if rows and rows[0][0] != place and is_older_place(rows[0][0], place):
            change = "UPDATE feeds SET place = ? WHERE feed = ?"
            self._database.write(lambda connection: connection.execute(change, (place, feed.raw)))
            return True
        return bool(rows) and rows[0][0] == place

    def forget_feed(self, feed: FeedId) -> None:
        """Forget all about the feed: it was deleted."""

        def change(connection: sqlite3.Connection) -> None:
            for table in (*_OF_FEED, "names"):
                connection.execute(f"DELETE FROM {table} WHERE feed = ?", (feed.raw,))  # noqa: S608

        self._database.write(change)

    # --- names --------------------------------------------------------------------------------

    def set_name(self, name: str, feed: FeedId) -> None:
        """Let `name` stand for the feed here. LogError if it stands for another."""
        _check_name(name)
        self._database.write(lambda connection: _insert_name(connection, name, feed))

    def named(self, name: str) -> FeedId:
        """The feed that is called so here. UnknownFeedError if none is."""
        rows = self._rows("SELECT feed FROM names WHERE name = ?", name)
        if not rows:
            raise UnknownFeedError(
                f"no feed here has the name {name[:80]!r}", hint="`kachery-p2p feed list` shows all"
            )
        return FeedId.of_raw(rows[0][0])

    def names_of(self, feed: FeedId) -> tuple[str, ...]:
        """What the feed is called here."""
        rows = self._rows("SELECT name FROM names WHERE feed = ? ORDER BY name", feed.raw)
        return tuple(row[0] for row in rows)

    def note_subfeed(self, subfeed: Subfeed) -> None:
        """Note that there is such a subfeed, and its name if that is told."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO subfeeds VALUES (?, ?, ?) ON CONFLICT (feed, name_hash)"
                " DO UPDATE SET name = excluded.name WHERE excluded.name NOT NULL",
                (*_key(subfeed), subfeed.name),
            )

        if subfeed.name is not None and len(subfeed.name) > FEED_NAME_CHARS_MAX:
            raise InvalidNameError(f"a name has at most {FEED_NAME_CHARS_MAX:,} characters")
        if not self._rows(
            "SELECT 1 FROM subfeeds WHERE feed = ? AND name_hash = ? AND name IS ?",
            *_key(subfeed),
            subfeed.name,
        ):
            self._database.write(change)

    def subfeeds(self, feed: FeedId, after: ContentHash | None = None) -> list[Subfeed]:
        """The subfeeds of the feed that are known here, by name hash: the next ones behind `after`.

        FEED_ROWS_MAX at most.
        """
        rows = self._rows(
            "SELECT name_hash, name FROM subfeeds WHERE feed = ? AND name_hash > ?"
            " ORDER BY name_hash LIMIT ?",
            feed.raw,
            b"" if after is None else after.raw,
            FEED_ROWS_MAX,
        )
        return [Subfeed(feed, ContentHash.of_raw(row[0]), row[1]) for row in rows]

    def forget_subfeed(self, subfeed: Subfeed) -> None:
        """Forget all about the subfeed: its copy was deleted."""

        def change(connection: sqlite3.Connection) -> None:
            for table in _OF_SUBFEED:
                connection.execute(
                    f"DELETE FROM {table} WHERE feed = ? AND name_hash = ?",  # noqa: S608
                    _key(subfeed),
                )

        self._database.write(change)

    # --- channels -------------------------------------------------------------------------------

    def share(self, feed: FeedId, channel_ids: Iterable[str], time: float) -> None:
        """Let the own feed be served in the channels."""
        rows = [(feed.raw, channel, time) for channel in channel_ids]
        self._insert("shared", rows)

    def unshare(self, feed: FeedId, channel_id: str) -> None:
        """Serve the own feed in the channel no more."""
        self._delete("shared", "feed = ? AND channel = ?", feed.raw, channel_id)

    def channels_of(self, feed: FeedId) -> tuple[str, ...]:
        """The channels where the own feed is served."""
        rows = self._rows("SELECT channel FROM shared WHERE feed = ? ORDER BY channel", feed.raw)
        return tuple(row[0] for row in rows)

    def is_shared(self, subfeed: Subfeed) -> bool:
        """True if the subfeed is known here, and its own feed served in some channel."""
        return bool(
            self._rows(
                "SELECT 1 FROM subfeeds JOIN shared USING (feed) WHERE feed = ? AND name_hash = ?",
                *_key(subfeed),
            )
        )

    def note_copy(self, subfeed: Subfeed, channel_id: str, time: float) -> None:
        """Note in which channel the copy of somebody's subfeed came: it is served there only."""
        self._insert("copies", [(*_key(subfeed), channel_id, time)])

    def copied_in(self, subfeed: Subfeed) -> tuple[str, ...]:
        """The channels in which the copy came."""
        rows = self._rows(
            "SELECT channel FROM copies WHERE feed = ? AND name_hash = ? ORDER BY channel",
            *_key(subfeed),
        )
        return tuple(row[0] for row in rows)

    def is_served(self, subfeed: Subfeed, channel_id: str) -> bool:
        """True if the subfeed may be served in the channel, as an own one or as a copy."""
        return bool(
            self._rows(
                "SELECT 1 FROM shared WHERE feed = ?1 AND channel = ?3 UNION ALL"
                " SELECT 1 FROM copies WHERE feed = ?1 AND name_hash = ?2 AND channel = ?3",
                *_key(subfeed),
                channel_id,
            )
        )

    def move_channel(self, old_channel_id: str, new_channel_id: str) -> None:
        """What is served in the old channel is served in the new one instead."""

        def change(connection: sqlite3.Connection) -> None:
            for table in ("shared", "copies"):
                connection.execute(
                    f"UPDATE OR REPLACE {table} SET channel = ? WHERE channel = ?",  # noqa: S608
                    (new_channel_id, old_channel_id),
                )

        self._database.write(change)

    # --- writers ------------------------------------------------------------------------------

    def grant_writing(self, subfeed: Subfeed, node: NodeId, time: float) -> None:
        """Let the node submit messages to the own subfeed."""
        self._insert("writers", [(*_key(subfeed), node.raw, time)])

    def revoke_writing(self, subfeed: Subfeed, node: NodeId) -> None:
        """Let the node submit no more."""
        self._delete("writers", "feed = ? AND name_hash = ? AND node = ?", *_key(subfeed), node.raw)

    def set_writers(self, subfeed: Subfeed, nodes: Sequence[NodeId], time: float) -> None:
        """Let these nodes submit, and no others."""

        def change(connection: sqlite3.Connection) -> None:
            query = "DELETE FROM writers WHERE feed = ? AND name_hash = ?"
            connection.execute(query, _key(subfeed))
            rows = [(*_key(subfeed), node.raw, time) for node in nodes]
            connection.executemany("INSERT OR IGNORE INTO writers VALUES (?, ?, ?, ?)", rows)

        self._database.write(change)

    def writers(self, subfeed: Subfeed) -> tuple[NodeId, ...]:
        """The nodes that may submit to the own subfeed."""
        rows = self._rows(
            "SELECT node FROM writers WHERE feed = ? AND name_hash = ? ORDER BY node LIMIT ?",
            *_key(subfeed),
            FEED_ROWS_MAX,
        )
        return tuple(NodeId.of_raw(row[0]) for row in rows)

    def may_write(self, subfeed: Subfeed, node: NodeId) -> bool:
        """True if the node may submit to the own subfeed."""
        return bool(
            self._rows(
                "SELECT 1 FROM writers WHERE feed = ? AND name_hash = ? AND node = ?",
                *_key(subfeed),
                node.raw,
            )
        )

    # --- following ----------------------------------------------------------------------------

    def follow(self, subfeed: Subfeed, time: float) -> None:
        """Keep a copy of the subfeed up to date, after a restart too."""
        self._insert("followed", [(*_key(subfeed), time)])

    def unfollow(self, subfeed: Subfeed) -> None:
        """Keep it up to date no more."""
        self._delete("followed", "feed = ? AND name_hash = ?", *_key(subfeed))

    def followed(self) -> list[Subfeed]:
        """The subfeeds that are followed, those lately begun first, FEED_ROWS_MAX at most."""
        rows = self._rows(
            "SELECT feed, name_hash, name FROM followed LEFT JOIN subfeeds USING (feed, name_hash)"
            " ORDER BY followed.time DESC LIMIT ?",
            FEED_ROWS_MAX,
        )
        return [Subfeed(FeedId.of_raw(row[0]), ContentHash.of_raw(row[1]), row[2]) for row in rows]

    # --- submissions --------------------------------------------------------------------------

    def note_submissions(
        self, subfeed_id: bytes, submissions: Iterable[tuple[Submission, int]], size: int
    ) -> None:
        """Note at which positions of an own log submissions are, all up to `size` entries."""
        rows = [
            (subfeed_id, submission.submitter.raw, submission.id, position)
            for submission, position in submissions
        ]

        def change(connection: sqlite3.Connection) -> None:
            # An id that was appended twice after all keeps its first position.
            connection.executemany("INSERT OR IGNORE INTO submitted VALUES (?, ?, ?, ?)", rows)
            connection.execute(
                "INSERT INTO noted VALUES (?1, ?2) ON CONFLICT (subfeed) DO UPDATE"
                " SET size = ?2 WHERE size < ?2",
                (subfeed_id, size),
            )

        self._database.write(change)

    def submitted_at(self, subfeed_id: bytes, submission: Submission) -> int | None:
        """The position of a submission in an own log; None if it is not noted."""
        rows = self._rows(
            "SELECT position FROM submitted WHERE subfeed = ? AND node = ? AND id = ?",
            subfeed_id,
            submission.submitter.raw,
            submission.id,
        )
        return rows[0][0] if rows else None

    def submissions_noted(self, subfeed_id: bytes) -> int:
        """Up to how many entries of the log submissions are noted: what follows is to be read."""
        rows = self._rows("SELECT size FROM noted WHERE subfeed = ?", subfeed_id)
        return rows[0][0] if rows else 0

    def forget_submissions(self, subfeed_id: bytes) -> None:
        """Forget which submissions are in the log: it was deleted."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM submitted WHERE subfeed = ?", (subfeed_id,))
            connection.execute("DELETE FROM noted WHERE subfeed = ?", (subfeed_id,))

        self._database.write(change)

    # --- inside -----------------------------------------------------------------------------

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return self._database.read(lambda connection: connection.execute(query, values).fetchall())

    def _insert(self, table: str, rows: Sequence[tuple[object, ...]]) -> None:
        def change(connection: sqlite3.Connection) -> None:
            for row in rows:
                marks = ", ".join("?" * len(row))
                connection.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", row)  # noqa: S608

        self._database.write(change)

    def _delete(self, table: str, where: str, *values: object) -> None:
        self._database.write(
            lambda connection: connection.execute(f"DELETE FROM {table} WHERE {where}", values)  # noqa: S608
        )


def _key(subfeed: Subfeed) -> tuple[bytes, bytes]:
    return subfeed.feed.raw, subfeed.name_hash.raw


def _count(connection: sqlite3.Connection, table: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608


def _insert_name(connection: sqlite3.Connection, name: str, feed: FeedId) -> None:
    row = connection.execute("SELECT feed FROM names WHERE name = ?", (name,)).fetchone()
    if row is not None and row[0] != feed.raw:
        raise LogError(
            f"the name {name[:80]!r} is that of another feed here", hint="choose another name"
        )
    connection.execute("INSERT OR IGNORE INTO names VALUES (?, ?)", (name, feed.raw))


def _check_name(name: str) -> None:
    if not 0 < len(name) <= FEED_NAME_CHARS_MAX or any(
        "\ud800" <= char <= "\udfff" for char in name
    ):
        raise InvalidNameError(
            f"a feed's name is a text of 1 to {FEED_NAME_CHARS_MAX:,} characters"
        )


def _refuse_damaged(path: str) -> None:
    raise StateCorruptError(
        f"the register of feeds {path} is damaged",
        hint="restore it from a backup, or move it away and share the feeds again",
    )
