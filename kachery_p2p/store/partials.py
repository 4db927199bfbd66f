"""A download under way, on disk: STORE/.partial/<node id>/<sha1>-<root>/

    root    the root object, and the channel if all chunks came in one; the lock of the
            writing process is on this file
    pages   the chunk hashes, page n at n x 32 KiB, in no order
    bits    a bit for each chunk that was verified and written; a hint
    data    the bytes, each chunk at its place; it becomes the object by a rename

Only the daemon writes here, one process at a time. Nothing is synced on the way: after
a crash everything is hashed again before it counts, so the files may say what they
like, but for the channel: it must never be told of chunks that came in another. Of the
pages one is kept in memory; of the rest only which ones were verified.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator

from kachery_p2p.content.manifests import (
    PAGE_BYTES_MAX,
    RootObject,
    chunk_length,
    page_length,
    page_of,
    verify_chunk,
    verify_page,
)
from kachery_p2p.errors import PartialInUseError, StorageFailedError, VerificationError
from kachery_p2p.limits import CHUNK_BYTES, DISK_RESERVE_BYTES
from kachery_p2p.store.bitmap import Bitmap
from kachery_p2p.store.durable import (
    DurableDirectories,
    check_space,
    sync_file,
    write_all,
    writing_to,
)
from kachery_p2p.store.paths import partial_dir

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
# A finishing process may remove the directory while we open it; twice in a row it does not.
_ATTEMPTS = 3
# Between the root object and the channel's id.
_CHANNEL_MARK = b"\nchannel "


class Partial:
    """One download. Its methods may be called from several threads at once."""

    def __init__(self, directory: str, root_object: RootObject, files: _Files) -> None:
        self.directory = directory
        self.root_object = root_object
        # Every chunk came in the channel that this was opened for, and may be served there.
        self.is_of_channel = False
        self._files = files
        self._lock = threading.Lock()
        self._verified_pages: set[int] = set()
        self._page_at_hand: tuple[int, bytes] = (-1, b"")
        self.have = Bitmap(root_object.chunk_count, _whole_file(files.bits))

    @classmethod
    def open(
        cls,
        store: str,
        node_id: str,
        root_object: RootObject,
        reserve_bytes: int = DISK_RESERVE_BYTES,
        channel: str | None = None,
    ) -> Partial:
        """Begin the download, or go on with it; `verified_chunks` says from where.

        From now on chunks come in `channel`; `is_of_channel` says whether all of them did.
        Raises PartialInUseError if another process has it open, StorageFullError if
        what is still missing does not fit on the disk.
        """
        store = os.path.abspath(store)
        name = f"{root_object.content}-{root_object.root}"
        directory = f"{partial_dir(store, node_id)}/{name}"
        with writing_to(store):
            files = _open_locked(DurableDirectories(store), store, directory)
            try:
                partial = cls(directory, root_object, files)
                partial._lay_out(store, reserve_bytes, channel)
                return partial
            except BaseException:
                files.close()
                raise

    def _lay_out(self, store: str, reserve_bytes: int, channel: str | None) -> None:
        self.is_of_channel = self._note_channel(channel)
        present = os.fstat(self._files.data).st_blocks * 512
        check_space(store, max(0, self.root_object.size - present), reserve_bytes)
        os.ftruncate(self._files.data, self.root_object.size)

    def _note_channel(self, channel: str | None) -> bool:
        """True if every chunk that is here or comes is of `channel`, and noted as such."""
        file, encoded = self._files.root, self.root_object.encode()
        note = b"" if channel is None else _CHANNEL_MARK + channel.encode()
        found = _whole_file(file)
        if found == encoded + note:
            return channel is not None
        if found.startswith(encoded):
            # What is noted of another channel must be gone from the disk, too, before a chunk
            # of this one comes. A process that was killed may have taken it away unsynced.
            os.ftruncate(file, len(encoded))
            self._sync_note()
        else:
            os.ftruncate(file, 0)
            write_all(file, encoded, 0)
        if channel is None or os.fstat(self._files.bits).st_size:
            return False
        # No chunk ever came. Nor are hashes passed on that came in another channel.
        os.ftruncate(self._files.pages, 0)
        write_all(file, note, len(encoded))
        return True

    def _sync_note(self) -> None:
        try:
            sync_file(self._files.root)
        except BaseException:
            self.discard()
            raise

    # --- pages --------------------------------------------------------------------------

    def has_page(self, number: int) -> bool:
        """True if page `number` is here. The first time it is read and verified."""
        if number not in self._verified_pages:
            try:
                self.page(number)
            except VerificationError:
                return False
        return True

    def page(self, number: int) -> bytes:
        """The verified page. Raises VerificationError if it is not here."""
        at_hand = self._page_at_hand
        if at_hand[0] == number:
            return at_hand[1]
        length = page_length(self.root_object.size, number)
        with writing_to(self.directory):
            page = os.pread(self._files.pages, length, number * PAGE_BYTES_MAX)
        verify_page(self.root_object, number, page)
        self._verified_pages.add(number)
        self._page_at_hand = (number, page)
        return page

    def write_page(self, number: int, page: bytes) -> None:
        """Keep a page. Raises VerificationError if it is not page `number`."""
        verify_page(self.root_object, number, page)
        with writing_to(self.directory):
            write_all(self._files.pages, page, number * PAGE_BYTES_MAX)
        self._verified_pages.add(number)
        self._page_at_hand = (number, page)

    # --- chunks -------------------------------------------------------------------------

    def write_chunk(self, number: int, data: bytes | memoryview) -> None:
        """Put a chunk, which the caller has verified, at its place."""
        assert len(data) == chunk_length(self.root_object.size, number), "not the chunk's length"
        with writing_to(self.directory):
            write_all(self._files.data, data, number * CHUNK_BYTES)
            with self._lock:
                self.have.add(number)
                self._write_bit(number)

    def read_chunk(self, number: int) -> bytes:
        """The bytes at the place of a chunk; what they are worth, `have` knows."""
        length = chunk_length(self.root_object.size, number)
        with writing_to(self.directory):
            return os.pread(self._files.data, length, number * CHUNK_BYTES)

    def verified_chunks(self) -> Iterator[int]:
        """The chunks an earlier process left, hashed again one by one; bad bits are cleared."""
        for number in self.have:
            if self._is_good(number):
                yield number
                continue
            with self._lock, writing_to(self.directory):
                self.have.remove(number)
                self._write_bit(number)

    def _is_good(self, number: int) -> bool:
        page, position = page_of(number)
        try:
            verify_chunk(self.page(page), position, self.read_chunk(number))
        except (VerificationError, StorageFailedError):
            return False
        return True

    def _write_bit(self, number: int) -> None:
        offset, byte = self.have.byte_of(number)
        write_all(self._files.bits, byte, offset)

    # --- the end ------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """True if every chunk is here."""
        return len(self.have) == self.root_object.chunk_count

    @property
    def data_path(self) -> str:
        """The file of bytes, which becomes the object."""
        return f"{self.directory}/data"

    @property
    def data_fd(self) -> int:
        """The descriptor of that file; it stays the partial's."""
        return self._files.data

    def open_data(self) -> int:
        """A descriptor of the bytes, for reading only; the caller closes it."""
        with writing_to(self.directory):
            return os.open(self.data_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def sync(self) -> None:
        """Everything is on disk when this returns.

        After a failure nothing here can be trusted, as the kernel may show bytes that
        the disk does not have: the partial is discarded.
        """
        try:
            with writing_to(self.directory):
                for fd in (self._files.data, self._files.pages, self._files.bits):
                    sync_file(fd)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove the download, in any state, and close it. Never raises."""
        # `root` last: the lock is on it, and whoever makes a new one has begun anew.
        for name in ("bits", "pages", "data", "root"):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._files.directory)
        with contextlib.suppress(OSError):
            os.rmdir(self.directory)
        self.close()

    def close(self) -> None:
        """Put the download down for another time. Harmless when done twice."""
        self._files.close()


class _Files:
    """The four open files of a partial, and the directory that they are in."""

    def __init__(self, store: str, directory: str) -> None:
        with contextlib.ExitStack() as opened:
            self.directory = _open_below(opened, store, directory)
            self.root = self._open(opened, "root")
            self.pages = self._open(opened, "pages")
            self.bits = self._open(opened, "bits")
            self.data = self._open(opened, "data")
            self._closing = opened.pop_all()

    def _open(self, opened: contextlib.ExitStack, name: str) -> int:
        fd = os.open(name, _OPEN_FLAGS, 0o600, dir_fd=self.directory)
        opened.callback(os.close, fd)
        return fd

    def close(self) -> None:
        self._closing.close()
        self.directory = -1  # never a descriptor that is another's by now

    def lock(self, directory: str) -> bool:
        """Lock the files for this process; False if they were removed meanwhile."""
        try:
            fcntl.flock(self.root, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PartialInUseError(
                f"another process is downloading into {directory}",
                hint="wait for it, or stop it: `kachery-p2p status` shows the daemon",
            ) from error
        return all(os.fstat(fd).st_nlink for fd in (self.root, self.pages, self.bits, self.data))


def _open_below(opened: contextlib.ExitStack, store: str, directory: str) -> int:
    """A directory below the store. Others may write in a store: no link of theirs is followed."""
    with contextlib.ExitStack() as passed:
        fd = os.open(store, _DIRECTORY_FLAGS & ~os.O_NOFOLLOW)
        passed.callback(os.close, fd)
        for name in os.path.relpath(directory, store).split("/"):
            fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=fd)
            passed.callback(os.close, fd)
        kept = os.dup(fd)
    opened.callback(os.close, kept)
    return kept


def _open_locked(directories: DurableDirectories, store: str, directory: str) -> _Files:
    for _ in range(_ATTEMPTS):
        directories.forget()
        directories.make(directory)
        try:
            files = _Files(store, directory)
        except FileNotFoundError:
            continue
        try:
            if files.lock(directory):
                return files
        except BaseException:
            files.close()
            raise
        files.close()
    raise StorageFailedError(f"{directory} is removed by somebody as often as it is made")


def _whole_file(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)
