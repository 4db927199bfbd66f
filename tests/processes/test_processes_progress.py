"""Progress on real nodes: what a command says of a load, and `status` on both ends of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.processes.conftest import Lab, NodeProcess

pytestmark = pytest.mark.processes

MIB = 1 << 20
SIZE = 400 * MIB


def until(node: NodeProcess, field: str) -> dict[str, Any]:
    """The first of this field of `status`, once there is one with bytes."""
    give_up_at = time.monotonic() + 60
    while time.monotonic() < give_up_at:
        for found in node.call("status")[field]:
            if found["bytes"] and found["rate"]:
                assert isinstance(found, dict)
                return found
    raise AssertionError(f"nothing in {field}")


def test_a_load_says_how_far_it_is_and_status_says_it_on_both_ends(lab: Lab) -> None:
    alice, bob = lab.pair()
    uri = alice.cli("store", str(lab.file("recording.dat", SIZE))).stdout.strip()
    load = subprocess.Popen(
        [sys.executable, "-m", "kachery_p2p", "load", uri, "--progress", "json"],
        env=bob.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        loading = until(bob, "loads")
        out, told = load.communicate(timeout=60)
    finally:
        load.kill()
    assert load.returncode == 0 and out.count("\n") == 1, told
    assert loading["root"] in uri and loading["size"] == SIZE
    assert [one["node_id"] for one in loading["by_source"]] == [alice.node_id]
    assert loading["by_source"][0]["name"].startswith("alice")

    events = [json.loads(line)["progress"] for line in told.splitlines()]
    assert events[0]["phase"] == "asking" and events[-1]["phase"] == "done"
    counts = [event["bytes"] for event in events]
    assert counts == sorted(counts) and counts[-1] == SIZE
    rates = [event["rate"] for event in events if event["phase"] == "fetching"]
    assert any(rates), "it says how fast"
    gave = {source["node_id"]: source["bytes"] for source in events[-1]["sources"]}
    assert gave[alice.node_id] <= SIZE
    assert gave[alice.node_id] > 0

    serving = until(alice, "serving")
    assert serving["node_id"] == bob.node_id and serving["label"] == "bob"
    assert "serving" in alice.cli("status").stdout
