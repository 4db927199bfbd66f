"""How soon a node that was just started is of use, and how fast its door answers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from processes import NodeProcess, child
from settings import MIB, Settings
from table import Row, at_most, median_text, sample

import kachery_p2p as kp
from kachery_p2p.client.daemon import UnixDaemon, hello
from kachery_p2p.errors import DaemonError

DOOR_S_MAX = 0.3
FIRST_BYTE_S_MAX = 1.2
LOOK_S = 0.002
# Over one chunk, so that its URI carries the root, by which a single byte can be verified.
FILE_BYTES = 2 * MIB


def measure(settings: Settings) -> list[Row]:
    """Starts of a node, beside one that runs and has what a client is waiting for."""
    secret = new_secret()
    directory = settings.room("node")
    alice = NodeProcess(directory / "alice", secret)
    bob = NodeProcess(directory / "bob", secret)
    try:
        alice.start()
        door, ready, first, cpu = [], [], [], []
        bob.start("--bootstrap", alice.address).stop()  # makes its keys and joins the channel
        for number in settings.times(5):
            data = os.urandom(FILE_BYTES)
            path = directory / f"file-{number}"
            path.write_bytes(data)
            uri = child(alice.environment, "clients.store_file", str(path))["uri"]
            bob.spawn("--bootstrap", alice.address)
            door.append(_door_s(bob))
            first.append(_first_byte_s(bob, uri, data))
            ready.append(bob.ready_s())
            cpu.append(bob.cpu_s())
            bob.stop()
        bob.start("--bootstrap", alice.address)
        hellos = child(bob.environment, "clients.say_hello", settings.calls(200))
    finally:
        alice.stop()
        bob.stop()
    return [
        Row(
            "Unix door answers after `start`",
            sample(door, "s"),
            budget=at_most(DOOR_S_MAX, sample(door, "s").median, "s"),
        ),
        Row("`ready` after `start`", sample(ready, "s")),
        Row(
            "first remote byte after `start`, address known",
            sample(first, "s"),
            cpu=median_text(cpu),
            budget=at_most(FIRST_BYTE_S_MAX, sample(first, "s").median, "s") + " (aim 0.8)",
        ),
        Row("`hello` at the Unix door, p50 of a batch", sample(hellos["seconds"], "us", 1e6)),
    ]


def new_secret() -> str:
    """What `kachery-p2p channel create lab --shared` prints."""
    from kachery_p2p.channels.channel import generate_secret

    return generate_secret(os.urandom(20))


def _door_s(node: NodeProcess) -> float:
    """Seconds from the start of the node to the first answer at its door."""
    while True:
        try:
            hello(UnixDaemon(str(node.config_dir)))
            return time.perf_counter() - node.spawned_at
        except DaemonError:
            _wait(node)


def _first_byte_s(node: NodeProcess, uri: str, data: bytes) -> float:
    """Seconds from the start of the node to a verified byte in the hand of a waiting client."""
    with _environment_of(node):
        while True:
            try:
                assert kp.load_bytes(uri, 0, 1) == data[:1]
                return time.perf_counter() - node.spawned_at
            except kp.LoadFileError:
                _wait(node)


def _wait(node: NodeProcess) -> None:
    if time.perf_counter() - node.spawned_at > 30:
        node.ready_s()  # tells why it did not start
        raise TimeoutError("the node is ready, but of no use")
    time.sleep(LOOK_S)


@contextmanager
def _environment_of(node: NodeProcess) -> Iterator[None]:
    """Be a client of the node: the settings are read at each call."""
    kept = dict(os.environ)
    os.environ.clear()
    os.environ.update(node.environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)
