"""A blob of one chunk: asked for at once, and judged as a whole when it is here.

Its root is that of its bytes, so neither root object nor page has to travel first, and no
partial is needed: whoever loads thousands of small files pays one question for each.
"""

from __future__ import annotations

import trio

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.manifests import Manifest, RootObject
from kachery_p2p.errors import PeerGoneError, UriInconsistentError, VerificationError
from kachery_p2p.limits import CHUNK_BYTES
from kachery_p2p.store.hashing import hash_bytes
from kachery_p2p.transfer.assembly import Piece
from kachery_p2p.transfer.ranged import Ranged
from kachery_p2p.transfer.sources import LentSource, Source
from kachery_p2p.wire.bulk_messages import BulkRange


def is_small(size: int) -> bool:
    """True for what `fetch_small` can bring, if `size` is right."""
    return 0 < size <= CHUNK_BYTES


def comes_whole(source: Source, is_said_small: bool) -> bool:
    """True if `fetch_small` is to be tried with this source.

    Of what is small a bucket has nothing but the content itself, whatever others say.
    """
    return is_small(source.size) if isinstance(source, LentSource) else is_said_small


async def fetch_small(source: Source, content: ContentHash, root: Root) -> tuple[bytes, Manifest]:
    """The bytes with this root, and their manifest.

    Raises VerificationError if the source sends others, UriInconsistentError if the bytes
    with this root do not have this SHA-1, and PeerErrors.
    """
    bulk = await source.bulk()
    if bulk is not None:
        data = await _in_bulk(bulk, source.channel, content, root)
    else:
        data = await _by_stream(source, content, root)
    manifest = await trio.to_thread.run_sync(hash_bytes, data)
    # A root names its SHA-1: the bytes may be behind it though that is not theirs.
    if RootObject(len(data), content, manifest.root_object.pages).root != root:
        raise VerificationError("sent bytes that do not match the root")
    if manifest.content != content:
        raise UriInconsistentError(
            f"the bytes with root {root} do not have the SHA-1 {content}",
            hint="ask whoever gave you the URI for a correct one",
        )
    return data, manifest


async def _in_bulk(bulk: Ranged, channel: str, content: ContentHash, root: Root) -> bytes:
    found: list[bytes] = []

    def sink(piece: Piece) -> None:
        found.append(bytes(piece.data))
        piece.release()

    await bulk.fetch(BulkRange(channel, content.raw, root.raw, 0, 1), sink, urgent=True)
    return found[0]


async def _by_stream(source: Source, content: ContentHash, root: Root) -> bytes:
    found: list[bytes] = []
    ranges = iter([range(1)])

    async def deliver(source: Source, number: int, data: bytes) -> None:
        found.append(data)

    await source.pull(content, root, lambda: next(ranges, None), deliver)
    if len(found) != 1:
        raise PeerGoneError("ended the transfer early")
    return found[0]
