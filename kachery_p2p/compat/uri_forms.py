"""URIs as the older packages wrote them, for what was just stored."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import quote

from kachery_p2p.compat.placing import Place, put_bytes
from kachery_p2p.content.hashes import ContentHash

if TYPE_CHECKING:
    from kachery_p2p.content.chunk_lists import ChunkListBuilder, Form

_READ_BYTES = 1 << 20
# The first kachery listed the chunks of a first chunk above this too.
_FIRST_BYTES_MAX = 10_000_000


def format_named(content: ContentHash, name: str | None, style: str, place: Place) -> str:
    """The URI of a stored content in a style of `systems.STYLES`; `name` may be None for none.

    In the styles 2019 and client a large file has a chunk list, which is stored at `place` too.
    In the style ipfs the CID is written down, so that the URI can be loaded again.
    """
    if style == "ipfs":
        return f"ipfs://{_cid(content, place)}"
    if style in ("2019", "client"):
        path = "" if name is None else "/" + name
        listed = _chunk_list(content, style, place)
        return f"sha1://{content}{path}" + ("" if listed is None else f"?manifest={listed}")
    return f"sha1://{content}" + ("" if name is None else f"?label={quote(name)}")


def format_zone(content: ContentHash, name: str | None, zone: str) -> str:
    """The URI of kachery 2 with `uri_type=2`."""
    return f"kachery:{zone}:sha1:{content}" + ("" if name is None else f":{quote(name)}")


def _cid(content: ContentHash, place: Place) -> str:
    from kachery_p2p.compat import names
    from kachery_p2p.content.cids import CidBuilder

    builder = CidBuilder()
    with _opened(content, place) as file:
        while piece := file.read(_READ_BYTES):
            builder.update(piece)
    cid = builder.cid()
    names.put(names.CID, cid, content)
    return cid


def _chunk_list(content: ContentHash, style: str, place: Place) -> ContentHash | None:
    """The hash of the list of the content's chunks, now stored; None for a small file."""
    from kachery_p2p.content.chunk_lists import KACHERY, KACHERY_P2P

    form = KACHERY if style == "2019" else KACHERY_P2P
    with _opened(content, place) as file:
        size = file.seek(0, os.SEEK_END)
        if size < form.file_bytes_min:
            return None
        file.seek(0)
        builder = list_builder(size, form)
        while piece := file.read(_READ_BYTES):
            builder.update(piece)
    whole = inner = builder.finish(content)
    while inner.first is not None:
        inner = inner.first
        # The first kachery stored it too: a content by itself, which names its own chunks.
        put_bytes(inner.encode(form), place)
    return put_bytes(whole.encode(form), place)


def list_builder(size: int, form: Form, *, inside: bool = False) -> ChunkListBuilder:
    """What builds the list of a file of `size` bytes; `inside` that of another's first chunk.

    kachery put the list of a first chunk above 10 MB into the list, and so on.
    """
    from kachery_p2p.content.chunk_lists import KACHERY, ChunkListBuilder

    length = chunk_bytes(size, form, 0 if inside else 4_000_000)
    first = min(size, length)
    if form != KACHERY or first <= _FIRST_BYTES_MAX:
        return ChunkListBuilder(length)
    return ChunkListBuilder(length, list_builder(first, form, inside=True))


def chunk_bytes(size: int, form: Form, smallest: int = 4_000_000) -> int:
    """The length of chunks: kachery took such that there are 10 to 100 of them, or of 4 MB."""
    from kachery_p2p.content.chunk_lists import KACHERY

    chunk = form.chunk_bytes
    if form != KACHERY:
        return chunk
    while chunk > smallest:
        count = -(-size // chunk)
        if 10 <= count <= 100:
            break
        chunk = chunk * 2 if count > 100 else -(-chunk // 2)
    return chunk


def _opened(content: ContentHash, place: Place) -> BinaryIO:
    from kachery_p2p.client.opening import open as open_content
    from kachery_p2p.compat.placing import find_in_sandbox

    if place.sandbox is not None and (path := find_in_sandbox(place.sandbox, content)) is not None:
        return open(path, "rb")
    return open_content(f"sha1://{content}")
