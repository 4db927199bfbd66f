"""Commands about files: store, link, load, cat, info, share. Directories: see `directories`."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

from kachery_p2p.cli import answers
from kachery_p2p.cli.outcome import answer, note, write_bytes
from kachery_p2p.cli.progress import progress_option
from kachery_p2p.cli.sources import origin_of, source_options
from kachery_p2p.client.events import ProgressArg
from kachery_p2p.client.wording import counted, human_bytes, printable
from kachery_p2p.content.uris import format_uri, parse_uri
from kachery_p2p.errors import InvalidRangeError, NotFoundError, StoreFilesError

if TYPE_CHECKING:
    from kachery_p2p.client.asking import Info
    from kachery_p2p.client.origin import Origin

# Pieces in which `cat` moves bytes: a daemon's answer to each is verified before any is written.
CAT_BYTES = 16 << 20

LABEL_OPTION = click.option("--label", help="The name in the URI, instead of the file's own.")
CHANNEL_OPTION = click.option(
    "--channel", "channels", multiple=True, help="Share in this channel only (repeatable)."
)
GROUP_OPTION = click.option(
    "--access-group", metavar="GROUP", help="Encrypt it, for the members of this access group."
)
PRIVATE_OPTION = click.option("--private", is_flag=True, help="Share in no channel.")


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(), metavar="FILE...")
@LABEL_OPTION
@CHANNEL_OPTION
@PRIVATE_OPTION
@GROUP_OPTION
@progress_option
def store(
    files: tuple[str, ...],
    label: str | None,
    channels: tuple[str, ...],
    private: bool,
    access_group: str | None,
    progress: ProgressArg,
) -> None:
    """Store a copy of each FILE and print its URI. A FILE may be a directory.

    Many at once are stored much quicker than one by one. If some cannot be stored the
    others are, and their URIs are printed.
    """
    chosen = _chosen(channels, private)
    if label is not None and len(files) > 1:
        raise click.UsageError("--label is for one FILE")
    if access_group is not None:
        from kachery_p2p.cli.groups import store_encrypted

        store_encrypted(files, label, chosen, access_group, progress)
    elif len(files) == 1:
        from kachery_p2p.client.directories import store_dir
        from kachery_p2p.client.files import store_file

        store_one = store_dir if os.path.isdir(files[0]) else store_file
        answer(store_one(files[0], label, channels=chosen, progress=progress))
    else:
        _store_many(files, chosen, progress)


def _store_many(files: tuple[str, ...], channels: list[str] | None, progress: ProgressArg) -> None:
    from kachery_p2p.cli.directories import store_each

    try:
        uris = store_each(files, channels, progress)
    except StoreFilesError as error:
        _answer_each(error.uris)
        raise
    _answer_each(uris)


def _answer_each(uris: list[str | None]) -> None:
    for uri in uris:
        if uri is not None:
            answer(uri)


@click.command()
@click.argument("file", type=click.Path(), metavar="FILE")
@LABEL_OPTION
@CHANNEL_OPTION
@PRIVATE_OPTION
def link(file: str, label: str | None, channels: tuple[str, ...], private: bool) -> None:
    """Let FILE stand for its content, without a copy, and print its URI.

    It is loaded and shared from where it lies, as long as it keeps its bytes.
    """
    from kachery_p2p.client.files import link_file

    answer(link_file(file, label, channels=_chosen(channels, private)))


def _chosen(channels: tuple[str, ...], private: bool) -> list[str] | None:
    if private and channels:
        raise click.UsageError("--private and --channel exclude each other")
    return list(channels) if channels or private else None


@click.command()
@click.argument("uri")
@click.option(
    "--dest",
    type=click.Path(),
    metavar="PATH",
    help="Write a copy to this file or directory; of a directory, as this directory.",
)
@click.option("--verify", is_flag=True, help="Read and verify it first, if it is stored here.")
@source_options
@progress_option
@click.option("--json", "as_json", is_flag=True, help="Of -: print a line of JSON for each URI.")
def load(uri: str, dest: str | None, verify: bool, as_json: bool, **source: Any) -> None:
    """Print the path of a file with the content of URI, fetching it if need be.

    With - as URI they are read from stdin, one a line, and are all loaded at once; the path of
    each is printed as soon as it and those before it are there. An empty line is printed for
    one that cannot be had; the exit code is then that of the first of these.

    Of a directory (sha1dir://), a line for each file in it: its path, two spaces, its name
    in the directory; or with --dest the path of the directory that it was written to.
    """
    if uri != "-":
        if as_json:
            raise click.UsageError("--json goes with - as URI")
        answers.load(uri, dest, verify, **source)
        return
    if dest is not None or verify:
        raise click.UsageError("--dest and --verify are for one URI")
    from kachery_p2p.cli.many import load_lines

    load_lines(0, origin_of(source), as_json, source["progress"])


@click.command()
@click.argument("uri")
@click.option("--start", type=click.IntRange(min=0), default=0, help="First byte (default 0).")
@click.option("--end", type=click.IntRange(min=0), help="The byte after the last (default: all).")
@source_options
@progress_option
def cat(uri: str, start: int, end: int | None, progress: ProgressArg, **source: Any) -> None:
    """Write the content of URI, or a range of its bytes, to standard output."""
    from kachery_p2p.client.files import (
        is_directory_uri,
        is_encrypted_uri,
        load_bytes,
        load_file,
        wanted_by,
    )

    if is_encrypted_uri(uri):
        from kachery_p2p.cli.groups import cat_encrypted

        cat_encrypted(uri, start, end, source)
        return
    if is_directory_uri(uri):
        uri = format_uri(wanted_by(uri, origin_of(source)))
    if start == 0 and end is None:
        _cat_whole(load_file(uri, progress=progress, **source))
        return
    if end is None:
        from kachery_p2p.client.asking import size_of

        end = size_of(parse_uri(uri), origin_of(source))
    if start > end:
        raise InvalidRangeError(f"{start} to {end} is not a range of bytes")
    # An empty range there: whether `end` lies inside is known before anything is written.
    load_bytes(uri, end, end, **source)
    for position in range(start, end, CAT_BYTES):
        piece_end = min(position + CAT_BYTES, end)
        write_bytes(load_bytes(uri, position, piece_end, progress=progress, **source))


def _cat_whole(path: str) -> None:
    from kachery_p2p.client.files import open_stored

    with os.fdopen(open_stored(path), "rb", buffering=0) as file:
        while data := file.read(CAT_BYTES):
            write_bytes(data)


@click.command()
@click.argument("uri")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@source_options
def info(uri: str, as_json: bool, **source: Any) -> None:
    """Print what is known about URI: its size, where it is, who has it.

    Of a directory: how much is in it, how many of its files are stored here, who has its list.
    """
    from kachery_p2p.client.asking import describe
    from kachery_p2p.client.files import is_directory_uri, is_encrypted_uri, wanted_by

    if is_directory_uri(uri) and _described_as_directory(uri, origin_of(source), as_json):
        return
    wanted = wanted_by(uri, origin_of(source))
    known = describe(wanted, origin_of(source))
    if is_encrypted_uri(uri):
        from kachery_p2p.cli.groups import describe_encrypted

        describe_encrypted(uri, known, as_json)
        return
    if as_json:
        told = {
            "uri": format_uri(wanted),
            "content": wanted.content,
            "root": wanted.root,
            "name": wanted.name,
            **known._asdict(),
        }
        answer(json.dumps(told))
        return
    answer(f"uri        {format_uri(wanted)}")
    answer(f"size       {known.size} bytes ({human_bytes(known.size)})")
    answer_whereabouts(known)


def answer_whereabouts(known: Info) -> None:
    """Say where a content is, and who has it."""
    answer(f"stored at  {known.path or 'not stored here'}")
    for provider in known.providers or []:
        label = printable(provider["label"] or provider["node_id"][:16])
        answer(f"held by    {label} in channel {printable(provider['channel'] or '?')}")
    if known.providers is None:
        note("no daemon is running, so nobody else was asked")


def _described_as_directory(uri: str, origin: Origin, as_json: bool) -> bool:
    """Whether it is one, and was described; a file in a directory is described as a file."""
    from kachery_p2p.cli.directories import describe
    from kachery_p2p.client.directory_lists import look_up
    from kachery_p2p.content.directories import Directory

    where, found = look_up(uri, origin)
    if isinstance(found, Directory):
        describe(where, found, origin, as_json)
    return isinstance(found, Directory)


@click.command()
@click.argument("uris", nargs=-1, metavar="[URI...]")
@click.option(
    "--pending", is_flag=True, help="Share what was stored before any channel was joined."
)
@click.option("--channel", "channels", multiple=True, help="In this channel (repeatable).")
def share(uris: tuple[str, ...], pending: bool, channels: tuple[str, ...]) -> None:
    """Let the members of a channel load what is stored here."""
    if pending == bool(uris):
        raise click.UsageError("give URIs, or --pending")
    chosen = list(channels) or None
    if pending:
        _share_pending(chosen)
    else:
        _share_stored(uris, chosen)


def _share_pending(channels: list[str] | None) -> None:
    from kachery_p2p.client.daemon import connect

    body = {"contents": None, "pending": True, "channels": channels}
    result, _ = connect().call("share", body)
    note(_shared(result["shared"], result["channels"]))


def _share_stored(uris: tuple[str, ...], channels: list[str] | None) -> None:
    from kachery_p2p.client.directory_lists import contents_of
    from kachery_p2p.client.files import find_local
    from kachery_p2p.client.storing import share_stored

    wanted = [one for uri in uris for one in contents_of(uri)]
    for uri in wanted:
        if find_local(uri) is None:
            raise NotFoundError(
                f"sha1://{uri.content} is not stored here",
                hint="only what is stored here can be shared: `kachery-p2p load` it first",
            )
    shared = share_stored([uri.content for uri in wanted], channels)
    if shared.waiting:
        where = " in " + ", ".join(shared.channels) if shared.channels else ""
        note(f"noted: the daemon shares {counted(shared.files, 'file')}{where} when it next starts")
    else:
        note(_shared(shared.files, list(shared.channels)))


def _shared(count: int, channels: list[str]) -> str:
    return f"shared {counted(count, 'file')} in {', '.join(channels) or 'no channel'}"
