"""`open`: a content as a file object of Python, of which only what is read is fetched."""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from typing import TYPE_CHECKING, BinaryIO

from kachery_p2p.client.files import (
    fetch,
    find_local,
    is_directory_uri,
    load_bytes,
    open_stored,
    wanted_by,
)
from kachery_p2p.client.origin import ANYWHERE, Origin
from kachery_p2p.client.origin import origin as origin_of
from kachery_p2p.content.uris import format_uri
from kachery_p2p.limits import CHUNK_BYTES, OPENED_BLOCKS_MAX, OPENED_READ_BYTES_MAX

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


def open(
    uri: str,
    *,
    from_channel: str | None = None,
    from_node: str | None = None,
    timeout: float | None = None,
) -> BinaryIO:
    """The content as a binary file, open for reading, with seek; close it, or use `with`.

    What is stored here is read in place. Of what is not, blocks of 1 MiB are fetched and
    verified as they are read, if the URI has a root; else the whole is fetched first.
    Threads may share it, though it has only one position. `from_channel`, `from_node` and
    `timeout` are those of `load_file`, for each time that something is fetched.
    """
    origin = origin_of(from_channel, from_node, timeout)
    wanted = wanted_by(uri, origin)
    path = find_local(wanted)
    if path is None and wanted.root is None:
        path = fetch(wanted, origin)
    if path is not None:
        return io.BufferedReader(io.FileIO(path, opener=lambda name, _: open_stored(name)))
    from kachery_p2p.client.loading import fetch_size

    if is_directory_uri(uri):
        # Its list is not to be looked into again for each block.
        uri = format_uri(wanted)
    return io.BufferedReader(RemoteFile(uri, fetch_size(wanted, origin), origin))


class RemoteFile(io.RawIOBase):
    """The bytes behind a URI, fetched as they are read. A BufferedReader in front locks it."""

    def __init__(self, uri: str, size: int, origin: Origin = ANYWHERE) -> None:
        self.name = uri
        self._origin = origin
        self._size = size
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """As of any file; beyond the end there is nothing to read."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}
        if whence not in base:
            raise ValueError(f"{whence} is not a way to seek")
        if base[whence] + offset < 0:
            raise ValueError(f"{base[whence] + offset} is before the first byte")
        self._position = base[whence] + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill as much of `buffer` as one block, or one large request, has; 0 at the end."""
        if self.closed:
            raise ValueError("the file is closed")
        target = memoryview(buffer).cast("B")
        data = self._next(len(target))
        target[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _next(self, wanted: int) -> bytes | memoryview:
        """Up to `wanted` bytes at the position: of one block, or as many whole ones as fit."""
        wanted = min(wanted, self._size - self._position)
        if wanted <= 0:
            return b""
        if wanted > CHUNK_BYTES:
            end = self._position + min(wanted, OPENED_READ_BYTES_MAX)
            return self._load(self._position, end)
        number, offset = divmod(self._position, CHUNK_BYTES)
        return memoryview(self._block(number))[offset : offset + wanted]

    def _load(self, start: int, end: int) -> bytes:
        channel, node, timeout_s = self._origin
        return load_bytes(
            self.name, start, end, from_channel=channel, from_node=node, timeout=timeout_s
        )

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            start = number * CHUNK_BYTES
            data = self._load(start, min(start + CHUNK_BYTES, self._size))
            if len(self._blocks) >= OPENED_BLOCKS_MAX:
                self._blocks.popitem(last=False)
            self._blocks[number] = data
        self._blocks.move_to_end(number)
        return self._blocks[number]
