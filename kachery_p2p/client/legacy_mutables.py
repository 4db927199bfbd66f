"""Taking over the mutables of an older kachery: what programs kept in its `mutables.db`.

What the daemon itself kept there is left: keys and names of feeds (`legacy_import` takes those),
and the channels that it had joined. A mutable that has a value here by now keeps it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from kachery_p2p.client import mutables
from kachery_p2p.client.legacy_feeds import MUTABLES_NAME, Database
from kachery_p2p.errors import UnsupportedValueError
from kachery_p2p.limits import LEGACY_MUTABLES_MAX

# What the daemons kept for themselves: keys of this type, and this key.
_OWN_TYPES = ("feedConfig", "feedIdForName")
_OWN_KEYS = ("_joined_channels_config",)


def import_mutables(directory: str) -> int:
    """Take over the mutables in the directory of an older kachery; how many were.

    DataFormatError if mutables.db is no such database, or is damaged; 0 if there is none.
    """
    path = os.path.join(directory, MUTABLES_NAME)
    if not os.path.lexists(path):
        return 0
    database = Database(path)
    try:
        database.check_table("mutables", ("key", "value"))
        return sum(_take(key, value) for key, value in _kept(database))
    finally:
        database.close()


def _kept(database: Database) -> Iterator[tuple[Any, Any]]:
    """Keys and values of programs, as far as they are what mutables are."""
    query = "SELECT key, value FROM mutables LIMIT ?"
    for key_text, value_text in database.rows(query, LEGACY_MUTABLES_MAX):
        try:
            key, value = json.loads(key_text), json.loads(value_text)
        except (ValueError, TypeError, RecursionError):
            continue
        is_own = isinstance(key, dict) and key.get("type") in _OWN_TYPES
        if not is_own and not (isinstance(key, str) and key in _OWN_KEYS):
            yield key, value


def _take(key: Any, value: Any) -> bool:
    try:
        return mutables.set(key, value, update=False)
    except UnsupportedValueError:
        return False
