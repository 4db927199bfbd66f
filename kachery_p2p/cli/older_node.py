"""What the commands of kachery-p2p before version 1 did: its names, mapped onto those of today.

    store-file link-file load-file cat-file find-file get-channels join-channel leave-channel
    node-info print-messages start-daemon stop-daemon

each also as a program, `kachery-p2p-store` and so on. And what `kachery-client` and
`kachery-cloud` could say of their node.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from typing import TYPE_CHECKING

from kachery_p2p.cli.older_options import OlderParser, add_range, port
from kachery_p2p.cli.outcome import answer, note
from kachery_p2p.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from kachery_p2p.client.asking import Found

# What other nodes dialled, and dial.
NODE_PORT = 20432
_NO_ROLES = "members reach each other by themselves, and no node has such a role"
_NO_UDP = "nodes talk over TCP"
_NO_NODE_JS = "the daemon is this program, and no Node.js"
_CONFIG_URL = "channels are entered by an invite, and not by a page that lists their members"


# --- files ----------------------------------------------------------------------------------------


def store_file(name: str, arguments: list[str]) -> None:
    """Store a copy of a file and print its URI, as `kachery-p2p store`."""
    _store(name, arguments, "Store a copy of a file and print its URI.", link=False)


def link_file(name: str, arguments: list[str]) -> None:
    """Let a file stand for its content and print its URI, as `kachery-p2p link`."""
    _store(name, arguments, "Let a file stand for its content; print its URI.", link=True)


def _store(name: str, arguments: list[str], description: str, *, link: bool) -> None:
    from kachery_p2p.client import files
    from kachery_p2p.compat.systems import uri_style

    parser = OlderParser(name, description)
    parser.add_argument("path", metavar="FILE")
    path = parser.parse_args(arguments).path
    if uri_style() is None:
        answer(files.link_file(path) if link else files.store_file(path))
        return
    from kachery_p2p.compat import kachery_client

    answer(kachery_client.link_file(path) if link else kachery_client.store_file(path))


def load_file(name: str, arguments: list[str]) -> None:
    """Print the path of a file with the content."""
    parser = OlderParser(name, "Print the path of a file with the content of URI.")
    parser.add_argument("uri")
    parser.add_argument("--dest", metavar="PATH", help="write a copy to it, and print that")
    parser.add_argument("--from-node", metavar="NODE", help="ask this node only")
    parser.add_argument("--from-channel", metavar="CHANNEL", help="ask this channel only")
    _add_experiments(parser)
    options = parser.parse_args(arguments)
    if options.from_node is not None and not options.exp_nop2p:
        from kachery_p2p.cli import answers

        answers.load(
            options.uri,
            options.dest,
            from_channel=options.from_channel,
            from_node=options.from_node,
        )
        return
    from kachery_p2p.cli.older_files import load_path
    from kachery_p2p.compat.loading import Source

    source = Source(local_only=options.exp_nop2p, channel=options.from_channel)
    answer(load_path(options.uri, source, options.dest or None))


def cat_file(name: str, arguments: list[str]) -> None:
    """Write the content, or a range of its bytes, to stdout."""
    from kachery_p2p.cli.older_files import write_content
    from kachery_p2p.compat.loading import Source

    parser = OlderParser(name, "Write the content of URI, or a range of it, to standard output.")
    parser.add_argument("uri")
    add_range(parser)
    _add_experiments(parser)
    options = parser.parse_args(arguments)
    source = Source(local_only=options.exp_nop2p)
    write_content(options.uri, source, options.start, options.end)


def _add_experiments(parser: OlderParser) -> None:
    parser.add_argument("--exp-nop2p", action="store_true", help="ask nobody else")
    parser.ignored(
        "--exp-file-server-url",
        why="members of the channels and their buckets are asked",
        takes_value=True,
    )


def find_file(name: str, arguments: list[str]) -> None:
    """Print each node that has the content as JSON; exit code 3 if nobody has it."""
    from kachery_p2p.client.files import find_file as find
    from kachery_p2p.content.uris import parse_uri

    parser = OlderParser(name, "Print, as JSON, each node that has the content of URI.")
    parser.add_argument("uri")
    uri = parser.parse_args(arguments).uri
    found = find(uri)
    nodes = _holders(found)
    if not nodes:
        raise NotFoundError(f"nobody who was asked has {uri}")
    key = {"sha1": str(parse_uri(uri).content)}
    for node in nodes:
        told = {"nodeId": node, "fileKey": key, "fileSize": found.size}
        answer(json.dumps(told, indent=4))
    if not found.asked:
        note("no daemon is running, so nobody else was asked")


def _holders(found: Found) -> list[str | None]:
    """Node ids, each once; None for this computer if it has none yet."""
    from kachery_p2p.client.files import get_node_id
    from kachery_p2p.errors import KeyFileError

    here: list[str | None] = []
    if found.local:
        here.append(None)
        with contextlib.suppress(KeyFileError):
            here = [get_node_id()]
    return list(dict.fromkeys([*here, *(one.node_id for one in found.providers)]))


# --- channels and feeds ---------------------------------------------------------------------------


def get_channels(name: str, arguments: list[str]) -> None:
    """Print the names of the channels that this node is in."""
    from kachery_p2p.client.files import get_channels as list_channels
    from kachery_p2p.client.wording import printable

    OlderParser(name, "Print the channels that this node is in.").parse_args(arguments)
    for channel in list_channels():
        answer(printable(channel.name))


def join_channel(name: str, arguments: list[str]) -> None:
    """Enter a channel with an invite, as `kachery-p2p channel join`."""
    parser = OlderParser(name, "Enter a channel with an INVITE; - reads it from stdin.")
    parser.add_argument("invitation", metavar="INVITE|-")
    for flag in ("--message-proxy", "--data-proxy", "--public"):
        parser.ignored(flag, why=_NO_ROLES)
    invitation = parser.parse_args(arguments).invitation
    if invitation.startswith(("http://", "https://")):
        parser.error(f"{_CONFIG_URL}: ask an admin of the channel for `kachery-p2p channel invite`")
    run_today("channel", "join", invitation)


def leave_channel(name: str, arguments: list[str]) -> None:
    """Forget a channel, as `kachery-p2p channel leave`."""
    parser = OlderParser(name, "Forget the channel and its secret.")
    parser.add_argument("channel", metavar="NAME")
    run_today("channel", "leave", parser.parse_args(arguments).channel)


def print_messages(name: str, arguments: list[str]) -> None:
    """Print the messages of a subfeed, each a line of JSON, as `kachery-p2p feed read`."""
    parser = OlderParser(name, "Print the messages of a subfeed, each as a line of JSON.")
    parser.add_argument("uri", metavar="SUBFEED")
    run_today("feed", "read", parser.parse_args(arguments).uri)


# --- the node -------------------------------------------------------------------------------------


def node_info(name: str, arguments: list[str]) -> None:
    """Print this node's id."""
    from kachery_p2p.client.files import get_node_id

    OlderParser(name, "Print the id of this node.").parse_args(arguments)
    answer(f"Node ID: {get_node_id()}")


