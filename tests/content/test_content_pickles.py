"""Pickles: plain values come back, and nothing else ever happens."""

from __future__ import annotations

import os
import pickle
import random
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.content.pickles import decode_pickle, encode_pickle
from kachery_p2p.errors import DataFormatError, UnsafePickleError, UnsupportedValueError

START, STOP = b"\x80\x04", b"."
# How a pickle names numpy's functions by hand: GLOBAL "module name".
DTYPE, NDARRAY = b"cnumpy\ndtype\n", b"cnumpy\nndarray\n"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
SCALAR = b"cnumpy.core.multiarray\nscalar\n"
RECORD = np.dtype([("a", "i1"), ("b", "f8", (2, 2)), ("c", [("d", "S2")])], align=True)
ARRAYS: list[Any] = [
    np.array([[1, 2, 3], [4, 5, 6]], np.int16),
    np.asfortranarray(np.ones((2, 3))),
    np.array(1.5),
    np.zeros((0, 3), np.complex64),
    np.array([True, False]),
    np.array([1, 2], ">i4"),
    np.array(["ab", "c"]),
    np.array([b"ab", b"c"]),
    np.array(["2020-01", "2021-02"], "M8[25s]"),
    np.array([1, 2], "m8[ns]"),
    np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]),
    np.zeros(2, RECORD),
    np.arange(100_000),
]
SCALARS: list[Any] = [
    np.float32(1.5), np.int64(-3), np.bool_(True), np.complex128(1j), np.str_("é"), np.str_(""),
    np.bytes_(b"x"), np.void(b"ab"), np.datetime64("2020-01-01"), np.timedelta64(5, "ms"),
    np.zeros(1, RECORD)[0],
]  # fmt: skip
plain_keys = st.none() | st.booleans() | st.integers() | st.text() | st.binary()
plain_values = st.recursive(
    plain_keys | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(plain_keys | st.tuples(plain_keys, plain_keys), inner)
        | st.sets(plain_keys)
        | st.frozensets(plain_keys)
    ),
    max_leaves=20,
)


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def assert_same(loaded: Any, value: Any) -> None:
    assert type(loaded) is type(value)
    assert loaded.dtype == value.dtype and loaded.shape == value.shape
    assert loaded.tobytes("A") == value.tobytes("A")
    assert loaded.dtype.isalignedstruct == value.dtype.isalignedstruct


@settings(derandomize=True, deadline=None)
@given(plain_values)
def test_a_plain_value_has_the_bytes_of_pythons_pickle_and_comes_back(value: Any) -> None:
    data = encode_pickle(value)
    assert data == pickle.dumps(value, 4)
    assert decode_pickle(data) == value


@pytest.mark.parametrize("value", ARRAYS + SCALARS, ids=lambda v: f"{type(v).__name__} {v.dtype}")
def test_arrays_and_scalars_come_back_unchanged(value: Any) -> None:
    assert_same(decode_pickle(encode_pickle(value)), value)
    assert_same(decode_pickle(pickle.dumps(value, 4)), value)
    assert_same(decode_pickle(pickle.dumps(value, 3)), value)


def test_a_loaded_array_is_writable_and_keeps_its_order() -> None:
    loaded = decode_pickle(encode_pickle(ARRAYS[1]))
    loaded[0, 0] = 7
    assert loaded.flags.f_contiguous


def test_both_names_of_numpys_module_are_read_and_the_old_one_is_written() -> None:
    array = ARRAYS[0]
    old, new = encode_pickle(array), pickle.dumps(array, 4)
    assert b"\x15numpy.core.multiarray" in old and b"numpy._core" not in old
    assert len({pickle.dumps(decode_pickle(data)) for data in (old, new)}) == 1
    assert (
        pickle.loads(old.replace(b"\x15numpy.core", b"\x16numpy._core", 1)[:2] + old[2:])
        is not None
    )


