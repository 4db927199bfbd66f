"""`kp.open` of what another node has: a little of a big file, all of it, and beside a big load."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from load import wait_for_peer
from node import new_secret
from processes import NodeProcess, child
from settings import MIB, Settings, settle
from table import Row, at_most, figure, sample

OPEN_MS_MAX = 100.0
MOVED_MIB_MAX = 3.0
READS = 20


def measure(settings: Settings) -> list[Row]:
    """The figures of part 4 and 7: how little, how soon, and how fast."""
    room = settings.room("opening")
    secret = new_secret()
    alice, bob = (NodeProcess(room / name, secret) for name in ("alice", "bob"))
    try:
        alice.start()
        uris = [_stored(alice, settings.random_file(name)) for name in ("opened", "beside")]
        small = [_stored(alice, _small_file(settings, name)) for name in ("warm", "parts")]
        rows = _end_rows(settings, alice, bob, small[0], uris[0])
        rows.append(_through_row(settings, bob, uris[0]))
        return [*rows, *_beside_rows(settings, bob, small[1], uris[1])]
    finally:
        alice.stop()
        bob.stop()


def _stored(node: NodeProcess, path: Path) -> str:
    uri = child(node.environment, "clients.store_file", str(path))["uri"]
    path.unlink()
    return str(uri)


def _reads(settings: Settings) -> int:
    return 2 if settings.quick else READS


def _small_file(settings: Settings, name: str) -> Path:
    """A file with a chunk for each read, and one more."""
    path = settings.directory / name
    path.write_bytes(os.urandom((_reads(settings) + 1) * MIB))
    return path


def _end_rows(
    settings: Settings, alice: NodeProcess, bob: NodeProcess, warm: str, uri: str
) -> list[Row]:
    seconds, moved = [], []
    for _ in settings.times(5):
        bob.stop()
        # Nothing that an earlier round brought is left.
        shutil.rmtree(bob.storage_dir, ignore_errors=True)
        bob.start("--bootstrap", alice.address)
        wait_for_peer(bob)
        done = child(bob.environment, "opening_clients.read_end", warm, uri)
        seconds.append(done["seconds"])
        moved.append(done["moved"])
    took, went = sample(seconds, "ms", 1e3), sample(moved, "MiB", 1 / MIB)
    mib = settings.big_bytes / MIB
    what = f"`kp.open`, seek, read the last KiB of {mib:,.0f} MiB on another node"
    return [
        Row(what, took, "warm connection", budget=at_most(OPEN_MS_MAX, took.median, "ms")),
        Row(f"{what}: moved", went, budget=at_most(MOVED_MIB_MAX, max(went.values), "MiB")),
    ]


def _through_row(settings: Settings, bob: NodeProcess, uri: str) -> Row:
    settle()
    done = child(bob.environment, "opening_clients.read_through", uri)
    assert done["bytes"] == settings.big_bytes
    rate = sample([done["bytes"] / MIB / done["seconds"]], "MiB/s")
    return Row(f"`kp.open`, read {settings.big_bytes / MIB:,.0f} MiB in pieces of 256 KiB", rate)


def _beside_rows(settings: Settings, bob: NodeProcess, uri: str, big: str) -> list[Row]:
    done = child(bob.environment, "opening_clients.read_beside", uri, big, _reads(settings))
    if not done["seconds"]:
        return []
    took, went = sample(done["seconds"], "ms", 1e3), sample(done["moved"], "MiB", 1 / MIB)
    what = "range read of a KiB while another file is loaded"
    against = f"{settings.big_bytes / MIB:,.0f} MiB, same connection; {figure(went.median)} MiB"
    return [Row(what, took, f"{against} of all came meanwhile")]
