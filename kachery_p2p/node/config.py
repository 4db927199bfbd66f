"""What a node is told when it starts. The only reader of the environment in the daemon."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from kachery_p2p.errors import ConfigError

CONTROL_PORT = 20432
BULK_PORT = 20433
HTTP_PORT = 20431


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
    # Multiaddrs of other members (each with /p2p/ID).
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

    @property
    def index_path(self) -> str:
        return f"{self.config_dir}/state/index.db"

    @property
    def grants_path(self) -> str:
        return grants_path(self.config_dir)

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
