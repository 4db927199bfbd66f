"""The commands of the older packages: their names, and what runs each.

`main` is the way in of all programs that the package installs besides `kachery-p2p`; which one
was called, the program's own name says. The names of kachery-p2p before version 1
(`kachery-p2p store-file`) come here from `cli.main`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from kachery_p2p.cli import outcome
from kachery_p2p.errors import EXIT_USAGE

# Program, or group and command: module below cli, and name of the function.
COMMANDS = {
    "kachery-store": "older_files:store",
    "kachery-load": "older_files:load",
    "kachery-cat": "older_files:cat",
    "kachery-info": "older_files:info",
    "kachery-ls": "older_files:ls",
    "kachery-link": "older_files:link",
    "kachery-load-dir": "older_files:load_dir",
    "kachery-load-info": "older_files:load_info",
    "kachery-store-local": "older_files:store_local",
    "kachery-set-password": "older_daemon:set_password",
    "kachery-config-ephemeral-node": "older_node:config_ephemeral_node",
    "kachery-generate-node-id": "older_node:generate_node_id",
    "kachery-daemon-start": "older_daemon:start",
    "kachery-daemon-info": "older_node:client_info",
    "kachery store-file": "older_files:store",
    "kachery store-file-local": "older_files:store_local",
    "kachery load-file": "older_files:load",
    "kachery load-file-info": "older_files:load_info",
    "kachery cat-file": "older_files:cat",
    "kachery-client store-file": "older_files:store_client",
    "kachery-client load-file": "older_files:load",
    "kachery-client cat-file": "older_files:cat",
    "kachery-client link-file": "older_files:link",
    "kachery-client info": "older_node:client_info",
    "kachery-client version": "older_node:version",
    "kachery-client config-ephemeral-node": "older_node:config_ephemeral_node",
    "kachery-client generate-node-id": "older_node:generate_node_id",
    "kachery-cloud-init": "older_node:cloud_init",
    "kachery-cloud-store": "older_files:store_cloud",
    "kachery-cloud-load": "older_files:load",
    "kachery-cloud-cat": "older_files:cat",
    "kachery-cloud-link": "older_files:link",
    "kachery-cloud-store-local": "older_files:store_local",
    "kachery-cloud-load-info": "older_files:load_info",
    "kachery-cloud-admin-delete-file": "older_daemon:admin_delete_file",
    "kachery-cloud init": "older_node:cloud_init",
    "kachery-cloud store-file": "older_files:store_cloud",
    "kachery-cloud link-file": "older_files:link",
    "kachery-cloud load-file": "older_files:load",
    "kachery-cloud load-file-info": "older_files:load_info",
    "kachery-cloud cat-file": "older_files:cat",
    "kachery-cloud store-file-local": "older_files:store_local",
    "kachery-cloud admin-delete-file": "older_daemon:admin_delete_file",
    "kachery-cloud share-local-files-experimental": "older_daemon:share_local_files",
    "kachery-cloud request-file-experimental": "older_daemon:request_file",
    "kachery-p2p store-file": "older_node:store_file",
    "kachery-p2p link-file": "older_node:link_file",
    "kachery-p2p load-file": "older_node:load_file",
    "kachery-p2p cat-file": "older_node:cat_file",
    "kachery-p2p find-file": "older_node:find_file",
    "kachery-p2p get-channels": "older_node:get_channels",
    "kachery-p2p join-channel": "older_node:join_channel",
    "kachery-p2p leave-channel": "older_node:leave_channel",
    "kachery-p2p node-info": "older_node:node_info",
    "kachery-p2p print-messages": "older_node:print_messages",
    "kachery-p2p start-daemon": "older_node:start_daemon",
    "kachery-p2p stop-daemon": "older_node:stop_daemon",
}
# Programs that are commands of kachery-p2p, with `-file` left out.
WRAPPERS = {
    "kachery-p2p-" + name.removeprefix("kachery-p2p ").removesuffix("-file"): name
    for name in COMMANDS
    if name.startswith("kachery-p2p ")
}
GROUPS = ("kachery", "kachery-client", "kachery-cloud")
PROGRAMS = (*(name for name in COMMANDS if " " not in name), *GROUPS, *WRAPPERS)
# Commands that a second run continues.
_RESUMABLE = ("load", "cat", "load_file", "cat_file", "load_dir")


def main() -> NoReturn:
    """Run the program of an older package that this process is, and leave with its exit code."""
    sys.exit(run(os.path.basename(sys.argv[0]), sys.argv[1:]))


def run(program: str, arguments: Sequence[str]) -> int:
    """Run a program of an older package, or an older command of kachery-p2p; its exit code."""
    name, rest = WRAPPERS.get(program, program), list(arguments)
    if name in GROUPS:
        if not rest or rest[0] in ("-h", "--help"):
            return _list_group(name, to_stdout=bool(rest))
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name not in COMMANDS:
        outcome.say_error(f"there is no command {name[:80]}", f"see `{program} --help`")
        return EXIT_USAGE
    module, _, function = COMMANDS[name].partition(":")

    def command() -> None:
        _speak_warnings()
        run_it: Callable[[str, list[str]], None] = getattr(
            importlib.import_module(f"kachery_p2p.cli.{module}"), function
        )
        run_it(name, rest)

    return outcome.run(command, resumable=function in _RESUMABLE)


def _list_group(name: str, *, to_stdout: bool) -> int:
    commands = [
        other.removeprefix(f"{name} ") for other in COMMANDS if other.startswith(f"{name} ")
    ]
    text = f"usage: {name} COMMAND [ARGUMENT...]\n\ncommands: {', '.join(commands)}\n"
    (sys.stdout if to_stdout else sys.stderr).write(text)
    return 0 if to_stdout else EXIT_USAGE


def _speak_warnings() -> None:
    """What a function of the older packages warns of is a note for the person."""
    import warnings

    def show(message: Warning | str, *where: object, **options: object) -> None:
        outcome.note(str(message))

    warnings.simplefilter("always", UserWarning)
    warnings.showwarning = show
