"""What a client may ask its daemon about feeds: rows of the table of `wire.operations`.

A subfeed is named by the feed's id and the hash of its name; the name itself is told only where
somebody gave one, for the lists that people read. Messages are JSON texts, which the daemon passes
on as they are: as one field of bytes at the Unix door (`wire.feed_records`), as lists at the HTTP
door.
"""

from __future__ import annotations

from kachery_p2p.limits import (
    FEED_CALL_BYTES_MAX,
    FEED_CALL_MESSAGES_MAX,
    FEED_NAME_CHARS_MAX,
    FEED_PAGE_MAX,
    FEED_ROWS_MAX,
    FEED_WATCHED_MAX,
    MESSAGE_BYTES_MAX,
    PEERS_MAX,
    SUBMITTED_MAX,
)
from kachery_p2p.wire.fields import (
    CHANNELS,
    CONTENT,
    COUNT,
    FLAG,
    GUEST,
    NAME,
    NODE,
    OWNER,
    SECONDS,
    TEXT,
    TOKEN,
    Field,
    Fields,
    Kind,
    Operation,
    hexadecimal,
    list_of,
    optional,
    record,
    text,
)

# Another user of this computer reads what members of a channel could read, and does nothing else.
_ALL = frozenset({OWNER, TOKEN, GUEST})
# What needs a secret key, or a judgement on this computer's disk, is not done from elsewhere.
_OWNER = frozenset({OWNER})

_FEED = hexadecimal(64)
_FEED_NAME = text(FEED_NAME_CHARS_MAX)
_SUBFEED: Fields = {"feed": Field(_FEED), "name_hash": Field(CONTENT)}
_NAMED_SUBFEED: Fields = {**_SUBFEED, "name": optional(_FEED_NAME)}


def _is_packed(value: object) -> bool:
    return isinstance(value, bytes) and len(value) <= FEED_CALL_BYTES_MAX


_TEXTS = list_of(text(MESSAGE_BYTES_MAX), FEED_CALL_MESSAGES_MAX)
_MESSAGES = Kind("messages", lambda value: _is_packed(value) or _TEXTS.fits(value))
_READ = list_of(
    record(
        {
            # The message's JSON; `type` 1: the owner's, 2: submitted, 3: of an older kachery,
            # whose signed object it is.
            "text": Field(text(MESSAGE_BYTES_MAX)),
            "type": Field(COUNT),
            "time_ms": Field(COUNT),
            "submitter": optional(NODE),
        }
    ),
    FEED_CALL_MESSAGES_MAX,
)
_READ_MESSAGES = Kind("read messages", lambda value: _is_packed(value) or _READ.fits(value))
_WATCH = record({**_SUBFEED, "position": Field(COUNT)})
_SUBFEED_ROW = record({"name_hash": Field(CONTENT), "name": optional(_FEED_NAME)})
_FEED_ROW = record(
    {
        "feed": Field(_FEED),
        "names": Field(list_of(_FEED_NAME)),
        "channels": Field(CHANNELS),
    }
)

