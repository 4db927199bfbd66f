"""The command line's way in. Plain `load`, `node-id` and `version` go without click."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from kachery_p2p.cli import answers, outcome

# Commands that a second run continues.
RESUMABLE = ("load", "cat")
# What commands were called before version 1; see `older`.
OLDER = (
    *("store-file", "link-file", "load-file", "cat-file", "find-file"),
    *("get-channels", "join-channel", "leave-channel", "node-info", "print-messages"),
    *("start-daemon", "stop-daemon"),
)


def main() -> NoReturn:
    """Run the command line of this process and leave with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command line; its exit code."""
    arguments = list(arguments)
    resumable = bool(arguments) and arguments[0] in RESUMABLE
    quick = _quick(arguments)
    if quick is not None:
        return outcome.run(quick, resumable=resumable)
    if arguments and arguments[0] in OLDER:
        from kachery_p2p.cli import older

        return older.run(f"kachery-p2p {arguments[0]}", arguments[1:])
    return _run_click(arguments, resumable)


def _quick(arguments: list[str]) -> Callable[[], None] | None:
    """The command to run without click, if the arguments are of a form that needs no parsing."""
    match arguments:
        case ["load", uri] if _is_plain(uri):
            return lambda: answers.load(uri)
        case ["load", uri, "--dest", dest] if _is_plain(uri) and _is_plain(dest):
            return lambda: answers.load(uri, dest)
        case ["node-id"]:
            return answers.node_id
        case ["version" | "--version"]:
            return answers.version
    return None


def _is_plain(argument: str) -> bool:
    return not argument.startswith("-")


def _run_click(arguments: list[str], resumable: bool) -> int:
    # Importing click (30 ms) is part of the run: Ctrl-C may come meanwhile.
    code = 0

    def command() -> None:
        nonlocal code
        from kachery_p2p.cli.commands import run_group

        code = run_group(arguments)

    return outcome.run(command, resumable=resumable) or code
