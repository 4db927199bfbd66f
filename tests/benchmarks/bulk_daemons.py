"""Two whole nodes: a big file from one to the other, and how soon the first byte of one comes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from bulk_tools import Transfer
from load import wait_for_peer
from node import new_secret
from processes import NodeProcess, child
from settings import MIB, Settings

# Over one chunk, so that a byte of it is verified without the rest.
FIRST_FILE_BYTES = 2 * MIB


class Nodes:
    """Alice, who has the file, and Bob, who asks for it: connected for as long as we measure."""

    def __init__(self, alice: NodeProcess, bob: NodeProcess, source: Path) -> None:
        self._alice = alice
        self._bob = bob
        self._uri = child(alice.environment, "clients.store_file", str(source))["uri"]

    def transfer(self, content: str) -> Transfer:
        """A load of the file, which Bob has never seen, to a durable object in his store."""
        before = self._alice.cpu_s(), self._bob.cpu_s()
        done = child(self._bob.environment, "clients.load_files", [self._uri])
        after = self._alice.cpu_s(), self._bob.cpu_s()
        (path,) = done["paths"]
        assert Path(path).name == content, "the file that was loaded is another one"
        os.unlink(path)
        seconds = done["seconds"]
        gave, took = after[0] - before[0], after[1] - before[1] + done["cpu_s"]
        peaks = self._alice.peak_mib() or 0.0, self._bob.peak_mib() or 0.0
        return Transfer(seconds, seconds, gave, took, *peaks)

    def first_bytes_s(self, settings: Settings, count: int) -> list[float]:
        """Of each of so many new files: seconds from the request to its first verified byte."""
        room = settings.room("bulk-first")
        uris = []
        for number in range(count + 1):
            path = room / str(number)
            path.write_bytes(os.urandom(FIRST_FILE_BYTES))
            uris.append(child(self._alice.environment, "clients.store_file", str(path))["uri"])
        # With the first one the connections come about.
        seconds: list[float] = child(self._bob.environment, "bulk_clients.read_first", uris)[
            "seconds"
        ]
        return seconds[1:]


@contextlib.contextmanager
def nodes(settings: Settings, source: Path) -> Iterator[Nodes]:
    """Two nodes that know each other, of which one has stored `source`."""
    room, secret = settings.room("bulk-nodes"), new_secret()
    alice, bob = NodeProcess(room / "alice", secret), NodeProcess(room / "bob", secret)
    try:
        alice.start()
        bob.start("--bootstrap", alice.address)
        wait_for_peer(bob)
        yield Nodes(alice, bob, source)
    finally:
        bob.stop()
        alice.stop()
