"""Whose a bucket is, as this node knows it: what its encryption needs to find the keys."""

from __future__ import annotations

from typing import NamedTuple


class Home(NamedTuple):
    """Which channel's bucket it is, and where this node keeps what it knows of the channel."""

    config_dir: str
    # The alias of the joined channel.
    channel: str
