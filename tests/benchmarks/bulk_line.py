"""A big file over a long line: two nodes beside one plain TCP socket, over the same line."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import line
from load import wait_for_peer
from node import new_secret
from processes import CLIENT_S_MAX, HERE, NodeProcess, child, ended
from settings import MIB, Settings, settle
from table import Row, at_least, figure, sample

ONE_WAY_S = 0.05
TCP_PART_MIN = 0.8
ROUNDS = 3
_PIECE_BYTES = MIB


def measure_line(settings: Settings) -> list[Row]:
    """How much of the speed of a TCP socket is left for us where a round trip takes 100 ms."""
    size = settings.big_bytes // 8
    what = f"two nodes: {figure(size / MIB)} MiB over a line of {2e3 * ONE_WAY_S:g} ms"
    why_not = line.unavailable()
    if why_not:
        return [Row(what, sample([], ""), why_not)]
    plain, ours = [], []
    with line.line(ONE_WAY_S, 0.0) as namespaces:
        alice, bob = _nodes(settings, namespaces)
        try:
            alice.start()
            bob.start("--bootstrap", alice.address)
            wait_for_peer(bob)
            for number in settings.times(ROUNDS):
                settle()
                plain.append(_plain_s(namespaces, size))
                settle()
                ours.append(_load_s(settings.directory / f"line-{number}", alice, bob, size))
        finally:
            bob.stop()
            alice.stop()
    return _rows(what, size / MIB, plain, ours)


def _nodes(settings: Settings, namespaces: tuple[str, str]) -> tuple[NodeProcess, NodeProcess]:
    room, secret = settings.room("bulk-line"), new_secret()
    alice, bob = NodeProcess(room / "alice", secret), NodeProcess(room / "bob", secret)
    for node, namespace, place in zip((alice, bob), namespaces, line.PLACES, strict=True):
        node.under, node.host = line.within(namespace), place
    return alice, bob


def _load_s(source: Path, alice: NodeProcess, bob: NodeProcess, size: int) -> float:
    """Seconds to load a new file, durable."""
    source.write_bytes(os.urandom(size))
    uri = child(alice.environment, "clients.store_file", str(source))["uri"]
    source.unlink()
    done = child(bob.environment, "clients.load_files", [uri])
    (path,) = done["paths"]
    Path(path).unlink()
    return float(done["seconds"])


def _plain_s(namespaces: tuple[str, str], size: int) -> float:
    """Seconds to receive as much on one TCP socket, to memory."""
    giver, taker = (line.within(namespace) for namespace in namespaces)
    with ended(_python(giver, "bulk_line.send_zeros", line.PLACES[0], size)) as sender:
        assert sender.stdout is not None
        port = sender.stdout.readline().strip()
        with ended(_python(taker, "bulk_line.receive", line.PLACES[0], port)) as receiver:
            said, _ = receiver.communicate(timeout=CLIENT_S_MAX)
    return float(said)


def _python(under: tuple[str, ...], function: str, *arguments: Any) -> subprocess.Popen[str]:
    module, _, name = function.partition(".")
    values = ", ".join(repr(value) for value in arguments)
    code = f"import {module}; {module}.{name}({values})"
    command = [*under, sys.executable, "-c", code]
    return subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, text=True)


def send_zeros(host: str, size: int) -> None:
    """Print a port, and send so many bytes to whoever connects there."""
    piece = bytes(_PIECE_BYTES)
    with socket.create_server((host, 0)) as server:
        print(server.getsockname()[1], flush=True)
        connection, _ = server.accept()
    with connection:
        for at in range(0, size, _PIECE_BYTES):
            connection.sendall(piece[: size - at])


def receive(host: str, port: str) -> None:
    """Receive until the end, and print how long it took, without connecting."""
    piece = bytearray(_PIECE_BYTES)
    with socket.create_connection((host, int(port))) as connection:
        began = time.perf_counter()
        while connection.recv_into(piece):
            pass
    print(time.perf_counter() - began)


def _rows(what: str, mib: float, plain: list[float], ours: list[float]) -> list[Row]:
    part = statistics.median(p / o for p, o in zip(plain, ours, strict=True))
    return [
        Row(
            "the same over one plain TCP socket, to memory",
            sample([mib / s for s in plain], "MiB/s"),
        ),
        Row(
            what,
            sample([mib / s for s in ours], "MiB/s"),
            f"{figure(part)}x one TCP socket",
            budget=at_least(TCP_PART_MIN, part, "x one TCP socket"),
        ),
    ]
