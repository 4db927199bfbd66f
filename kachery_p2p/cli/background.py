"""`start --background`: the same command in a process of its own, watched until it is ready."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from kachery_p2p.channels.files import resolve
from kachery_p2p.channels.invites import is_invite
from kachery_p2p.cli.outcome import answer
from kachery_p2p.cli.report import started
from kachery_p2p.client.daemon import UnixDaemon
from kachery_p2p.errors import (
    ConfigError,
    DaemonDownError,
    DaemonRunningError,
    DaemonTimeoutError,
)

if TYPE_CHECKING:
    from kachery_p2p.node.config import NodeConfig

READY_S_MAX = 20.0
LOOK_S = 0.05
# Of a daemon that died, this much of what it wrote is shown.
LOG_TAIL_BYTES = 1 << 16


def start_in_background(config: NodeConfig) -> None:
    """Print what `start` prints, when the node is ready; if it dies, its errors and exit code."""
    daemon = UnixDaemon(config.config_dir)
    if _status(daemon) is not None:
        raise DaemonRunningError(
            f"a daemon is already running for the configuration {config.config_dir}",
            hint="stop it with `kachery-p2p stop`, or use another --config-dir",
        )
    _remember_invites(config)
    log_path, log = _open_log(config.config_dir)
    written_before = os.fstat(log).st_size
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", "kachery_p2p", *arguments(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    finally:
        os.close(log)
    told = _wait_for(child, daemon, log_path)
    if told is None:
        _show_errors(log_path, written_before)
        raise click.exceptions.Exit(child.returncode if child.returncode > 0 else 1)
    for line in started(told):
        answer(line)


def _remember_invites(config: NodeConfig) -> None:
    for text in config.channels:
        if is_invite(text):
            resolve(text, config.config_dir, os.getcwd(), config.environment())


def arguments(config: NodeConfig) -> Iterator[str]:
    """The command line that starts a node with this configuration in the foreground."""
    yield "start"
    yield f"--config-dir={config.config_dir}"
    yield f"--storage-dir={config.storage_dir}"
    yield f"--label={config.label}"
    yield f"--listen={_address(config.listen)}"
    yield f"--bulk-listen={'off' if config.bulk is None else _address(config.bulk)}"
    yield f"--http={'off' if config.http is None else _address(config.http)}"
    # Other users see the command line: an invite is on the disk by now.
    yield from (f"--channel={name}" for name in config.channels if not is_invite(name))
    yield from (f"--bootstrap={address}" for address in config.bootstrap)
    yield from (f"--advertise={address}" for address in config.advertise)
    if config.introduce:
        yield "--introduce"
    if not config.mdns:
        yield "--no-mdns"
    if config.auth_group is not None:
        yield f"--auth-group={config.auth_group}"
    if config.max_upload is not None:
        yield f"--max-upload={config.max_upload}B/s"
    if config.max_download is not None:
        yield f"--max-download={config.max_download}B/s"


def _address(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _open_log(config_dir: str) -> tuple[str, int]:
    directory = os.path.join(config_dir, "log")
    path = os.path.join(directory, "daemon.log")
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return path, os.open(path, flags, 0o600)
    except OSError as error:
        raise ConfigError(f"the log {path} cannot be written: {error.strerror}") from error


def _status(daemon: UnixDaemon) -> dict[str, Any] | None:
    try:
        return daemon.call("status", {})[0]
    except DaemonDownError:
        return None


def _wait_for(
    child: subprocess.Popen[bytes], daemon: UnixDaemon, log_path: str
) -> dict[str, Any] | None:
    """The status of the child once it has addresses; None if it died."""
    deadline = time.monotonic() + READY_S_MAX
    while time.monotonic() < deadline:
        told = _status(daemon)
        if child.poll() is not None:
            return None
        if told is not None and told["addresses"]:
            return told
        time.sleep(LOOK_S)
    raise DaemonTimeoutError(
        f"the daemon runs (process {child.pid}) but is not ready after {READY_S_MAX:.0f} s",
        hint=f"{log_path} may say why; `kachery-p2p stop` stops it",
    )


def _show_errors(log_path: str, start: int) -> None:
    """What the child wrote before it died, which for an error are its two lines."""
    with open(log_path, encoding="utf-8", errors="backslashreplace") as log:
        log.seek(start)
        lines = log.read(LOG_TAIL_BYTES).splitlines()
    spoken = [line for line in lines if line.startswith("kachery-p2p: ")]
    for line in spoken or lines[-10:]:
        print(line, file=sys.stderr)
