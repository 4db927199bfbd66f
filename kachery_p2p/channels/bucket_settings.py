"""The cloud bucket of a channel, as this node is told of it: where it is, and what goes there.

    version = 1
    urls = ["s3://lab-data/kachery?endpoint=https://s3.example.org"]
    mirror = "shared"           # "shared": what this node shares in the channel goes there;
                                # "requested": what is pushed; "none": it is only read
    credentials = "auto"        # a reference, never a secret (`bucket/credentials`)
    size_min = 0                # bytes; files outside these sizes are left out,
    size_max = 0                # 0 = no limit
    max_upload = 0              # bytes a second, 0 = no limit
    provide = true              # members without credentials may ask this node to use it for them
    encrypt = false             # true: only the channel's members can read what is there

Kept beside the channel's other files, 0600. A channel file may have a table `[bucket]` with
`url` (one, or several mirrors), `mirror`, `size_min`, `size_max` and `encrypt`: what a node
takes that was not told otherwise. What a URL means is for `bucket/urls`; here it is a text.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import NamedTuple

from kachery_p2p.channels.disk import explaining, read_private, sync_directory, write_private
from kachery_p2p.channels.joined import bucket_path, changing, joined_one
from kachery_p2p.errors import ConfigError, StateCorruptError, StateVersionError
from kachery_p2p.limits import BUCKET_CHARS_MAX, BUCKET_MIRRORS_MAX

SHARED, REQUESTED, NOTHING = "shared", "requested", "none"
POLICIES = (SHARED, REQUESTED, NOTHING)
AUTO, ENVIRONMENT, CHAIN, NONE = "auto", "environment", "chain", "none"
# None here: members that have them are asked.
MEMBERS = "members"
FILE_START = "file:"
# What is not encrypted is written as version 1.
STATE_VERSION = 2
_SIZE_MAX = (1 << 63) - 1
_IN_CHANNEL_FILE = ("url", "mirror", "size_min", "size_max", "encrypt")


class BucketSettings(NamedTuple):
    """What this node knows of the bucket of one channel."""

    # One bucket, or one or several mirrors on the web.
    urls: tuple[str, ...]
    mirror: str = SHARED
    credentials: str = AUTO
    size_min: int = 0
    # 0: no limit.
    size_max: int = 0
    max_upload: int = 0
    # For members without credentials, as far as the channel's roles allow it.
    provide: bool = True
    encrypt: bool = False

    def takes(self, size: int) -> bool:
        """True for a content of this size, as far as the limits go."""
        return self.size_min <= size and (not self.size_max or size <= self.size_max)


def read_bucket(config_dir: str, name: str) -> BucketSettings | None:
    """The bucket of the channel `name`; None if it has none here. StateCorruptError."""
    path = bucket_path(config_dir, name)
    with explaining(path):
        try:
            return _parse(read_private(path), path, name)
        except FileNotFoundError:
            return None


def write_bucket(config_dir: str, name: str, settings: BucketSettings) -> None:
    """Remember the bucket of the joined channel `name`; replaces what was there."""
    check_settings(settings, "the bucket")
    urls = "".join(f'    "{url}",\n' for url in settings.urls)
    # Nothing in these texts needs to be escaped: `check_settings` has seen to it.
    text = (
        f"version = {STATE_VERSION if settings.encrypt else 1}\n"
        f"urls = [\n{urls}]\n"
        f'mirror = "{settings.mirror}"\n'
        f'credentials = "{settings.credentials}"\n'
        f"size_min = {settings.size_min}\n"
        f"size_max = {settings.size_max}\n"
        f"max_upload = {settings.max_upload}\n"
        f"provide = {str(settings.provide).lower()}\n"
        f"encrypt = {str(settings.encrypt).lower()}\n"
    )
    with changing(config_dir):
        joined_one(config_dir, name)
        write_private(bucket_path(config_dir, name), text)


def remove_bucket(config_dir: str, name: str) -> bool:
    """Forget the bucket of the channel `name`; False if it had none. Its objects stay."""
    path = bucket_path(config_dir, name)
    with changing(config_dir), contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        sync_directory(os.path.dirname(path))
        return True
    return False


def of_channel_file(value: object, where: str) -> BucketSettings:
    """What the table `[bucket]` of a channel file says, or ConfigError beginning with `where`."""
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is not a table")
    for key in value:
        if key not in _IN_CHANNEL_FILE:
            raise ConfigError(
                f"{where} has an unknown key {str(key)[:64]!a}",
                hint=f"it may have {', '.join(_IN_CHANNEL_FILE)}; credentials never go there",
            )
    urls = value.get("url")
    table = {key: value[key] for key in _IN_CHANNEL_FILE[1:] if key in value}
    return _of_table({"urls": [urls] if isinstance(urls, str) else urls, **table}, where)


def check_settings(settings: BucketSettings, where: str) -> BucketSettings:
    """`settings` itself if each of its fields may be written down; else ConfigError."""
    wrong = next((name for name, good in _judged(settings) if not good), None)
    if wrong is not None:
        raise ConfigError(f"{where}: {wrong} is not what it may be", hint=_HINTS.get(wrong))
    return settings


def _judged(settings: BucketSettings) -> list[tuple[str, bool]]:
    urls, names = settings.urls, ("size_min", "size_max", "max_upload")
    sizes = [(name, getattr(settings, name)) for name in names]
    return [
        ("urls", 0 < len(urls) <= BUCKET_MIRRORS_MAX and all(map(_is_plain, urls))),
        ("mirror", settings.mirror in POLICIES),
        ("credentials", _is_reference(settings.credentials)),
        ("provide", type(settings.provide) is bool),
        ("encrypt", type(settings.encrypt) is bool),
        *((name, type(size) is int and 0 <= size <= _SIZE_MAX) for name, size in sizes),
    ]


_HINTS = {
    "urls": "write one URL, or up to 8 https:// ones; `kachery-p2p bucket add --help`",
    "mirror": f"write one of {', '.join(POLICIES)}",
    "encrypt": "write true or false",
    "credentials": "write auto, environment, chain, members, none or file:/ABSOLUTE/PATH",
}


def _is_plain(text: object) -> bool:
    """True for a text that stands in TOML as it is."""
    return (
        isinstance(text, str)
        and 0 < len(text) <= BUCKET_CHARS_MAX
        and text.isascii()
        and text.isprintable()
        and not set(text) & set(" \"'\\")
    )


def _is_reference(text: object) -> bool:
    if text in (AUTO, ENVIRONMENT, CHAIN, NONE, MEMBERS):
        return True
    return _is_plain(text) and str(text).startswith(f"{FILE_START}/")


def _of_table(table: Mapping[str, object], where: str) -> BucketSettings:
    urls = table.get("urls")
    if not isinstance(urls, list):
        raise ConfigError(f"{where}: url is missing", hint=_HINTS["urls"])
    try:
        settings = BucketSettings(**{**table, "urls": tuple(urls)})  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError(f"{where} has an unknown key") from None
    return check_settings(settings, where)


def _parse(text: str, path: str, name: str) -> BucketSettings:
    import tomllib  # 13 ms

    hint = f"`kachery-p2p bucket remove {name}`, then add it again"
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise StateCorruptError(f"{path} is damaged", hint=hint) from None
    version = table.pop("version", None)
    if type(version) is int and version > STATE_VERSION:
        raise StateVersionError(
            f"{path} was written by a newer kachery-p2p (version {version}, not {STATE_VERSION})",
            hint="upgrade kachery-p2p on this computer",
        )
    try:
        return _of_table(table, path)
    except ConfigError as error:
        raise StateCorruptError(f"{path} is damaged ({error})", hint=hint) from None
