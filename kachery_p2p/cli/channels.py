"""Commands about channels: the groups inside which nodes find and serve each other."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator

import click

from kachery_p2p.cli.outcome import answer, note
from kachery_p2p.client import settings
from kachery_p2p.errors import ChannelSecretMissingError

SECRET_VARIABLE = "KACHERY_CHANNEL_SECRET"  # noqa: S105 - the name of a variable, not a secret


@click.group()
def channel() -> None:
    """Create, list and leave channels."""


@channel.command()
@click.argument("name")
@click.option("--shared", is_flag=True, help="Entered by all who know one generated secret.")
def create(name: str, shared: bool) -> None:
    """Print a new secret for the channel NAME.

    Nothing is saved: each node that is started with --channel NAME and this secret in
    KACHERY_CHANNEL_SECRET joins, and remembers it.
    """
    from kachery_p2p.channels.channel import check_channel_name, generate_secret

    check_channel_name(name)
    if not shared:
        raise click.UsageError("say --shared: the channel is entered with a shared secret")
    answer(generate_secret(os.urandom(20)))
    note(f"this secret opens channel {name}; whoever has it is a member, so keep it private")
    note(f"on each computer: {SECRET_VARIABLE}=... kachery-p2p start --channel {name}")


@channel.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def list_channels(as_json: bool) -> None:
    """Print the channels that this node has joined."""
    from kachery_p2p.channels.files import joined

    found = joined(settings.config_dir())
    if as_json:
        rows = [{"name": c.name, "id": c.id, "shared_list": c.shared_list} for c in found]
        answer(json.dumps(rows))
        return
    for one in found:
        answer(one.name + ("  (what is stored is shared here)" if one.shared_list else ""))
    if not found:
        note("no channel was joined yet: `kachery-p2p channel create NAME --shared`")


@channel.command()
@click.argument("name")
def leave(name: str) -> None:
    """Forget the channel NAME and its secret."""
    from kachery_p2p.channels.files import leave as leave_channel

    with no_daemon() as config_dir:
        leave_channel(config_dir, name)
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
