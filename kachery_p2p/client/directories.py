"""Directories by their content: `store_dir` gives a URI, `load_dir` the directory back.

A directory is stored as its files, and a list of them that is stored like a file (see
`content.directories`). `sha1dir://H.label` names the list, and with a path behind it what
the list has there: a file of it may be loaded, opened and read in part like any other.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from kachery_p2p.client.events import ProgressArg
from kachery_p2p.client.files import Channels, PathLike, find_local
from kachery_p2p.client.origin import Origin
from kachery_p2p.client.origin import origin as origin_of
from kachery_p2p.content.uris import Uri, format_uri
from kachery_p2p.errors import (
    DataFormatError,
    KacheryError,
    LoadFilesError,
    StoreFilesError,
)

if TYPE_CHECKING:
    from kachery_p2p.client.progress import Reporter
    from kachery_p2p.client.shipment import Shipment
    from kachery_p2p.client.source_tree import SourceTree
    from kachery_p2p.content.directories import Directory, FileEntry

Path = tuple[str, ...]


# --- storing --------------------------------------------------------------------------


def store_dir(
    path: PathLike,
    label: str | None = None,
    *,
    channels: Channels = None,
    progress: ProgressArg = None,
) -> str:
    """Store a copy of every file in the directory and below; the URI of the directory.

    One tree has one URI, up to the label, which is the directory's name unless it is given.
    Empty directories belong to the tree; times, owners and modes do not. Symbolic links,
    pipes, sockets and devices in it are a SourceFileError, before anything is stored. If
    some files cannot be stored (one is being written to) it is a StoreFilesError that says
    which; to store it again is then quick, what was stored is not read again.
    """
    from kachery_p2p.client.progress import Reporter
    from kachery_p2p.client.shipment import Shipment
    from kachery_p2p.client.source_tree import SourceTree
    from kachery_p2p.client.storing import label_of
    from kachery_p2p.content.schemes import DirectoryUri, format_any

    path = os.fspath(path)
    label = label_of(path, label)
    with SourceTree(path) as tree, Reporter(progress, files_total=tree.count) as reporter:
        shipment = Shipment(channels, reporter)
        directory = _stored(tree, shipment)
        listed = shipment.store_value(directory.encode())
        shipment.share()
    return format_any(DirectoryUri(listed.content, label))


def _stored(tree: SourceTree, shipment: Shipment) -> Directory:
    """The tree as its files were when they were copied. StoreFilesError if some were not."""
    from kachery_p2p.content.directories import FileEntry

    entries: dict[Path, FileEntry] = {}
    failed: dict[str, KacheryError] = {}
    outcomes = shipment.store_files(tree.descriptors(), tree.size)
    for path, outcome in zip(tree.paths(), outcomes, strict=True):
        if isinstance(outcome, KacheryError):
            failed[tree.shown(path)] = outcome
        else:
            entries[path] = FileEntry(*outcome)
    if failed:
        message, hint = _told("stored", failed, len(entries) + len(failed))
        raise StoreFilesError(message, hint=hint, failed=failed)
    return _assembled(tree, entries)


def _assembled(tree: SourceTree, entries: dict[Path, FileEntry]) -> Directory:
    from kachery_p2p.content.directories import Directory

    dirs: dict[Path, dict[str, Directory]] = {}
    for path, names in tree.directories:
        dirs[path] = {}
        directory = Directory({name: entries[(*path, name)] for name in names}, dirs[path])
        if path:
            dirs[path[:-1]][path[-1]] = directory
        else:
            top = directory
    return top


# --- loading --------------------------------------------------------------------------


@overload
def load_dir(
    uri: str,
    dest: None = None,
    *,
    verify: bool = False,
    from_channel: str | None = None,
    from_node: str | None = None,
    timeout: float | None = None,
    progress: ProgressArg = None,
) -> dict[str, str]: ...
@overload
def load_dir(
    uri: str,
    dest: PathLike,
    *,
    verify: bool = False,
    from_channel: str | None = None,
    from_node: str | None = None,
    timeout: float | None = None,
    progress: ProgressArg = None,
) -> str: ...
def load_dir(
    uri: str,
    dest: PathLike | None = None,
    *,
    verify: bool = False,
    from_channel: str | None = None,
    from_node: str | None = None,
    timeout: float | None = None,
    progress: ProgressArg = None,
) -> dict[str, str] | str:
    """`dest`, which becomes the directory; without it the paths of the stored files, by name.

    Those, like {"sub/a.npy": "/.../sha1/..."}, are to be read only. With `dest` it is made,
    and gets a copy of each file. If it exists, what is right in it is left as it is, so
    that a load which was interrupted goes on; what is not in the list stays; and where
    something else has the name of a file, it is a ResolutionError and nothing is loaded.

    The rest is as for `load_file`; `timeout` is for each file. If some cannot be had it
    raises a LoadFilesError that says which; the others are then here the next time.
    """
    from kachery_p2p.client.directory_lists import directory_at
    from kachery_p2p.client.progress import Reporter

    origin = origin_of(from_channel, from_node, timeout)
    with Reporter(progress) as reporter:
        directory = directory_at(uri, origin, reporter)
        if dest is None:
            files = _wanted(directory)
            loaded = _loaded(files, origin, verify, reporter)
            return {"/".join(path): stored for path, stored in loaded}
        dest = os.fspath(dest)
        _write_out(directory, dest, origin, verify, reporter)
    return dest


def read_dir(
    uri: str,
    *,
    from_channel: str | None = None,
    from_node: str | None = None,
    timeout: float | None = None,
) -> dict[str, Any]:
    """What is in the directory: {"files": {name: {"size", "sha1"}}, "dirs": {name: the same}}.

    A file above 1 MiB that this package stored has "root" as well; kachery named some by
    "md5" instead of "sha1". No file is fetched, only the list of them.
    """
    from kachery_p2p.client.directory_lists import directory_at

    return directory_at(uri, origin_of(from_channel, from_node, timeout)).record()


class Wanted(NamedTuple):
    """A file of a directory, and where in it."""

    path: Path
    uri: Uri
    entry: FileEntry


def _wanted(directory: Directory) -> list[Wanted]:
    from kachery_p2p.client.directory_lists import uri_of

    return [Wanted(path, uri_of(entry, path[-1]), entry) for path, entry in directory.walk()]


def _write_out(
    directory: Directory, dest: str, origin: Origin, verify: bool, reporter: Reporter
) -> None:
    from kachery_p2p.client.destination import Copy, Destination
    from kachery_p2p.client.progress import COPYING

    files = _wanted(directory)
    with Destination(dest) as place:
        missing = [file for file in files if not place.has(file.path, file.entry)]
        loaded = _loaded(missing, origin, verify, reporter)
        sizes = [file.entry.size for file in missing]
        place.make(directory.walk_directories())
        copies = (Copy(*file, size) for file, size in zip(loaded, sizes, strict=True))
        reporter.begin(COPYING, sum(sizes))
        place.fill(copies, reporter.count)


def _loaded(
    files: Sequence[Wanted], origin: Origin, verify: bool, reporter: Reporter
) -> list[tuple[Path, str]]:
    """The files with the paths of their contents in the store; LoadFilesError if some are not."""
    from kachery_p2p.client.many import load_each

    if verify:
        _verify([file.uri for file in files])
    texts = [format_uri(file.uri) for file in files]
    try:
        reporter.expect(len(dict.fromkeys(texts)))
        stored = load_each(texts, origin, reporter)
    except LoadFilesError as error:
        names = dict(zip(texts, ("/".join(file.path) for file in files), strict=True))
        failed = {names.get(text, text): one for text, one in error.failed.items()}
        message, hint = _told("loaded", failed, len(files))
        raise LoadFilesError(message, hint=hint, failed=failed) from error
    for file, path in zip(files, stored, strict=True):
        _check_size(file, path)
    return [(file.path, path) for file, path in zip(files, stored, strict=True)]


def _verify(uris: Sequence[Uri]) -> None:
    from kachery_p2p.client.local import verify_stored

    for uri in dict.fromkeys(uris):
        if find_local(uri) is not None:
            verify_stored(uri)


def _check_size(file: Wanted, path: str) -> None:
    """The list may come from anybody, and what `ls` says of a file is to be true."""
    with contextlib.suppress(OSError):
        size = os.stat(path).st_size
        if size != file.entry.size:
            raise DataFormatError(
                f"the directory's list gives {'/'.join(file.path)} {file.entry.size} bytes, and its"
                f" content has {size}",
                hint="ask its author for a correct one",
            )


def _told(what: str, failed: dict[str, KacheryError], count: int) -> tuple[str, str | None]:
    """The sentence about those that failed, which names the first, and what would mend it."""
    name, error = next(iter(failed.items()))
    some = "1 file was" if len(failed) == 1 else f"{len(failed)} files were"
    return f"{some} not {what} (of {count} in the directory): {name}: {error}", error.hint
