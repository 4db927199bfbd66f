"""What a member of a channel may do there.

A role gives one permission of the same name; a member has a set of roles. In a channel
entered with a shared secret all members are alike and nobody is in charge; channels
with an owner give each member roles of its own.
"""

from __future__ import annotations

from typing import NamedTuple, NoReturn

from kachery_p2p.errors import ChannelError

# Fetch contents, and read feeds.
READ = "read"
# Serve contents to other members.
PROVIDE = "provide"
# Submit messages to feeds that let members write.
WRITE = "write"
# Ask others to compute, and compute for others.
TASK = "task"
# Admit and remove members.
ADMIN = "admin"

ACTIONS = frozenset({READ, PROVIDE, WRITE, TASK, ADMIN})
SHARED_MEMBER_ROLES = ACTIONS - {ADMIN}


class Membership(NamedTuple):
    """A node's place in one channel."""

    channel_id: str
    roles: frozenset[str]


def shared_membership(channel_id: str) -> Membership:
    """What everybody is who has proved to know a channel's shared secret."""
    return Membership(channel_id, SHARED_MEMBER_ROLES)


def may(roles: frozenset[str], action: str) -> bool:
    """True if a member with these roles may do `action`. A role we do not know allows nothing."""
    assert action in ACTIONS, action
    return action in roles


def remove_from_shared(channel_name: str) -> NoReturn:
    """Raises ChannelError: who has been told a secret cannot be made to forget it."""
    raise ChannelError(
        f"nobody can be removed from {channel_name}: it is entered with a shared secret",
        hint=f"generate a new secret with `kachery-p2p channel create {channel_name} --shared` and "
        f"run `kachery-p2p channel rekey {channel_name}` with it on every node that shall stay",
    )
