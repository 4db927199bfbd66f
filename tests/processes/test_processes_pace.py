"""Limits, priorities and reading parts, between real nodes: counted in bytes, by the daemons."""

from __future__ import annotations

import io
import json
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from kachery_p2p.limits import RATE_BURST_S

if TYPE_CHECKING:
    from tests.processes.conftest import Lab, NodeProcess

pytestmark = pytest.mark.processes

MIB = 1 << 20
RATE = 10_000_000


def stored(node: NodeProcess, path: Path) -> str:
    done = node.cli("store", str(path))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def pace(node: NodeProcess) -> dict[str, Any]:
    found = node.call("status")["pace"]
    assert isinstance(found, dict)
    return found


def answer(node: NodeProcess, code: str) -> Any:
    """What the code prints, as JSON."""
    done = node.python(f"import json, os, threading, kachery_p2p as kp\n{code}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limited", "bulk"), [("upload", True), ("download", True), ("upload", False)]
)
def test_a_load_takes_as_long_as_the_limit_says(lab: Lab, limited: str, bulk: bool) -> None:
    options = ["--max-" + limited, "10MB/s"]
    way = [] if bulk else ["--bulk-listen", "off"]
    alice = lab.node("alice").start(*way, *(options if limited == "upload" else []))
    bob = lab.node("bob").start(
        "--bootstrap", alice.address, *way, *(options if limited == "download" else [])
    )
    uri = stored(alice, lab.file("x", 2 * RATE))
    began = time.monotonic()
    assert bob.cli("load", uri).returncode == 0
    elapsed = time.monotonic() - began
    node, counter = (alice, "uploaded") if limited == "upload" else (bob, "downloaded")
    told = pace(node)
    assert told["max_" + limited] == RATE
    assert told[counter] >= 2 * RATE
    # Never faster than the limit, and it does not stop before the work is done.
    assert told[counter] <= RATE * (elapsed + RATE_BURST_S) + MIB
    assert elapsed < 30
    assert "at most 10.0 MB/s" in node.cli("status").stdout


def test_what_is_no_rate_is_said_with_how_to_write_one(lab: Lab) -> None:
    done = lab.node("alice").cli("start", "--max-upload", "20 Mbit")
    assert (done.returncode, done.stdout) == (10, "")
    assert "error: '20 Mbit' is not a rate" in done.stderr
    assert "hint: write it like 20MB/s or 500 KiB/s" in done.stderr


def test_a_node_in_the_background_keeps_the_limits_that_it_was_given(lab: Lab) -> None:
    alice = lab.node("alice")
    listen = ("--listen", "127.0.0.1:0", "--http", "off", "--no-mdns")
    done = alice.cli(
        *("start", "--background", "--channel", "lab", *listen),
        *("--max-upload", "1.5 MB/s", "--max-download", "300 KiB/s"),
    )
    try:
        assert done.returncode == 0, done.stderr
        told = pace(alice)
        assert (told["max_upload"], told["max_download"]) == (1_500_000, 300 << 10)
    finally:
        assert alice.cli("stop").returncode == 0


# --- priorities -----------------------------------------------------------------------------------


READ_BESIDE = """
from kachery_p2p.client.daemon import connect
def moved(): return connect().call("status", {})[0]["pace"]["downloaded"]
kp.load_bytes(%(uri)r, 0, 1)
began = moved()
threading.Thread(target=kp.load_file, args=(%(big)r,), daemon=True).start()
while moved() < began + 4 * 2**20: pass
others = []
for uri, number in [(%(uri)r, n) for n in (1, 2, 3)] + [(%(big)r, n) for n in (1023, 700, 900)]:
    before = moved()
    assert len(kp.load_bytes(uri, number * 2**20, number * 2**20 + 1000)) == 1000
    others.append(moved() - before - 2**20)
print(json.dumps(others), flush=True)
os._exit(0)
"""


def test_range_reads_of_another_file_and_of_itself_pass_the_load_of_a_gibibyte(lab: Lab) -> None:
    # So slow that the line is full all the time, however busy this computer is.
    alice = lab.node("alice").start("--max-upload", "20MB/s")
    bob = lab.node("bob").start("--bootstrap", alice.address)
    path = lab.directory / "big"
    with path.open("wb") as file:
        file.truncate(1024 * MIB)
    big = alice.cli("link", str(path)).stdout.strip()
    uri = stored(alice, lab.file("read", 4 * MIB))
    others = answer(bob, READ_BESIDE % {"uri": uri, "big": big})
    # Of a load 20 chunks and more are asked for ahead. A read waits for the one that is being
    # sent, the next that may have been chosen, and what comes during its questions.
    assert all(sorted(some)[1] < 8 * MIB for some in (others[:3], others[3:])), others
    assert max(others) < 16 * MIB, others


