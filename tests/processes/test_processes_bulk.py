"""The bulk plane between real node processes: used, gone around, and judged at every chunk."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.processes.conftest import Lab, NodeProcess

pytestmark = pytest.mark.processes

MIB = 1 << 20


def loaded(node: NodeProcess, uri: str, name: str) -> bytes:
    done = node.cli("load", uri, "--dest", str(node.directory / name))
    assert done.returncode == 0, done.stderr
    return (node.directory / name).read_bytes()


def connections_to(port: int) -> int:
    """How many TCP connections to that port of this computer are established."""
    with open("/proc/net/tcp", encoding="ascii") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return sum(int(row[2].split(":")[1], 16) == port and row[3] == "01" for row in rows)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_chunks_travel_on_a_connection_of_their_own(lab: Lab) -> None:
    port = free_port()
    alice = lab.node("alice").start("--bulk-listen", f"127.0.0.1:{port}")
    bob = lab.node("bob").start("--bootstrap", alice.address)
    path = lab.file("x", 5 * MIB + 3)
    uri = alice.cli("store", str(path)).stdout.strip()
    assert loaded(bob, uri, "x") == path.read_bytes()
    assert connections_to(port) == 1
    assert bob.call("status")["problems"] == []
    # It is kept for the next one.
    other = lab.file("y", MIB)
    uri = alice.cli("store", str(other)).stdout.strip()
    assert loaded(bob, uri, "y") == other.read_bytes()
    assert connections_to(port) == 1


def test_a_provider_that_cannot_be_dialled_dials_back(lab: Lab) -> None:
    port = free_port()
    alice = lab.node("alice").start("--bulk-listen", "off")
    bob = lab.node("bob").start("--bootstrap", alice.address, "--bulk-listen", f"127.0.0.1:{port}")
    path = lab.file("x", 3 * MIB)
    uri = alice.cli("store", str(path)).stdout.strip()
    assert loaded(bob, uri, "x") == path.read_bytes()
    assert connections_to(port) == 1
    assert bob.call("status")["problems"] == []


def test_when_neither_can_dial_the_other_data_streams_do_it_and_status_says_so(lab: Lab) -> None:
    alice = lab.node("alice").start("--bulk-listen", "off")
    bob = lab.node("bob").start("--bootstrap", alice.address, "--bulk-listen", "off")
    path = lab.file("x", 3 * MIB)
    uri = alice.cli("store", str(path)).stdout.strip()
    assert loaded(bob, uri, "x") == path.read_bytes()
    problems = bob.call("status")["problems"]
    assert any("slower control connection" in problem for problem in problems), problems


def test_a_taken_bulk_port_is_said_with_what_mends_it(lab: Lab) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = lab.node("alice").cli(
            *("start", "--channel", "lab", "--listen", "127.0.0.1:0", "--http", "off"),
            *("--no-mdns", "--bulk-listen", f"127.0.0.1:{port}"),
        )
    assert done.returncode == 9
    assert f"port {port} on 127.0.0.1 is taken" in done.stderr
    assert "hint:" in done.stderr
