"""The options of commands that may fetch: from whom, and for how long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from kachery_p2p.client.origin import Origin, origin

Command = TypeVar("Command", bound=Callable[..., None])

_OPTIONS = (
    click.option("--from-channel", metavar="CHANNEL", help="From members of this channel only."),
    click.option(
        "--from-node",
        metavar="NODE",
        help="From this node only: its id, or the beginning of its label.",
    ),
    click.option(
        "--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Give up after this."
    ),
)


def source_options(command: Command) -> Command:
    """Give the command the arguments `from_channel`, `from_node` and `timeout`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def origin_of(source: Mapping[str, Any]) -> Origin:
    """What these arguments say."""
    return origin(source["from_channel"], source["from_node"], source["timeout"])
