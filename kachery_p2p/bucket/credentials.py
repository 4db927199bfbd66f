"""What opens a bucket: from the environment, a private file, or the provider's own chain.

The configuration holds a *reference*, never a secret:

    auto           the environment if it has any, else the provider's chain (the default)
    environment    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN;
                   AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN;
                   GOOGLE_APPLICATION_CREDENTIALS (the path of a service account's file)
    file:/PATH     a file that only this user may read (0600): TOML with `access_key_id`,
                   `secret_access_key`, `session_token`; `account_key`, `sas_token`;
                   `service_account` (a path)
    chain          what the computer itself may do: instance roles, workload identities
    none           nothing: a public bucket
    members        nothing: members that have them are asked (`through`), by a running node
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from kachery_p2p.bucket.urls import AZURE, CLOUDS, GOOGLE, S3
from kachery_p2p.channels.bucket_settings import AUTO, CHAIN, ENVIRONMENT, FILE_START, NONE
from kachery_p2p.channels.disk import explaining, read_private
from kachery_p2p.errors import BucketRefusedError, ConfigError

# Our names of secrets: the variable of the provider, and the key of obstore's configuration.
_NAMES = {
    S3: {
        "access_key_id": ("AWS_ACCESS_KEY_ID", "access_key_id"),
        "secret_access_key": ("AWS_SECRET_ACCESS_KEY", "secret_access_key"),
        "session_token": ("AWS_SESSION_TOKEN", "session_token"),
    },
    AZURE: {
        "account_key": ("AZURE_STORAGE_ACCOUNT_KEY", "account_key"),
        "sas_token": ("AZURE_STORAGE_SAS_TOKEN", "sas_key"),
    },
    GOOGLE: {
        "service_account": ("GOOGLE_APPLICATION_CREDENTIALS", "service_account"),
    },
}
# Without this one the others say nothing.
_NEEDED = {S3: ("access_key_id", "secret_access_key"), AZURE: (), GOOGLE: ("service_account",)}


class Credentials:
    """What is given to the library. Shows nothing of itself."""

    def __init__(self, options: Mapping[str, Any], *, writes: bool = True) -> None:
        self.options = dict(options)
        # False if it is known that nothing can be put with these.
        self.writes = writes

    def __repr__(self) -> str:
        return "Credentials(...)"


def find_credentials(reference: str, scheme: str, environ: Mapping[str, str]) -> Credentials:
    """What `reference` means for a bucket of this kind, looked up now.

    Raises BucketRefusedError if there is nothing where it points to, KeyFileError if others
    may read the file.
    """
    if scheme not in CLOUDS:
        return Credentials({})
    if reference == NONE:
        return Credentials({"skip_signature": True}, writes=False)
    if reference == CHAIN:
        return Credentials({})
    if reference.startswith(FILE_START):
        return Credentials(_of_file(reference.removeprefix(FILE_START), scheme))
    given = {name: environ.get(variable, "") for name, (variable, _) in _NAMES[scheme].items()}
    if _is_enough(given, scheme):
        return Credentials(_options(given, scheme))
    if reference == AUTO:
        return Credentials({})
    assert reference == ENVIRONMENT
    variables = " and ".join(_NAMES[scheme][name][0] for name in _NEEDED[scheme])
    raise BucketRefusedError(
        f"no credentials are in the environment of the node ({variables or 'AZURE_STORAGE_...'})",
        hint="set them where the node is started, or use `--credentials file:/PATH`",
    )


def _of_file(path: str, scheme: str) -> dict[str, str]:
    import tomllib

    with explaining(path):
        try:
            table = tomllib.loads(read_private(path))
        except FileNotFoundError:
            raise BucketRefusedError(
                f"the file of credentials {path} is not there",
                hint=f"write it, mode 600: {_example(scheme)}",
            ) from None
        except tomllib.TOMLDecodeError:
            # Not what TOML says is wrong: it might quote the secret.
            raise ConfigError(f"{path} is not TOML", hint=f"write {_example(scheme)}") from None
    known = {name: value for name, value in table.items() if name in _NAMES[scheme]}
    if known.keys() != table.keys() or not all(isinstance(v, str) for v in known.values()):
        raise ConfigError(f"{path} has something else than texts named {', '.join(_NAMES[scheme])}")
    if not _is_enough(known, scheme):
        raise ConfigError(f"{path} has not all that is needed", hint=f"write {_example(scheme)}")
    return _options(known, scheme)


def _is_enough(given: Mapping[str, str], scheme: str) -> bool:
    return any(given.values()) and all(given.get(name) for name in _NEEDED[scheme])


def _options(given: Mapping[str, str], scheme: str) -> dict[str, str]:
    return {_NAMES[scheme][name][1]: value for name, value in given.items() if value}


def _example(scheme: str) -> str:
    names = _NEEDED[scheme] or tuple(_NAMES[scheme])[:1]
    return ", ".join(f'{name} = "..."' for name in names)


def environment() -> Mapping[str, str]:
    """Where this process looks for credentials."""
    return os.environ
