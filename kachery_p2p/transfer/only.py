"""Which sources a call accepts: those of one channel, one node, or any."""

from __future__ import annotations

from typing import NamedTuple


class Only(NamedTuple):
    """A restriction of sources. None leaves that side open."""

    # A channel's id.
    channel: str | None = None
    # A node's id.
    node: str | None = None

    def allows(self, node: str, channel: str) -> bool:
        """True if this node may be used, and asked, in this channel."""
        return self.node in (None, node) and self.channel in (None, channel)

    def allows_transfer(self, channel: str, node: str | None) -> bool:
        """True if all that a transfer in `channel`, from `node` or (None) anybody, uses is fine."""
        return self.node in (None, node) and self.channel in (None, channel)


ANYONE = Only()
