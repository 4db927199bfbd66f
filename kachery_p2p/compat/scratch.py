"""The zone `scratch`: what is stored there is removed after some days.

A copy is put into STORE/.scratch and linked, so it is loaded and shared like any other file.
Its time of modification is when it is to be removed: by the daemon, which looks every hour, or
when something is stored there later. A content that is stored outside of the zone too is an
object of its own in the store, which nothing here touches.
"""

from __future__ import annotations

import contextlib
import os
import time

from kachery_p2p.client import settings
from kachery_p2p.content.hashes import ContentHash

_DAY_S = 86_400.0


def put_file(path: str, channels: list[str] | None, keep_days: float) -> ContentHash:
    """Store a copy of the file for `keep_days`; its hash."""
    from kachery_p2p.store.copying import copy_whole
    from kachery_p2p.store.sources import opened_source

    copy = _new_path()
    try:
        with opened_source(path) as descriptor:
            copy_whole(descriptor, copy)
        return _linked(copy, channels, keep_days)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(copy)


def put_bytes(data: bytes, channels: list[str] | None, keep_days: float) -> ContentHash:
    """Store bytes for `keep_days`; their hash."""
    from kachery_p2p.store.durable import sync_file, write_all, writing_to

    copy = _new_path()
    try:
        with writing_to(copy), open(copy, "xb") as file:
            write_all(file.fileno(), data, 0)
            sync_file(file.fileno())
        return _linked(copy, channels, keep_days)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(copy)


def sweep(now: float | None = None) -> int:
    """Remove what was to be kept until `now`, which is this moment; how many files."""
    from kachery_p2p.store.scratch import sweep_scratch

    at = time.time() if now is None else now
    return sweep_scratch(settings.storage_dir(), settings.state_dir(), at)


def _linked(copy: str, channels: list[str] | None, keep_days: float) -> ContentHash:
    from kachery_p2p.client.storing import link_path
    from kachery_p2p.compat.old_stores import hash_of

    sweep()
    content = ContentHash(hash_of(copy))
    path = os.path.join(_directory(), content)
    # As objects are: whoever shares the store directory may read it.
    os.chmod(copy, 0o444)
    until = time.time() + keep_days * _DAY_S
    os.utime(copy, (until, until))
    # The newer copy takes the place of an older one, so that it stays for as long as it should.
    os.rename(copy, path)
    link_path(path, "file", channels)
    return content


def _new_path() -> str:
    from kachery_p2p.store.durable import DurableDirectories, writing_to

    # As open as the store directory: others may store there too.
    with writing_to(_directory()):
        DurableDirectories(settings.storage_dir()).make(_directory())
    return os.path.join(_directory(), f".{os.urandom(8).hex()}")


def _directory() -> str:
    from kachery_p2p.store.scratch import scratch_dir

    return scratch_dir(settings.storage_dir())
