"""Owned channels on this node's disk: entering, keeping, handing over.

    CONFIG/channels/NAME.toml      joined (`joined`)
    CONFIG/channels/NAME.secret    the entry secret, in hex
    CONFIG/channels/NAME.history   `History.encode`, written whole
    CONFIG/channels/NAME.invites   invites that this node made (`invite_book`)
    CONFIG/keys/channel-ID.key     the channel's key, on the keeper's node only

All private files. What a channel cannot be without is written before NAME.toml says that
it is joined, so a process killed anywhere leaves a channel joined or not.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from kachery_p2p.channels.changes import Change, Created, HandedOver, MemberSet
from kachery_p2p.channels.channel import (
    OWNED,
    SECRET_BYTES,
    Channel,
    check_channel_name,
    entry_check,
)
from kachery_p2p.channels.channel_file import check_bootstrap
from kachery_p2p.channels.disk import (
    explaining,
    read_private,
    read_private_bytes,
    write_private,
    write_private_bytes,
)
from kachery_p2p.channels.history import History
from kachery_p2p.channels.joined import (
    Joined,
    changing,
    history_path,
    joined,
    joined_one,
    secret_path,
    state_path,
    write_joined,
)
from kachery_p2p.channels.keeper import Asked, Keeper, self_member
from kachery_p2p.channels.succession import check_may_succeed, check_succession, succession
from kachery_p2p.errors import ChannelError, KeyFileError, StateCorruptError
from kachery_p2p.identity import channel_keys
from kachery_p2p.identity.channel_keys import ChannelKey
from kachery_p2p.identity.keys import KEY_BYTES, NodeKey
from kachery_p2p.identity.sealed import SALT_BYTES, seal, unseal
from kachery_p2p.limits import (
    CHANNEL_LIFE_S,
    CHANNEL_NAME_CHARS_MAX,
    CHANNELS_MAX,
    HISTORY_BYTES_MAX,
)

# Lengths of the entries, head, fork proof.
_HISTORY_FILE_BYTES_MAX = HISTORY_BYTES_MAX + (1 << 20)
_SECRET_HINT = "leave the channel and ask an admin to invite this node again"  # noqa: S105 (words)
_REQUEST_BYTES = 16


# --- creating and entering ---------------------------------------------------------------------


def create_owned(config_dir: str, name: str, node_key: NodeKey, label: str, now: float) -> Joined:
    """Make a private channel of which this node is the keeper and the only member.

    ChannelError if a channel of that name is joined. Only the first channel joined enters
    the share list by itself.
    """
    check_channel_name(name)
    with changing(config_dir):
        _check_free(joined(config_dir), name)
        key = ChannelKey(os.urandom(KEY_BYTES))
        secret = os.urandom(SECRET_BYTES)
        check = entry_check(key.node_id, secret)
        changes: list[Change] = [
            Created(name, check, int(now) + CHANNEL_LIFE_S),
            MemberSet(self_member(node_key, label)),
        ]
        keeper = Keeper(History.empty(key.node_id), key)
        history = keeper.founded(_asked(changes, node_key), int(now * 1000))
        channel_keys.save(config_dir, key)
        return _enter(config_dir, name, secret, history, int(now))


def join_owned(
    config_dir: str,
    channel_id: str,
    entry_secret: bytes,
    name: str,
    history: History | None = None,
    *,
    now: float,
    bootstrap: Sequence[str] = (),
) -> Joined:
    """Join the channel that this node was admitted to, under the alias `name`.

    A channel joined already keeps its alias. ChannelError if another one has that name, or
    if the history says that this is not the channel's entry secret.
    """
    check_channel_name(name)
    history = history or History.empty(channel_id)
    _check_secret(history, entry_secret)
    with changing(config_dir):
        others = joined(config_dir)
        for known in others:
            if known.id == channel_id:
                # Admitted once more: what was damaged is mended.
                write_private(secret_path(config_dir, known.name), entry_secret.hex() + "\n")
                return known
        _check_free(others, name)
        return _enter(config_dir, name, entry_secret, history, int(now), tuple(bootstrap))


def _enter(
    config_dir: str,
    name: str,
    secret: bytes,
    history: History,
    now: int,
    bootstrap: tuple[str, ...] = (),
) -> Joined:
    """Write a channel's files; only while `changing`."""
    new = Joined(
        name=name,
        id=history.channel_id,
        joined_at=now,
        shared_list=not joined(config_dir),
        bootstrap=check_bootstrap(bootstrap, "bootstrap"),
        kind=OWNED,
        invited=bool(bootstrap),
    )
    with explaining(state_path(config_dir, name)):
        write_private(secret_path(config_dir, name), secret.hex() + "\n")
        write_private_bytes(history_path(config_dir, name), history.encode())
        write_joined(config_dir, new)
    return new


