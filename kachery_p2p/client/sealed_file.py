"""A sealed file as a file object of what it opens to: only the frames that are read are opened."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, BinaryIO

from kachery_p2p.client.files import pread_all
from kachery_p2p.errors import SealError
from kachery_p2p.identity.frames import FRAME_BYTES, Opener, sealed_size, span
from kachery_p2p.limits import SEALED_STREAM_FRAMES

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_PIECE_BYTES = SEALED_STREAM_FRAMES * FRAME_BYTES


class SealedFile(io.RawIOBase):
    """The content of a sealed file. A BufferedReader in front locks it; it closes `source`.

    SealError if the sealed file is not as long as it has to be.
    """

    mode = "rb"

    def __init__(self, name: str, source: BinaryIO, opener: Opener) -> None:
        self.name = name
        self._source = source
        self._opener = opener
        self._size = opener.header.size
        self._position = 0
        # What is stored here is read in place: forked processes would share its position.
        raw = getattr(source, "raw", None)
        self._descriptor = raw.fileno() if isinstance(raw, io.FileIO) else None
        if source.seek(0, os.SEEK_END) != sealed_size(self._size):
            self.close()
            raise SealError("the sealed file is not as long as its URI says")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """As of any file; beyond the end there is nothing to read."""
        self._check_open()
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}
        if whence not in base:
            raise ValueError(f"{whence} is not a way to seek")
        if base[whence] + offset < 0:
            raise ValueError(f"{base[whence] + offset} is before the first byte")
        self._position = base[whence] + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill `buffer` up to the end of a frame, with a MiB at most; 0 at the end."""
        self._check_open()
        target, start = memoryview(buffer).cast("B"), self._position
        left = min(len(target), self._size - start, _PIECE_BYTES)
        if left <= 0:
            return 0
        # To the last end of a frame in reach: what comes after it would be opened twice.
        end = (start + left) // FRAME_BYTES * FRAME_BYTES
        if end <= start:
            end = start + left
        data = self._read(start, end)
        target[: len(data)] = data
        self._position = end
        return len(data)

    def readall(self) -> bytes:
        """All that is left, in large pieces."""
        data = bytearray(max(self._size - self.tell(), 0))
        view, filled = memoryview(data), 0
        while filled < len(data):
            filled += self.readinto(view[filled:])
        view.release()
        return bytes(data)

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()

    def _read(self, start: int, end: int) -> bytes:
        at = span(self._size, start, end)
        if self._descriptor is not None:
            sealed = pread_all(self._descriptor, at.offset, at.length)
        else:
            self._source.seek(at.offset)
            sealed = self._source.read(at.length)
        if len(sealed) != at.length:
            raise SealError("the sealed file ends earlier than its URI says")
        return self._opener.open_span(start, end, sealed)

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the file is closed")
