"""Questions about this node and about contents."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from kachery_p2p.client import settings
from kachery_p2p.client.daemon import connect, hello
from kachery_p2p.client.files import find_local
from kachery_p2p.content.uris import Uri
from kachery_p2p.errors import DaemonDownError, NotFoundError


class Info(NamedTuple):
    """What is known about a content."""

    size: int
    # Where it is in our own store directory.
    path: str | None
    # Nodes that have it: {"node_id", "label", "channel"}. None if no daemon could be asked.
    providers: list[dict[str, Any]] | None


def node_id() -> str:
    """The daemon's id, or the one in this configuration's key file when none runs."""
    try:
        return str(hello(connect())["node_id"])
    except DaemonDownError:
        if settings.daemon_address() is not None:
            raise
    from kachery_p2p.identity.keyring import load

    return str(load(settings.config_dir()).node_id)


def size_of(wanted: Uri) -> int:
    """The size of a content; the network is asked only if it is not stored here."""
    path = find_local(wanted)
    return os.stat(path).st_size if path is not None else describe(wanted).size


def describe(wanted: Uri, timeout_s: float | None = None) -> Info:
    """Size and whereabouts of a content. NotFoundError if neither we nor the channels have it."""
    path = find_local(wanted)
    size = os.stat(path).st_size if path is not None else None
    providers = None
    why, hint = "no node that answered has it", None
    try:
        body = {"content": wanted.content, "root": wanted.root, "timeout_s": timeout_s}
        found, _ = connect().call("find", body)
        providers = found["providers"]
        size = found["size"] if size is None else size
    except DaemonDownError as error:
        why, hint = str(error), error.hint
    if size is None:
        raise NotFoundError(
            f"sha1://{wanted.content} is not stored here, and {why}",
            hint=hint or "ask the owner to start their node",
        )
    return Info(size, path, providers)
