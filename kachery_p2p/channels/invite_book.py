"""The invites of this node: those it made (NAME.invites), and those it waits with (NAME.join).

Both are as good as an entry to the channel, so they are private files. An invite is
durable before anybody sees it, and its use before whoever used it is told the entry
secret: so it lets in one node, whatever is killed when.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from kachery_p2p.channels.channel import check_channel_name
from kachery_p2p.channels.disk import explaining, read_private, sync_directory, write_private
from kachery_p2p.channels.invites import INVITE_SECRET_BYTES, Invite, Issued
from kachery_p2p.channels.joined import (
    changing,
    channels_dir,
    invites_path,
    joined,
    pending_path,
)
from kachery_p2p.channels.permissions import ACTIONS
from kachery_p2p.errors import (
    ChannelError,
    ConfigError,
    InvalidNameError,
    InviteError,
    InviteExpiredError,
    InviteUsedError,
    StateCorruptError,
    StateVersionError,
)
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import INVITE_MEMORY_S, INVITES_BYTES_MAX, INVITES_PENDING_MAX

STATE_VERSION = 1
_PENDING_SUFFIX = ".join"


class InviteBook:
    """The invites that this node made to the channel it calls `name`."""

    def __init__(self, config_dir: str, name: str) -> None:
        self._config_dir = config_dir
        self._path = invites_path(config_dir, check_channel_name(name))
        # What the file was when it was read last: strangers make us look into it.
        self._read_as: tuple[int, int, int] | None = None
        self._issued: dict[bytes, Issued] = {}

    def issue(self, invite: Invite, roles: frozenset[str], now: float, *, since: int = 0) -> Issued:
        """Remember the invite, durably; only then may anybody see it.

        `since` is the size of the channel's history now: a node removed before may come back
        with an invite that is for it. ChannelError if far too many are waiting.
        """
        assert roles
        assert roles <= ACTIONS
        issued = Issued(invite.secret, int(now), invite.expires, invite.for_node, roles, since)
        with changing(self._config_dir):
            book = self._remembered(now)
            if len(book) >= INVITES_PENDING_MAX:
                raise ChannelError(
                    f"{INVITES_PENDING_MAX} invites to the channel are remembered already",
                    hint="they are forgotten a week after they end",
                )
            self._write({**book, issued.invite_id: issued})
        return issued

    def find(self, invite_id: bytes) -> Issued | None:
        """The invite of that id, used and expired ones too."""
        return self._read().get(invite_id)

    def use(self, invite_id: bytes, node: NodeId, now: float) -> Issued:
        """Let `node`, and no other from now on, enter with the invite; durably.

        The same node may use it again: its answer may have been lost. InviteError if there
        is no such invite or it is for another node, InviteUsedError, InviteExpiredError.
        """
        with changing(self._config_dir):
            book = self._remembered(now)
            issued = book.get(invite_id)
            if issued is None or issued.for_node not in (None, node):
                raise InviteError("there is no such invite for that node")
            if issued.used_by == node:
                return issued
            if issued.used_by is not None:
                raise InviteUsedError("another node has entered with this invite")
            if now > issued.expires:
                raise InviteExpiredError("the invite has expired")
            used = issued._replace(used_by=node)
            self._write({**book, invite_id: used})
        return used

    def pending(self, now: float) -> list[Issued]:
        """Invites that can still be used, the oldest first."""
        return [issued for issued in self._read().values() if issued.state(now) == "pending"]

    def _remembered(self, now: float) -> dict[bytes, Issued]:
        return {
            invite_id: issued
            for invite_id, issued in self._read().items()
            if now <= issued.expires + INVITE_MEMORY_S
        }

    def _read(self) -> dict[bytes, Issued]:
        with explaining(self._path):
            try:
                status = os.lstat(self._path)
            except FileNotFoundError:
                self._read_as, self._issued = None, {}
                return {}
            read_as = (status.st_ino, status.st_size, status.st_mtime_ns)
            if read_as != self._read_as:
                self._issued = _parse(read_private(self._path, INVITES_BYTES_MAX), self._path)
                self._read_as = read_as
        return self._issued

    def _write(self, book: dict[bytes, Issued]) -> None:
        import json

        table = {"version": STATE_VERSION, "invites": [_line(issued) for issued in book.values()]}
        with explaining(self._path):
            write_private(self._path, json.dumps(table, indent=1) + "\n")
        self._read_as = None


def _line(issued: Issued) -> dict[str, Any]:
    fields = issued._asdict()
    return {**fields, "secret": issued.secret.hex(), "roles": sorted(issued.roles)}


def _parse(text: str, path: str) -> dict[bytes, Issued]:
    import json

    try:
        table = json.loads(text)
        version = table["version"]
        if type(version) is int and version > STATE_VERSION:
            raise StateVersionError(
                f"{path} was written by a newer kachery-p2p (version {version}, "
                f"not {STATE_VERSION})",
                hint="upgrade kachery-p2p on this computer",
            )
        book = [_issued(line) for line in table["invites"]]
        if version != STATE_VERSION:
            raise ValueError(version)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ConfigError) as error:
        if isinstance(error, StateVersionError):
            raise
        raise StateCorruptError(
            f"{path} is damaged", hint="remove it: the invites that it has are then worth nothing"
        ) from None
    return {issued.invite_id: issued for issued in book}


def _issued(line: dict[str, Any]) -> Issued:
    """What a line says; ValueError, TypeError or ConfigError if a field is not what it must be."""
    nodes = [
        None if line[key] is None else NodeId.parse(line[key]) for key in ("for_node", "used_by")
    ]
    numbers = [line[key] for key in ("issued", "expires", "since")]
    secret, roles = bytes.fromhex(line["secret"]), frozenset(line["roles"])
    sound = len(secret) == INVITE_SECRET_BYTES and roles and roles <= ACTIONS
    if not sound or any(type(number) is not int for number in numbers):
        raise ValueError("invite")
    issued, expires, since = numbers
    return Issued(secret, issued, expires, nodes[0], roles, since, nodes[1])


# --- invites that this node waits with -----------------------------------------------------------


def add_pending_join(config_dir: str, name: str, invite: Invite) -> None:
    """Remember to enter with the invite, as the channel `name`, until this node was let in.

    ChannelError if another channel has that name here; nothing if this one is joined.
    """
    path = pending_path(config_dir, check_channel_name(name))
    with changing(config_dir):
        names = {known.id: known.name for known in joined(config_dir)}
        if invite.channel_id in names:
            return
        waiting = dict(pending_joins(config_dir))
        other = name in waiting and waiting[name].channel_id != invite.channel_id
        if name in names.values() or other:
            raise ChannelError(
                f"this node has, or waits for, another channel {name}",
                hint="give the new one another name here with `--as NAME`",
            )
        with explaining(path):
            write_private(path, invite.text + "\n")


def pending_joins(config_dir: str) -> list[tuple[str, Invite]]:
    """The channels that this node waits to be let into, by name."""
    directory = channels_dir(config_dir)
    with explaining(directory):
        try:
            files = sorted(os.listdir(directory))
        except FileNotFoundError:
            return []
    names = [file.removesuffix(_PENDING_SUFFIX) for file in files if file.endswith(_PENDING_SUFFIX)]
    return [(name, _read_pending(config_dir, name)) for name in names]


def drop_pending_join(config_dir: str, name: str) -> None:
    """Wait no more: this node was let in, or will not be."""
    path = pending_path(config_dir, check_channel_name(name))
    with changing(config_dir), explaining(path), contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        sync_directory(channels_dir(config_dir))


def _read_pending(config_dir: str, name: str) -> Invite:
    path = pending_path(config_dir, name)
    with explaining(path):
        text = read_private(path)
    try:
        check_channel_name(name)
        return Invite.parse(text)
    except (InviteError, InvalidNameError):
        raise StateCorruptError(
            f"{path} is damaged", hint="remove it, and join again with the invite"
        ) from None
