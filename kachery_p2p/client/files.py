"""Files by their content: `store_*` gives a URI, `load_*` gives the content back.

A load looks into the store directory first, with one look at the file system, and is
then done if the content is there: no daemon is asked and nothing heavy is imported.
What is not there is asked of the daemon, which fetches it from the channels it is in.

`channels` of `store_*` says where the content may be had: None, in the channels of the
share list as it is at that moment; [], nowhere (private); or channels by their names.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from kachery_p2p.client import settings
from kachery_p2p.client.events import ProgressArg
from kachery_p2p.client.origin import ANYWHERE, Origin
from kachery_p2p.client.origin import origin as origin_of
from kachery_p2p.content.uris import Uri, parse_uri
from kachery_p2p.errors import InvalidRangeError, LoadFileError
from kachery_p2p.store.paths import blob_path

if TYPE_CHECKING:
    from kachery_p2p.client.asking import ChannelInfo, Found
    from kachery_p2p.client.progress import Reporter

Channels = Sequence[str] | None
PathLike = str | os.PathLike[str]


# --- storing --------------------------------------------------------------------------


def store_file(
    path: PathLike,
    label: str | None = None,
    *,
    channels: Channels = None,
    access_group: str | None = None,
    progress: ProgressArg = None,
) -> str:
    """Store a copy of the file; its URI, whose name is `label` or else the file's own.

    With `access_group`, the name or id of a group of this node, what is stored is encrypted:
    whoever has it in the channels needs the URI, which is encrypted too, and the group's key.
    `progress` is that of `load_file`.
    """
    if access_group is not None:
        from kachery_p2p.client import sealing

        return sealing.store_path(os.fspath(path), label, channels, progress, access_group)
    from kachery_p2p.client import storing

    return storing.store_path(os.fspath(path), label, channels, progress)


def store_files(
    paths: Iterable[PathLike], *, channels: Channels = None, progress: ProgressArg = None
) -> list[str]:
    """Store a copy of each file; their URIs, in the same order.

    Much quicker than one by one: groups of them share the waits for the disk, and one
    note shares them all. If some cannot be stored the others are, and it raises a
    StoreFilesError that says which.
    """
    from kachery_p2p.client import many

    return many.store_files(paths, channels, progress)


def link_file(path: PathLike, label: str | None = None, *, channels: Channels = None) -> str:
    """Let the file stand for its content, without a copy; its URI.

    It is loaded and shared from where it lies, as long as it keeps its bytes: whoever
    loads it after it was changed gets a LinkChangedError, never other bytes.
    """
    from kachery_p2p.client import storing

    return storing.link_path(os.fspath(path), label, channels)


# --- loading --------------------------------------------------------------------------


def load_file(
    uri: str,
    dest: PathLike | None = None,
    *,
    verify: bool = False,
    from_channel: str | None = None,
    from_node: str | None = None,
    timeout: float | None = None,
    progress: ProgressArg = None,
) -> str:
    """The path of a file with the content, to be read only; or `dest`, with a copy written to it.

    `dest` may be a file (replaced whole or not at all) or an existing directory, which
    then gets a file of the URI's name. Raises a LoadFileError; never returns None.
    What comes from others is always verified. What is stored here is read and verified
    only on `verify`: it is then a CorruptObjectError if it has other bytes by now.

    What is not stored here is fetched, with `from_channel` only from members of the
    channel of that name, with `from_node` only from that node (its id, or as much of its
    label as no other connected node has), with `timeout` within so many seconds, or it
    is a LoadTimeoutError.

    What takes longer than a second shows a bar, on a terminal or in a notebook. With
    `progress` False it does not, with True it does at once and anywhere; a function is called
    with a `Progress` in this thread: at first, a few times a second, and in the end. What it
    raises ends the load and is raised here; what has arrived is kept.
    """
    origin = origin_of(from_channel, from_node, timeout)
    load = load_clear
    if is_encrypted_uri(uri):
        from kachery_p2p.client.unsealing import load_file as load
    if progress is not None:
        from kachery_p2p.client.progress import Reporter

        with Reporter(progress) as reporter:
            return load(uri, dest, verify, origin, reporter)
    return load(uri, dest, verify, origin, None)


def load_clear(
    uri: str, dest: PathLike | None, verify: bool, origin: Origin, reporter: Reporter | None
) -> str:
    """`load_file` of a URI that is not encrypted."""
    wanted = wanted_by(uri, origin, reporter)
    path = find_local(wanted)
    if path is None:
        path = fetch(wanted, origin, reporter)
    else:
        if reporter is not None:
            reporter.begin("local", os.stat(path).st_size)
        if verify:
            from kachery_p2p.client.local import verify_stored

            verify_stored(wanted)
    if dest is None:
        return path
    from kachery_p2p.client import loading

    return loading.copy_out(wanted, path, os.fspath(dest))


def load_files(
    uris: Iterable[str],
    *,
    from_channel: str | None = None,
    from_node: str | None = None,
    timeout: float | None = None,
    progress: ProgressArg = None,
) -> list[str]:
    """The paths of files with the contents, in the same order, to be read only.

    If some cannot be had it raises a LoadFilesError that says which; the others were
    loaded, and are there the next time. `timeout` is for each of them.
    """
    from kachery_p2p.client import many

    return many.load_files(uris, origin_of(from_channel, from_node, timeout), progress)


def load_bytes(
    uri: str,
    start: int,
    end: int,
    *,
    from_channel: str | None = None,
    from_node: str | None = None,
    timeout: float | None = None,
    verify: str | None = None,
    progress: ProgressArg = None,
) -> bytes:
    """The bytes from `start` up to, not including, `end`; only they are fetched if it can be.

    It can if the URI has a root; `verify` is that of `open`, for one that has none.
    """
    origin = origin_of(from_channel, from_node, timeout)
    load = load_clear_bytes
    if is_encrypted_uri(uri):
        from kachery_p2p.client.unsealing import load_bytes as load
    if progress is None:
        return load(uri, start, end, origin, verify, None)
    from kachery_p2p.client.progress import Reporter

    with Reporter(progress) as reporter:
        return load(uri, start, end, origin, verify, reporter)


def load_clear_bytes(
    uri: str,
    start: int,
    end: int,
    origin: Origin,
    verify: str | None,
    reporter: Reporter | None,
) -> bytes:
    """`load_bytes` of a URI that is not encrypted."""
    wanted = wanted_by(uri, origin, reporter)
    if not 0 <= start <= end:
        raise InvalidRangeError(f"{start} to {end} is not a range of bytes")
    path = find_local(wanted)
    if path is not None:
        if reporter is not None:
            reporter.begin("local", end - start)
        return read_range(path, start, end)
    from kachery_p2p.client import loading
    from kachery_p2p.client.vouching import vouched

    until = origin.until()
    wanted = vouched(wanted, origin, verify, stacklevel=3)
    origin = origin._replace(timeout_s=until.left_s)
    return loading.fetch_range(wanted, start, end, origin, reporter)


def find_file(
    uri: str,
    *,
    from_channel: str | None = None,
    from_node: str | None = None,
    timeout: float | None = None,
) -> Found:
    """Who has the content: `local`, `size`, and `providers` (node_id, label, channel) of others.

    That nobody has it is no error: then `size` is None. `asked` is False when no daemon
    runs, who alone can ask others. `from_channel` and `from_node` say who is asked,
    `timeout` for how long.
    """
    from kachery_p2p.client import asking

    origin = origin_of(from_channel, from_node, timeout)
    return asking.find(wanted_by(uri, origin), origin)


def get_channels() -> list[ChannelInfo]:
    """The channels this node is in: name, id, kind, shared_list, members, peers of each."""
    from kachery_p2p.client import asking

    return asking.get_channels()


def get_node_id() -> str:
    """This node's id: what others give you access by."""
    from kachery_p2p.client import asking

    return asking.node_id()


