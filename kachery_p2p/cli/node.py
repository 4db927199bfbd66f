"""Commands about the node: start, stop, status, node-id, version."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import TYPE_CHECKING, Any

import click

from kachery_p2p.cli import answers
from kachery_p2p.cli.outcome import answer
from kachery_p2p.client import settings
from kachery_p2p.errors import ConfigError, DaemonDownError, DaemonTimeoutError
from kachery_p2p.limits import STOP_S_MAX

if TYPE_CHECKING:
    from kachery_p2p.client.daemon import Daemon

CONFIG_OPTION = click.option(
    "--config-dir", type=click.Path(), metavar="DIR", help="Instead of KACHERY_P2P_CONFIG_DIR."
)
# How often a waiting command looks again.
LOOK_S = 0.05


class Address(click.ParamType[object]):
    """HOST:PORT, with an IPv6 host in brackets; for some also `off`."""

    name = "address"

    def __init__(self, *, may_be_off: bool = False) -> None:
        self._may_be_off = may_be_off

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        if not isinstance(value, str) or (self._may_be_off and value == "off"):
            return value
        host, colon, port = value.rpartition(":")
        host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not (colon and host and port.isascii() and port.isdecimal() and int(port[:9]) < 65536):
            self.fail(f"{value!r} is not HOST:PORT", param, ctx)
        return host, int(port)


class Rate(click.ParamType[int | None]):
    """Bytes a second, as in 20MB/s; 0 is no limit. ConfigError for what is none."""

    name = "rate"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        from kachery_p2p.node.config import parse_rate

        return parse_rate(value) if isinstance(value, str) else None


def _host_port(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@click.command()
@click.option(
    "--channel",
    "channels",
    multiple=True,
    metavar="NAME|FILE|INVITE",
    help="Be in this channel; repeatable.",
)
@click.option("--label", help="What others see as this node's name (default: the host's name).")
@CONFIG_OPTION
@click.option(
    "--storage-dir", type=click.Path(), metavar="DIR", help="Instead of KACHERY_STORAGE_DIR."
)
@click.option(
    "--listen",
    type=Address(),
    default="0.0.0.0:20432",
    show_default=True,
    metavar="HOST:PORT",
    help="Where other nodes reach this one; port 0 picks a free one.",
)
@click.option(
    "--bulk-listen",
    "bulk",
    type=Address(may_be_off=True),
    metavar="HOST:PORT|off",
    help="Where they fetch chunks (default: the port after that of --listen).",
)
@click.option(
    "--http",
    type=Address(may_be_off=True),
    default="127.0.0.1:20431",
    show_default=True,
    metavar="HOST:PORT|off",
    help="Where clients reach it over HTTP, with a token.",
)
@click.option(
    "--bootstrap",
    multiple=True,
    metavar="ADDRESS",
    help="A member or bootstrap node: multiaddr, HOST:PORT, or @FILE with one on each line.",
)
@click.option("--advertise", multiple=True, metavar="HOST:PORT", help="Where others reach us.")
@click.option(
    "--introduce", is_flag=True, help="Let nodes of any channel find each other through this one."
)
@click.option("--no-mdns", is_flag=True, help="Tell the local network nothing, and ask nothing.")
@click.option(
    "--auth-group", metavar="GROUP", help="Let other users of this Unix group use the node."
)
@click.option(
    "--max-upload",
    type=Rate(),
    metavar="RATE",
    help="Send no more than this to all members together, like 20MB/s or 500 KiB/s; 0: no limit.",
)
@click.option("--max-download", type=Rate(), metavar="RATE", help="Receive no more than this.")
@click.option("--background", is_flag=True, help="Return when the node is ready.")
def start(
    channels: tuple[str, ...],
    label: str | None,
    config_dir: str | None,
    storage_dir: str | None,
    listen: tuple[str, int],
    bulk: tuple[str, int] | str | None,
    http: tuple[str, int] | str,
    bootstrap: tuple[str, ...],
    advertise: tuple[str, ...],
    introduce: bool,
    no_mdns: bool,
    auth_group: str | None,
    max_upload: int | None,
    max_download: int | None,
    background: bool,
) -> None:
    """Start the node, in this terminal or in the background."""
    from kachery_p2p.node.config import NodeConfig

    config = NodeConfig(
        config_dir=os.path.abspath(config_dir or settings.config_dir()),
        storage_dir=os.path.abspath(storage_dir or settings.node_storage_dir()),
        label=socket.gethostname() if label is None else label,
        listen=listen,
        bulk=_next_port(listen) if bulk is None else None if isinstance(bulk, str) else bulk,
        http=None if isinstance(http, str) else http,
        channels=channels,
        bootstrap=_bootstrap(bootstrap),
        advertise=advertise,
        introduce=introduce,
        mdns=not no_mdns,
        auth_group=auth_group,
        max_upload=max_upload,
        max_download=max_download,
    )
    config.check()
    if background:
        from kachery_p2p.cli.background import start_in_background

        start_in_background(config)
    else:
        from kachery_p2p.node.logs import log_to_stderr
        from kachery_p2p.node.node import run

        log_to_stderr()
        run(config, announce=answer)


def _next_port(address: tuple[str, int]) -> tuple[str, int]:
    """The port behind this one; a free one if this is any free one."""
    host, port = address
    return host, port + 1 if 0 < port < 65_535 else 0


def _bootstrap(given: tuple[str, ...]) -> tuple[str, ...]:
    """The addresses, with each @FILE replaced by what it holds."""
    found: list[str] = []
    for text in given:
        if not text.startswith("@"):
            found.append(text)
            continue
        try:
            with open(text[1:], encoding="utf-8") as file:
                lines = [line.partition("#")[0].strip() for line in file.read(1 << 16).splitlines()]
        except (OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise ConfigError(f"the bootstrap file {text[1:]} cannot be read: {why}") from error
        found.extend(line for line in lines if line)
    return tuple(found)


@click.command()
@CONFIG_OPTION
def stop(config_dir: str | None) -> None:
    """Stop the node: downloads under way are kept for the next start."""
    from kachery_p2p.client.daemon import unix_daemon
    from kachery_p2p.node.lock import LOCK_NAME

    directory = os.path.abspath(config_dir or settings.config_dir())
    lock = os.path.join(directory, LOCK_NAME)
    was_running = not _wait_for_lock(lock, 0)
    daemon = unix_daemon(directory)
    try:
        daemon.call("stop", {})
    except DaemonDownError:
        # It may be quicker to go than to answer.
        if not was_running:
            raise
    finally:
        daemon.close()
    if not _wait_for_lock(lock, 2 * STOP_S_MAX):
        raise DaemonTimeoutError(
            "the daemon has not stopped yet", hint="repeat this, or end it by its process id"
        )


def _wait_for_lock(path: str, seconds: float) -> bool:
    """True when nobody holds the daemon's lock: only then can the next one start."""
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(LOOK_S)
    finally:
        os.close(descriptor)


