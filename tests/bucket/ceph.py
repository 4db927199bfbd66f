"""A real S3 server for tests: Ceph's radosgw on one monitor and one store in memory.

Everything listens on loopback and lies in one directory; three processes, ended by their ids.
Keeping what Ceph would do for data that matters (replicas, authentication between its parts,
slow proposals of its monitor) makes it start in two seconds.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("radosgw", "radosgw-admin", "ceph", "ceph-mon", "ceph-osd", "monmaptool")
ACCESS_KEY = "KACHERYTESTKEY"
SECRET_KEY = "kacherytestsecret"
START_S = 60.0
# What objects may take in all.
MEMORY_BYTES = 4 << 30

_CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{monitor_port}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
paxos propose interval = 0.02
paxos min wait = 0.01
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default autoscale_mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = {memory_bytes}
mon allow pool size one = true
mon data avail crit = 1
mon data = {top}/mon
osd data = {top}/osd
rgw data = {top}/rgw
rgw run sync thread = false
rgw gc obj min wait = 1
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
run dir = {top}/run
pid file = {top}/run/$name.pid
admin socket = {top}/run/$name.$pid.asok
log file = {top}/log/$name.log
"""


def missing_programs() -> list[str]:
    """What of Ceph is not installed here."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


class Ceph:
    """One running server with one user and no bucket yet."""

    def __init__(self, top: Path, memory_bytes: int = MEMORY_BYTES) -> None:
        self.top = top
        self.port, monitor_port = free_ports(2)
        self.endpoint = f"http://127.0.0.1:{self.port}"
        for name in ("mon", "osd", "run", "rgw", "log"):
            (top / name).mkdir(parents=True)
        self.fsid = str(uuid.uuid4())
        self.configuration = top / "ceph.conf"
        self.configuration.write_text(
            _CONFIGURATION.format(
                fsid=self.fsid,
                monitor_port=monitor_port,
                port=self.port,
                top=top,
                memory_bytes=memory_bytes,
            )
        )
        self._monitor = f"[v2:127.0.0.1:{monitor_port}]"

    def start(self) -> None:
        osd, monitors = str(uuid.uuid4()), str(self.top / "monitors")
        run("monmaptool", "--create", "--clobber", "--fsid", self.fsid)(
            "--addv", "a", self._monitor, monitors
        )
        self._ceph("ceph-mon", "--mkfs", "-i", "a", "--monmap", monitors)
        self._ceph("ceph-mon", "-i", "a")
        self._ceph("ceph", "osd", "new", osd)
        self._ceph("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._ceph("ceph-osd", "-i", "0")
        self._ceph("radosgw", "-n", "client.admin")
        self._wait_for_answer()
        self._ceph(
            *("radosgw-admin", "user", "create", "--uid=lab", "--display-name=lab"),
            *(f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}"),
        )

    def make_bucket(self, name: str) -> None:
        """An empty bucket. The library that is tested cannot make one, curl can sign."""
        run("curl", "-sSf", "--aws-sigv4", "aws:amz:us-east-1:s3")(
            *("--user", f"{ACCESS_KEY}:{SECRET_KEY}", "-X", "PUT"),
            *("-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD", f"{self.endpoint}/{name}"),
        )

    def give_back(self) -> None:
        """Free the memory of objects that were removed, which the server does at its leisure."""
        time.sleep(1.1)
        self._ceph("radosgw-admin", "gc", "process", "--include-all")

    def pids(self) -> list[int]:
        found = [path.read_text().strip() for path in (self.top / "run").glob("*.pid")]
        return [int(text) for text in found if text]

    def freeze(self) -> None:
        """The server answers nothing any more, and its connections stay."""
        os.kill(int((self.top / "run/client.admin.pid").read_text()), signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(int((self.top / "run/client.admin.pid").read_text()), signal.SIGCONT)

    def stop(self) -> None:
        """At once: nobody wants what is in its memory."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _ceph(self, program: str, *arguments: str) -> None:
        run(program, "-c", str(self.configuration))(*arguments)

    def _wait_for_answer(self) -> None:
        until = time.monotonic() + START_S
        while True:
            try:
                with urllib.request.urlopen(self.endpoint, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                assert time.monotonic() < until, "radosgw does not answer"
                time.sleep(0.02)


class run:  # noqa: N801 - reads as what it does
    """`run(program, option)(more, options)`: run it to its end, which must be a good one."""

    def __init__(self, *command: str) -> None:
        self._command = command

    def __call__(self, *arguments: str) -> None:
        done = subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, timeout=START_S
        )
        assert done.returncode == 0, (self._command, done.stdout, done.stderr)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def running_ceph(top: Path, memory_bytes: int = MEMORY_BYTES) -> Iterator[Ceph]:
    ceph = Ceph(top, memory_bytes)
    try:
        ceph.start()
        yield ceph
    finally:
        ceph.stop()
