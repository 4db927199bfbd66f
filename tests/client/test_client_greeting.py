"""The daemon is asked once on a connection who it is, not at each call."""

from __future__ import annotations

from typing import Any

import kachery_p2p as kp
from kachery_p2p.client.daemon import unix_daemon

Fake = Any


def test_one_store_after_the_other_is_one_call_each(daemon: Fake) -> None:
    operations = daemon.operations
    unix_daemon(str(daemon.config)).close()
    operations.clear()
    for number in range(3):
        kp.store_text(f"text {number}")
    assert operations == ["hello", "share", "share", "share"]


def test_on_a_new_connection_it_is_asked_again(daemon: Fake) -> None:
    operations = daemon.operations
    kp.store_text("one")
    operations.clear()
    unix_daemon(str(daemon.config)).close()
    kp.store_text("two")
    assert operations == ["hello", "share"]
