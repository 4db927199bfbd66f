"""The links that older packages left in a store, as JSON beside the objects.

kachery-p2p, kachery-client   sha1/aa/bb/cc/<hash>.link
                              {"path", "manifest_hash" | "manifestSha1", "stat": {"size", ...}}
kachery-cloud                 linked_files/sha1/aa/bb/cc/<hash>
                              {"path", "size", "mtime", "sha1"}
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

from kachery_p2p.limits import OLD_LINK_BYTES_MAX
from kachery_p2p.store.paths import old_link_paths


class OldLink(NamedTuple):
    """Where the file was, and the size it had; it may have changed since."""

    path: str
    size: int


def old_links(store: str, content: str) -> Iterator[OldLink]:
    """What older packages noted about `content`; what cannot be read is as good as nothing."""
    for path in old_link_paths(store, content):
        link = _parse(_read(path), content)
        if link is not None:
            yield link


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > OLD_LINK_BYTES_MAX:
            return b""
        return os.pread(fd, OLD_LINK_BYTES_MAX, 0)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _parse(data: bytes, content: str) -> OldLink | None:
    try:
        record: Any = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("sha1", content) != content:
        return None
    status = record.get("stat", record)
    size = status.get("size") if isinstance(status, dict) else None
    path = record.get("path")
    if type(size) is not int or not isinstance(path, str) or not os.path.isabs(path):
        return None
    return OldLink(path, size)
