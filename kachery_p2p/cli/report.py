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
    yield from _pace(told.get("pace"))
    yield from _peers(told["peers"])
    yield from lines_of_loads(told["loads"])
    yield from _serving(told.get("serving") or [])
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


def _pace(pace: dict[str, Any] | None) -> Iterator[str]:
    for name, limit in (("upload", "max_upload"), ("download", "max_download")):
        if pace is not None:
            most = f"at most {human_bytes(pace[limit])}/s" if pace[limit] else "no limit"
            yield _line(name, f"{human_bytes(pace[name])}/s, {most}")


def _peers(peers: list[dict[str, Any]]) -> Iterator[str]:
    for peer in peers:
        label = peer["label"] or "no label"
        where = peer["address"] or "no address"
        yield _line(
            "peer", f"{peer['node_id'][:16]}  {label}  {', '.join(peer['channels'])}  {where}"
        )


def lines_of_loads(loads: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each running load."""
    for load in loads:
        size = f" of {human_bytes(load['size'])}" if load["size"] else ""
        rate = f"{human_bytes(load['rate'])}/s"
        left = load.get("eta_s")
        parts = [
            f"{human_bytes(load['bytes'])}{size}",
            rate,
            "" if left is None else f"{human_seconds(left)} left",
            _doing(load),
            f"{human_bytes(load['wasted'])} in vain" if load.get("wasted") else "",
        ]
        done = ", ".join(part for part in parts if part)
        yield _line("loading", f"{_loaded(load)}  {done}")


def _loaded(load: dict[str, Any]) -> str:
    """What is being loaded: a file, or so many of so many."""
    if load["content"] is not None:
        return f"sha1://{load['content']}"
    return f"{load['files']} of {load['files_total']} files"


def _doing(load: dict[str, Any]) -> str:
    """From whom it comes, and how fast from each; or what else it does."""
    if load.get("phase") in ("hashing", "finishing"):
        return str(load["phase"])
    at_work = [one for one in load.get("by_source") or () if one["state"] in ("serving", "late")]
    if len(at_work) < 2:
        return f"from {', '.join(load['sources']) or 'nobody yet'}"
    return "from " + ", ".join(f"{one['name']} {human_bytes(one['rate'])}/s" for one in at_work)


def _serving(serving: list[dict[str, Any]]) -> Iterator[str]:
    for one in serving:
        who = f"{one['node_id'][:16]}  {one['label'] or 'no label'}"
        done = f"{human_bytes(one['bytes'])}, {human_bytes(one['rate'])}/s"
        yield _line("serving", f"{who}  {done}")


def _problems(told: dict[str, Any]) -> Iterator[str]:
    for problem in told["problems"]:
        yield _line("problem", problem)
    if not told["channels"]:
        yield _line("problem", "in no channel, so nobody is asked for files")
        yield _line("mend", "kachery-p2p start --channel NAME")
