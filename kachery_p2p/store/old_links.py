"""The links that older packages left in a store, as JSON beside the objects.

kachery-p2p, kachery-client   sha1/aa/bb/cc/<hash>.link
                              {"path", "manifest_hash" | "manifestSha1", "stat": {"size", ...}}
kachery-cloud                 linked_files/sha1/aa/bb/cc/<hash>
                              {"path", "size", "mtime", "sha1"}
kachery                       sha1/aa/bb/cc/<hash>.hints.json, and md5/ likewise
                              {"files": [{"stat": {"path", "size", ...}, "sha1"}, ...]}

The first kachery linked nothing, but noted each file that it had hashed, and took the file
where it did not have the content itself. (Its <hash>.record.json says the hash of a file by
what stat told of it. That is nothing to be believed, and our index knows it better.)
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

from kachery_p2p.limits import OLD_HINTS_BYTES_MAX, OLD_HINTS_MAX, OLD_LINK_BYTES_MAX
from kachery_p2p.store.paths import old_hints_path, old_link_paths


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
    yield from old_hints(old_hints_path(store, content), "sha1", content)


def old_hints(path: str, algorithm: str, name: str) -> Iterator[OldLink]:
    """The files of a hints.json, those that were noted last first."""
    if not (data := _read(path, OLD_HINTS_BYTES_MAX)):
        return
    try:
        files: Any = json.loads(data)["files"]
        noted = list(reversed(files[-OLD_HINTS_MAX:]))
    except (ValueError, LookupError, TypeError, RecursionError):
        return
    for one in noted:
        if isinstance(one, dict) and one.get(algorithm) == name:
            link = _link(one.get("stat"))
            if link is not None:
                yield link


def _read(path: str, bytes_max: int = OLD_LINK_BYTES_MAX) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > bytes_max:
            return b""
        return os.pread(fd, bytes_max, 0)
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
    return _link({"path": record.get("path"), "size": size})


def _link(record: Any) -> OldLink | None:
    """The link that says where the file is and how large it was, if the record does."""
    if not isinstance(record, dict):
        return None
    path, size = record.get("path"), record.get("size")
    if type(size) is not int or not isinstance(path, str) or not os.path.isabs(path):
        return None
    return OldLink(path, size)
