"""kachery-cloud (0.1 to 0.4) by its own name: `import kachery_cloud as kcl`.

What is stored is shared in the channels of the zone (KACHERY_ZONE, see `zones`), instead of
uploaded; `*_local` and `local=True` share it with nobody. Nothing needs to be registered.
Loads return None for what nobody has, as they did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kachery_p2p.client.temporary import TemporaryDirectory as _TemporaryDirectory
from kachery_p2p.compat import systems, text_mutables
from kachery_p2p.compat.absent import missing
from kachery_p2p.compat.calls import CLOUD_CALLS as _calls
from kachery_p2p.compat.cloud_gone import (
    admin_delete_file,
    delete_mutable,
    delete_mutable_folder,
    get_mutable,
    initiate_zenodo_upload,
    set_mutable,
)
from kachery_p2p.compat.cloud_requests import (
    RequestFileResult,
    request_file,
    request_file_experimental,
    request_json_experimental,
    request_npy_experimental,
    request_pkl_experimental,
    request_text_experimental,
)
from kachery_p2p.compat.encrypted import decrypt_uri, encrypt_uri
from kachery_p2p.compat.labelled import Form
from kachery_p2p.compat.systems import CLOUD
from kachery_p2p.version import __version__

if TYPE_CHECKING:
    from kachery_p2p.compat.cloud_feeds import Feed

__all__ = [
    "store_file",
    "store_text",
    "store_json",
    "store_npy",
    "store_pkl",
    "store_file_local",
    "store_text_local",
    "store_json_local",
    "store_npy_local",
    "store_pkl_local",
    "link_file",
    "load_file",
    "load_file_info",
    "load_text",
    "load_json",
    "load_npy",
    "load_pkl",
    "load_bytes",
    "cat_file",
    "request_file",
    "request_file_experimental",
    "request_text_experimental",
    "request_json_experimental",
    "request_npy_experimental",
    "request_pkl_experimental",
    "set_mutable_local",
    "get_mutable_local",
    "delete_mutable_local",
    "delete_mutable_folder_local",
    "set_mutable",
    "get_mutable",
    "delete_mutable",
    "delete_mutable_folder",
    "create_feed",
    "load_feed",
    "Feed",
    "encrypt_uri",
    "decrypt_uri",
    "init",
    "get_client_id",
    "get_client_info",
    "get_project_id",
    "get_kachery_cloud_dir",
    "use_sandbox",
    "set_custom_storage_backend",
    "sha1_of_dict",
    "TemporaryDirectory",
    "RequestFileResult",
    "admin_delete_file",
    "initiate_zenodo_upload",
    "__version__",
]


# --- storing ------------------------------------------------------------------------------


def store_file(
    filename: str, *, label: str | None = None, cache_locally: bool = False, local: bool = False
) -> str:
    """Store a copy of the file; `sha1://H?label=LABEL`."""
    return _calls.store_file(filename, Form(label), local)


def store_text(
    text: str, *, label: str | None = None, cache_locally: bool = False, local: bool = False
) -> str:
    """Store a text as UTF-8; its URI."""
    from kachery_p2p.compat.serial import encode_text

    return _calls.store_bytes(encode_text(text), Form(label), local)


def store_json(
    x: Any,
    *,
    separators: tuple[str, str] | None = (",", ":"),
    indent: int | str | None = None,
    label: str | None = None,
    cache_locally: bool = False,
    local: bool = False,
) -> str:
    """Store a value as JSON, its keys sorted; its URI."""
    from kachery_p2p.compat.serial import json_of

    return _calls.store_bytes(json_of(x, separators, indent, True), Form(label), local)


def store_npy(
    array: Any, *, label: str | None = None, cache_locally: bool = False, local: bool = False
) -> str:
    """Store a numpy array; its URI."""
    from kachery_p2p.compat.serial import encode_npy

    return _calls.store_bytes(encode_npy(array), Form(label), local)


def store_pkl(
    x: Any, *, label: str | None = None, cache_locally: bool = False, local: bool = False
) -> str:
    """Store a value of plain containers and numpy arrays; its URI."""
    from kachery_p2p.compat.serial import encode_pickle

    return _calls.store_bytes(encode_pickle(x), Form(label), local)


def store_file_local(
    filename: str,
    *,
    label: str | None = None,
    reference: bool | None = None,
    store_file_dir: str | None = None,
    store_file_prefix: str | None = None,
) -> str:
    """Store a copy of the file, shared with nobody; its URI.

    With `reference` no copy is made: the URI says where the file is. With `store_file_dir`
    the copy is put there as sha1/H, and the URI is that below `store_file_prefix`.
    """
    if reference:
        return _calls.refer_to(filename, Form(label))
    if store_file_dir is not None:
        from kachery_p2p.compat.labelled import to_web_directory

        return to_web_directory(filename, Form(label), store_file_dir, store_file_prefix)
    return _calls.store_file(filename, Form(label), True)


def store_text_local(text: str, label: str | None = None) -> str:
    """As `store_text`, shared with nobody."""
    return store_text(text, label=label, local=True)


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
    return store_npy(array, label=label, local=True)


def store_pkl_local(x: Any, label: str | None = None) -> str:
    """As `store_pkl`, shared with nobody."""
    return store_pkl(x, label=label, local=True)


def link_file(filename: str, *, label: str | None = None) -> str:
    """Let the file stand for its content, without a copy; its URI.

    If the file is changed later, loads warn and return None, or what others have.
    """
    return _calls.link_file(filename, Form(label))


# --- loading ------------------------------------------------------------------------------


def load_file(
    uri: str,
    *,
    verbose: bool = False,
    local_only: bool = False,
    dest: str | None = None,
    do_request: bool | None = None,
) -> str | None:
    """The path of the content, to be read only, or `dest` with a copy; None if nobody has it."""
    return _calls.load(uri, local_only, dest)


def load_file_info(uri: str) -> dict[str, Any] | None:
    """`{"found": True, "size": N}`, or None if nobody has the content."""
    return _calls.info(uri)


def load_text(uri: str, *, local_only: bool = False) -> str | None:
    """The content as text, or None."""
    from kachery_p2p.content.values import decode_text

    data = _calls.load_value(uri, local_only)
    return None if data is None else decode_text(data)


def load_json(uri: str, *, local_only: bool = False) -> Any:
    """The value that the content's JSON says, or None."""
    from kachery_p2p.content.values import decode_json

    data = _calls.load_value(uri, local_only)
    return None if data is None else decode_json(data)


