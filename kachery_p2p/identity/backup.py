"""Keep the keys of a node safe, and bring them back: everything in CONFIG/keys, as one text.

A lost key cannot be made again, and neither can what only it may sign: so a restore
never replaces a key unless told to, and a restore that is killed anywhere leaves whole
files and can be repeated.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator

from kachery_p2p.errors import KeyFileError
from kachery_p2p.identity import keyring
from kachery_p2p.identity.disk import (
    check_private,
    make_private_directories,
    read_private,
    sync_directory,
    write_durably,
)
from kachery_p2p.identity.sealed import SALT_BYTES, is_key_name, seal, unseal
from kachery_p2p.limits import KEY_FILES_MAX

_TEMP_PREFIX = ".restore-"


def backup(config_dir: str, passphrase: str) -> str:
    """All key files of this configuration, sealed with the passphrase, as text.

    KeyFileError if there are none, or one is damaged, not private, or not a key file;
    PassphraseError if the passphrase is too short.
    """
    directory = keyring.keys_dir(config_dir)
    with _explaining(directory):
        if os.path.lexists(keyring.key_path(config_dir)):
            keyring.load(config_dir)  # a backup of a damaged key would be found out too late
        files = {name: read_private(f"{directory}/{name}") for name in _key_names(directory)}
    if not files:
        raise KeyFileError(
            f"there are no keys in {directory}", hint="`kachery-p2p start` makes one"
        )
    return seal(files, passphrase, os.urandom(SALT_BYTES))


def restore(
    config_dir: str, sealed: str, passphrase: str, *, force: bool = False
) -> tuple[str, ...]:
    """Write the key files of a backup; the names of those that were written.

    Files that are already there with the same bytes are left alone. If any other would
    be replaced it is KeyFileError, and nothing is written; unless `force`, which replaces
    them for good. PassphraseError if the passphrase is wrong. The node must not be running.
    """
    files = unseal(sealed, passphrase)
    directory = keyring.keys_dir(config_dir)
    with _explaining(directory):
        make_private_directories(config_dir, directory)
        check_private(directory, os.lstat(directory), 0o700)
        with _alone(directory):
            _sweep(directory)
            chosen = files if force else _missing(directory, files)
            _write(config_dir, chosen, force=force)
    return tuple(chosen)


def _missing(directory: str, files: dict[str, bytes]) -> dict[str, bytes]:
    """The files that are not there yet; KeyFileError if one is there with other bytes."""
    there = [name for name in files if os.path.lexists(f"{directory}/{name}")]
    other = [name for name in there if read_private(f"{directory}/{name}") != files[name]]
    if other:
        raise _would_replace(directory, other)
    return {name: data for name, data in files.items() if name not in there}


def _write(config_dir: str, files: dict[str, bytes], *, force: bool) -> None:
    """Put the files in place: all are on disk before the first gets its name."""
    directory = keyring.keys_dir(config_dir)
    places = {os.path.dirname(f"{directory}/{name}") for name in files}
    for place in sorted(places):
        make_private_directories(config_dir, place)
        check_private(place, os.lstat(place), 0o700)
    temps = {name: f"{directory}/{_TEMP_PREFIX}{os.urandom(8).hex()}" for name in files}
    try:
        for name, data in files.items():
            write_durably(temps[name], data)
        for name, temp in temps.items():
            _put(temp, f"{directory}/{name}", force=force)
    finally:
        _sweep(directory)
    for place in sorted(places | {directory}):
        sync_directory(place)


def _put(temp: str, path: str, *, force: bool) -> None:
    if force:
        os.rename(temp, path)
        return
    try:
        # Not rename: it would replace a key that was made since we looked.
        os.link(temp, path)
    except FileExistsError:
        raise _would_replace(os.path.dirname(path), [os.path.basename(path)]) from None


def _key_names(directory: str) -> Iterator[str]:
    """The names of all key files; what is hidden is a temporary file. KeyFileError for the rest."""
    check_private(directory, os.lstat(directory), 0o700)
    names = [name for name in sorted(os.listdir(directory)) if not name.startswith(".")]
    for name in list(names):
        path = f"{directory}/{name}"
        if stat.S_ISDIR(os.lstat(path).st_mode):
            names.remove(name)
            check_private(path, os.lstat(path), 0o700)
            names += [f"{name}/{n}" for n in sorted(os.listdir(path)) if not n.startswith(".")]
    for name in names:
        if not is_key_name(name):
            raise KeyFileError(
                f"{name[:200]!r} in {directory} is not named like a key file", hint="move it away"
            )
    if len(names) > KEY_FILES_MAX:
        raise KeyFileError(f"{directory} has more than {KEY_FILES_MAX} files")
    return iter(names)


@contextlib.contextmanager
def _alone(directory: str) -> Iterator[None]:
    """No other restore writes here meanwhile."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _sweep(directory: str) -> None:
    """Remove what this restore, or one that was killed, has left. Only when `_alone`."""
    for name in os.listdir(directory):
        if name.startswith(_TEMP_PREFIX):
            with contextlib.suppress(OSError):
                os.unlink(f"{directory}/{name}")


def _would_replace(directory: str, names: list[str]) -> KeyFileError:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return KeyFileError(
        f"{directory} has other keys than the backup: {shown}",
        hint="back them up and move them away first; force would lose them for ever",
    )


@contextlib.contextmanager
def _explaining(directory: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise KeyFileError(
            f"there are no keys in {directory}", hint="`kachery-p2p start` makes one"
        ) from None
    except OSError as error:
        raise KeyFileError(
            f"the keys in {directory} cannot be used: {(error.strerror or str(error)).lower()}",
            hint="check the owner and the mode of the configuration directory and its disk",
        ) from error
