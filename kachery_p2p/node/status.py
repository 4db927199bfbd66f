"""What a node says of itself: the answer to `status`, with what is wrong and what mends it."""

from __future__ import annotations

import time
from typing import Any

from kachery_p2p.node.parts import NetworkParts, Parts
from kachery_p2p.version import __version__


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
        "loads": _loads(network),
        "pending_shares": parts.grants.pending_count(),
        "bytes_served": network.server.bytes_served if network else 0,
        "problems": _problems(parts, network),
    }


def _channels(parts: Parts, network: NetworkParts | None) -> list[dict[str, Any]]:
    sessions = network.sessions.all() if network else ()
    counts = {c.id: sum(1 for s in sessions if c.id in s.channels) for c in parts.channels}
    return [
        {
            "name": channel.name,
            "id": channel.id,
            # A shared-secret channel has no list: its members are those who have proved it now.
            "members": counts[channel.id] + 1,
            "peers": counts[channel.id],
            "tried": network is not None and network.sessions.settled,
        }
        for channel in parts.channels
    ]


def _peers(parts: Parts, network: NetworkParts | None) -> list[dict[str, Any]]:
    if network is None:
        return []
    return [
        {
            "node_id": session.peer,
            "label": session.label,
            "channels": [parts.channel_name(channel) for channel in sorted(session.channels)],
            "address": session.addresses[0] if session.addresses else None,
        }
        for session in network.sessions.all()
    ]


def _loads(network: NetworkParts | None) -> list[dict[str, Any]]:
    if network is None:
        return []
    return [
        {
            "content": active.content,
            "bytes": active.state.bytes,
            "size": active.state.size,
            "rate": active.rate,
            "sources": list(active.state.sources),
        }
        for active in network.downloads.active()
    ]


def _problems(parts: Parts, network: NetworkParts | None) -> list[str]:
    problems = list(parts.problems.values())
    if network is None:
        problems.append("the network part is still starting")
    else:
        for node in network.sessions.book.unreached_by_user():
            why = network.sessions.problems.get(node, "no answer")
            problems.append(f"bootstrap node {node[:16]} is not reached: {why}")
    pending = parts.grants.pending_count()
    if pending and parts.channels:
        name = parts.channels[0].name
        problems.append(
            f"{pending} files are not shared: `kachery-p2p share --pending --channel {name}`"
        )
    return problems
