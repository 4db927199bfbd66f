"""Where the client looks and whom it asks: the environment, read at each call.

Never cached: programs (Spyglass, for one) change these variables between calls.
"""

from __future__ import annotations

import functools
import os

from kachery_p2p.errors import ConfigError

DAEMON_PORT = 20431
TOKEN_NAME = "api-token"  # noqa: S105 - the name of a file in the configuration directory


def storage_dir() -> str:
    """The directory to store in and load from: KACHERY_OFFLINE_STORAGE_DIR, else the node's."""
    return _directory("KACHERY_OFFLINE_STORAGE_DIR", "") if is_offline() else node_storage_dir()


def node_storage_dir() -> str:
    """The store directory of a node: KACHERY_STORAGE_DIR, or ~/kachery-storage."""
    return _directory("KACHERY_STORAGE_DIR", "~/kachery-storage")


def is_offline() -> bool:
    """Whether KACHERY_OFFLINE_STORAGE_DIR is set: then no daemon is asked, and nothing shared."""
    return bool(os.environ.get("KACHERY_OFFLINE_STORAGE_DIR"))


def config_dir() -> str:
    """The configuration directory: KACHERY_P2P_CONFIG_DIR, or ~/.kachery-p2p."""
    return _directory("KACHERY_P2P_CONFIG_DIR", "~/.kachery-p2p")


def state_dir() -> str:
    """Where the index and the links of `storage_dir` are kept; an offline one has its own."""
    return os.path.join(config_dir(), "state", *(("offline",) if is_offline() else ()))


def temp_dir() -> str | None:
    """Where temporary files go: KACHERY_TEMP_DIR, or None for the system's place."""
    return _directory("KACHERY_TEMP_DIR", "") if os.environ.get("KACHERY_TEMP_DIR") else None


def keeps_temp_files() -> bool:
    """Whether KACHERY_KEEP_TEMP_FILES is 1: temporary directories stay, to be looked at."""
    # The second name is that of kachery-p2p before version 1.
    names = ("KACHERY_KEEP_TEMP_FILES", "KACHERY_P2P_KEEP_TEMP_FILES")
    return any(os.environ.get(name) == "1" for name in names)


def _directory(variable: str, default: str) -> str:
    # An empty variable is what `export X=` in a shell leaves behind: it means "not set".
    path = os.environ.get(variable) or default
    if path.startswith("/"):
        return _normal(path)
    return os.path.abspath(os.path.expanduser(path))


@functools.lru_cache(maxsize=64)
def _normal(path: str) -> str:
    """The same few paths, six times a call."""
    return os.path.normpath(path)


def daemon_socket() -> str | None:
    """The socket of another user's daemon that lets us in: KACHERY_P2P_DAEMON_SOCKET, or None."""
    if not os.environ.get("KACHERY_P2P_DAEMON_SOCKET"):
        return None
    return _directory("KACHERY_P2P_DAEMON_SOCKET", "")


def daemon_address() -> tuple[str, int] | None:
    """Host and port of a daemon to be asked over HTTP; None means the Unix socket."""
    # The second names are those of kachery-p2p before version 1.
    host = os.environ.get("KACHERY_DAEMON_HOST") or os.environ.get("KACHERY_P2P_API_HOST")
    port = os.environ.get("KACHERY_DAEMON_PORT") or os.environ.get("KACHERY_P2P_API_PORT")
    if not host and not port:
        return None
    return host or "127.0.0.1", _port(port) if port else DAEMON_PORT


def is_own_daemon() -> bool:
    """Whether the daemon is that of `config_dir`, at its Unix socket."""
    return not is_offline() and daemon_address() is None and daemon_socket() is None


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and 0 < int(text) < 65536):
        raise ConfigError(
            f"KACHERY_DAEMON_PORT (or KACHERY_P2P_API_PORT) is {text!r}, which is not a port",
            hint="give a number from 1 to 65535, or unset it to use the daemon of this computer",
        )
    return int(text)


def daemon_token() -> str:
    """The HTTP door's token: KACHERY_DAEMON_TOKEN, else that of a daemon of this configuration."""
    token = os.environ.get("KACHERY_DAEMON_TOKEN")
    if not token:
        try:
            with open(os.path.join(config_dir(), TOKEN_NAME), encoding="ascii") as file:
                token = file.read(256)
        except (OSError, UnicodeError):
            return ""
    # Only what a header can carry; anything else is wrong and will be refused as such.
    return "".join(char for char in token.strip() if "!" <= char <= "~")
