"""The channels that this node has joined: CONFIG/channels/NAME.toml and NAME.secret.

NAME.toml is a channel joined: without it NAME.secret is nothing, so joining writes the
secret first and leaving removes it last. Both are private files, written whole and
under one lock. The environment and the working directory are given, never read.

The client asks here, at each store, with which channels a file is to be shared
(`share_list`), so nothing but `load_channel` and what joins imports cryptography.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from kachery_p2p.channels.channel import Channel, check_channel_name, parse_secret
from kachery_p2p.channels.channel_file import (
    KIND,
    SECRET_ENV,
    ChannelFile,
    check_bootstrap,
    check_secret_env,
    find_channel_file,
    is_path,
    read_channel_file,
)
from kachery_p2p.channels.disk import (
    check_private_directory,
    explaining,
    locked,
    make_private_directory,
    read_private,
    sweep_temporary,
    sync_directory,
    write_private,
)
from kachery_p2p.errors import (
    ChannelError,
    ChannelSecretMissingError,
    ConfigError,
    KeyFileError,
    SecretMismatchError,
    StateCorruptError,
    StateVersionError,
    UnknownChannelError,
    WeakSecretError,
)
from kachery_p2p.limits import CHANNELS_MAX

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
    found = [_read(config_dir, name[:-5]) for name in names if name.endswith(".toml")]
    present = [channel for channel in found if channel is not None]
    return sorted(present, key=lambda channel: (channel.joined_at, channel.name))


def share_list(config_dir: str) -> list[str]:
    """Ids of the channels that a file is shared with when nobody says with which. Light."""
    return [channel.id for channel in joined(config_dir) if channel.shared_list]


def load_channel(config_dir: str, name: str) -> Channel:
    """The joined channel `name` with its keys.

    Raises UnknownChannelError if it was not joined, KeyFileError if its secret is gone
    or open to others, StateCorruptError if secret and id do not belong together.
    """
    known = joined_one(config_dir, name)
    channel = Channel.shared(_read_secret(config_dir, name), name)
    if channel.id != known.id:
        raise StateCorruptError(
            f"{secret_path(config_dir, name)} is not the secret of the channel in "
            f"{state_path(config_dir, name)}",
            hint=f"set {SECRET_ENV} to the channel's secret and run "
            f"`kachery-p2p channel rekey {name}`",
        )
    return channel


# --- joining and leaving ---------------------------------------------------------------------


def join_shared(
    config_dir: str,
    name: str,
    secret: str,
    bootstrap: Sequence[str] = (),
    secret_env: str = SECRET_ENV,
) -> Joined:
    """Join the channel `name` of those who share `secret`. Joining again changes nothing.

    Only the first channel joined enters the share list by itself. Raises WeakSecretError,
    and SecretMismatchError if the channel was joined with another secret.
    """
    channel = Channel.shared(parse_secret(secret), name)
    with _changing(config_dir):
        others = joined(config_dir)
        for known in others:
            if known.name == name:
                _check_same(known, channel)
                return known
        if len(others) >= CHANNELS_MAX:
            raise ChannelError(
                f"this node is in {CHANNELS_MAX} channels already",
                hint="leave one with `kachery-p2p channel leave NAME`",
            )
        new = Joined(
            name=name,
            id=channel.id,
            joined_at=int(time.time()),
            shared_list=not others,
            bootstrap=check_bootstrap(bootstrap, "bootstrap"),
            secret_env=check_secret_env(secret_env, "secret_env"),
        )
        _write_secret(config_dir, name, secret)
        _write(config_dir, new)
    return new


def rekey(config_dir: str, name: str, new_secret: str) -> tuple[str, str]:
    """Replace the secret of a joined channel: its old and its new id.

    The channel under the new secret is another channel: the caller moves the grants.
    After a power cut between the two files, doing it again mends both.
    """
    channel = Channel.shared(parse_secret(new_secret), name)
    with _changing(config_dir):
        known = joined_one(config_dir, name)
        _write_secret(config_dir, name, new_secret)
        _write(config_dir, known._replace(id=channel.id))
    return known.id, channel.id


def leave(config_dir: str, name: str) -> None:
    """Forget the channel `name` and its secret; works on damaged files too."""
    check_channel_name(name)
    with _changing(config_dir):
        try:
            os.unlink(state_path(config_dir, name))
        except FileNotFoundError:
            raise _unknown(name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(secret_path(config_dir, name))
        sync_directory(channels_dir(config_dir))


# --- from what the user typed to a channel -----------------------------------------------------


def resolve(
    name_or_path: str,
    config_dir: str,
    cwd: str,
    environ: Mapping[str, str],
    announce: Callable[[str], None] | None = None,
) -> Channel:
    """The channel that `--channel` means, joined if it was not yet.

    A channel joined under that name; else the one of cwd/channels/NAME.toml, or of
    CONFIG/channel-files/NAME.toml, or of the file given; else one of that name with the
    secret from the environment. `announce` is told the path of a channel file that
    was used.
    """
    file = _named_file(name_or_path, cwd)
    name = file.name if file else check_channel_name(name_or_path)
    known = _read(config_dir, name)
    if file is None and known is None:
        file = find_channel_file(name, channel_file_dirs(config_dir, cwd))
    if file is not None and announce is not None:
        announce(file.path)
    if known is None:
        file = file or ChannelFile(path="", name=name)
        join_shared(config_dir, name, _secret_for(file, environ), file.bootstrap, file.secret_env)
    else:
        _check_known(config_dir, known, file, environ)
    return load_channel(config_dir, name)


def channel_file_dirs(config_dir: str, cwd: str) -> tuple[str, ...]:
    """Where a channel file is looked for by its channel's name, in this order."""
    return (os.path.join(cwd, "channels"), os.path.join(config_dir, "channel-files"))


