"""The zone `scratch`: what is stored there is removed after some days.

A copy is put into STORE/.scratch and linked, so it is loaded and shared like any other file.
Files are removed by the time of their last storing when something is stored there later, or by
`sweep`. A content that is stored outside of the zone too is an object of its own in the
store, which nothing here touches.
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


def sweep(keep_days: float, now: float | None = None) -> int:
    """Remove what was stored more than `keep_days` ago; how many files."""
    oldest = (time.time() if now is None else now) - keep_days * _DAY_S
    removed = 0
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(_directory()):
            if entry.stat().st_mtime < oldest:
                os.unlink(entry.path)
                _end_link(entry.name, entry.path)
                removed += 1
    return removed


def _end_link(name: str, path: str) -> None:
    """Forget that the file stood for its content; what the user linked elsewhere stays."""
    from kachery_p2p.store.index import Index
    from kachery_p2p.store.links import Links

    if len(name) != ContentHash.CHARS:  # what a killed process left
        return
    index = Index(os.path.join(settings.state_dir(), "index.db"))
    links = Links(os.path.join(settings.state_dir(), "links.db"), settings.storage_dir(), index)
    try:
        link = links.get(ContentHash(name))
        if link is not None and link.path == path:
            links.drop(link.content)
    finally:
        links.close()
        index.close()


def _linked(copy: str, channels: list[str] | None, keep_days: float) -> ContentHash:
    from kachery_p2p.client.storing import link_path
    from kachery_p2p.compat.old_stores import hash_of

    sweep(keep_days)
    content = ContentHash(hash_of(copy))
    path = os.path.join(_directory(), content)
    # The newer copy takes the place of an older one, so that it stays for as long as it should.
    os.rename(copy, path)
    link_path(path, "file", channels)
    return content


def _new_path() -> str:
    from kachery_p2p.store.durable import writing_to

    with writing_to(_directory()):
        os.makedirs(_directory(), exist_ok=True)
    return os.path.join(_directory(), f".{os.urandom(8).hex()}")


def _directory() -> str:
    return os.path.join(settings.storage_dir(), ".scratch")
