"""Entering and leaving channels on this node, and what `--channel` means.

What is joined is in `joined`; owned channels have more files (`owned`), and invites
(`invite_book`). The environment and the working directory are given, never read.

The client imports this at each store for `share_list`, so nothing but `load_channel` and
what joins imports cryptography.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from kachery_p2p.channels.channel import (
    OWNED,
    Channel,
    check_channel_name,
    parse_secret,
)
from kachery_p2p.channels.channel_file import (
    SECRET_ENV,
    ChannelFile,
    check_bootstrap,
    check_secret_env,
    find_channel_file,
    is_path,
    read_channel_file,
)
from kachery_p2p.channels.disk import explaining, read_private, sync_directory, write_private
from kachery_p2p.channels.joined import Joined as Joined
from kachery_p2p.channels.joined import (
    bucket_path,
    changing,
    history_path,
    invites_path,
    pending_path,
    read_joined,
    unknown_channel,
    write_joined,
)
from kachery_p2p.channels.joined import channels_dir as channels_dir
from kachery_p2p.channels.joined import joined as joined
from kachery_p2p.channels.joined import joined_one as joined_one
from kachery_p2p.channels.joined import secret_path as secret_path
from kachery_p2p.channels.joined import share_list as share_list
from kachery_p2p.channels.joined import state_path as state_path
from kachery_p2p.errors import (
    ChannelError,
    ChannelSecretMissingError,
    ConfigError,
    InviteError,
    KeeperLeavesError,
    KeyFileError,
    SecretMismatchError,
    StateCorruptError,
    WeakSecretError,
)
from kachery_p2p.limits import CHANNELS_MAX

if TYPE_CHECKING:
    from kachery_p2p.channels.bucket_settings import BucketSettings

INVITE_START = "kp2p-invite-"
_OF_JOINED = (secret_path, history_path, invites_path, pending_path, bucket_path)


def load_channel(config_dir: str, name: str) -> Channel:
    """The joined channel `name` with its keys.

    Raises UnknownChannelError if it was not joined, KeyFileError if its secret is gone
    or open to others, StateCorruptError if secret and id do not belong together.
    """
    known = joined_one(config_dir, name)
    if known.kind == OWNED:
        from kachery_p2p.channels.owned import load_owned

        return load_owned(config_dir, known)
    channel = Channel.shared(_read_secret(config_dir, name), name)
    if channel.id != known.id:
        raise StateCorruptError(
            f"{secret_path(config_dir, name)} is not the secret of the channel in "
            f"{state_path(config_dir, name)}",
            hint=f"set {SECRET_ENV} to the channel's secret and run "
            f"`kachery-p2p channel rekey {name}`",
        )
    return channel


def load_shared_secret(config_dir: str, name: str) -> bytes:
    """The secret of the joined channel `name`; KeyFileError if it is gone or open to others."""
    return _read_secret(config_dir, name)


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
    with changing(config_dir):
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
        write_joined(config_dir, new)
    return new


def rekey(config_dir: str, name: str, new_secret: str) -> tuple[str, str]:
    """Replace the secret of a joined shared-secret channel: its old and its new id.

    The channel under the new secret is another channel: the caller moves the grants.
    After a power cut between the two files, doing it again mends both.
    """
    channel = Channel.shared(parse_secret(new_secret), name)
    with changing(config_dir):
        known = joined_one(config_dir, name)
        if known.kind == OWNED:
            raise ChannelError(
                f"{name} is an owned channel: it has no secret that could be changed",
                hint=f"`kachery-p2p channel remove {name} NODE` puts a member out",
            )
        _write_secret(config_dir, name, new_secret)
        write_joined(config_dir, known._replace(id=channel.id))
    return known.id, channel.id


def leave(config_dir: str, name: str, *, force: bool = False) -> None:
    """Forget the channel `name` and all its files; works on damaged ones too.

    KeeperLeavesError if this node has the channel's key, which `force` destroys as well. A
    channel that this node only waits for is waited for no more.
    """
    check_channel_name(name)
    with changing(config_dir):
        paths = [state_path(config_dir, name), *(of(config_dir, name) for of in _OF_JOINED)]
        if not any(os.path.lexists(path) for path in (paths[0], pending_path(config_dir, name))):
            raise unknown_channel(name)
        _forget_key(config_dir, name, force=force)
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        sync_directory(channels_dir(config_dir))


def _forget_key(config_dir: str, name: str, *, force: bool) -> None:
    """KeeperLeavesError if the channel's key is here; with `force` it is here no more."""
    try:
        known = read_joined(config_dir, name)
    except ConfigError:
        return  # whatever key there is stays: nobody can say which it is
    if known is None or known.kind != OWNED:
        return
    from kachery_p2p.identity import channel_keys

    path = channel_keys.channel_key_path(config_dir, known.id)
    if not os.path.lexists(path) or _is_kept_elsewhere(config_dir, known):
        return
    if not force:
        raise KeeperLeavesError(
            f"this node is the keeper of {name}: without it nobody can be let in or removed",
            hint=f"`kachery-p2p channel export-key {name} FILE` first, for another member to "
            "import; --force destroys the key for ever",
        )
    channel_keys.remove(config_dir, known.id)


def _is_kept_elsewhere(config_dir: str, known: Joined) -> bool:
    """True if the same channel is joined under another name too."""
    return any(o.id == known.id and o.name != known.name for o in joined(config_dir))


# --- from what the user typed to a channel -----------------------------------------------------


