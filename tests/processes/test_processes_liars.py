"""Real nodes that send wrong bytes: found out, named, dropped for the channel, and passed by."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.processes.conftest import Lab, NodeProcess

pytestmark = pytest.mark.processes

MIB = 1 << 20
CHUNKS = 5
# A node whose bulk plane sends zeros as one chunk, whatever it is asked for.
LIAR = """
import runpy, sys
from kachery_p2p.network import bulk_serving
read = bulk_serving._read_chunk
def lie(descriptor, view, offset):
    read(descriptor, view, offset)
    if offset == {place} * (1 << 20):
        view[:] = bytes(len(view))
bulk_serving._read_chunk = lie
sys.argv = sys.argv[3:]
runpy.run_module("kachery_p2p", run_name="__main__")
"""
PLACES = {"first": 0, "middle": 2, "last": CHUNKS - 1}


def wait_for_peers(node: NodeProcess, count: int) -> None:
    give_up_at = time.monotonic() + 30
    while len(node.call("status")["peers"]) < count:
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


def test_a_liar_in_any_chunk_is_named_and_dropped_and_an_honest_holder_is_enough(lab: Lab) -> None:
    bob, uris, paths = lab.node("bob").start(), {}, {}
    for name, place in PLACES.items():
        liar = lab.node(name)
        under = [sys.executable, "-c", LIAR.format(place=place)]
        liar.launch("--bootstrap", bob.address, under=under)
        liar.wait_until_ready()
        paths[name] = lab.file(f"{name}.dat", (CHUNKS - 1) * MIB + 7)
        uris[name] = liar.cli("store", str(paths[name])).stdout.strip()
    wait_for_peers(bob, len(PLACES))

    for name, uri in uris.items():
        failed = bob.cli("load", uri)
        assert failed.returncode == 3
        assert f"{name} (" in failed.stderr
        assert "does not match its hash" in failed.stderr
    assert not [path for path in bob.storage_dir.glob("sha1/*/*/*/*") if path.is_file()]

    problems = "\n".join(bob.call("status")["problems"])
    for liar in lab.nodes[1:]:
        assert f"(node {liar.node_id}) lied and is not used in channel lab" in problems
        assert liar.node_id in bob.errors(), "the log says so too"
    again = bob.cli("load", uris["first"])
    assert "lied and is not asked" in again.stderr

    honest = lab.node("honest").start("--bootstrap", bob.address)
    for path in paths.values():
        assert honest.cli("store", str(path)).returncode == 0
    wait_for_peers(bob, len(PLACES) + 1)
    for name, uri in uris.items():
        done = bob.cli("load", uri, "--dest", str(bob.directory / name))
        assert done.returncode == 0, done.stderr
        assert (bob.directory / name).read_bytes() == paths[name].read_bytes()
