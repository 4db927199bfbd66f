"""Which channels this node has joined: CONFIG/channels/NAME.toml, one private file each.

NAME.toml is a channel joined: without it the other files of that name are nothing, so
joining writes it last and leaving removes it first. All are written whole and under one
lock.

The client asks here, at each store, with which channels a file is to be shared
(`share_list`): one listing of the directory and one small file a channel, no cryptography.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from kachery_p2p.channels.channel import OWNED, check_channel_name
from kachery_p2p.channels.channel_file import (
    KIND,
    SECRET_ENV,
    check_bootstrap,
    check_secret_env,
)
from kachery_p2p.channels.disk import (
    check_private_directory,
    explaining,
    locked,
    make_private_directory,
    read_private,
    sweep_temporary,
    write_private,
)
from kachery_p2p.errors import (
    ConfigError,
    StateCorruptError,
    StateVersionError,
    UnknownChannelError,
)

KINDS = (KIND, OWNED)
STATE_VERSION = 1
_HEX_DIGITS = "0123456789abcdef"
_ID_CHARS = 64


class Joined(NamedTuple):
    """A channel that this node has joined."""

    name: str
    id: str
    # Seconds since 1970.
    joined_at: int
    # True if `store` shares with this channel when it is not told with which.
    shared_list: bool
    # Multiaddrs of members to try first.
    bootstrap: tuple[str, ...] = ()
    # The environment variable that may repeat the secret at start.
    secret_env: str = SECRET_ENV
    kind: str = KIND
    # True if an invite told the addresses, and not the user.
    invited: bool = False


# --- what is joined -----------------------------------------------------------------------


def joined(config_dir: str) -> list[Joined]:
    """The channels joined, in the order of joining."""
    directory = channels_dir(config_dir)
    with explaining(directory):
        try:
            check_private_directory(directory)
            names = os.listdir(directory)
        except FileNotFoundError:
            return []
    found = [read_joined(config_dir, name[:-5]) for name in names if name.endswith(".toml")]
    present = [channel for channel in found if channel is not None]
    return sorted(present, key=lambda channel: (channel.joined_at, channel.name))


def share_list(config_dir: str) -> list[str]:
    """Ids of the channels that a file is shared with when nobody says with which. Light."""
    return [channel.id for channel in joined(config_dir) if channel.shared_list]


# --- the files ----------------------------------------------------------------------------------


def channels_dir(config_dir: str) -> str:
    """The directory of the joined channels."""
    # Asked for at each store: a fifth of the time of `os.path.join`.
    return f"{config_dir}/channels"


def state_path(config_dir: str, name: str) -> str:
    """Where it says that the channel `name` is joined."""
    return os.path.join(channels_dir(config_dir), f"{name}.toml")


def secret_path(config_dir: str, name: str) -> str:
    """Where the secret of the joined channel `name` is."""
    return os.path.join(channels_dir(config_dir), f"{name}.secret")


def history_path(config_dir: str, name: str) -> str:
    """Where the history of the joined owned channel `name` is."""
    return os.path.join(channels_dir(config_dir), f"{name}.history")


def invites_path(config_dir: str, name: str) -> str:
    """Where the invites are that this node made to the channel `name`."""
    return os.path.join(channels_dir(config_dir), f"{name}.invites")


def pending_path(config_dir: str, name: str) -> str:
    """Where an invite to the channel `name` waits until this node has been let in."""
    return os.path.join(channels_dir(config_dir), f"{name}.join")


def bucket_path(config_dir: str, name: str) -> str:
    """Where the cloud bucket of the joined channel `name` is described."""
    return os.path.join(channels_dir(config_dir), f"{name}.bucket")


@contextlib.contextmanager
def changing(config_dir: str) -> Iterator[None]:
    """The only process that changes what is joined; the directory exists and is private."""
    directory = channels_dir(config_dir)
    with explaining(directory):
        make_private_directory(directory)
        check_private_directory(directory)
        with locked(os.path.join(directory, ".lock")):
            sweep_temporary(directory)
            yield


def joined_one(config_dir: str, name: str) -> Joined:
    """What is remembered of the channel `name`; UnknownChannelError if it was not joined."""
    found = read_joined(config_dir, check_channel_name(name))
    if found is None:
        raise unknown_channel(name)
    return found


def unknown_channel(name: str) -> UnknownChannelError:
    """The error for a channel that this node has not joined."""
    return UnknownChannelError(
        f"this node has not joined a channel {name}",
        hint=f"join it with `kachery-p2p start --channel {name}`",
    )


def read_joined(config_dir: str, name: str) -> Joined | None:
    """What is remembered of the channel `name`; None if it was not joined."""
    path = state_path(config_dir, name)
    with explaining(path):
        try:
            return _parse(read_private(path), name, path)
        except FileNotFoundError:
            return None


def write_joined(config_dir: str, channel: Joined) -> None:
    """Remember `channel` as it is here now. Only while `changing`."""
    bootstrap = "".join(f'    "{address}",\n' for address in channel.bootstrap)
    # Names, ids and addresses were checked to have no character that TOML would escape.
    text = (
        f"version = {STATE_VERSION}\n"
        f'kind = "{channel.kind}"\n'
        f'name = "{channel.name}"\n'
        f'id = "{channel.id}"\n'
        f"joined_at = {channel.joined_at}\n"
        f"shared_list = {str(channel.shared_list).lower()}\n"
        f'secret_env = "{channel.secret_env}"\n'
        f"bootstrap = [\n{bootstrap}]\n"
    )
    if channel.invited:
        text += "invited = true\n"
    write_private(state_path(config_dir, channel.name), text)


def _parse(text: str, name: str, path: str) -> Joined:
    import tomllib  # 13 ms

    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise _corrupt(name, path)
    version = table.pop("version", None)
    if type(version) is not int or version < 1:
        raise _corrupt(name, path)
    if version > STATE_VERSION:
        raise StateVersionError(
            f"{path} was written by a newer kachery-p2p (version {version}, not {STATE_VERSION})",
            hint="upgrade kachery-p2p on this computer",
        )
    try:
        found = Joined(**table)
        return _checked(found._replace(bootstrap=check_bootstrap(found.bootstrap, path)), name)
    except (TypeError, ValueError, ConfigError):
        raise _corrupt(name, path)


def _checked(found: Joined, name: str) -> Joined:
    """`found` if each field is of its type; else ValueError."""
    check_secret_env(found.secret_env, "secret_env")
    sound = (
        found.kind in KINDS
        and found.name == name == check_channel_name(name)
        and isinstance(found.id, str)
        and len(found.id) == _ID_CHARS
        and not found.id.strip(_HEX_DIGITS)
        and type(found.joined_at) is int
        and type(found.shared_list) is bool
        and type(found.invited) is bool
    )
    if not sound:
        raise ValueError(name)
    return found


def _corrupt(name: str, path: str) -> StateCorruptError:
    return StateCorruptError(
        f"{path} is damaged",
        hint=f"`kachery-p2p channel leave {name}` removes it; then join again with the secret",
    )
