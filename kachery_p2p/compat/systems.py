"""The older packages' own settings: variables of the environment, read at each call.

Never kept, as in `client.settings`: programs (Spyglass, for one) change them between calls.
"""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from kachery_p2p.errors import ConfigError

# How URIs are written. 2019 and client: sha1://H/name, with ?manifest= for large files.
# cloud and 2024: sha1://H?label=name. ipfs, the first kachery-cloud: ipfs://CID.
STYLES = ("2019", "client", "cloud", "2024", "ipfs")


# The group may write, and what is made inside is the group's.
_MANY_USERS = 0o2775


class System(NamedTuple):
    """One of the packages that had a directory of its own: the variables that it read."""

    directory: str
    default: str
    use_sandbox: str
    sandbox_dir: str
    multi_user: tuple[str, ...]


CLOUD = System(
    "KACHERY_CLOUD_DIR",
    "~/.kachery-cloud",
    "KACHERY_CLOUD_USE_SANDBOX",
    "KACHERY_CLOUD_SANDBOX_DIR",
    ("KACHERY_CLOUD_MULTI_USER",),
)
KACHERY_2 = System(
    "KACHERY_DIR",
    "~/.kachery",
    "KACHERY_USE_SANDBOX",
    "KACHERY_SANDBOX_DIR",
    ("KACHERY_MULTI_USER", "KACHERY_CLOUD_MULTI_USER"),
)


def directory_of(system: System) -> str:
    """The package's own directory: its mutables are there, and what it stored before."""
    path = os.environ.get(system.directory) or system.default
    return os.path.abspath(os.path.expanduser(path))


def is_multi_user(system: System) -> bool:
    """Whether the files in the directory are to be written by the users of its group."""
    return any(os.environ.get(name) == "1" for name in system.multi_user)


def make_directories(system: System, path: str) -> None:
    """Make a directory with its parents; if there are many users, for the group to write."""
    made = []
    while not os.path.isdir(path):
        made.append(path)
        path = os.path.dirname(path)
    for directory in reversed(made):
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory)
            if is_multi_user(system):
                os.chmod(directory, _MANY_USERS)


def share_store(system: System) -> None:
    """If there are many users, a store directory that is made now is one for its group."""
    if not is_multi_user(system):
        return
    from kachery_p2p.client import settings
    from kachery_p2p.store.durable import writing_to

    with writing_to(settings.storage_dir()):
        make_directories(system, settings.storage_dir())


def sandbox_of(system: System) -> str | None:
    """The directory that everything goes into, and nothing leaves, if that is switched on."""
    if os.environ.get(system.use_sandbox) != "1":
        return None
    path = os.environ.get(system.sandbox_dir) or os.path.join(directory_of(system), "sandbox")
    return os.path.abspath(os.path.expanduser(path))


def use_sandbox(system: System, use: bool) -> None:
    """Switch the sandbox on or off, for this process and those that it starts.

    A new one is below the package's directory, and is removed when this process ends.
    """
    os.environ[system.use_sandbox] = "1" if use else "0"
    if not use:
        return
    if not os.environ.get(system.sandbox_dir):
        name = os.path.join(directory_of(system), "sandbox", os.urandom(4).hex())
        os.environ[system.sandbox_dir] = name
    sandbox = sandbox_of(system)
    assert sandbox is not None
    if not os.path.exists(sandbox):
        make_directories(system, sandbox)
        _remove_at_exit(sandbox)


def _remove_at_exit(sandbox: str) -> None:
    import atexit
    import shutil

    maker = os.getpid()

    def remove() -> None:
        # A forked child has this function too, and its parent goes on.
        if os.getpid() != maker:
            return
        from kachery_p2p.client.local import close_stores

        # The index of the sandbox is inside, and must not be written to when it is gone.
        close_stores()
        shutil.rmtree(sandbox, ignore_errors=True)

    atexit.register(remove)


def uri_style() -> str | None:
    """How all URIs are to be written whatever is called: KACHERY_URI_STYLE, or None."""
    style = os.environ.get("KACHERY_URI_STYLE")
    if not style:
        return None
    if style not in STYLES:
        raise ConfigError(
            f"KACHERY_URI_STYLE is {style[:64]!r}, which is no style of URIs",
            hint=f"give one of {', '.join(STYLES)}, or unset it",
        )
    return style


def zone_name() -> str:
    """The zone to store in and load from: KACHERY_ZONE, or "default"."""
    return os.environ.get("KACHERY_ZONE") or "default"


def store_file_dir() -> tuple[str, str | None] | None:
    """Where copies are to be written for a web server, and the URL of that directory there."""
    directory = os.environ.get("KACHERY_STORE_FILE_DIR")
    if not directory:
        return None
    return directory, os.environ.get("KACHERY_STORE_FILE_PREFIX") or None


def extra_stores() -> list[str]:
    """More directories that older packages stored in: KACHERY_STORAGE_DIR_ALT and their own."""
    directories = [directory_of(CLOUD), directory_of(KACHERY_2)]
    if alternative := os.environ.get("KACHERY_STORAGE_DIR_ALT"):
        directories.insert(0, os.path.abspath(os.path.expanduser(alternative)))
    return directories


def hash_directories(algorithm: str) -> list[str]:
    """Directories of the first kachery that hold one kind of hashes: SHA1_CACHE_DIR and others."""
    names = {
        "sha1": ("SHA1_CACHE_DIR", "KBUCKET_CACHE_DIR", "KACHERY_BOOTSTRAP_MOUNTAINTOOLS_DIR"),
        "md5": ("MD5_CACHE_DIR",),
    }[algorithm]
    return [path for name in names if (path := os.environ.get(name))]