def client_info(name: str, arguments: list[str]) -> None:
    """Print this node's id, and whether a daemon answers."""
    parser = OlderParser(name, "Print the id of this node, and whether its daemon runs.")
    parser.ignored("--enable-ephemeral", "-e", why="it is the same without a daemon")
    parser.parse_args(arguments)
    print_node()


def print_node() -> None:
    """The two lines of `client_info`."""
    from kachery_p2p.client.daemon import connect, hello
    from kachery_p2p.client.files import get_node_id
    from kachery_p2p.errors import DaemonDownError

    answer(f"Node ID: {get_node_id()}")
    try:
        hello(connect())
    except DaemonDownError:
        note("no daemon is running: start one with `kachery-p2p start`")
    else:
        answer("You have access to this daemon")


def generate_node_id(name: str, arguments: list[str]) -> None:
    """Print a new node id and its private key, which nothing keeps."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    OlderParser(name, "Print a new node id and its private key.").parse_args(arguments)
    key = Ed25519PrivateKey.generate()
    answer(f"Random node ID: {key.public_key().public_bytes_raw().hex()}")
    answer(f"Corresponding private key (hex): {key.private_bytes_raw().hex()}")


def config_ephemeral_node(name: str, arguments: list[str]) -> None:
    """ServiceGoneError: there is no hub to make an ephemeral node known to."""
    from kachery_p2p.compat.absent import gone

    OlderParser(name, "What this did is not needed any more.").parse_args(arguments)
    gone("making an ephemeral node known", "use `kachery-p2p channel join INVITE`")


def cloud_init(name: str, arguments: list[str]) -> None:
    """Make this node's key if there is none; nothing needs to be registered."""
    from kachery_p2p.compat.kachery_cloud import get_client_id

    OlderParser(name, "Make the key of this computer; print its id.").parse_args(arguments)
    answer(f"Client ID: {get_client_id(generate_if_missing=True)}")
    note("no registration is needed: `kachery-p2p start` shares files with the labs you choose")