def _check_free(others: Sequence[Joined], name: str) -> None:
    if any(known.name == name for known in others):
        raise ChannelError(
            f"this node has joined a channel {name} already",
            hint="give the new one another name here with `--as NAME`",
        )
    if len(others) >= CHANNELS_MAX:
        raise ChannelError(
            f"this node is in {CHANNELS_MAX} channels already",
            hint="leave one with `kachery-p2p channel leave NAME`",
        )


# --- what a member has -----------------------------------------------------------------------


def load_owned(config_dir: str, known: Joined) -> Channel:
    """The joined channel with its keys. KeyFileError if the secret is gone or not private."""
    assert known.kind == OWNED
    return Channel.owned(known.id, load_entry_secret(config_dir, known.name), known.name)


def load_entry_secret(config_dir: str, name: str) -> bytes:
    """The entry secret of the joined channel, which only who is admitted is told."""
    path = secret_path(config_dir, name)
    with explaining(path):
        try:
            secret = bytes.fromhex(read_private(path).strip())
        except (FileNotFoundError, ValueError):
            secret = b""
    if len(secret) != SECRET_BYTES:
        raise KeyFileError(
            f"the entry secret of the channel {name} is missing or damaged: {path}",
            hint=_SECRET_HINT,
        )
    return secret


def load_history(config_dir: str, name: str) -> History:
    """The history of the joined channel as far as it is known here; empty if not at all.

    StateCorruptError if it is damaged, StateVersionError if it is from a newer version.
    """
    known = joined_one(config_dir, name)
    path = history_path(config_dir, name)
    with explaining(path):
        try:
            data = read_private_bytes(path, _HISTORY_FILE_BYTES_MAX)
        except FileNotFoundError:
            return History.empty(known.id)
    try:
        return History.decode(data, known.id)
    except StateCorruptError as error:
        raise StateCorruptError(f"{path} is damaged", hint=error.hint) from None


def save_history(config_dir: str, name: str, history: History) -> None:
    """Make the history durable. UnknownChannelError if the channel was left meanwhile."""
    with changing(config_dir):
        known = joined_one(config_dir, name)
        if known.id != history.channel_id:
            raise ChannelError(f"the channel {name} is another one by now")
        path = history_path(config_dir, name)
        with explaining(path):
            write_private_bytes(path, history.encode())


def _check_secret(history: History, secret: bytes) -> None:
    if len(secret) != SECRET_BYTES:
        raise ChannelError(f"an entry secret has {SECRET_BYTES} bytes")
    check = history.roster.secret_check
    if check and check != entry_check(history.channel_id, secret):
        raise ChannelError(
            "the node that let this one in gave it a wrong entry secret",
            hint="ask another admin for an invite",
        )


# --- the channel's key -----------------------------------------------------------------------


def load_channel_key(config_dir: str, channel_id: str) -> ChannelKey | None:
    """The channel's key; None if this node is not its keeper."""
    return channel_keys.load(config_dir, channel_id)


def export_key(config_dir: str, name: str, passphrase: str) -> str:
    """The channel's key, sealed with the passphrase, as text for `import_key`.

    KeyFileError if it is not here; PassphraseError if the passphrase is too short.
    """
    known = joined_one(config_dir, name)
    key = load_channel_key(config_dir, known.id)
    if key is None:
        raise KeyFileError(
            f"the key of the channel {name} is not on this node",
            hint=f"`kachery-p2p channel show {name}` says which node is the keeper",
        )
    files = {channel_keys.channel_key_name(known.id): key.encode()}
    return seal(files, passphrase, os.urandom(SALT_BYTES))


def import_key(config_dir: str, name: str, text: str, passphrase: str) -> ChannelKey:
    """Put the key of a joined channel here; `Keeper.taken_over` then says so to the members.

    KeyFileError if the text is no key of this channel; PassphraseError if the passphrase is
    wrong. Two nodes that keep one channel will fork it: the other must have stopped for good.
    """
    known = joined_one(config_dir, name)
    files = unseal(text, passphrase)
    wanted = channel_keys.channel_key_name(known.id)
    if set(files) != {wanted}:
        raise KeyFileError(f"the text does not hold the key of the channel {name}, or not it alone")
    key = ChannelKey.decode(files[wanted], known.id, "the exported key")
    with changing(config_dir):
        channel_keys.save(config_dir, key)
    return key


# --- succession ------------------------------------------------------------------------------


