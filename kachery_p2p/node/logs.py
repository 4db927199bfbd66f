"""The daemon's log: one line an event, in key=value form, on stderr.

Where the lines go, and for how long they are kept, is the service manager's affair
(journald, Docker), or that of `log/daemon.log` for a node in the background.

    time=2026-11-21T07:30:00.123Z level=warning room=transfer.suppliers message="source …"

The message is a JSON text, so that nothing that a peer said can begin a line of its own or
steer a terminal. A traceback is in it: one event stays one line.
"""

from __future__ import annotations

import json
import logging
import sys
import time

_PACKAGE = "kachery_p2p."


class LineFormatter(logging.Formatter):
    """Formats a record as one line."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        room = record.name.removeprefix(_PACKAGE)
        level = record.levelname.lower()
        return (
            f"time={second}.{int(record.msecs):03}Z level={level} room={room} "
            f"message={json.dumps(text)}"
        )


def log_to_stderr() -> None:
    """Let warnings and errors of this process be lines on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
