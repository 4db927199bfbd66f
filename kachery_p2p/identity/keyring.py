"""The node's key on disk: CONFIG/keys/node.key, 0600 in a 0700 directory.

Whoever can read the file *is* the node, so it is refused when anybody else may, and
made so that a crash or a second process at the same moment leaves one whole key:
written under a name of its own, made durable, then linked to its final name, which
fails if another process was first. Format, one `name value` pair a line:

    kachery-p2p-node-key 1
    node <64 hex>        the public name; must fit the secret, so that damage is noticed
    ed25519 <64 hex>     secret: seed of the signing key
    x25519 <64 hex>      secret: the exchange key
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from kachery_p2p.errors import KeyFileError, StateVersionError
from kachery_p2p.identity.disk import (
    check_private,
    make_private_directories,
    read_private,
    sync_directory,
    write_durably,
)
from kachery_p2p.identity.keys import KEY_BYTES, NODE_KEY_BYTES, NodeKey

KEY_FILE_VERSION = 1

_HEADER = "kachery-p2p-node-key"
_NAME = "node.key"
_TEMP_PREFIX = ".node.key."


def keys_dir(config_dir: str) -> str:
    """The directory of a configuration's key files."""
    return f"{config_dir}/keys"


def key_path(config_dir: str) -> str:
    """Where the key of the node with this configuration lies."""
    return f"{keys_dir(config_dir)}/{_NAME}"


def load_or_create(config_dir: str) -> NodeKey:
    """The node's key, made on first use. Safe to call in many processes at once: one key wins."""
    if not os.path.lexists(key_path(config_dir)):
        _create(config_dir)
    key = load(config_dir)
    _sweep(config_dir)
    return key


def load(config_dir: str) -> NodeKey:
    """The node's key. Raises KeyFileError if it is missing, damaged, or others may read it."""
    path = key_path(config_dir)
    with reading_key(path):
        check_private(keys_dir(config_dir), os.lstat(keys_dir(config_dir)), 0o700)
        text = read_private(path).decode("ascii", "replace")
    return _parse(text, path)


def _create(config_dir: str) -> None:
    directory = keys_dir(config_dir)
    temp = f"{directory}/{_TEMP_PREFIX}{os.urandom(8).hex()}"
    with reading_key(key_path(config_dir)):
        make_private_directories(config_dir, directory)
        check_private(directory, os.lstat(directory), 0o700)
        key = NodeKey.generate(os.urandom(NODE_KEY_BYTES))
        write_durably(temp, _format(key).encode("ascii"))
        try:
            # Not rename: it would replace the key of a process that was faster.
            # FileNotFoundError: that process has already swept our file.
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                os.link(temp, key_path(config_dir))
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temp)
        sync_directory(directory)


def _sweep(config_dir: str) -> None:
    """Remove what a killed process left. A key exists by now, so no temporary file is needed."""
    directory = keys_dir(config_dir)
    for name in os.listdir(directory):
        if name.startswith(_TEMP_PREFIX):
            with contextlib.suppress(OSError):
                os.unlink(f"{directory}/{name}")


@contextlib.contextmanager
def reading_key(path: str, what: str = "node key") -> Iterator[None]:
    """Turn what the system says against the key file `path` into a KeyFileError."""
    try:
        yield
    except FileNotFoundError:
        raise KeyFileError(
            f"there is no {what} at {path}", hint="`kachery-p2p start` makes one"
        ) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise KeyFileError(
                f"{path} is a symbolic link", hint="put the real file in its place"
            ) from error
        raise KeyFileError(
            f"the {what} at {path} cannot be used: {(error.strerror or str(error)).lower()}",
            hint="check the owner and the mode of the configuration directory and its disk",
        ) from error


def _format(key: NodeKey) -> str:
    return (
        f"{_HEADER} {KEY_FILE_VERSION}\n"
        f"node {key.node_id}\n"
        f"ed25519 {key.seed.hex()}\n"
        f"x25519 {key.exchange_secret.hex()}\n"
    )


def _parse(text: str, path: str) -> NodeKey:
    fields = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
    _check_version(fields.get(_HEADER, ""), path)
    try:
        seed, exchange = (bytes.fromhex(fields[name]) for name in ("ed25519", "x25519"))
        whole = len(seed) == len(exchange) == KEY_BYTES
    except (KeyError, ValueError):
        whole = False
    if whole:
        key = NodeKey(seed, exchange)
        if key.node_id == fields.get("node"):
            return key
    # Never quote the file: what is left of it may still be the secret.
    raise KeyFileError(
        f"the node key at {path} is damaged", hint="restore it from a backup, or move it away"
    )


def _check_version(version: str, path: str) -> None:
    if not version.isascii() or not version.isdigit():
        raise KeyFileError(
            f"{path} is not a kachery_p2p node key",
            hint="restore it from a backup, or move it away",
        )
    if int(version) != KEY_FILE_VERSION:
        raise StateVersionError(
            f"{path} was written by another version of kachery_p2p (format {version}, "
            f"this one reads {KEY_FILE_VERSION})",
            hint="upgrade kachery_p2p",
        )