def test_one_array_in_two_places_is_one_array_again() -> None:
    array = ARRAYS[0]
    loaded = decode_pickle(encode_pickle({"a": array, "b": [array]}))
    assert loaded["a"] is loaded["b"][0]


def test_a_large_array_is_written_once() -> None:
    array = np.arange(4_000_000, dtype=np.int64)
    data = encode_pickle([array, array])
    assert len(data) < array.nbytes + 1_000
    assert np.array_equal(decode_pickle(data)[1], array)


class Listlike(list[int]):
    pass


class Floatlike(np.float64):
    pass


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [1, object()]}, "value['a'][1]"),
        ({"a": (np.array([None]),)}, "value['a'][0]"),
        ([{(1, 2j): 3}], "value[0] key tuple[1]"),
        ([frozenset([1.5, len])], "value[0] element builtin_function_or_method"),
        ([np.ma.array([1])], "value[0]"),
        ([np.zeros(1, [("a", [("b", "O")])])], "value[0]"),
        ([np.zeros(1, np.dtype("i4", metadata={"a": 1}))], "value[0]"),
        ({"\x1b": OrderedDict()}, r"value['\x1b']"),
        (Listlike(), "value"),
        ([Floatlike(1)], "value[0]"),
        (np.dtype("i4"), "value"),
        (bytearray(), "value"),
        (os.system, "value"),
    ],
    ids=str,
)
def test_what_is_not_plain_is_refused_with_its_place(value: Any, path: str) -> None:
    with pytest.raises(UnsupportedValueError) as caught:
        encode_pickle(value)
    assert str(caught.value).startswith(path + ": ")


def test_records_with_pythons_methods_are_refused() -> None:
    with pytest.raises(UnsupportedValueError):
        encode_pickle(np.zeros(1, np.dtype((np.record, [("a", "i4")]))))


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_depth_is_bounded_on_both_sides() -> None:
    assert decode_pickle(encode_pickle(nested(200)))
    for depth in (201, 100_000):
        with pytest.raises(UnsupportedValueError):
            encode_pickle(nested(depth))
    with pytest.raises(DataFormatError):
        decode_pickle(pickle.dumps(nested(250), 4))


def laughs(kind: Callable[[list[Any]], Any]) -> Any:
    value = kind([])
    for _ in range(60):
        value = kind([value, value])
    return value


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append({"a": value})
    with pytest.raises(UnsupportedValueError, match="contains itself"):
        encode_pickle(value)
    with pytest.raises(DataFormatError, match="contains itself"):
        decode_pickle(pickle.dumps(value, 4))


@pytest.mark.parametrize("kind", [list, tuple], ids=["lists", "tuples"])
def test_billions_of_laughs_are_refused_on_both_sides(kind: Any) -> None:
    with pytest.raises(UnsupportedValueError, match="parts"):
        encode_pickle(laughs(kind))
    with pytest.raises(DataFormatError, match="parts"):
        decode_pickle(pickle.dumps(laughs(kind), 4))


