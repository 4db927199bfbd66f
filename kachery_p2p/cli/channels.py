"""Commands about channels: the groups inside which nodes find and serve each other."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from kachery_p2p.cli.outcome import answer, note
from kachery_p2p.client import settings
from kachery_p2p.errors import ChannelSecretMissingError, DaemonDownError

SECRET_VARIABLE = "KACHERY_CHANNEL_SECRET"  # noqa: S105 - the name of a variable, not a secret
# How long `join` waits for the admitting node before it leaves the rest to the daemon.
JOIN_WAIT_S = 10.0
_HOUR_S = 3_600.0
ROLES = ("read", "provide", "write", "task", "admin")


@click.group()
def channel() -> None:
    """Create channels, let others in, and put them out."""


@channel.command()
@click.argument("name")
@click.option("--shared", is_flag=True, help="Entered by all who know one generated secret.")
def create(name: str, shared: bool) -> None:
    """Create the channel NAME, owned by this node: nobody enters without an invite.

    With --shared nothing is created: a new secret is printed, and each node that is started
    with --channel NAME and this secret in KACHERY_CHANNEL_SECRET joins, and remembers it.
    """
    from kachery_p2p.channels.channel import check_channel_name, generate_secret

    check_channel_name(name)
    if shared:
        answer(generate_secret(os.urandom(20)))
        note(f"this secret opens channel {name}; whoever has it is a member, so keep it private")
        note(f"on each computer: {SECRET_VARIABLE}=... kachery-p2p start --channel {name}")
        return
    answer(_created(name))
    note(f"channel {name} is owned by this node")
    note(f"`kachery-p2p channel invite {name}` lets others in")
    note(f"`kachery-p2p channel export-key {name} FILE` keeps its key safe")


def _created(name: str) -> str:
    """The id of the new channel: made by the daemon if one runs, else on the disk."""
    with contextlib.suppress(DaemonDownError):
        return str(_call("channel_create", {"name": name})["id"])
    from kachery_p2p.channels.owned import create_owned
    from kachery_p2p.identity.keyring import load_or_create

    with no_daemon() as config_dir:
        key = load_or_create(config_dir)
        return create_owned(config_dir, name, key, _host(), int(time.time())).id


@channel.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def list_channels(as_json: bool) -> None:
    """Print the channels that this node has joined, or waits to be let into."""
    from kachery_p2p.channels.files import joined
    from kachery_p2p.channels.invite_book import pending_joins

    config_dir = settings.config_dir()
    found, awaited = joined(config_dir), pending_joins(config_dir)
    if as_json:
        rows: list[dict[str, Any]] = [
            {"name": c.name, "id": c.id, "kind": c.kind, "shared_list": c.shared_list}
            for c in found
        ]
        answer(json.dumps(rows))
        return
    for one in found:
        answer(one.name + ("  (what is stored is shared here)" if one.shared_list else ""))
    for name, _ in awaited:
        note(f"{name}: invited, not let in yet; `kachery-p2p status` says who is awaited")
    if not found:
        note("no channel was joined yet: `kachery-p2p channel create NAME`")


@channel.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def show(name: str, as_json: bool) -> None:
    """Print what is known of the channel NAME: its id, its keeper, what this node may do there."""
    from kachery_p2p.cli.channel_report import described, described_lines

    told = described(settings.config_dir(), name)
    if as_json:
        answer(json.dumps(told))
        return
    for line in described_lines(told):
        answer(line)


@channel.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def members(name: str, as_json: bool) -> None:
    """Print the members of the channel NAME: node id, roles, label."""
    from kachery_p2p.cli.channel_report import member_lines, members_of

    told = members_of(settings.config_dir(), name)
    if as_json:
        answer(json.dumps(told))
        return
    for line in member_lines(told):
        answer(line)


@channel.command()
@click.argument("name")
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice(ROLES[:-1]),
    help="What the new member may do; repeatable (default: all of these).",
)
@click.option(
    "--hours",
    type=click.FloatRange(min=0, min_open=True),
    default=24.0,
    show_default=True,
    help="How long the invite is good.",
)
@click.option("--node", metavar="NODE", help="Good for the node with this id only.")
def invite(name: str, roles: tuple[str, ...], hours: float, node: str | None) -> None:
    """Print an invite to the channel NAME, good for one node.

    Whoever has it can enter, so send it by a private way. This node must run when it is
    used: it lets the new member in.
    """
    body = {
        "name": name,
        "roles": list(roles) or None,
        "valid_s": hours * _HOUR_S,
        "node": None if node is None else _node(node),
    }
    answer(_call("channel_invite", body)["invite"])
    note(f"for one node, good for {hours:g} h: `kachery-p2p channel join INVITE`")


@channel.command()
@click.argument("invitation", metavar="INVITE|-")
@click.option("--as", "alias", metavar="NAME", help="Call the channel NAME on this computer.")
def join(invitation: str, alias: str | None) -> None:
    """Enter a channel with an INVITE; - reads it from stdin, where no other user can see it."""
    text = sys.stdin.read(1 << 16).strip() if invitation == "-" else invitation
    body = {"invite": text, "alias": alias, "timeout_s": JOIN_WAIT_S}
    try:
        told = _call("channel_join", body)
    except DaemonDownError:
        name = _awaited_on_disk(text, alias)
        answer(name)
        note(f"`kachery-p2p start` enters {name}; nothing was asked yet, as no node runs here")
        return
    answer(told["name"])
    if not told["joined"]:
        note(f"not let in yet: {told['awaiting'] or 'the admitting node does not answer'}")
        note("the node goes on trying; `kachery-p2p status` tells how it is going")


def _awaited_on_disk(text: str, alias: str | None) -> str:
    from kachery_p2p.channels.invite_book import add_pending_join
    from kachery_p2p.channels.invites import Invite

    found = Invite.parse(text)
    found.check_time(time.time())
    name = alias or found.name
    with no_daemon() as config_dir:
        add_pending_join(config_dir, name, found)
    return name


@channel.command()
@click.argument("name")
@click.argument("node")
def remove(name: str, node: str) -> None:
    """Put NODE out of the channel NAME: it gets nothing more, wherever the news has arrived.

    Connected members know within seconds. What the node has loaded already it keeps.
    """
    _call("channel_remove", {"name": name, "node": _member(name, node)})
    note(f"removed {node} from {name}")


@channel.command()
@click.argument("name")
@click.argument("node")
@click.argument("roles", nargs=-1, required=True, type=click.Choice(ROLES))
def roles(name: str, node: str, roles: tuple[str, ...]) -> None:
    """Give NODE exactly these ROLES in the channel NAME."""
    _call("channel_roles", {"name": name, "node": _member(name, node), "roles": list(roles)})
    note(f"{node} may now {', '.join(roles)} in {name}")


@channel.command("set")
@click.argument("name")
@click.option(
    "--bootstrap",
    multiple=True,
    metavar="MULTIADDR",
    help="Where members find each other; repeatable, replaces what was set.",
)
@click.option("--bucket", metavar="URL", help="A bucket of the channel, without credentials.")
@click.option(
    "--until",
    type=click.DateTime(["%Y-%m-%d"]),
    help="Nobody new is let in after this day.",
)
def settings_of(name: str, bootstrap: tuple[str, ...], bucket: str | None, until: Any) -> None:
    """Change settings of the channel NAME, for all its members."""
    body = {
        "name": name,
        "bootstrap": list(bootstrap) or None,
        "bucket": bucket,
        "not_after": None if until is None else int(until.timestamp()),
    }
    _call("channel_set", body)


@channel.command()
@click.argument("name")
@click.argument("node", required=False)
@click.option("--nobody", is_flag=True, help="Name no successor any more.")
@click.option("--take-over", is_flag=True, help="This node, the successor, goes on as keeper.")
def successor(name: str, node: str | None, nobody: bool, take_over: bool) -> None:
    """Name the NODE that may go on with the channel NAME if its key is lost.

    With --take-over, on that node: when the keeper has been silent for a week, a new
    channel with the same members takes the old one's place.
    """
    if sum((node is not None, nobody, take_over)) != 1:
        raise click.UsageError("say a NODE, or --nobody, or --take-over")
    body = {
        "name": name,
        "node": None if node is None else _member(name, node),
        "take_over": take_over,
    }
    answer(_call("channel_successor", body)["id"])


@channel.command("export-key")
@click.argument("name")
@click.argument("file", type=click.Path(), metavar="FILE")
def export_key(name: str, file: str) -> None:
    """Write the key of the channel NAME into the new FILE, sealed with a passphrase.

    The passphrase is asked for, or taken from KACHERY_P2P_PASSPHRASE. Whoever has both
    is the channel's keeper.
    """
    from kachery_p2p.channels.owned import export_key as export
    from kachery_p2p.cli.keys import passphrase, write_new

    write_new(file, lambda: export(settings.config_dir(), name, passphrase(confirm=True)))
    note(f"the key of {name} is in {file}; only the passphrase opens it")


@channel.command("import-key")
@click.argument("name")
@click.argument("file", type=click.Path(), metavar="FILE")
def import_key(name: str, file: str) -> None:
    """Make this node, a member, the keeper of the channel NAME; the node must be stopped.

    The node that was its keeper must not sign any more: remove its key file first. Two
    keepers make two histories, which no member can make one again.
    """
    from kachery_p2p.channels.owned import import_key as import_
    from kachery_p2p.cli.keys import passphrase, read_sealed

    sealed = read_sealed(file)
    secret = passphrase(confirm=False)
    with no_daemon() as config_dir:
        import_(config_dir, name, sealed, secret)
    note(f"this node is now the keeper of {name}")


@channel.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Even if its key is here and nowhere else.")
def leave(name: str, force: bool) -> None:
    """Forget the channel NAME and its secret."""
    try:
        _call("channel_leave", {"name": name, "force": force})
    except DaemonDownError:
        from kachery_p2p.channels.files import leave as leave_channel

        with no_daemon() as config_dir:
            leave_channel(config_dir, name, force=force)
    note(f"left channel {name}")


@channel.command()
@click.argument("name")
def rekey(name: str) -> None:
    """Enter the channel NAME with another secret, taken from KACHERY_CHANNEL_SECRET.

    What is shared in it stays shared with those who have the new secret, and no longer
    with those who have only the old one.
    """
    from kachery_p2p.channels.channel import Channel, parse_secret
    from kachery_p2p.channels.files import joined_one
    from kachery_p2p.channels.files import rekey as rekey_channel

    secret = os.environ.get(SECRET_VARIABLE)
    if not secret:
        raise ChannelSecretMissingError(
            f"the new secret of channel {name} is not given",
            hint=f"make one with `kachery-p2p channel create {name} --shared` "
            f"and give it in {SECRET_VARIABLE}",
        )
    with no_daemon() as config_dir:
        old = joined_one(config_dir, name)
        new = Channel.shared(parse_secret(secret), name)
        # The grants first: after a crash in between, doing it again finishes it.
        _move_grants(config_dir, old.id, new.id)
        rekey_channel(config_dir, name, secret)
    note(f"channel {name} has a new secret here; its other members need it too")


@contextlib.contextmanager
def no_daemon() -> Iterator[str]:
    """The configuration directory, with no daemon at work on it: one would go on with the old."""
    from kachery_p2p.node.lock import only_daemon

    config_dir = settings.config_dir()
    os.makedirs(config_dir, mode=0o700, exist_ok=True)
    with only_daemon(config_dir, "stop it with `kachery-p2p stop`, then run this again"):
        yield config_dir


def _move_grants(config_dir: str, old_id: str, new_id: str) -> None:
    from kachery_p2p.feeds.moving import move_channel
    from kachery_p2p.node.config import grants_path
    from kachery_p2p.store.grants import Grants
    from kachery_p2p.store.shares import take_shares

    os.makedirs(os.path.dirname(grants_path(config_dir)), mode=0o700, exist_ok=True)
    grants = Grants(grants_path(config_dir))
    try:
        take_shares(config_dir, grants.keep)
        grants.move(old_id, new_id)
    finally:
        grants.close()
    move_channel(config_dir, old_id, new_id)


# --- helpers -----------------------------------------------------------------------------------


def _call(operation: str, body: dict[str, Any]) -> dict[str, Any]:
    from kachery_p2p.client.daemon import connect

    return connect().call(operation, body)[0]


def _node(text: str) -> str:
    from kachery_p2p.identity.keys import NodeId

    return NodeId.parse(text)


def _member(name: str, text: str) -> str:
    """The id of the member that `text` means: an id, the beginning of one, or a label."""
    from kachery_p2p.cli.channel_report import find_member

    return find_member(settings.config_dir(), name, text)


def _host() -> str:
    import socket

    return socket.gethostname()