FEED_OPERATIONS = (
    Operation(
        # `channels` None means the share list at that moment.
        "feed_create",
        {"name": optional(_FEED_NAME), "channels": optional(CHANNELS)},
        {"feed": Field(_FEED)},
    ),
    Operation("feed_named", {"name": Field(_FEED_NAME)}, {"feed": Field(_FEED)}),
    Operation(
        # The own feeds, the oldest first, a page at a time: `next` is the `after` of the next page.
        "feed_list",
        {"after": optional(_FEED)},
        {"feeds": Field(list_of(_FEED_ROW, FEED_PAGE_MAX)), "next": optional(_FEED)},
    ),
    Operation(
        # The subfeeds of others that are kept up to date here.
        "feed_followed",
        {},
        {"subfeeds": Field(list_of(text(64 + 1 + 40), FEED_ROWS_MAX))},
    ),
    Operation(
        # The channels are those of an own feed; the subfeeds come in pages, by their hashes.
        "feed_info",
        {"feed": Field(_FEED), "after": optional(CONTENT)},
        {
            "own": Field(FLAG),
            "names": Field(list_of(_FEED_NAME)),
            "channels": Field(CHANNELS),
            "subfeeds": Field(list_of(_SUBFEED_ROW, FEED_PAGE_MAX)),
            "next": optional(CONTENT),
        },
    ),
    Operation("feed_delete", {"feed": Field(_FEED)}, {}),
    Operation("feed_share", {"feed": Field(_FEED), "channels": optional(CHANNELS)}, {}),
    Operation("feed_unshare", {"feed": Field(_FEED), "channel": Field(NAME)}, {}),
    Operation(
        # What is known at this moment; nobody is asked. A guest learns nothing of other nodes.
        "feed_status",
        _NAMED_SUBFEED,
        {
            "own": Field(FLAG),
            "size": Field(COUNT),
            "local_size": Field(COUNT),
            "head_time_ms": optional(COUNT),
            "forked_at": optional(COUNT),
            "ended_at": optional(COUNT),
            "successors": Field(list_of(_FEED, 2)),
            "restored": Field(FLAG),
            "behind": Field(FLAG),
            "sources": Field(list_of(NODE, PEERS_MAX)),
            "followers": Field(COUNT),
        },
        needs=_ALL,
    ),
    Operation(
        # All of them or none; `first` is the position of the first. On the disk by then.
        "feed_append",
        {**_NAMED_SUBFEED, "messages": Field(_MESSAGES)},
        {"first": Field(COUNT)},
        streams=True,
    ),
    Operation(
        # Messages from `first` on; none if none comes within `wait_s`. `size` is how many there are
        # in all. A subfeed of somebody else is followed from now on.
        "feed_read",
        {
            **_NAMED_SUBFEED,
            "first": Field(COUNT),
            "count": optional(COUNT),
            "wait_s": optional(SECONDS),
        },
        {"messages": Field(_READ_MESSAGES), "size": Field(COUNT)},
        needs=_ALL,
        streams=True,
    ),
    Operation(
        # Which of these have messages at the position or behind it; none after `wait_s`.
        "feed_watch",
        {"watches": Field(list_of(_WATCH, FEED_WATCHED_MAX)), "wait_s": Field(SECONDS)},
        {"found": Field(list_of(COUNT, FEED_WATCHED_MAX))},
        needs=_ALL,
        streams=True,
    ),
    Operation(
        # To the node that owns the feed. An id that was appended already is not appended again.
        "feed_submit",
        {
            **_SUBFEED,
            "messages": Field(_MESSAGES),
            "ids": Field(list_of(hexadecimal(32), SUBMITTED_MAX)),
        },
        {"positions": Field(list_of(COUNT, SUBMITTED_MAX))},
        streams=True,
    ),
    Operation("feed_access", _SUBFEED, {"nodes": Field(list_of(NODE, FEED_ROWS_MAX))}),
    Operation("feed_grant", {**_SUBFEED, "node": Field(NODE)}, {}),
    Operation("feed_revoke", {**_SUBFEED, "node": Field(NODE)}, {}),
    Operation(
        # These nodes may submit, and no others.
        "feed_set_access",
        {**_SUBFEED, "nodes": Field(list_of(NODE, FEED_ROWS_MAX))},
        {},
    ),
    # In hex, in pieces that a text can have.
    Operation("feed_proof", _SUBFEED, {"proof": Field(list_of(TEXT, 8))}),
    Operation("feed_end", {**_SUBFEED, "successor": optional(_FEED)}, {}, needs=_OWNER),
    Operation("feed_resume", _SUBFEED, {}, needs=_OWNER),
    Operation(
        # The feed of a key that an older kachery had.
        "feed_adopt",
        {
            "seed": Field(hexadecimal(64)),
            "name": optional(_FEED_NAME),
            "channels": optional(CHANNELS),
        },
        {"feed": Field(_FEED)},
        needs=_OWNER,
    ),
    Operation(
        # Signed messages of an older kachery, as they were, with their times.
        "feed_append_legacy",
        {**_SUBFEED, "messages": Field(_MESSAGES), "times_ms": Field(list_of(COUNT))},
        {"first": Field(COUNT)},
        needs=_OWNER,
        streams=True,
    ),
)
