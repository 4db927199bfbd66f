"""Real nodes that are killed, frozen, cut off or full: loads resume, or fail with a reason."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.processes.conftest import Lab, NodeProcess

pytestmark = pytest.mark.processes

MIB = 1 << 20
SIZE = 300 * MIB


def sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def begin_load(node: NodeProcess, uri: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kachery_p2p", "load", uri],
        env=node.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def progress_of(node: NodeProcess) -> Iterator[int]:
    """Bytes verified so far, as `status` tells them, until the node is asked no more."""
    while True:
        loads = node.call("status")["loads"]
        yield loads[0]["bytes"] if loads else 0


def wait_for_progress(node: NodeProcess, bytes_min: int) -> int:
    give_up_at = time.monotonic() + 60
    for bytes_now in progress_of(node):
        if bytes_now >= bytes_min:
            return bytes_now
        assert time.monotonic() < give_up_at, "the load makes no progress"
    raise AssertionError


def kept_bytes(node: NodeProcess) -> int:
    return sum(path.stat().st_blocks * 512 for path in node.storage_dir.rglob("data"))


def test_a_load_killed_with_its_daemon_resumes_and_is_right(lab: Lab) -> None:
    alice, bob = lab.pair()
    recording = lab.file("recording.dat", SIZE)
    uri = alice.cli("store", str(recording)).stdout.strip()
    load = begin_load(bob, uri)
    reached = wait_for_progress(bob, SIZE // 4)
    bob.kill()
    _, told = load.communicate(timeout=30)
    assert load.returncode == 3, told
    assert "daemon" in told
    assert "kachery-p2p: error:" in told
    assert "kachery-p2p: hint:" in told
    kept = kept_bytes(bob)
    assert kept >= 0.9 * reached
    served_before = alice.call("status")["bytes_served"]

    bob.start()
    again = bob.cli("load", uri)

    assert again.returncode == 0, again.stderr
    assert sha256(again.stdout.strip()) == sha256(recording)
    moved = alice.call("status")["bytes_served"] - served_before
    assert moved <= SIZE - 0.9 * reached
    # The finished partial is the blob: nothing is kept twice.
    assert kept_bytes(bob) == 0


def test_a_client_stopped_with_ctrl_c_leaves_what_it_has(lab: Lab) -> None:
    alice, bob = lab.pair()
    # So large that it cannot be through before the signal is there.
    recording = lab.file("recording.dat", 2 * SIZE)
    uri = alice.cli("store", str(recording)).stdout.strip()
    load = begin_load(bob, uri)
    wait_for_progress(bob, 20 * MIB)
    load.send_signal(signal.SIGINT)
    out, _ = load.communicate(timeout=30)

    assert load.returncode == 130
    assert out == ""
    assert kept_bytes(bob) >= 20 * MIB
    assert sha256(bob.cli("load", uri).stdout.strip()) == sha256(recording)


def test_a_frozen_provider_is_replaced_by_another(lab: Lab) -> None:
    alice, bob = lab.pair()
    recording = lab.file("recording.dat", SIZE)
    uri = alice.cli("store", str(recording)).stdout.strip()
    carol = lab.node("carol").start("--bootstrap", alice.address)
    assert carol.cli("load", uri).returncode == 0
    load = begin_load(bob, uri)
    wait_for_progress(bob, 20 * MIB)
    serving = bob.call("status")["loads"][0]["sources"][0]
    frozen = alice if serving.startswith("alice") else carol
    frozen.freeze()

    out, told = load.communicate(timeout=60)

    assert load.returncode == 0, told
    assert sha256(out.strip()) == sha256(recording)


def test_the_only_provider_frozen_is_a_typed_error_within_the_deadline(lab: Lab) -> None:
    alice, bob = lab.pair()
    uri = alice.cli("store", str(lab.file("recording.dat", SIZE))).stdout.strip()
    load = begin_load(bob, uri)
    wait_for_progress(bob, 20 * MIB)
    alice.freeze()

    # STALL_S_MAX to notice, SOURCE_RETURN_S_MAX to wait for it, and then some.
    _, told = load.communicate(timeout=40)

    assert load.returncode == 3
    assert "no provider delivered" in told
    assert "alice" in told
    assert not list(bob.storage_dir.glob("sha1/*/*/*/*"))


def test_a_provider_killed_mid_load_and_started_again_is_used_again(lab: Lab) -> None:
    alice, bob = lab.pair()
    recording = lab.file("recording.dat", SIZE)
    uri = alice.cli("store", str(recording)).stdout.strip()
    port = alice.address.split("/")[4]
    load = begin_load(bob, uri)
    wait_for_progress(bob, 20 * MIB)
    alice.kill()
    alice.start("--listen", f"127.0.0.1:{port}")

    out, told = load.communicate(timeout=60)

    assert load.returncode == 0, told
    assert sha256(out.strip()) == sha256(recording)


def test_many_clients_waiting_for_one_hash_cause_one_download(lab: Lab) -> None:
    alice, bob = lab.pair()
    uri = alice.cli("store", str(lab.file("recording.dat", 40 * MIB))).stdout.strip()
    code = f"""
