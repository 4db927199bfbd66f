"""The feeds of an older kachery on the disk: `feeds.db` and `mutables.db` in its directory.

    feeds.db      subfeeds(feedId, subfeedHash, accessRules)
                  subfeedMessages(feedId, subfeedHash, position, message)
    mutables.db   mutables(..., key, value), where keys and values are JSON: with the key
                  {"type": "feedConfig", "feedId"} the value {"feedId", "privateKey" in hex},
                  with {"type": "feedIdForName", "feedName"} the id of the feed of that name

The files may come from anybody. They are opened to be read only, what a row may hold is bounded
before it is read, tables must be tables, and no look at them takes for ever.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from kachery_p2p.content.hashes import ContentHash, FeedId
from kachery_p2p.errors import ConfigError, DataFormatError, UnknownFeedError, UriError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    FEED_NAME_CHARS_MAX,
    FEED_ROWS_MAX,
    FEEDS_MAX,
    LEGACY_LOOK_S_MAX,
    LEGACY_ROW_BYTES_MAX,
)

FEEDS_NAME, MUTABLES_NAME = "feeds.db", "mutables.db"
# What a private key has in front when it was written with its container (PKCS 8).
_PKCS8_PREFIX = "302e020100300506032b657004220420"
_SEED_DIGITS = 64
# Steps of the database between two looks at the clock.
_STEPS = 100_000


class LegacyFeeds:
    """The feeds in the directory of an older kachery. Use it as a context manager.

    Everything raises DataFormatError if a file is no such database, or is damaged.
    """

    def __init__(self, directory: str) -> None:
        """UnknownFeedError if there is no feeds.db."""
        path = os.path.join(directory, FEEDS_NAME)
        if not os.path.lexists(path):
            raise UnknownFeedError(
                f"there is no {FEEDS_NAME} in {directory}",
                hint="give the storage directory of the older kachery, such as ~/kachery-storage",
            )
        self._feeds = Database(path)
        mutables = os.path.join(directory, MUTABLES_NAME)
        self._mutables = Database(mutables) if os.path.lexists(mutables) else None

    def __enter__(self) -> LegacyFeeds:
        return self

    def __exit__(self, *error: object) -> None:
        self._feeds.close()
        if self._mutables is not None:
            self._mutables.close()

    def subfeeds(self) -> Iterator[tuple[FeedId, ContentHash]]:
        """All subfeeds that have messages, those of a feed behind each other."""
        self._feeds.check_table("subfeedMessages", ("feedId", "subfeedHash", "position", "message"))
        query = "SELECT DISTINCT feedId, subfeedHash FROM subfeedMessages ORDER BY 1, 2"
        for feed, name_hash in self._feeds.rows(query):
            # What is neither cannot have been signed, and is not worth a word.
            with contextlib.suppress(UriError):
                if isinstance(feed, str) and isinstance(name_hash, str):
                    yield FeedId.parse(feed), ContentHash.parse(name_hash)

    def messages(self, feed: FeedId, name_hash: ContentHash) -> Iterator[str]:
        """The texts of a subfeed's messages, from position 0 on."""
        query = (
            "SELECT position, message FROM subfeedMessages"
            " WHERE feedId = ? AND subfeedHash = ? ORDER BY position"
        )
        for expected, (position, text) in enumerate(self._feeds.rows(query, feed, name_hash)):
            if position != expected:
                raise DataFormatError(f"there is no message at position {expected}")
            if not isinstance(text, str):
                raise DataFormatError(f"the message at position {expected} is not text")
            yield text

    def writers(self, feed: FeedId) -> Iterator[tuple[ContentHash, list[NodeId]]]:
        """Of each subfeed that had access rules the nodes that might submit messages to it.

        kachery-client had no such rules, and no column for them.
        """
        if not self._feeds.has_table("subfeeds", ("feedId", "subfeedHash", "accessRules")):
            return
        query = "SELECT subfeedHash, accessRules FROM subfeeds WHERE feedId = ? LIMIT ?"
        for name_hash, rules in self._feeds.rows(query, feed, FEED_ROWS_MAX):
            nodes = _writers(rules)
            with contextlib.suppress(UriError):
                if nodes and isinstance(name_hash, str):
                    yield ContentHash.parse(name_hash), nodes

    def seed(self, feed: FeedId) -> bytes | None:
        """The private key of a feed; None if it is not here, or is not of this feed."""
        for key, value in self._mutable("feedConfig"):
            if key.get("feedId") == feed and isinstance(value, dict):
                seed = _seed(value.get("privateKey"))
                return seed if seed is not None and _feed_of(seed) == feed else None
        return None

    def name(self, feed: FeedId) -> str | None:
        """What the feed was called; None if it had no name."""
        for key, value in self._mutable("feedIdForName"):
            name = key.get("feedName")
            if value == feed and isinstance(name, str) and 0 < len(name) <= FEED_NAME_CHARS_MAX:
                return name
        return None

    def _mutable(self, kind: str) -> Iterator[tuple[dict[str, Any], Any]]:
        """The keys of this type, with their values."""
        if self._mutables is None:
            return
        self._mutables.check_table("mutables", ("key", "value"))
        query = "SELECT key, value FROM mutables WHERE key LIKE ? LIMIT ?"
        for key_text, value_text in self._mutables.rows(query, f"%{kind}%", FEEDS_MAX):
            try:
                key, value = json.loads(key_text), json.loads(value_text)
            except (ValueError, TypeError, RecursionError):
                continue
            if isinstance(key, dict) and key.get("type") == kind:
                yield key, value


