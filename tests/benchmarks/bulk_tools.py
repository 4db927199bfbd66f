"""The same file by the tools that people have: cp, curl from nginx over TLS, an rsync daemon.

Each is used if it is installed; nothing is installed here. The servers run as whoever measures,
on free ports of 127.0.0.1, with a configuration of their own, and end with the measurement.
Nobody here hashes what arrives with SHA-1 or BLAKE3, and rsync does not encrypt.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
from bulk_pipes import certificate
from processes import CLIENT_S_MAX, STOP_S_MAX, peak_mib

_START_S_MAX = 5.0
_LOOK_S = 0.01
# Where servers are, for those who are not root: Debian does not have it in their PATH.
_MORE_PLACES = os.pathsep + os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin"))


class Transfer(NamedTuple):
    """One file to another place: seconds, and what it cost both sides, as far as it is known.

    `verified_s` ends when the whole file is written, and verified if it is at all, `durable_s`
    when it is on disk.
    """

    verified_s: float
    durable_s: float
    sender_cpu_s: float = 0.0
    receiver_cpu_s: float = 0.0
    sender_peak_mib: float = 0.0
    receiver_peak_mib: float = 0.0

    @property
    def cpu_s(self) -> float:
        """Processor seconds of both sides."""
        return self.sender_cpu_s + self.receiver_cpu_s


class Tool:
    """A way to get the file `source` to `target`. `why_not` is empty if it can be used here."""

    programs: Sequence[str] = ()

    def __init__(self, directory: Path, source: Path, target: Path) -> None:
        self.directory = directory
        self.source = source
        self.target = target
        missing = [name for name in self.programs if _which(name) is None]
        self.why_not = f"not installed: {', '.join(missing)}" if missing else ""
        self.port = free_port()

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Its server runs meanwhile, if it has one that can run here."""
        command = [] if self.why_not else self.server_command()
        if not command:
            yield
            return
        self.directory.mkdir()
        self.configure()
        with (self.directory / "output").open("wb") as output:
            server = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        try:
            self._server = psutil.Process(server.pid)
            if not self._answers(server):
                said = (self.directory / "output").read_text(errors="replace").split()
                self.why_not = f"{self.programs[0]} did not start: {' '.join(said)}"
            yield
        finally:
            server.terminate()
            try:
                server.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(STOP_S_MAX)

    def transfer(self) -> Transfer:
        """Bring the file once."""
        before = self._server_cpu_s()
        began = time.perf_counter()
        client = subprocess.Popen(self.client_command(), stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(client.pid, 0)
        client.returncode = os.waitstatus_to_exitcode(status)
        written = time.perf_counter()
        if client.returncode:
            raise RuntimeError(f"{client.args!r} ended with exit code {client.returncode}")
        with self.target.open("rb") as file:
            os.fsync(file.fileno())
        durable = time.perf_counter()
        used = usage.ru_utime + usage.ru_stime
        gave = self._server_cpu_s() - before
        peak = peak_mib(self._server.pid) if self.server_command() else None
        return Transfer(written - began, durable - began, gave, used, peak or 0.0)

    def server_command(self) -> list[str]:
        """How its server is started in the foreground; nothing if it has none."""
        return []

    def client_command(self) -> list[str]:
        """How the file is brought."""
        raise NotImplementedError

    def configure(self) -> None:
        """Write what the server reads when it starts."""

    def _answers(self, server: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + _START_S_MAX
        while server.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return True
            time.sleep(_LOOK_S)
        return False

    def _server_cpu_s(self) -> float:
        """What the server has used, with those of its processes that have ended: all of them."""
        if not self.server_command():
            return 0.0
        deadline = time.monotonic() + CLIENT_S_MAX
        while self._server.children() and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        return float(sum(self._server.cpu_times()[:4]))


class Cp(Tool):
    """`cp`, on one disk."""

    programs = ("cp",)

    def client_command(self) -> list[str]:
        # Without it a file system that can (btrfs, xfs) would copy nothing.
        return [_path("cp"), "--reflink=never", str(self.source), str(self.target)]


class Curl(Tool):
    """curl from nginx, over TLS 1.3 with AES-256-GCM."""

    programs = ("nginx", "curl")

    def configure(self) -> None:
        certificate_path, key_path = certificate(self.directory)
        temporary = "".join(
            f"    {name}_temp_path {self.directory}/{name};\n"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (self.directory / "nginx.conf").write_text(
            f"daemon off;\nmaster_process off;\npid {self.directory}/pid;\nevents {{}}\n"
            f"http {{\n{temporary}"
            "    access_log off;\n"
            "    server {\n"
            f"        listen 127.0.0.1:{self.port} ssl;\n"
            f"        root {self.source.parent};\n"
            f"        ssl_certificate {certificate_path};\n"
            f"        ssl_certificate_key {key_path};\n"
            "        ssl_protocols TLSv1.3;\n"
            "        ssl_conf_command Ciphersuites TLS_AES_256_GCM_SHA384;\n"
            "    }\n}\n"
        )

    def server_command(self) -> list[str]:
        at = str(self.directory)
        return [_path("nginx"), "-p", at, "-e", f"{at}/errors", "-c", f"{at}/nginx.conf"]

    def client_command(self) -> list[str]:
        url = f"https://127.0.0.1:{self.port}/{self.source.name}"
        # -q: without the user's own configuration. -k: the certificate signed itself.
        return [_path("curl"), "-qksSf", "-o", str(self.target), url]


class Rsync(Tool):
    """rsync from its daemon, not encrypted; it compares a checksum of its own at the end."""

    programs = ("rsync",)

    def configure(self) -> None:
        # A daemon of root's would else serve as nobody, who may not read here.
        user = f"uid = {os.getuid()}\ngid = {os.getgid()}\n" if os.getuid() == 0 else ""
        (self.directory / "rsyncd.conf").write_text(
            f"use chroot = no\nlog file = {self.directory}/log\n{user}"
            f"[files]\npath = {self.source.parent}\nread only = yes\n"
        )

    def server_command(self) -> list[str]:
        place = ["--address=127.0.0.1", f"--port={self.port}"]
        return [
            *(_path("rsync"), "--daemon", "--no-detach"),
            *(f"--config={self.directory}/rsyncd.conf", *place),
        ]

    def client_command(self) -> list[str]:
        url = f"rsync://127.0.0.1:{self.port}/files/{self.source.name}"
        return [_path("rsync"), "--whole-file", url, str(self.target)]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _which(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + _MORE_PLACES)


def _path(name: str) -> str:
    path = _which(name)
    assert path is not None, f"{name} is not here"
    return path
