"""What is shared where: granting what is stored here, ending it, and listing it.

A running daemon does it, so that its peers notice at once. When none runs the grants of
the configuration are read and changed here; a new grant is then written down for the
daemon's next start (`storing`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from kachery_p2p.client import settings

if TYPE_CHECKING:
    from kachery_p2p.client.storing import Shared
    from kachery_p2p.content.hashes import ContentHash
    from kachery_p2p.store.grants import Grants


class SharedFile(NamedTuple):
    """One content that the members of one channel may load from this node."""

    # sha1://HASH
    uri: str
    # The channel's name.
    channel: str
    # "store", "fetched", ...: what shared it.
    why: str
    # When, in seconds since 1970.
    time: float


def share(uris: str | Iterable[str], channel: str | None = None) -> Shared:
    """Let the members of a channel load what is stored here; how many files, and where.

    `channel` None means the channels of the share list. Without a daemon it is written
    down for its next start (`waiting`). NotFoundError for what is not stored here. The URI
    of a directory stands for its list and all files in it.
    """
    from kachery_p2p.client.directory_lists import contents_of
    from kachery_p2p.client.files import find_local
    from kachery_p2p.client.storing import share_stored
    from kachery_p2p.content.uris import format_uri
    from kachery_p2p.errors import NotFoundError

    wanted = [one for uri in _several(uris) for one in contents_of(uri)]
    for one in wanted:
        if find_local(one) is None:
            raise NotFoundError(
                f"{format_uri(one)} is not stored here",
                hint="only what is stored here can be shared: load it first",
            )
    return share_stored([one.content for one in wanted], None if channel is None else [channel])


def unshare(uris: str | Iterable[str], channel: str | None = None) -> int:
    """Let nobody load them from this node any more in `channel`, or (None) in any.

    How many grants were ended; 0 if none of it was shared there. The files stay stored,
    and what others have loaded stays theirs.
    """
    from kachery_p2p.client.directory_lists import contents_of
    from kachery_p2p.errors import DaemonDownError
    from kachery_p2p.limits import MESSAGE_ITEMS_MAX

    contents = [one.content for uri in _several(uris) for one in contents_of(uri)]
    if not contents:
        return 0
    _check_online()
    ended = 0
    try:
        for start in range(0, len(contents), MESSAGE_ITEMS_MAX):
            ended += _unshare_by_daemon(contents[start : start + MESSAGE_ITEMS_MAX], channel)
    except DaemonDownError:
        if _is_anothers_daemon():
            raise
        ended += _unshare_here(contents, channel)
    return ended


def shared(channel: str | None = None) -> Iterator[SharedFile]:
    """What is shared, in `channel` or (None) in all, in the order of hashes.

    A thousand at a time are asked for, so that millions cost neither memory nor patience.
    """
    from kachery_p2p.errors import DaemonDownError

    _check_online()
    try:
        yield from _listed_by_daemon(channel)
    except DaemonDownError:
        if _is_anothers_daemon():
            raise
        yield from _listed_here(channel)


def _several(uris: str | Iterable[str]) -> Iterable[str]:
    return [uris] if isinstance(uris, str) else uris


def _check_online() -> None:
    if settings.is_offline():
        from kachery_p2p.errors import ConfigError

        raise ConfigError(
            "KACHERY_OFFLINE_STORAGE_DIR is set, so nothing is shared",
            hint="unset KACHERY_OFFLINE_STORAGE_DIR",
        )


def _is_anothers_daemon() -> bool:
    """Whether the daemon is not the one of this configuration, whose files say nothing then."""
    return settings.daemon_address() is not None or settings.daemon_socket() is not None


# --- with the daemon --------------------------------------------------------------------


def _unshare_by_daemon(contents: Sequence[ContentHash], channel: str | None) -> int:
    from kachery_p2p.client.daemon import connect

    body = {"contents": list(contents), "channel": channel}
    return int(connect().call("unshare", body)[0]["unshared"])


def _listed_by_daemon(channel: str | None) -> Iterator[SharedFile]:
    from kachery_p2p.client.daemon import connect

    after = None
    while True:
        page = connect().call("shared", {"channel": channel, "after": after})[0]
        yield from map(_of_daemon, page["grants"])
        after = page["next"]
        if after is None:
            return


def _of_daemon(grant: dict[str, Any]) -> SharedFile:
    uri = f"sha1://{grant['content']}"
    return SharedFile(uri, grant["channel"], grant["why"], grant["time"])


# --- without ----------------------------------------------------------------------------


def _unshare_here(contents: Sequence[ContentHash], channel: str | None) -> int:
    ids = _channel_ids(channel)
    grants = _open_grants()
    if grants is None:
        return 0
    try:
        return grants.end(contents, None if channel is None else ids[channel])
    finally:
        grants.close()


def _listed_here(channel: str | None) -> Iterator[SharedFile]:
    from kachery_p2p.limits import SHARED_PAGE_MAX

    ids = _channel_ids(channel)
    names = {id: name for name, id in ids.items()}
    grants = _open_grants()
    if grants is None:
        return
    try:
        after = None
        while page := grants.page(
            after, None if channel is None else ids[channel], None, SHARED_PAGE_MAX
        ):
            for grant in page:
                name = names.get(grant.channel, grant.channel[:16])
                yield SharedFile(f"sha1://{grant.content}", name, grant.why, grant.time)
            after = page[-1].key
    finally:
        grants.close()


def _channel_ids(channel: str | None) -> dict[str, str]:
    """Ids of the joined channels by name. UnknownChannelError if `channel` is not among them."""
    from kachery_p2p.channels.files import joined
    from kachery_p2p.errors import UnknownChannelError

    ids = {one.name: one.id for one in joined(settings.config_dir())}
    if channel is not None and channel not in ids:
        raise UnknownChannelError(
            f"this node is not in a channel named {channel!r}",
            hint="`kachery-p2p channel list` names the channels it is in",
        )
    return ids


def _open_grants() -> Grants | None:
    """The grants of this configuration, with what waits in shares.log; None if there are none."""
    from kachery_p2p.store.shares import shares_path, take_shares

    config_dir = settings.config_dir()
    # Where the daemon has them (`node.config`).
    path = os.path.join(settings.state_dir(), "grants.db")
    if not os.path.exists(path) and not os.path.exists(shares_path(config_dir)):
        return None
    from kachery_p2p.store.grants import Grants

    grants = Grants(path)
    try:
        take_shares(config_dir, grants.keep)
    except BaseException:
        grants.close()
        raise
    return grants
