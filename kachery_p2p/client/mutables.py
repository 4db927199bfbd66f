"""Mutables: small values under keys, both any JSON, kept in this configuration's own file.

They are local, need no daemon, and are safe in many threads and processes: each call is
one transaction, on the disk when it returns. A key is known by the SHA-1 of its JSON with
sorted keys and no spaces, as in the older packages: 1.0 is 1, and the order of a dict's
keys does not matter.
"""

from __future__ import annotations

import os
from _thread import allocate_lock
from typing import TYPE_CHECKING, Any

from kachery_p2p.client import settings
from kachery_p2p.errors import DataFormatError, StateCorruptError, UnsupportedValueError
from kachery_p2p.limits import MUTABLE_KEY_BYTES_MAX, MUTABLE_VALUE_BYTES_MAX

if TYPE_CHECKING:
    from kachery_p2p.store.database import Database

# Whole numbers above this are no longer whole as the numbers of JSON.
_WHOLE_MAX = 2.0**53
# The schema of the file.
VERSION = 1


def set(key: Any, value: Any, update: bool = True) -> bool:
    """Keep `value` under `key`; on the disk when it returns.

    With update=False only if there is no value yet. True if the value was kept: of many
    processes that set one key so, exactly one gets True.
    """
    name = _key_text(key)
    row = (_hash(name), name, _value_text(value))
    action = "REPLACE" if update else "IGNORE"
    insert = f"INSERT OR {action} INTO mutables VALUES (?, ?, ?)"  # noqa: S608 (of two words)
    return _database().write(lambda connection: connection.execute(insert, row).rowcount > 0)


def get(key: Any, default: Any = None) -> Any:
    """The value under `key`, or `default` if there is none."""
    text = _stored(key)
    return default if text is None else _value(text)


def get_string(key: Any) -> str | None:
    """The text under `key`, or None if there is none; DataFormatError for any other value."""
    value = get(key)
    if value is not None and not isinstance(value, str):
        raise DataFormatError(
            f"the value of the mutable is a {type(value).__name__}, not a text", hint="use get"
        )
    return value


def delete(key: Any) -> bool:
    """Forget the value under `key`; False if there was none."""
    row = (_hash(_key_text(key)),)
    if not os.path.exists(mutables_path()):
        return False
    return _database().write(
        lambda connection: (
            connection.execute("DELETE FROM mutables WHERE hash = ?", row).rowcount > 0
        )
    )


def mutables_path() -> str:
    """The file that holds the mutables of this configuration."""
    return os.path.join(settings.config_dir(), "state", "mutables.db")


def _stored(key: Any) -> str | None:
    row = (_hash(_key_text(key)),)
    if not os.path.exists(mutables_path()):
        return None
    select = "SELECT value FROM mutables WHERE hash = ?"
    found = _database().read(lambda connection: connection.execute(select, row).fetchone())
    return None if found is None else str(found[0])


# --- JSON -------------------------------------------------------------------------------------


def _hash(name: str) -> bytes:
    from kachery_p2p.content.hashes import sha1_of

    return sha1_of(name.encode()).raw


def _key_text(key: Any) -> str:
    """The JSON that a key is known by; UnsupportedValueError if it has none."""
    import json

    # Through JSON and back first: what JSON makes of a key (a tuple, a number as name) counts.
    plain = _whole(json.loads(_encoded("key", key)))
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise UnsupportedValueError("the key of the mutable holds half a character") from None
    if size > MUTABLE_KEY_BYTES_MAX:
        raise UnsupportedValueError(
            f"the key of the mutable has {size} bytes, more than {MUTABLE_KEY_BYTES_MAX}"
        )
    return text


def _whole(value: Any) -> Any:
    """`value` with whole numbers written without a point, as JavaScript does."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= _WHOLE_MAX:
        return int(value)
    if isinstance(value, list):
        return [_whole(one) for one in value]
    if isinstance(value, dict):
        return {name: _whole(one) for name, one in value.items()}
    return value


def _value_text(value: Any) -> str:
    text = _encoded("value", value)
    if len(text) > MUTABLE_VALUE_BYTES_MAX:
        raise UnsupportedValueError(
            f"the value of the mutable has {len(text)} bytes, more than {MUTABLE_VALUE_BYTES_MAX}",
            hint="store it with store_json, and keep its URI in the mutable",
        )
    return text


def _encoded(what: str, value: Any) -> str:
    """ASCII only, so that its length is that of its bytes."""
    from kachery_p2p.content.values import encode_json

    try:
        text = encode_json(value).decode("ascii")
    except UnsupportedValueError as error:
        raise UnsupportedValueError(f"the {what} of the mutable: {error}") from None
    if "N" in text or "I" in text:
        _refuse_no_numbers(what, value)
    return text


def _refuse_no_numbers(what: str, value: Any) -> None:
    """NaN and Infinity are written by Python but are not JSON, and equal nothing."""
    import json

    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise UnsupportedValueError(
            f"the {what} of the mutable holds a number that JSON has not: NaN or Infinity"
        ) from None


def _value(text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise _damaged(mutables_path()) from None


# --- the file ---------------------------------------------------------------------------------

# Not from `threading`, whose import costs a millisecond.
_opening = allocate_lock()
# Path -> device and inode of the file, and the database. A program has few configurations.
_kept: dict[str, tuple[tuple[int, int], Database]] = {}


def _database() -> Database:
    """The database of this configuration, opened by the first use and kept.

    Looked at each time: if somebody removed or replaced the file, what is written to the
    old one would be lost.
    """
    path = mutables_path()
    with _opening:
        kept = _kept.get(path)
        if kept is None or kept[0] != _identity(path):
            kept = _kept[path] = _opened(path)
        return kept[1]


def _opened(path: str) -> tuple[tuple[int, int], Database]:
    from kachery_p2p.client.local import make_config_dir
    from kachery_p2p.store.database import Database, Schema

    schema = Schema(
        version=VERSION,
        statements=(
            "CREATE TABLE mutables (hash BLOB PRIMARY KEY, key TEXT NOT NULL,"
            " value TEXT NOT NULL) WITHOUT ROWID",
        ),
        synchronous="FULL",
    )
    make_config_dir()
    database = Database(path, schema, _refuse_damaged)
    database.read(lambda connection: connection.execute("SELECT 1"))
    return _identity(path), database


def _identity(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0)
    return status.st_dev, status.st_ino


def _refuse_damaged(path: str) -> None:
    raise _damaged(path)


def _damaged(path: str) -> StateCorruptError:
    return StateCorruptError(
        f"the file of mutables {path} is damaged",
        hint=f"restore it from a backup, or move it away with {path}-wal to begin anew",
    )


def _after_fork() -> None:
    # Another thread of the parent may have held the lock; the databases open their own files.
    global _opening
    _opening = allocate_lock()


os.register_at_fork(after_in_child=_after_fork)
