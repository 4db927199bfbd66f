"""Nodes that have little memory, page cache included: a file that is larger goes through.

In a control group the pages of files that a node reads and writes count as its own. Needs root and
a memory controller, of either version of control groups.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.processes.conftest import Lab, NodeProcess

pytestmark = pytest.mark.processes

MIB = 1 << 20
ROOT = Path("/sys/fs/cgroup")
# Two copies of the large file, and what the store keeps free.
FREE_BYTES_MIN = 10 << 30
# What a node may need of its own, whatever goes through it (150 MB).
ANONYMOUS_BYTES_MAX = 150_000_000
EMPTY_S_MAX = 10.0


class MemoryGroup:
    """A control group whose processes have so much memory together."""

    def __init__(self, parent: Path, name: str, limit: int) -> None:
        self.directory = parent / name
        self.directory.mkdir()
        self._is_v2 = (self.directory / "memory.max").exists()
        bound = "memory.max" if self._is_v2 else "memory.limit_in_bytes"
        (self.directory / bound).write_text(str(limit))
        # Memory that is swapped out would not be bounded by it.
        with contextlib.suppress(OSError):
            (self.directory / "memory.swap.max").write_text("0")

    @property
    def under(self) -> tuple[str, ...]:
        """What to put in front of a command so that it runs in the group."""
        return ("sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(self.directory))

    @property
    def used_max(self) -> int:
        peak = "memory.peak" if self._is_v2 else "memory.max_usage_in_bytes"
        return int((self.directory / peak).read_text())

    @property
    def kills(self) -> int:
        """How often the kernel has killed in it for want of memory."""
        events = "memory.events" if self._is_v2 else "memory.oom_control"
        lines = (self.directory / events).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    def remove(self) -> None:
        deadline = time.monotonic() + EMPTY_S_MAX
        while True:
            try:
                self.directory.rmdir()
                return
            except OSError:  # a process that was killed is still leaving
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


def parent_group() -> Path | None:
    """Where groups with a bound on memory can be made; None if nowhere."""
    for parent in (ROOT, ROOT / "memory"):
        probe = parent / f"kachery-p2p-test-{os.getpid()}"
        with contextlib.suppress(OSError):
            probe.mkdir()
            found = any((probe / name).exists() for name in ("memory.max", "memory.limit_in_bytes"))
            probe.rmdir()
            if found:
                return parent
    return None


class Cramped:
    """Alice and Bob, each in a group of so much memory, who know each other."""

    def __init__(self, lab: Lab, groups: list[MemoryGroup]) -> None:
        self.groups = groups
        self.alice, self.bob = (lab.node(name) for name in ("alice", "bob"))
        self.alice.launch(under=groups[0].under)
        self.alice.wait_until_ready()
        self.bob.launch("--bootstrap", self.alice.address, under=groups[1].under)
        self.bob.wait_until_ready()

    def check(self) -> None:
        """Both live, and need of their own what a node may need."""
        assert [group.kills for group in self.groups] == [0, 0]
        for node in (self.alice, self.bob):
            assert anonymous_bytes(node) <= ANONYMOUS_BYTES_MAX
            assert node.call("status")["problems"] == []


def anonymous_bytes(node: NodeProcess) -> int:
    """Memory of the node that is no file's, now."""
    for line in Path(f"/proc/{node.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the node is no more")


def blob_of(node: NodeProcess, uri: str) -> Path:
    return next(p for p in (node.storage_dir / "sha1").rglob("*") if p.is_file() and p.name in uri)


def forget_pages(path: Path) -> None:
    """Its pages count for whoever reads them next: who wrote them is in no group."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def cramped(lab: Lab, limit: int) -> Iterator[Cramped]:
    parent = parent_group()
    if parent is None:
        pytest.skip("no control group with a bound on memory can be made here (needs root)")
    groups: list[MemoryGroup] = []
    try:
        for name in ("alice", "bob"):
            groups.append(MemoryGroup(parent, f"kachery-p2p-{os.getpid()}-{name}", limit))
        yield Cramped(lab, groups)
    finally:
        lab.end()
        for group in groups:
            group.remove()


def bring(lab: Lab, size: int, limit: int) -> None:
    """A file of `size` bytes from one node to another, each in `limit` bytes of memory."""
    with cramped(lab, limit) as nodes:
        source = lab.file("source", size)
        uri = nodes.alice.cli("store", str(source), timeout=600).stdout.strip()
        source.unlink()
        forget_pages(blob_of(nodes.alice, uri))
        done = nodes.bob.cli("load", uri, timeout=1800)
        assert done.returncode == 0, done.stderr
        path = Path(done.stdout.strip())
        # Its name is the SHA-1 that the node computed, and that the store of the giver has.
        assert path.name in uri
        assert path.stat().st_size == size
        # Larger than the memory: all of that was in use, or this test has tested nothing.
        assert [group.used_max > limit * 9 // 10 for group in nodes.groups] == [True, True]
        nodes.check()


def test_a_file_goes_through_nodes_that_have_a_fifth_of_its_memory(lab: Lab) -> None:
    bring(lab, 512 * MIB, 96 * MIB)


@pytest.mark.soak
def test_four_gibibytes_go_through_nodes_with_256_mib(lab: Lab) -> None:
    if shutil.disk_usage(lab.directory).free < FREE_BYTES_MIN:
        pytest.skip("less than 10 GiB are free")
    bring(lab, 4096 * MIB, 256 * MIB)
