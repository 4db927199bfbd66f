"""Other names of stored contents: by MD5, which the first kachery could be told to use, and by CID.

Whoever stores under such a name writes it down here, because no directory is laid out by it. One
row for each name, on the disk when `put` returns. Names are never shared with other nodes.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from kachery_p2p.client import settings
from kachery_p2p.content.hashes import ContentHash

if TYPE_CHECKING:
    from kachery_p2p.store.database import Database

log = logging.getLogger(__name__)

MD5 = "md5"
CID = "cid"


def put(kind: str, name: str, content: ContentHash) -> None:
    """From now on `find` answers `content` for the name."""
    row = (kind, name, content.raw)
    if find(kind, name) != content:
        _database().write(
            lambda connection: connection.execute(
                "INSERT OR REPLACE INTO names VALUES (?, ?, ?)", row
            )
        )


def find(kind: str, name: str) -> ContentHash | None:
    """The content that was stored under the name on this computer."""
    if not os.path.exists(names_path()):
        return None
    select = "SELECT content FROM names WHERE kind = ? AND name = ?"
    found = _database().row(select, (kind, name))
    return None if found is None else ContentHash.of_raw(found[0])


def names_path() -> str:
    """The file that holds the names."""
    return os.path.join(settings.state_dir(), "names.db")


# By the path: a program has few configurations.
_open: dict[str, Database] = {}


def _database() -> Database:
    from kachery_p2p.client.local import make_config_dir
    from kachery_p2p.store.database import Database, Schema

    path = names_path()
    database = _open.get(path)
    if database is None or not database.is_current():
        make_config_dir()
        schema = Schema(
            version=1,
            statements=(
                "CREATE TABLE names (kind TEXT, name TEXT, content BLOB NOT NULL,"
                " PRIMARY KEY (kind, name)) WITHOUT ROWID",
            ),
            synchronous="FULL",
        )
        database = _open[path] = Database(path, schema, _move_aside)
    return database


def _move_aside(path: str) -> None:
    kept = f"{path}.damaged-{time.time_ns()}"
    log.warning("the names in %s are damaged: kept as %s; store the files again", path, kept)
    for suffix in ("-wal", "-shm"):
        if os.path.exists(path + suffix):
            os.rename(path + suffix, kept + suffix)
    os.rename(path, kept)
