"""Sealed files: the recorded ones byte for byte, and files that somebody touched."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kachery_p2p.errors import SealError, SourceChangedError, StateVersionError
from kachery_p2p.identity.frames import (
    FRAME_BYTES,
    HEADER_BYTES,
    TAG_BYTES,
    Opener,
    Sealer,
    is_sealed,
    key_id,
    open_stream,
    read_header,
    seal_stream,
    sealed_size,
    span,
)

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors/sealed_files.json").read_text()
)
KEY = bytes.fromhex(VECTORS["content_key"])
SALT = bytes.fromhex(VECTORS["salt"])
OTHER_KEY = bytes(32)
SEALED_FRAME_BYTES = FRAME_BYTES + TAG_BYTES


def content_of(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def sealed(content: bytes, key: bytes = KEY, salt: bytes | None = SALT) -> bytes:
    sealer = Sealer(key, len(content), salt)
    return sealer.header + sealer.seal_frames(0, content)


def opened(file: bytes, key: bytes = KEY) -> bytes:
    out = io.BytesIO()
    open_stream(io.BytesIO(file).read, out.write, key)
    return out.getvalue()


def opener_of(file: bytes, key: bytes = KEY) -> Opener:
    return Opener(key, read_header(file))


def frame(file: bytes, number: int) -> bytes:
    start = HEADER_BYTES + number * SEALED_FRAME_BYTES
    return file[start : start + SEALED_FRAME_BYTES]


# --- vectors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["files"], ids=lambda v: f"{v['size']} bytes")
def test_the_recorded_files_are_sealed_and_opened_byte_for_byte(vector: dict[str, Any]) -> None:
    content = content_of(vector["size"])
    file = sealed(content)
    assert file[:HEADER_BYTES].hex() == vector["header"]
    assert file[-TAG_BYTES:].hex() == vector["last_tag"]
    assert hashlib.sha256(file).hexdigest() == vector["sha256"]
    assert len(file) == vector["sealed_size"] == sealed_size(vector["size"])
    assert vector.get("file", file.hex()) == file.hex()
    assert opened(file) == content


@pytest.mark.parametrize("vector", VECTORS["bad_files"], ids=lambda v: v["why"])
def test_a_file_that_was_touched_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(SealError):
        opened(bytes.fromhex(vector["file"]))


@pytest.mark.parametrize("vector", VECTORS["spans"], ids=str)
def test_a_range_lies_where_the_vectors_say(vector: dict[str, Any]) -> None:
    found = span(vector["size"], vector["start"], vector["end"])
    assert found == tuple(vector[name] for name in ("first_frame", "offset", "length", "skip"))


def test_the_name_of_a_key_is_that_of_the_vectors() -> None:
    assert key_id(KEY).hex() == VECTORS["key_id"]


# --- ranges and streams -----------------------------------------------------------------------


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_range_is_opened_from_the_bytes_that_span_names(data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([0, 1, 65535, 65536, 65537, 150_000]))
    start = data.draw(st.integers(0, size))
    end = data.draw(st.integers(start, size))
    content = content_of(size)
    file = sealed(content)
    at = span(size, start, end)
    got = opener_of(file).open_span(start, end, file[at.offset : at.offset + at.length])
    assert got == content[start:end]


@pytest.mark.parametrize("size", [0, 1, FRAME_BYTES, 16 * FRAME_BYTES, 16 * FRAME_BYTES + 1])
def test_a_stream_that_comes_in_bits_is_sealed_and_opened_whole(size: int) -> None:
    source, file, out = io.BytesIO(content_of(size)), io.BytesIO(), io.BytesIO()
    seal_stream(lambda n: source.read(min(n, 70_001)), file.write, KEY, size)
    file.seek(0)
    open_stream(lambda n: file.read(min(n, 70_001)), out.write, KEY)
    assert out.getvalue() == content_of(size)
    assert len(file.getvalue()) == sealed_size(size)


def test_two_files_of_one_content_have_nothing_in_common() -> None:
    content = content_of(FRAME_BYTES)
    first, second = sealed(content, salt=None), sealed(content, salt=None)
    assert first[8:24] == second[8:24]  # the key's name
    assert first[24:56] != second[24:56]
    assert first[HEADER_BYTES:] != second[HEADER_BYTES:]


@pytest.mark.parametrize(("size", "word"), [(99, "longer"), (101, "shorter")])
def test_a_content_that_changes_its_length_is_not_sealed(size: int, word: str) -> None:
    with pytest.raises(SourceChangedError, match=word):
        seal_stream(io.BytesIO(bytes(100)).read, io.BytesIO().write, KEY, size)


def test_nothing_is_written_that_did_not_open() -> None:
    content = content_of(40 * FRAME_BYTES)
    file = bytearray(sealed(content))
    file[HEADER_BYTES + 20 * SEALED_FRAME_BYTES] ^= 1
    out = io.BytesIO()
    with pytest.raises(SealError, match="frame 20"):
        open_stream(io.BytesIO(file).read, out.write, KEY)
    assert content.startswith(out.getvalue())


# --- attacks ----------------------------------------------------------------------------------


def test_frames_that_changed_places_do_not_open() -> None:
    file = sealed(content_of(2 * FRAME_BYTES))
    opener = opener_of(file)
    for number in range(2):
        with pytest.raises(SealError):
            opener.open(number, frame(file, 1 - number))


def test_a_frame_of_another_file_of_the_same_key_does_not_open() -> None:
    ours, theirs = sealed(content_of(FRAME_BYTES)), sealed(content_of(FRAME_BYTES), salt=None)
    with pytest.raises(SealError):
        opener_of(ours).open(0, frame(theirs, 0))


def test_a_file_cut_after_a_whole_frame_is_noticed() -> None:
    file = sealed(content_of(3 * FRAME_BYTES))
    with pytest.raises(SealError):
        opened(file[:-SEALED_FRAME_BYTES])


def test_a_file_that_says_it_was_shorter_does_not_open() -> None:
    file = bytearray(sealed(content_of(2 * FRAME_BYTES)))
    file[56:64] = FRAME_BYTES.to_bytes(8, "big")
    with pytest.raises(SealError):
        opened(bytes(file[:-SEALED_FRAME_BYTES]))


@given(st.integers(0, HEADER_BYTES + 100 + TAG_BYTES - 1), st.integers(0, 7))
@settings(max_examples=200, deadline=None)
def test_no_bit_can_be_flipped_unnoticed(at: int, bit: int) -> None:
    file = bytearray(sealed(content_of(100)))
    file[at] ^= 1 << bit
    with pytest.raises((SealError, StateVersionError)):
        opened(bytes(file))


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_junk_is_no_sealed_file(junk: bytes) -> None:
    with pytest.raises((SealError, StateVersionError)):
        opened(junk)


def test_another_key_is_told_from_damage() -> None:
    with pytest.raises(SealError, match="another key"):
        opened(sealed(content_of(10)), OTHER_KEY)


def test_a_newer_format_asks_for_an_upgrade() -> None:
    file = sealed(content_of(10))
    with pytest.raises(StateVersionError) as caught:
        read_header(file[:6] + b"\0\2" + file[8:])
    assert caught.value.hint == "upgrade kachery_p2p"


def test_what_is_sealed_says_so_in_its_first_bytes() -> None:
    assert is_sealed(sealed(b"")[:8])
    assert not is_sealed(b"KPSEA")
    assert not is_sealed(content_of(100))


def test_a_frame_is_never_sealed_twice() -> None:
    sealer = Sealer(KEY, 100)
    sealer.seal(0, bytes(100))
    with pytest.raises(AssertionError):
        sealer.seal(0, bytes(range(100)))
