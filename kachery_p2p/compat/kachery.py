"""kachery by its own name: `import kachery as ka`, of 2019 and of 2024 alike.

Two packages had this name. Functions that only one had are that one's; of the others the
keywords tell: `basename`, `fr`, `to`, `algorithm` and the rest of the configuration are those of
2019, `label`, `local`, `cache_locally`, `uri_type`, `zone` those of 2024. With neither a program
that used `set_config` is of 2019, and any other of 2024; KACHERY_URI_STYLE overrules it. 2019
wrote `sha1://H/name`, 2024 `sha1://H?label=name`, or with `uri_type=2` `kachery:ZONE:sha1:H:name`.
Both return None for what nobody has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

from kachery_p2p.compat.absent import missing
from kachery_p2p.compat.calls import KACHERY_2_CALLS as _calls
from kachery_p2p.compat.kachery_2 import (
    cat_file,
    delete_mutable_folder_local,
    delete_mutable_local,
    get_kachery_dir,
    get_mutable_local,
    load_file_info,
    set_custom_storage_backend,
    set_mutable_local,
    sha1_of_dict,
    store_file_local,
    store_json,
    store_json_local,
    store_npy_local,
    store_text_local,
    use_sandbox,
)
from kachery_p2p.compat.labelled import Form, told
from kachery_p2p.compat.servers import Call, config, get_config, is_configured, reset, set_config
from kachery_p2p.compat.systems import uri_style
from kachery_p2p.version import __version__

__all__ = [
    "store_file",
    "store_text",
    "store_json",
    "store_object",
    "store_npy",
    "store_dir",
    "store_file_local",
    "store_text_local",
    "store_json_local",
    "store_npy_local",
    "load_file",
    "load_file_info",
    "load_text",
    "load_json",
    "load_object",
    "load_npy",
    "load_bytes",
    "load_dir",
    "read_dir",
    "open_file",
    "cat_file",
    "get_file_info",
    "get_file_hash",
    "get_object_hash",
    "set_config",
    "get_config",
    "config",
    "reset",
    "set_mutable_local",
    "get_mutable_local",
    "delete_mutable_local",
    "delete_mutable_folder_local",
    "get_kachery_dir",
    "use_sandbox",
    "set_custom_storage_backend",
    "sha1_of_dict",
    "__version__",
]

# Blocks of the first kachery's `open_file`, which it fetched and kept one by one.
_BLOCK_BYTES = 10 * 1024 * 1024


# --- storing ------------------------------------------------------------------------------


def store_file(
    path: str | None = None,
    basename: str | None = None,
    git_annex_mode: bool = False,
    *,
    filename: str | None = None,
    label: str | None = None,
    cache_locally: bool = False,
    local: bool = False,
    uri_type: int | None = None,
    **settings: Any,
) -> str:
    """Store a copy of the file, which may be given by a URI; its URI.

    `git_annex_mode` needs nothing for a file: its link is followed, as any.
    """
    path = _one_of("path", path, "filename", filename)
    if _is_2019(basename, settings, label, local, uri_type):
        from kachery_p2p.compat import named

        return named.store_file(path, basename, Call(settings))
    return _calls.store_file(path, Form(label, uri_type, "2024"), local)


def store_text(
    text: str,
    basename: str | None = None,
    *,
    label: str | None = None,
    cache_locally: bool = False,
    local: bool = False,
    uri_type: int | None = None,
    **settings: Any,
) -> str:
    """Store a text as UTF-8; its URI."""
    from kachery_p2p.compat.serial import encode_text

    old = _is_2019(basename, settings, label, local, uri_type)
    return _stored(encode_text(text), old, basename or "file.txt", settings, label, local, uri_type)


def store_npy(
    array: Any,
    basename: str | None = None,
    *,
    label: str | None = None,
    cache_locally: bool = False,
    local: bool = False,
    uri_type: int | None = None,
    **settings: Any,
) -> str:
    """Store a numpy array; its URI."""
    from kachery_p2p.compat.serial import encode_npy

    old = _is_2019(basename, settings, label, local, uri_type)
    return _stored(encode_npy(array), old, basename or "file.npy", settings, label, local, uri_type)


def store_object(
    object: Any, basename: str | None = None, indent: int | None = None, **settings: Any
) -> str:
    """Store a value as JSON, its keys in their order, with spaces; its URI."""
    from kachery_p2p.compat.serial import json_of

    data = json_of(object, None, indent)
    return _stored(data, True, basename or "file.json", settings, None, False, None)


def store_dir(
    dirpath: str, label: str | None = None, git_annex_mode: bool = False, **settings: Any
) -> str:
    """Store a copy of every file in the directory and below; `sha1dir://H.LABEL`.

    `md5dir://` with `algorithm="md5"`. With `git_annex_mode` links of git-annex stand for
    what their keys say, without a copy, and .git is left out.
    """
    from kachery_p2p.compat import named

    return named.store_dir(dirpath, label, Call(settings), git_annex_mode)


def _stored(
    data: bytes,
    old: bool,
    basename: str,
    settings: Mapping[str, Any],
    label: str | None,
    local: bool,
    uri_type: int | None,
) -> str:
    if old:
        from kachery_p2p.compat import named

        return named.store_bytes(data, basename, Call(settings))
    return _calls.store_bytes(data, Form(label, uri_type, "2024"), local)


def _is_2019(
    basename: str | None,
    settings: Mapping[str, Any],
    label: str | None,
    local: bool,
    uri_type: int | None,
) -> bool:
    """Which of the two generations a call is of."""
    newer = label is not None or local or uri_type is not None
    older = basename is not None or bool(settings)
    if newer and older:
        raise TypeError("keywords of the kachery of 2019 and of 2024 cannot be mixed in one call")
    return older or (not newer and (is_configured() or uri_style() == "2019"))


def _one_of(first: str, given: Any, second: str, other: Any) -> Any:
    """The argument that the generations call differently."""
    if (given is None) == (other is None):
        raise TypeError(f"give {first}, or {second} by its name")
    return other if given is None else given


# --- loading ------------------------------------------------------------------------------


def load_file(
    uri: str | None = None,
    dest: str | None = None,
    *,
    path: str | None = None,
    local_only: bool = False,
    verbose: bool = False,
    zone: str | None = None,
    **settings: Any,
) -> str | None:
    """The path of the content, to be read only, or `dest` with a copy; None if nobody has it."""
    from kachery_p2p.compat.loading import load

    uri = _one_of("uri", uri, "path", path)
    return load(uri, _source(settings, local_only, zone), dest)


def load_text(
    uri: str | None = None, *, path: str | None = None, local_only: bool = False, **settings: Any
) -> str | None:
    """The content as text, or None."""
    from kachery_p2p.content.values import decode_text

    data = _value(_one_of("uri", uri, "path", path), local_only, settings)
    return None if data is None else decode_text(data)


def load_json(
    uri: str | None = None, *, path: str | None = None, local_only: bool = False, **settings: Any
) -> Any:
    """The value that the content's JSON says, or None."""
    from kachery_p2p.content.values import decode_json

    data = _value(_one_of("uri", uri, "path", path), local_only, settings)
    return None if data is None else decode_json(data)


