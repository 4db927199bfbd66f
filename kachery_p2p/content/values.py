"""Values of Python as bytes and back: text, JSON, numpy arrays, and a safe part of pickle.

What is written is byte for byte what the older kachery packages wrote, so the same
value keeps the same URI:

- text: UTF-8, line ends untouched.
- JSON: compact, keys in the order of the dict, non-ASCII escaped. As in the older
  packages NaN and Infinity are written, although strict JSON readers refuse them,
  keys that are numbers become text, and of a key given twice the last one counts.
- npy: as `np.save` writes it (`arrays`).
- pickle: protocol 4, of plain values and numpy arrays only (`pickles`).

What is read is never trusted: it has the shape asked for and a bounded depth, or is
refused with `DataFormatError`; a pickle never runs anything.
"""

from __future__ import annotations

from typing import Any

from kachery_p2p.content.arrays import decode_npy, encode_npy
from kachery_p2p.content.hashes import quoted
from kachery_p2p.content.pickles import decode_pickle, encode_pickle
from kachery_p2p.errors import DataFormatError, UnsupportedValueError
from kachery_p2p.limits import VALUE_BYTES_MAX, VALUE_DEPTH_MAX

__all__ = [
    "encode_text",
    "decode_text",
    "encode_json",
    "decode_json",
    "encode_npy",
    "decode_npy",
    "encode_pickle",
    "decode_pickle",
]


def encode_text(value: str) -> bytes:
    """`value` as UTF-8."""
    if not isinstance(value, str):
        raise UnsupportedValueError(f"a {type(value).__name__} is not text")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise UnsupportedValueError(
            f"the text holds half a character at position {error.start}"
        ) from None


def decode_text(data: bytes) -> str:
    """The text whose UTF-8 is `data`."""
    if len(data) > VALUE_BYTES_MAX:
        raise DataFormatError(f"{len(data)} bytes are too much for one value")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataFormatError(f"the bytes are not UTF-8 text, at byte {error.start}") from None


def encode_json(value: object) -> bytes:
    """`value` as compact JSON."""
    import json

    try:
        text = json.dumps(value, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise UnsupportedValueError(f"the value cannot be written as JSON: {error}") from None
    except RecursionError:
        raise UnsupportedValueError("the value is nested too deep for JSON") from None
    if _is_deep(value):
        raise UnsupportedValueError(f"the value is nested more than {VALUE_DEPTH_MAX} deep")
    return text.encode("ascii")


def decode_json(data: bytes) -> Any:
    """The value whose JSON is `data`."""
    import json

    text = decode_text(data)
    try:
        value = json.loads(text)
    except ValueError as error:  # bad JSON, or an integer of more than 4,300 digits
        raise DataFormatError(f"the bytes are not JSON: {quoted(str(error))}") from None
    except RecursionError:
        raise DataFormatError(f"the JSON is nested more than {VALUE_DEPTH_MAX} deep") from None
    if _is_deep(value):
        raise DataFormatError(f"the JSON is nested more than {VALUE_DEPTH_MAX} deep")
    return value


def _is_deep(value: object) -> bool:
    """Whether lists and dicts nest deeper than data does; level by level, so it cannot overflow."""
    level = [value]
    for _ in range(VALUE_DEPTH_MAX + 1):
        level = [
            part
            for whole in level
            for part in _json_parts(whole)
            if isinstance(part, dict | list | tuple)
        ]
        if not level:
            return False
    return True


def _json_parts(whole: object) -> Any:
    if isinstance(whole, dict):
        return whole.values()
    return whole if isinstance(whole, list | tuple) else ()
