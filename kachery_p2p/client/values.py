"""Values by their content: texts, JSON, numpy arrays and pickles, stored and loaded as files.

`channels` and `access_group` of `store_*` are those of `store_file`.
"""

from __future__ import annotations

import os
from typing import Any

from kachery_p2p.client.events import ProgressArg
from kachery_p2p.client.files import (
    Channels,
    is_encrypted_uri,
    load_file,
    open_stored,
    pread_all,
)
from kachery_p2p.client.origin import origin
from kachery_p2p.errors import DataFormatError
from kachery_p2p.limits import VALUE_BYTES_MAX


def store_text(
    text: str,
    label: str | None = None,
    *,
    channels: Channels = None,
    access_group: str | None = None,
) -> str:
    """Store a text as UTF-8; its URI."""
    from kachery_p2p.content.values import encode_text

    return _store(encode_text(text), _named(label, "file.txt"), channels, access_group)


def store_json(
    value: Any,
    label: str | None = None,
    *,
    channels: Channels = None,
    access_group: str | None = None,
) -> str:
    """Store a value of lists, dicts, texts, numbers, true, false and null; its URI."""
    from kachery_p2p.content.values import encode_json

    return _store(encode_json(value), _named(label, "file.json"), channels, access_group)


def store_npy(
    array: Any,
    label: str | None = None,
    *,
    channels: Channels = None,
    access_group: str | None = None,
) -> str:
    """Store a numpy array; its URI."""
    from kachery_p2p.content.values import encode_npy

    return _store(encode_npy(array), _named(label, "file.npy"), channels, access_group)


def store_pkl(
    value: Any,
    label: str | None = None,
    *,
    channels: Channels = None,
    access_group: str | None = None,
) -> str:
    """Store a value of plain Python containers and numpy arrays; its URI."""
    from kachery_p2p.content.values import encode_pickle

    return _store(encode_pickle(value), _named(label, "file.pkl"), channels, access_group)


def _store(data: bytes, label: str, channels: Channels, access_group: str | None) -> str:
    if access_group is not None:
        from kachery_p2p.client import sealing

        return sealing.store_value(data, label, channels, access_group)
    from kachery_p2p.client.storing import store_value

    return store_value(data, label, channels)


def store_object(value: Any, label: str | None = None, *, channels: Channels = None) -> str:
    """The older name of `store_json`."""
    _deprecated("store_object", "store_json")
    return store_json(value, label, channels=channels)


def _deprecated(old: str, new: str) -> None:
    import warnings

    warnings.warn(f"{old} is called {new} now", DeprecationWarning, stacklevel=3)


def _named(label: str | None, default: str) -> str:
    return default if label is None else label


# --- loading --------------------------------------------------------------------------


def load_text(
    uri: str,
    *,
    from_channel: str | None = None,
    from_node: str | None = None,
    timeout: float | None = None,
    progress: ProgressArg = None,
) -> str:
    """The content as text, which must be UTF-8."""
    from kachery_p2p.content.values import decode_text

    return decode_text(_load_value(uri, from_channel, from_node, timeout, progress))


def load_json(
    uri: str,
    *,
    from_channel: str | None = None,
    from_node: str | None = None,
    timeout: float | None = None,
    progress: ProgressArg = None,
) -> Any:
    """The content as the value that its JSON says."""
    from kachery_p2p.content.values import decode_json

    return decode_json(_load_value(uri, from_channel, from_node, timeout, progress))


def load_npy(
    uri: str,
    *,
    from_channel: str | None = None,
    from_node: str | None = None,
    timeout: float | None = None,
    progress: ProgressArg = None,
) -> Any:
    """The content as a numpy array."""
    from kachery_p2p.content.values import decode_npy

    return decode_npy(_load_value(uri, from_channel, from_node, timeout, progress))


def load_pkl(
    uri: str,
    *,
    from_channel: str | None = None,
    from_node: str | None = None,
    timeout: float | None = None,
    progress: ProgressArg = None,
) -> Any:
    """The content as the value that was pickled. A pickle that could run code is refused."""
    from kachery_p2p.content.values import decode_pickle

    return decode_pickle(_load_value(uri, from_channel, from_node, timeout, progress))


def load_object(uri: str) -> Any:
    """The older name of `load_json`."""
    _deprecated("load_object", "load_json")
    return load_json(uri)


def _load_value(
    uri: str,
    from_channel: str | None,
    from_node: str | None,
    timeout: float | None,
    progress: ProgressArg,
) -> bytes:
    """All bytes of something small enough to be a value."""
    if is_encrypted_uri(uri):
        from kachery_p2p.client.unsealing import load_value

        return load_value(uri, origin(from_channel, from_node, timeout), progress)
    path = load_file(
        uri, from_channel=from_channel, from_node=from_node, timeout=timeout, progress=progress
    )
    return read_value(path)


def read_value(path: str) -> bytes:
    """All bytes of a file that is small enough to be a value, or DataFormatError."""
    descriptor = open_stored(path)
    try:
        size = os.fstat(descriptor).st_size
        check_value_size(size)
        return pread_all(descriptor, 0, size)
    finally:
        os.close(descriptor)


def check_value_size(size: int) -> None:
    """DataFormatError if so many bytes are too many for a value."""
    if size > VALUE_BYTES_MAX:
        raise DataFormatError(
            f"the content has {size} bytes, more than the {VALUE_BYTES_MAX} of a value",
            hint="use load_file or load_bytes",
        )