class Database:
    """One file of SQLite that may be anything."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._look_until = 0.0
        with self._reading():
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise DataFormatError(f"{path} is not a file")
            where = f"file:{quote(os.path.abspath(path))}?mode=ro"
            self._connection = sqlite3.connect(where, uri=True, isolation_level=None)
            connection = self._connection
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LEGACY_ROW_BYTES_MAX)
            connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
            for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "query_only = ON"):
                connection.execute(f"PRAGMA {pragma}")
            connection.set_progress_handler(self._is_late, _STEPS)

    def close(self) -> None:
        self._connection.close()

    def check_table(self, name: str, columns: tuple[str, ...]) -> None:
        """DataFormatError if there is no such table."""
        if not self.has_table(name, columns):
            raise DataFormatError(f"{self._path} has no table {name} of an older kachery")

    def has_table(self, name: str, columns: tuple[str, ...]) -> bool:
        """Whether there is such a table; a view could make rows for ever."""
        query = "SELECT type, sql FROM sqlite_master WHERE name = ?"
        found = list(self.rows(query, name))
        plain = [sql for kind, sql in found if kind == "table" and _is_plain(sql)]
        known = {row[1] for row in self.rows(f"PRAGMA table_xinfo({name})") if row[6] == 0}
        return bool(plain) and known.issuperset(columns)

    def rows(self, query: str, *values: object) -> Iterator[tuple[Any, ...]]:
        with self._reading():
            cursor = self._connection.execute(query, values)
        while True:
            with self._reading():
                row = cursor.fetchone()
            if row is None:
                return
            yield row

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Whatever is wrong with the file becomes an error of ours, a look without end too."""
        self._look_until = time.monotonic() + LEGACY_LOOK_S_MAX
        try:
            yield
        except (sqlite3.Error, OSError, UnicodeError, OverflowError) as error:
            raise DataFormatError(
                f"{self._path} cannot be read as a database of an older kachery: {error}",
                hint="copy it again from where it was, while the older kachery does not run",
            ) from None

    def _is_late(self) -> bool:
        return time.monotonic() > self._look_until


def _is_plain(sql: object) -> bool:
    return isinstance(sql, str) and sql.upper().split()[:2] == ["CREATE", "TABLE"]


def _writers(rules: object) -> list[NodeId]:
    """The nodes that {"rules": [{"nodeId", "write"}, ...]} lets write, each once."""
    nodes: dict[NodeId, None] = {}
    try:
        listed = json.loads(rules)["rules"] if isinstance(rules, str) and rules else []
        for rule in listed:
            if rule["write"] is True and len(nodes) < FEED_ROWS_MAX:
                nodes[NodeId.parse(rule["nodeId"])] = None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, ConfigError):
        # Half a list of permissions is none.
        return []
    return list(nodes)


def _seed(value: object) -> bytes | None:
    if not isinstance(value, str):
        return None
    digits = value.removeprefix(_PKCS8_PREFIX)
    if len(digits) != _SEED_DIGITS or digits.strip("0123456789abcdef"):
        return None
    return bytes.fromhex(digits)


def _feed_of(seed: bytes) -> str:
    from kachery_p2p.feeds.keys import FeedKey

    return FeedKey(seed).feed