# --- reading parts --------------------------------------------------------------------------------


def test_a_kilobyte_at_the_end_of_a_file_moves_a_few_chunks_at_most(lab: Lab) -> None:
    alice, bob = lab.pair()
    path = lab.file("x", 64 * MIB + 5)
    uri = stored(alice, path)
    read = f"file = kp.open({uri!r}); file.seek(-1024, 2)\nprint(json.dumps(file.read().hex()))"
    assert bytes.fromhex(answer(bob, read)) == path.read_bytes()[-1024:]
    assert pace(alice)["uploaded"] < 3 * MIB
    assert pace(bob)["downloaded"] < 3 * MIB
    # Another process finds it there.
    answer(bob, read)
    assert pace(alice)["uploaded"] < 3 * MIB


def test_a_file_that_is_read_through_moves_once(lab: Lab) -> None:
    alice, bob = lab.pair()
    path = lab.file("x", 24 * MIB + 5)
    uri = stored(alice, path)
    code = f"""
import hashlib
found = hashlib.sha1()
with kp.open({uri!r}) as file:
    while piece := file.read(100_000): found.update(piece)
print(json.dumps(found.hexdigest()))
"""
    assert answer(bob, code) == uri.split("/")[2]
    assert path.stat().st_size <= pace(alice)["uploaded"] < path.stat().st_size + MIB


def test_of_archives_and_arrays_what_is_needed_moves(lab: Lab) -> None:
    alice, bob = lab.pair()
    noise = np.random.default_rng(1)
    archive = lab.directory / "archive.zip"
    with zipfile.ZipFile(archive, "w") as made:
        for name in ("first", "second"):
            made.writestr(name, noise.bytes(12 * MIB))
        made.writestr("note", b"wanted")
        made.writestr("last", noise.bytes(12 * MIB))
    arrays = lab.directory / "arrays.npz"
    buffer = io.BytesIO()
    np.savez(buffer, big=noise.integers(0, 255, 24 * MIB, "u1"), little=np.arange(10))
    arrays.write_bytes(buffer.getvalue())
    recording = lab.directory / "recording.h5"
    with h5py.File(recording, "w") as file:
        file["raw"] = noise.integers(0, 255, (24, MIB), "u1")
        file["times"] = np.arange(10)
        rows = file["raw"][13, :4].tolist()
    uris = [stored(alice, path) for path in (archive, arrays, recording)]
    code = f"""
import zipfile, numpy, h5py
note = zipfile.ZipFile(kp.open({uris[0]!r})).read("note").decode()
little = numpy.load(kp.open({uris[1]!r}))["little"].tolist()
with h5py.File(kp.open({uris[2]!r}), "r") as file:
    times, some = file["times"][:].tolist(), file["raw"][13, :4].tolist()
print(json.dumps([note, little, times, some]))
"""
    assert answer(bob, code) == ["wanted", list(range(10)), list(range(10)), rows]
    # Two or three chunks of each: the table at one end, and the place of what was wanted.
    assert pace(alice)["uploaded"] < 8 * MIB
    # An array alone is read as a whole, once.
    alone = lab.directory / "alone.npy"
    np.save(alone, noise.integers(0, 255, 8 * MIB, "u1"))
    uri, before = stored(alice, alone), pace(alice)["uploaded"]
    assert (
        answer(bob, f"import numpy\nprint(json.dumps(len(numpy.load(kp.open({uri!r})))))")
        == 8 * MIB
    )
    assert pace(alice)["uploaded"] - before < 9.5 * MIB


def test_without_a_root_a_provider_is_trusted_only_if_one_says_so(lab: Lab) -> None:
    alice, bob = lab.pair()
    path = lab.file("x", 8 * MIB)
    uri = stored(alice, path).partition("?")[0]
    code = "file = kp.open(%r%s)\nprint(json.dumps(file.read(10).hex()))"
    assert bytes.fromhex(answer(bob, code % (uri, ', verify="provider"'))) == path.read_bytes()[:10]
    assert pace(alice)["uploaded"] < 2 * MIB
    done = bob.python(f"import kachery_p2p as kp\nprint(kp.open({uri!r}).read(10).hex())")
    assert bytes.fromhex(done.stdout) == path.read_bytes()[:10]
    assert "are fetched and verified first" in done.stderr
    # What the first one had brought need not come again.
    assert 8 * MIB <= pace(alice)["uploaded"] < 9 * MIB
