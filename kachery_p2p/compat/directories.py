"""Directories of the first kachery: `sha1dir://H.label/path`, and `md5dir://` to be read.

Lists are in our store or with the members of the channels, where `client.directories` finds
them; or in directories of the older packages, and may name files by their MD5.
"""

from __future__ import annotations

import os
from typing import Any

from kachery_p2p.client.files import find_local, open_stored, pread_all
from kachery_p2p.compat.loading import Source, find_content, find_md5
from kachery_p2p.content.directories import Directory, FileEntry
from kachery_p2p.content.hashes import Md5
from kachery_p2p.content.schemes import DirectoryUri, Md5Uri, parse_any
from kachery_p2p.content.uris import Uri
from kachery_p2p.errors import (
    DataFormatError,
    PathNotFoundError,
    ResolutionError,
    SourceFileError,
    UnsupportedValueError,
)
from kachery_p2p.limits import DIRECTORY_BYTES_MAX


def find_file(uri: str, source: Source) -> str | None:
    """The path of a file by its path in a directory. PathNotFoundError if it is no file there."""
    found = look_up(uri, source)
    if found is None:
        return None
    if isinstance(found, Directory):
        raise PathNotFoundError(
            "the URI names a directory, not a file", hint="load it with load_dir"
        )
    return find_entry(found, source)


def find_entry(entry: FileEntry, source: Source) -> str | None:
    """The path of a file that a list names by either hash."""
    if isinstance(entry.content, Md5):
        return find_md5(entry.content, source)
    return find_content(Uri(entry.content, root=entry.root), source)


def look_up(uri: str, source: Source) -> Directory | FileEntry | None:
    """What a URI of a directory names; None if nobody has the list. PathNotFoundError."""
    if uri.lstrip()[:9].lower() == "md5dir://":
        return _look_up_md5(uri, source)
    where = parse_any(uri)
    if not isinstance(where, DirectoryUri):
        raise UnsupportedValueError("the URI names no directory")
    if find_local(Uri(where.content)) is not None:
        from kachery_p2p.client import directory_lists

        return directory_lists.look_up(uri)[1]
    path = find_content(Uri(where.content), source)
    return None if path is None else Directory.decode(_read(path)).at(where.path)


def _look_up_md5(uri: str, source: Source) -> Directory | FileEntry | None:
    """The same for `md5dir://H.label/path`."""
    head, _, inner = uri.strip()[9:].partition("?")[0].partition("/")
    named = parse_any(f"md5://{head.partition('.')[0]}")
    assert isinstance(named, Md5Uri)
    path = find_md5(named.md5, source)
    if path is None:
        return None
    return Directory.decode(_read(path)).at([part for part in inner.split("/") if part])


def _read(path: str) -> bytes:
    descriptor = open_stored(path)
    try:
        size = os.fstat(descriptor).st_size
        if size > DIRECTORY_BYTES_MAX:
            raise DataFormatError(f"the directory's list has {size} bytes: it is none")
        return pread_all(descriptor, 0, size)
    finally:
        os.close(descriptor)


def listing(uri: str, source: Source) -> list[str] | None:
    """What `kachery-ls` prints: directories with a slash, then files, each sorted; None."""
    found = look_up(uri, source)
    if not isinstance(found, Directory):
        if found is None:
            return None
        raise PathNotFoundError("the URI names a file, not a directory")
    return [*(f"{name}/" for name in sorted(found.dirs)), *sorted(found.files)]


def record(uri: str, source: Source, recursive: bool) -> dict[str, Any] | None:
    """What `read_dir` answers for a URI; without `recursive` the directories in it are empty."""
    found = look_up(uri, source)
    if found is None:
        return None
    if not isinstance(found, Directory):
        raise PathNotFoundError("the URI names a file, not a directory")
    return _without_deeper(found.record(), recursive)


def record_of_path(
    path: str, algorithm: str, recursive: bool, annex: bool = False
) -> dict[str, Any]:
    """The same for a directory on this computer; its files are read, and not stored.

    With `annex` links of git-annex stand for what their keys say, and .git is left out.
    """
    from kachery_p2p.compat.old_stores import hash_of
    from kachery_p2p.compat.trees import LEFT_OUT, annex_key

    files: dict[str, Any] = {}
    dirs: dict[str, Any] = {}
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SourceFileError(f"the directory {path} cannot be read: {reason}") from error
    for entry in entries:
        if annex and (key := annex_key(entry.path)) is not None:
            kind = "md5" if isinstance(key.content, Md5) else "sha1"
            files[entry.name] = {"size": key.size, kind: str(key.content)}
        elif entry.is_dir(follow_symlinks=False):
            if annex and entry.name in LEFT_OUT:
                continue
            inner = record_of_path(entry.path, algorithm, recursive, annex) if recursive else {}
            dirs[entry.name] = inner
        elif entry.is_file():
            size = entry.stat().st_size
            files[entry.name] = {"size": size, algorithm: hash_of(entry.path, algorithm)}
    return {"files": files, "dirs": dirs}


def _without_deeper(found: dict[str, Any], recursive: bool) -> dict[str, Any]:
    if not recursive:
        found["dirs"] = {name: {} for name in found["dirs"]}
    return found


def write_out(uri: str, source: Source, dest: str) -> bool:
    """Make `dest`, which must not exist, the directory; False if nobody has its list.

    ResolutionError if it exists.
    """
    if os.path.lexists(dest):
        raise ResolutionError(
            f"the destination {dest} exists already", hint="give the name of a new directory"
        )
    found = look_up(uri, source)
    if found is None:
        return False
    if not isinstance(found, Directory):
        raise PathNotFoundError("the URI names a file, not a directory", hint="use load_file")
    if _is_ours(found, uri):
        from kachery_p2p.client.directories import load_dir

        load_dir(uri, dest, from_channel=source.channel)
    else:
        _copy_each(found, source, dest)
    return True


def _is_ours(found: Directory, uri: str) -> bool:
    """Whether the list is in our store, and names no file by what only the first kachery knew."""
    from kachery_p2p.compat.loading import find_here

    where = None if uri.lstrip()[:9].lower() == "md5dir://" else parse_any(uri)
    if not isinstance(where, DirectoryUri) or find_local(Uri(where.content)) is None:
        return False
    entries = [entry for _, entry in found.walk()]
    if any(isinstance(entry.content, Md5) for entry in entries):
        return False
    here = Source(local_only=True)
    # A file that an older package stored elsewhere is not fetched from others.
    return all(
        isinstance(entry.content, Md5)
        or find_local(Uri(entry.content)) is not None
        or find_here(Uri(entry.content), here) is None
        for entry in entries
    )


def _copy_each(found: Directory, source: Source, dest: str) -> None:
    """The files one by one, below a `dest` that is new, with the names that `Directory` checked."""
    from kachery_p2p.errors import NotFoundError
    from kachery_p2p.store.copying import copy_whole

    os.makedirs(dest)
    for path in found.walk_directories():
        os.mkdir(os.path.join(dest, *path))
    for names, entry in found.walk():
        stored = find_entry(entry, source)
        if stored is None:
            raise NotFoundError(f"{'/'.join(names)} of the directory is not stored here")
        descriptor = open_stored(stored)
        try:
            copy_whole(descriptor, os.path.join(dest, *names))
        finally:
            os.close(descriptor)
