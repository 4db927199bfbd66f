"""The entries of a feed: messages, which are JSON texts.

    type 1   message     the text, UTF-8
    type 2   submitted   submitter's node id 32 ‖ submission id 16 ‖ the text
    type 3   legacy      the JSON text of a signed message of an older kachery, verbatim

An entry is `log.entries`; this is its payload. The text is what the author wrote: nobody on
the way parses it, so integers of any length and the order of keys arrive as they were sent.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kachery_p2p.errors import LogFormatError, MessageFormatError, MessageTooLargeError
from kachery_p2p.identity.keys import KEY_BYTES, NodeId
from kachery_p2p.limits import MESSAGE_BYTES_MAX
from kachery_p2p.log.entries import ENTRY_VERSION, Entry

MESSAGE = 1
SUBMITTED = 2
LEGACY = 3
SUBMISSION_ID_BYTES = 16

# The first fields of an entry: a call of `Entry.encode` for each message takes three times as long.
_START = struct.Struct(">BBQ")
_PREFIX_BYTES = KEY_BYTES + SUBMISSION_ID_BYTES


class Submission(NamedTuple):
    """Who sent a submitted message, and the id under which: one id is appended once."""

    submitter: NodeId
    id: bytes


class Message(NamedTuple):
    """One message as it is read: its JSON text, when its author's clock said, and who sent it."""

    text: str
    time_ms: int
    type: int = MESSAGE
    submission: Submission | None = None


def message_entries(texts: Iterable[str], time_ms: int) -> list[bytes]:
    """The entries for messages of the feed's own. MessageTooLargeError if one is too long.

    That a text is JSON is for its author's program to see to.
    """
    return encoded_entries(list(map(_encoded, texts)), time_ms)


def encoded_entries(payloads: Sequence[bytes], time_ms: int) -> list[bytes]:
    """The same, of texts that are UTF-8 already, and not too long."""
    start = _START.pack(ENTRY_VERSION, MESSAGE, time_ms)
    return [start + len(payload).to_bytes(4, "big") + payload for payload in payloads]


def submitted_entry(text: str, submission: Submission, time_ms: int) -> bytes:
    """The entry for a message that another node submitted."""
    assert len(submission.id) == SUBMISSION_ID_BYTES
    return _entry(SUBMITTED, time_ms, submission.submitter.raw + submission.id + _encoded(text))


def legacy_entry(text: str, time_ms: int) -> bytes:
    """The entry for a signed message of an older kachery."""
    return _entry(LEGACY, time_ms, _encoded(text))


def read_message(entry: bytes) -> Message:
    """The message in an entry of a feed.

    MessageFormatError if the bytes are none, or of a type that a newer kachery_p2p writes.
    """
    try:
        kind, time_ms, payload = Entry.decode(entry)
    except LogFormatError as error:
        raise MessageFormatError(str(error), hint=error.hint) from None
    if kind == SUBMITTED:
        if len(payload) < _PREFIX_BYTES:
            raise MessageFormatError("a submitted message does not say who sent it")
        sender = NodeId.of_raw(payload[:KEY_BYTES])
        submission = Submission(sender, payload[KEY_BYTES:_PREFIX_BYTES])
        return Message(_decoded(payload[_PREFIX_BYTES:]), time_ms, kind, submission)
    if kind not in (MESSAGE, LEGACY):
        raise MessageFormatError(
            f"a message has the type {kind}, which this kachery_p2p does not know",
            hint="upgrade kachery_p2p",
        )
    return Message(_decoded(payload), time_ms, kind)


def read_messages(entries: Sequence[bytes]) -> list[Message]:
    """The messages before one that cannot be read, which is raised if it comes first."""
    found: list[Message] = []
    try:
        for entry in entries:
            found.append(read_message(entry))
    except MessageFormatError:
        if not found:
            raise
    return found


def _entry(kind: int, time_ms: int, payload: bytes) -> bytes:
    return Entry(kind, time_ms, payload).encode()


def _encoded(text: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise MessageFormatError("the message is not Unicode text") from None
    if len(data) > MESSAGE_BYTES_MAX:
        raise MessageTooLargeError(
            f"the message has {len(data):,} bytes, more than {MESSAGE_BYTES_MAX:,}",
            hint="store it with `store_json`, and append its URI",
        )
    return data


def _decoded(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise MessageFormatError("a message is not Unicode text") from None
