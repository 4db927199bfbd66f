"""The socket of the Unix door: where it lies, and who may come near it."""

from __future__ import annotations

import os
import socket
import stat
import sys

from kachery_p2p.errors import ConfigError
from kachery_p2p.node.guests import Group, give_to_group

SOCKET_NAME = "daemon.sock"
# struct sockaddr_un leaves 108 bytes on Linux and 104 on macOS, the final zero included.
PATH_BYTES_MAX = 107 if sys.platform == "linux" else 103


def open_private_directory(config_dir: str, group: Group | None) -> int:
    """A descriptor of the directory, which afterwards nobody else may enter but the group.

    The group may not list it: all it can reach is the socket, whose name it knows.
    """
    try:
        os.makedirs(config_dir, mode=0o700, exist_ok=True)
        directory = os.open(config_dir, os.O_RDONLY | os.O_DIRECTORY)
        if group is not None:
            give_to_group(config_dir, directory, group, 0o710)
        elif stat.S_IMODE(os.fstat(directory).st_mode) & 0o077:
            os.fchmod(directory, 0o700)
    except OSError as error:
        raise ConfigError(
            f"the configuration directory {config_dir} cannot be used: {error.strerror}",
            hint="set KACHERY_P2P_CONFIG_DIR to a directory of your own",
        ) from error
    return directory


def bind(path: str, directory: int, group: Group | None) -> socket.socket:
    """The socket at `path`, listening, for this user and the group. ConfigError."""
    _remove_stale(path, directory)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(_reachable(path, directory))
        if group is not None:
            os.chown(SOCKET_NAME, -1, group.gid, dir_fd=directory)
        os.chmod(SOCKET_NAME, 0o600 if group is None else 0o660, dir_fd=directory)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"no socket can be made at {path}: {error.strerror}",
            hint="set KACHERY_P2P_CONFIG_DIR to a directory on a local disk",
        ) from error
    return listening


def _remove_stale(path: str, directory: int) -> None:
    try:
        found = os.stat(SOCKET_NAME, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(f"{path} is in the way: it is not a socket", hint="move it away")
    os.unlink(SOCKET_NAME, dir_fd=directory)


def _reachable(path: str, directory: int) -> str:
    """`path`, or a short way to it through an open descriptor of its directory."""
    if len(os.fsencode(path)) <= PATH_BYTES_MAX:
        return path
    if sys.platform != "linux":
        raise ConfigError(
            f"{path} is too long for a socket", hint="choose a shorter config directory"
        )
    return f"/proc/self/fd/{directory}/{SOCKET_NAME}"
