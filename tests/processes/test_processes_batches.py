"""Thousands of small files between real node processes: in batches, through kills, all correct."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.processes.conftest import Lab, NodeProcess

pytestmark = pytest.mark.processes

COUNT = 2_000
LOADED_S = 90.0

STORE = "import kachery_p2p as kp, json, sys; print(json.dumps(kp.store_files(sys.argv[1:])))"
LOAD = (
    "import kachery_p2p as kp, json, sys\n"
    "print(json.dumps(kp.load_files(json.load(sys.stdin), **json.loads(sys.argv[1]))))"
)


def files(lab: Lab, count: int = COUNT) -> list[Path]:
    """Small files, all different, some of them empty or larger than a chunk."""
    directory = lab.directory / "files"
    directory.mkdir()
    paths = [directory / str(number) for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(number.to_bytes(4, "big") * (1 + number % 2_000))
    paths[7].write_bytes(b"")
    paths[11].write_bytes(os.urandom((1 << 20) + 1))
    return paths


def stored(node: NodeProcess, paths: list[Path]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", STORE, *map(str, paths)],
        env=node.environment,
        capture_output=True,
        text=True,
        timeout=LOADED_S,
    )
    assert done.returncode == 0, done.stderr
    uris: list[str] = json.loads(done.stdout)
    return uris


@contextlib.contextmanager
def loading(node: NodeProcess, uris: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A client that loads them all with one `load_files`."""
    with subprocess.Popen(
        [sys.executable, "-c", LOAD, json.dumps(options)],
        env=node.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(uris))
            process.stdin.close()
            process.stdin = None
            yield process
        finally:
            process.kill()


def objects(node: NodeProcess) -> int:
    return sum(len(files) for _, _, files in os.walk(node.storage_dir / "sha1"))


def wait_for_objects(node: NodeProcess, count: int) -> None:
    deadline = time.monotonic() + LOADED_S
    while objects(node) < count:
        assert time.monotonic() < deadline, "nothing arrived"
        time.sleep(0.005)  # another process is looked at: it does not tell


def wait_for_peers(node: NodeProcess, count: int) -> None:
    deadline = time.monotonic() + 30
    while len(node.call("status")["peers"]) < count:
        assert time.monotonic() < deadline, "the nodes did not meet"
        time.sleep(0.02)


def check(answer: str, paths: list[Path]) -> None:
    loaded = json.loads(answer)
    assert [Path(path).read_bytes() for path in loaded] == [path.read_bytes() for path in paths]


def test_thousands_come_through_kills_of_the_giver_and_of_the_taker(lab: Lab) -> None:
    alice = lab.node("alice").start()
    dora = lab.node("dora").start("--bootstrap", alice.address)
    bob = lab.node("bob").start("--bootstrap", alice.address)
    paths = files(lab)
    uris = stored(alice, paths)
    assert stored(dora, paths) == uris
    wait_for_peers(bob, 2)
    with loading(bob, uris) as client:
        wait_for_objects(bob, COUNT // 8)
        alice.kill(signal.SIGKILL)
        answer, errors = client.communicate(timeout=LOADED_S)
        assert client.returncode == 0, errors
    check(answer, paths)
    # What was acknowledged is granted and known, after a kill too.
    bob.kill(signal.SIGKILL)
    bob.start("--bootstrap", dora.address)
    carol = lab.node("carol").start("--bootstrap", bob.address)
    dora.kill(signal.SIGKILL)
    wait_for_peers(carol, 1)
    with loading(carol, uris, from_node="bob") as client:
        answer, errors = client.communicate(timeout=LOADED_S)
        assert client.returncode == 0, errors
    check(answer, paths)


def test_a_client_that_is_interrupted_leaves_whole_files_and_goes_on(lab: Lab) -> None:
    alice, bob = lab.pair()
    paths = files(lab)
    uris = stored(alice, paths)
    with loading(bob, uris) as client:
        wait_for_objects(bob, COUNT // 8)
        client.send_signal(signal.SIGINT)
        _, errors = client.communicate(timeout=30)
        assert "KeyboardInterrupt" in errors
    with loading(bob, uris) as client:
        answer, errors = client.communicate(timeout=LOADED_S)
        assert client.returncode == 0, errors
    check(answer, paths)
    for directory, _, names in os.walk(bob.storage_dir / "sha1"):
        for name in names:
            with open(os.path.join(directory, name), "rb") as file:
                assert hashlib.file_digest(file, "sha1").hexdigest() == name


def test_where_there_is_no_bulk_connection_batches_go_over_data_streams(lab: Lab) -> None:
    alice = lab.node("alice").start("--bulk-listen", "off")
    bob = lab.node("bob").start("--bootstrap", alice.address, "--bulk-listen", "off")
    paths = files(lab, 300)
    uris = stored(alice, paths)
    with loading(bob, uris) as client:
        answer, errors = client.communicate(timeout=LOADED_S)
        assert client.returncode == 0, errors
    check(answer, paths)


def test_uris_on_stdin_are_loaded_in_batches_and_failures_have_their_line(lab: Lab) -> None:
    alice, bob = lab.pair()
    paths = files(lab, 200)
    uris = stored(alice, paths)
    private = alice.cli("store", "--private", str(lab.file("private", 100))).stdout.strip()
    lines = [*uris[:100], private, *uris[100:]]
    done = bob.cli("load", "-", "--json", input="\n".join(lines))
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["uri"] for one in told] == lines
    assert (done.returncode, told[100]["error"]["name"]) == (3, "NotFoundError")
    good = [one for one in told if one["path"]]
    assert [Path(one["path"]).read_bytes() for one in good] == [p.read_bytes() for p in paths]
