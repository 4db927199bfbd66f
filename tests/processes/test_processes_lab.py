"""Real nodes in processes of their own: a lab shares files, and nobody else gets any."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kachery_p2p.channels.channel import generate_secret

if TYPE_CHECKING:
    from tests.processes.conftest import Lab

pytestmark = pytest.mark.processes

MIB = 1 << 20


def sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_a_file_stored_on_one_node_is_loaded_on_the_other(lab: Lab) -> None:
    alice, bob = lab.pair()
    recording = lab.file("recording.dat", 100 * MIB)
    stored = alice.cli("store", str(recording))
    assert stored.returncode == 0, stored.stderr
    uri = stored.stdout.strip()
    assert uri.startswith("sha1://")
    assert "/recording.dat?root=" in uri

    loaded = bob.cli("load", uri)

    assert loaded.returncode == 0, loaded.stderr
    path = loaded.stdout.strip()
    assert Path(path).is_relative_to(bob.storage_dir)
    assert sha256(path) == sha256(recording)


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 9 * MIB + 7])
def test_every_size_around_a_chunk_arrives_whole(lab: Lab, size: int) -> None:
    alice, bob = lab.pair()
    path = lab.file("x.bin", size)
    uri = alice.cli("store", str(path)).stdout.strip()

    loaded = bob.cli("load", uri)

    assert loaded.returncode == 0, loaded.stderr
    assert Path(loaded.stdout.strip()).read_bytes() == path.read_bytes()


def test_what_was_loaded_is_found_again_without_any_daemon(lab: Lab) -> None:
    alice, bob = lab.pair()
    uri = alice.python("import kachery_p2p as kp; print(kp.store_text('spikes'))").stdout.strip()
    assert bob.cli("load", uri).returncode == 0
    bob.kill()
    alice.kill()

    again = bob.python(f"import kachery_p2p as kp; print(kp.load_text({uri!r}))")

    assert again.stdout == "spikes\n", again.stderr


def test_an_outsider_gets_nothing_and_cannot_tell_absent_from_forbidden(lab: Lab) -> None:
    alice = lab.node("alice").start()
    other = generate_secret(secrets.token_bytes(20))
    mallory = lab.node("mallory", secret=other).start("--bootstrap", alice.address)
    uri = alice.cli("store", str(lab.file("secret.bin", 3 * MIB))).stdout.strip()
    absent = "sha1://" + "ab" * 20 + uri[uri.index("?") :]

    refused = mallory.cli("load", uri)
    missing = mallory.cli("load", absent)

    assert refused.returncode == missing.returncode == 3
    content = uri[7:47]
    assert refused.stderr.replace(content, "X") == missing.stderr.replace("ab" * 20, "X")
    assert alice.call("status")["peers"] == []
    assert not list(mallory.storage_dir.rglob(content))


def test_a_third_member_finds_the_second_through_the_first(lab: Lab) -> None:
    alice, bob = lab.pair()
    carol = lab.node("carol").start("--bootstrap", alice.address)
    uri = bob.cli("store", str(lab.file("b.bin", 2 * MIB))).stdout.strip()

    loaded = carol.cli("load", uri)

    assert loaded.returncode == 0, loaded.stderr
    peers = {peer["node_id"] for peer in carol.call("status")["peers"]}
    assert peers == {alice.node_id, bob.node_id}


def test_what_was_loaded_is_served_on(lab: Lab) -> None:
    alice, bob = lab.pair()
    uri = alice.cli("store", str(lab.file("x.bin", 2 * MIB))).stdout.strip()
    assert bob.cli("load", uri).returncode == 0
    alice.kill()
    carol = lab.node("carol").start("--bootstrap", bob.address)

    loaded = carol.cli("load", uri)

    assert loaded.returncode == 0, loaded.stderr


def test_private_files_stay_private(lab: Lab) -> None:
    alice, bob = lab.pair()
    code = "import kachery_p2p as kp; print(kp.store_text('diary', channels=[]))"
    uri = alice.python(code).stdout.strip()

    assert bob.cli("load", uri).returncode == 3


def test_arrays_json_and_ranges_travel(lab: Lab) -> None:
    alice, bob = lab.pair()
    code = """
import numpy as np, kachery_p2p as kp
print(kp.store_npy(np.arange(1_000_000).reshape(1000, 1000)))
print(kp.store_json({"a": [1, 2, {"b": None}]}))
print(kp.store_pkl({"x": np.ones(3), "y": (1, 2)}))
"""
    made = alice.python(code)
    assert made.returncode == 0, made.stderr
    npy, as_json, pickled = made.stdout.split()
    code = f"""
import numpy as np, kachery_p2p as kp
part = kp.load_bytes({npy!r}, 5_000_000, 5_000_016)
array = kp.load_npy({npy!r})
assert (array == np.arange(1_000_000).reshape(1000, 1000)).all()
assert part == open(kp.load_file({npy!r}), "rb").read()[5_000_000:5_000_016]
assert kp.load_json({as_json!r}) == {{"a": [1, 2, {{"b": None}}]}}
value = kp.load_pkl({pickled!r})
assert value["y"] == (1, 2) and value["x"].sum() == 3
print("ok")
"""
    read = bob.python(code)
    assert read.stdout == "ok\n", read.stderr


def test_a_range_of_a_large_file_moves_little(lab: Lab) -> None:
    alice, bob = lab.pair()
    recording = lab.file("recording.dat", 64 * MIB)
    uri = alice.cli("store", str(recording)).stdout.strip()

    code = f"print(kp.load_bytes({uri!r}, 40_000_000, 40_000_008).hex(), end='')"
    read = bob.python(f"import kachery_p2p as kp\n{code}")

    with recording.open("rb") as file:
        file.seek(40_000_000)
        assert read.stdout == file.read(8).hex(), read.stderr
    kept = sum(p.stat().st_blocks * 512 for p in bob.storage_dir.rglob("data"))
    assert kept <= 2 * MIB
