"""Loading what was encrypted for an access group of this node.

Of a URI that hides a content as it is, the content is loaded. Of one that hides a sealed
file, that file is fetched, verified and kept as any other, and served to others as it is;
what it opens to is given to the caller alone: values and ranges in memory, files where
`opened` says. A range takes only the frames that it touches.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import BinaryIO

from kachery_p2p.client import files, opened
from kachery_p2p.client.encrypted_uris import Seal, disclose
from kachery_p2p.client.events import ProgressArg
from kachery_p2p.client.origin import Origin
from kachery_p2p.client.progress import Reporter
from kachery_p2p.client.sealed_file import SealedFile
from kachery_p2p.client.values import check_value_size, read_value
from kachery_p2p.content.uris import Uri
from kachery_p2p.errors import InvalidRangeError, SealError
from kachery_p2p.identity.frames import FRAME_BYTES, HEADER_BYTES, TAG_BYTES, span
from kachery_p2p.limits import OPENED_BUFFER_BYTES, SEALED_STREAM_FRAMES

_PIECE_BYTES = SEALED_STREAM_FRAMES * FRAME_BYTES


def load_file(
    uri: str,
    dest: files.PathLike | None,
    verify: bool,
    origin: Origin,
    reporter: Reporter | None,
) -> str:
    """As `files.load_file`: the path of the content in clear, or `dest`."""
    disclosed = disclose(uri)
    if disclosed.seal is None:
        return files.load_clear(disclosed.uri, dest, verify, origin, reporter)
    wanted, seal = disclosed.wanted, disclosed.seal
    if not verify and dest is None:
        found = opened.find(wanted.content, seal.header)
        if found is not None:
            return found
    path = files.load_clear(disclosed.uri, None, verify, origin, reporter)
    if dest is None:
        # What was opened before is not what was verified just now.
        return opened.keep(wanted.content, seal.header, _content(seal, path))
    from kachery_p2p.store.copying import write_whole

    dest = os.fspath(dest)
    if os.path.isdir(dest):
        dest = os.path.join(dest, wanted.name or wanted.content)
    return write_whole(_content(seal, path), dest)


def open_stored(wanted: Uri, seal: Seal, path: str) -> str:
    """The path of what the sealed file at `path` opens to. SealError if the seal is not its."""
    found = opened.find(wanted.content, seal.header)
    return found or opened.keep(wanted.content, seal.header, _content(seal, path))


def open_fetched(uri: str, path: str) -> str:
    """The path of the content in clear, once what the URI hides is at `path`."""
    disclosed = disclose(uri)
    if disclosed.seal is None:
        return path
    return open_stored(disclosed.wanted, disclosed.seal, path)


def load_bytes(
    uri: str,
    start: int,
    end: int,
    origin: Origin,
    verify: str | None,
    reporter: Reporter | None,
) -> bytes:
    """As `files.load_bytes`: bytes of the content in clear."""
    disclosed = disclose(uri)
    if disclosed.seal is None:
        return files.load_clear_bytes(disclosed.uri, start, end, origin, verify, reporter)
    seal = disclosed.seal
    if not 0 <= start <= end:
        raise InvalidRangeError(f"{start} to {end} is not a range of bytes")
    if end > seal.size:
        raise InvalidRangeError(
            f"{start} to {end} does not lie inside the {seal.size} bytes of the file"
        )
    if start == end:
        return b""
    at = span(seal.size, start, end)
    try:
        sealed = files.load_clear_bytes(
            disclosed.uri, at.offset, at.offset + at.length, origin, verify, reporter
        )
    except InvalidRangeError:
        raise SealError("the sealed file ends earlier than its URI says") from None
    return seal.opener().open_span(start, end, sealed)


def load_value(uri: str, origin: Origin, progress: ProgressArg) -> bytes:
    """All bytes of a value, which never lie on the disk in clear."""
    disclosed = disclose(uri)
    if disclosed.seal is not None:
        check_value_size(disclosed.seal.size)
    with Reporter(progress) as reporter:
        path = files.load_clear(disclosed.uri, None, False, origin, reporter)
    if disclosed.seal is None:
        return read_value(path)
    return b"".join(_content(disclosed.seal, path))


def open_sealed(uri: str, seal: Seal, source: BinaryIO) -> BinaryIO:
    """The content in clear as a file object, over one of the sealed file, which it closes."""
    return io.BufferedReader(SealedFile(uri, source, seal.opener()), OPENED_BUFFER_BYTES)


def size_of(uri: str) -> int | None:
    """The size of the content in clear, which a sealed file's URI says; None of another."""
    seal = disclose(uri).seal
    return None if seal is None else seal.size


def _content(seal: Seal, path: str) -> Iterator[bytes]:
    """What the sealed file opens to, a MiB at a time. SealError if it is not that of the seal."""
    opener, header = seal.opener(), seal.header.encode()
    descriptor = files.open_stored(path)
    try:
        if os.fstat(descriptor).st_size != seal.file_size:
            raise SealError("the sealed file is not as long as its URI says")
        if files.pread_all(descriptor, 0, HEADER_BYTES) != header:
            raise SealError("the sealed file is another one than its URI says")
        for start in range(0, seal.size, _PIECE_BYTES):
            end = min(start + _PIECE_BYTES, seal.size)
            at = span(seal.size, start, end)
            yield opener.open_span(start, end, files.pread_all(descriptor, at.offset, at.length))
        if not seal.size:
            opener.open(0, files.pread_all(descriptor, HEADER_BYTES, TAG_BYTES))
    finally:
        os.close(descriptor)
