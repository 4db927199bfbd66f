"""What a client may ask its daemon about channels: rows of the table of `wire.operations`.

Whatever only reads what is on the disk needs no daemon and no row here.
"""

from __future__ import annotations

from kachery_p2p.wire.fields import (
    COUNT,
    FLAG,
    NAME,
    NODE,
    OWNER,
    SECONDS,
    TEXT,
    Field,
    Operation,
    hexadecimal,
    list_of,
    optional,
)

# Only whoever runs the node changes its channels: no token and no guest.
_OWNER = frozenset({OWNER})
_CHANNEL_ID = hexadecimal(64)
_ROLES = list_of(NAME, 8)

CHANNEL_OPERATIONS = (
    Operation(
        "channel_create",
        {"name": Field(NAME)},
        {"name": Field(NAME), "id": Field(_CHANNEL_ID)},
        needs=_OWNER,
    ),
    Operation(
        # `node`: only that node may use it. `roles` None means all but admin.
        "channel_invite",
        {
            "name": Field(NAME),
            "roles": optional(_ROLES),
            "valid_s": optional(SECONDS),
            "node": optional(NODE),
        },
        {"invite": Field(TEXT), "expires": Field(COUNT)},
        needs=_OWNER,
    ),
    Operation(
        # Answers after `timeout_s` at the latest; `awaiting` says who is not reached by then.
        "channel_join",
        {"invite": Field(TEXT), "alias": optional(NAME), "timeout_s": optional(SECONDS)},
        {
            "name": Field(NAME),
            "id": Field(_CHANNEL_ID),
            "joined": Field(FLAG),
            "awaiting": optional(TEXT),
        },
        needs=_OWNER,
    ),
    Operation(
        "channel_remove",
        {"name": Field(NAME), "node": Field(NODE)},
        {},
        needs=_OWNER,
    ),
    Operation(
        "channel_roles",
        {"name": Field(NAME), "node": Field(NODE), "roles": Field(_ROLES)},
        {},
        needs=_OWNER,
    ),
    Operation(
        # A field that is left out stays as it was.
        "channel_set",
        {
            "name": Field(NAME),
            "bootstrap": optional(list_of(TEXT, 64)),
            "bucket": optional(TEXT),
            "not_after": optional(COUNT),
        },
        {},
        needs=_OWNER,
    ),
    Operation(
        # `node` None: nobody. `take_over`: this node, which the old channel names, goes on.
        "channel_successor",
        {"name": Field(NAME), "node": optional(NODE), "take_over": optional(FLAG)},
        {"id": Field(_CHANNEL_ID)},
        needs=_OWNER,
    ),
    Operation(
        "channel_leave",
        {"name": Field(NAME), "force": optional(FLAG)},
        {},
        needs=_OWNER,
    ),
)
