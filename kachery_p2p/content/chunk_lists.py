"""Chunk lists: what the older packages called a manifest, `?manifest=` in their URIs.

    {"size": 11, "sha1": H, "chunks": [{"start": 0, "end": 10, "sha1": C}, ...]}

It is JSON, stored like any content, and its own SHA-1 is in the URI. So whoever has a
URI with `?manifest=` can verify a chunk of 10 or 20 MB without the rest of the file; our
own `manifests` do so by the MiB. Lists are read in every form that was written: any
chunk lengths, any spacing, keys in any order. The first kachery put the list of a first
chunk above 10 MB (so of files above 1 GB) inside it, as "manifest"; it is written where
that wrote it, because it belongs to the list's own hash, and passed over when it is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from kachery_p2p.content.hashes import HEX_DIGITS, ContentHash, sha1_of
from kachery_p2p.content.manifests import CONTENT_BYTES_MAX
from kachery_p2p.content.strict_json import read_json
from kachery_p2p.errors import (
    DataFormatError,
    InvalidRangeError,
    UnsupportedValueError,
    UriInconsistentError,
    VerificationError,
)
from kachery_p2p.limits import CHUNK_LIST_BYTES_MAX, LISTED_CHUNKS_MAX

if TYPE_CHECKING:
    import hashlib

    from kachery_p2p.content.manifests import Bytes

# A chunk costs an opening brace and three commas.
PARTS_MAX = 4 * LISTED_CHUNKS_MAX + 1024
CHUNK_KEYS = frozenset(("start", "end", "sha1"))


class Form(NamedTuple):
    """How one of the older packages wrote chunk lists, and for files of what size."""

    chunk_bytes: int
    file_bytes_min: int
    separators: tuple[str, str]


# kachery, and kachery-p2p in its first year. (Its last version took other chunk lengths for files
# below 90 MB and above 1 GB. Lists of all lengths are read.)
KACHERY = Form(10_000_000, 4_000_001, (", ", ": "))
# kachery-p2p and kachery-client.
KACHERY_P2P = Form(20_000_000, 20_000_001, (",", ":"))


class ListedChunk(NamedTuple):
    """The bytes from `start` up to, not including, `end` of a content, and their SHA-1."""

    start: int
    end: int
    content: ContentHash


class ChunkList(NamedTuple):
    """The chunks of a content, one after the other, from its first byte to its last."""

    size: int
    content: ContentHash
    chunks: tuple[ListedChunk, ...]
    # The list of the first chunk, where the first kachery put it inside.
    first: ChunkList | None = None

    def covering(self, start: int, end: int) -> tuple[ListedChunk, ...]:
        """The chunks that together hold the bytes from `start` up to, not including, `end`."""
        from bisect import bisect_left, bisect_right

        if not 0 <= start <= end <= self.size:
            raise InvalidRangeError(
                f"bytes {start} to {end} do not lie inside a file of {self.size} bytes"
            )
        if start == end:
            return ()
        first = bisect_right(self.chunks, start, key=lambda chunk: chunk.end)
        last = bisect_left(self.chunks, end, key=lambda chunk: chunk.end)
        return self.chunks[first : last + 1]

    def encode(self, form: Form) -> bytes:
        """The bytes that the packages of `form` stored; their SHA-1 is the list's name."""
        import json

        return json.dumps(self._record(), separators=form.separators).encode("ascii")

    def _record(self) -> dict[str, Any]:
        chunks: list[dict[str, Any]] = [
            {"start": start, "end": end, "sha1": sha1} for start, end, sha1 in self.chunks
        ]
        if self.first is not None:
            chunks[0]["manifest"] = self.first._record()
        return {"size": self.size, "sha1": self.content, "chunks": chunks}

    @classmethod
    def decode(cls, data: bytes) -> ChunkList:
        """The list that `data` spells; `DataFormatError` unless its chunks make up one content."""
        record = read_json(
            data, "the chunk list", bytes_max=CHUNK_LIST_BYTES_MAX, parts_max=PARTS_MAX
        )
        if type(record) is not dict or record.keys() != {"size", "sha1", "chunks"}:
            raise DataFormatError("the chunk list does not have the keys size, sha1 and chunks")
        chunks = record["chunks"]
        if type(chunks) is not list or len(chunks) > LISTED_CHUNKS_MAX:
            raise DataFormatError(f"the chunk list is not of at most {LISTED_CHUNKS_MAX} chunks")
        found = cls(record["size"], _hash(record["sha1"]), tuple(map(_chunk, chunks)))
        _check_order(found)
        return found