def wanted_by(uri: str, origin: Origin = ANYWHERE, reporter: Reporter | None = None) -> Uri:
    """The content that the URI names; of a file in a directory, after a look into its list.

    Of a URI that is encrypted with its content, the encrypted file.
    """
    if uri.startswith("sha1://"):
        return parse_uri(uri)
    if is_encrypted_uri(uri):
        from kachery_p2p.client.encrypted_uris import disclose

        return disclose(uri).wanted
    if is_directory_uri(uri):
        from kachery_p2p.client import directory_lists

        return directory_lists.file_at(uri, origin, reporter)
    return parse_uri(uri)


def is_directory_uri(uri: str) -> bool:
    """Whether it names a directory, or a file by its path in one."""
    return uri.lstrip()[:10].lower() == "sha1dir://"


def is_encrypted_uri(uri: str) -> bool:
    """Whether it is one that only the members of an access group can read."""
    return uri.lstrip()[:11].lower() == "sha1-enc://"


def find_local(wanted: Uri) -> str | None:
    """Where the content is in the store directory, if it is; or else a file linked as it.

    One look; the bytes are not read, except those of a linked file that was touched.
    """
    path = blob_path(settings.storage_dir(), wanted.content)
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            return path
    except OSError:
        pass
    from kachery_p2p.client.local import find_linked

    return find_linked(wanted.content)


def read_range(path: str, start: int, end: int) -> bytes:
    """Bytes of a file; InvalidRangeError unless all of them are there."""
    descriptor = open_stored(path)
    try:
        size = os.fstat(descriptor).st_size
        if end > size:
            raise InvalidRangeError(
                f"{start} to {end} does not lie inside the {size} bytes of the file"
            )
        return pread_all(descriptor, start, end - start)
    finally:
        os.close(descriptor)


def open_stored(path: str) -> int:
    """A descriptor of a stored file."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise LoadFileError(
            f"{path} is stored here but cannot be read: {error.strerror}",
            hint="ask the owner of the store directory for read permission",
        ) from error


def pread_all(descriptor: int, offset: int, length: int) -> bytes:
    """Exactly `length` bytes at `offset` (one call of the system gives at most 2 GiB)."""
    parts = []
    while length:
        part = os.pread(descriptor, length, offset)
        if not part:
            raise LoadFileError("the file became shorter while it was read", hint="try again")
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def fetch(wanted: Uri, origin: Origin = ANYWHERE, reporter: Reporter | None = None) -> str:
    """The path of a content that is not here, once the daemon has brought it."""
    from kachery_p2p.client import loading

    return loading.fetch(wanted, origin, reporter)
