"""What the older packages' commands did with files, under whichever name they are called.

`kachery-store` was a command of kachery (2019), kachery-client and kachery 2 (2024), and takes
the options of all three. It writes the URIs of the newest, `sha1://H?label=NAME`; with an
option of the first, `sha1://H/NAME`, as that did; and always as KACHERY_URI_STYLE says.
Loads exit with 3 if nobody has the content: the originals printed `None`, and exited with 0.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from kachery_p2p.cli.older_options import (
    OlderParser,
    add_destination,
    add_range,
    add_source,
    server_of,
)
from kachery_p2p.cli.outcome import answer, note, write_bytes
from kachery_p2p.errors import InvalidRangeError, NotFoundError

if TYPE_CHECKING:
    import argparse

    from kachery_p2p.compat.labelled import Labelled
    from kachery_p2p.compat.loading import Source
    from kachery_p2p.compat.servers import Call
    from kachery_p2p.compat.systems import System

# Pieces in which bytes are written.
_PIECE_BYTES = 16 << 20
_CACHED = "as ever: what is stored is here too"


# --- storing --------------------------------------------------------------------------------------


def store(name: str, arguments: list[str]) -> None:
    """Store a copy of a file or directory and print its URI."""
    parser = OlderParser(name, "Store a copy of a file or directory and print its URI.")
    parser.add_argument("path", metavar="FILE|DIR|URI")
    parser.add_argument("--label", default="", help="the name in the URI (default: the file's)")
    parser.add_argument(
        "-a", "--algorithm", choices=("sha1", "md5"), help="the hash that the URI has"
    )
    parser.add_argument(
        "--use-hard-links", action="store_true", help="let the file stand for its content"
    )
    add_destination(parser)
    parser.ignored("--remote-only", why="members of the channel load it from here")
    parser.add_argument(
        "--git-annex-mode", action="store_true", help="links stand for what git-annex says"
    )
    parser.add_argument("--cache-locally", action="store_true", help=_CACHED)
    options = parser.parse_args(arguments)
    to = server_of(parser, options, "to")
    if os.path.isdir(options.path):
        answer(_store_directory(options, to))
    elif to is not None or options.algorithm is not None or options.remote_only:
        from kachery_p2p.compat import named

        answer(named.store_file(options.path, options.label or None, _storing_call(options, to)))
    else:
        answer(_store_labelled(options))


def _store_directory(options: argparse.Namespace, to: dict[str, str] | str | None) -> str:
    from kachery_p2p.compat import named

    if options.use_hard_links:
        note("--use-hard-links is for one file: those of the directory are copied")
    call = _storing_call(options, to)
    return named.store_dir(options.path, options.label or None, call, options.git_annex_mode)


def _storing_call(options: argparse.Namespace, to: dict[str, str] | str | None) -> Call:
    from kachery_p2p.compat.servers import Call
    from kachery_p2p.compat.systems import zone_name

    return Call(
        {
            "to": zone_name() if to is None else to,
            "algorithm": options.algorithm or "sha1",
            "use_hard_links": options.use_hard_links,
        }
    )


def _store_labelled(options: argparse.Namespace) -> str:
    from kachery_p2p.compat.labelled import Form, Labelled
    from kachery_p2p.compat.systems import KACHERY_2

    form = Form(_label(options), style="2024")
    put = Labelled(KACHERY_2)
    if options.use_hard_links:
        return put.link_file(options.path, form)
    return put.store_file(options.path, form)


def _label(options: argparse.Namespace) -> str:
    """The name to write into the URI: that of the file, also of one that a URI names."""
    if options.label:
        return str(options.label)
    if "://" in options.path or options.path.startswith("kachery:"):
        from kachery_p2p.content.uris import parse_uri

        return parse_uri(options.path).name or "file"
    return str(os.path.basename(options.path))


def store_cloud(name: str, arguments: list[str]) -> None:
    """The same for kachery-cloud, which knew no directories."""
    parser = OlderParser(name, "Store a copy of a file and print its URI.")
    parser.add_argument("path", metavar="FILE|URI")
    parser.add_argument("--label", default="", help="the name in the URI (default: the file's)")
    parser.add_argument("--cache-locally", action="store_true", help=_CACHED)
    options = parser.parse_args(arguments)
    answer(_labelled(name).store_file(options.path, _form(options)))


def store_local(name: str, arguments: list[str]) -> None:
    """Store a copy that is shared with nobody."""
    parser = OlderParser(name, "Store a copy of a file, share it with nobody, print its URI.")
    parser.add_argument("path", metavar="FILE")
    parser.add_argument("--label", default="", help="the name in the URI (default: the file's)")
    parser.add_argument(
        "--reference", action="store_true", help="make no copy: the URI says where the file is"
    )
    options = parser.parse_args(arguments)
    put = _labelled(name)
    if options.reference:
        answer(put.refer_to(options.path, _form(options)))
    else:
        answer(put.store_file(options.path, _form(options), local=True))


def link(name: str, arguments: list[str]) -> None:
    """Let a file stand for its content, without a copy."""
    parser = OlderParser(name, "Let a file stand for its content; print its URI.")
    parser.add_argument("path", metavar="FILE")
    parser.add_argument("--label", default="", help="the name in the URI (default: the file's)")
    options = parser.parse_args(arguments)
    if name.startswith("kachery-cloud"):
        answer(_labelled(name).link_file(options.path, _form(options)))
    else:
        from kachery_p2p.compat import kachery_client

        answer(kachery_client.link_file(options.path, options.label or None))


def store_client(name: str, arguments: list[str]) -> None:
    """Store a copy of a file, as kachery-client: `sha1://H/NAME`."""
    from kachery_p2p.compat import named
    from kachery_p2p.compat.servers import Call

    parser = OlderParser(name, "Store a copy of a file and print its URI.")
    parser.add_argument("path", metavar="FILE")
    add_destination(parser)
    options = parser.parse_args(arguments)
    to = server_of(parser, options, "to")
    settings: dict[str, Any] = {} if to is None else {"to": to}
    answer(named.store_file(options.path, None, Call(settings), "client"))


# --- loading --------------------------------------------------------------------------------------


def load(name: str, arguments: list[str]) -> None:
    """Print the path of a file with the content."""
    parser = OlderParser(name, "Print the path of a file with the content of URI.")
    parser.add_argument("uri")
    parser.add_argument("--dest", metavar="PATH", help="write a copy to it, and print that")
    add_source(parser)
    options = parser.parse_args(arguments)
    answer(load_path(options.uri, _source(name, parser, options), options.dest or None))


def cat(name: str, arguments: list[str]) -> None:
    """Write the content, or a range of its bytes, to stdout."""
    parser = OlderParser(name, "Write the content of URI, or a range of it, to standard output.")
    parser.add_argument("uri")
    add_range(parser)
    add_source(parser)
    options = parser.parse_args(arguments)
    write_content(options.uri, _source(name, parser, options), options.start, options.end)


def load_dir(name: str, arguments: list[str]) -> None:
    """Make a new directory a copy of the one that was stored."""
    parser = OlderParser(name, "Make a new directory with what URI names; print its path.")
    parser.add_argument("uri")
    parser.add_argument("--dest", required=True, metavar="DIR", help="must not exist")
    add_source(parser)
    options = parser.parse_args(arguments)
    from kachery_p2p.compat import directories

    if not directories.write_out(options.uri, _source(name, parser, options), options.dest):
        raise _missing(options.uri)
    answer(options.dest)


def ls(name: str, arguments: list[str]) -> None:
    """Print what is in a directory: directories with a slash, then files."""
    from kachery_p2p.client.wording import printable
    from kachery_p2p.compat import directories

    parser = OlderParser(name, "Print what is in a directory: directories, with a /, then files.")
    parser.add_argument("uri")
    add_source(parser)
    options = parser.parse_args(arguments)
    found = directories.listing(options.uri, _source(name, parser, options))
    if found is None:
        raise _missing(options.uri)
    for entry in found:
        answer(printable(entry))


def info(name: str, arguments: list[str]) -> None:
    """Print path, size and hash as JSON; without a URI, which node this is (kachery-client)."""
    parser = OlderParser(name, "Print path, size and sha1 of URI as JSON; without it, the node.")
    parser.add_argument("uri", nargs="?")
    add_source(parser)
    options = parser.parse_args(arguments)
    if options.uri is None:
        from kachery_p2p.cli.older_node import print_node

        print_node()
        return
    from kachery_p2p.compat import named

    found = named.file_info(options.uri, _loading_call(parser, options))
    if found is None:
        raise _missing(options.uri)
    _answer_json(found)


def load_info(name: str, arguments: list[str]) -> None:
    """Print the size of a content as JSON."""
    parser = OlderParser(name, "Print whether URI can be had, and its size, as JSON.")
    parser.add_argument("uri")
    options = parser.parse_args(arguments)
    found = _labelled(name).info(options.uri)
    if found is None:
        raise _missing(options.uri)
    _answer_json(found)


def load_path(uri: str, source: Source, dest: str | None = None) -> str:
    """The path of a content, or `dest`. NotFoundError if nobody has it."""
    from kachery_p2p.compat import loading

    path = loading.find(uri, source)
    if path is None:
        raise _missing(uri)
    copied = loading.load(path, source, dest)
    assert copied is not None
    return copied


def write_content(uri: str, source: Source, start: int | None, end: int | None) -> None:
    """Write a content, or bytes of it, to stdout. NotFoundError if nobody has it."""
    from kachery_p2p.client.files import open_stored
    from kachery_p2p.compat import loading

    if end is not None and (start or 0) > end:
        raise InvalidRangeError(f"{start or 0} to {end} is not a range of bytes")
    if end is not None:
        for position in range(start or 0, end, _PIECE_BYTES):
            data = loading.load_range(uri, position, min(position + _PIECE_BYTES, end), source)
            if data is None:
                raise _missing(uri)
            write_bytes(data)
        return
    with os.fdopen(open_stored(load_path(uri, source)), "rb", buffering=0) as file:
        if start is not None and start > file.seek(0, os.SEEK_END):
            raise InvalidRangeError(f"the content has no byte {start}")
        file.seek(start or 0)
        while piece := file.read(_PIECE_BYTES):
            write_bytes(piece)


def _source(name: str, parser: OlderParser, options: argparse.Namespace) -> Source:
    from kachery_p2p.compat import systems

    source = _loading_call(parser, options).source()
    return source._replace(sandbox=systems.sandbox_of(_system(name)))


def _loading_call(parser: OlderParser, options: argparse.Namespace) -> Call:
    from kachery_p2p.compat.servers import Call
    from kachery_p2p.compat.systems import zone_name

    fr = server_of(parser, options, "fr")
    return Call({"fr": zone_name() if fr is None else fr})


def _missing(uri: str) -> NotFoundError:
    if "://" not in uri and not uri.startswith("kachery:"):
        return NotFoundError(f"there is no file {uri}")
    return NotFoundError(
        f"{uri} is not stored here, and nobody who was asked has it",
        hint="ask its author for it, or to start their node",
    )


def _answer_json(value: dict[str, Any]) -> None:
    import json

    answer(json.dumps(value, indent=4))


# --- which package the name is of -----------------------------------------------------------------


def _system(name: str) -> System:
    from kachery_p2p.compat.systems import CLOUD, KACHERY_2

    return CLOUD if name.startswith("kachery-cloud") else KACHERY_2


def _labelled(name: str) -> Labelled:
    from kachery_p2p.compat.labelled import Labelled

    return Labelled(_system(name))


def _form(options: argparse.Namespace) -> Any:
    from kachery_p2p.compat.labelled import Form

    return Form(_label(options))
