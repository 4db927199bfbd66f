"""Values by their content: texts, JSON, numpy arrays and pickles, stored and loaded as files."""

from __future__ import annotations

import os
from typing import Any

from kachery_p2p.client.events import ProgressArg
from kachery_p2p.client.files import Channels, load_file, open_stored, pread_all
from kachery_p2p.errors import DataFormatError
from kachery_p2p.limits import VALUE_BYTES_MAX


def store_text(text: str, label: str | None = None, *, channels: Channels = None) -> str:
    """Store a text as UTF-8; its URI."""
    from kachery_p2p.client import storing
    from kachery_p2p.content.values import encode_text

    return storing.store_value(encode_text(text), _named(label, "file.txt"), channels)


def store_json(value: Any, label: str | None = None, *, channels: Channels = None) -> str:
    """Store a value of lists, dicts, texts, numbers, true, false and null; its URI."""
    from kachery_p2p.client import storing
    from kachery_p2p.content.values import encode_json

    return storing.store_value(encode_json(value), _named(label, "file.json"), channels)


def store_npy(array: Any, label: str | None = None, *, channels: Channels = None) -> str:
    """Store a numpy array; its URI."""
    from kachery_p2p.client import storing
    from kachery_p2p.content.values import encode_npy

    return storing.store_value(encode_npy(array), _named(label, "file.npy"), channels)


def store_pkl(value: Any, label: str | None = None, *, channels: Channels = None) -> str:
    """Store a value of plain Python containers and numpy arrays; its URI."""
    from kachery_p2p.client import storing
    from kachery_p2p.content.values import encode_pickle

    return storing.store_value(encode_pickle(value), _named(label, "file.pkl"), channels)


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
    path = load_file(
        uri, from_channel=from_channel, from_node=from_node, timeout=timeout, progress=progress
    )
    descriptor = open_stored(path)
    try:
        size = os.fstat(descriptor).st_size
        if size > VALUE_BYTES_MAX:
            raise DataFormatError(
                f"the content has {size} bytes, more than the {VALUE_BYTES_MAX} of a value",
                hint="use load_file or load_bytes",
            )
        return pread_all(descriptor, 0, size)
    finally:
        os.close(descriptor)
