"""Where decrypted contents lie that were loaded as files: for this user, in no store.

    STORE/.opened-UID/<sha1 of the sealed file>-<key id>      0600 in a 0700 directory
    CONFIG/state/opened/...                                   where the store is not ours to write

Not under its SHA-1 in the store: there other users of the computer could read it, the
daemon would hand it to its guests, and `share` or a second, plain store would serve it to
others. What was not loaded for 30 days is removed when something else is loaded; nothing
is lost by that, the sealed file is in the store.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterable

from kachery_p2p.client import settings
from kachery_p2p.client.local import make_config_dir
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import KeyFileError, StoreError
from kachery_p2p.identity.disk import check_private
from kachery_p2p.identity.frames import Header
from kachery_p2p.limits import DISK_RESERVE_BYTES, OPENED_KEPT_S
from kachery_p2p.store.durable import check_space, write_all, writing_to

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TEMP_PREFIX = ".writing-"
# A writer that is alive has a younger file.
_TEMP_KEPT_S = 86_400.0


def find(content: ContentHash, header: Header) -> str | None:
    """The path of what the sealed file opens to, if it was opened before."""
    for directory in _places():
        path = f"{directory}/{_name(content, header)}"
        try:
            check_private(directory, os.lstat(directory), 0o700)
            status = os.lstat(path)
        except (OSError, KeyFileError):
            continue
        if stat.S_ISREG(status.st_mode) and status.st_size == header.size:
            with contextlib.suppress(OSError):
                os.utime(path)
            return path
    return None


def keep(content: ContentHash, header: Header, pieces: Iterable[bytes]) -> str:
    """Write what the sealed file opens to; where it is, whole, once all pieces were taken.

    Raises StoreError, and what the pieces raise.
    """
    directory = _place()
    _sweep(directory)
    path = f"{directory}/{_name(content, header)}"
    temp = f"{directory}/{_TEMP_PREFIX}{os.urandom(8).hex()}"
    with writing_to(directory):
        check_space(directory, header.size, DISK_RESERVE_BYTES)
        descriptor = os.open(temp, _NEW, 0o600)
    try:
        try:
            _write(descriptor, pieces, directory)
        finally:
            os.close(descriptor)
        with writing_to(directory):
            os.rename(temp, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temp)
        raise
    return path


def forget(content: ContentHash) -> None:
    """Remove what the sealed file was opened to, if it was. Never raises."""
    for directory in _places():
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith(f"{content}-"):
                    os.unlink(entry.path)


def _write(descriptor: int, pieces: Iterable[bytes], directory: str) -> None:
    length = 0
    for piece in pieces:
        with writing_to(directory):
            write_all(descriptor, piece, length)
        length += len(piece)
    with writing_to(directory):
        # Else a power cut could leave the name without the bytes.
        os.fsync(descriptor)


def _name(content: ContentHash, header: Header) -> str:
    # With the key: whoever makes another URI for the same file does not get this one's.
    return f"{content}-{header.key_id.hex()}"


def _places() -> tuple[str, str]:
    beside = os.path.join(settings.storage_dir(), f".opened-{os.geteuid()}")
    return beside, os.path.join(settings.config_dir(), "state", "opened")


def _place() -> str:
    """The first directory of the two that is private and can be had."""
    beside, at_home = _places()
    try:
        return _made(beside)
    except (StoreError, KeyFileError):
        make_config_dir()
        with writing_to(at_home), contextlib.suppress(FileExistsError):
            os.mkdir(os.path.dirname(at_home), 0o700)
        return _made(at_home)


def _made(directory: str) -> str:
    with writing_to(directory):
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        status = os.lstat(directory)
    check_private(directory, status, 0o700)
    with writing_to(directory):
        if not stat.S_ISDIR(status.st_mode) or not os.access(directory, os.W_OK):
            raise NotADirectoryError(20, "not a directory to write into")
    return directory


def _sweep(directory: str) -> None:
    """Remove what was not loaded for long, and what killed writers left. Never raises."""
    now = time.time()
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            kept_s = _TEMP_KEPT_S if entry.name.startswith(_TEMP_PREFIX) else OPENED_KEPT_S
            with contextlib.suppress(OSError):
                if now - entry.stat(follow_symlinks=False).st_mtime > kept_s:
                    os.unlink(entry.path)