def read_chunk_list(data: bytes, name: ContentHash, content: ContentHash) -> ChunkList:
    """The list of a URI `sha1://CONTENT?manifest=NAME`, if `data` is what that URI names."""
    if sha1_of(data) != name:
        raise VerificationError(f"the chunk list does not match its hash {name}")
    found = ChunkList.decode(data)
    if found.content != content:
        raise UriInconsistentError(
            f"the chunk list {name} is of sha1://{found.content}, not of sha1://{content}",
            hint="load the URI without ?manifest=",
        )
    return found


def verify_listed_chunk(chunk: ListedChunk, data: Bytes) -> None:
    """Pass if `data` are the bytes of `chunk`; else `VerificationError`."""
    if memoryview(data).nbytes != chunk.end - chunk.start or sha1_of(data) != chunk.content:
        raise VerificationError(f"bytes {chunk.start} to {chunk.end} do not match their hash")


class ChunkListBuilder:
    """Build a chunk list from a content's bytes in order. Keeps the hashes, never the bytes.

    With `first` the list of the first chunk is built too, and put inside.
    """

    def __init__(self, chunk_bytes: int, first: ChunkListBuilder | None = None) -> None:
        self._chunk_bytes = chunk_bytes
        self._first = first
        self._chunks: list[ListedChunk] = []
        self._hash = _new_hash()
        self._start = self._size = 0

    def update(self, data: Bytes) -> None:
        """Take the next bytes, as many as there are."""
        rest = memoryview(data).cast("B")
        while rest:
            wanted = self._start + self._chunk_bytes - self._size
            self._hash.update(rest[:wanted])
            if self._first is not None and not self._chunks:
                self._first.update(rest[:wanted])
            self._size += len(rest[:wanted])
            rest = rest[wanted:]
            if self._size - self._start == self._chunk_bytes:
                self._finish_chunk()

    def finish(self, content: ContentHash) -> ChunkList:
        """The list of all bytes taken, `content` being their SHA-1."""
        if self._size > self._start:
            self._finish_chunk()
        inside = self._first
        first = inside.finish(self._chunks[0].content) if inside and self._chunks else None
        return ChunkList(self._size, content, tuple(self._chunks), first)

    def _finish_chunk(self) -> None:
        if len(self._chunks) == LISTED_CHUNKS_MAX:
            raise UnsupportedValueError(f"a chunk list has at most {LISTED_CHUNKS_MAX} chunks")
        name = ContentHash(self._hash.hexdigest())
        self._chunks.append(ListedChunk(self._start, self._size, name))
        self._start, self._hash = self._size, _new_hash()


def _new_hash() -> hashlib._Hash:
    import hashlib

    return hashlib.sha1(usedforsecurity=False)


def _chunk(record: Any) -> ListedChunk:
    if type(record) is not dict or record.keys() - {"manifest"} != CHUNK_KEYS:
        raise DataFormatError("a chunk of the chunk list does not have the keys start, end, sha1")
    return ListedChunk(record["start"], record["end"], _hash(record["sha1"]))


def _hash(text: Any) -> ContentHash:
    if type(text) is not str or len(text) != ContentHash.CHARS or text.strip(HEX_DIGITS):
        raise DataFormatError("the chunk list has a sha1 that is not 40 lower-case hex characters")
    return ContentHash(text)


def _check_order(found: ChunkList) -> None:
    """Refuse gaps, overlaps, empty chunks, and sizes that no content of ours has."""
    position = 0
    for start, end, _ in found.chunks:
        if type(start) is not int or type(end) is not int or not position == start < end:
            raise DataFormatError(f"the chunk list has no proper chunk at byte {position}")
        position = end
    if type(found.size) is not int or found.size != position or position > CONTENT_BYTES_MAX:
        raise DataFormatError("the chunk list does not have the size of its chunks")
