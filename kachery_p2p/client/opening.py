"""`open`: a content as a file object of Python, of which only what is read is fetched."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, BinaryIO

from kachery_p2p.client.files import (
    fetch,
    find_local,
    is_directory_uri,
    is_encrypted_uri,
    open_stored,
    wanted_by,
)
from kachery_p2p.client.origin import origin as origin_of
from kachery_p2p.content.uris import format_uri
from kachery_p2p.limits import CHUNK_BYTES, OPENED_BUFFER_BYTES

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from kachery_p2p.client.blocks import Blocks


def open(
    uri: str,
    *,
    from_channel: str | None = None,
    from_node: str | None = None,
    timeout: float | None = None,
    verify: str | None = None,
) -> BinaryIO:
    """The content as a binary file, open for reading, with seek; close it, or use `with`.

    What is stored here is read in place. Of what is not, blocks of 1 MiB are fetched and
    verified as they are read, and those ahead of whoever reads one after the other. That
    takes a root in the URI, which those of files over 1 MiB have; without one the whole is
    fetched first, and a warning says so. With `verify="provider"` it is not: then nothing
    but the word of who has the file says that the bytes belong to its hash.

    Threads may share the file, though it has only one position; so may forked processes.
    `from_channel`, `from_node` and `timeout` are those of `load_file`, for each time that
    something is fetched.
    """
    origin = origin_of(from_channel, from_node, timeout)
    if is_encrypted_uri(uri):
        from kachery_p2p.client.encrypted_uris import disclose
        from kachery_p2p.client.unsealing import open_sealed

        clear_uri, seal = disclose(uri)
        source = open(
            clear_uri,
            from_channel=from_channel,
            from_node=from_node,
            timeout=timeout,
            verify=verify,
        )
        return source if seal is None else open_sealed(uri, seal, source)
    wanted = wanted_by(uri, origin)
    path = find_local(wanted)
    if path is None:
        from kachery_p2p.client.vouching import vouched

        wanted = vouched(wanted, origin, verify, stacklevel=2)
        if wanted.root is None:
            path = fetch(wanted, origin)
    if path is not None:
        return io.BufferedReader(io.FileIO(path, opener=lambda name, _: open_stored(name)))
    from kachery_p2p.client.blocks import open_blocks

    # Of a file in a directory, what it is rather than where: that is known only as of now.
    name = format_uri(wanted) if is_directory_uri(uri) else uri
    return io.BufferedReader(RemoteFile(name, open_blocks(wanted, origin)), OPENED_BUFFER_BYTES)


class RemoteFile(io.RawIOBase):
    """The bytes behind a URI, fetched as they are read. A BufferedReader in front locks it."""

    mode = "rb"

    def __init__(self, name: str, blocks: Blocks) -> None:
        from kachery_p2p.client.ahead import Ahead
        from kachery_p2p.client.read_ahead import ReadAhead

        self.name = name
        self._blocks = blocks
        self._read_ahead = ReadAhead(blocks.count, blocks.ahead_max)
        self._ahead = Ahead(blocks)
        self._told = range(0)
        self._position = 0

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
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._blocks.size}
        if whence not in base:
            raise ValueError(f"{whence} is not a way to seek")
        if base[whence] + offset < 0:
            raise ValueError(f"{base[whence] + offset} is before the first byte")
        self._position = base[whence] + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill as much of `buffer` as one block, or one large request, has; 0 at the end."""
        self._check_open()
        target = memoryview(buffer).cast("B")
        position = self._position
        left = min(len(target), self._blocks.size - position)
        if left <= 0:
            return 0
        here = self._have(position, left)
        end = min(position + left, here.stop * CHUNK_BYTES)
        while not (count := self._blocks.read_into(position, target[: end - position])):
            self._blocks.ensure(here)
        self._position += count
        return count

    def _have(self, position: int, length: int) -> range:
        """The first blocks of these bytes, once they are here; more are under way."""
        first, stop = position // CHUNK_BYTES, -(-(position + length) // CHUNK_BYTES)
        # Of a short read the rest may be for the buffer in front, and wanted by nobody.
        count = 1 if length <= CHUNK_BYTES else min(stop - first, self._blocks.run_max)
        here = range(first, first + count)
        ahead = self._read_ahead.read(here, stop if length > CHUNK_BYTES else 0)
        if ahead != self._told:
            self._told = ahead
            self._ahead.want(ahead)
        self._blocks.ensure(here)
        return here

    def readall(self) -> bytes:
        """All that is left, in large requests."""
        data = bytearray(max(self._blocks.size - self._position, 0))
        view, filled = memoryview(data), 0
        while filled < len(data):
            filled += self.readinto(view[filled:])
        view.release()
        return bytes(data)

    def close(self) -> None:
        if not self.closed:
            self._ahead.want(range(0))
            self._blocks.close()
        super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the file is closed")
