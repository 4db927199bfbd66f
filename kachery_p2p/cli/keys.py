"""Commands about the keys of this node: keys backup, keys restore."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import click

from kachery_p2p.cli.channels import no_daemon
from kachery_p2p.cli.outcome import note
from kachery_p2p.client import settings
from kachery_p2p.errors import KeyFileError, PassphraseError, ResolutionError
from kachery_p2p.limits import BACKUP_CHARS_MAX

PASSPHRASE_VARIABLE = "KACHERY_P2P_PASSPHRASE"  # noqa: S105 - the name of a variable


@click.group()
def keys() -> None:
    """Keep the keys of this node safe: a lost key cannot be made again."""


@keys.command()
@click.argument("file", type=click.Path(), metavar="FILE")
def backup(file: str) -> None:
    """Write all keys into the new FILE, sealed with a passphrase.

    The passphrase is asked for, or taken from KACHERY_P2P_PASSPHRASE. Without it the
    backup is worth nothing, so keep both, in different places.
    """
    from kachery_p2p.identity import backup as backups

    write_new(file, lambda: backups.backup(settings.config_dir(), passphrase(confirm=True)))
    note(f"the keys are in {file}; only the passphrase opens it")


@keys.command()
@click.argument("file", type=click.Path(), metavar="FILE")
@click.option("--force", is_flag=True, help="Replace other keys that are there, for good.")
def restore(file: str, force: bool) -> None:
    """Bring the keys in the backup FILE back; the node must be stopped."""
    from kachery_p2p.identity import backup as backups

    sealed = read_sealed(file)
    typed = passphrase(confirm=False)
    with no_daemon() as config_dir:
        names = backups.restore(config_dir, sealed, typed, force=force)
    note(f"restored {len(names)} key files" if names else "all keys of the backup are there")


def write_new(file: str, make: Callable[[], str]) -> None:
    """Write the sealed text that `make` gives into the new `file`, durably, for its owner only."""
    from kachery_p2p.identity.disk import sync_directory, write_durably

    # Before a passphrase is asked for in vain.
    if os.path.lexists(file):
        raise _exists(file)
    sealed = make()
    try:
        write_durably(file, sealed.encode())
        sync_directory(os.path.dirname(os.path.abspath(file)))
    except FileExistsError:
        raise _exists(file) from None
    except OSError as error:
        raise ResolutionError(f"{file} cannot be written: {_why(error)}") from error


def read_sealed(file: str) -> str:
    """The sealed text in `file`; KeyFileError if it cannot be one."""
    try:
        with open(file, encoding="ascii") as opened:
            return opened.read(BACKUP_CHARS_MAX + 1)
    except OSError as error:
        raise KeyFileError(f"{file} cannot be read: {_why(error)}") from error
    except UnicodeError:
        raise KeyFileError(f"{file} is not a backup of keys") from None


def passphrase(*, confirm: bool) -> str:
    """The passphrase from KACHERY_P2P_PASSPHRASE, else from the person at the terminal."""
    given = os.environ.get(PASSPHRASE_VARIABLE)
    if given:
        return given
    if not sys.stdin.isatty():
        raise PassphraseError(
            "no passphrase was given",
            hint=f"give it in {PASSPHRASE_VARIABLE}, or run this in a terminal",
        )
    typed: str = click.prompt("passphrase", hide_input=True, confirmation_prompt=confirm, err=True)
    return typed


def _exists(file: str) -> ResolutionError:
    return ResolutionError(f"{file} exists already", hint="name a new file")


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
