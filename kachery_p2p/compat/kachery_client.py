"""kachery-client by its own name: `import kachery_client as kc`.

A `channel` is one of the channels of this node, or a name that zones.toml knows. Without one
loads look on this computer only, as they did, and return None for what is not here. Stores
share in the channels of the share list. Feeds, subfeeds and mutables are those of
`kachery_p2p`, which has the same names.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from kachery_p2p.client.mutables import delete, get, set
from kachery_p2p.client.temporary import TemporaryDirectory as _TemporaryDirectory
from kachery_p2p.compat.absent import missing
from kachery_p2p.compat.client_uris import KacheryUri, build_uri, parse_uri
from kachery_p2p.compat.labelled import told
from kachery_p2p.compat.loading import Source, load, load_range, load_value
from kachery_p2p.compat.placing import Place, put_bytes, put_file, put_into_bucket
from kachery_p2p.errors import LoadFileError, NotFoundError
from kachery_p2p.version import __version__

if TYPE_CHECKING:
    from kachery_p2p.client.feeds import Feed
    from kachery_p2p.client.subfeeds import Subfeed
    from kachery_p2p.compat.direct_client import DirectClient, EphemeralClient
    from kachery_p2p.compat.shell_scripts import ShellScript

__all__ = [
    "store_file",
    "link_file",
    "store_text",
    "store_json",
    "store_npy",
    "store_pkl",
    "load_file",
    "load_text",
    "load_json",
    "load_npy",
    "load_pkl",
    "load_bytes",
    "upload_file",
    "upload_text",
    "upload_json",
    "upload_npy",
    "upload_pkl",
    "create_feed",
    "delete_feed",
    "get_feed_id",
    "load_feed",
    "load_subfeed",
    "watch_for_new_messages",
    "Feed",
    "Subfeed",
    "set",
    "get",
    "get_string",
    "delete",
    "parse_uri",
    "build_uri",
    "KacheryUri",
    "get_node_id",
    "DirectClient",
    "EphemeralClient",
    "enable_ephemeral",
    "TemporaryDirectory",
    "ShellScript",
    "LoadFileError",
    "__version__",
]

_LOCAL = "*local*"


# --- storing ------------------------------------------------------------------------------


def store_file(path: str, basename: str | None = None) -> str:
    """Store a copy of the file; `sha1://H/BASENAME`, with `?manifest=` above 20 MB."""
    return _stored_file(path, basename, Place())


def link_file(path: str, basename: str | None = None) -> str:
    """Let the file stand for its content, without a copy; its URI.

    If the file is changed later, the link ends: loads warn and return None.
    """
    return _stored_file(path, basename, Place(linked=True))


def store_text(text: str, basename: str | None = None) -> str:
    """Store a text as UTF-8; its URI."""
    from kachery_p2p.compat.serial import encode_text

    return _stored(encode_text(text), basename or "file.txt")


def store_json(object: Any, basename: str | None = None) -> str:
    """Store a value as compact JSON, its keys in their order; its URI."""
    from kachery_p2p.compat.serial import json_of

    return _stored(json_of(object), basename or "file.json")


def store_npy(array: Any, basename: str | None = None) -> str:
    """Store a numpy array; its URI."""
    from kachery_p2p.compat.serial import encode_npy

    return _stored(encode_npy(array), basename or "file.npy")


def store_pkl(x: Any, basename: str | None = None) -> str:
    """Store a value of plain containers and numpy arrays; its URI."""
    from kachery_p2p.compat.serial import encode_pickle

    return _stored(encode_pickle(x), basename or "file.pkl")


def _stored_file(path: str, basename: str | None, place: Place) -> str:
    path = os.fspath(path)
    name = os.path.basename(path) if basename is None else basename
    return _uri(put_file(path, place), name, place)


def _stored(data: bytes, basename: str) -> str:
    return _uri(put_bytes(data, Place()), basename, Place())


def _uri(content: Any, name: str, place: Place) -> str:
    from kachery_p2p.compat.systems import uri_style
    from kachery_p2p.compat.uri_forms import format_named

    return format_named(content, name, uri_style() or "client", place)


# --- loading ------------------------------------------------------------------------------


def load_file(
    uri: str, dest: str | None = None, local_only: bool = False, channel: str | None = None
) -> str | None:
    """The path of the content, to be read only, or `dest` with a copy; None.

    NotFoundError for a path, without a scheme, where no file is.
    """
    found = load(uri, _source(channel, local_only), dest)
    if found is None and "://" not in uri and not uri.startswith("kachery:"):
        raise NotFoundError(f"there is no file {uri}")
    return found


def load_text(uri: str, *, channel: str | None = None) -> str | None:
    """The content as text, or None."""
    from kachery_p2p.content.values import decode_text

    data = load_value(uri, _source(channel))
    return None if data is None else decode_text(data)


def load_json(uri: str, *, channel: str | None = None) -> Any:
    """The value that the content's JSON says, or None."""
    from kachery_p2p.content.values import decode_json

    data = load_value(uri, _source(channel))
    return None if data is None else decode_json(data)


