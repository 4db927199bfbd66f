"""Storing a copy of what the user has, and saying in which channels it may be had.

Four cases, by the daemon that the environment names:

    none runs               we write the object; who may have it goes to shares.log
    same store directory    we write the object; the daemon is told to share it
    another store directory the daemon reads the file from a descriptor that we opened
    another machine         we write the object; the daemon is told, and sent what it lacks
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from kachery_p2p.channels.share_lists import current_share_list
from kachery_p2p.client import settings
from kachery_p2p.client.daemon import Daemon, UnixDaemon, connect, hello
from kachery_p2p.client.events import ProgressArg
from kachery_p2p.client.files import Channels, find_local, open_stored
from kachery_p2p.client.local import kept_store, open_store
from kachery_p2p.client.progress import SENDING, STORING, Reporter
from kachery_p2p.client.spooling import spooled
from kachery_p2p.client.surroundings import Surroundings, surroundings
from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.uris import Uri, check_label, encoded, format_uri
from kachery_p2p.errors import (
    ConfigError,
    DaemonDownError,
    DaemonTimeoutError,
    SourceFileError,
    StorageFailedError,
    UnknownChannelError,
)
from kachery_p2p.limits import CHUNK_BYTES, MESSAGE_ITEMS_MAX
from kachery_p2p.store.paths import blob_path
from kachery_p2p.store.shares import append_contents

if TYPE_CHECKING:
    from kachery_p2p.store.blobs import BlobStore, Stored

WHY = "store"


class Shared(NamedTuple):
    """What became of a wish to share."""

    files: int
    channels: tuple[str, ...]
    # True: written down for the daemon, which shares it when it runs.
    waiting: bool


def store_path(
    path: str, label: str | None, channels: Channels, progress: ProgressArg = None
) -> str:
    """Store a copy of the file at `path`; its URI. No label means the file's own name."""
    label = label_of(path, label)
    with Reporter(progress) as reporter:
        reporter.begin(STORING, size_of([path]))
        return store_by(
            lambda store: store.put_file(path, reporter.count),
            lambda: open_source(path),
            label,
            channels,
            reporter,
        )


def store_value(data: bytes, label: str, channels: Channels) -> str:
    """Store bytes that are in memory; their URI."""
    check_label(label)
    here = surroundings()
    if _there_is_none(here):
        return _store_alone(here, data, label, channels)
    return store_by(lambda store: store.put_bytes(data), lambda: spooled([data]), label, channels)


def _store_alone(here: Surroundings, data: bytes, label: str, channels: Channels) -> str:
    """As `store_by` without a daemon, for values, of which there may be thousands."""
    check_channels(channels)
    store = kept_store(here)
    if (channels is None or channels) and not here.is_offline:
        ids = _wished_ids(channels, here)
        stored = store.put_bytes(data, lambda content: _write_down([content], ids, here))
    else:
        stored = store.put_bytes(data)
    return uri_of(stored.content, stored.root, stored.size, label)


def store_by(
    put: Callable[[BlobStore], Stored],
    as_descriptor: Callable[[], int],
    label: str,
    channels: Channels,
    reporter: Reporter | None = None,
) -> str:
    """Into our own store with `put`; or, if the daemon has another, by it from a descriptor."""
    check_channels(channels)
    running = running_daemon()
    if running is None or shares_our_store(running):
        store = kept_store()
        stored = put(store)
        if running is not None:
            store.flush_index()
        return _store_here(running, stored, label, channels, reporter)
    descriptor = as_descriptor()
    try:
        return store_by_daemon(running, descriptor, label, channels, reporter)
    finally:
        os.close(descriptor)


def link_path(path: str, label: str | None, channels: Channels) -> str:
    """Let the file at `path` stand for its content, without a copy; its URI.

    The link is kept in the configuration, so its daemon sees it whichever store it has.
    """
    label = label_of(path, label)
    check_channels(channels)
    running = running_daemon()
    with open_store() as store:
        stored = store.link_file(path)
        store.flush_index()
    return _store_here(running, stored, label, channels)


