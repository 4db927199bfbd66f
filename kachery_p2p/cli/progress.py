"""The option of commands that take long: how they say how far they are."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from typing import TypeVar

import click

from kachery_p2p.client.events import Progress, ProgressArg

Command = TypeVar("Command", bound=Callable[..., None])

_CHOICES = ("auto", "bar", "json", "off")


def progress_option(command: Command) -> Command:
    """Give the command the argument `progress`: what the functions of the API take for it."""
    option = click.option(
        "--progress",
        type=click.Choice(_CHOICES),
        default="auto",
        show_default=True,
        callback=lambda ctx, param, value: _chosen(value),
        help="On standard error: a bar after a second if it is a terminal, a bar at once, a line"
        " of JSON for each event, or nothing.",
    )
    return option(command)


def _chosen(name: str) -> ProgressArg:
    if name == "json":
        return write_event
    return {"auto": None, "bar": True, "off": False}[name]


def write_event(progress: Progress) -> None:
    """One line: {"progress": {...}}. Whoever reads it may leave; the work goes on."""
    told = progress._asdict()
    told["sources"] = [source._asdict() for source in progress.sources]
    with contextlib.suppress(OSError):
        print(json.dumps({"progress": told}), file=sys.stderr, flush=True)