def load_npy(uri: str, *, channel: str | None = None) -> Any:
    """The content as a numpy array, or None."""
    from kachery_p2p.content.values import decode_npy

    data = load_value(uri, _source(channel))
    return None if data is None else decode_npy(data)


def load_pkl(uri: str, *, channel: str | None = None) -> Any:
    """The value that was pickled, or None. UnsafePickleError for one that could run code."""
    from kachery_p2p.content.values import decode_pickle

    data = load_value(uri, _source(channel))
    return None if data is None else decode_pickle(data)


def load_bytes(
    uri: str,
    start: int | None,
    end: int | None,
    *,
    write_to_stdout: bool = False,
    channel: str | None = None,
) -> bytes | None:
    """The bytes from `start` up to `end`, or None. With `write_to_stdout` they are written."""
    return told(load_range(uri, start, end, _source(channel)), write_to_stdout)


def _source(channel: str | None, local_only: bool = False) -> Source:
    """Where a call looks: here, and with a channel at its members."""
    if local_only or channel is None or channel == _LOCAL:
        return Source(local_only=True)
    from kachery_p2p.compat.zones import channel_to_load

    return Source(channel=channel_to_load(channel))


# --- sharing in one channel ---------------------------------------------------------------------


def upload_file(path_or_uri: str, *, channel: str, single_chunk: bool = False) -> str:
    """Share a file, or what is stored under a URI, in a channel; its URI.

    If the channel has a bucket it is there when this returns. NotFoundError if it is not stored
    here, UnknownZoneError for a channel that nothing names, BucketError.
    """
    from kachery_p2p.client.storing import share_stored
    from kachery_p2p.compat.zones import zone_to_store
    from kachery_p2p.content.uris import parse_uri as parse

    channels = zone_to_store(channel).channels
    is_uri = path_or_uri.startswith(("sha1://", "kachery:"))
    uri = path_or_uri if is_uri else _stored_file(path_or_uri, None, Place(channels=[]))
    wanted = parse(uri)
    contents = [one for one in (wanted.content, wanted.manifest) if one is not None]
    share_stored(contents, channels)
    for name in channels or ():
        put_into_bucket([f"sha1://{content}" for content in contents], name)
    return uri


def upload_text(
    x: str, *, channel: str, basename: str | None = None, single_chunk: bool = False
) -> str:
    """Store a text, and share it in a channel; its URI."""
    return upload_file(store_text(x, basename), channel=channel)


def upload_json(
    x: Any, *, channel: str, basename: str | None = None, single_chunk: bool = False
) -> str:
    """Store a value as JSON, and share it in a channel; its URI."""
    return upload_file(store_json(x, basename), channel=channel)


