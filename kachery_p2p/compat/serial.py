"""Values as bytes, byte for byte as each of the older packages wrote them."""

from __future__ import annotations

import json
from typing import Any

from kachery_p2p.content.values import encode_json, encode_npy, encode_pickle, encode_text
from kachery_p2p.errors import UnsupportedValueError

__all__ = ["encode_npy", "encode_pickle", "encode_text", "json_of", "stable_json"]


def json_of(
    value: Any,
    separators: tuple[str, str] | None = (",", ":"),
    indent: int | str | None = None,
    sort_keys: bool = False,
) -> bytes:
    """`value` as JSON with that spacing. UnsupportedValueError for what is none, like NaN."""
    # What cannot be written, or nests too deep, is refused as everywhere else.
    encode_json(value)
    try:
        text = json.dumps(
            value, separators=separators, indent=indent, sort_keys=sort_keys, allow_nan=False
        )
    except (TypeError, ValueError) as error:
        raise UnsupportedValueError(f"the value cannot be written as JSON: {error}") from None
    return text.encode("ascii")


def stable_json(value: Any) -> bytes:
    """The JSON that the same value always has: sorted, compact, whole numbers without a point."""
    return json_of(_whole(value), sort_keys=True)


def _whole(value: Any) -> Any:
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        return {key: _whole(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(one) for one in value]
    return value
