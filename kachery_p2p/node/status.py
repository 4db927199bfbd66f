"""What a node says of itself: the answer to `status`, with what is wrong and what mends it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import trio

from kachery_p2p.channels.channel import Channel
from kachery_p2p.channels.group_invites import Card
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import LIAR_DROPPED_S
from kachery_p2p.node.many_api import many_fields
from kachery_p2p.node.parts import NetworkParts, Parts
from kachery_p2p.node.progress import fields_of
from kachery_p2p.version import __version__
from kachery_p2p.wire.handshake import Hello


def status_of(parts: Parts) -> dict[str, Any]:
    """The fields of the operation `status`."""
    network = parts.network_now
    return {
        "node_id": parts.node_id,
        "label": parts.config.label,
        "version": __version__,
        "addresses": list(network.link.addresses) if network else [],
        "http": parts.http,
        "store": parts.blobs.directory,
        "uptime_s": time.monotonic() - parts.started_at,
        "channels": _channels(parts, network),
        "peers": _peers(parts, network),
        "loads": _loads(parts, network),
        "pending_shares": parts.grants.pending_count(),
        "bytes_served": network.server.bytes_served + network.bulk.bytes_sent if network else 0,
        "serving": _serving(network),
        "pace": _pace(parts),
        "problems": _problems(parts, network),
    }


def _pace(parts: Parts) -> dict[str, Any]:
    up, down = parts.pace
    return {
        "max_upload": up.limit,
        "max_download": down.limit,
        "upload": up.rate,
        "download": down.rate,
        "uploaded": up.byte_count,
        "downloaded": down.byte_count,
    }


def _channels(parts: Parts, network: NetworkParts | None) -> list[dict[str, Any]]:
    sessions = network.sessions.all() if network else ()
    counts = {c.id: sum(1 for s in sessions if c.id in s.channels) for c in parts.channels}
    return [
        {
            "name": channel.name,
            "id": channel.id,
            "members": _member_count(parts, channel.id, counts[channel.id]),
            "peers": counts[channel.id],
            "tried": network is not None and network.sessions.settled and network.finding.settled,
        }
        for channel in parts.channels
    ]


def _member_count(parts: Parts, channel_id: str, peers: int) -> int:
    """A shared-secret channel has no list: its members are those who have proved it now."""
    history = parts.memberships.history(channel_id)
    return peers + 1 if history is None else len(history.roster.members)


def _peers(parts: Parts, network: NetworkParts | None) -> list[dict[str, Any]]:
    if network is None:
        return []
    return [
        {
            "node_id": session.peer,
            "label": session.label,
            "channels": [parts.channel_name(channel) for channel in sorted(session.channels)],
            "address": session.addresses[0] if session.addresses else None,
            "card": card_text(session.peer, session.hello),
        }
        for session in network.sessions.all()
    ]


def card_text(peer: NodeId, hello: Hello) -> str:
    """What a client can let the peer into an access group by."""
    return Card.spelled(peer, hello.exchange, hello.exchange_signature)


def _loads(parts: Parts, network: NetworkParts | None) -> list[dict[str, Any]]:
    if network is None:
        return []
    return [
        {
            "content": active.content,
            "root": active.root,
            **fields_of(active.state, parts.channel_name, guest=False),
        }
        for active in network.downloads.active()
    ] + [many_fields(running, trio.current_time()) for running in network.batches.running.values()]


def _serving(network: NetworkParts | None) -> list[dict[str, Any]]:
    if network is None:
        return []
    labels: dict[str, str] = {session.peer: session.label for session in network.sessions.all()}
    return [
        {**given._asdict(), "label": labels.get(given.node_id)}
        for given in network.given.to(trio.current_time())
    ]


def _problems(parts: Parts, network: NetworkParts | None) -> list[str]:
    problems = list(parts.problems.values())
    if network is None:
        problems.append("the network part is still starting")
    else:
        for node in network.sessions.book.unreached_by_user():
            why = network.sessions.problems.get(node, "no answer")
            problems.append(f"bootstrap node {node[:16]} is not reached: {why}")
        problems.extend(network.finding.places.problems())
        problems.extend(network.joining.problems())
        problems.extend(network.bulk.problems())
        problems.extend(_dropped(parts, network))
        problems.extend(network.bucketing.problems())
        problems.extend(network.mirroring.problems())
        problems.extend(network.logs.problems())
        problems.extend(network.histories.problems())
    for channel in parts.channels:
        problems.extend(_channel_problems(parts, channel))
    pending = parts.grants.pending_count()
    if pending and parts.channels:
        name = parts.channels[0].name
        problems.append(
            f"not shared: {pending} stored before there was a channel;"
            f" `kachery-p2p share --pending --channel {name}`"
        )
    return problems


def _dropped(parts: Parts, network: NetworkParts) -> Iterator[str]:
    """Who lied, and is not used for a while."""
    for lie in network.downloads.dropped():
        left_min = (lie.at + LIAR_DROPPED_S - trio.current_time()) / 60
        yield (
            f"{lie.name} (node {lie.node}) lied and is not used in channel"
            f" {parts.channel_name(lie.channel)} for {left_min:.0f} min:"
            f" sha1://{lie.content}: {lie.what}"
        )


def _channel_problems(parts: Parts, channel: Channel) -> Iterator[str]:
    """What its history says is wrong with an owned channel."""
    history = parts.memberships.history(channel.id)
    if history is None:
        return
    if parts.memberships.is_removed_from(channel.id):
        yield f"this node was removed from channel {channel.name} by an admin"
    if history.fork is not None:
        yield (
            f"the key of channel {channel.name} has signed two histories: ask its keeper which"
            " is right"
        )
    if history.head is not None and not history.fresh(time.time_ns() // 1_000_000):
        days = history.age_s(time.time_ns() // 1_000_000) / 86_400
        yield (
            f"the keeper of channel {channel.name} has said nothing for {days:.0f} days: is its"
            " node running?"
        )
