"""Several real nodes in one transfer: some die, some freeze, some are loading it themselves."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.processes.conftest import Lab, NodeProcess

pytestmark = pytest.mark.processes

MIB = 1 << 20
# At most so much may be lost when two of three sources are gone without a word.
LOST_S_MAX = 10.0


def sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def begin_load(node: NodeProcess, uri: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*node.command, "load", uri],
        env=node.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def load_of(node: NodeProcess) -> dict[str, Any]:
    loads = node.call("status")["loads"]
    return loads[0] if loads else {"bytes": 0, "sources": []}


def wait_until(happened: Callable[[], bool], within_s: float = 30.0) -> None:
    """Another process is looked at: it does not tell."""
    give_up_at = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < give_up_at, "it did not happen in time"
        time.sleep(0.02)


def providers(lab: Lab, path: Path, count: int, mib_per_s: int) -> tuple[list[NodeProcess], str]:
    """Nodes that know each other, limit their upload, and all hold the file."""
    made: list[NodeProcess] = []
    uri = ""
    for number in range(count):
        known = ["--bootstrap", made[0].address] if made else []
        node = lab.node(f"provider{number}")
        made.append(node.start("--max-upload", f"{mib_per_s}MiB/s", *known))
        stored = node.cli("store", str(path))
        assert stored.returncode == 0, stored.stderr
        uri = stored.stdout.strip()
    return made, uri


def test_one_of_three_killed_and_one_frozen_costs_ten_seconds_at_most(lab: Lab) -> None:
    size, mib_per_s = 64 * MIB, 10
    path = lab.file("recording.dat", size)
    (one, two, three), uri = providers(lab, path, 3, mib_per_s)
    bob = lab.node("bob").start("--bootstrap", one.address)
    wait_until(lambda: len(bob.call("status")["peers"]) == 3)
    load = begin_load(bob, uri)
    wait_until(lambda: len(load_of(bob)["sources"]) == 3 and load_of(bob)["bytes"] >= 8 * MIB)
    reached = load_of(bob)["bytes"]
    began = time.monotonic()
    one.kill()
    two.freeze()

    out, told = load.communicate(timeout=60)

    took_s = time.monotonic() - began
    needed_s = (size - reached) / MIB / mib_per_s
    print(f"two of three gone: {took_s:.1f} s, of which the third alone needs {needed_s:.1f} s")
    assert load.returncode == 0, told
    assert sha256(out.strip()) == sha256(path)
    assert took_s <= needed_s + LOST_S_MAX
    assert three.call("status")["bytes_served"] >= (size - reached) / 2


def test_those_who_load_at_once_share_what_the_only_holder_can_send(lab: Lab) -> None:
    size = 24 * MIB
    path = lab.file("recording.dat", size)
    (seeder,), uri = providers(lab, path, 1, 6)
    loaders = [lab.node(f"loader{n}").start("--bootstrap", seeder.address) for n in range(3)]
    for loader in loaders:
        wait_until(lambda: len(loader.call("status")["peers"]) == 3)  # noqa: B023
    loads = [begin_load(loader, uri) for loader in loaders]
    for load in loads:
        out, told = load.communicate(timeout=60)
        assert load.returncode == 0, told
        assert sha256(out.strip()) == sha256(path)
    served = seeder.call("status")["bytes_served"]
    passed_on = sum(loader.call("status")["bytes_served"] for loader in loaders)
    print(f"sent {served / size:.2f} times by the holder, {passed_on / size:.2f} by those loading")
    assert served < 2 * size
    assert passed_on >= size
    assert served + passed_on >= 3 * size


CLIENTS = 1_000
# Starts what follows with the number of open files that most systems give a process.
FEW_FILES = (
    "import os, resource, sys;"
    "_, most = resource.getrlimit(resource.RLIMIT_NOFILE);"
    "resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, most), most));"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def test_a_thousand_loads_of_one_hash_at_once_are_one_fetch_and_no_error(lab: Lab) -> None:
    size = 16 * MIB
    path = lab.file("recording.dat", size)
    (alice,), uri = providers(lab, path, 1, 8)
    bob = lab.node("bob")
    bob.launch("--bootstrap", alice.address, under=[sys.executable, "-c", FEW_FILES])
    bob.wait_until_ready()
    code = f"""
import resource, threading
import kachery_p2p as kp
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 4096), most))
threading.stack_size(256 << 10)
answers = []
def load():
    try:
        answers.append(kp.load_file({uri!r}))
    except Exception as error:
        answers.append(f"{{type(error).__name__}}: {{error}}")
threads = [threading.Thread(target=load) for _ in range({CLIENTS})]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(answers), *sorted(set(answers)), sep="\\n")
"""
    began = time.monotonic()
    done = bob.python(code)
    print(f"{CLIENTS} loads: {time.monotonic() - began:.1f} s")
    count, *answers = done.stdout.splitlines()
    assert int(count) == CLIENTS, done.stderr
    assert len(answers) == 1, answers
    assert sha256(answers[0]) == sha256(path)
    assert alice.call("status")["bytes_served"] == size
