"""Power cuts: a small disk is cut off at any moment, and whatever was acknowledged is there.

The disk is an ext4 image behind a loop device, and the cut is EXT4_IOC_SHUTDOWN without a
flush of the journal: what was not synced is lost, as it is when the plug is pulled. The
index lies on the same disk. Only root can do that.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CUTS = """
import ctypes, fcntl, hashlib, json, os, random, struct, subprocess, sys, threading
sys.path.insert(0, os.getcwd())
from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.errors import KacheryError
from kachery_p2p.store.blobs import BlobStore, Stored
from kachery_p2p.store.index import Index

top, cycles, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
image, disk = top + "/image", top + "/disk"
rng = random.Random(seed)
EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2
acknowledged, lost, corrupt, cut_short, kept = {}, 0, 0, 0, 0

def mount():
    subprocess.run(["mount", "-o", "loop", image, disk], check=True)

def cut():
    fd = os.open(disk, os.O_RDONLY)
    fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
    os.close(fd)

class Enough(Exception):
    pass

class Writers:
    def __init__(self, store, cycle, left):
        self.store, self.cycle, self.left = store, cycle, left
        self.lock = threading.Lock()
        self.acknowledged = {}
        self.failed = 0

    def step(self):
        # Cut after so many syncs, whichever of them it is: the others are under way.
        with self.lock:
            self.left -= 1
            if self.left == 0:
                cut()

    def note(self, outcome, data):
        if isinstance(outcome, Stored):
            self.acknowledged[outcome.content] = len(data)
        else:
            self.failed += 1
            raise Enough

    def singles(self):
        with_seed = random.Random(self.cycle)
        for number in range(10_000):
            data = with_seed.randbytes(with_seed.randrange(1, 20_000))
            self.note(self.store.put_bytes(data), data)

    def groups(self):
        with_seed = random.Random(-self.cycle)
        for number in range(10_000):
            items = [with_seed.randbytes(with_seed.randrange(1, 2_000)) for _ in range(70)]
            for outcome, data in zip(self.store.put_many(items), items):
                self.note(outcome, data)

    def run(self, way):
        try:
            way()
        except (Enough, KacheryError):
            pass

def hooked(writers):
    really_fsync, really_syncfs = os.fsync, groups.sync_filesystem
    def fsync(fd):
        really_fsync(fd)
        writers.step()
    def sync_filesystem(fd):
        really_syncfs(fd)
        writers.step()
    return fsync, sync_filesystem

from kachery_p2p.store import groups
fsync, syncfs = os.fsync, groups.sync_filesystem
subprocess.run(["truncate", "-s", "128m", image], check=True)
os.mkdir(disk)
for cycle in range(1, cycles + 1):
    if cycle % 10 == 1:  # a new disk, after ten cuts of the old one
        if cycle > 1:
            subprocess.run(["umount", disk], check=True)
        subprocess.run(["mkfs.ext4", "-qF", "-b", "4096", "-N", "60000", image], check=True)
        mount()
        acknowledged.clear()
    index = Index(disk + "/config/index.db")
    store = BlobStore(disk + "/store", index, 0)
    index.pinned_root(sha1_of(b""))
    writers = Writers(store, cycle, rng.randrange(2, 70))
    os.fsync, groups.sync_filesystem = hooked(writers)
    threads = [
        threading.Thread(target=writers.run, args=[way])
        for way in (writers.singles, writers.groups)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.fsync, groups.sync_filesystem = fsync, syncfs
    cut_short += writers.left <= 0
    try:
        store.close()
        index.close()
    except Exception:
        pass
    subprocess.run(["umount", disk], check=True)
    acknowledged.update(writers.acknowledged)
    kept += len(writers.acknowledged)
    mount()
    there = set()
    for directory, _, names in os.walk(disk + "/store/sha1"):
        for name in names:
            with open(os.path.join(directory, name), "rb") as file:
                if sha1_of(file.read()) == name:
                    there.add(name)
                else:
                    corrupt += 1
    lost += len(acknowledged.keys() - there)
    # What the index believes in is so, and the store goes on.
    index = Index(disk + "/config/index.db")
    store = BlobStore(disk + "/store", index, 0)
    for content in list(index.contents()):
        if content in there and store.known(content) is not None:
            assert store.known(content).content == content
    store.open_verified(store.put_bytes(b"after %d" % cycle).content).close()
    index.close()
print(json.dumps({"cut": cut_short, "lost": lost, "corrupt": corrupt, "kept": kept}))
"""


def cut_power(path: Path, cycles: int, seed: int) -> dict[str, Any]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk to cut off")
    for tool in ("unshare", "mkfs.ext4", "mount", "truncate"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    # In a mount namespace of its own, so that nothing stays mounted whatever happens.
    answer = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", CUTS, str(path), str(cycles), str(seed)],
        capture_output=True,
        text=True,
    )
    if "unshare:" in answer.stderr or "mount:" in answer.stderr:
        pytest.skip(f"no loop mounts here: {answer.stderr.splitlines()[0]}")
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)  # type: ignore[no-any-return]


def test_nothing_acknowledged_is_lost_in_fifty_power_cuts(quick_path: Path) -> None:
    told = cut_power(quick_path, cycles=50, seed=3)
    assert told["cut"] == 50
    assert (told["lost"], told["corrupt"]) == (0, 0)
    assert told["kept"] > 500


@pytest.mark.soak
def test_nothing_acknowledged_is_lost_in_a_thousand_power_cuts(quick_path: Path) -> None:
    told = cut_power(quick_path, cycles=1_000, seed=4)
    assert told["cut"] == 1_000
    assert (told["lost"], told["corrupt"]) == (0, 0)
