"""The daemon's log: one line an event, whatever a peer put into it."""

from __future__ import annotations

import json
import logging
import re

from kachery_p2p.node.logs import LineFormatter

LINE = re.compile(
    r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=(\w+) room=([\w.]+) message=(\".*\")"
)


def formatted(message: str, error: BaseException | None = None) -> str:
    exc_info = (type(error), error, error.__traceback__) if error is not None else None
    record = logging.LogRecord(
        "kachery_p2p.network.session", logging.WARNING, "x.py", 1, message, None, exc_info
    )
    return LineFormatter("%(message)s").format(record)


def test_a_line_says_when_how_bad_where_and_what() -> None:
    found = LINE.fullmatch(formatted("node ab12 went away"))
    assert found is not None
    assert found[1] == "warning"
    assert found[2] == "network.session"
    assert json.loads(found[3]) == "node ab12 went away"


def test_nothing_that_a_peer_said_begins_a_line_or_steers_a_terminal() -> None:
    line = formatted('x\nlevel=error message="\x1b[2J\u202egpj')
    assert "\n" not in line
    assert line.isprintable()
    assert LINE.fullmatch(line)


def test_a_traceback_stays_in_its_line() -> None:
    try:
        raise ValueError("inside")
    except ValueError as error:
        line = formatted("it failed", error)
    assert "\n" not in line
    assert "ValueError: inside" in line