def succeed_owned(
    config_dir: str, name: str, node_key: NodeKey, label: str, now: float
) -> tuple[str, Joined]:
    """Let the channel go on under a new key of this node: its old id, and what is joined now.

    Same members, same entry secret, same alias; the caller moves the grants. The old channel
    stays joined, as NAME.old, for those who have not heard of it. If its key is here, its
    history ends with a pointer to the new one; else SuccessionError unless this node is the
    named successor and the keeper has been silent for SUCCESSION_AFTER_S. Doing it again
    after a power cut finishes it.
    """
    old = load_history(config_dir, name)
    begun = old.roster.succeeds
    if begun is None or _unended(config_dir, begun.old_id) is None:
        begun_at = old.channel_id
        new = _founded(config_dir, name, old, node_key, label, now)
        _keep_as_old(config_dir, name)
        _replace(config_dir, name, begun_at, new)
    else:
        begun_at = begun.old_id
    _end(config_dir, begun_at, joined_one(config_dir, name).id, node_key, now)
    return begun_at, joined_one(config_dir, name)


def follow_successor(config_dir: str, name: str, new: History, now: float) -> tuple[str, Joined]:
    """Go on with the channel that continues a joined one: its old id, and what is joined now.

    SuccessionError unless the old history, as it is known here, says that it may.
    """
    old = load_history(config_dir, name)
    check_succession(old, new, int(now * 1000))
    _check_secret(new, load_entry_secret(config_dir, name))
    return old.channel_id, _replace(config_dir, name, old.channel_id, new)


def _founded(
    config_dir: str, name: str, old: History, node_key: NodeKey, label: str, now: float
) -> History:
    """The history of a new channel that continues `old`; its key is here, durably."""
    if load_channel_key(config_dir, old.channel_id) is None:
        check_may_succeed(old, node_key.node_id, int(now * 1000))
    key = ChannelKey(os.urandom(KEY_BYTES))
    check = entry_check(key.node_id, load_entry_secret(config_dir, name))
    changes = succession(old, key.node_id, node_key, label, check, int(now))
    keeper = Keeper(History.empty(key.node_id), key)
    new = keeper.founded(_asked(changes, node_key), int(now * 1000))
    with changing(config_dir):
        channel_keys.save(config_dir, key)
    return new


def _keep_as_old(config_dir: str, name: str) -> None:
    """Join the channel under a second alias, to which no file is shared by itself."""
    with changing(config_dir):
        known = joined_one(config_dir, name)
        others = {other.name: other.id for other in joined(config_dir)}
        stem = f"{name[: CHANNEL_NAME_CHARS_MAX - 8]}.old"
        names = [stem, *(f"{stem}{number}" for number in range(2, CHANNELS_MAX + 2))]
        alias = next(one for one in names if others.get(one, known.id) == known.id)
        with explaining(state_path(config_dir, alias)):
            for path_of in (secret_path, history_path):
                data = read_private_bytes(path_of(config_dir, name), _HISTORY_FILE_BYTES_MAX)
                write_private_bytes(path_of(config_dir, alias), data)
            write_joined(config_dir, known._replace(name=alias, shared_list=False))


def _replace(config_dir: str, name: str, old_id: str, new: History) -> Joined:
    """Let the alias stand for another channel."""
    with changing(config_dir):
        known = joined_one(config_dir, name)
        if known.id != old_id:
            raise ChannelError(f"the channel {name} is another one by now")
        replaced = known._replace(id=new.channel_id)
        with explaining(state_path(config_dir, name)):
            write_private_bytes(history_path(config_dir, name), new.encode())
            write_joined(config_dir, replaced)
    return replaced


def _unended(config_dir: str, old_id: str) -> str | None:
    """The alias of the old channel if its key is here and its history does not end yet."""
    if load_channel_key(config_dir, old_id) is None:
        return None
    for known in joined(config_dir):
        if known.id == old_id and not load_history(config_dir, known.name).roster.handed_over:
            return known.name
    return None


def _end(config_dir: str, old_id: str, new_id: str, node_key: NodeKey, now: float) -> None:
    """Let the old channel's history end with the pointer to the new one, if its key is here."""
    alias, old_key = _unended(config_dir, old_id), load_channel_key(config_dir, old_id)
    if alias is None or old_key is None:
        return
    ending: list[Change] = [HandedOver(new_id)]
    keeper = Keeper(load_history(config_dir, alias), old_key)
    save_history(config_dir, alias, keeper.recorded(_asked(ending, node_key), int(now * 1000)))


def _asked(changes: Sequence[Change], node_key: NodeKey) -> list[Asked]:
    return [(change, node_key.node_id, os.urandom(_REQUEST_BYTES)) for change in changes]
