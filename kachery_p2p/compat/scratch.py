"""The zone `scratch`: what is stored there is removed after some days.

A copy is put into STORE/.scratch and linked, so it is loaded and shared like any other file.
Its time of modification is when it is to be removed: by the daemon, which looks every hour, or
when something is stored there later. A content that is stored outside of the zone too is an
object of its own in the store, which nothing here touches.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from kachery_p2p.client import settings
from kachery_p2p.content.hashes import ContentHash

_DAY_S = 86_400.0


def put_file(path: str, channels: list[str] | None, keep_days: float) -> ContentHash:
    """Store a copy of the file for `keep_days`; its hash."""
    from kachery_p2p.store.sources import opened_source

    with opened_source(path) as source:
        return _put(lambda target: _copy(source, target), channels, keep_days)


def put_bytes(data: bytes, channels: list[str] | None, keep_days: float) -> ContentHash:
    """Store bytes for `keep_days`; their hash."""
    from kachery_p2p.store.durable import write_all

    return _put(lambda target: write_all(target, data, 0), channels, keep_days)


def sweep(now: float | None = None) -> int:
    """Remove what was to be kept until `now`, which is this moment; how many files."""
    from kachery_p2p.store.scratch import sweep_scratch

    at = time.time() if now is None else now
    return sweep_scratch(settings.storage_dir(), settings.state_dir(), at)


def _put(write: Callable[[int], None], channels: list[str] | None, keep_days: float) -> ContentHash:
    from kachery_p2p.client.storing import link_path
    from kachery_p2p.store.scratch import put_scratch

    def link(path: str) -> None:
        link_path(path, "file", channels)

    sweep()
    until = time.time() + keep_days * _DAY_S
    return put_scratch(settings.storage_dir(), until, write, link)


def _copy(source: int, target: int) -> None:
    from kachery_p2p.store.copying import Copier
    from kachery_p2p.store.sources import source_changed

    size = os.fstat(source).st_size
    copier = Copier(source, target, settings.storage_dir())
    while copier.copied < size:
        if not copier.step(size):
            raise source_changed()
