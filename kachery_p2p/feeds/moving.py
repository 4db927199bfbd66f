"""Feeds of a channel that goes on under another id: they are served there from then on."""

from __future__ import annotations

import os


def move_channel(config_dir: str, old_id: str, new_id: str) -> None:
    """Move what is served in the old channel, in a node whose feeds are not running; durably."""
    path = f"{config_dir}/state/feeds.db"
    if not os.path.exists(path):
        return
    # Here and not above: a node that starts without feeds needs none of it.
    from kachery_p2p.feeds.register import Register

    register = Register(path)
    try:
        register.move_channel(old_id, new_id)
    finally:
        register.close()
