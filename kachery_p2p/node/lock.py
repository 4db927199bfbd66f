"""One daemon on a configuration directory: its key and its state have one writer."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from kachery_p2p.errors import ConfigError, DaemonRunningError

LOCK_NAME = "daemon.lock"


@contextlib.contextmanager
def only_daemon(config_dir: str, hint: str) -> Iterator[None]:
    """Hold the daemon's lock; DaemonRunningError with `hint` when a daemon holds it.

    The kernel drops the lock with its process, however that ends.
    """
    try:
        path = os.path.join(config_dir, LOCK_NAME)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"cannot write in the config directory {config_dir}: {error.strerror}",
            hint="choose another with KACHERY_P2P_CONFIG_DIR",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise DaemonRunningError(
            f"a daemon is already running on {config_dir}", hint=hint
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)
