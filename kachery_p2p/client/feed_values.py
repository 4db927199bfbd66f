"""Messages of feeds as Python values, and back: any JSON, written compactly, read with suspicion.

What is written is JSON that every reader understands alike: no NaN, no half characters. What is
read was written by whoever owns the feed, so it has a bounded depth or is refused; numbers may
be larger than those of other languages, and stay what they are.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NoReturn

from kachery_p2p.errors import MessageFormatError, MessageTooLargeError, UnsupportedValueError
from kachery_p2p.limits import MESSAGE_BYTES_MAX, VALUE_DEPTH_MAX

if TYPE_CHECKING:
    import json

    from kachery_p2p.wire.feed_records import ReadMessage

# The type of an entry with a signed object of an older kachery.
LEGACY = 3


def encode_message(message: Any) -> bytes:
    """The JSON of a message.

    UnsupportedValueError if it has none; MessageTooLargeError if it is more than 1 MiB.
    """
    try:
        text = _encoder().encode(message)
        data = text.encode()
    except UnicodeEncodeError:
        raise UnsupportedValueError("the message holds half a character") from None
    except (TypeError, ValueError) as error:
        raise UnsupportedValueError(f"the message cannot be written as JSON: {error}") from None
    except RecursionError:
        raise _too_deep(UnsupportedValueError) from None
    if len(data) > MESSAGE_BYTES_MAX:
        raise MessageTooLargeError(
            f"the message has {len(data):,} bytes, more than {MESSAGE_BYTES_MAX:,}",
            hint="store it with `store_json`, and append its URI",
        )
    if is_deep(text):
        raise _too_deep(UnsupportedValueError)
    return data


def decode_message(text: str) -> Any:
    """The message whose JSON is `text`. MessageFormatError if it is none."""
    try:
        value = _decoder().decode(text)
    except ValueError:  # not JSON, NaN, or a number of more than 4,300 digits
        raise MessageFormatError("the message is not JSON") from None
    except RecursionError:
        raise _too_deep(MessageFormatError) from None
    if is_deep(text):
        raise _too_deep(MessageFormatError)
    return value


def message_value(read: ReadMessage, position: int, *, signed: bool) -> Any:
    """The message as it was appended; with `signed` the object around it.

    One of an older kachery is the object that its author signed. Newer ones have no signature of
    their own, because one signature stands for many: they say number, time, and who sent them.
    MessageFormatError.
    """
    value = decode_message(read.text)
    if read.type == LEGACY:
        return value if signed else message_of_signed(value)
    if not signed:
        return value
    body = {"message": value, "messageNumber": position + 1, "timestamp": read.time_ms}
    if read.submitter is not None:
        body["metaData"] = {"submittedByNodeId": read.submitter}
    return {"body": body}


def message_of_signed(signed: Any) -> Any:
    """The message in a signed object. MessageFormatError if it is none."""
    if isinstance(signed, dict) and isinstance(signed.get("body"), dict):
        body = signed["body"]
        if "message" in body:
            return body["message"]
    raise MessageFormatError("a message of an older kachery has not the form that they have")


def is_deep(text: str) -> bool:
    """Whether lists and objects in a JSON text nest deeper than data does."""
    if text.count("[") + text.count("{") <= VALUE_DEPTH_MAX:
        return False
    return _depth(text) > VALUE_DEPTH_MAX


def _depth(text: str) -> int:
    """How deep a JSON text nests, found without building it."""
    import re

    depth = deepest = 0
    # A string is skipped as a whole: what is in it nests nothing.
    for found in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', text):
        mark = found[0]
        if mark in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif mark in "]}":
            depth -= 1
    return deepest


def _too_deep(kind: type[UnsupportedValueError | MessageFormatError]) -> Exception:
    return kind(f"the message is nested more than {VALUE_DEPTH_MAX} deep")


@functools.cache
def _encoder() -> json.JSONEncoder:
    import json

    return json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@functools.cache
def _decoder() -> json.JSONDecoder:
    import json

    return json.JSONDecoder(parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)
