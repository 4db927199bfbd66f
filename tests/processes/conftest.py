"""A laboratory of real node processes, which ends with the test, however the test ends."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.channels.channel import generate_secret
from kachery_p2p.client.daemon import unix_daemon
from kachery_p2p.identity.keys import NodeId

READY_S = 30.0


class NodeProcess:
    """One `kachery-p2p start` in the foreground, and the environment its clients have."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self.directory = directory
        self.config_dir = directory / "config"
        self.storage_dir = directory / "store"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("KACHERY_", "PYTHON"))},
            "KACHERY_P2P_CONFIG_DIR": str(self.config_dir),
            "KACHERY_STORAGE_DIR": str(self.storage_dir),
            **environment,
        }
        self.lines: list[str] = []
        self.process: subprocess.Popen[str] | None = None
        self._ready = threading.Event()

    def start(self, *options: str, channel: str | None = "lab") -> NodeProcess:
        """Start it on free ports and wait until it is on the network."""
        self.launch(*options, channel=channel)
        self.wait_until_ready()
        return self

    def launch(self, *options: str, channel: str | None = "lab", under: Sequence[str] = ()) -> None:
        """Start it, `under` a program like strace if need be, and do not wait."""
        command = [
            *under,
            sys.executable,
            "-m",
            "kachery_p2p",
            "start",
            "--label",
            self.directory.name,
        ]
        command += ["--channel", channel] if channel else []
        listen = [] if "--listen" in options else ["--listen", "127.0.0.1:0"]
        http = [] if "--http" in options else ["--http", "off"]
        # Nobody in the local network is to hear of tests, nor they of anybody.
        local = [] if "--mdns" in options else ["--no-mdns"]
        options = tuple(option for option in options if option != "--mdns")
        self.lines, self._ready = [], threading.Event()
        with (self.directory / "stderr").open("a") as errors:
            self.process = subprocess.Popen(
                [*command, *listen, *http, *local, *options],
                env=self.environment,
                cwd=self.directory,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        threading.Thread(target=self._read, args=(self.process, self._ready), daemon=True).start()

    def _read(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.lines.append(line.rstrip("\n"))
                if line.startswith("ready"):
                    ready.set()
        ready.set()

    def wait_until_ready(self) -> None:
        assert self._ready.wait(READY_S), f"not ready in {READY_S} s: {self.lines}, {self.errors()}"
        assert self.lines, self.errors()
        assert self.lines[-1].startswith("ready"), f"{self.lines} {self.errors()}"

    def errors(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.directory / "stderr").read_text()
        return ""

    @property
    def address(self) -> str:
        return next(line.split()[1] for line in self.lines if line.startswith("address"))

    @property
    def node_id(self) -> NodeId:
        return NodeId(next(line.split()[1] for line in self.lines if line.startswith("node")))

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self, how: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(30)

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def call(self, operation: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One operation at the node's Unix door."""
        daemon = unix_daemon(str(self.config_dir))
        try:
            result, descriptor = daemon.call(operation, body or {})
        finally:
            daemon.close()
        if descriptor is not None:
            os.close(descriptor)
        return result

    @property
    def command(self) -> list[str]:
        """The program, for who starts it in another way than `cli`."""
        return [sys.executable, "-m", "kachery_p2p"]

    def cli(self, *arguments: str, **changes: Any) -> subprocess.CompletedProcess[str]:
        """Run a command as this node's user would."""
        return subprocess.run(
            [*self.command, *arguments],
            env=self.environment,
            cwd=self.directory,
            capture_output=True,
            text=True,
            **{"timeout": 90, **changes},
        )

    def python(self, code: str, **changes: Any) -> subprocess.CompletedProcess[str]:
        """Run Python code that uses the client API as this node's user would."""
        return subprocess.run(
            [sys.executable, "-c", code],
            env=self.environment,
            capture_output=True,
            text=True,
            **{"timeout": 90, **changes},
        )

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.thaw()
            self.process.kill()
            self.process.wait(10)


class Lab:
    """Nodes that share one channel secret, unless told otherwise."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.secret = generate_secret(secrets.token_bytes(20))
        self.nodes: list[NodeProcess] = []

    def node(self, name: str, *, secret: str | None = None) -> NodeProcess:
        """A node that is not started yet. With the secret "" it knows none."""
        directory = self.directory / name
        directory.mkdir()
        given = self.secret if secret is None else secret
        node = NodeProcess(directory, {"KACHERY_CHANNEL_SECRET": given} if given else {})
        self.nodes.append(node)
        return node

    def pair(self) -> tuple[NodeProcess, NodeProcess]:
        """Two running members who know each other."""
        alice = self.node("alice").start()
        bob = self.node("bob").start("--bootstrap", alice.address)
        return alice, bob

    def file(self, name: str, size: int) -> Path:
        """A file of random bytes."""
        path = self.directory / name
        with path.open("wb") as file:
            for _ in range(size >> 20):
                file.write(os.urandom(1 << 20))
            file.write(os.urandom(size & ((1 << 20) - 1)))
        return path

    def end(self) -> None:
        for node in self.nodes:
            node.end()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    laboratory = Lab(tmp_path)
    try:
        yield laboratory
    finally:
        laboratory.end()


@pytest.fixture
def said() -> Callable[[subprocess.CompletedProcess[str]], tuple[int, list[str]]]:
    """Exit code and the lines of stderr of a command."""
    return lambda done: (done.returncode, done.stderr.splitlines())
