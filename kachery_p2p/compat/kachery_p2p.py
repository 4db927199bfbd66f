"""kachery-p2p before version 1, by its own functions: `from kachery_p2p.compat import kachery_p2p`.

`import kachery_p2p` is the package of today, which has the same names for the same things; but
it raises an error where this returns None, and has other keywords. A program that was written
for 0.5 to 0.8 and needs exactly those imports this instead, and stays as it is:

    import kachery_p2p.compat.kachery_p2p as kp

URIs are `sha1://H/BASENAME`, with `?manifest=` above 20 MB. What is not here is asked of the
members of the channels, unless `p2p=False`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kachery_p2p.client.mutables import get, get_string, set
from kachery_p2p.client.temporary import TemporaryDirectory
from kachery_p2p.compat.absent import missing
from kachery_p2p.compat.kachery_client import _kachery_storage_dir as _kachery_storage_dir
from kachery_p2p.compat.kachery_client import _kachery_temp_dir as _kachery_temp_dir
from kachery_p2p.compat.kachery_client import (
    create_feed,
    delete_feed,
    get_feed_id,
    link_file,
    load_feed,
    store_file,
    store_json,
    store_npy,
    store_pkl,
    store_text,
    watch_for_new_messages,
)
from kachery_p2p.compat.labelled import told
from kachery_p2p.compat.loading import Source, load, load_range, load_value
from kachery_p2p.errors import LoadFileError, NotFoundError
from kachery_p2p.version import __version__

if TYPE_CHECKING:
    from kachery_p2p.client.feeds import Feed
    from kachery_p2p.client.subfeeds import Subfeed
    from kachery_p2p.compat.shell_scripts import ShellScript

__all__ = [
    "store_file",
    "link_file",
    "store_text",
    "store_json",
    "store_object",
    "store_npy",
    "store_pkl",
    "load_file",
    "load_text",
    "load_json",
    "load_object",
    "load_npy",
    "load_pkl",
    "load_bytes",
    "read_dir",
    "find_file",
    "get_channels",
    "join_channel",
    "leave_channel",
    "get_node_id",
    "create_feed",
    "delete_feed",
    "get_feed_id",
    "load_feed",
    "load_subfeed",
    "watch_for_new_messages",
    "set",
    "get",
    "get_string",
    "delete",
    "start_daemon",
    "stop_daemon",
    "Feed",
    "Subfeed",
    "TemporaryDirectory",
    "ShellScript",
    "LoadFileError",
    "__version__",
]
# Nodes say it to each other in their first message (PROTOCOL.md).
__protocol_version__ = "1"

store_object = store_json


# --- loading ------------------------------------------------------------------------------


def load_file(
    uri: str,
    dest: str | None = None,
    p2p: bool = True,
    from_node: str | None = None,
    from_channel: str | None = None,
) -> str | None:
    """The path of the content, to be read only, or `dest` with a copy; None if nobody has it.

    NotFoundError for a path, without a scheme, where no file is.
    """
    found = load(uri, _source(p2p, from_node, from_channel), dest)
    if found is None and "://" not in uri and not uri.startswith("kachery:"):
        raise NotFoundError(f"Local file not found: {uri}")
    return found


def load_text(
    uri: str, p2p: bool = True, from_node: str | None = None, from_channel: str | None = None
) -> str | None:
    """The content as text, or None."""
    from kachery_p2p.content.values import decode_text

    data = load_value(uri, _source(p2p, from_node, from_channel))
    return None if data is None else decode_text(data)


def load_json(
    uri: str, p2p: bool = True, from_node: str | None = None, from_channel: str | None = None
) -> Any:
    """The value that the content's JSON says, or None."""
    from kachery_p2p.content.values import decode_json

    data = load_value(uri, _source(p2p, from_node, from_channel))
    return None if data is None else decode_json(data)


load_object = load_json


def load_npy(
    uri: str, p2p: bool = True, from_node: str | None = None, from_channel: str | None = None
) -> Any:
    """The content as a numpy array, or None."""
    from kachery_p2p.content.values import decode_npy

    data = load_value(uri, _source(p2p, from_node, from_channel))
    return None if data is None else decode_npy(data)


def load_pkl(
    uri: str, p2p: bool = True, from_node: str | None = None, from_channel: str | None = None
) -> Any:
    """The value that was pickled, or None. UnsafePickleError for one that could run code."""
    from kachery_p2p.content.values import decode_pickle

    data = load_value(uri, _source(p2p, from_node, from_channel))
    return None if data is None else decode_pickle(data)


def load_bytes(
    uri: str,
    start: int,
    end: int,
    write_to_stdout: bool = False,
    p2p: bool = True,
    from_node: str | None = None,
    from_channel: str | None = None,
) -> bytes | None:
    """The bytes from `start` up to `end`, or None. With `write_to_stdout` they are written."""
    source = _source(p2p, from_node, from_channel)
    return told(load_range(uri, start, end, source), write_to_stdout)


