"""Older commands about servers and daemons: what is left of each, or that it is gone.

The daemon of kachery-client (`kachery-daemon-start`) is this node. What only a server of
the authors could do ends with an error that says what takes its place.
"""

from __future__ import annotations

from kachery_p2p.cli.older_options import OlderParser

_HUB = "channels are entered by an invite, and no hub knows them"
_NO_NODE_JS = "the daemon is this program, and no Node.js"


def start(name: str, arguments: list[str]) -> None:
    """Start the node in this terminal, as `kachery-p2p start`."""
    from kachery_p2p.cli.older_node import run_today

    parser = OlderParser(name, "Start the node in this terminal: `kachery-p2p start`.")
    parser.add_argument("--label", help="what others see as this node's name")
    parser.add_argument("--auth-group", metavar="GROUP", help="start --auth-group")
    parser.ignored("--owner", why="its key says whose a node is", takes_value=True)
    for flag in ("--kachery-hub-url", "--bitwooder-url"):
        parser.ignored(flag, why=_HUB, takes_value=True)
    parser.ignored("--verbose", why="its log has one line an event", takes_value=True)
    for flag in ("--method", "--node-arg"):
        parser.ignored(flag, why=_NO_NODE_JS, takes_value=True)
    options = parser.parse_args(arguments)
    told = [] if options.label is None else ["--label", options.label]
    told += ["--auth-group", options.auth_group] if options.auth_group else []
    run_today("start", *told)


def set_password(name: str, arguments: list[str]) -> None:
    """ServiceGoneError: no server asks for one."""
    from kachery_p2p.compat.absent import gone

    parser = OlderParser(name, "What this did is not needed any more.")
    parser.add_argument("server", metavar="SERVER~CHANNEL")
    parser.add_argument("--password", required=True)
    parser.parse_args(arguments)
    gone(
        "asking for a password",
        "leave this out: members of a channel know each other by their keys, and"
        " `kachery-p2p channel invite` makes a new one",
    )


def admin_delete_file(name: str, arguments: list[str]) -> None:
    """ServiceGoneError: there is no bucket of everybody's."""
    from kachery_p2p.compat.cloud_gone import admin_delete_file as delete

    parser = OlderParser(name, "What this did is not needed any more.")
    parser.add_argument("uri")
    delete(parser.parse_args(arguments).uri)


def share_local_files(name: str, arguments: list[str]) -> None:
    """ServiceGoneError: nobody needs to wait for requests."""
    from kachery_p2p.compat.absent import gone

    parser = OlderParser(name, "What this did is not needed any more.")
    parser.add_argument("--project", default="")
    parser.parse_args(arguments)
    gone(
        "passing on requests for files",
        "`kachery-p2p start` serves what is stored, and `kachery-p2p share` what was stored"
        " locally",
    )


def request_file(name: str, arguments: list[str]) -> None:
    """Print the path of a file with the content, as `kachery-cloud-load`."""
    from kachery_p2p.cli.older_files import load_path
    from kachery_p2p.cli.outcome import answer
    from kachery_p2p.compat.calls import CLOUD_CALLS

    parser = OlderParser(name, "Print the path of a file with the content of URI.")
    parser.add_argument("uri")
    parser.ignored("--project", why="members of the channels are asked", takes_value=True)
    answer(load_path(parser.parse_args(arguments).uri, CLOUD_CALLS.source()))