import threading, kachery_p2p as kp
paths = []
threads = [threading.Thread(target=lambda: paths.append(kp.load_file({uri!r}))) for _ in range(40)]
for t in threads: t.start()
for t in threads: t.join()
assert len(paths) == 40 and len(set(paths)) == 1, paths
print("ok")
"""
    done = bob.python(code)

    assert done.stdout == "ok\n", done.stderr
    assert alice.call("status")["bytes_served"] == 40 * MIB


def test_a_corrupted_object_is_fetched_again_by_the_daemon(lab: Lab) -> None:
    alice, bob = lab.pair()
    original = lab.file("x.bin", 3 * MIB)
    uri = alice.cli("store", str(original)).stdout.strip()
    path = Path(bob.cli("load", uri).stdout.strip())
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(MIB)
        file.write(b"flipped")

    bob.call("load", {"content": uri[7:47]})

    assert path.read_bytes() == original.read_bytes()
    assert list((bob.storage_dir / ".quarantine").iterdir())


def test_sigterm_during_a_load_stops_within_five_seconds(lab: Lab) -> None:
    alice, bob = lab.pair()
    uri = alice.cli("store", str(lab.file("recording.dat", SIZE))).stdout.strip()
    load = begin_load(bob, uri)
    wait_for_progress(bob, 20 * MIB)
    assert bob.process is not None

    began = time.monotonic()
    bob.process.terminate()
    code = bob.process.wait(10)

    assert code == 0, bob.errors()
    assert time.monotonic() - began <= 5
    load.communicate(timeout=30)
    assert load.returncode == 3
    assert kept_bytes(bob) >= 20 * MIB
    assert not (bob.config_dir / "daemon.sock").exists()


def test_files_stored_before_a_channel_existed_wait_until_they_are_shared(lab: Lab) -> None:
    alice, bob = lab.node("alice"), lab.node("bob")
    uri = alice.cli("store", str(lab.file("x.bin", 2 * MIB))).stdout.strip()
    alice.start()
    bob.start("--bootstrap", alice.address)
    assert any("not shared: 1 stored" in line for line in alice.lines)
    assert bob.cli("load", uri).returncode == 3

    shared = alice.cli("share", "--pending", "--channel", "lab")

    assert shared.returncode == 0, shared.stderr
    assert bob.cli("load", uri).returncode == 0


def test_what_is_stored_while_the_daemon_is_down_is_shared_when_it_is_up(lab: Lab) -> None:
    alice, bob = lab.pair()
    alice.kill()
    uri = alice.cli("store", str(lab.file("x.bin", 2 * MIB))).stdout.strip()

    alice.start("--bootstrap", bob.address)

    assert bob.cli("load", uri).returncode == 0
