"""Manifests: the bytes of the protocol, and that no wrong byte passes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kachery_p2p.content.hashes import ContentHash, sha1_of
from kachery_p2p.content.manifests import (
    CONTENT_BYTES_MAX,
    Manifest,
    ManifestBuilder,
    RootObject,
    chunk_count,
    chunk_hash,
    chunk_hashes,
    chunk_length,
    page_count,
    page_length,
    page_of,
    verify_chunk,
    verify_page,
)
from kachery_p2p.errors import DataFormatError, VerificationError
from kachery_p2p.limits import CHUNK_BYTES

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors/content.json").read_text()
)
EMPTY, ONE_BYTE, ONE_CHUNK, TWO_CHUNKS, TWO_PAGES = VECTORS["roots"]


def pattern(size: int) -> Iterator[bytes]:
    """The content of a vector: chunk n is the number n, 8 bytes big-endian, again and again."""
    for number in range(chunk_count(size)):
        chunk = number.to_bytes(8, "big") * (CHUNK_BYTES // 8)
        yield chunk[: chunk_length(size, number)]


def manifest_of(size: int) -> Manifest:
    builder, sha1 = ManifestBuilder(), hashlib.sha1()
    for chunk in pattern(size):
        builder.update(chunk)
        sha1.update(chunk)
    return builder.finish(ContentHash(sha1.hexdigest()))


@pytest.fixture(scope="module")
def two_pages() -> Manifest:
    return manifest_of(TWO_PAGES["size"])


@pytest.mark.parametrize("vector", VECTORS["roots"][:4], ids=lambda v: str(v["size"]))
def test_a_content_gets_the_root_that_the_protocol_says(vector: dict[str, Any]) -> None:
    manifest = manifest_of(vector["size"])
    assert manifest.content == vector["sha1"]
    assert manifest.root_object.encode().hex() == vector["root_object"]
    assert manifest.root == vector["root"]
    assert [page.hex() for page in manifest.pages] == vector.get("pages", [])


def test_a_content_of_1025_chunks_has_two_pages(two_pages: Manifest) -> None:
    assert two_pages.content == TWO_PAGES["sha1"]
    assert two_pages.root_object.encode().hex() == TWO_PAGES["root_object"]
    assert two_pages.root == TWO_PAGES["root"]
    assert [len(page) for page in two_pages.pages] == [32 * 1024, 32]
    assert two_pages.root_object.chunk_count == 1025
    assert two_pages.root_object.page_count == 2


@pytest.mark.parametrize("vector", VECTORS["roots"], ids=lambda v: str(v["size"]))
def test_a_root_object_comes_back_from_its_bytes(vector: dict[str, Any]) -> None:
    decoded = RootObject.decode(bytes.fromhex(vector["root_object"]))
    assert (decoded.size, decoded.content) == (vector["size"], vector["sha1"])
    assert decoded.root == vector["root"]
    assert decoded.encode().hex() == vector["root_object"]


@pytest.mark.parametrize("vector", VECTORS["bad_root_objects"], ids=lambda v: str(v["why"]))
def test_a_root_object_with_anything_wrong_is_refused(vector: dict[str, str]) -> None:
    with pytest.raises(DataFormatError):
        RootObject.decode(bytes.fromhex(vector["root_object"]))


def test_the_largest_content_has_a_root_object_of_half_a_megabyte() -> None:
    pages = tuple(bytes(32) for _ in range(page_count(CONTENT_BYTES_MAX)))
    encoded = RootObject(CONTENT_BYTES_MAX, sha1_of(b""), pages).encode()
    assert len(encoded) == 40 + 32 * 16_384
    assert RootObject.decode(encoded).chunk_count == 1 << 24


@settings(derandomize=True, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 71), st.integers(1, 255))
def test_bytes_that_decode_are_the_only_bytes_of_that_object(
    junk: bytes, at: int, flip: int
) -> None:
    changed = bytearray.fromhex(ONE_BYTE["root_object"])
    changed[at] ^= flip
    for data in (junk, bytes(changed)):
        try:
            decoded = RootObject.decode(data)
        except DataFormatError:
            continue
        assert decoded.encode() == data


@pytest.mark.parametrize(
    ("size", "chunks", "pages"),
    [(0, 0, 0), (1, 1, 1), (1 << 20, 1, 1), ((1 << 20) + 1, 2, 1), (1 << 30, 1024, 1),
     ((1 << 30) + 1, 1025, 2)],
)  # fmt: skip
def test_chunks_and_pages_are_counted(size: int, chunks: int, pages: int) -> None:
    assert (chunk_count(size), page_count(size)) == (chunks, pages)
    if size:
        assert sum(page_length(size, number) for number in range(pages)) == 32 * chunks
        assert chunk_length(size, chunks - 1) == size - (chunks - 1) * CHUNK_BYTES


def test_chunk_1024_is_the_first_of_the_second_page(two_pages: Manifest) -> None:
    assert page_of(1023) == (0, 1023)
    assert page_of(1024) == (1, 0)
    assert two_pages.chunk_hash(1024) == two_pages.pages[1]
    assert two_pages.chunk_hash(0) == chunk_hash(bytes(CHUNK_BYTES))


def test_every_page_and_chunk_of_a_content_verifies(two_pages: Manifest) -> None:
    for number, page in enumerate(two_pages.pages):
        verify_page(two_pages.root_object, number, page)
    for chunk in (0, 1, 1023, 1024):
        at, position = page_of(chunk)
        data = chunk.to_bytes(8, "big") * (CHUNK_BYTES // 8)
        verify_chunk(two_pages.pages[at], position, data)
        verify_chunk(two_pages.pages[at], position, memoryview(bytearray(data)))


def test_a_page_with_one_bit_changed_is_refused(two_pages: Manifest) -> None:
    page = bytearray(two_pages.pages[0])
    page[100] ^= 1
    with pytest.raises(VerificationError):
        verify_page(two_pages.root_object, 0, bytes(page))


@pytest.mark.parametrize(("number", "length"), [(0, 32 * 1023), (1, 64), (1, 0), (2, 32), (-1, 32)])
def test_a_page_of_wrong_length_or_number_is_refused(
    two_pages: Manifest, number: int, length: int
) -> None:
    with pytest.raises(VerificationError):
        verify_page(two_pages.root_object, number, bytes(length))


def test_a_chunk_at_the_wrong_place_or_too_short_is_refused(two_pages: Manifest) -> None:
    data = bytes(CHUNK_BYTES)
    verify_chunk(two_pages.pages[0], 0, data)
    for position, wrong in ((1, data), (0, data[:-1]), (0, data + b"\0"), (0, b"")):
        with pytest.raises(VerificationError):
            verify_chunk(two_pages.pages[0], position, wrong)
    for position in (-1, 1024, 1 << 40):
        with pytest.raises(VerificationError):
            verify_chunk(two_pages.pages[0], position, data)


def test_a_chunk_after_a_short_one_is_our_own_mistake() -> None:
    builder = ManifestBuilder()
    builder.update(b"short")
    with pytest.raises(AssertionError):
        builder.update(b"next")


@pytest.mark.parametrize("size", [1, 2, 1000, CHUNK_BYTES - 1, CHUNK_BYTES])
def test_the_hashes_of_one_chunk_say_what_its_manifest_says(size: int) -> None:
    chunk = bytes(number % 251 for number in range(size))
    sha1 = hashlib.sha1(chunk)
    builder = ManifestBuilder()
    builder.update(chunk)
    manifest = builder.finish(ContentHash(sha1.hexdigest()))
    hashes = chunk_hashes(ContentHash(sha1.hexdigest()), sha1.digest(), chunk)
    assert hashes.manifest == manifest
    assert (hashes.root, hashes.size, hashes.pages) == (manifest.root, size, manifest.pages)
    assert hashes.encoded == manifest.root_object.encode()