@click.command()
@CONFIG_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Wait until the node runs and has tried to reach the members of its channels.",
)
def status(config_dir: str | None, as_json: bool, wait: float | None) -> None:
    """Print how the node is doing, and what would mend it."""
    from kachery_p2p.client.daemon import connect, unix_daemon

    daemon: Daemon = unix_daemon(os.path.abspath(config_dir)) if config_dir else connect()
    told = _wait_until_ready(daemon, wait) if wait is not None else daemon.call("status", {})[0]
    if as_json:
        answer(json.dumps(told))
        return
    from kachery_p2p.cli.report import report

    for line in report(told):
        answer(line)


def _wait_until_ready(daemon: Daemon, seconds: float) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    why = "no daemon answered"
    while True:
        left = deadline - time.monotonic()
        try:
            told, _ = daemon.call("status", {}, timeout_s=max(left, LOOK_S))
            if is_ready(told):
                return told
            why = "the daemon runs, but has not tried all its channels yet"
        except (DaemonDownError, DaemonTimeoutError) as error:
            why = str(error)
        if left <= 0:
            raise DaemonDownError(
                f"{why} (waited {seconds:g} s)", hint="start it with `kachery-p2p start`"
            )
        time.sleep(min(LOOK_S, max(left, 0)))


def is_ready(told: dict[str, Any]) -> bool:
    """The node has addresses, and for each channel its known members have been dialled once."""
    tried = all(channel.get("tried") is not False for channel in told["channels"])
    return bool(told["addresses"]) and tried


@click.command("node-id")
def node_id() -> None:
    """Print this node's id."""
    answers.node_id()


@click.command()
def version() -> None:
    """Print the version of this package."""
    answers.version()
