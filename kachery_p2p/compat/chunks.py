"""Chunks of large files as the older packages named them: `?manifest=M` and `?chunkOf=H~start~end`.

A chunk list is a content whose own SHA-1 is in the URI, so it vouches for its chunks: they may
be asked of whoever has the file, before the file was verified, and are checked here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kachery_p2p.client.files import load_bytes, load_file, open_stored, pread_all
from kachery_p2p.content.hashes import ContentHash, sha1_of
from kachery_p2p.content.uris import Uri, format_uri
from kachery_p2p.errors import DataFormatError, VerificationError
from kachery_p2p.limits import CHUNK_LIST_BYTES_MAX

if TYPE_CHECKING:
    from kachery_p2p.compat.loading import Source


def load_listed_range(wanted: Uri, start: int, end: int, source: Source) -> bytes:
    """Bytes of a content whose chunk list is in the URI; only the chunks that hold them are asked.

    Raises a LoadFileError; VerificationError if a chunk is not the one in the list.
    """
    from kachery_p2p.content.chunk_lists import read_chunk_list, verify_listed_chunk

    assert wanted.manifest is not None
    listed = read_chunk_list(_list(wanted.manifest, source), wanted.manifest, wanted.content)
    uri = format_uri(Uri(wanted.content))
    pieces = []
    for chunk in listed.covering(start, end):
        data = load_bytes(
            uri,
            chunk.start,
            chunk.end,
            from_channel=source.channel,
            from_node=source.node,
            verify="provider",
        )
        verify_listed_chunk(chunk, data)
        pieces.append(data[max(start - chunk.start, 0) : end - chunk.start])
    return b"".join(pieces)


def _list(name: ContentHash, source: Source) -> bytes:
    from kachery_p2p.compat.loading import find_content

    path = find_content(Uri(name), source)
    assert path is not None, "who may ask others gets a path or an error"
    descriptor = open_stored(path)
    try:
        size = os.fstat(descriptor).st_size
        if size > CHUNK_LIST_BYTES_MAX:
            raise DataFormatError(f"the chunk list has {size} bytes: it is none")
        return pread_all(descriptor, 0, size)
    finally:
        os.close(descriptor)


def load_chunk(wanted: Uri, source: Source) -> str:
    """The path of a chunk: as a content of its own, or out of the file that it is of, then stored.

    Raises a LoadFileError; VerificationError if the file has other bytes there.
    """
    from kachery_p2p.client.storing import store_value
    from kachery_p2p.compat.loading import find_here
    from kachery_p2p.errors import NotFoundError

    assert wanted.chunk_of is not None
    whole, start, end = wanted.chunk_of
    try:
        return load_file(
            f"sha1://{wanted.content}", from_channel=source.channel, from_node=source.node
        )
    except NotFoundError:
        pass
    path = find_here(Uri(whole), source)
    if path is not None:
        from kachery_p2p.client.files import read_range

        data = read_range(path, start, end)
    else:
        data = load_bytes(
            f"sha1://{whole}",
            start,
            end,
            from_channel=source.channel,
            from_node=source.node,
            verify="provider",
        )
    if sha1_of(data) != wanted.content:
        raise VerificationError(f"bytes {start} to {end} of sha1://{whole} are not this chunk")
    return load_file(store_value(data, "chunk", []))
