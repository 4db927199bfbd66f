"""Other users of this computer who may use the node: the members of one Unix group."""

from __future__ import annotations

import grp
import os
import pwd
from typing import NamedTuple

import trio

from kachery_p2p.errors import ConfigError, DaemonAuthError
from kachery_p2p.limits import DOOR_GROUPS_S_MAX

# A directory server that hangs must not use up the threads of everything else.
_ASKING = trio.CapacityLimiter(2)


class Group(NamedTuple):
    """A Unix group."""

    name: str
    gid: int


def group_named(name: str) -> Group:
    """The group of that name. ConfigError if there is none."""
    try:
        return Group(name, grp.getgrnam(name).gr_gid)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"there is no group {name[:64]!r} on this computer",
            hint="`getent group` lists them; give another with --auth-group",
        ) from error


def give_to_group(path: str, descriptor: int, group: Group, mode: int) -> None:
    """Give the opened file or directory to the group, with this mode."""
    try:
        os.fchown(descriptor, -1, group.gid)
    except PermissionError as error:
        raise ConfigError(
            f"{path} cannot be given to the group {group.name}: you are not in it",
            hint=f"`sudo usermod -aG {group.name} {user_name(os.geteuid())}`, then log in again",
        ) from error
    os.fchmod(descriptor, mode)


async def is_in_group(uid: int, group: Group) -> bool:
    """Whether the system's list of users says so now. DaemonAuthError if it takes too long."""
    with trio.move_on_after(DOOR_GROUPS_S_MAX):
        return await trio.to_thread.run_sync(
            _is_member, uid, group.gid, limiter=_ASKING, abandon_on_cancel=True
        )
    raise DaemonAuthError(
        "it could not be found out in time which groups you are in", hint="try again later"
    )


def _is_member(uid: int, gid: int) -> bool:
    try:
        user = pwd.getpwuid(uid)
        return gid in os.getgrouplist(user.pw_name, user.pw_gid)
    except (KeyError, OSError):
        return False


def user_name(uid: int) -> str:
    """The user's name, or the number if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