def _named_file(name_or_path: str, cwd: str) -> ChannelFile | None:
    if not is_path(name_or_path):
        return None
    return read_channel_file(os.path.join(cwd, name_or_path))


def _secret_for(file: ChannelFile, environ: Mapping[str, str]) -> str:
    secret = file.secret(environ)
    if secret is None:
        raise ChannelSecretMissingError(
            f"the secret of the channel {file.name} is not known: {file.secret_env} is not set",
            hint=f"set {file.secret_env} to the secret that the other members use; the first "
            f"member makes one with `kachery-p2p channel create {file.name} --shared`",
        )
    return secret


def _check_known(
    config_dir: str, known: Joined, file: ChannelFile | None, environ: Mapping[str, str]
) -> None:
    """A secret given again must be the same; a file given again may have new addresses."""
    says = file or ChannelFile(path="", name=known.name, secret_env=known.secret_env)
    secret = says.secret(environ)
    if secret is not None:
        _check_same(known, Channel.shared(parse_secret(secret), known.name))
    if file is None or (file.bootstrap, file.secret_env) == (known.bootstrap, known.secret_env):
        return
    with _changing(config_dir):
        now = joined_one(config_dir, known.name)
        _write(config_dir, now._replace(bootstrap=file.bootstrap, secret_env=file.secret_env))


def _check_same(known: Joined, channel: Channel) -> None:
    # Ids are public, so that comparing them may take any time.
    if known.id != channel.id:
        raise SecretMismatchError(
            f"this node joined the channel {known.name} with another secret",
            hint=f"unset {known.secret_env} to go on with the old one, or change to the new one "
            f"with `kachery-p2p channel rekey {known.name}`",
        )


# --- the files ----------------------------------------------------------------------------------


def channels_dir(config_dir: str) -> str:
    """The directory of the joined channels."""
    return os.path.join(config_dir, "channels")


def state_path(config_dir: str, name: str) -> str:
    """Where it says that the channel `name` is joined."""
    return os.path.join(channels_dir(config_dir), f"{name}.toml")


def secret_path(config_dir: str, name: str) -> str:
    """Where the secret of the joined channel `name` is."""
    return os.path.join(channels_dir(config_dir), f"{name}.secret")


@contextlib.contextmanager
def _changing(config_dir: str) -> Iterator[None]:
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
    found = _read(config_dir, check_channel_name(name))
    if found is None:
        raise _unknown(name)
    return found


def _unknown(name: str) -> UnknownChannelError:
    return UnknownChannelError(
        f"this node has not joined a channel {name}",
        hint=f"join it with `kachery-p2p start --channel {name}`",
    )


def _read_secret(config_dir: str, name: str) -> bytes:
    path = secret_path(config_dir, name)
    with explaining(path):
        try:
            return parse_secret(read_private(path))
        except (FileNotFoundError, WeakSecretError) as error:
            what = "missing" if isinstance(error, FileNotFoundError) else "damaged"
            raise KeyFileError(
                f"the secret of the channel {name} is {what}: {path}",
                hint=f"set {SECRET_ENV} to it and run `kachery-p2p channel rekey {name}`",
            ) from None


def _write_secret(config_dir: str, name: str, secret: str) -> None:
    write_private(secret_path(config_dir, name), secret.strip() + "\n")


def _read(config_dir: str, name: str) -> Joined | None:
    path = state_path(config_dir, name)
    with explaining(path):
        try:
            return _parse(read_private(path), name, path)
        except FileNotFoundError:
            return None


def _write(config_dir: str, channel: Joined) -> None:
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
        found.kind == KIND
        and found.name == name == check_channel_name(name)
        and isinstance(found.id, str)
        and len(found.id) == _ID_CHARS
        and not found.id.strip(_HEX_DIGITS)
        and type(found.joined_at) is int
        and type(found.shared_list) is bool
    )
    if not sound:
        raise ValueError(name)
    return found


def _corrupt(name: str, path: str) -> StateCorruptError:
    return StateCorruptError(
        f"{path} is damaged",
        hint=f"`kachery-p2p channel leave {name}` removes it; then join again with the secret",
    )
