"""Files that are kept for some days only: STORE/.scratch/<sha1>, linked as their contents.

A file there is to be removed when its time of modification has come, which lies ahead:
whoever put it there has set it so. Then it is no more, and its link neither; what stands
in the store as an object of its own is another file, and stays.

Who puts a file there shares a lock on the directory until the file is linked, and a sweep
removes while it has that lock alone. As in all sweeps (`cleanup`), no path is followed
twice. A name is given as to objects (`placing`): never to other bytes that have it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterator

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import StorageFailedError
from kachery_p2p.limits import (
    CHUNK_BYTES,
    SCRATCH_LOCK_S_MAX,
    SCRATCH_SWEPT_AT_ONCE,
    TEMP_AGE_S_MAX,
)
from kachery_p2p.store.cleanup import opened_directory, sweep_temp
from kachery_p2p.store.durable import (
    DurableDirectories,
    rename_new,
    sync_file,
    sync_open_directory,
    writing_to,
)
from kachery_p2p.store.index import Index
from kachery_p2p.store.links import Links
from kachery_p2p.store.objects import collision
from kachery_p2p.store.paths import quarantine_dir
from kachery_p2p.store.temps import OBJECT_MODE, lock

log = logging.getLogger(__name__)

# Between two attempts to lock; a sweep rests for longer, so that who waits gets its turn.
_POLL_S = 0.02
_REST_S = 0.05
_CONTENT = re.compile(r"[0-9a-f]{40}")
# Somebody else may put the same there, or remove it, between our look and our rename.
_ATTEMPTS = 3


def scratch_dir(store: str) -> str:
    """The directory of files that are kept for some days."""
    return f"{store}/.scratch"


# --- putting ------------------------------------------------------------------------------


def put_scratch(
    store: str, until: float, write: Callable[[int], None], link: Callable[[str], None]
) -> ContentHash:
    """Keep what `write` writes to the descriptor it is told, until `until` or longer; its hash.

    `link` is told the path, and no sweep removes the file before that returns. Raises a
    StoreError, among them HashCollisionError, and what the two raise.
    """
    path = scratch_dir(store)
    with contextlib.ExitStack() as stack:
        with writing_to(store):
            # As open as the store directory: others may store there too.
            DurableDirectories(store).make(path)
            directory = stack.enter_context(opened_directory(path))
            new = stack.enter_context(_new_file(directory))
            write(new.fd)
            content = ContentHash(_sha1(new.fd))
            stack.enter_context(_no_sweep(directory, path))
            _place(store, directory, new, content, until)
        link(f"{path}/{content}")
    return content


class _NewFile:
    def __init__(self, directory: int) -> None:
        self.name = f".{os.urandom(8).hex()}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self.fd = os.open(self.name, flags, OBJECT_MODE, dir_fd=directory)


@contextlib.contextmanager
def _new_file(directory: int) -> Iterator[_NewFile]:
    """A new, locked file, which is removed at the end if it has its first name still."""
    new = _NewFile(directory)
    try:
        lock(new.fd)
        # As objects are: whoever shares the store directory may read it.
        os.fchmod(new.fd, OBJECT_MODE)
        yield new
    finally:
        with contextlib.suppress(OSError):
            os.unlink(new.name, dir_fd=directory)
        os.close(new.fd)


def _place(store: str, directory: int, new: _NewFile, content: ContentHash, until: float) -> None:
    path = scratch_dir(store)
    for _ in range(_ATTEMPTS):
        here_until = _until_of_the_same(store, directory, new, content)
        # Neither of the two is kept for a shorter time than was said.
        end = until if here_until is None else max(until, here_until)
        os.utime(new.fd, (end, end))
        sync_file(new.fd)
        try:
            if here_until is None:
                rename_new(f"{path}/{new.name}", f"{path}/{content}")
            else:
                os.rename(new.name, content, src_dir_fd=directory, dst_dir_fd=directory)
        except FileExistsError:
            continue
        sync_open_directory(directory)
        return
    raise StorageFailedError(
        f"{path}/{content} is being stored by others again and again", hint="try again in a moment"
    )


def _until_of_the_same(
    store: str, directory: int, new: _NewFile, content: ContentHash
) -> float | None:
    """Until when the same bytes are kept under that name; None if there is nothing, by now.

    What does not have the bytes of that name is moved to quarantine. Raises HashCollisionError.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(content, flags, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.ELOOP:  # a link
            raise
        _quarantine(store, directory, content)
        return None
    try:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode):
            if _are_equal(fd, new.fd):
                return status.st_mtime
            if _sha1(fd) == content:
                raise collision(content)
    finally:
        os.close(fd)
    _quarantine(store, directory, content)
    return None


