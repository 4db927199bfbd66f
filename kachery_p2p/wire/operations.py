"""What a client may ask its daemon: the one table that both doors and every client go by.

An operation has a name, a body (a map of fields), a result (another map) and, where
it may take long, progress maps in between. The Unix door carries them as msgpack
frames, the HTTP door as JSON; neither knows more about an operation than stands here.

    request    {"op": name, "body": {...}}          (HTTP: POST /api/1/NAME with the body)
    progress   {"progress": {...}}                  any number of times; {} only says "alive"
    answer     {"ok": {...}} or {"error": {"name": ..., "message": ..., "hint": ...}}
               (HTTP: the result map itself, or {"error": ...} with a status of 400 or more)

A field that is left out is None, which only the optional ones may be. Fields that the
table does not know are refused in a body, so that a mistyped option is never silently
ignored, and dropped from a result, so that a newer daemon can serve an older client.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kachery_p2p.errors import DaemonProtocolError, KacheryError, by_name
from kachery_p2p.limits import (
    LOAD_MANY_FAILED_MAX,
    PEERS_MAX,
    SHARED_PAGE_MAX,
    TEXT_CHARS_MAX,
)
from kachery_p2p.wire.channel_operations import CHANNEL_OPERATIONS
from kachery_p2p.wire.feed_operations import FEED_OPERATIONS
from kachery_p2p.wire.fields import (
    CHANNELS,
    CONTENT,
    COUNT,
    FLAG,
    NAME,
    NODE,
    RATE,
    ROOT,
    SECONDS,
    SIZE,
    TEXT,
    Field,
    Fields,
    hexadecimal,
    integer,
    list_of,
    may_hold,
    optional,
    record,
)
from kachery_p2p.wire.fields import GUEST as GUEST
from kachery_p2p.wire.fields import OWNER as OWNER
from kachery_p2p.wire.fields import TOKEN as TOKEN
from kachery_p2p.wire.fields import Operation as Operation
from kachery_p2p.wire.packed_names import packed

# Version of this table. Told in `hello`; a mismatch names the side to upgrade.
DOOR_VERSION = 1
Body = dict[str, Any]

# All that may call anything at all; whoever runs the node, and other users of its computer.
_ALL = frozenset({OWNER, TOKEN, GUEST})
_LOCAL = frozenset({OWNER, GUEST})

_CONTENT_AND_ROOT: Fields = {"content": Field(CONTENT), "root": optional(ROOT)}
# No other sources are asked, or used, than those in the channel of that name, and than the node:
# an id in either form, or the beginning of one connected node's label.
_SOURCES: Fields = {
    "from_channel": optional(NAME),
    "from_node": optional(NAME),
    "timeout_s": optional(SECONDS),
}
_CHANNEL = record(
    {
        "name": Field(NAME),
        "id": Field(hexadecimal(64)),
        "members": Field(COUNT),
        "peers": Field(COUNT),
        # Whether its known addresses have each been dialled once: `status --wait` waits for it.
        "tried": optional(FLAG),
    }
)
_CHANNEL_KNOWN = record(
    {
        "name": Field(NAME),
        "id": Field(hexadecimal(64)),
        # "shared-secret" or "owned".
        "kind": Field(NAME),
        # Whether what is stored is shared there when nobody says where.
        "shared_list": Field(FLAG),
        "members": Field(COUNT),
        "peers": Field(COUNT),
    }
)
_GRANT = record(
    {"content": Field(CONTENT), "channel": Field(NAME), "why": Field(NAME), "time": Field(RATE)}
)
# Where a page of grants ended: content and channel id, each in hex.
_GRANT_KEY = hexadecimal(104)
_PEER = record(
    {
        "node_id": Field(NODE),
        "label": optional(TEXT),
        "channels": Field(CHANNELS),
        "address": optional(TEXT),
        "card": optional(TEXT),
    }
)
# One source of a transfer. A guest is told neither who it is nor its name.
_SOURCE = record(
    {
        "node_id": optional(NODE),
        "name": optional(TEXT),
        "channel": optional(NAME),
        # "serving", "late", "left", "stalled" or "lied".
        "state": Field(NAME),
        "rate": Field(RATE),
        "bytes": Field(SIZE),
        "wasted": Field(SIZE),
    }
)
# What a progress map may hold. All may be missing: the empty map says "alive".
PROGRESS: Fields = {
    # "asking" (for members that have it), "fetching", "hashing", "finishing", "storing".
    "phase": optional(NAME),
    # What there is to wait for when nothing comes.
    "waiting_for": optional(TEXT),
    # Bytes that are here, verified, those of an earlier run (`reused`) among them; in all.
    "bytes": optional(SIZE),
    "size": optional(SIZE),
    "reused": optional(SIZE),
    # Bytes that came for nothing: twice, or wrong.
    "wasted": optional(SIZE),
    # Bytes a second, as of late, and the seconds left at this rate.
    "rate": optional(RATE),
    "eta_s": optional(SECONDS),
    # Of many files at once: those that are here, and all.
    "files": optional(COUNT),
    "files_total": optional(COUNT),
    # The names of those who serve now; everybody who served, and what each brought.
    "sources": optional(list_of(TEXT, PEERS_MAX)),
    "by_source": optional(list_of(_SOURCE, PEERS_MAX)),
    # As `bytes`, for older clients.
    "verified": optional(SIZE),
}
_LOAD = record(
    {
        # None for many files at once, of which `files` and `files_total` tell.
        "content": optional(CONTENT),
        "root": optional(ROOT),
        **PROGRESS,
        "bytes": Field(SIZE),
        "rate": Field(RATE),
        "sources": Field(list_of(TEXT)),
    }
)
# A member that was given chunks within the last minute.
_SERVING = record(
    {
        "node_id": Field(NODE),
        "label": optional(TEXT),
        "bytes": Field(SIZE),
        "rate": Field(RATE),
    }
)
# How fast chunks go: the limits (None: none) and the present rates in bytes a second, and the bytes
# since the start, as they went through the line.
_PACE = record(
    {
        "max_upload": optional(SIZE),
        "max_download": optional(SIZE),
        "upload": Field(RATE),
        "download": Field(RATE),
        "uploaded": Field(SIZE),
        "downloaded": Field(SIZE),
    }
)
# Why one of many files is not in the store, and its place among them.
_FAILED = record(
    {"place": Field(COUNT), "name": Field(NAME), "message": Field(TEXT), "hint": optional(TEXT)}
)
_PROVIDER = record({"node_id": Field(NODE), "label": optional(TEXT), "channel": optional(NAME)})


_TABLE = (
    Operation(
        "hello",
        {"version": Field(COUNT)},
        {
            "version": Field(COUNT),
            "node_id": Field(NODE),
            "store": Field(TEXT),
            # The store directory's identity: equal to the client's means one and the same store.
            "store_dev": Field(SIZE),
            "store_ino": Field(integer((1 << 64) - 1)),
        },
        needs=_ALL,
    ),
    Operation(
        # A guest gets the short form: nothing of peers, loads, addresses and problems.
        "status",
        {},
        {
            "node_id": Field(NODE),
            "addresses": Field(list_of(TEXT)),
            "http": optional(TEXT),
            "channels": Field(list_of(_CHANNEL)),
            "peers": Field(list_of(_PEER)),
            "loads": Field(list_of(_LOAD)),
            "label": optional(TEXT),
            "version": Field(TEXT),
            "store": Field(TEXT),
            "uptime_s": Field(RATE),
            "pending_shares": Field(COUNT),
            # Chunks given to members since the start; what was fetched is in `loads` while it runs.
            "bytes_served": Field(COUNT),
            "serving": optional(list_of(_SERVING)),
            "pace": optional(_PACE),
            "problems": Field(list_of(TEXT)),
        },
        needs=_ALL,
    ),
    Operation("channels", {}, {"channels": Field(list_of(_CHANNEL_KNOWN, 64))}, needs=_ALL),
    Operation(
        # At the Unix door a read-only descriptor of the blob rides along with the result.
        "load",
        {**_CONTENT_AND_ROOT, **_SOURCES},
        {"path": Field(TEXT), "size": Field(SIZE), "root": optional(ROOT)},
        needs=_ALL,
        streams=True,
    ),
    Operation(
        # Many files, small ones in batches; `roots` of all of them, if any is known, "" for others.
        # `timeout_s` is for each. The first `answered` of them are in the store now, but for those
        # that failed; the rest is to be asked for again.
        "load_many",
        {
            "contents": Field(packed(40)),
            "roots": optional(packed(64)),
            **_SOURCES,
        },
        {"answered": Field(COUNT), "failed": Field(list_of(_FAILED, LOAD_MANY_FAILED_MAX))},
        needs=_ALL,
        streams=True,
    ),
    Operation(
        # `offset` is where the range starts in the descriptor that rides along. HTTP: GET, Range.
        "load_range",
        {**_CONTENT_AND_ROOT, "start": Field(SIZE), "end": Field(SIZE), **_SOURCES},
        {"offset": Field(SIZE), "length": Field(SIZE), "size": Field(SIZE)},
        needs=_LOCAL,
        streams=True,
    ),
    Operation(
        # `timeout_s` 0 asks this node's own store only.
        "find",
        {**_CONTENT_AND_ROOT, **_SOURCES},
        {
            "local": Field(FLAG),
            "size": optional(SIZE),
            # Verified here if it is `local`; else what the best of the providers claims.
            "root": optional(ROOT),
            "providers": Field(list_of(_PROVIDER)),
        },
        needs=_ALL,
    ),
    Operation(
        # `channels` None means the share list at that moment. A guest shares nothing pending.
        "share",
        {
            "contents": optional(list_of(CONTENT)),
            "pending": optional(FLAG),
            "channels": optional(CHANNELS),
        },
        {
            "shared": Field(COUNT),
            "channels": Field(list_of(NAME)),
            "missing": Field(list_of(CONTENT)),
        },
        needs=_ALL,
    ),
    Operation(
        # `channel` None means all channels, and what is pending too. Of the caller's own grants.
        "unshare",
        {"contents": Field(list_of(CONTENT)), "channel": optional(NAME)},
        {"unshared": Field(COUNT)},
        needs=_ALL,
    ),
    Operation(
        # A page of the caller's own grants, in the order of contents. `next` is the `after` of the
        # next page; None: this was the last.
        "shared",
        {"channel": optional(NAME), "after": optional(_GRANT_KEY)},
        {"grants": Field(list_of(_GRANT, SHARED_PAGE_MAX)), "next": optional(_GRANT_KEY)},
        needs=_ALL,
    ),
    Operation(
        # For a client with another store directory: the daemon reads the descriptor, never a path.
        "store",
        {"label": optional(NAME), "channels": optional(CHANNELS)},
        {"content": Field(CONTENT), "root": optional(ROOT), "size": Field(SIZE)},
        needs=_LOCAL,
        streams=True,
        takes_descriptor=True,
    ),
    Operation(
        # Only by PUT /blobs/sha1/HASH, whose body is the handler's `call.stream`.
        "put",
        {"content": Field(CONTENT), "size": Field(SIZE)},
        {"content": Field(CONTENT), "root": optional(ROOT), "size": Field(SIZE)},
        needs=frozenset({TOKEN}),
    ),
    Operation("stop", {}, {}),
)

OPERATIONS: Mapping[str, Operation] = {
    operation.name: operation for operation in (*_TABLE, *CHANNEL_OPERATIONS, *FEED_OPERATIONS)
}


def operation_named(name: object, credential: str) -> Operation:
    """The operation of that name, if the holder of `credential` may call it."""
    operation = OPERATIONS.get(name) if isinstance(name, str) else None
    if operation is None or credential not in operation.needs:
        shown = name[:64] if isinstance(name, str) else type(name).__name__
        raise DaemonProtocolError(
            f"the daemon has no operation {shown!r} here",
            hint="the client and the daemon may be of different versions: restart the daemon",
        )
    return operation


def check_body(operation: Operation, body: object) -> Body:
    """`body` with every field of the table present; DaemonProtocolError names a wrong one."""
    if not isinstance(body, dict):
        raise DaemonProtocolError(f"operation {operation.name}: the body must be a map")
    for name in body:
        if name not in operation.body:
            raise DaemonProtocolError(
                f"operation {operation.name}: unknown field {str(name)[:64]!r}"
            )
    return _checked(operation.name, operation.body, body)


def check_result(operation: Operation, result: object) -> Body:
    """The fields of `result` that the table knows; DaemonProtocolError if one is wrong."""
    if not isinstance(result, dict):
        raise DaemonProtocolError(f"operation {operation.name}: the result must be a map")
    return _checked(operation.name, operation.result, result)


def check_progress(progress: object) -> Body:
    if not isinstance(progress, dict):
        raise DaemonProtocolError("progress must be a map")
    return _checked("progress", PROGRESS, progress)


def _checked(where: str, fields: Fields, given: Mapping[str, object]) -> Body:
    for name, field in fields.items():
        if not may_hold(field, given.get(name)):
            raise DaemonProtocolError(
                f"operation {where}: field {name!r} must be {field.kind.name}"
            )
    return {name: given.get(name) for name in fields}


def check_version(version: int) -> None:
    """Refuse a client that speaks another version of the table (for the `hello` handler)."""
    if version != DOOR_VERSION:
        older = "client" if version < DOOR_VERSION else "daemon"
        raise DaemonProtocolError(
            f"the daemon speaks version {DOOR_VERSION} of its door, the client version {version}",
            hint=f"upgrade the {older}, and restart the daemon if it is older than the package",
        )


def error_to_map(error: KacheryError) -> Body:
    """How an error travels."""
    hint = error.hint[:TEXT_CHARS_MAX] if error.hint else None
    # A room may raise a kind of its own; what travels is the public class that it is a kind of.
    name = next(kind.__name__ for kind in type(error).__mro__ if by_name(kind.__name__) is kind)
    return {"name": name, "message": str(error)[:TEXT_CHARS_MAX], "hint": hint}


def error_from_map(value: object) -> KacheryError:
    """The same error on the other side; whatever `value` is, it becomes some KacheryError."""
    if not isinstance(value, dict):
        return DaemonProtocolError("the daemon failed without saying why")
    name, message, hint = value.get("name"), value.get("message"), value.get("hint")
    kind = by_name(name) if isinstance(name, str) else KacheryError
    said = message[:TEXT_CHARS_MAX] if isinstance(message, str) else "the daemon did not say why"
    return kind(said, hint=hint[:TEXT_CHARS_MAX] if isinstance(hint, str) else None)
