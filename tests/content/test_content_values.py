"""Text, JSON and arrays: the bytes of the older packages, and refusal of everything hostile."""

from __future__ import annotations

import hashlib
import io
import json
import random
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kachery_p2p.content.hashes import Cid, sha1_of
from kachery_p2p.content.values import (
    decode_json,
    decode_npy,
    decode_text,
    encode_json,
    encode_npy,
    encode_pickle,
    encode_text,
)
from kachery_p2p.errors import DataFormatError, UnsafePickleError, UnsupportedValueError

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors/content.json").read_text()
)
ENCODERS: dict[str, Any] = {
    "text": encode_text,
    "json": encode_json,
    "npy": encode_npy,
    "pickle": encode_pickle,
}
DTYPES: list[Any] = [
    "?", "i1", "<i2", ">i4", "u8", "f2", "<f4", ">f8", "c8", "c16", "S3", "<U2", "V4",
    "M8[ns]", "<m8[25s]", "i4,f8", [("a", "i1"), ("b", "f8", (2, 2)), ("c", [("d", "S2")])],
]  # fmt: skip


def value_of(described: Any) -> Any:
    if isinstance(described, dict) and "dtype" in described:
        return np.array(described["items"], described["dtype"])
    if isinstance(described, dict):
        return {key: value_of(inner) for key, inner in described.items()}
    return described


def npy_with_header(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    raw = header.encode()
    length = struct.pack("<H" if version == (1, 0) else "<I", len(raw))
    return b"\x93NUMPY" + bytes(version) + length + raw + data


@pytest.mark.parametrize(
    "vector", VECTORS["values"], ids=lambda v: f"{v['format']} {v['sha1'][:8]}"
)
def test_a_value_keeps_the_bytes_and_the_uri_it_always_had(vector: dict[str, Any]) -> None:
    data = ENCODERS[vector["format"]](value_of(vector["value"]))
    assert data.hex() == vector["bytes"]
    assert sha1_of(data) == vector["sha1"]


@pytest.mark.parametrize("vector", VECTORS["older_values"], ids=lambda v: str(v["sha1"][:8]))
def test_a_value_that_was_written_otherwise_is_read(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["bytes"])
    assert sha1_of(data) == vector["sha1"]
    assert decode_json(data) == vector["value"]


@pytest.mark.parametrize("vector", [v for v in VECTORS["values"] if "cid" in v])
def test_the_ipfs_hash_of_a_value_is_of_its_bytes(vector: dict[str, Any]) -> None:
    assert (
        Cid.parse(vector["cid"]).sha256 == hashlib.sha256(bytes.fromhex(vector["bytes"])).digest()
    )


def test_the_160_megabyte_array_of_the_older_packages_keeps_its_uri() -> None:
    array = np.asarray(np.meshgrid(np.arange(10_000), np.arange(1_002)))
    assert sha1_of(encode_npy(array)) == "1d671d3393b9f67a8f32af1b3dc6017caa96c8ee"


@pytest.mark.parametrize("text", ["", "déjà vu\r\n", "\ufeff", "a\0b", "数据"])
def test_text_comes_back_unchanged(text: str) -> None:
    assert decode_text(encode_text(text)) == text


def test_bytes_that_are_not_utf8_are_not_text() -> None:
    with pytest.raises(DataFormatError, match="at byte 1"):
        decode_text(b"a\xff")


@pytest.mark.parametrize("value", ["\ud800", b"bytes", 1, None])
def test_what_is_not_text_is_not_stored_as_text(value: Any) -> None:
    with pytest.raises(UnsupportedValueError):
        encode_text(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(derandomize=True, deadline=None)
@given(json_values)
def test_json_comes_back_unchanged(value: Any) -> None:
    assert decode_json(encode_json(value)) == value


def test_json_keeps_the_order_of_keys_and_has_no_spaces() -> None:
    assert encode_json({"b": [1, 2], "a": "é"}) == b'{"b":[1,2],"a":"\\u00e9"}'


def test_json_of_the_first_packages_had_spaces_and_is_still_read() -> None:
    data = b'{"name": "example-object"}'
    assert sha1_of(data) == "af0fa33ccfec88a593504bbc34b40099325a7c1d"
    assert decode_json(data) == {"name": "example-object"}


def test_json_has_nan_as_the_older_packages_had() -> None:
    assert encode_json([float("nan"), float("-inf")]) == b"[NaN,-Infinity]"
    assert str(decode_json(b"NaN")) == "nan"


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"nope", b"\xff", b"[1,]", b"\xef\xbb\xbf1", b"1" * 5_000, b"[" * 100_000,
     b"[" * 100_000 + b"]" * 100_000, b"[" * 202 + b"]" * 202, b'{"a":' * 300 + b"1" + b"}" * 300],
    ids=lambda data: f"{data[:8]!r} of {len(data)}",
)  # fmt: skip
def test_bytes_that_are_not_reasonable_json_are_refused(data: bytes) -> None:
    with pytest.raises(DataFormatError):
        decode_json(data)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("value", [object(), {1, 2}, np.ones(2), {(1, 2): 3}, nested(300)])