def _quarantine(store: str, directory: int, content: ContentHash) -> None:
    kept = f"{quarantine_dir(store)}/{content}.{time.time_ns()}"
    DurableDirectories(store).make(quarantine_dir(store))
    with contextlib.suppress(FileNotFoundError):
        os.rename(content, kept, src_dir_fd=directory)
    log.error(
        "%s/%s did not have the bytes of its name: kept as %s", scratch_dir(store), content, kept
    )


def _are_equal(one: int, other: int) -> bool:
    if os.fstat(one).st_size != os.fstat(other).st_size:
        return False
    at = 0
    while data := os.pread(one, CHUNK_BYTES, at):
        if data != os.pread(other, CHUNK_BYTES, at):
            return False
        at += len(data)
    return True


def _sha1(fd: int) -> str:
    import hashlib

    with open(fd, "rb", closefd=False) as file:
        file.seek(0)
        return hashlib.file_digest(file, lambda: hashlib.sha1(usedforsecurity=False)).hexdigest()


# --- sweeping -----------------------------------------------------------------------------


def sweep_scratch(store: str, state_dir: str, now: float) -> int:
    """Remove the files whose time has come by `now`; how many. Those of other users too.

    `state_dir` is where this user's links are noted. While somebody is putting files there
    nothing is removed. Raises a StoreError if the links cannot be read.
    """
    removed = 0
    try:
        with opened_directory(scratch_dir(store)) as directory:
            over = [name for name in os.listdir(directory) if _is_over(directory, name, now)]
            for at in range(0, len(over), SCRATCH_SWEPT_AT_ONCE):
                if at:
                    time.sleep(_REST_S)
                some = over[at : at + SCRATCH_SWEPT_AT_ONCE]
                removed += _remove(directory, some, store, state_dir, now)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("%s cannot be swept: %s", scratch_dir(store), error)
    return removed


def _remove(directory: int, names: list[str], store: str, state_dir: str, now: float) -> int:
    if not _is_locked(directory, fcntl.LOCK_EX, 0.0):
        return 0
    try:
        # Looked at again: somebody may have put the same there a moment ago.
        gone = [
            name for name in names if _is_over(directory, name, now) and _removed(directory, name)
        ]
        _end_links(
            [ContentHash(name) for name in gone if _CONTENT.fullmatch(name)], store, state_dir
        )
    finally:
        _unlock(directory)
    return len(gone)


def _is_over(directory: int, name: str, now: float) -> bool:
    """True for a file whose time has come, if it is one of ours."""
    if not _CONTENT.fullmatch(name) and not name.startswith("."):
        return False
    # Of a file that is being written the name is another, and its time is that of now.
    grace_s = 0.0 if _CONTENT.fullmatch(name) else TEMP_AGE_S_MAX
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_mtime + grace_s < now


def _removed(directory: int, name: str) -> bool:
    try:
        if not _CONTENT.fullmatch(name):
            return sweep_temp(directory, name) > 0
        os.unlink(name, dir_fd=directory)
    except OSError:
        return False
    return True


def _end_links(contents: list[ContentHash], store: str, state_dir: str) -> None:
    """Forget that files stood for their contents; what the user linked elsewhere stays."""
    if not contents:
        return
    with contextlib.ExitStack() as stack:
        index = stack.enter_context(contextlib.closing(Index(f"{state_dir}/index.db")))
        links = Links(f"{state_dir}/links.db", store, index)
        stack.enter_context(contextlib.closing(links))
        for content in contents:
            link = links.get(content)
            if link is not None and link.path == f"{scratch_dir(store)}/{content}":
                links.drop(content)


# --- the lock -----------------------------------------------------------------------------


@contextlib.contextmanager
def _no_sweep(directory: int, path: str) -> Iterator[None]:
    """While in it no sweep removes files. StorageFailedError if one goes on for long."""
    if not _is_locked(directory, fcntl.LOCK_SH, SCRATCH_LOCK_S_MAX):
        raise StorageFailedError(
            f"{path} has been swept by another process for {SCRATCH_LOCK_S_MAX:g} s",
            hint="try again in a moment",
        )
    try:
        yield
    finally:
        _unlock(directory)


def _is_locked(directory: int, how: int, wait_s: float) -> bool:
    """Lock it; False if others have it for longer than that."""
    give_up_at = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(directory, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= give_up_at:
                return False
            time.sleep(_POLL_S)
        except OSError:
            # Where there are no locks, the time that a file has left protects it.
            return True
        else:
            return True


def _unlock(directory: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.flock(directory, fcntl.LOCK_UN)
