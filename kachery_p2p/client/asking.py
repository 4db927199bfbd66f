"""Questions about this node and about contents."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from kachery_p2p.client import settings
from kachery_p2p.client.daemon import connect, hello
from kachery_p2p.client.files import find_local
from kachery_p2p.client.origin import ANYWHERE, Origin
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


class Provider(NamedTuple):
    """A node that says it has a content, and serves it to us."""

    node_id: str
    # The name that it gives itself; may be empty.
    label: str
    # The name of the channel in which it serves us.
    channel: str


class Found(NamedTuple):
    """Who has a content."""

    # Whether it is on this computer: in the store directory, or in the daemon's.
    local: bool
    # In bytes; None if nobody has it.
    size: int | None
    providers: tuple[Provider, ...]
    # False if no daemon runs, so that nobody else could be asked.
    asked: bool


class ChannelInfo(NamedTuple):
    """A channel that this node is in."""

    name: str
    # 64 hex digits, the same on every member.
    id: str
    # "owned" (by invitation) or "shared-secret".
    kind: str
    # Whether what is stored is shared there when nobody says where.
    shared_list: bool
    # Members known and members connected now; None if no daemon runs.
    members: int | None
    peers: int | None


def get_channels() -> list[ChannelInfo]:
    """The channels that this node is in, in the order of joining."""
    try:
        told = connect().call("channels", {})[0]["channels"]
    except DaemonDownError:
        if settings.daemon_address() is not None or settings.daemon_socket() is not None:
            raise
    else:
        return [ChannelInfo(*(one[field] for field in ChannelInfo._fields)) for one in told]
    from kachery_p2p.channels.files import joined

    return [
        ChannelInfo(one.name, one.id, one.kind, one.shared_list, None, None)
        for one in joined(settings.config_dir())
    ]


def find(wanted: Uri, origin: Origin = ANYWHERE) -> Found:
    """Who has a content, as far as can be found out now. Nobody is no error."""
    path = find_local(wanted)
    size = os.stat(path).st_size if path is not None else None
    body = {"content": wanted.content, "root": wanted.root, **origin.fields}
    try:
        told, _ = connect().call("find", body, timeout_s=origin.answer_s)
    except DaemonDownError:
        return Found(path is not None, size, (), asked=False)
    return Found(
        local=path is not None or told["local"],
        size=told["size"] if size is None else size,
        providers=tuple(
            Provider(one["node_id"], one["label"] or "", one["channel"] or "")
            for one in told["providers"]
        ),
        asked=True,
    )


def size_of(wanted: Uri, origin: Origin = ANYWHERE) -> int:
    """The size of a content, verified; the network is asked only if it is not stored here."""
    from kachery_p2p.client.loading import fetch_size

    path = find_local(wanted)
    return os.stat(path).st_size if path is not None else fetch_size(wanted, origin)


def describe(wanted: Uri, origin: Origin = ANYWHERE) -> Info:
    """Size and whereabouts of a content. NotFoundError if neither we nor the channels have it."""
    path = find_local(wanted)
    size = os.stat(path).st_size if path is not None else None
    providers = None
    why, hint = "no node that answered has it", None
    try:
        body = {"content": wanted.content, "root": wanted.root, **origin.fields}
        found, _ = connect().call("find", body, timeout_s=origin.answer_s)
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
