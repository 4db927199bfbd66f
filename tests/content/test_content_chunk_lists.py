"""Chunk lists, the manifests of the older packages: their bytes, and refusal of everything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kachery_p2p.content import chunk_lists
from kachery_p2p.content.chunk_lists import (
    KACHERY,
    KACHERY_P2P,
    PARTS_MAX,
    ChunkList,
    ChunkListBuilder,
    Form,
    ListedChunk,
    read_chunk_list,
    verify_listed_chunk,
)
from kachery_p2p.content.hashes import ContentHash, sha1_of
from kachery_p2p.content.values import encode_npy
from kachery_p2p.errors import (
    DataFormatError,
    InvalidRangeError,
    UnsupportedValueError,
    UriInconsistentError,
    VerificationError,
)
from kachery_p2p.limits import CHUNK_LIST_BYTES_MAX, LISTED_CHUNKS_MAX

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors/content.json").read_text()
)
BYTES = bytes(range(250)) * 4
SHORT = Form(64, 0, (",", ":"))


def built(data: bytes, chunk_bytes: int, *, pieces: int = 1 << 20) -> ChunkList:
    builder = ChunkListBuilder(chunk_bytes)
    for at in range(0, len(data), pieces):
        builder.update(data[at : at + pieces])
    return builder.finish(sha1_of(data))


def record(*chunks: dict[str, Any]) -> bytes:
    size = chunks[-1]["end"] if chunks else 0
    return json.dumps({"size": size, "sha1": "0" * 40, "chunks": chunks}).encode()


@pytest.mark.parametrize("vector", VECTORS["chunk_lists"], ids=lambda v: str(v["manifest"][:8]))
def test_the_160_megabyte_array_of_the_older_packages_keeps_its_manifest(
    vector: dict[str, Any],
) -> None:
    data = encode_npy(np.asarray(np.meshgrid(np.arange(10_000), np.arange(1_002))))
    found = built(data, KACHERY.chunk_bytes)
    assert (found.size, found.content) == (vector["size"], vector["sha1"])
    written = found.encode(KACHERY)
    assert sha1_of(written) == vector["manifest"]
    assert read_chunk_list(written, vector["manifest"], vector["sha1"]) == found
    chunk = found.covering(159_999_999, 160_000_001)[1]
    assert chunk[:2] == (160_000_000, 160_320_128)
    verify_listed_chunk(chunk, memoryview(data)[chunk.start : chunk.end])


@pytest.mark.parametrize("vector", VECTORS["good_chunk_lists"], ids=lambda v: str(v["why"]))
def test_a_list_is_read_in_every_form_that_was_written(vector: dict[str, Any]) -> None:
    found = ChunkList.decode(vector["read"].encode())
    assert len(found.chunks) == vector["chunks"]
    for form in (KACHERY, KACHERY_P2P):
        assert ChunkList.decode(found.encode(form)) == found


@pytest.mark.parametrize("vector", VECTORS["bad_chunk_lists"], ids=lambda v: str(v["why"]))
def test_a_list_that_is_not_of_one_content_is_refused(vector: dict[str, str]) -> None:
    with pytest.raises(DataFormatError) as caught:
        ChunkList.decode(vector["read"].encode())
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200


def test_the_two_forms_differ_only_in_their_spaces() -> None:
    found = built(b"abc", 2)
    spaced, compact = found.encode(KACHERY), found.encode(KACHERY_P2P)
    assert spaced != compact == spaced.replace(b" ", b"")
    assert compact.startswith(b'{"size":3,"sha1":"a9993e36')
    assert b'"chunks":[{"start":0,"end":2,"sha1":"' in compact


@pytest.mark.parametrize(
    "data", [b'{"size": ' + b"9" * 5_000 + b"}", b"[" * 100_000, b"\xff", b"{"]
)
def test_json_that_makes_the_reader_itself_fail_is_refused(data: bytes) -> None:
    with pytest.raises(DataFormatError):
        ChunkList.decode(data)


def test_a_list_above_the_bounds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = record(
        {"start": 0, "end": 1, "sha1": "1" * 40}, {"start": 1, "end": 2, "sha1": "1" * 40}
    )
    assert len(ChunkList.decode(data).chunks) == 2
    for name, bound in (("CHUNK_LIST_BYTES_MAX", 100), ("PARTS_MAX", 9), ("LISTED_CHUNKS_MAX", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(chunk_lists, name, bound)
            with pytest.raises(DataFormatError):
                ChunkList.decode(data)
    with monkeypatch.context() as patch:
        patch.setattr(chunk_lists, "LISTED_CHUNKS_MAX", 1)
        with pytest.raises(UnsupportedValueError):
            built(BYTES, 500)


def test_every_list_within_the_bounds_has_bytes_and_parts_within_the_bounds() -> None:
    name = ContentHash("1" * 40)
    chunks = tuple(ListedChunk(at, at + 1, name) for at in range(10**13, 10**13 + 1000))
    data = ChunkList(10**13, name, chunks).encode(KACHERY)
    assert len(data) * LISTED_CHUNKS_MAX < 1000 * CHUNK_LIST_BYTES_MAX
    assert sum(data.count(mark) for mark in b",[{") * LISTED_CHUNKS_MAX < 1001 * PARTS_MAX


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 128, 1000])
@pytest.mark.parametrize("pieces", [1, 63, 64, 65, 1000])
def test_it_does_not_matter_in_what_pieces_the_bytes_come(size: int, pieces: int) -> None:
    found = built(BYTES[:size], 64, pieces=pieces)
    assert found == built(BYTES[:size], 64)
    assert ChunkList.decode(found.encode(SHORT)) == found
    for chunk in found.chunks:
        verify_listed_chunk(chunk, BYTES[chunk.start : chunk.end])


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.integers(0, 1000), st.integers(0, 1000))
def test_the_chunks_that_cover_a_range_hold_it_and_nothing_needless(start: int, end: int) -> None:
    if start > end:
        start, end = end, start
    chunks = built(BYTES, 64).covering(start, end)
    assert b"".join(BYTES[c.start : c.end] for c in chunks).find(BYTES[start:end]) >= 0
    assert all(chunk.start < end and chunk.end > start for chunk in chunks)
    assert not chunks or chunks[0].start <= start < end <= chunks[-1].end


@pytest.mark.parametrize(("start", "end"), [(-1, 5), (5, 4), (0, 1001), (1001, 1001)])
def test_a_range_outside_of_the_file_is_refused(start: int, end: int) -> None:
    with pytest.raises(InvalidRangeError):
        built(BYTES, 64).covering(start, end)


def test_a_list_that_is_not_what_the_uri_names_is_refused() -> None:
    found = built(BYTES, 64)
    data = found.encode(SHORT)
    assert read_chunk_list(data, sha1_of(data), found.content) == found
    with pytest.raises(VerificationError):
        read_chunk_list(data + b" ", sha1_of(data), found.content)
    with pytest.raises(UriInconsistentError):
        read_chunk_list(data, sha1_of(data), sha1_of(b"other"))


def test_a_chunk_with_other_bytes_is_refused() -> None:
    chunk = built(BYTES, 64).chunks[1]
    for data in (b"", BYTES[:64], BYTES[64:127], BYTES[64:129]):
        with pytest.raises(VerificationError):
            verify_listed_chunk(chunk, data)
