"""The processes that are measured: nodes, their clients, and what they are compared with.

Every one runs without this process's PYTHON* and KACHERY_* variables: a Python that may
not write its bytecode compiles it at each start, and that is what would be measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

HERE = Path(__file__).parent
READY_S_MAX = 30.0
STOP_S_MAX = 15.0
CLIENT_S_MAX = 300.0


class Finished(NamedTuple):
    """A process that has ended well: how long it took, what it cost, and what it said."""

    seconds: float
    cpu_s: float
    said: str


class NodeProcess:
    """A node with directories of its own, and the environment that its clients have."""

    def __init__(self, directory: Path, secret: str) -> None:
        directory.mkdir()
        self.directory = directory
        self.config_dir = directory / "config"
        self.storage_dir = directory / "store"
        self.environment = environment(directory, KACHERY_CHANNEL_SECRET=secret)
        # A command that runs it, and where it listens: not so in a network namespace.
        self.under: Sequence[str] = ()
        self.host = "127.0.0.1"
        # Each line that it printed, with the time at which it came.
        self.lines: list[tuple[float, str]] = []
        self.spawned_at = 0.0
        self._process: subprocess.Popen[str] | None = None
        self._ready = threading.Event()

    def spawn(self, *options: str) -> None:
        """Start it on a free port; do not wait."""
        start = ["start", "--channel", "lab", "--label", self.directory.name]
        command = [*self.under, *KACHERY_P2P, *start]
        listen = ["--listen", f"{self.host}:0", "--http", "off", "--no-mdns"]
        self.lines, self._ready = [], threading.Event()
        with (self.directory / "stderr").open("a") as errors:
            self.spawned_at = time.perf_counter()
            self._process = subprocess.Popen(
                [*command, *listen, *options],
                env=self.environment,
                cwd=self.directory,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        threading.Thread(target=self._listen, args=(self._process, self._ready)).start()

    def _listen(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.lines.append((time.perf_counter(), line.rstrip("\n")))
                if line.startswith("ready"):
                    ready.set()
        ready.set()

    def start(self, *options: str) -> NodeProcess:
        """Start it and wait until it says that it is ready."""
        self.spawn(*options)
        self.ready_s()
        return self

    def ready_s(self) -> float:
        """Seconds from its start to the line `ready`, which is waited for."""
        self._ready.wait(READY_S_MAX)
        for at, line in self.lines:
            if line.startswith("ready"):
                return at - self.spawned_at
        raise RuntimeError(f"the node did not start: {(self.directory / 'stderr').read_text()}")

    @property
    def address(self) -> str:
        return next(line.split()[1] for _, line in self.lines if line.startswith("address"))

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def cpu_s(self) -> float:
        """Seconds of processor time that it has used so far."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def peak_mib(self) -> float | None:
        """The most memory that it has had so far, where the system tells it."""
        return peak_mib(self.pid)

    def stop(self) -> None:
        """Stop it, by force if it does not go."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_S_MAX)
        self._process = None


def environment(directory: Path, **more: str) -> dict[str, str]:
    """The environment of a process whose store and configuration lie in `directory`."""
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(("KACHERY_", "PYTHON"))},
        "KACHERY_P2P_CONFIG_DIR": str(directory / "config"),
        "KACHERY_STORAGE_DIR": str(directory / "store"),
        **more,
    }


def _command() -> list[str]:
    """`kachery-p2p` as it is installed beside this Python, or what does the same."""
    installed = Path(sys.executable).with_name("kachery-p2p")
    return [str(installed)] if installed.exists() else [sys.executable, "-m", "kachery_p2p"]


KACHERY_P2P = _command()


def run(command: Sequence[str], env: Mapping[str, str], stdin: int | None = None) -> Finished:
    """Run a command to its end, which has to be a good one."""
    began = time.perf_counter()
    with ended(
        subprocess.Popen(command, env=env, stdin=stdin, stdout=subprocess.PIPE, text=True)
    ) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
    return Finished(seconds, usage.ru_utime + usage.ru_stime, said)


def child(env: Mapping[str, str], function: str, *arguments: Any) -> dict[str, Any]:
    """What a function of `clients` or `bare` answers in a process of its own, and its cost."""
    with _as_input(arguments) as stdin:
        answer: dict[str, Any] = json.loads(run(_child(function), env, stdin).said)
    return answer


@contextlib.contextmanager
def child_running(env: Mapping[str, str], function: str, *arguments: Any) -> Iterator[str]:
    """The first line that such a process prints, while it runs."""
    with (
        _as_input(arguments) as stdin,
        ended(
            subprocess.Popen(
                _child(function), env=env, stdin=stdin, stdout=subprocess.PIPE, text=True
            )
        ) as process,
    ):
        assert process.stdout is not None
        yield process.stdout.readline().strip()


def _child(function: str) -> list[str]:
    return [sys.executable, str(HERE / "child.py"), function]


@contextlib.contextmanager
def _as_input(arguments: Sequence[Any]) -> Iterator[int]:
    """A descriptor to read the arguments from: a thousand texts do not fit a command line."""
    with tempfile.TemporaryFile("w+") as file:
        json.dump(arguments, file)
        file.seek(0)
        yield file.fileno()


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """The process, which is gone in the end, whatever happens."""
    try:
        with process:
            try:
                yield process
            finally:
                if process.returncode is None and process.poll() is None:
                    process.kill()
    finally:
        process.wait(STOP_S_MAX)


def peak_mib(pid: int | str) -> float | None:
    """The most memory that a process has had so far, in MiB, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return None
