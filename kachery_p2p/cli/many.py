"""`load -`: URIs on stdin, one a line; paths on stdout, as they come."""

from __future__ import annotations

import json
import os
import select
from collections.abc import Iterator
from typing import Any

from kachery_p2p.cli.outcome import answer, say
from kachery_p2p.client.events import ProgressArg
from kachery_p2p.client.many import outcomes_of
from kachery_p2p.client.origin import Origin
from kachery_p2p.client.progress import Reporter
from kachery_p2p.client.wording import counted, printable
from kachery_p2p.errors import KacheryError, LoadFilesError, UriError
from kachery_p2p.limits import LOAD_MANY_MAX, STDIN_LINE_BYTES_MAX

_READ_BYTES = 1 << 16


def load_lines(descriptor: int, origin: Origin, as_json: bool, progress: ProgressArg) -> None:
    """Load what the lines name and print the path of each, in their order.

    What cannot be had leaves an empty line, and a sentence on stderr; in the end it is a
    LoadFilesError, which has the exit code of the first of them. Lines that are there are
    loaded together; none is waited for before the paths of those before it are printed.
    """
    count = failures = 0
    first: tuple[str, KacheryError] | None = None
    for texts in _groups(descriptor):
        with Reporter(progress, files_total=len(dict.fromkeys(texts))) as reporter:
            found = outcomes_of(texts, origin, reporter)
        for text in texts:
            outcome = found[text]
            count += 1
            if isinstance(outcome, KacheryError):
                failures += 1
                first = first or (text, outcome)
            _print(text, outcome, as_json)
    if first is not None:
        text, error = first
        raise LoadFilesError(
            f"{counted(failures, 'file')} of {count} {'was' if failures == 1 else 'were'} not"
            f" loaded, first {printable(text)}",
            hint=error.hint,
            failed={text: error},
        )


def _print(text: str, outcome: str | KacheryError, as_json: bool) -> None:
    failed = isinstance(outcome, KacheryError)
    if as_json:
        answer(json.dumps(_described(text, outcome)))
    else:
        answer("" if failed else str(outcome))
    if failed:
        say("error", f"{text}: {outcome}")


def _described(text: str, outcome: str | KacheryError) -> dict[str, Any]:
    told: dict[str, Any] = {"uri": text, "path": None, "error": None}
    if isinstance(outcome, KacheryError):
        told["error"] = {
            "name": type(outcome).__name__,
            "message": str(outcome),
            "hint": outcome.hint,
            "exit_code": outcome.exit_code,
        }
    else:
        told["path"] = outcome
    return told


def _groups(descriptor: int) -> Iterator[list[str]]:
    """The lines that are not empty, as many at once as are there."""
    unread, lines, ended = b"", list[str](), False
    while not ended:
        # Something is waited for only when there is nothing to do.
        while not ended and len(lines) < LOAD_MANY_MAX and (not lines or _is_readable(descriptor)):
            data = _read(descriptor)
            ended = not data
            *whole, unread = (unread + (data or b"\n")).split(b"\n")
            lines += [line for line in map(_text, whole) if line]
            if len(unread) > STDIN_LINE_BYTES_MAX:
                raise UriError("a line of the input is longer than any URI")
        while lines:
            some, lines = lines[:LOAD_MANY_MAX], lines[LOAD_MANY_MAX:]
            yield some


def _text(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape").strip()


def _is_readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, _READ_BYTES)
    except OSError as error:
        raise KacheryError(f"the input could not be read: {error.strerror}") from error
