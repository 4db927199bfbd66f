"""What the zones, servers and channels that older programs name mean on this computer.

CONFIG/zones.toml says it, a table for each:

    [zones.franklab]            # KACHERY_ZONE=franklab, kachery:franklab:sha1:..., fr='franklab'
    channel = "lab"             # a channel that this node has joined
    aliases = ["franklab.default", "https://kachery.example.org"]

    [zones.archive]
    bucket = "s3://lab/kachery" # the bucket of one of its channels; what is stored in the zone
                                # is there when the call returns, as with kachery-cloud

    [zones.notes]
    private = true              # stored, and shared with nobody

    [zones.scratch]
    keep_days = 3               # what is stored there is removed after so many days

Without `channel` and `bucket` a zone means the channels of the share list, as with `kachery_p2p`.
A bucket belongs to a channel (`kachery-p2p bucket add`), whose members may load what is in it.
The name of a joined channel needs no table; nor do "default", the two servers that everybody
had, and "scratch".
"""

from __future__ import annotations

import os
import stat
from typing import Any, NamedTuple

from kachery_p2p.client import settings
from kachery_p2p.compat.warned import warn
from kachery_p2p.errors import ConfigError, UnknownZoneError, UnsafeFileError
from kachery_p2p.limits import SCRATCH_DAYS, ZONES_BYTES_MAX

FILE_NAME = "zones.toml"
_KEYS = {"channel", "bucket", "private", "keep_days", "aliases"}


class Zone(NamedTuple):
    """Where what is stored in a zone may be had, and for how long it is kept."""

    name: str
    # None: the channels of the share list.
    channel: str | None = None
    private: bool = False
    keep_days: float | None = None
    aliases: tuple[str, ...] = ()
    # The URL of the bucket of a channel: what is stored goes into it before the call returns.
    bucket: str | None = None

    @property
    def channels(self) -> list[str] | None:
        """What `channels` of the functions that store must be."""
        if self.private:
            return []
        return None if self.channel is None else [self.channel]


# Zones that everybody had, without being asked.
_EVERYBODYS = {
    "default": Zone("default"),
    "default_readonly": Zone("default_readonly"),
    "default_readwrite": Zone("default_readwrite"),
    "scratch": Zone("scratch", keep_days=SCRATCH_DAYS),
}


def zone_to_store(name: str) -> Zone:
    """The zone. UnknownZoneError if nothing says what it means: to guess would share too much."""
    zone = find_zone(name)
    if zone is None:
        raise UnknownZoneError(
            f"nothing says what the zone or server {name[:80]!r} means on this computer",
            hint=f'name a channel for it in {zones_path()}: [zones.NAME] and channel = "..."',
        )
    return zone


def channel_to_load(name: str) -> str | None:
    """The channel to ask, None for all; all, and a warning, if nothing says what the zone means."""
    zone = find_zone(name)
    if zone is None:
        warn(
            f"nothing in {zones_path()} says what the zone or server {name[:80]!r} means:"
            " all channels are asked"
        )
        return None
    return zone.channel


def find_zone(name: str) -> Zone | None:
    """The zone of that name or alias; or the channel of that name, as a zone.

    `SERVER~CHANNEL`, as the first kachery could say, is the zone of the server if it is none
    itself.
    """
    zones = read_zones()
    for wanted in dict.fromkeys((name, name.partition("~")[0])):
        for zone in zones.values():
            if wanted in (zone.name, *zone.aliases):
                return _with_channel(zone)
        if wanted in _EVERYBODYS:
            return _EVERYBODYS[wanted]
        if _is_joined(wanted):
            return Zone(wanted, channel=wanted)
    return None


def zones_path() -> str:
    """The file that says what zones mean."""
    return os.path.join(settings.config_dir(), FILE_NAME)


def read_zones() -> dict[str, Zone]:
    """The zones of zones.toml, by their names. ConfigError if it is wrong.

    UnsafeFileError if others could change it: it says with whom things are shared.
    """
    path = zones_path()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {(error.strerror or '').lower()}") from error
    with os.fdopen(descriptor, "rb") as file:
        _check_safe(path, os.fstat(descriptor))
        data = file.read(ZONES_BYTES_MAX + 1)
    if len(data) > ZONES_BYTES_MAX:
        raise ConfigError(f"{path} is longer than {ZONES_BYTES_MAX} bytes")
    return _parsed(path, data)


def _check_safe(path: str, status: os.stat_result) -> None:
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UnsafeFileError(
            f"{path} may be written by other users, and it says with whom files are shared",
            hint=f"chmod 644 {path}, and make it your own",
        )


def _parsed(path: str, data: bytes) -> dict[str, Zone]:
    import tomllib

    try:
        written = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    tables = written.pop("zones", {})
    if written or not isinstance(tables, dict):
        raise ConfigError(f"{path} holds something else than tables [zones.NAME]")
    return {name: _zone(f"[zones.{name}] of {path}", name, table) for name, table in tables.items()}


def _zone(where: str, name: str, table: Any) -> Zone:
    if not isinstance(table, dict) or table.keys() - _KEYS:
        raise ConfigError(f"{where}: only {', '.join(sorted(_KEYS))} can be there")
    if "bucket" in table:
        return _bucket_zone(where, name, table)
    channel, private = table.get("channel"), table.get("private", False)
    days = table.get("keep_days")
    if days is None and name == "scratch":
        days = SCRATCH_DAYS
    if not isinstance(channel, str | None) or not isinstance(private, bool):
        raise ConfigError(f"{where}: channel must be a text, private true or false")
    if isinstance(days, bool) or not isinstance(days, int | float | None):
        raise ConfigError(f"{where}: keep_days must be a number")
    if days is not None and not days > 0:
        raise ConfigError(f"{where}: keep_days must be above 0")
    if private and channel is not None:
        raise ConfigError(f"{where}: a zone with a channel is not private")
    return Zone(name, channel, private, days, _aliases(where, table))


def _bucket_zone(where: str, name: str, table: dict[str, Any]) -> Zone:
    if not isinstance(table["bucket"], str) or table.keys() - {"bucket", "aliases"}:
        raise ConfigError(f"{where}: bucket is a URL, beside which only aliases can be")
    return Zone(name, aliases=_aliases(where, table), bucket=table["bucket"])


def _with_channel(zone: Zone) -> Zone:
    """The same; if it is a bucket, with the channel that has it here. ConfigError if none has."""
    if zone.bucket is None:
        return zone
    from kachery_p2p.client.uploading import buckets

    for known in buckets():
        if zone.bucket.rstrip("/") in (url.rstrip("/") for url in known.settings.urls):
            return zone._replace(channel=known.channel.name)
    raise ConfigError(
        f"no channel of this node has the bucket {zone.bucket[:200]!a} of the zone {zone.name!a}",
        hint="`kachery-p2p bucket status` lists them; `kachery-p2p bucket add` adds one",
    )


def _aliases(where: str, table: dict[str, Any]) -> tuple[str, ...]:
    aliases = table.get("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(one, str) for one in aliases):
        raise ConfigError(f"{where}: aliases must be a list of texts")
    return tuple(aliases)


def _is_joined(name: str) -> bool:
    from kachery_p2p.channels.files import joined

    return any(one.name == name for one in joined(settings.config_dir()))
