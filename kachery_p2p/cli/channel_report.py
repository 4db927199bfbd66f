"""What the disk knows of a channel, for people: `channel show` and `channel members`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from kachery_p2p.channels.channel import SHARED
from kachery_p2p.channels.files import joined_one
from kachery_p2p.channels.history import History
from kachery_p2p.channels.owned import load_channel_key, load_history
from kachery_p2p.channels.permissions import ACTIONS
from kachery_p2p.client.wording import counted, human_seconds, printable
from kachery_p2p.errors import ChannelError, ConfigError, KeyFileError
from kachery_p2p.identity.keyring import load
from kachery_p2p.identity.keys import NodeId

WIDTH = 11


def described(config_dir: str, name: str) -> dict[str, Any]:
    """Everything about one channel, as `channel show --json` prints it."""
    known = joined_one(config_dir, name)
    told: dict[str, Any] = {
        "name": known.name,
        "id": known.id,
        "kind": known.kind,
        "shared_list": known.shared_list,
        "bootstrap": list(known.bootstrap),
    }
    if known.kind == SHARED:
        return told
    history = load_history(config_dir, name)
    roster = history.roster
    me = _this_node(config_dir)
    told.update(
        {
            "owner_calls_it": roster.name,
            "keeper": roster.keeper,
            "is_keeper": load_channel_key(config_dir, known.id) is not None,
            "roles": sorted(roster.roles_of(me)) if me is not None else [],
            "members": len(roster.members),
            "bootstrap": [*known.bootstrap, *roster.bootstrap],
            "bucket": roster.bucket,
            "not_after": roster.not_after,
            "successor": roster.successor,
            "entries": history.size,
            "signed_at": None if history.head is None else history.head.time_ms // 1000,
            "forked": history.fork is not None,
        }
    )
    return told


def _this_node(config_dir: str) -> NodeId | None:
    try:
        return load(config_dir).node_id
    except KeyFileError:
        return None


def described_lines(told: dict[str, Any]) -> Iterator[str]:
    """The lines of `channel show`."""
    yield _line("channel", told["name"])
    yield _line("id", told["id"])
    if told["kind"] == SHARED:
        yield _line("kind", "entered with a shared secret; nobody owns it")
    else:
        yield from _owned_lines(told)
    for address in told["bootstrap"]:
        yield _line("bootstrap", address)
    if told["shared_list"]:
        yield _line("sharing", "what is stored is shared here")


def _owned_lines(told: dict[str, Any]) -> Iterator[str]:
    keeper = told["keeper"] or "unknown until the first contact with a member"
    yield _line("keeper", "this node" if told["is_keeper"] else keeper)
    yield _line("members", f"{counted(told['members'], 'node')}")
    yield _line("this node", f"may {', '.join(told['roles'])}" if told["roles"] else "no member")
    if told["bucket"]:
        yield _line("bucket", told["bucket"])
    if told["successor"]:
        yield _line("successor", told["successor"])
    if told["not_after"]:
        yield _line("admits", f"until {time.strftime('%Y-%m-%d', _day(told['not_after']))}")
    if told["signed_at"] is not None:
        age_s = max(0.0, time.time() - told["signed_at"])
        yield _line("history", f"{told['entries']} entries, signed {human_seconds(age_s)} ago")
    if told["forked"]:
        yield _line("problem", "its key has signed two histories: ask the keeper which is right")


def _day(seconds: int) -> time.struct_time:
    # What a hostile keeper may say is bounded, but beyond what some systems can show.
    return time.gmtime(min(seconds, 253_402_300_799))


def members_of(config_dir: str, name: str) -> list[dict[str, Any]]:
    """The members of an owned channel, as `channel members --json` prints them."""
    history = _owned_history(config_dir, name)
    return [
        {
            "node_id": member.node,
            "label": member.label,
            "roles": sorted(member.roles, key=_ROLE_ORDER.index),
            "keeper": member.node == history.roster.keeper,
        }
        for member in history.roster.members.values()
    ]


_ROLE_ORDER = ("read", "provide", "write", "task", "admin")
assert frozenset(_ROLE_ORDER) == ACTIONS


def member_lines(told: list[dict[str, Any]]) -> Iterator[str]:
    """The lines of `channel members`."""
    for member in told:
        keeper = "  keeper" if member["keeper"] else ""
        roles = ",".join(member["roles"])
        yield printable(f"{member['node_id']}  {roles}  {member['label']}{keeper}")


def find_member(config_dir: str, name: str, text: str) -> NodeId:
    """The node that `text` means: its id in either form, the beginning of it, or a label.

    ChannelError if that is no member, or more than one. A whole id need not be a member's.
    """
    members = _owned_history(config_dir, name).roster.members
    try:
        return NodeId.parse(text)
    except ConfigError:
        pass
    found = [m.node for m in members.values() if m.label == text or m.node.startswith(text)]
    if len(found) != 1:
        raise ChannelError(
            f"{counted(len(found), 'member')} of {name} may be meant by {text[:64]!a}",
            hint=f"`kachery-p2p channel members {name}` prints their ids",
        )
    return found[0]


def _owned_history(config_dir: str, name: str) -> History:
    known = joined_one(config_dir, name)
    if known.kind == SHARED:
        raise ChannelError(
            f"{name} is entered with a shared secret: there is no list of its members",
            hint="`kachery-p2p status` shows who is connected",
        )
    return load_history(config_dir, name)


def _line(what: str, text: str) -> str:
    return f"{what:{WIDTH}}{printable(text)}"
