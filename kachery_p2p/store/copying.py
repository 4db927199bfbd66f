"""Bytes from one file to another, the kernel doing the work where it can.

`copy_file_range` moves 3 GiB/s and shares the blocks on file systems that can;
whatever it refuses (other file system, pipe-like files, old kernels) is read and
written instead, from the byte where it stopped.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from types import TracebackType

from kachery_p2p.errors import (
    CorruptObjectError,
    ResolutionError,
    StorageFailedError,
    StorageFullError,
)
from kachery_p2p.limits import CHUNK_BYTES
from kachery_p2p.store.durable import storage_error, sync_file, write_all
from kachery_p2p.store.hashing import STEP_BYTES
from kachery_p2p.store.sources import unreadable


class Copier:
    """Copies a file step by step; `copied` bytes are at their place in the target."""

    def __init__(self, source: int, target: int, place: str) -> None:
        self.copied = 0
        self._source = source
        self._target = target
        self._place = place
        self._by_kernel = hasattr(os, "copy_file_range")

    def step(self, size: int) -> int:
        """Copy some of what is missing to `size` bytes; how many, 0 at the end of the source.

        Raises SourceFileError when reading fails, a StoreError when writing does.
        """
        wanted = min(STEP_BYTES, size - self.copied)
        count = self._by_kernel_copied(wanted) or self._read_and_written(wanted)
        if self._by_kernel:
            _start_writing(self._target, self.copied, count)
        self.copied += count
        return count

    def _by_kernel_copied(self, wanted: int) -> int:
        if not self._by_kernel:
            return 0
        try:
            count = os.copy_file_range(self._source, self._target, wanted, self.copied, self.copied)
        except OSError:
            # Whatever it was: reading and writing either works, or tells whose fault it is.
            count = 0
        # Early 0: some file systems answer so for files they cannot copy.
        self._by_kernel = count > 0
        return count

    def _read_and_written(self, wanted: int) -> int:
        try:
            data = os.pread(self._source, min(wanted, CHUNK_BYTES), self.copied)
        except OSError as error:
            raise unreadable(error) from error
        try:
            write_all(self._target, data, self.copied)
        except OSError as error:
            raise storage_error(error, self._place) from error
        return len(data)


def _start_writing(fd: int, offset: int, length: int) -> None:
    """Let the disk begin now: the fsync at the end of a GiB then finds little left (0.5 s less).

    The advice drops pages that are clean and starts writing those that are not, which
    ours are; it is sync_file_range without needing ctypes.
    """
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)


def copy_whole(descriptor: int, dest: str) -> str:
    """Copy an open file to the path `dest`, whole or not at all; `dest`.

    A file there is replaced in one step. Raises ResolutionError when `dest` is a
    directory or a device, or its own directory does not exist or may not be written.
    """
    _check_destination(dest)
    with _Beside(dest) as temp:
        copier = Copier(descriptor, temp.fd, os.path.dirname(os.path.abspath(dest)))
        size = os.fstat(descriptor).st_size
        while copier.copied < size:
            if not copier.step(size):
                raise CorruptObjectError(f"the stored file became shorter while copied to {dest}")
        temp.take_its_place()
    return dest


def write_whole(pieces: Iterable[bytes], dest: str) -> str:
    """Write the pieces to the path `dest`, as `copy_whole` does; what they raise is raised."""
    _check_destination(dest)
    with _Beside(dest) as temp:
        length = 0
        for piece in pieces:
            with _writing_beside(dest):
                write_all(temp.fd, piece, length)
            length += len(piece)
        temp.take_its_place()
    return dest


def _check_destination(dest: str) -> None:
    parent = os.path.dirname(os.path.abspath(dest))
    if not os.path.isdir(parent):
        raise ResolutionError(f"there is no directory {parent}", hint=f"mkdir -p {parent}")
    try:
        mode = os.stat(dest).st_mode
    except OSError:
        return
    if stat.S_ISDIR(mode):
        raise ResolutionError(f"{dest} is a directory", hint="give the name of a file in it")
    if not stat.S_ISREG(mode):
        # Replacing /dev/null by a recording would be the user's last wish.
        raise ResolutionError(f"{dest} is not a regular file", hint="give the name of a file")


class _Beside:
    """A temporary file next to `dest`, gone at the end unless it took the place of `dest`."""

    def __init__(self, dest: str) -> None:
        self._dest = dest
        directory, name = os.path.split(os.path.abspath(dest))
        # Not the whole name: with our suffix it could be longer than a name may be.
        self._path: str | None = f"{directory}/.{name[:40]}.{os.urandom(8).hex()}.tmp"
        self.fd = -1

    def __enter__(self) -> _Beside:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        assert self._path is not None
        with _writing_beside(self._dest):
            self.fd = os.open(self._path, flags, 0o666)
        return self

    def take_its_place(self) -> None:
        assert self._path is not None
        with _writing_beside(self._dest):
            sync_file(self.fd)
            os.rename(self._path, self._dest)
        self._path = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.fd)
        if self._path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)


@contextlib.contextmanager
def _writing_beside(dest: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(storage_error(error, dest), StorageFullError):
            raise StorageFullError(
                f"no space is left for {dest}", hint="free some space, or load it elsewhere"
            ) from error
        reason = (error.strerror or str(error)).lower()
        message = f"{dest} cannot be written: {reason}"
        if error.errno == errno.EIO:  # the disk's fault, not that of who chose the destination
            raise StorageFailedError(message, hint="check its disk") from error
        raise ResolutionError(message) from error


def destination_of(dest: str, name: str | None) -> str:
    """The path `dest`, or that of `name` in it if it is a directory, which needs one."""
    if not os.path.isdir(dest):
        return dest
    if name is None:
        raise ResolutionError(f"{dest} is a directory", hint="give the name of a file in it")
    from kachery_p2p.content.uris import check_label

    return os.path.join(dest, check_label(name))
