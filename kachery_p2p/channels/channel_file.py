"""Channel files: TOML for people that says how a channel is entered, never its secret.

    kind = "shared-secret"
    name = "lab"
    secret_env = "KACHERY_CHANNEL_SECRET"     # the environment variable that has the secret
    secret_file = "lab.secret"                # or a 0600 file that has it, seen from here
    bootstrap = ["/dns4/node.example.org/tcp/20432/p2p/12D3Koo..."]

    [bucket]                                  # where to look when no member has it
    url = "s3://lab-data/kachery?endpoint=https://s3.example.org"

An owned channel is entered by invite; a file of `kind = "owned"` may say its `id`, so that
nobody takes another one for it, and more addresses.

A channel file may lie in a repository and be read by anybody; whoever could write it
could send this node to other members, so `disk` refuses one that others may change.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from kachery_p2p.channels.channel import OWNED, check_channel_name
from kachery_p2p.channels.disk import explaining, read_trusted
from kachery_p2p.errors import ChannelSecretMissingError, ConfigError
from kachery_p2p.limits import ADDRESS_CHARS_MAX, BOOTSTRAP_ADDRESSES_MAX

if TYPE_CHECKING:
    from kachery_p2p.channels.bucket_settings import BucketSettings

KIND = "shared-secret"
SECRET_ENV = "KACHERY_CHANNEL_SECRET"  # noqa: S105 (the name of a variable)
_ENV_CHARS_MAX = 128
_ID_CHARS = 64


class ChannelFile(NamedTuple):
    """What a channel file says. `path` is where it lies."""

    path: str
    name: str
    secret_env: str = SECRET_ENV
    secret_file: str | None = None
    bootstrap: tuple[str, ...] = ()
    kind: str = KIND
    # Of an owned channel: its id, or "".
    id: str = ""
    bucket: BucketSettings | None = None

    def secret(self, environ: Mapping[str, str]) -> str | None:
        """The secret text from the environment, else from the secret file, else None."""
        given = environ.get(self.secret_env)
        if given or self.secret_file is None:
            return given or None
        path = os.path.join(os.path.dirname(self.path), self.secret_file)
        with explaining(path):
            text = read_trusted(path, secret=True)
        if text is None:
            raise ChannelSecretMissingError(
                f"{path}, which {self.path} names as its secret_file, does not exist",
                hint=f"put the channel's secret there, or set {self.secret_env}",
            )
        return text


def is_path(name_or_path: str) -> bool:
    """True for what is meant as a channel file, not as a channel's name."""
    return os.sep in name_or_path or name_or_path.endswith(".toml")


def read_channel_file(path: str) -> ChannelFile:
    """The channel file at `path`, or ConfigError; UnsafeFileError if others may change it."""
    found = _read_if_there(path)
    if found is None:
        raise ConfigError(f"there is no channel file {path}")
    return found


def find_channel_file(name: str, directories: tuple[str, ...]) -> ChannelFile | None:
    """The channel file of the channel `name` in the first directory that has one."""
    for directory in directories:
        found = _read_if_there(os.path.join(directory, f"{name}.toml"))
        if found is None:
            continue
        if found.name != name:
            raise ConfigError(
                f"{found.path} is the file of the channel {found.name}",
                hint=f"rename it to {found.name}.toml, or its name to {name}",
            )
        return found
    return None


def _read_if_there(path: str) -> ChannelFile | None:
    with explaining(path):
        text = read_trusted(path)
    return None if text is None else parse_channel_file(text, path)


def parse_channel_file(text: str, path: str) -> ChannelFile:
    """What `text` says, or ConfigError naming `path` and the key that is wrong."""
    import tomllib  # 13 ms

    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}".rstrip(".")) from None
    for key in table:
        if key not in _CHECKS:
            raise ConfigError(
                f"{path} has an unknown key {key[:64]!a}",
                hint=f"it may have {', '.join(_CHECKS)}; a secret never goes into a channel file",
            )
    for key in ("kind", "name"):
        if key not in table:
            raise ConfigError(f"{path} has no {key}")
    checked = {key: _CHECKS[key](value, f"{path}: {key}") for key, value in table.items()}
    for key in _ONLY_SHARED if checked["kind"] == OWNED else _ONLY_OWNED:
        if key in table:
            raise ConfigError(f"{path}: a channel of the kind {checked['kind']} has no {key}")
    return ChannelFile(path=path, **checked)


def check_bootstrap(value: object, where: str) -> tuple[str, ...]:
    """The addresses in `value`, or ConfigError beginning with `where`."""
    if isinstance(value, list | tuple) and len(value) <= BOOTSTRAP_ADDRESSES_MAX:
        addresses = tuple(value)
        if all(_is_address(address) for address in addresses):
            return addresses
    raise ConfigError(
        f"{where} is not a list of at most {BOOTSTRAP_ADDRESSES_MAX} multiaddrs",
        hint="another member's `kachery-p2p status` prints its addresses",
    )


def _is_address(value: object) -> bool:
    """As far as the alphabet goes, which leaves nothing to escape; whoever dials it parses it."""
    return (
        isinstance(value, str)
        and len(value) <= ADDRESS_CHARS_MAX
        and value.startswith("/")
        and value.isascii()
        and value.isprintable()
        and not set(value) & set(" \"'\\")
    )


def check_secret_env(value: object, where: str) -> str:
    """The name of an environment variable in `value`, or ConfigError beginning with `where`."""
    if isinstance(value, str) and len(value) <= _ENV_CHARS_MAX:  # noqa: SIM102 (a thought a line)
        if value.isascii() and value.isidentifier():
            return value
    raise ConfigError(f"{where} is not the name of an environment variable")


def _check_kind(value: object, where: str) -> str:
    if value in (KIND, OWNED):
        return str(value)
    raise ConfigError(
        f"{where} is not one that this version knows", hint=f'write "{KIND}" or "{OWNED}"'
    )


def _check_id(value: object, where: str) -> str:
    if isinstance(value, str) and len(value) == _ID_CHARS and not value.strip("0123456789abcdef"):
        return value
    raise ConfigError(
        f"{where} is not a channel's id, {_ID_CHARS} hex digits",
        hint="`kachery-p2p channel show NAME` prints it",
    )


def _check_name(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{where} is not a text")
    return check_channel_name(value)


def _check_secret_file(value: object, where: str) -> str:
    if isinstance(value, str) and value and "\0" not in value:
        return value
    raise ConfigError(f"{where} is not the path of a file")


def _check_bucket(value: object, where: str) -> BucketSettings:
    from kachery_p2p.channels.bucket_settings import of_channel_file

    return of_channel_file(value, where)


_CHECKS: dict[str, Callable[[object, str], Any]] = {
    "kind": _check_kind,
    "name": _check_name,
    "secret_env": check_secret_env,
    "secret_file": _check_secret_file,
    "bootstrap": check_bootstrap,
    "id": _check_id,
    "bucket": _check_bucket,
}
_ONLY_SHARED = ("secret_env", "secret_file")
_ONLY_OWNED = ("id",)