def resolve(
    asked: str,
    config_dir: str,
    cwd: str,
    environ: Mapping[str, str],
    announce: Callable[[str], None] | None = None,
    label: str = "",
) -> Channel | None:
    """The channel that `--channel` means, joined if it was not yet; None if it is waited for.

    A channel joined under that name; else the one of cwd/channels/NAME.toml, or of
    CONFIG/channel-files/NAME.toml, or of the file given; else that of an invite, which is
    remembered until some member has let this node in; else one of that name with the
    secret from the environment; else a new private one, of which this node is the keeper.
    `announce` is told the path of a channel file that was used, and what was made.
    """
    tell = announce or (lambda line: None)
    if asked.lstrip().startswith(INVITE_START):
        return _resolve_invite(asked, config_dir, tell)
    file = _named_file(asked, cwd)
    name = file.name if file else check_channel_name(asked)
    known = read_joined(config_dir, name)
    if known is None and os.path.lexists(pending_path(config_dir, name)):
        # The channel that is waited for, not another one of that name.
        tell(f"waiting to be let into the channel {name}")
        return None
    if file is None and known is None:
        file = find_channel_file(name, channel_file_dirs(config_dir, cwd))
    if file is not None:
        tell(file.path)
    if known is not None:
        _check_known(config_dir, known, file, environ)
    elif file is None and not environ.get(SECRET_ENV):
        _create(config_dir, name, label, tell)
    else:
        file = file or ChannelFile(path="", name=name)
        secret = _secret_for(file, environ)
        join_shared(config_dir, name, secret, file.bootstrap, file.secret_env)
    if file is not None and file.bucket is not None:
        _note_bucket(config_dir, name, file.bucket)
    return load_channel(config_dir, name)


def channel_file_dirs(config_dir: str, cwd: str) -> tuple[str, ...]:
    """Where a channel file is looked for by its channel's name, in this order."""
    return (os.path.join(cwd, "channels"), os.path.join(config_dir, "channel-files"))


def _resolve_invite(text: str, config_dir: str, tell: Callable[[str], None]) -> Channel | None:
    from kachery_p2p.channels.invite_book import add_pending_join
    from kachery_p2p.channels.invites import Invite
    from kachery_p2p.identity.keyring import load_or_create

    invite = Invite.parse(text)
    for known in joined(config_dir):
        if known.id == invite.channel_id:
            return load_channel(config_dir, known.name)
    invite.check_time(time.time())
    invite.check_node(load_or_create(config_dir).node_id)
    add_pending_join(config_dir, invite.name, invite)
    tell(f"waiting to be let into the channel {invite.name}")
    return None


def _create(config_dir: str, name: str, label: str, tell: Callable[[str], None]) -> None:
    from kachery_p2p.channels.owned import create_owned
    from kachery_p2p.identity.keyring import load_or_create

    create_owned(config_dir, name, load_or_create(config_dir), label, time.time())
    tell(
        f"created channel {name} (private, owned by this node); invite others with "
        f"`kachery-p2p channel invite {name}`"
    )


def _note_bucket(config_dir: str, name: str, bucket: BucketSettings) -> None:
    """Take what the channel file says of a bucket, if this node was not told otherwise."""
    if not os.path.lexists(bucket_path(config_dir, name)):
        from kachery_p2p.channels.bucket_settings import write_bucket

        write_bucket(config_dir, name, bucket)


def _named_file(name_or_path: str, cwd: str) -> ChannelFile | None:
    if not is_path(name_or_path):
        return None
    return read_channel_file(os.path.join(cwd, name_or_path))


def _secret_for(file: ChannelFile, environ: Mapping[str, str]) -> str:
    if file.kind == OWNED:
        raise InviteError(
            f"the channel {file.name} is entered by invite, and this node has none",
            hint="ask an admin of the channel for one, and run `kachery-p2p channel join INVITE`",
        )
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
    if known.kind == OWNED or (file is not None and file.kind == OWNED):
        _check_known_owned(known, file, environ)
    else:
        says = file or ChannelFile(path="", name=known.name, secret_env=known.secret_env)
        secret = says.secret(environ)
        if secret is not None:
            _check_same(known, Channel.shared(parse_secret(secret), known.name))
    if file is None or (file.bootstrap, file.secret_env) == (known.bootstrap, known.secret_env):
        return
    with changing(config_dir):
        now = joined_one(config_dir, known.name)
        told = now._replace(bootstrap=file.bootstrap, secret_env=file.secret_env, invited=False)
        write_joined(config_dir, told)


def _check_known_owned(known: Joined, file: ChannelFile | None, environ: Mapping[str, str]) -> None:
    """The file, or a secret that is given, must be about the channel that was joined."""
    if file is None:
        # Whoever gives a secret expects those who have it, not a channel that is empty but for us.
        if environ.get(SECRET_ENV):
            raise SecretMismatchError(
                f"{known.name} is an owned channel of this node, and {SECRET_ENV} is set",
                hint=f"unset {SECRET_ENV} to go on with it, or leave it first with "
                f"`kachery-p2p channel leave {known.name}`",
            )
    elif (file.kind, file.id) not in ((known.kind, known.id), (known.kind, "")):
        raise ChannelError(
            f"{file.path} is about another channel than the {known.name} that this node joined",
            hint="`kachery-p2p channel list` shows ids; join the other one under another name",
        )


def _check_same(known: Joined, channel: Channel) -> None:
    # Ids are public, so that comparing them may take any time.
    if known.id != channel.id:
        raise SecretMismatchError(
            f"this node joined the channel {known.name} with another secret",
            hint=f"unset {known.secret_env} to go on with the old one, or change to the new one "
            f"with `kachery-p2p channel rekey {known.name}`",
        )


# --- secrets ------------------------------------------------------------------------------------


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
