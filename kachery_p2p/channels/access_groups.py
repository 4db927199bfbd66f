"""Access groups of this node: making them, letting others in and putting them out.

Whoever makes a group owns it, and alone lets others in. To remove a member is to begin an
epoch: what is encrypted from then on is not for them. What was encrypted before they can
read as long as they have it, as with any key that was ever given away.

The environment is never read; the clock is given.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from kachery_p2p.channels.group_invites import CARD_PREFIX, Card, GroupInvite
from kachery_p2p.channels.joined import joined
from kachery_p2p.errors import AccessGroupError, ConfigError, GroupInviteError
from kachery_p2p.identity import group_files, keyring
from kachery_p2p.identity.access_groups import RANDOM_BYTES, Group, older_key
from kachery_p2p.identity.group_files import HeldGroup, changing, check_group_name, held_groups
from kachery_p2p.identity.keys import KEY_BYTES, NodeId, NodeKey
from kachery_p2p.limits import GROUP_MEMBERS_MAX


class AccessGroup(NamedTuple):
    """An access group that this node holds the key of."""

    # What it is called on this node.
    name: str
    # What it is called in URIs.
    id: str
    # The node that made it, and alone lets others in.
    owner: str
    is_own: bool
    # One more than members were removed.
    epoch: int
    # The other members; None on a node that does not own the group, and is not told them.
    members: tuple[str, ...] | None


class Invited(NamedTuple):
    """The group as it is now, and the text that lets its members in (None: there are none)."""

    group: AccessGroup
    text: str | None


def groups(config_dir: str) -> list[AccessGroup]:
    """The groups that this node holds. KeyFileError if a key file is damaged or not private."""
    return [_shown(held) for held in held_groups(config_dir)]


def held(config_dir: str, name: str) -> HeldGroup:
    """The group called so here, or with this id. AccessGroupError if there is none."""
    found = group_files.find(config_dir, name)
    if found is None:
        raise unknown_group(name)
    return found


def unknown_group(name: str) -> AccessGroupError:
    """The error for a group that this node does not hold."""
    return AccessGroupError(
        f"this node holds no access group {name[:64]!a}",
        hint="`kachery-p2p group list` names those it holds, `kachery-p2p group create` makes one",
    )


def create(config_dir: str, name: str) -> AccessGroup:
    """Make a group of which this node is the owner and the only member.

    AccessGroupError if this node has a group of that name.
    """
    check_group_name(name)
    owner = keyring.load_or_create(config_dir).node_id
    group = Group.new(owner, os.urandom(RANDOM_BYTES), os.urandom(KEY_BYTES))
    with changing(config_dir):
        group_files.save(config_dir, made := HeldGroup(name, group))
    return _shown(made)


def add(
    config_dir: str, name: str, nodes: Sequence[str], now: float, met: Sequence[str] = ()
) -> Invited:
    """Let nodes in, each by its card, or by its id if it is in an owned channel with this one
    or among the `met` cards.

    The text is for these nodes, and nobody else can use it. A node that is in already gets
    it again. Raises GroupInviteError, AccessGroupError.
    """
    key = keyring.load_or_create(config_dir)
    cards = [card_of(config_dir, node, met) for node in nodes]
    with changing(config_dir):
        own = _own(config_dir, name, key)
        members = dict(own.members)
        for card in cards:
            if card.node == key.node_id:
                raise AccessGroupError("this node is in the group: it owns it")
            members[card.node] = card.exchange
        if len(members) > GROUP_MEMBERS_MAX:
            raise AccessGroupError(f"a group has at most {GROUP_MEMBERS_MAX} members")
        chosen = {card.node: card.exchange for card in cards}
        # Before it is saved: nobody is in whom nothing can be wrapped for.
        invite = GroupInvite.signed(own.group, own.name, chosen, key, int(now))
        group_files.save(config_dir, grown := own._replace(members=members))
    return Invited(_shown(grown), invite.text)


def invite(config_dir: str, name: str, now: float) -> Invited:
    """The text that gives all members the newest key; AccessGroupError if there are none."""
    key = keyring.load_or_create(config_dir)
    own = _own(config_dir, name, key)
    if not own.members:
        raise AccessGroupError(
            f"the access group {own.name} has no members but this node",
            hint=f"`kachery-p2p group add {own.name} NODE` lets others in",
        )
    return _invited(own, key, now)


def remove(config_dir: str, name: str, node: str, now: float) -> Invited:
    """Put a node out: a new epoch begins, whose key the text gives to the others.

    AccessGroupError if it is not in. What was encrypted before, it can still read.
    """
    key = keyring.load_or_create(config_dir)
    gone = NodeId.parse(node)
    with changing(config_dir):
        own = _own(config_dir, name, key)
        if gone not in own.members:
            raise AccessGroupError(
                f"node {gone} is not in the access group {own.name}",
                hint=f"`kachery-p2p group list {own.name}` says who is",
            )
        left = {one: exchange for one, exchange in own.members.items() if one != gone}
        smaller = own._replace(group=own.group.next_epoch(), members=left)
        group_files.save(config_dir, smaller)
    return _invited(smaller, key, now) if left else Invited(_shown(smaller), None)


def accept(config_dir: str, text: str, name: str | None = None) -> AccessGroup:
    """Take the key that the text has for this node; `name` is what to call the group here.

    Once more changes nothing. GroupInviteError if it is damaged, forged, for others, or older
    than what this node has.
    """
    invited = GroupInvite.parse(text)
    key = keyring.load_or_create(config_dir)
    if invited.owner == key.node_id:
        raise GroupInviteError("this node owns the group, so it has the newest key")
    group = invited.opened_by(key)
    with changing(config_dir):
        known = group_files.find_by_id(config_dir, group.id)
        if known is not None:
            _check_follows(known.group, group)
        called = name or (known.name if known is not None else invited.name)
        group_files.save(config_dir, taken := HeldGroup(check_group_name(called), group))
    return _shown(taken)


def leave(config_dir: str, name: str) -> AccessGroup:
    """Forget the key of a group, for good; what the group was."""
    with changing(config_dir):
        known = held(config_dir, name)
        group_files.remove(config_dir, known.group.id)
    return _shown(known)


def card(config_dir: str) -> str:
    """What others need to let this node into a group: its id and its key, signed."""
    return Card.text_of(keyring.load_or_create(config_dir))


def is_card(text: str) -> bool:
    """Whether the text says that it is the card of a node."""
    return text.strip().startswith(CARD_PREFIX)


def card_of(config_dir: str, node: str, met: Sequence[str] = ()) -> Card:
    """The card in the text; or by its id that of one that was `met`, or is in an owned channel."""
    if is_card(node):
        return Card.parse(node)
    try:
        wanted = NodeId.parse(node.strip())
    except ConfigError as error:
        raise GroupInviteError(
            str(error), hint="give a node id, or what `kachery-p2p group card` prints there"
        ) from None
    from kachery_p2p.channels.channel import OWNED
    from kachery_p2p.channels.owned import load_history

    for one in map(Card.parse, met):
        if one.node == wanted:
            return one
    for known in joined(config_dir):
        if known.kind == OWNED:
            # The history has only keys that their nodes signed.
            member = load_history(config_dir, known.name).roster.members.get(wanted)
            if member is not None:
                return Card(wanted, member.exchange)
    raise GroupInviteError(
        f"the key of node {wanted} is not known here: it is neither connected to this one, nor"
        " in an owned channel with it",
        hint="ask its user for what `kachery-p2p group card` prints there, and add that",
    )


def _check_follows(known: Group, newer: Group) -> None:
    """GroupInviteError unless the older of the two keys can be made of the newer one."""
    if newer.epoch < known.epoch:
        raise GroupInviteError(
            f"the invitation is an old one (epoch {newer.epoch}; this node has {known.epoch})",
            hint="ask the owner of the group for the newest",
        )
    if older_key(newer.key, newer.epoch - known.epoch) != known.key_of(known.epoch):
        raise GroupInviteError(
            "the key in the invitation does not follow the one that this node has",
            hint="ask the owner of the group: it signed two different keys",
        )


def _own(config_dir: str, name: str, key: NodeKey) -> HeldGroup:
    found = held(config_dir, name)
    if found.group.owner != key.node_id or not found.group.is_own:
        raise AccessGroupError(
            f"the access group {found.name} belongs to node {found.group.owner}",
            hint="only its owner lets members in and puts them out",
        )
    return found


def _invited(own: HeldGroup, key: NodeKey, now: float) -> Invited:
    made = GroupInvite.signed(own.group, own.name, own.members, key, int(now))
    return Invited(_shown(own), made.text)


def _shown(one: HeldGroup) -> AccessGroup:
    own = one.group.is_own
    members = tuple(sorted(one.members)) if own else None
    return AccessGroup(one.name, one.group.id, one.group.owner, own, one.group.epoch, members)
