"""What a load does when the content is not in the store directory: it asks the daemon."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kachery_p2p.client.daemon import Daemon, Reply, UnixDaemon, connect
from kachery_p2p.client.files import find_local, open_stored, pread_all, read_range
from kachery_p2p.client.origin import ANYWHERE, Deadline, Origin
from kachery_p2p.client.progress import COPYING, Reporter
from kachery_p2p.content.uris import Uri
from kachery_p2p.errors import (
    DaemonDownError,
    DaemonProtocolError,
    InvalidRangeError,
    NotFoundError,
    ResolutionError,
    StorageFullError,
    StorePermissionError,
    VerificationError,
)
from kachery_p2p.limits import DOOR_PIECE_BYTES

if TYPE_CHECKING:
    from kachery_p2p.client.http_daemon import HttpDaemon


def fetch(wanted: Uri, origin: Origin = ANYWHERE, reporter: Reporter | None = None) -> str:
    """The path of the content, once the daemon has it and it is within our reach.

    How far it is, the call's `reporter` is told; without one it is shown to people.
    """
    if reporter is not None:
        return _fetch(wanted, origin, reporter)
    with Reporter() as own:
        return _fetch(wanted, origin, own)


def _fetch(wanted: Uri, origin: Origin, reporter: Reporter) -> str:
    until = origin.until()
    try:
        daemon = connect()
        result, descriptor = _call(daemon, "load", wanted, origin, reporter)
    except DaemonDownError as error:
        raise nowhere(wanted, error) from error
    try:
        # A daemon with the same store directory has put it there.
        if (path := find_local(wanted)) is not None:
            return path
        return _take_over(wanted, result, descriptor, daemon, until, reporter)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _call(
    daemon: Daemon,
    op: str,
    wanted: Uri,
    origin: Origin,
    reporter: Reporter | None = None,
    **more: Any,
) -> Reply:
    """An operation that may fetch: its progress is told, and it ends in the time allowed."""
    body = {"content": wanted.content, "root": wanted.root, **more, **origin.fields}
    if reporter is not None:
        return daemon.call(op, body, progress=reporter.tell, timeout_s=origin.answer_s)
    with Reporter() as own:
        return daemon.call(op, body, progress=own.tell, timeout_s=origin.answer_s)


def nowhere(wanted: Uri, error: DaemonDownError) -> NotFoundError:
    """Both facts: either could be what the person did not expect."""
    return NotFoundError(
        f"sha1://{wanted.content} is not stored here, and {error}", hint=error.hint
    )


def _take_over(
    wanted: Uri,
    result: dict[str, Any],
    descriptor: int | None,
    daemon: Daemon,
    until: Deadline,
    reporter: Reporter,
) -> str:
    """Copy the content from a daemon with another store into ours, so that next time is a hit."""
    if not isinstance(daemon, UnixDaemon):
        pieces = daemon.read_blob(wanted.content, wanted.root, until.left_s)
    elif descriptor is not None:
        pieces = _pieces_of(descriptor)
    else:
        raise DaemonProtocolError("the daemon loaded the content but did not hand it over")
    reporter.begin(COPYING, result["size"])
    try:
        return put_pieces(wanted, reporter.counted(until.kept_by(pieces)), result["size"])
    except (StorePermissionError, StorageFullError):
        path = result["path"]
        if descriptor is not None and isinstance(path, str) and _is_same(path, descriptor):
            return path
        raise


def put_pieces(wanted: Uri, pieces: Iterator[bytes], size: int) -> str:
    """Into our own store, if the bytes are what the URI says."""
    from kachery_p2p.client.local import open_store

    with open_store() as store:
        stored = store.put_stream(pieces, wanted.content, size)
    if wanted.root is not None and stored.root != wanted.root:
        raise VerificationError("the content does not match the root in its URI")
    return str(stored.path)


def _pieces_of(descriptor: int) -> Iterator[bytes]:
    offset = 0
    while piece := os.pread(descriptor, DOOR_PIECE_BYTES, offset):
        yield piece
        offset += len(piece)


def _is_same(path: str, descriptor: int) -> bool:
    """Whether `path` is, for us too, the readable file that the daemon handed over."""
    try:
        same = os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False
    return same and os.access(path, os.R_OK)


def fetch_range(
    wanted: Uri, start: int, end: int, origin: Origin = ANYWHERE, reporter: Reporter | None = None
) -> bytes:
    """Bytes of a content that is not stored here; progress as of `fetch`."""
    daemon = _daemon_for(wanted)
    if not isinstance(daemon, UnixDaemon):
        return _fetch_range_over_http(daemon, wanted, start, end, origin, reporter)
    result, descriptor = _load_range(daemon, wanted, start, end, origin, reporter)
    try:
        if result["length"] != end - start:
            raise DaemonProtocolError("the daemon handed over another range than asked for")
        return pread_all(descriptor, result["offset"], end - start)
    finally:
        os.close(descriptor)


def open_range(
    wanted: Uri, start: int, end: int, origin: Origin = ANYWHERE, *, shown: bool = True
) -> tuple[int, int] | None:
    """(descriptor, size): bytes `start` to `end` of the file behind it are verified.

    The descriptor is the caller's to close. None if the daemon is one that hands over no
    files. `shown`: progress as of `fetch`.
    """
    daemon = _daemon_for(wanted)
    if not isinstance(daemon, UnixDaemon):
        return None
    reporter = None if shown else Reporter(False)
    result, descriptor = _load_range(daemon, wanted, start, end, origin, reporter)
    if (result["offset"], result["length"]) != (start, end - start):
        os.close(descriptor)
        raise DaemonProtocolError("the daemon handed over another range than asked for")
    return descriptor, int(result["size"])


def fetch_size(wanted: Uri, origin: Origin = ANYWHERE) -> int:
    """The verified size of a content that is not stored here; without a root all of it is loaded.

    What members say of it is not enough: one that lies could have the content cut short.
    """
    daemon = _daemon_for(wanted)
    if not isinstance(daemon, UnixDaemon):
        return _size_over_http(daemon, wanted, origin)
    result, descriptor = _load_range(daemon, wanted, 0, 0, origin)
    os.close(descriptor)
    return int(result["size"])


def _daemon_for(wanted: Uri) -> Daemon:
    try:
        return connect()
    except DaemonDownError as error:
        raise nowhere(wanted, error) from error


def _load_range(
    daemon: UnixDaemon,
    wanted: Uri,
    start: int,
    end: int,
    origin: Origin,
    reporter: Reporter | None = None,
) -> tuple[dict[str, Any], int]:
    try:
        result, descriptor = _call(
            daemon, "load_range", wanted, origin, reporter, start=start, end=end
        )
    except DaemonDownError as error:
        raise nowhere(wanted, error) from error
    if descriptor is None:
        raise DaemonProtocolError("the daemon loaded the bytes but did not hand them over")
    return result, descriptor


def _fetch_range_over_http(
    daemon: HttpDaemon,
    wanted: Uri,
    start: int,
    end: int,
    origin: Origin,
    reporter: Reporter | None = None,
) -> bytes:
    try:
        if wanted.root is None:
            # Nothing vouches for a part, so the daemon must have the whole first; with
            # `load` it says that it is alive meanwhile, which GET cannot.
            _call(daemon, "load", wanted, origin, reporter)
            if (path := find_local(wanted)) is not None:
                return read_range(path, start, end)
        if start == end:
            return _check_empty(daemon, wanted, end, origin)
        return daemon.read_range(wanted.content, wanted.root, start, end, origin)
    except DaemonDownError as error:
        raise nowhere(wanted, error) from error


def _check_empty(daemon: HttpDaemon, wanted: Uri, end: int, origin: Origin) -> bytes:
    """HTTP has no empty range, but one that lies outside the file is still wrong."""
    size = _size_over_http(daemon, wanted, origin)
    if end > size:
        raise InvalidRangeError(f"{end} does not lie inside the {size} bytes of the file")
    return b""


def _size_over_http(daemon: HttpDaemon, wanted: Uri, origin: Origin) -> int:
    """The size that the daemon has verified."""
    try:
        return daemon.blob_size(wanted.content, wanted.root, origin)
    except DaemonDownError as error:
        raise nowhere(wanted, error) from error


def copy_out(wanted: Uri, path: str, dest: str) -> str:
    """Write a copy of a stored file to `dest`, whole or not at all; where it is."""
    from kachery_p2p.store.copying import copy_whole

    if os.path.isdir(dest):
        dest = os.path.join(dest, wanted.name or wanted.content)
    if os.path.isdir(dest):
        raise ResolutionError(f"{dest} is a directory", hint="give --dest the name of a file")
    descriptor = open_stored(path)
    try:
        return copy_whole(descriptor, dest)
    finally:
        os.close(descriptor)
