"""The keys of access groups on disk: CONFIG/keys/group-ID.key, 0600, one for each group held.

Beside the node's key, so that `keys backup` has them: without its key, nobody reads what
was encrypted for a group. Written whole and made durable before the old one is gone.
Format, one `name value` pair a line:

    kachery-p2p-group-key 1
    group <26 letters and digits>
    name <what the group is called on this node>
    owner <64 hex>                 who made it
    random <32 hex>                with which the owner made the id
    epoch <number>                 the newest
    top <number>                   the epoch of the key
    key <64 hex>                   secret
    member <64 hex> <64 hex>       on the owner's node, for each: node, its X25519 key
    sha256 <64 hex>                of all lines above, so that damage is noticed
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from types import MappingProxyType
from typing import NamedTuple

from kachery_p2p.errors import AccessGroupError, InvalidNameError, KeyFileError, StateVersionError
from kachery_p2p.identity.access_groups import Group, GroupId
from kachery_p2p.identity.disk import (
    check_private,
    make_private_directories,
    read_private,
    sync_directory,
    write_durably,
)
from kachery_p2p.identity.keyring import keys_dir, reading_key
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import GROUP_EPOCHS_MAX, GROUP_MEMBERS_MAX, GROUPS_MAX

KEY_FILE_VERSION = 1

_HEADER = "kachery-p2p-group-key"
_WHAT = "key of the access group"
_TEMP_PREFIX = ".group.key."
_FILE = re.compile(r"group-([a-z2-7]{26})\.key")
_NAME = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.-]{0,63}")
_FIELDS = re.compile(
    rf"{_HEADER} {KEY_FILE_VERSION}\n"
    r"group ([a-z2-7]{26})\n"
    rf"name ({_NAME.pattern})\n"
    r"owner ([0-9a-f]{64})\n"
    r"random ([0-9a-f]{32})\n"
    r"epoch ([0-9]{1,4})\n"
    r"top ([0-9]{1,4})\n"
    r"key ([0-9a-f]{64})\n"
    r"((?:member [0-9a-f]{64} [0-9a-f]{64}\n)*)"
)


class HeldGroup(NamedTuple):
    """A group as this node has it."""

    # What it is called here.
    name: str
    group: Group
    # On the owner's node, the others: node and X25519 key.
    members: Mapping[NodeId, bytes] = MappingProxyType({})

    def encode(self) -> bytes:
        """The bytes of the key file."""
        assert len(self.members) <= GROUP_MEMBERS_MAX
        group = self.group
        lines = [
            f"{_HEADER} {KEY_FILE_VERSION}",
            f"group {group.id}",
            f"name {check_group_name(self.name)}",
            f"owner {group.owner}",
            f"random {group.random.hex()}",
            f"epoch {group.epoch}",
            f"top {group.top}",
            f"key {group.key.hex()}",
            *(f"member {node} {exchange.hex()}" for node, exchange in self.members.items()),
        ]
        body = ("\n".join(lines) + "\n").encode("ascii")
        return body + f"sha256 {sha256(body).hexdigest()}\n".encode("ascii")

    @classmethod
    def decode(cls, data: bytes, group_id: str, where: str) -> HeldGroup:
        """What the bytes of a key file say. KeyFileError, naming `where`, if they are damaged."""
        body, mark, check = data.rpartition(b"sha256 ")
        text = body.decode("ascii", "replace")
        _check_version(text or data.decode("ascii", "replace"), where)
        found = _FIELDS.fullmatch(text)
        if found is not None and mark and check == sha256(body).hexdigest().encode() + b"\n":
            name, owner, random, epoch, top, key, members = found.groups()[1:]
            group = Group(
                NodeId(owner), bytes.fromhex(random), int(epoch), int(top), bytes.fromhex(key)
            )
            sound = 1 <= group.epoch <= group.top <= GROUP_EPOCHS_MAX
            if sound and group.id == found[1] == group_id:
                return cls(name, group, MappingProxyType(_members(members)))
        # Never quote the file: what is left of it may still be the secret.
        raise KeyFileError(
            f"{where} is damaged, or no key of this access group",
            hint="restore it from a backup, or move it away and ask for a new invitation",
        )


def check_group_name(name: str) -> str:
    """`name` if a group can be called so; else InvalidNameError."""
    if _NAME.fullmatch(name):
        return name
    raise InvalidNameError(
        f"{name[:64]!a} cannot name an access group",
        hint="use 1 to 64 of the letters a-z and A-Z, digits, and _ . -",
    )


def group_path(config_dir: str, group_id: str) -> str:
    """Where the key of the group lies."""
    return f"{keys_dir(config_dir)}/group-{group_id}.key"


def held_groups(config_dir: str) -> list[HeldGroup]:
    """All groups that this node holds, by name. KeyFileError if one is damaged or not private."""
    try:
        names = os.listdir(keys_dir(config_dir))
    except FileNotFoundError:
        return []
    except OSError as error:
        with reading_key(keys_dir(config_dir), _WHAT):
            raise error
    ids = [found[1] for name in names if (found := _FILE.fullmatch(name))]
    return sorted((_load(config_dir, one) for one in ids), key=lambda held: held.name)


def find_by_id(config_dir: str, group_id: str) -> HeldGroup | None:
    """The group with this id, if this node holds it; raises as `held_groups`."""
    if not re.fullmatch("[a-z2-7]{26}", group_id):
        return None
    if not os.path.lexists(group_path(config_dir, group_id)):
        return None
    return _load(config_dir, group_id)


def find(config_dir: str, name: str) -> HeldGroup | None:
    """The group of this name on this node, or with this id; raises as `held_groups`."""
    for held in held_groups(config_dir):
        if held.name == name:
            return held
    return find_by_id(config_dir, name)


def save(config_dir: str, held: HeldGroup) -> None:
    """Make or replace the key file, durably. Only while `changing`.

    AccessGroupError if another group has the name, or there are too many.
    """
    others = [one for one in held_groups(config_dir) if one.group.id != held.group.id]
    if any(held.name in (one.name, one.group.id) for one in others):
        raise AccessGroupError(
            f"this node has another access group called {held.name}",
            hint="give this one another name with `--as NAME`",
        )
    if len(others) >= GROUPS_MAX:
        raise AccessGroupError(
            f"this node is in {GROUPS_MAX} access groups already",
            hint="leave one with `kachery-p2p group leave NAME`",
        )
    directory, path = keys_dir(config_dir), group_path(config_dir, held.group.id)
    with reading_key(path, _WHAT):
        temp = f"{directory}/{_TEMP_PREFIX}{os.urandom(8).hex()}"
        write_durably(temp, held.encode())
        try:
            os.rename(temp, path)
        except BaseException:
            os.unlink(temp)
            raise
        sync_directory(directory)


def remove(config_dir: str, group_id: str) -> None:
    """Forget the key of the group, for good. Only while `changing`."""
    path = group_path(config_dir, group_id)
    with reading_key(path, _WHAT), contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        sync_directory(keys_dir(config_dir))


@contextlib.contextmanager
def changing(config_dir: str) -> Iterator[None]:
    """No other process changes groups meanwhile; the directory of keys is there, and private."""
    directory = keys_dir(config_dir)
    with reading_key(directory, _WHAT):
        make_private_directories(config_dir, directory)
        check_private(directory, os.lstat(directory), 0o700)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _sweep(directory)
        yield
    finally:
        os.close(descriptor)


def _load(config_dir: str, group_id: str) -> HeldGroup:
    path = group_path(config_dir, GroupId(group_id))
    with reading_key(path, _WHAT):
        check_private(keys_dir(config_dir), os.lstat(keys_dir(config_dir)), 0o700)
        return HeldGroup.decode(read_private(path), group_id, path)


def _members(lines: str) -> dict[NodeId, bytes]:
    pairs = (line.split()[1:] for line in lines.splitlines())
    return {NodeId(node): bytes.fromhex(exchange) for node, exchange in pairs}


def _check_version(text: str, where: str) -> None:
    header, _, version = text.partition("\n")[0].partition(" ")
    is_number = version.isascii() and version.isdigit() and len(version) < 10
    if header == _HEADER and is_number and int(version) > KEY_FILE_VERSION:
        raise StateVersionError(
            f"{where} was written by a newer kachery_p2p (format {version}, "
            f"not {KEY_FILE_VERSION})",
            hint="upgrade kachery_p2p",
        )


def _sweep(directory: str) -> None:
    """Remove what a killed process left. Only while `changing`."""
    for name in os.listdir(directory):
        if name.startswith(_TEMP_PREFIX):
            with contextlib.suppress(OSError):
                os.unlink(f"{directory}/{name}")