def load_npy(uri: str, *, local_only: bool = False) -> Any:
    """The content as a numpy array, or None."""
    from kachery_p2p.content.values import decode_npy

    data = _calls.load_value(uri, local_only)
    return None if data is None else decode_npy(data)


def load_pkl(uri: str, *, local_only: bool = False) -> Any:
    """The value that was pickled, or None. UnsafePickleError for one that could run code."""
    from kachery_p2p.content.values import decode_pickle

    data = _calls.load_value(uri, local_only)
    return None if data is None else decode_pickle(data)


def load_bytes(
    uri: str, start: int | None, end: int | None, *, write_to_stdout: bool = False
) -> bytes | None:
    """The bytes from `start` up to `end`, or None. With `write_to_stdout` they are written."""
    return _calls.load_range(uri, start, end, write_to_stdout)


def cat_file(uri: str) -> None:
    """Write the content to stdout."""
    _calls.cat(uri)


# --- mutables and feeds -----------------------------------------------------------------------


def set_mutable_local(key: str, value: str) -> None:
    """Keep a text under `name` or `@folder/name`, on this computer."""
    text_mutables.set_text(CLOUD, key, value)


def get_mutable_local(key: str, default_value: str | None = None) -> str | None:
    """The text under the key, or `default_value`."""
    return text_mutables.get_text(CLOUD, key, default_value)