def test_what_json_cannot_say_is_not_stored_as_json(value: Any) -> None:
    with pytest.raises(UnsupportedValueError):
        encode_json(value)


def test_a_list_that_contains_itself_is_not_stored_as_json() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(UnsupportedValueError):
        encode_json(value)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_array_comes_back_unchanged_and_writable(dtype: Any, order: Any) -> None:
    items = np.zeros(6 * np.dtype(dtype).itemsize, np.uint8)
    items[::4] = 1  # true, small numbers, control characters: every dtype has a value for it
    array = np.asarray(items.view(dtype).reshape(2, 3), order=order)
    data = encode_npy(array)
    expected = io.BytesIO()
    np.save(expected, array)
    assert data == expected.getvalue()
    loaded = decode_npy(data)
    assert loaded.tobytes("A") == array.tobytes("A")
    assert loaded.dtype == array.dtype and loaded.shape == (2, 3)
    assert loaded.flags.writeable and loaded.flags.f_contiguous == array.flags.f_contiguous


@pytest.mark.parametrize(
    "value", [np.float64(1.5), np.array(3), [1, 2], [[True]], np.zeros((0, 3))]
)
def test_scalars_lists_of_numbers_and_empty_arrays_are_arrays(value: Any) -> None:
    loaded = decode_npy(encode_npy(value))
    assert loaded.shape == np.shape(value) and np.array_equal(loaded, np.asarray(value))


def test_field_names_that_latin1_lacks_need_the_newest_format() -> None:
    array = np.zeros(2, [("数据", "i4")])
    data = encode_npy(array)
    assert data[6:8] == b"\x03\x00"
    assert decode_npy(data).dtype == array.dtype


@pytest.mark.parametrize(
    "value",
    [np.array([None]), np.zeros(1, [("a", "O")]), np.ma.array([1], mask=[True]), ["a"], [None],
     [[1], [1, 2]], [{}], "text", 5, None, {"a": 1},
     np.zeros(1, [(f"field{n}", "i1") for n in range(1_000)])],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_npy_cannot_hold_is_not_stored_as_npy(value: Any) -> None:
    with pytest.raises(UnsupportedValueError):
        encode_npy(value)


HEADER = "{'descr': %s, 'fortran_order': False, 'shape': %s, }\n"


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (HEADER % ("'<f8'", "(100000000000,)"), bytes(100)),
        (HEADER % ("'<f8'", "(2,)"), bytes(15)),
        (HEADER % ("'<f8'", "(2,)"), bytes(17)),
        (HEADER % ("'<f8'", "(-1, -2)"), bytes(16)),
        (HEADER % ("'<f8'", "(18446744073709551616, 0)"), b""),
        (HEADER % ("'<f8'", "(0,) * 9"), b""),
        (HEADER % ("'<f8'", "(" + "0, " * 65 + ")"), b""),
        (HEADER % ("'V0'", "(1000000000000,)"), b""),
        (HEADER % ("'|O'", "(1,)"), bytes(8)),
        (HEADER % ("[('a', '|O')]", "(1,)"), bytes(8)),
        (HEADER % ("'nonsense'", "(1,)"), bytes(8)),
        (HEADER % ("__import__('os')", "(1,)"), bytes(8)),
        ("(" * 5_000, b""),
        ("[" * 100 + "]" * 100, b""),
        ("{}", b""),
        ("", b""),
        ("\0", b""),
    ],
    ids=lambda value: repr(value)[:40],
)
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0), (4, 0)])
def test_an_npy_whose_header_lies_is_refused(
    header: str, data: bytes, version: tuple[int, int]
) -> None:
    with pytest.raises(DataFormatError):
        decode_npy(npy_with_header(header, data, version))


def test_an_npy_of_python_objects_says_why_it_is_refused() -> None:
    with pytest.raises(UnsafePickleError, match="Python objects"):
        decode_npy(npy_with_header(HEADER % ("'|O'", "(1,)"), bytes(8)))


def test_mutated_arrays_are_values_or_format_errors() -> None:
    rng = random.Random(17)
    seeds = [encode_npy(np.zeros((2, 3), dtype)) for dtype in DTYPES]
    for _ in range(3_000):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            decode_npy(bytes(data[: rng.choice((len(data), rng.randrange(len(data))))]))
        except DataFormatError:
            continue


def test_values_of_the_limit_are_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["kachery_p2p.content.values"], "VALUE_BYTES_MAX", 10)
    assert decode_text(b"1234567890") == "1234567890"
    with pytest.raises(DataFormatError):
        decode_text(b"12345678901")
    with pytest.raises(DataFormatError):
        decode_json(b"12345678901")
