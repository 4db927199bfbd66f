"""What comes in: bytes, a file or a stream, written to an open temporary file and hashed.

A small file goes through memory. A large one is copied by the kernel while its copy is
hashed. Either way the name belongs to the bytes that were written, whatever happens to
the source meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

from kachery_p2p.content.manifests import Manifest
from kachery_p2p.limits import CHUNK_BYTES
from kachery_p2p.store.copying import Copier
from kachery_p2p.store.durable import check_space, storage_error, write_all, writing_to
from kachery_p2p.store.hashing import EndedEarlyError, FileHashes, hash_bytes, read_exactly
from kachery_p2p.store.sources import check_unchanged, source_changed, unreadable, unsettled_s

# Below this, a file changed a moment ago is simply read again when it is stored again.
WORTH_SETTLING_BYTES = 64 << 20


# Told of each further so many bytes that were taken.
Progress = Callable[[int], None]


def quietly(count: int) -> None:
    """Progress that nobody wants to hear of."""


class Intake:
    """Writes what comes into the store `place`, and leaves `reserve_bytes` of its disk free."""

    def __init__(self, place: str, reserve_bytes: int) -> None:
        self._place = place
        self.reserve_bytes = reserve_bytes

    def check_space(self, need: int) -> None:
        """Raise StorageFullError unless `need` more bytes leave the reserve free."""
        try:
            check_space(self._place, need, self.reserve_bytes)
        except OSError as error:
            raise storage_error(error, self._place) from error

    def take_bytes(self, target: int, data: bytes) -> None:
        """Write `data` into the empty file `target`."""
        with writing_to(self._place):
            write_all(target, data, 0)

    def take_file(
        self, target: int, source: int, status: os.stat_result, progress: Progress = quietly
    ) -> Manifest:
        """Copy the file `source`, which had this `status`; what was written.

        Raises SourceChangedError if it was written to meanwhile.
        """
        if status.st_size <= CHUNK_BYTES:
            data = _read_small(source, status)
            self.take_bytes(target, data)
            progress(len(data))
            return hash_bytes(data)
        with FileHashes(target) as hashes:
            copier = Copier(source, target, self._place)
            while copier.copied < status.st_size:
                self.check_space(status.st_size - copier.copied)
                count = copier.step(status.st_size)
                if not count:
                    raise source_changed()
                with writing_to(self._place):
                    hashes.grown(copier.copied)
                progress(count)
            check_unchanged(status, source)
            with writing_to(self._place):
                return hashes.finish(copier.copied)

    def take_stream(self, target: int, pieces: Iterable[bytes]) -> Manifest:
        """Write the pieces as they come; what was written."""
        length = 0
        with FileHashes(target) as hashes:
            for piece in pieces:
                self.check_space(len(piece))
                with writing_to(self._place):
                    write_all(target, piece, length)
                    length += len(piece)
                    hashes.grown(length)
            with writing_to(self._place):
                return hashes.finish(length)


def _read_small(source: int, status: os.stat_result) -> bytes:
    try:
        data = read_exactly(source, memoryview(bytearray(status.st_size)), 0)
    except EndedEarlyError:
        raise source_changed()
    except OSError as error:
        raise unreadable(error) from error
    check_unchanged(status, source)
    return bytes(data)


def settled_status(fd: int) -> tuple[os.stat_result, bool]:
    """The status of a source, and whether a later change must show in it.

    Waits for that (20 ms at most) if the file is so large that it is worth it.
    """
    status = os.fstat(fd)
    if status.st_size >= WORTH_SETTLING_BYTES:
        time.sleep(unsettled_s(status))
        status = os.fstat(fd)
    return status, not unsettled_s(status)