def label_of(path: str, label: str | None = None) -> str:
    """`label`, or else the name of the file; InvalidNameError if it cannot be one in a URI."""
    if label is None:
        # "." has a name too; that it is a directory is then what there is to say.
        label = os.path.basename(os.path.abspath(path))
    return check_label(label)


def size_of(paths: Sequence[str]) -> int:
    """How many bytes there are to store, for the progress; what cannot be read fails later."""
    size = 0
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            size += os.stat(path).st_size
    return size


def check_channels(channels: Channels) -> None:
    """ConfigError for a wish to share what no daemon will ever see."""
    if channels:
        _check_online()


def _check_online() -> None:
    if settings.is_offline():
        raise ConfigError(
            "KACHERY_OFFLINE_STORAGE_DIR is set, so nothing can be shared",
            hint="unset KACHERY_OFFLINE_STORAGE_DIR, or name no channel",
        )


def open_source(path: str) -> int:
    """A descriptor of the user's file. A FIFO is not waited for, a device not read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SourceFileError(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceFileError(f"{path} is not a regular file")
    return descriptor


def uri_of(content: str, root: str | None, size: int, label: str) -> str:
    """The root belongs into the URI where it says more than the hash: above one chunk."""
    if not isinstance(content, ContentHash):
        content = ContentHash.parse(content)
    if size <= CHUNK_BYTES:
        # As `format_uri` writes it, in a quarter of the time.
        return f"sha1://{content}/{encoded(label)}"
    shown = Root.parse(root) if root is not None else None
    return format_uri(Uri(content, label, shown))


# --- with the daemon --------------------------------------------------------------------


class Running(NamedTuple):
    """A daemon that answers, and what it said of itself."""

    daemon: Daemon
    said: dict[str, Any]


def running_daemon() -> Running | None:
    """The daemon if it answers. One that refuses us is an error before any work is done."""
    if _there_is_none(surroundings()):
        return None
    try:
        daemon = connect()
        return Running(
            daemon, daemon.greeted() if isinstance(daemon, UnixDaemon) else hello(daemon)
        )
    except (DaemonDownError, DaemonTimeoutError):
        return None


def _there_is_none(here: Surroundings) -> bool:
    """Whether a look is enough to see that no daemon runs: it is quicker than to try."""
    if here.daemon_socket is None:
        return False
    try:
        os.lstat(here.daemon_socket)
    except FileNotFoundError:
        return True
    except OSError:  # nobody may look into a directory of another user, whose daemon refuses us
        pass
    return False


def shares_our_store(running: Running) -> bool:
    """Whether we write the object: also for another machine's daemon, which is sent it after."""
    if not isinstance(running.daemon, UnixDaemon):
        return True
    said = running.said
    try:
        ours = os.stat(settings.storage_dir())
    except OSError:
        # Not made yet: the daemon's exists, so they are one only if they have one name.
        return bool(said["store"] == settings.storage_dir())
    # A guest of another user's daemon may read its store, but not write there.
    writable = os.access(settings.storage_dir(), os.W_OK)
    return writable and (ours.st_dev, ours.st_ino) == (said["store_dev"], said["store_ino"])


def _store_here(
    running: Running | None,
    stored: Stored,
    label: str,
    channels: Channels,
    reporter: Reporter | None = None,
) -> str:
    share_new([stored.content], channels, running, reporter)
    return uri_of(stored.content, stored.root, stored.size, label)


def share_new(
    contents: list[ContentHash],
    channels: Channels,
    running: Running | None,
    reporter: Reporter | None = None,
) -> None:
    """Share what was just stored, unless it is to be private, or lies where no daemon looks."""
    wished = channels is None or len(channels) > 0
    if not contents or not wished or surroundings().is_offline:
        return
    if running is None:
        here = surroundings()
        _write_down(contents, _wished_ids(channels, here), here)
    else:
        share(contents, channels, running.daemon, reporter)


def store_by_daemon(
    running: Running,
    descriptor: int,
    label: str,
    channels: Channels,
    reporter: Reporter | None = None,
) -> str:
    body = {"label": label, "channels": _listed(channels)}
    tell = None if reporter is None else reporter.tell
    stored, _ = running.daemon.call("store", body, tell, descriptor=descriptor)
    return uri_of(stored["content"], stored["root"], stored["size"], label)


