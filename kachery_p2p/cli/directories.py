"""Commands about directories: ls, and what store and info do with one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from kachery_p2p.cli.outcome import answer, note
from kachery_p2p.cli.sources import origin_of, source_options
from kachery_p2p.client.directories import store_dir
from kachery_p2p.client.directory_lists import find_stored, look_up, uri_of
from kachery_p2p.client.events import ProgressArg
from kachery_p2p.client.files import Channels, store_files
from kachery_p2p.client.wording import counted, human_bytes, printable
from kachery_p2p.content.directories import Directory, FileEntry
from kachery_p2p.content.hashes import Md5
from kachery_p2p.content.schemes import DirectoryUri, Md5Uri, format_any
from kachery_p2p.content.uris import Uri
from kachery_p2p.errors import KacheryError, StoreFilesError

if TYPE_CHECKING:
    from kachery_p2p.client.origin import Origin

Path = tuple[str, ...]


@click.command()
@click.argument("uri")
@click.option("-r", "--recursive", is_flag=True, help="What is in its directories as well.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each.")
@source_options
def ls(uri: str, recursive: bool, as_json: bool, **source: Any) -> None:
    """Print what is in the directory that URI names: directories, with a /, then files.

    No file is fetched, only the list of them. With --json each line has path, size and uri.
    """
    where, found = look_up(uri, origin_of(source))
    if isinstance(found, FileEntry):
        entries: Iterator[tuple[Path, Directory | FileEntry]] = iter([((where.path[-1],), found)])
        where = where._replace(path=where.path[:-1])
    else:
        entries = _entries(found, recursive)
    for path, entry in entries:
        if as_json:
            answer(json.dumps(_described(where, path, entry)))
        else:
            mark = "/" if isinstance(entry, Directory) else ""
            answer(printable("/".join(path)) + mark)


def _entries(
    directory: Directory, recursive: bool, above: Path = ()
) -> Iterator[tuple[Path, Directory | FileEntry]]:
    for name, entry in directory.listing():
        yield (*above, name), entry
        if recursive and isinstance(entry, Directory):
            yield from _entries(entry, recursive, (*above, name))


def _described(where: DirectoryUri, path: Path, entry: Directory | FileEntry) -> dict[str, Any]:
    if isinstance(entry, Directory):
        inside = where._replace(path=(*where.path, *path))
        return {"path": "/".join(path), "size": None, "uri": format_any(inside)}
    named = Md5Uri(entry.content, path[-1]) if isinstance(entry.content, Md5) else None
    uri = format_any(named or uri_of(entry, path[-1]))
    return {"path": "/".join(path), "size": entry.size, "uri": uri}


# --- store ----------------------------------------------------------------------------


def store_each(
    paths: Sequence[str], channels: Channels, progress: ProgressArg = None
) -> list[str | None]:
    """Store files, in groups, and directories; the URI of each, in their order.

    StoreFilesError if some were not stored; the others are, and it has their URIs.
    """
    uris: dict[str, str | None] = dict.fromkeys(paths)
    failed: dict[str, KacheryError] = {}
    files = [path for path in paths if not os.path.isdir(path)]
    try:
        stored = store_files(files, channels=channels, progress=progress)
        uris |= zip(files, stored, strict=True)
    except StoreFilesError as error:
        uris |= zip(files, error.uris, strict=True)
        failed |= error.failed
    for path in dict.fromkeys(paths):
        if os.path.isdir(path):
            try:
                uris[path] = store_dir(path, channels=channels, progress=progress)
            except KacheryError as error:
                failed[path] = error
    if failed:
        path, reason = next(iter(failed.items()))
        raise StoreFilesError(
            f"{counted(len(failed), 'file')} {'was' if len(failed) == 1 else 'were'} not stored"
            f" (of {len(paths)}): {path}: {reason}",
            hint=reason.hint,
            failed=failed,
            uris=[uris[path] for path in paths],
        )
    return [uris[path] for path in paths]


# --- info -----------------------------------------------------------------------------


def describe(where: DirectoryUri, directory: Directory, origin: Origin, as_json: bool) -> None:
    """Print what is known about a directory: what is in it, how much is here, who has its list."""
    from kachery_p2p.client.asking import describe as describe_content

    known = describe_content(Uri(where.content), origin)
    files = [entry for _, entry in directory.walk()]
    size = sum(entry.size for entry in files)
    told = {
        "uri": format_any(where),
        "content": where.content,
        "files": len(files),
        "directories": sum(1 for _ in directory.walk_directories()),
        "size": size,
        "stored_files": sum(1 for _ in find_stored(directory)),
        "path": known.path,
        "providers": known.providers,
    }
    if as_json:
        answer(json.dumps(told))
        return
    inner = told["directories"]
    answer(f"uri        {told['uri']}")
    answer(f"files      {len(files)}" + (f" in it and in {inner} below" if inner else ""))
    answer(f"size       {size} bytes ({human_bytes(size)})")
    answer(f"stored     {told['stored_files']} of {counted(len(files), 'file')}")
    for provider in known.providers or []:
        label = printable(provider["label"] or provider["node_id"][:16])
        answer(f"held by    {label} in channel {printable(provider['channel'] or '?')} (the list)")
    if known.providers is None:
        note("no daemon is running, so nobody else was asked")
