"""The HTTP door's token: CONFIG/api-token, made at the first start, for this user's eyes only."""

from __future__ import annotations

import contextlib
import os
import stat

from kachery_p2p.errors import ConfigError, KeyFileError

TOKEN_NAME = "api-token"  # noqa: S105 - the name of the file, not a token
TOKEN_BYTES = 32


def load_or_create_token(config_dir: str) -> str:
    """The token in hex. Two daemons that start at once end with one and the same."""
    path = os.path.join(config_dir, TOKEN_NAME)
    try:
        return read_token(path)
    except FileNotFoundError:
        _create(config_dir, path)
    return read_token(path)


def read_token(path: str) -> str:
    """The token in the file at `path`; KeyFileError if others may read it or it is no token."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise KeyFileError(f"the token file {path} cannot be read: {error.strerror}") from error
    try:
        _check_owner(path, os.fstat(descriptor))
        token = os.read(descriptor, 1024).decode("ascii", "replace").strip()
    finally:
        os.close(descriptor)
    if len(token) != 2 * TOKEN_BYTES or token.strip("0123456789abcdef"):
        raise KeyFileError(
            f"the token file {path} is damaged",
            hint="remove it and restart the daemon, which makes a new one",
        )
    return token


def _check_owner(path: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise KeyFileError(f"the token file {path} is not a regular file")
    if found.st_uid != os.geteuid():
        raise KeyFileError(f"the token file {path} belongs to another user")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise KeyFileError(
            f"the token file {path} may be read by other users", hint=f"chmod 600 {path}"
        )


def _create(config_dir: str, path: str) -> None:
    # Written whole under another name and then linked: a reader never sees half a token.
    temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        os.makedirs(config_dir, mode=0o700, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, os.urandom(TOKEN_BYTES).hex().encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    except OSError as error:
        raise ConfigError(f"the token file {path} cannot be made: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
