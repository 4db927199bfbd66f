"""What lies in a store: a walk over `sha1/`, one directory in memory at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import KacheryError, StorePermissionError

_PART = re.compile(r"[0-9a-f]{2}")
_NAME = re.compile(r"[0-9a-f]{40}")


class Listed(NamedTuple):
    """An object, or a file linked as one: nothing was read but its name and size."""

    content: ContentHash
    size: int
    path: str
    linked: bool = False


class Checked(NamedTuple):
    """An object that was hashed, and what is wrong with it: nothing, if `error` is None."""

    listed: Listed
    error: KacheryError | None


def list_objects(store: str) -> Iterator[Listed]:
    """The objects in `store`, by their names. Whatever else lies there is passed over.

    Raises StorePermissionError for a directory that may not be read.
    """
    for first in _parts(f"{store}/sha1"):
        for second in _parts(first):
            for third in _parts(second):
                yield from _objects_in(third, third[-8:].replace("/", ""))


def _parts(directory: str) -> Iterator[str]:
    for entry in _entries(directory):
        if _PART.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
            yield entry.path


def _objects_in(directory: str, prefix: str) -> Iterator[Listed]:
    for entry in _entries(directory):
        if not _NAME.fullmatch(entry.name) or not entry.name.startswith(prefix):
            continue
        try:
            if entry.is_file(follow_symlinks=False):
                size = entry.stat(follow_symlinks=False).st_size
                yield Listed(ContentHash(entry.name), size, entry.path)
        except FileNotFoundError:
            continue


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorePermissionError(
            f"the directory {directory} of the store cannot be read: {reason}",
            hint="ask its owner for leave to read it",
        ) from error