def version(name: str, arguments: list[str]) -> None:
    """Print the version of this package."""
    from kachery_p2p.cli import answers

    OlderParser(name, "Print the version of this package.").parse_args(arguments)
    answers.version()


def stop_daemon(name: str, arguments: list[str]) -> None:
    """Stop the node, as `kachery-p2p stop`."""
    OlderParser(name, "Stop the node.").parse_args(arguments)
    run_today("stop")


def start_daemon(name: str, arguments: list[str]) -> None:
    """Start the node in this terminal, as `kachery-p2p start`."""
    options = start_parser(name).parse_args(arguments)
    if options.install_only:
        note("--install-only: there is nothing to install, and no node was started")
        return
    run_today("start", *start_arguments(options))


def start_parser(name: str) -> OlderParser:
    """The older options of the daemon, by what each means today."""
    parser = OlderParser(name, "Start the node in this terminal: `kachery-p2p start`.")
    parser.add_argument("--label", help="what others see as this node's name")
    parser.add_argument(
        "--channel", action="append", default=[], help="be in this channel; repeatable"
    )
    parser.add_argument("--isbootstrap", action="store_true", help="start --introduce")
    parser.add_argument(
        "--bootstrap", action="append", default=[], type=_address, metavar="IP:PORT|MULTIADDR|@FILE"
    )
    parser.add_argument("--nobootstrap", action="store_true", help="as ever, if none is given")
    parser.add_argument("--nomulticast", action="store_true", help="start --no-mdns")
    parser.add_argument("--host", default="", help="where others reach it: start --advertise")
    parser.add_argument("--port", type=port, default=0, help="start --listen 0.0.0.0:PORT")
    parser.add_argument("--auth-group", metavar="GROUP", help="start --auth-group")
    parser.add_argument("--install-only", action="store_true", help="nothing is to be installed")
    parser.ignored("--noudp", why=_NO_UDP)
    parser.ignored("--udp-port", why=_NO_UDP, takes_value=True)
    parser.ignored("--websocket-port", why=_NO_UDP, takes_value=True)
    for flag in ("--ismessageproxy", "--isdataproxy"):
        parser.ignored(flag, why=_NO_ROLES)
    parser.ignored("--verbose", why="its log has one line an event", takes_value=True)
    parser.ignored("--method", why=_NO_NODE_JS, takes_value=True)
    parser.ignored("--node-arg", why=_NO_NODE_JS, takes_value=True)
    for flag in ("--config", "--static-config"):
        parser.refused(flag, why=_CONFIG_URL, takes_value=True)
    parser.refused(
        "--public-url", why="others reach a node over TCP: give --host and --port", takes_value=True
    )
    return parser


def start_arguments(options: argparse.Namespace) -> list[str]:
    """What `kachery-p2p start` is told for the older options."""
    told: list[str] = []
    for channel in options.channel:
        told += ["--channel", channel]
    for address in () if options.nobootstrap else options.bootstrap:
        told += ["--bootstrap", address]
    if options.label is not None:
        told += ["--label", options.label]
    if options.port:
        told += ["--listen", f"0.0.0.0:{options.port}"]
    if options.host:
        host = f"[{options.host}]" if ":" in options.host else options.host
        told += ["--advertise", f"{host}:{options.port or NODE_PORT}"]
    if options.auth_group:
        told += ["--auth-group", options.auth_group]
    told += ["--introduce"] * options.isbootstrap
    told += ["--no-mdns"] * options.nomulticast
    return told


def _address(text: str) -> str:
    """A bootstrap address of either time: a place, or one that says which node is there."""
    if not text.startswith(("/", "@")):
        from kachery_p2p.network.places import parse_place

        try:
            parse_place(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(f"{error}: {error.hint}") from None
    return text


def run_today(*arguments: str) -> None:
    """Run a command of today. SystemExit if it ends with another code than 0."""
    from kachery_p2p.cli.commands import run_group

    code = run_group(list(arguments))
    if code:
        raise SystemExit(code)
