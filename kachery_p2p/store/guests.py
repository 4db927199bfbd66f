"""What guests share: other users of this computer, who may use the node but do not run it.

A grant says that the node serves a content in a channel; one whose `why` is WHY is
there only for guests. Which guests, the table `guests` of the same file says, so that
each sees and ends only what it shared itself, and what two share stays until both have
ended it. Everything here runs inside a transaction of `grants`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kachery_p2p.content.hashes import ContentHash

WHY = "guest"
_CONTENT_DIGITS = 40

TABLES = (
    "CREATE TABLE guests (uid INTEGER NOT NULL, content BLOB NOT NULL, channel TEXT NOT NULL,"
    " time REAL NOT NULL, PRIMARY KEY (uid, content, channel)) WITHOUT ROWID",
    "CREATE INDEX guests_by_grant ON guests (content, channel)",
)

Grant = tuple[ContentHash, str]


class Granted(NamedTuple):
    """One grant, as its owner sees it."""

    content: ContentHash
    # The channel's id.
    channel: str
    why: str
    time: float

    @property
    def key(self) -> str:
        """Where it stands in the order of grants, in hex."""
        return self.content + self.channel


def share(
    connection: sqlite3.Connection,
    contents: Iterable[ContentHash],
    channels: Sequence[str],
    uid: int,
    time: float,
) -> list[Grant]:
    """Let the contents be served in the channels for the guest `uid`."""
    grants = [(content, channel) for content in contents for channel in channels]
    for content, channel in grants:
        connection.execute(
            "INSERT OR IGNORE INTO guests VALUES (?, ?, ?, ?)", (uid, content.raw, channel, time)
        )
        connection.execute(
            "INSERT OR IGNORE INTO grants VALUES (?, ?, ?, ?)", (content.raw, channel, WHY, time)
        )
    return grants


def end_of_guest(
    connection: sqlite3.Connection, contents: Iterable[ContentHash], channel: str | None, uid: int
) -> list[Grant]:
    """End what the guest shared of the contents; the grants that it had."""
    ended = []
    for content in contents:
        query = "SELECT channel FROM guests WHERE uid = ? AND content = ?"
        found = connection.execute(query, (uid, content.raw)).fetchall()
        ended += [(content, row[0]) for row in found if channel in (None, row[0])]
    for content, where in ended:
        key = (content.raw, where)
        connection.execute(
            "DELETE FROM guests WHERE uid = ? AND content = ? AND channel = ?", (uid, *key)
        )
        connection.execute(
            "DELETE FROM grants WHERE content = ?1 AND channel = ?2 AND why = ?3 AND NOT EXISTS"
            " (SELECT 1 FROM guests WHERE content = ?1 AND channel = ?2)",
            (*key, WHY),
        )
    return ended


def end_of_owner(
    connection: sqlite3.Connection, contents: Iterable[ContentHash], channel: str | None
) -> list[Grant]:
    """End what the node's own user shares of the contents; what guests share of them stays."""
    ended = []
    for content in contents:
        query = "SELECT channel FROM grants WHERE content = ? AND why != ?"
        found = connection.execute(query, (content.raw, WHY)).fetchall()
        ended += [(content, row[0]) for row in found if channel in (None, row[0])]
    for content, where in ended:
        key = (content.raw, where)
        connection.execute(
            "UPDATE grants SET why = ? WHERE content = ? AND channel = ?", (WHY, *key)
        )
        connection.execute(
            "DELETE FROM grants WHERE content = ?1 AND channel = ?2 AND NOT EXISTS"
            " (SELECT 1 FROM guests WHERE content = ?1 AND channel = ?2)",
            key,
        )
    return ended


def page(
    connection: sqlite3.Connection,
    after: str | None,
    channel: str | None,
    uid: int | None,
    count_max: int,
) -> list[Granted]:
    """The next grants behind the key `after`: those of a guest, or (None) of the node's user."""
    table, why, whose, value = (
        ("grants", "why", "why != ?", WHY)
        if uid is None
        else ("guests", f"'{WHY}'", "uid = ?", uid)
    )
    content, last = _split(after)
    where, place = (
        ("(content, channel) > (?, ?)", [content, last])
        if channel is None
        else ("channel = ? AND content > ?", [channel, content])
    )
    rows = connection.execute(
        f"SELECT content, channel, {why}, time FROM {table}"  # noqa: S608 - our own words only
        f" WHERE {whose} AND {where} ORDER BY content, channel LIMIT ?",
        [value, *place, count_max],
    )
    return [Granted(ContentHash.of_raw(row[0]), *row[1:]) for row in rows]


def _split(key: str | None) -> tuple[bytes, str]:
    if key is None:
        return b"", ""
    return bytes.fromhex(key[:_CONTENT_DIGITS]), key[_CONTENT_DIGITS:]
