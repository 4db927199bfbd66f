"""Manifests: the hashes by which every MiB of a content is verified on its own.

A content is cut into chunks of 1 MiB (the last may be shorter). The BLAKE3 hashes
of up to 1,024 chunks, one after the other, are a *page*; a page covers 1 GiB. The
BLAKE3 hashes of the pages, after a header that names the size and the SHA-1, are
the *root object*, and its BLAKE3 is the *root*. To read one byte of a file whose
root is known takes the root object, one page (32 KiB at most) and one chunk.

    root object, big-endian
    0   8  magic "kp2proot"
    8   8  size of the content
    16  4  chunk size, always 1 MiB
    20  20 SHA-1 of the content
    40  32 BLAKE3 of each page

Nothing here touches a disk or a socket: bytes come in, hashes go out.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.errors import DataFormatError, UnsupportedValueError, VerificationError
from kachery_p2p.limits import CHUNK_BYTES, PAGE_CHUNKS_MAX, ROOT_PAGES_MAX

MAGIC = b"kp2proot"
HASH_BYTES = 32
HEADER_BYTES = 40
_HEADER = struct.Struct(">8sQI20s")
PAGE_BYTES_MAX = PAGE_CHUNKS_MAX * HASH_BYTES
CONTENT_BYTES_MAX = ROOT_PAGES_MAX * PAGE_CHUNKS_MAX * CHUNK_BYTES

Bytes = bytes | bytearray | memoryview


def chunk_hash(data: Bytes) -> bytes:
    """The BLAKE3 of one chunk (or page, or root object), 32 bytes."""
    digest: bytes = _blake3()(data).digest()
    return digest


@functools.cache
def _blake3() -> Callable[[Bytes], Any]:
    from blake3 import blake3  # 2 ms that a client which only loads need not spend

    return blake3


def chunk_count(size: int) -> int:
    """How many chunks a content of `size` bytes has; none when it is empty."""
    return -(-size // CHUNK_BYTES)


def page_count(size: int) -> int:
    """How many pages the chunk hashes of a content of `size` bytes fill."""
    return -(-chunk_count(size) // PAGE_CHUNKS_MAX)


def chunk_length(size: int, number: int) -> int:
    """How many bytes chunk `number` has: 1 MiB, or less for the last one."""
    assert 0 <= number < chunk_count(size), "no such chunk"
    return min(CHUNK_BYTES, size - number * CHUNK_BYTES)


def page_length(size: int, number: int) -> int:
    """How many bytes page `number` has: 32 for each chunk it covers."""
    assert 0 <= number < page_count(size), "no such page"
    return HASH_BYTES * min(PAGE_CHUNKS_MAX, chunk_count(size) - number * PAGE_CHUNKS_MAX)


def page_of(chunk: int) -> tuple[int, int]:
    """Which page holds the hash of `chunk`, and at which position in it."""
    return divmod(chunk, PAGE_CHUNKS_MAX)


class RootObject(NamedTuple):
    """What the root is the hash of: the size, the SHA-1, and the BLAKE3 of each page."""

    size: int
    content: ContentHash
    pages: tuple[bytes, ...]

    @property
    def root(self) -> Root:
        """The content's root: the BLAKE3 of `encode()`."""
        return _root_of(self)

    @property
    def chunk_count(self) -> int:
        """How many chunks the content has."""
        return chunk_count(self.size)

    @property
    def page_count(self) -> int:
        """How many pages there are."""
        return len(self.pages)

    def encode(self) -> bytes:
        """The bytes of the root object, as they travel and as the root hashes them."""
        header = _HEADER.pack(MAGIC, self.size, CHUNK_BYTES, self.content.raw)
        return b"".join((header, *self.pages))

    @classmethod
    def decode(cls, data: bytes) -> RootObject:
        """The root object that `data` spells; `DataFormatError` if any byte is wrong."""
        if len(data) < HEADER_BYTES:
            raise DataFormatError(f"root object is cut off: {len(data)} bytes")
        if data[:8] != MAGIC:
            raise DataFormatError("root object does not begin with its magic bytes")
        if (chunk_bytes := int.from_bytes(data[16:20], "big")) != CHUNK_BYTES:
            raise DataFormatError(
                f"root object has chunks of {chunk_bytes} bytes, not {CHUNK_BYTES}"
            )
        size = int.from_bytes(data[8:16], "big")
        if size > CONTENT_BYTES_MAX:
            raise DataFormatError(f"root object claims {size} bytes, more than {CONTENT_BYTES_MAX}")
        length = HEADER_BYTES + HASH_BYTES * page_count(size)
        if len(data) != length:
            raise DataFormatError(
                f"root object of {size} bytes of content must have {length} bytes, not {len(data)}"
            )
        pages = (
            bytes(data[at : at + HASH_BYTES]) for at in range(HEADER_BYTES, length, HASH_BYTES)
        )
        return cls(size, ContentHash.of_raw(bytes(data[20:HEADER_BYTES])), tuple(pages))