def read_dir(uri: str, p2p: bool = True) -> dict[str, Any] | None:
    """What is in a directory, by its URI; None if nobody has its list."""
    from kachery_p2p.compat import directories

    return directories.record(uri, _source(p2p, None, None), recursive=True)


def _source(p2p: bool, from_node: str | None, from_channel: str | None) -> Source:
    return Source(local_only=not p2p, channel=from_channel, node=from_node)


def find_file(uri: str, timeout_sec: float = 5) -> Iterator[dict[str, Any]]:
    """Each node that has the content: {"nodeId", "fileKey", "fileSize"}; this one first.

    The id is None for this computer while it has no key.
    """
    from kachery_p2p.client.files import find_file as find
    from kachery_p2p.content.uris import parse_uri

    found = find(uri, timeout=timeout_sec)
    here = [_own_id()] if found.local else []
    nodes = dict.fromkeys([*here, *(one.node_id for one in found.providers)])
    key = {"sha1": str(parse_uri(uri).content)}
    for node in nodes:
        yield {"nodeId": node, "fileKey": key, "fileSize": found.size}


def _own_id() -> str | None:
    from kachery_p2p.errors import KeyFileError

    try:
        return get_node_id()
    except KeyFileError:
        return None


# --- channels, feeds and mutables -----------------------------------------------------------


def get_channels() -> list[dict[str, Any]]:
    """The channels of this node; where there was a page on the web is the channel's name now."""
    from kachery_p2p.client.files import get_channels as channels

    roles = {"isMessageProxy": False, "isDataProxy": False, "isPublic": False}
    return [{"channelConfigUrl": one.name, **roles} for one in channels()]


def load_subfeed(subfeed_uri: str) -> Subfeed:
    """A subfeed by its URI."""
    from kachery_p2p.client import feeds

    return feeds.load_subfeed(subfeed_uri)


def delete(key: Any, value: Any = None) -> None:
    """Forget the mutable. `value` was asked for, and never used."""
    from kachery_p2p.client.mutables import delete as forget

    forget(key)


# --- the node -----------------------------------------------------------------------------


def get_node_id(api_port: int | None = None) -> str:
    """This node's id."""
    from kachery_p2p.client.files import get_node_id as node_id

    return node_id()


def join_channel(invite: str) -> None:
    """Enter a channel with an invite, as `kachery-p2p channel join` does, and says it."""
    _command("join-channel", "--", invite)


def leave_channel(channel: str) -> None:
    """Forget a channel and its secret."""
    _command("leave-channel", "--", channel)


def start_daemon(*, label: str, **options: Any) -> None:
    """Run the node until it is stopped; the options are those of `kachery-p2p-start-daemon`.

    DaemonError if it ended with an error, which it has printed.
    """
    arguments = ["--label", label]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        for one in value if isinstance(value, list | tuple) else [value]:
            if one is True:
                arguments.append(flag)
            elif one not in (None, False, "", 0):
                arguments += [flag, str(one)]
    _command("start-daemon", *arguments)


def stop_daemon(api_port: int | None = None, api_host: str | None = None) -> bool:
    """Stop the node of this configuration; False if none runs."""
    from kachery_p2p.client.daemon import connect
    from kachery_p2p.errors import DaemonDownError

    try:
        connect().call("stop", {})
    except DaemonDownError:
        return False
    return True


def _command(*arguments: str) -> None:
    import subprocess
    import sys

    from kachery_p2p.errors import DaemonError

    code = subprocess.run([sys.executable, "-m", "kachery_p2p", *arguments]).returncode
    if code:
        raise DaemonError(f"`kachery-p2p {arguments[0]}` ended with the code {code}")


def _experimental_config(
    *, nop2p: bool | None = None, file_server_urls: list[str] | None = None
) -> None:
    """UnsupportedValueError if it asks for anything: it was an experiment, `p2p=False` remains."""
    from kachery_p2p.errors import UnsupportedValueError

    if nop2p or file_server_urls:
        raise UnsupportedValueError(
            "the experiments of kachery-p2p 0.8 are no more",
            hint="give p2p=False to a load, or `kachery-p2p bucket add` a mirror on the web",
        )


def __getattr__(name: str) -> Any:
    if name == "Feed":
        from kachery_p2p.client.feeds import Feed

        return Feed
    if name == "Subfeed":
        from kachery_p2p.client.subfeeds import Subfeed

        return Subfeed
    if name == "ShellScript":
        from kachery_p2p.compat.shell_scripts import ShellScript

        return ShellScript
    raise missing("kachery_p2p", name)
