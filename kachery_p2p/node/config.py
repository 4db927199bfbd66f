"""What a node is told when it starts. The only reader of the environment in the daemon."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from kachery_p2p.errors import ConfigError
from kachery_p2p.limits import RATE_LIMIT_MAX, RATE_LIMIT_MIN

CONTROL_PORT = 20432
BULK_PORT = 20433
HTTP_PORT = 20431


# A number, and bytes a second: k, M and G are thousands, Ki, Mi and Gi 1,024 times as many.
_RATE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?) ?(([kKMGT]i?)?B/s)?", re.ASCII)
_THOUSANDS = ("", "K", "M", "G", "T")


def parse_rate(text: str) -> int | None:
    """Bytes a second, as in `20MB/s` or `500 KiB/s`; None, which is no limit, for `0`.

    Raises ConfigError for anything else, and for limits with which transfers cannot work.
    """
    found = _RATE.fullmatch(text.strip())
    number = float(found[1]) if found else 0.0
    if found is None or (found[2] is None and number):
        raise ConfigError(
            f"{text[:64]!r} is not a rate",
            hint="write it like 20MB/s or 500 KiB/s (bytes, not bits); 0 is no limit",
        )
    prefix = (found[3] or "").upper()
    base = 1024 if prefix.endswith("I") else 1000
    rate = int(number * base ** _THOUSANDS.index(prefix[:1]))
    if number and not RATE_LIMIT_MIN <= rate <= RATE_LIMIT_MAX:
        raise ConfigError(
            f"a limit of {text.strip()[:64]} is not possible",
            hint=f"the lowest is {RATE_LIMIT_MIN // 1024} KiB/s: with less, nodes that share it"
            " take each other for dead; 0 is no limit",
        )
    return rate or None


def grants_path(config_dir: str) -> str:
    """Where the grants of a configuration are."""
    return f"{config_dir}/state/grants.db"


class NodeConfig(NamedTuple):
    """Everything that decides what a node does; paths are absolute."""

    config_dir: str
    storage_dir: str
    label: str = ""
    listen: tuple[str, int] = ("0.0.0.0", CONTROL_PORT)  # noqa: S104 - members come from other machines
    http: tuple[str, int] | None = ("127.0.0.1", HTTP_PORT)
    # Channel names or paths of channel files to join, besides those joined earlier.
    channels: tuple[str, ...] = ()
    # Multiaddrs of members and introducers (each with /p2p/ID), or HOST:PORT.
    bootstrap: tuple[str, ...] = ()
    # HOST:PORT or multiaddrs under which others reach us, when that is not what we listen on.
    advertise: tuple[str, ...] = ()
    # Where chunks are asked for; None: nowhere, this node dials the others.
    bulk: tuple[str, int] | None = ("0.0.0.0", BULK_PORT)  # noqa: S104 - as above
    # Be a bootstrap node: let nodes of any channel find each other through this one.
    introduce: bool = False
    # Look for members on the local network, and be found there.
    mdns: bool = True
    # Unix group whose members may use the Unix door as guests.
    auth_group: str | None = None
    # Bytes of chunks a second, to all members together and from all; None: no limit.
    max_upload: int | None = None
    max_download: int | None = None

    @property
    def index_path(self) -> str:
        return f"{self.config_dir}/state/index.db"

    @property
    def grants_path(self) -> str:
        return grants_path(self.config_dir)

    @property
    def places_path(self) -> str:
        return f"{self.config_dir}/state/places.json"

    @property
    def peers_path(self) -> str:
        return f"{self.config_dir}/state/peers.json"

    def environment(self) -> Mapping[str, str]:
        """The process environment: where a channel's secret may be."""
        return os.environ

    def check(self) -> None:
        """Raises ConfigError for what cannot work, before anything is made or opened."""
        for what, path in (("config", self.config_dir), ("storage", self.storage_dir)):
            if not path.startswith("/"):
                raise ConfigError(f"the {what} directory {path!r} is not an absolute path")
        given = (("--listen", self.listen), ("--bulk-listen", self.bulk), ("--http", self.http))
        for what, address in given:
            if address is not None and not 0 <= address[1] <= 65_535:
                raise ConfigError(f"{what}: {address[1]} is not a port")
