"""Where a call stores and whom it tells, by the environment at that moment.

The variables are looked at at each call (`settings` says why). What follows from them is
worked out once for the same words: to do it anew was a fifth of storing a small value.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from kachery_p2p.client import settings

_DIRECTORIES = (
    "KACHERY_OFFLINE_STORAGE_DIR",
    "KACHERY_STORAGE_DIR",
    "KACHERY_P2P_CONFIG_DIR",
    "KACHERY_P2P_DAEMON_SOCKET",
    "HOME",
)
_OTHERS = (
    "KACHERY_DAEMON_HOST",
    "KACHERY_P2P_API_HOST",
    "KACHERY_DAEMON_PORT",
    "KACHERY_P2P_API_PORT",
)
_NAMES = _DIRECTORIES + _OTHERS
_RAW_NAMES = [os.fsencode(name) for name in _NAMES]
_Said = list[bytes | None] | list[str | None]


class Surroundings(NamedTuple):
    """What `settings` answers."""

    is_offline: bool
    storage_dir: str
    config_dir: str
    state_dir: str
    # The Unix socket of the daemon that is asked; None if it is asked over HTTP.
    daemon_socket: str | None
    # Whether that is the daemon of `config_dir`.
    is_own_daemon: bool


# One: who changes the environment rarely changes it back.
_kept: tuple[_Said, Surroundings] | None = None


def surroundings() -> Surroundings:
    """What the environment says now. Raises ConfigError."""
    global _kept
    said = _said()
    kept = _kept
    if kept is not None and kept[0] == said:
        return kept[1]
    found = _worked_out()
    # A relative path means another directory after a chdir.
    if all(os.environ.get(name, "")[:1] in ("", "/", "~") for name in _DIRECTORIES):
        _kept = said, found
    return found


def _said() -> _Said:
    # What os.environ keeps its variables in, as bytes: by its methods nine lookups are 15 us.
    raw = getattr(os.environ, "_data", None)
    if raw is None:
        return [os.environ.get(name) for name in _NAMES]
    return list(map(raw.get, _RAW_NAMES))


def _worked_out() -> Surroundings:
    from kachery_p2p.client.daemon import SOCKET_NAME

    config_dir = settings.config_dir()
    socket = None
    if settings.daemon_address() is None:
        socket = settings.daemon_socket() or os.path.join(config_dir, SOCKET_NAME)
    return Surroundings(
        settings.is_offline(),
        settings.storage_dir(),
        config_dir,
        settings.state_dir(),
        socket,
        settings.is_own_daemon(),
    )
