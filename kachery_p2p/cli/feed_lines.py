"""Messages of feeds as lines of JSON: on stdin to append or submit, on stdout to read."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kachery_p2p.cli.outcome import answer, note, write_bytes
from kachery_p2p.client.feed_calls import FeedPage, LiveSubfeed
from kachery_p2p.client.feed_values import decode_message
from kachery_p2p.client.subfeeds import Subfeed
from kachery_p2p.client.wording import counted, printable
from kachery_p2p.errors import (
    FeedEndedError,
    KacheryError,
    MessageFormatError,
    MessageTooLargeError,
    UnsupportedValueError,
)
from kachery_p2p.limits import FEED_LINE_BYTES_MAX, FEED_STREAM_WAIT_S

_READ_BYTES = 1 << 18

Write = Callable[[Sequence[Any]], Sequence[int]]


def write_messages(write: Write, text: str | None, what: str) -> None:
    """Append (or submit) the message whose JSON is `text`, or each line of stdin.

    Prints the position of the one, or how many there were. Lines that are there are appended
    together; those before one that is wrong are appended, and said.
    """
    if text is not None and text != "-":
        answer(str(write([_message(text, "the message")])[0]))
        return
    count = 0
    try:
        for messages in _batches(sys.stdin.fileno()):
            count += len(write(messages))
    except KacheryError:
        if count:
            note(f"{counted(count, 'message')} before that {_was(count)} {what}")
        raise
    answer(str(count))


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def _batches(descriptor: int) -> Iterator[list[Any]]:
    """The messages on the lines of a file, as many at a time as have come."""
    number, unread = 0, b""
    while piece := os.read(descriptor, _READ_BYTES):
        *lines, unread = (unread + piece).split(b"\n")
        if len(unread) > FEED_LINE_BYTES_MAX:
            raise MessageTooLargeError(f"line {number + len(lines) + 1} is too long for a message")
        if lines:
            yield from _messages(lines, number)
        number += len(lines)
    if unread.strip():
        yield from _messages([unread], number)


def _messages(lines: Sequence[bytes], number: int) -> Iterator[list[Any]]:
    """The messages before a line that is wrong, and then what is wrong with it."""
    messages: list[Any] = []
    for place, line in enumerate(lines, number + 1):
        if not line.strip():
            continue
        try:
            messages.append(_message(line.decode("utf-8", "surrogateescape"), f"line {place}"))
        except UnsupportedValueError:
            if messages:
                yield messages
            raise
    if messages:
        yield messages


def _message(text: str, what: str) -> Any:
    """The message whose JSON somebody typed or piped in. UnsupportedValueError."""
    try:
        text.encode()
        return decode_message(text)
    except (MessageFormatError, UnicodeEncodeError):
        raise UnsupportedValueError(
            f"{what} is not JSON", hint="a text stands in double quotes, inside those of the shell"
        ) from None


def print_messages(
    subfeed: Subfeed, *, count: int | None, follow: bool, signed: bool, as_json: bool
) -> None:
    """Print the messages from the subfeed's position on; with `follow` for ever, or to its end."""
    left = count
    while left is None or left > 0:
        try:
            page = subfeed.page(left or 0, FEED_STREAM_WAIT_S if follow else 0.0, signed=signed)
        except FeedEndedError as ended:
            if follow and count is None:
                note(str(ended))
                note(ended.hint or "")
            return
        write_bytes("".join(_lines(page, as_json)).encode())
        left = None if left is None else left - len(page.values)
        if not page.values and not follow:
            return


def _lines(page: FeedPage, as_json: bool) -> Iterator[str]:
    """A line for each message. Others wrote them: on a terminal all but ASCII is escaped."""
    is_terminal = sys.stdout.isatty()
    encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=is_terminal).encode
    for place, value in enumerate(page.values):
        line = encode(_described(page, place) if as_json else value)
        # Half characters, which JSON can spell, are spelled so again.
        plain = line.encode("utf-8", "backslashreplace").decode()
        # Still JSON: of what is ASCII only this one does not print.
        yield (plain.replace("\x7f", "\\u007f") if is_terminal else plain) + "\n"


def _described(page: FeedPage, place: int) -> dict[str, Any]:
    told: dict[str, Any] = {"position": page.first + place, "message": page.values[place]}
    if page.told:
        one = page.told[place]
        told["time"] = one.time_ms / 1000
        if one.submitter is not None:
            told["submitter"] = one.submitter
    return told


def status_lines(uri: str, told: dict[str, Any]) -> Iterator[str]:
    """What is known of a subfeed, for people."""
    yield f"{'subfeed':10}{printable(uri)}"
    size, local = told["size"], told["local_size"]
    yield f"{'messages':10}{size}" + ("" if local == size else f", {local} of them here")
    yield f"{'written by':10}{'this node' if told['own'] else 'somebody else'}"
    if told["head_time_ms"] is not None:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(told["head_time_ms"] / 1000))
        yield f"{'signed':10}{when}"
    yield from (f"{'source':10}{node}" for node in told["sources"])
    if told["followers"]:
        yield f"{'followers':10}{told['followers']}"
    yield from _problems(uri, told)


def _problems(uri: str, told: dict[str, Any]) -> Iterator[str]:
    if told["forked_at"] is not None:
        shared = counted(told["forked_at"], "message")
        yield f"{'problem':10}forked: its key signed two histories, which share {shared}"
        yield f"{'proof':10}kachery-p2p feed export-proof {printable(uri)}"
    if told["ended_at"] is not None:
        after = "".join(f"; it goes on as feed://{feed}" for feed in told["successors"])
        yield f"{'ended':10}after {counted(told['ended_at'], 'message')}{after}"
    if told["restored"]:
        yield f"{'problem':10}restored or copied: appends wait until a member says where it ends"
        yield f"{'mend':10}kachery-p2p feed resume {printable(uri)} --only-copy"
    if told["behind"]:
        yield f"{'problem':10}a longer copy exists: appends wait until this one has caught up"


def live_status(live: LiveSubfeed, uri: str) -> dict[str, Any]:
    """What is known of a subfeed, for programs."""
    return {"uri": uri, **live.status()}
