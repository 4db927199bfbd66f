"""From whom, and how long, a load may fetch what is not stored here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from kachery_p2p.errors import LoadTimeoutError, UnsupportedValueError
from kachery_p2p.limits import ANSWER_GRACE_S

# Ten years, the most that the operations of a daemon take.
_SECONDS_MAX = 315_360_000.0


class Origin(NamedTuple):
    """None leaves each of them open."""

    # The name of a channel.
    channel: str | None = None
    # A node: its id in either form, or the beginning of its label.
    node: str | None = None
    timeout_s: float | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """Those of the operation `load` that are not open: an older daemon knows no others."""
        named = {
            "from_channel": self.channel,
            "from_node": self.node,
            "timeout_s": self.timeout_s,
        }
        return {name: value for name, value in named.items() if value is not None}

    @property
    def answer_s(self) -> float | None:
        """How long the daemon's answer is waited for, in all."""
        return None if self.timeout_s is None else self.timeout_s + ANSWER_GRACE_S

    def until(self) -> Deadline:
        """The deadline of a call that begins now."""
        return Deadline(None if self.timeout_s is None else time.monotonic() + self.timeout_s)


ANYWHERE = Origin()


class Deadline(NamedTuple):
    """When a call must have ended, on the monotonic clock; None is never."""

    at: float | None

    @property
    def left_s(self) -> float | None:
        return None if self.at is None else max(self.at - time.monotonic(), 0.0)

    def kept_by(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """The pieces. LoadTimeoutError once the deadline has passed between two."""
        for piece in pieces:
            yield piece
            if self.at is not None and time.monotonic() > self.at:
                raise LoadTimeoutError(
                    "the content could not be copied from the daemon within the time allowed",
                    hint="it is in the daemon's store now: run it again",
                )


def origin(channel: str | None, node: str | None, timeout_s: float | None) -> Origin:
    """What the arguments of a load say. UnsupportedValueError for one that cannot be meant."""
    for name, value in (("from_channel", channel), ("from_node", node)):
        if value is not None and not isinstance(value, str):
            raise UnsupportedValueError(f"{name} must be a text, not a {type(value).__name__}")
    if timeout_s is None:
        return ANYWHERE if channel is None and node is None else Origin(channel, node)
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float):
        raise UnsupportedValueError(f"timeout must be seconds, not a {type(timeout_s).__name__}")
    if not 0 <= timeout_s <= _SECONDS_MAX:
        raise UnsupportedValueError(f"timeout must be 0 or more seconds, not {timeout_s}")
    return Origin(channel, node, timeout_s)