def _listed(channels: Channels) -> list[str] | None:
    return None if channels is None else list(channels)


# --- sharing ------------------------------------------------------------------------------


def share(
    contents: Sequence[str],
    channels: Channels,
    daemon: Daemon | None = None,
    reporter: Reporter | None = None,
) -> Shared:
    """Grant stored contents to channels; without a daemon, write the wish down durably."""
    if daemon is not None:
        try:
            return _share_by_daemon(daemon, contents, channels, reporter)
        except (DaemonDownError, DaemonTimeoutError):
            # It went away meanwhile: nothing is lost.
            pass
    here = surroundings()
    ids = _wished_ids(channels, here)
    _write_down(contents, ids, here)
    return Shared(len(contents), _names_of(ids or ()), waiting=True)


def share_stored(contents: Sequence[str], channels: Channels) -> Shared:
    """`share` for contents that were stored earlier, by whatever daemon runs.

    What this node has never hashed is hashed first: nothing corrupt is granted. Raises
    NotFoundError, or CorruptObjectError after moving a bad file to quarantine.
    """
    _check_online()
    with open_store() as store:
        for error in store.vouch([ContentHash(content) for content in contents]).values():
            if error is not None:
                raise error
        store.flush_index()
    running = running_daemon()
    return share(contents, channels, running.daemon if running else None)


def _share_by_daemon(
    daemon: Daemon, contents: Sequence[str], channels: Channels, reporter: Reporter | None
) -> Shared:
    count = 0
    names: tuple[str, ...] = ()
    for start in range(0, len(contents), MESSAGE_ITEMS_MAX):
        some = list(contents[start : start + MESSAGE_ITEMS_MAX])
        result = _share_some(daemon, some, channels, reporter)
        count += result["shared"]
        names = tuple(result["channels"])
    return Shared(count, names, waiting=False)


def _share_some(
    daemon: Daemon, contents: list[str], channels: Channels, reporter: Reporter | None
) -> dict[str, Any]:
    body = {"contents": contents, "pending": None, "channels": _listed(channels)}
    result, _ = daemon.call("share", body)
    missing = result["missing"]
    if not missing:
        return result
    for content in missing:
        _hand_over(daemon, content, channels, reporter)
    result, _ = daemon.call("share", body)
    if result["missing"]:
        raise StorageFailedError(
            f"the daemon does not keep {len(result['missing'])} of the files it was sent",
            hint="see `kachery-p2p status` for what is wrong with its store",
        )
    return result


def _hand_over(daemon: Daemon, content: str, channels: Channels, reporter: Reporter | None) -> None:
    """Give the daemon a content that is in our store and not in its own."""
    path = find_local(Uri(ContentHash(content)))
    descriptor = open_stored(path or blob_path(settings.storage_dir(), content))
    with os.fdopen(descriptor, "rb") as file:
        if reporter is not None:
            reporter.begin(SENDING, os.fstat(descriptor).st_size)
        if isinstance(daemon, UnixDaemon):
            body = {"label": None, "channels": _listed(channels)}
            daemon.call("store", body, descriptor=descriptor)
        else:
            daemon.put_blob(content, file, reporter)


def _write_down(contents: Sequence[str], ids: Sequence[str] | None, here: Surroundings) -> None:
    append_contents(here.config_dir, contents, ids, WHY, time.time())


def _wished_ids(channels: Channels, here: Surroundings) -> Sequence[str] | None:
    """The ids of the channels wished for; None while there is none, which means pending."""
    if channels is None:
        return current_share_list(here.config_dir) or None
    from kachery_p2p.channels.files import joined

    known = {channel.name: channel.id for channel in joined(settings.config_dir())}
    for name in channels:
        if name not in known:
            raise UnknownChannelError(
                f"this node has not joined a channel {name!r}",
                hint=f"join it with `kachery-p2p start --channel {name}`",
            )
    return [known[name] for name in channels]


def _names_of(ids: Collection[str]) -> tuple[str, ...]:
    from kachery_p2p.channels.files import joined

    return tuple(channel.name for channel in joined(settings.config_dir()) if channel.id in ids)