def delete_mutable_local(key: str) -> None:
    """Forget the text under the key. NotFoundError if there is none."""
    text_mutables.delete_text(CLOUD, key)


def delete_mutable_folder_local(key: str) -> None:
    """Forget all texts in `@folder`. NotFoundError if there is none."""
    text_mutables.delete_folder(CLOUD, key)


def create_feed(*, project_id: str | None = None) -> Feed:
    """A new feed of this node. DaemonDownError if none runs."""
    from kachery_p2p.compat.cloud_feeds import Feed

    return Feed.create(project_id=project_id)


def load_feed(feed_id_or_uri: str) -> Feed:
    """A feed by its id or `kachery-feed://ID`."""
    from kachery_p2p.compat.cloud_feeds import Feed

    return Feed.load(feed_id_or_uri)


# --- who this is, and where it stores -----------------------------------------------------------


def init() -> None:
    """Say who this computer is. Nothing needs to be registered."""
    print(f"Client ID: {get_client_id(generate_if_missing=True)}")
    print("No registration is needed: `kachery-p2p start` shares files with the labs you choose.")


def get_client_id(generate_if_missing: bool = False) -> str | None:
    """This node's id; None if it has no key yet and is not to make one."""
    from kachery_p2p.client.files import get_node_id
    from kachery_p2p.errors import KeyFileError

    try:
        return get_node_id()
    except KeyFileError:
        if not generate_if_missing:
            return None
    from kachery_p2p.client import settings
    from kachery_p2p.identity.keyring import load_or_create

    return str(load_or_create(settings.config_dir()).node_id)


def get_client_info() -> dict[str, Any] | None:
    """What the server said of a client that was registered; None before `init`."""
    import getpass
    import socket

    client_id = get_client_id()
    if client_id is None:
        return None
    client = {"clientId": client_id, "label": socket.gethostname(), "ownerId": getpass.getuser()}
    return {"type": "getClientInfo", "found": True, "client": client}


def get_project_id() -> str | None:
    """What KACHERY_CLOUD_PROJECT says; channels take the place of projects."""
    import os

    return os.environ.get("KACHERY_CLOUD_PROJECT") or None


def get_kachery_cloud_dir(*, respect_sandbox: bool = True) -> str:
    """The package's directory (KACHERY_CLOUD_DIR, or ~/.kachery-cloud), or that of the sandbox."""
    sandbox = systems.sandbox_of(CLOUD) if respect_sandbox else None
    directory = sandbox or systems.directory_of(CLOUD)
    systems.make_directories(CLOUD, directory)
    return directory


def use_sandbox(use: bool = True) -> None:
    """Store in a directory of its own, which is removed when this process ends; or no more."""
    systems.use_sandbox(CLOUD, use)


def set_custom_storage_backend(backend: Any) -> None:
    """Let `backend.store_file(filename, label=)` store, and answer the URI; None to end that."""
    _calls.backend = backend


def sha1_of_dict(x: dict[str, Any]) -> str:
    """The SHA-1 of the JSON that equal values have."""
    from kachery_p2p.compat.serial import stable_json
    from kachery_p2p.content.hashes import sha1_of

    return str(sha1_of(stable_json(x)))


class TemporaryDirectory(_TemporaryDirectory):
    """A new directory below KACHERY_TEMP_DIR, removed at the end of the `with`."""

    def __init__(self, *, remove: bool = True, prefix: str = "tmp") -> None:
        super().__init__(remove, prefix)

    def path(self) -> str:
        """Where it is."""
        return self._path


def __getattr__(name: str) -> Any:
    if name == "Feed":
        from kachery_p2p.compat.cloud_feeds import Feed

        return Feed
    raise missing("kachery_cloud", name)
