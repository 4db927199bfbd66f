"""Lists of directories: what a `sha1dir://` URI names, looked up in the list that it names.

The list is fetched if it is not stored here, the files in it are not. Which tree a hash
names never changes, so the lists that were read last are kept decoded.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from kachery_p2p.client.files import (
    fetch,
    find_local,
    is_directory_uri,
    open_stored,
    pread_all,
    wanted_by,
)
from kachery_p2p.client.origin import ANYWHERE, Origin
from kachery_p2p.content.directories import Directory, FileEntry
from kachery_p2p.content.hashes import ContentHash, Md5
from kachery_p2p.content.schemes import DirectoryUri, parse_any
from kachery_p2p.content.uris import Uri
from kachery_p2p.errors import (
    DataFormatError,
    KacheryError,
    PathNotFoundError,
    UnknownSchemeError,
    UnsupportedValueError,
)
from kachery_p2p.limits import (
    DIRECTORY_BYTES_MAX,
    KEPT_DIRECTORIES_MAX,
    KEPT_DIRECTORY_BYTES_MAX,
)

if TYPE_CHECKING:
    from kachery_p2p.client.progress import Reporter


def look_up(
    uri: str, origin: Origin = ANYWHERE, reporter: Reporter | None = None
) -> tuple[DirectoryUri, Directory | FileEntry]:
    """What a `sha1dir://` URI names, its list being fetched if need be; PathNotFoundError."""
    where = _directory_uri(uri)
    return where, _top(where.content, origin, reporter).at(where.path)


def _directory_uri(uri: str) -> DirectoryUri:
    where = parse_any(uri)
    if not isinstance(where, DirectoryUri):
        raise UnsupportedValueError(
            "the URI names no directory: it does not begin with sha1dir://",
            hint="use load_file for a file",
        )
    return where


def directory_at(
    uri: str, origin: Origin = ANYWHERE, reporter: Reporter | None = None
) -> Directory:
    """The directory that the URI names. PathNotFoundError if it is a file."""
    where, found = look_up(uri, origin, reporter)
    if not isinstance(found, Directory):
        raise PathNotFoundError(
            f"{'/'.join(where.path)} is a file of the directory, not a directory in it",
            hint="load it with load_file",
        )
    return found


def file_at(uri: str, origin: Origin = ANYWHERE, reporter: Reporter | None = None) -> Uri:
    """The content of the file that the URI names. PathNotFoundError if it is a directory."""
    where = _directory_uri(uri)
    return _file_in(_top(where.content, origin, reporter), where)


def _file_in(top: Directory, where: DirectoryUri) -> Uri:
    found = top.at(where.path)
    if isinstance(found, Directory):
        raise PathNotFoundError(
            f"{'/'.join(where.path) or 'the URI'} names a directory, not a file",
            hint="load it with load_dir; `kachery-p2p ls` says what is in it",
        )
    return uri_of(found, where.path[-1])


def files_at(
    uris: Iterable[str], origin: Origin = ANYWHERE, reporter: Reporter | None = None
) -> dict[str, Uri | KacheryError]:
    """`file_at` of many, each list being read once; for each URI its content, or why not."""
    by_list: dict[ContentHash, dict[str, DirectoryUri]] = {}
    found: dict[str, Uri | KacheryError] = {}
    for uri in uris:
        try:
            where = _directory_uri(uri)
            by_list.setdefault(where.content, {})[uri] = where
        except KacheryError as error:
            found[uri] = error
    for content, places in by_list.items():
        try:
            top = _top(content, origin, reporter)
        except KacheryError as error:
            found |= dict.fromkeys(places, error)
            continue
        for uri, where in places.items():
            try:
                found[uri] = _file_in(top, where)
            except KacheryError as error:
                found[uri] = error
    return found


def contents_of(uri: str) -> list[Uri]:
    """What is shared as `uri`: a content; or a directory's list, and all files below the path."""
    if not is_directory_uri(uri):
        return [wanted_by(uri)]
    where, found = look_up(uri)
    if not isinstance(found, Directory):
        return [Uri(where.content), uri_of(found, where.path[-1])]
    below = (uri_of(entry, path[-1]) for path, entry in found.walk())
    return [Uri(where.content), *dict.fromkeys(below)]


def find_stored(directory: Directory) -> Iterator[FileEntry]:
    """The files of the directory, and those below, that are stored here."""
    for _, entry in directory.walk():
        if not isinstance(entry.content, Md5) and find_local(Uri(entry.content)) is not None:
            yield entry


def uri_of(entry: FileEntry, name: str) -> Uri:
    """The content of a file in a directory. UnknownSchemeError if only its MD5 is known."""
    if isinstance(entry.content, Md5):
        raise UnknownSchemeError(
            f"the directory's list names {name!a} by its md5, by which nothing can be loaded",
            hint="ask its author to store it again",
        )
    return Uri(entry.content, name, entry.root)


_decoded: OrderedDict[ContentHash, Directory] = OrderedDict()


def _top(content: ContentHash, origin: Origin, reporter: Reporter | None) -> Directory:
    """The directory whose list is this content."""
    directory = _decoded.get(content)
    if directory is not None:
        return directory
    wanted = Uri(content)
    data = _read_list(find_local(wanted) or fetch(wanted, origin, reporter))
    directory = Directory.decode(data)
    if len(data) <= KEPT_DIRECTORY_BYTES_MAX:
        _decoded[content] = directory
        if len(_decoded) > KEPT_DIRECTORIES_MAX:
            with contextlib.suppress(KeyError):  # another thread was quicker
                _decoded.popitem(last=False)
    return directory


def _read_list(path: str) -> bytes:
    descriptor = open_stored(path)
    try:
        size = os.fstat(descriptor).st_size
        if size > DIRECTORY_BYTES_MAX:
            raise DataFormatError(
                f"the directory's list has {size} bytes, more than {DIRECTORY_BYTES_MAX}",
                hint="the URI may be that of a file: then it begins with sha1://",
            )
        return pread_all(descriptor, 0, size)
    finally:
        os.close(descriptor)