def upload_npy(
    x: Any, *, channel: str, basename: str | None = None, single_chunk: bool = False
) -> str:
    """Store an array, and share it in a channel; its URI."""
    return upload_file(store_npy(x, basename), channel=channel)


def upload_pkl(
    x: Any, *, channel: str, basename: str | None = None, single_chunk: bool = False
) -> str:
    """Store a value as a pickle, and share it in a channel; its URI."""
    return upload_file(store_pkl(x, basename), channel=channel)


# --- mutables and feeds ---------------------------------------------------------------------------


def get_string(key: Any) -> str | None:
    """The value of a mutable as text, or None if there is none."""
    value = get(key)
    return None if value is None else str(value)


def create_feed(feed_name: str | None = None) -> Feed:
    """A new feed of this node, and what it is called here. DaemonDownError if none runs."""
    from kachery_p2p.client import feeds

    return feeds.create_feed(feed_name)


def delete_feed(feed_name_or_uri: str) -> None:
    """Remove a feed from this node: an own one with its key, for good."""
    from kachery_p2p.client import feeds

    feeds.delete_feed(feed_name_or_uri)


def get_feed_id(feed_name: str, *, create: bool = False) -> str:
    """The id of the feed that is called so here. UnknownFeedError if none is."""
    from kachery_p2p.client import feeds

    return feeds.get_feed_id(feed_name, create)


def load_feed(
    feed_name_or_uri: str, *, timeout_sec: float | None = None, create: bool = False
) -> Feed:
    """A feed by its URI, one of this node by its name, or a snapshot by its URI."""
    from kachery_p2p.client import feeds

    return feeds.load_feed(feed_name_or_uri, create, timeout_sec)


def load_subfeed(subfeed_uri: str, *, channel: str = _LOCAL) -> Subfeed:
    """A subfeed by its URI. It is read in whatever common channel it is shared."""
    from kachery_p2p.client import feeds

    return feeds.load_subfeed(subfeed_uri)


def watch_for_new_messages(
    subfeed_watches: dict[str, Any],
    *,
    wait_msec: float,
    channel: str = _LOCAL,
    signed: bool = False,
) -> dict[str, list[Any]]:
    """The new messages of many subfeeds at once, as soon as there are any.

    A watch is {"feedId", "subfeedHash" or "subfeedName", "position"}.
    """
    from kachery_p2p.client.watching import watch_for_new_messages as watch

    return watch(subfeed_watches, wait_msec=wait_msec, signed=signed)


# --- what else there was ------------------------------------------------------------------------


def get_node_id(daemon_port: int | None = None) -> str:
    """This node's id."""
    from kachery_p2p.client.files import get_node_id as node_id

    return node_id()


def enable_ephemeral() -> None:
    """Nothing: what is stored here is found without a daemon."""


class TemporaryDirectory(_TemporaryDirectory):
    """A new directory below KACHERY_TEMP_DIR, removed at the end of the `with`."""

    def __init__(self, *, remove: bool = True, prefix: str = "tmp") -> None:
        super().__init__(remove, prefix)

    def path(self) -> str:
        """Where it is."""
        return self._path


def _kachery_storage_dir() -> str:
    """The store directory."""
    from kachery_p2p.client import settings

    return settings.storage_dir()


def _kachery_temp_dir() -> str:
    """Where temporary files go."""
    import tempfile

    from kachery_p2p.client import settings

    return settings.temp_dir() or tempfile.gettempdir()


def __getattr__(name: str) -> Any:
    if name == "Feed":
        from kachery_p2p.client.feeds import Feed

        return Feed
    if name == "Subfeed":
        from kachery_p2p.client.subfeeds import Subfeed

        return Subfeed
    if name in ("DirectClient", "EphemeralClient"):
        from kachery_p2p.compat import direct_client

        return getattr(direct_client, name)
    if name == "ShellScript":
        from kachery_p2p.compat.shell_scripts import ShellScript

        return ShellScript
    raise missing("kachery_client", name)
