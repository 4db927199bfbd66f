"""What members say to each other of their channel's bucket: rows of the table in `messages`.

A member without the bucket's credentials asks one that has them: to put a content there, and
to let it read an object. `bucket` is the SHA-256 that names a bucket (`bucket.urls`), so two
whose settings mean different buckets refuse each other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from kachery_p2p.limits import (
    BUCKET_KEY_CHARS_MAX,
    BUCKET_QUERY_CHARS_MAX,
    BUCKET_RELAY_BYTES_MAX,
    BUCKET_SIGNED_S,
    BUCKET_TOLD_ATTRIBUTES_MAX,
    BUCKET_TOLD_CHARS_MAX,
    BUCKET_WISH_WAIT_S_MAX,
    LABEL_CHARS_MAX,
    REASON_CHARS_MAX,
)
from kachery_p2p.wire.message_fields import (
    CONTENT_BYTES,
    HASH_BYTES,
    Fields,
    Operation,
    WrongValueError,
    boolean,
    bytes_of,
    channel_id,
    integer,
    list_of,
    map_of,
    printable,
)

# What became of a content that is to be put into the bucket.
QUEUED, THERE, LEFT_OUT = 0, 1, 2
_SIZE_MAX = 1 << 45
_FILE_NAME_CHARS_MAX = 255
# Objects lie below a prefix, under names that need no escaping: nothing can lead out of it.
_KEY = re.compile(r"(?!\.\.?(/|$))[A-Za-z0-9._~=+-]+(/(?!\.\.?(/|$))[A-Za-z0-9._~=+-]+)*", re.ASCII)
# RFC 3986: what a query may consist of. No line ends, spaces or #, so it stays what it is.
_QUERY = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@/?%-]*", re.ASCII)


def object_key(value: object) -> str:
    """The key of an object below the channel's prefix."""
    if (
        isinstance(value, str)
        and len(value) <= BUCKET_KEY_CHARS_MAX
        and _KEY.fullmatch(value) is not None
    ):
        return value
    raise WrongValueError(f"expected a key of at most {BUCKET_KEY_CHARS_MAX} characters")


def query(value: object) -> str:
    """What follows the ? of a signed URL; empty for none. Where it leads, the asker knows."""
    if (
        isinstance(value, str)
        and len(value) <= BUCKET_QUERY_CHARS_MAX
        and _QUERY.fullmatch(value) is not None
    ):
        return value
    raise WrongValueError(f"expected a query of at most {BUCKET_QUERY_CHARS_MAX} characters")


_BUCKET: Fields = {"channel": channel_id, "bucket": bytes_of(HASH_BYTES, HASH_BYTES)}
_OBJECT: Fields = {**_BUCKET, "key": object_key}
_ATTRIBUTE = map_of({"name": printable(LABEL_CHARS_MAX), "value": printable(BUCKET_TOLD_CHARS_MAX)})

BUCKET_OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        # What do you do for members with this bucket?
        "bucket": Operation(request=_BUCKET, answer={"puts": boolean, "reads": boolean}),
        # Put a content there, which you may fetch from me. Asked again, it tells how far that is;
        # the answer waits so long for the end of it.
        "bucket put": Operation(
            request={
                **_BUCKET,
                "content": bytes_of(CONTENT_BYTES, CONTENT_BYTES),
                "label": printable(_FILE_NAME_CHARS_MAX),
                "wait_ms": integer(0, int(BUCKET_WISH_WAIT_S_MAX * 1000)),
            },
            answer={"state": integer(QUEUED, LEFT_OUT), "said": printable(REASON_CHARS_MAX)},
        ),
        # What is said of an object, and what lets me read it for a while; with an empty query it
        # is read by `bucket read`.
        "bucket look": Operation(
            request=_OBJECT,
            answer={
                "size": integer(0, _SIZE_MAX),
                "attributes": list_of(_ATTRIBUTE, BUCKET_TOLD_ATTRIBUTES_MAX),
                "query": query,
                "valid_s": integer(0, int(BUCKET_SIGNED_S)),
            },
        ),
        # So many bytes of an object, of a store whose URLs cannot be signed.
        "bucket read": Operation(
            request={
                **_OBJECT,
                "start": integer(0, _SIZE_MAX),
                "length": integer(1, BUCKET_RELAY_BYTES_MAX),
            },
            answer={"data": bytes_of(1, BUCKET_RELAY_BYTES_MAX)},
        ),
    }
)
