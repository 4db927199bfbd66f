"""Options of the commands of older packages: those that say something, and those that do no more.

An option without a meaning today is accepted, and a note on stderr says why it needs
nothing. It is refused where whoever gave it would get something else than they asked for.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from kachery_p2p.cli.outcome import note, say_error
from kachery_p2p.errors import EXIT_USAGE

_KEYS_DO = "members of a channel know each other by their keys, and need no password"
_EPHEMERAL = "nothing is different without a daemon: what is stored here is found"
_REMOTE_LOAD = "what is here already has the bytes of its hash, and is not fetched again"


class OlderParser(argparse.ArgumentParser):
    """argparse that says errors as all our commands do."""

    def __init__(self, name: str, description: str) -> None:
        super().__init__(prog=name, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        say_error(message, f"see `{self.prog} --help`")
        raise SystemExit(EXIT_USAGE)

    def ignored(self, *flags: str, why: str, takes_value: bool = False) -> None:
        """Accept the option, and say why it needs nothing."""
        help_text = f"accepted, and needs nothing: {why}"
        nargs = None if takes_value else 0
        self.add_argument(*flags, action=_Ignored, nargs=nargs, why=why, help=_plain(help_text))

    def refused(self, *flags: str, why: str, takes_value: bool = False) -> None:
        """Refuse the option: to go on without it would mislead."""
        nargs = None if takes_value else 0
        self.add_argument(
            *flags, action=_Refused, nargs=nargs, why=why, help=_plain(f"refused: {why}")
        )


class _Said(argparse.Action):
    """An option of which only is said why it does nothing."""

    def __init__(
        self, option_strings: Sequence[str], dest: str, nargs: Any, why: str, **others: Any
    ) -> None:
        super().__init__(option_strings, dest, nargs=nargs, **others)
        self.why = why


class _Ignored(_Said):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        note(f"{option_string} needs nothing: {self.why}")
        setattr(namespace, self.dest, True)


class _Refused(_Said):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        parser.error(f"{option_string} cannot be used: {self.why}")


def _plain(text: str) -> str:
    return text.replace("%", "%%")


def add_source(parser: OlderParser) -> None:
    """Whom to ask for what is not here: `fr`, `url` and `channel`."""
    parser.add_argument(
        "--fr", "-f", metavar="NAME", help="ask this server: a zone, or a channel of this node"
    )
    parser.add_argument("--url", help="the same by its address, which zones.toml knows")
    parser.add_argument(
        "--channel", "--direct-channel", "-c", metavar="CHANNEL", help="ask this channel only"
    )
    parser.ignored("--password", "-p", why=_KEYS_DO, takes_value=True)
    parser.ignored("--remote-only", why=_REMOTE_LOAD)
    parser.ignored("--enable-ephemeral", "-e", why=_EPHEMERAL)


def add_destination(parser: OlderParser) -> None:
    """Where to share what is stored: `to`, `url` and `channel`."""
    parser.add_argument(
        "--to", metavar="NAME", help="share it there: a zone, or a channel of this node"
    )
    parser.add_argument("--url", help="the same by its address, which zones.toml knows")
    parser.add_argument(
        "--channel", "--upload-to-channel", "-c", metavar="CHANNEL", help="share it there only"
    )
    parser.ignored("--password", "-p", why=_KEYS_DO, takes_value=True)
    parser.ignored("--single-chunk", why="members fetch a file in the chunks that suit them")
    parser.ignored("--enable-ephemeral", "-e", why=_EPHEMERAL)


def add_range(parser: OlderParser) -> None:
    """Which bytes."""
    parser.add_argument("--start", type=position, help="the first byte (default 0)")
    parser.add_argument("--end", type=position, help="the byte after the last (default: all)")


def position(text: str) -> int:
    """A position in a file, as an option says it."""
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a position in a file")
    return int(text)


def port(text: str) -> int:
    """A TCP port, as an option says it; 0 for none."""
    number = position(text)
    if number > 65_535:
        raise argparse.ArgumentTypeError(f"{number} is not a port")
    return number


def server_of(
    parser: OlderParser, options: argparse.Namespace, flag: str
) -> dict[str, str] | str | None:
    """The server that the options name, as `servers.Call` takes it; None if they name none."""
    name: str | None = getattr(options, flag)
    if options.url is None and options.channel is None:
        return name
    if name is not None:
        parser.error(f"--{flag} and {'--url' if options.url else '--channel'} exclude each other")
    found = {"url": options.url, "channel": options.channel}
    return {key: value for key, value in found.items() if value is not None}