# Storing one object asks for its root four times. Few: a root object may have 512 KiB.
@functools.lru_cache(maxsize=4)
def _root_of(root_object: RootObject) -> Root:
    return Root(chunk_hash(root_object.encode()).hex())


class Manifest(NamedTuple):
    """A root object with its pages: every hash that is needed to verify every chunk."""

    root_object: RootObject
    pages: tuple[bytes, ...]

    @property
    def root(self) -> Root:
        """The content's root."""
        return self.root_object.root

    @property
    def size(self) -> int:
        """The content's size in bytes."""
        return self.root_object.size

    @property
    def content(self) -> ContentHash:
        """The content's SHA-1."""
        return self.root_object.content

    def chunk_hash(self, number: int) -> bytes:
        """The BLAKE3 that chunk `number` must have."""
        assert 0 <= number < self.root_object.chunk_count, "no such chunk"
        page, position = page_of(number)
        return self.pages[page][position * HASH_BYTES : (position + 1) * HASH_BYTES]


class ChunkHashes(NamedTuple):
    """The hashes of a content that is one chunk, as most are: a manifest for those in a hurry.

    It says what `Manifest` says, and holds what the index writes.
    """

    content: ContentHash
    root: Root
    size: int
    # The root object, encoded, and the only page.
    encoded: bytes
    page: bytes

    @property
    def root_object(self) -> RootObject:
        """As of a manifest."""
        return RootObject(self.size, self.content, (self.encoded[HEADER_BYTES:],))

    @property
    def pages(self) -> tuple[bytes, ...]:
        """As of a manifest."""
        return (self.page,)

    @property
    def manifest(self) -> Manifest:
        """The manifest."""
        return Manifest(self.root_object, self.pages)


Hashes = Manifest | ChunkHashes


def chunk_hashes(content: ContentHash, sha1: bytes, chunk: Bytes) -> ChunkHashes:
    """The hashes of a content that is one chunk; `sha1` is the digest that `content` spells."""
    assert 0 < len(chunk) <= CHUNK_BYTES, "a chunk has 1 byte to 1 MiB"
    blake3 = _blake3()
    page: bytes = blake3(chunk).digest()
    header = _HEADER.pack(MAGIC, len(chunk), CHUNK_BYTES, sha1)
    encoded: bytes = header + blake3(page).digest()
    return ChunkHashes(content, Root(blake3(encoded).hexdigest()), len(chunk), encoded, page)


class ManifestBuilder:
    """Build a manifest from the chunks in order. Keeps 32 bytes a chunk, never the chunks."""

    def __init__(self) -> None:
        self._table = bytearray()
        self._size = 0

    def update(self, chunk: Bytes) -> None:
        """Take the next chunk: exactly 1 MiB, unless it is the last; an empty one is none."""
        assert self._size % CHUNK_BYTES == 0, "only the last chunk may be short"
        assert 0 < memoryview(chunk).nbytes <= CHUNK_BYTES, "a chunk has 1 byte to 1 MiB"
        if len(self._table) >= ROOT_PAGES_MAX * PAGE_BYTES_MAX:
            raise UnsupportedValueError(f"a content has at most {CONTENT_BYTES_MAX} bytes (16 TiB)")
        self._table += chunk_hash(chunk)
        self._size += memoryview(chunk).nbytes

    def finish(self, content: ContentHash) -> Manifest:
        """The manifest of all chunks taken, `content` being the SHA-1 of the same bytes."""
        table = bytes(self._table)
        pages = tuple(
            table[at : at + PAGE_BYTES_MAX] for at in range(0, len(table), PAGE_BYTES_MAX)
        )
        page_hashes = tuple(chunk_hash(page) for page in pages)
        return Manifest(RootObject(self._size, content, page_hashes), pages)


def verify_page(root_object: RootObject, number: int, page: bytes) -> None:
    """Pass if `page` is page `number` of the content; else `VerificationError`."""
    if not 0 <= number < root_object.page_count:
        raise VerificationError(f"the content has no page {number}")
    # The length is checked too, so that a reader may cut the page without looking again.
    if len(page) != page_length(root_object.size, number):
        raise VerificationError(f"page {number} has {len(page)} bytes, which is not its length")
    if chunk_hash(page) != root_object.pages[number]:
        raise VerificationError(f"page {number} does not match its hash")


def verify_chunk(page: bytes, position: int, data: Bytes) -> None:
    """Pass if `data` is the chunk at `position` of a verified page; else `VerificationError`."""
    if not 0 <= position < len(page) // HASH_BYTES:
        raise VerificationError(f"the page has no chunk at position {position}")
    if chunk_hash(data) != page[position * HASH_BYTES : (position + 1) * HASH_BYTES]:
        raise VerificationError(f"the chunk at position {position} does not match its hash")