class Payload:
    """What an attacker pickles: loading it calls `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_payloads_are_refused_and_never_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w')"
    attacks: list[Any] = [
        Payload(os.system, f"touch {canary}"),
        Payload(eval, code),
        Payload(exec, code),
        Payload(getattr, "text", "upper"),
        Payload(__import__, "os"),
        Payload(os.open, str(canary), os.O_CREAT),
        Payload(np.memmap, str(canary), "u1", "w+", 0, (1,)),
        Payload(np.save, str(canary), np.zeros(1)),
        Payload(np.load, str(canary)),
        np.array([Payload(eval, code)], dtype=object),
        {"a": [1, (Payload(eval, code),)]},
    ]
    for attack in attacks:
        for protocol in range(6):
            with pytest.raises(UnsafePickleError):
                decode_pickle(pickle.dumps(attack, protocol))
    assert not canary.exists()


def test_the_error_names_what_was_refused() -> None:
    with pytest.raises(UnsafePickleError, match=r"refuses 'builtins\.eval'") as caught:
        decode_pickle(pickle.dumps(Payload(eval, "1"), 4))
    assert caught.value.hint is not None


TUPLE_LAUGHS = b")" + b"".join(b"\x94h" + bytes([n]) + b"\x86" for n in range(60))
DEEP_TUPLE = b")" + b"\x85" * 100_000
I4 = DTYPE + text("i4") + b"\x89\x88\x87R"
EMPTY_STATE = b"(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
UNBUILT = RECONSTRUCT + b"(" + NDARRAY + b"K\x00\x85C\x01btR"


def record(names: bytes, fields: bytes, itemsize: int) -> bytes:
    state = (
        b"(K\x03" + text("|") + b"N" + names + fields + b"K" + bytes([itemsize]) + b"K\x01K\x10tb"
    )
    return DTYPE + text(f"V{itemsize}") + b"\x89\x88\x87R" + state


def dtype_laughs() -> bytes:
    inner = I4 + b"\x94"
    for n in range(40):
        fields = (
            b"}(" + text("a") + b"h" + bytes([n]) + b"K\x00\x86" + text("b") + b"h" + bytes([n])
        )
        inner += record(text("a") + text("b") + b"\x86", fields + b"K\x00\x86u", 4) + b"\x94"
    return inner + b"C\x04abcd"


O8 = DTYPE + text("O8") + b"\x89\x88\x87R"
U1 = DTYPE + text("U1") + b"\x89\x88\x87R"
OUTSIDE = record(text("a") + b"\x85", b"}" + text("a") + I4 + b"K\x64\x86s", 4)
BOMBS = {
    "memo number of 2^31": b"Nr\xff\xff\xff\x7f",
    "memo number skipped": b"Nq\x01",
    "memo never stored": b"h\x00",
    "laughs as a key": b"}" + TUPLE_LAUGHS + b"K\x01s",
    "laughs in a set": b"\x8f(" + TUPLE_LAUGHS + b"\x90",
    "laughs in a frozenset": b"(" + TUPLE_LAUGHS + b"\x91",
    "deep tuple as a key": b"}" + DEEP_TUPLE + b"K\x01s",
    "deep tuple": DEEP_TUPLE,
    "laughs as a module": TUPLE_LAUGHS + text("dtype") + b"\x93",
    "laughs as a name": text("numpy") + TUPLE_LAUGHS + b"\x93",
    "laughs as a dtype name": DTYPE + TUPLE_LAUGHS + b"\x89\x88\x87R",
    "laughs as a field name": record(TUPLE_LAUGHS + b"\x85", b"}", 4),
    "laughs as a shape": UNBUILT + b"(K\x01" + TUPLE_LAUGHS + I4 + b"\x89C\x00tb",
    "laughs of dtypes": SCALAR + dtype_laughs() + b"\x86R",
    "array of 2^62 items": UNBUILT + b"(\x8a\x08" + bytes(7) + b"\x40\x85" + I4 + b"\x89C\x00tb",
    "array of negative length": UNBUILT + b"(K\x01J\xff\xff\xff\xff\x85" + I4 + b"\x89C\x04abcdtb",
    "array of 1,000 dimensions": UNBUILT + b"((" + b"K\x00" * 1000 + b"t" + I4 + b"\x89C\x00tb",
    "array with too few bytes": UNBUILT + b"(K\x01K\x02\x85" + I4 + b"\x89C\x04abcdtb",
    "array of Python pointers": UNBUILT + b"(K\x01\x85" + O8 + b"\x89C\x08abcdefghtb",
    "array of text beyond Unicode": UNBUILT + b"(K\x01\x85" + U1 + b"\x89C\x04\xff\xff\xff\x7ftb",
    "array of a list": UNBUILT + b"(K\x01K\x01\x85" + I4 + b"\x89]tb",
    "array never built": UNBUILT,
    "array never built as a key": b"}" + UNBUILT + b"K\x01s",
    "array built by a mere number": UNBUILT + b"K\x01b",
    "state set on a list": b"]" + b"\x85b",
    "state set on None": b"N)b",
    "dtype as a value": I4,
    "dtype of unknown kind": DTYPE + text("Z4") + b"\x89\x88\x87R",
    "dtype of size 3": DTYPE + text("i3") + b"\x89\x88\x87R",
    "dtype of unknown byte order": I4 + EMPTY_STATE.replace(b"|", b"x"),
    "field outside of the item": SCALAR + OUTSIDE + b"C\x04abcd\x86R",
    "ndarray called": NDARRAY + b"K\x05\x85\x85R",
    "numpy function as a value": RECONSTRUCT,
    "call of a value": b"K\x01)R",
    "stack empty": b"\x85",
    "append without a list": b"K\x01K\x02a",
    "key without a value": b"}(K\x01u",
    "list as a key": b"}]K\x01s",
    "mark never opened": b"t",
    "two values": b"NN",
    "mark never closed": b"(N",
    "extension registry": b"\x82\x01",
    "persistent id": b"Q",
    "instance": b"(ios\nsystem\n",
    "protocol 6": b"\x80\x06N",
}  # fmt: skip


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS.keys())
def test_a_hostile_pickle_is_refused_at_once(body: bytes) -> None:
    with pytest.raises(DataFormatError):
        decode_pickle(START + body + STOP)


def test_a_handmade_pickle_without_a_bomb_is_read() -> None:
    array = UNBUILT + b"\x94(K\x01K\x01\x85" + I4 + b"\x89C\x04\x05\x00\x00\x00tbh\x00\x86"
    one, two = decode_pickle(START + array + STOP)
    assert one is two and one.tolist() == [5]


@pytest.mark.parametrize("data", [b"", b".", b"\x80", START, START + b"N", START + b"N.N", b"text"])
def test_bytes_that_are_not_one_pickle_are_refused(data: bytes) -> None:
    with pytest.raises(DataFormatError):
        decode_pickle(data)


def test_what_is_above_the_bounds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode_pickle(list(range(100)))
    monkeypatch.setattr("kachery_p2p.content.pickles.INSTRUCTIONS_MAX", 50)
    with pytest.raises(DataFormatError, match="too many parts"):
        decode_pickle(data)
    monkeypatch.setattr("kachery_p2p.content.pickles.VALUE_BYTES_MAX", 50)
    with pytest.raises(DataFormatError):
        decode_pickle(data)
    with pytest.raises(UnsupportedValueError):
        encode_pickle(list(range(100)))


def test_twenty_thousand_mutated_pickles_are_values_or_format_errors(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    rng = random.Random(19)
    value = [1, "a", b"b", 2.5, (None, True), {"k": {3, 4}}, frozenset([5])]
    seeds = [pickle.dumps(Payload(os.system, f"touch {canary}"), 4), encode_pickle(value)]
    seeds += [encode_pickle([part, part]) for part in ARRAYS[:-1] + SCALARS]
    for _ in range(20_000):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            if rng.random() < 0.5:
                data[at] = rng.randrange(256)
            elif rng.random() < 0.5:
                del data[at : at + rng.randint(1, 4)]
            else:
                start = rng.randrange(len(data))
                data[at:at] = data[start : start + rng.randint(1, 20)]
        try:
            decode_pickle(bytes(data))
        except DataFormatError:
            continue
    assert not canary.exists()


def test_the_dict_of_an_array_keeps_the_uri_of_the_older_packages() -> None:
    data = encode_pickle({"example": ARRAYS[0]})
    assert sha1_of(data) == "20d178d5a1264fc3267e38ca238c23f3e2dcd5d2"
