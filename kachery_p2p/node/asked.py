"""What a client asks for, in the node's own terms: a content, its root, and from whom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.errors import (
    AmbiguousNodeError,
    ConfigError,
    NotFoundError,
    UnknownChannelError,
)
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import FIND_S_MAX
from kachery_p2p.network.session import Session
from kachery_p2p.network.sessions import Sessions
from kachery_p2p.node.parts import Parts
from kachery_p2p.transfer.only import Only


def content_and_root(body: Mapping[str, Any]) -> tuple[ContentHash, Root | None]:
    root = body["root"]
    return ContentHash(body["content"]), Root(root) if root is not None else None


def channel_ids(parts: Parts, names: list[str]) -> list[str]:
    """The ids of channels given by name. UnknownChannelError for one this node is not in."""
    known = {channel.name: channel.id for channel in parts.channels}
    for name in names:
        if name not in known:
            raise UnknownChannelError(
                f"this node is not in a channel named {name!r}",
                hint="`kachery-p2p channel list` names the channels it is in",
            )
    return [known[name] for name in names]


async def sources(parts: Parts, body: Mapping[str, Any]) -> Only:
    """The sources that the client accepts.

    Raises UnknownChannelError, NotFoundError for a label that nobody connected has, and
    AmbiguousNodeError.
    """
    channel, node = body["from_channel"], body["from_node"]
    return Only(
        channel=None if channel is None else channel_ids(parts, [channel])[0],
        node=None if node is None else await _node(parts, node),
    )


async def _node(parts: Parts, name: str) -> NodeId:
    try:
        return NodeId.parse(name)
    except ConfigError:
        # Then it is a label, which nodes choose and tell once they are connected.
        return await _node_labelled((await parts.network()).sessions, name)


async def _node_labelled(sessions: Sessions, label: str) -> NodeId:
    """The node whose label is `label`, or the only one whose label begins so."""
    with trio.move_on_after(FIND_S_MAX):
        while not (found := _labelled(sessions.all(), label)) and not sessions.settled:
            await sessions.changed()
    if not found:
        raise NotFoundError(
            f"no connected node has a label that begins with {label!r}",
            hint="`kachery-p2p status` lists the connected nodes; or give the node's id",
        )
    if len(found) > 1:
        raise AmbiguousNodeError(
            f"{len(found)} connected nodes have a label that begins with {label!r}",
            hint="give more of the label, or the node's id, which nobody else can have",
        )
    return found[0].peer


def _labelled(sessions: tuple[Session, ...], label: str) -> list[Session]:
    """Those whose label it is; if there are none, those whose label begins with it."""
    exact = [session for session in sessions if session.label == label]
    return exact or [session for session in sessions if label and session.label.startswith(label)]
