"""`status` for people: aligned, escaped, and what would mend what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kachery_p2p.client.wording import counted, human_bytes, human_seconds, printable

WIDTH = 9


def report(told: dict[str, Any]) -> Iterator[str]:
    """The lines of a report on the result of the operation `status`."""
    yield _line("node", told["node_id"])
    if told["label"]:
        yield _line("label", told["label"])
    for address in told["addresses"]:
        yield _line("address", address)
    for channel in told["channels"]:
        yield _line("channel", f"{channel['name']}, {counted(channel['peers'], 'peer')} connected")
    yield _line("http", told["http"] or "off")
    yield _line("store", told["store"])
    yield _line("version", f"{told['version']}, up {human_seconds(told['uptime_s'])}")
    yield from _peers(told["peers"])
    yield from _loads(told["loads"])
    yield from _problems(told)


def started(told: dict[str, Any]) -> Iterator[str]:
    """What a node says when it has started: who it is, where, and in which channels."""
    yield _line("node", told["node_id"])
    for address in told["addresses"]:
        yield _line("address", address)
    for channel in told["channels"]:
        yield _line("channel", f"{channel['name']} ({channel['id'][:16]})")
    if told["http"]:
        yield _line("http", told["http"])


def _line(name: str, value: str) -> str:
    return f"{name:{WIDTH}}{printable(value)}"


def _peers(peers: list[dict[str, Any]]) -> Iterator[str]:
    for peer in peers:
        label = peer["label"] or "no label"
        where = peer["address"] or "no address"
        yield _line(
            "peer", f"{peer['node_id'][:16]}  {label}  {', '.join(peer['channels'])}  {where}"
        )


def _loads(loads: list[dict[str, Any]]) -> Iterator[str]:
    for load in loads:
        size = f" of {human_bytes(load['size'])}" if load["size"] else ""
        rate = f"{human_bytes(load['rate'])}/s"
        sources = ", ".join(load["sources"]) or "nobody yet"
        done = f"{human_bytes(load['bytes'])}{size}, {rate}, from {sources}"
        yield _line("loading", f"sha1://{load['content']}  {done}")


def _problems(told: dict[str, Any]) -> Iterator[str]:
    for problem in told["problems"]:
        yield _line("problem", problem)
    if not told["channels"]:
        yield _line("problem", "in no channel, so nobody is asked for files")
        yield _line("mend", "kachery-p2p start --channel NAME")
