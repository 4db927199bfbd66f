"""Nodes on a line that is long and loses packets: slower, but everything arrives.

The line is a program of the benchmarks, between two network namespaces; it needs root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.processes.conftest import Lab

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None or not Path("/dev/net/tun").exists(),
        reason="network namespaces need root, `ip` and /dev/net/tun",
    ),
]

LINE = Path(__file__).parents[1] / "benchmarks" / "line.py"
PLACES = ("192.0.2.1", "192.0.2.2")
ONE_WAY_S = 0.05
LOST_PART = 0.05


@contextlib.contextmanager
def bad_line(seed: int) -> Iterator[tuple[str, str]]:
    """Two namespaces that are such a line apart; gone afterwards."""
    names = f"kpt{os.getpid()}a", f"kpt{os.getpid()}b"
    command = [sys.executable, str(LINE), *names, str(ONE_WAY_S), str(LOST_PART), str(seed)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if process.stdout.readline() != "ready\n":
            pytest.skip(f"no line can be made here: {process.stderr.read()}")
        # Leaving closes its standard input, by which it ends, and waits for it.
        yield names


def bring(lab: Lab, size: int, timeout_s: float) -> None:
    with bad_line(seed=1) as namespaces:
        try:
            alice, bob = lab.node("alice"), lab.node("bob")
            for node, namespace, place in zip((alice, bob), namespaces, PLACES, strict=True):
                known = () if node is alice else ("--bootstrap", alice.address)
                under = ("ip", "netns", "exec", namespace)
                node.launch("--listen", f"{place}:0", *known, under=under)
                node.wait_until_ready()
            source = lab.file("source", size)
            uri = alice.cli("store", str(source)).stdout.strip()
            done = bob.cli("load", uri, "--dest", str(bob.directory / "x"), timeout=timeout_s)
            assert done.returncode == 0, done.stderr
            assert (bob.directory / "x").read_bytes() == source.read_bytes()
            # Not over the control connection, to which nodes fall back where bulk fails.
            assert bob.call("status")["problems"] == []
        finally:
            lab.end()


def test_a_file_arrives_over_a_line_that_loses_packets(lab: Lab) -> None:
    bring(lab, 4 << 20, 90)


@pytest.mark.soak
def test_a_hundred_megabytes_arrive_over_a_line_that_loses_packets(lab: Lab) -> None:
    bring(lab, 100_000_000, 1800)