load_object = load_json


def load_npy(
    uri: str | None = None, *, path: str | None = None, local_only: bool = False, **settings: Any
) -> Any:
    """The content as a numpy array, or None."""
    from kachery_p2p.content.values import decode_npy

    data = _value(_one_of("uri", uri, "path", path), local_only, settings)
    return None if data is None else decode_npy(data)


def load_bytes(
    uri: str | None = None,
    start: int | None = None,
    end: int | None = None,
    write_to_stdout: bool = False,
    *,
    path: str | None = None,
    **settings: Any,
) -> bytes | None:
    """The bytes from `start` up to `end`, or None. With `write_to_stdout` they are written."""
    from kachery_p2p.compat.loading import load_range

    uri = _one_of("uri", uri, "path", path)
    return told(load_range(uri, start, end, _source(settings)), write_to_stdout)


def open_file(path: str, block_size: int = _BLOCK_BYTES, **settings: Any) -> BinaryIO:
    """The content as a file, open for reading, of which only what is read is fetched.

    NotFoundError if nobody has it. `block_size` says nothing: blocks have 1 MiB.
    """
    from kachery_p2p.compat.loading import open_content
    from kachery_p2p.errors import NotFoundError

    found = open_content(path, _source(settings))
    if found is None:
        raise NotFoundError(f"{path} is not stored here, and nobody has it")
    return found


def load_dir(path: str, dest: str, **settings: Any) -> None:
    """Make `dest`, which must not exist, a copy of the directory.

    NotFoundError if nobody has its list, ResolutionError if `dest` exists.
    """
    from kachery_p2p.compat import directories
    from kachery_p2p.errors import NotFoundError

    if not directories.write_out(path, _source(settings), dest):
        raise NotFoundError(f"{path} is not stored here, and nobody has it")


def read_dir(
    path: str, *, recursive: bool = True, git_annex_mode: bool = False, **settings: Any
) -> dict[str, Any] | None:
    """What is in a directory, by its URI or on this computer, or None.

    {"files": {name: {"size", "sha1"}}, "dirs": {name: the same}}
    """
    from kachery_p2p.compat import directories

    if "dir://" in path[:10]:
        return directories.record(path, _source(settings), recursive)
    algorithm = Call(settings).algorithm
    return directories.record_of_path(path, algorithm, recursive, git_annex_mode)


def get_file_info(path: str, hash_only: bool = False, **settings: Any) -> dict[str, Any] | None:
    """`{"path", "size", "sha1"}` of a file or a URI; "url" instead of "path" if it is elsewhere.

    None if nobody has it.
    """
    from kachery_p2p.compat import named

    return named.file_info(path, Call(settings))


def get_file_hash(path: str) -> str | None:
    """The SHA-1 of a file, or of the content of a URI; None if nobody has it."""
    info = get_file_info(path, algorithm="sha1")
    return None if info is None else info["sha1"]


def get_object_hash(obj: Any) -> str:
    """The SHA-1 of a value's JSON, compact and with its keys sorted."""
    from kachery_p2p.compat.serial import json_of
    from kachery_p2p.content.hashes import sha1_of

    return str(sha1_of(json_of(obj, sort_keys=True)))


def _value(uri: str, local_only: bool, settings: Mapping[str, Any]) -> bytes | None:
    from kachery_p2p.compat.loading import load_value

    return load_value(uri, _source(settings, local_only))


def _source(settings: Mapping[str, Any], local_only: bool = False, zone: str | None = None) -> Any:
    """Where a call looks: by the configuration of 2019 if it is used, else by the zone."""
    if settings or (is_configured() and zone is None and not local_only):
        return Call(settings).source()
    return _calls.source(local_only, zone)


def __getattr__(name: str) -> Any:
    raise missing("kachery", name)
