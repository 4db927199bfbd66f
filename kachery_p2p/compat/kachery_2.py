"""What only the kachery of 2024 has: the rest is in `kachery`, under names that both have."""

from __future__ import annotations

from typing import Any

from kachery_p2p.compat import systems, text_mutables
from kachery_p2p.compat.calls import KACHERY_2_CALLS as _calls
from kachery_p2p.compat.labelled import Form
from kachery_p2p.compat.systems import KACHERY_2

_STYLE = "2024"


def store_json(
    x: Any,
    *,
    separators: tuple[str, str] | None = (",", ":"),
    indent: int | str | None = None,
    label: str | None = None,
    cache_locally: bool = False,
    local: bool = False,
    uri_type: int | None = None,
) -> str:
    """Store a value as JSON, its keys sorted; its URI."""
    from kachery_p2p.compat.serial import json_of

    data = json_of(x, separators, indent, True)
    return _calls.store_bytes(data, Form(label, uri_type, _STYLE), local)


def store_file_local(
    filename: str,
    *,
    label: str | None = None,
    store_file_dir: str | None = None,
    store_file_prefix: str | None = None,
    uri_type: int | None = None,
) -> str:
    """Store a copy of the file, shared with nobody; its URI."""
    if store_file_dir is not None:
        from kachery_p2p.compat.labelled import to_web_directory

        form = Form(label, uri_type, _STYLE)
        return to_web_directory(filename, form, store_file_dir, store_file_prefix)
    return _calls.store_file(filename, Form(label, uri_type, _STYLE), True)


def store_text_local(text: str, label: str | None = None) -> str:
    """As `store_text`, shared with nobody."""
    from kachery_p2p.compat.serial import encode_text

    return _calls.store_bytes(encode_text(text), Form(label, style=_STYLE), True)


def store_json_local(
    x: Any,
    *,
    separators: tuple[str, str] | None = (",", ":"),
    indent: int | str | None = None,
    label: str | None = None,
) -> str:
    """As `store_json`, shared with nobody."""
    return store_json(x, separators=separators, indent=indent, label=label, local=True)


def store_npy_local(array: Any, label: str | None = None) -> str:
    """As `store_npy`, shared with nobody."""
    from kachery_p2p.compat.serial import encode_npy

    return _calls.store_bytes(encode_npy(array), Form(label, style=_STYLE), True)


def cat_file(uri: str) -> None:
    """Write the content to stdout."""
    _calls.cat(uri)


def load_file_info(uri: str) -> dict[str, Any] | None:
    """`{"found": True, "size": N}`, or None if nobody has the content."""
    return _calls.info(uri)


def set_mutable_local(key: str, value: str) -> None:
    """Keep a text under `name` or `@folder/name`, on this computer."""
    text_mutables.set_text(KACHERY_2, key, value)


def get_mutable_local(key: str, default_value: str | None = None) -> str | None:
    """The text under the key, or `default_value`."""
    return text_mutables.get_text(KACHERY_2, key, default_value)


def delete_mutable_local(key: str) -> None:
    """Forget the text under the key. NotFoundError if there is none."""
    text_mutables.delete_text(KACHERY_2, key)


def delete_mutable_folder_local(key: str) -> None:
    """Forget all texts in `@folder`. NotFoundError if there is none."""
    text_mutables.delete_folder(KACHERY_2, key)


def get_kachery_dir(*, respect_sandbox: bool = True) -> str:
    """The package's directory (KACHERY_DIR, or ~/.kachery), or that of the sandbox."""
    sandbox = systems.sandbox_of(KACHERY_2) if respect_sandbox else None
    directory = sandbox or systems.directory_of(KACHERY_2)
    systems.make_directories(KACHERY_2, directory)
    return directory


def use_sandbox(use: bool = True) -> None:
    """Store in a directory of its own, which is removed when this process ends; or no more."""
    systems.use_sandbox(KACHERY_2, use)


def set_custom_storage_backend(backend: Any) -> None:
    """Let `backend.store_file(filename, label=)` store, and answer the URI; None to end that."""
    _calls.backend = backend


def sha1_of_dict(x: dict[str, Any]) -> str:
    """The SHA-1 of the JSON that equal values have."""
    from kachery_p2p.compat.serial import stable_json
    from kachery_p2p.content.hashes import sha1_of

    return str(sha1_of(stable_json(x)))
