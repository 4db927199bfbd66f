"""Power cuts: a small disk is cut off at any moment, and whatever was acknowledged is there.

As in the tests of the store: an ext4 image behind a loop device, cut off by EXT4_IOC_SHUTDOWN
without a flush of the journal. Only root can do that.
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
import errno, fcntl, json, os, random, struct, subprocess, sys, threading
sys.path.insert(0, os.getcwd())
from kachery_p2p.errors import KacheryError
from kachery_p2p.feeds import opened
from kachery_p2p.feeds.log_files import LogFiles
from kachery_p2p.log.tree import Frontier, leaf_hash
from tests.feeds.feed_parts import KEY, LOG, messages

top, cycles, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
image, disk = top + "/image", top + "/disk"
rng = random.Random(seed)
EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2
opened.FEED_CHECKPOINT_ENTRIES = 40
told = {"cut": 0, "lost": 0, "wrong": 0, "kept": 0}
acknowledged = {"own": 0, "copy": 0}
lock = threading.Lock()
left = 0

def mount():
    subprocess.run(["mount", "-o", "loop", image, disk], check=True)

def step():
    # Cut after so many syncs, whichever of them it is: the other thread is at work.
    global left
    with lock:
        left -= 1
        if left < 0:
            # Without power nobody is told anything. (A sync that is under way when the file
            # system is shut down may return as if all was well.)
            raise OSError(errno.EIO, "no power")
        if left == 0:
            fd = os.open(disk, os.O_RDONLY)
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
            os.close(fd)

def hooked(really):
    def sync(fd):
        really(fd)
        step()
    return sync

def append(own):
    with_seed = random.Random(seed + own.size)
    while True:
        count = with_seed.choice([1, 1, 1, 2, 40])
        own.append(messages(count, own.size), 1)
        acknowledged["own"] = own.size

def keep(copy, of):
    # Cut off while both are the same, it has nothing more to do.
    while left > 0 or copy.size < of.size:
        copy.keep([], copy.frontier(), [], of.signed)
        entries = of.entries(copy.size, 9, 1 << 20)
        if entries and copy.size + len(entries) <= copy.signed.size:
            frontier, stored = copy.frontier().extended(map(leaf_hash, entries))
            copy.keep(entries, frontier, stored, None)
            acknowledged["copy"] = copy.size

def run(way, *arguments):
    try:
        way(*arguments)
    except (KacheryError, OSError):
        pass

def check(name, log_file):
    told["kept"] += acknowledged[name]
    told["lost"] += max(0, acknowledged[name] - log_file.size)
    found = []
    while batch := log_file.entries(len(found), 10_000, 1 << 20):
        found += batch
    told["wrong"] += found != messages(log_file.size) or bool(log_file.check())
    acknowledged[name] = log_file.size

subprocess.run(["truncate", "-s", "64m", image], check=True)
os.mkdir(disk)
really = os.fsync, os.fdatasync
for cycle in range(1, cycles + 1):
    if cycle % 10 == 1:  # a new disk, after ten cuts of the old one
        if cycle > 1:
            subprocess.run(["umount", disk], check=True)
        subprocess.run(["mkfs.ext4", "-qF", "-b", "4096", image], check=True)
        mount()
        acknowledged = {"own": 0, "copy": 0}
    own_files, copies = LogFiles(disk + "/feeds"), LogFiles(disk + "/copies")
    left = rng.randrange(1, 80)
    os.fsync, os.fdatasync = map(hooked, really)
    try:
        own, copy = own_files.own(LOG, KEY), copies.copy(LOG)
        if not own.size:
            own.append(messages(1), 1)
            acknowledged["own"] = 1
        threads = [
            threading.Thread(target=run, args=[append, own]),
            threading.Thread(target=run, args=[keep, copy, own]),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except (KacheryError, OSError):
        pass
    os.fsync, os.fdatasync = really
    told["cut"] += left <= 0
    for files in (own_files, copies):
        run(files.close)
    own = copy = None
    subprocess.run(["umount", disk], check=True)
    mount()
    own_files, copies = LogFiles(disk + "/feeds"), LogFiles(disk + "/copies")
    check("own", own_files.own(LOG, KEY))
    check("copy", copies.copy(LOG))
    own = own_files.own(LOG, KEY)
    told["wrong"] += own.restored
    own.append(messages(1, own.size), 2)
    acknowledged["own"] = own.size
    own_files.close()
    copies.close()
print(json.dumps(told))
"""


def cut_power(path: Path, cycles: int, seed: int, program: str = CUTS) -> dict[str, Any]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk to cut off")
    for tool in ("unshare", "mkfs.ext4", "mount", "truncate"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    # In a mount namespace of its own, so that nothing stays mounted whatever happens.
    answer = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", program, str(path), str(cycles), str(seed)],
        capture_output=True,
        text=True,
    )
    if "unshare:" in answer.stderr or "mount:" in answer.stderr:
        pytest.skip(f"no loop mounts here: {answer.stderr.splitlines()[0]}")
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)  # type: ignore[no-any-return]


def test_nothing_acknowledged_is_lost_in_fifty_power_cuts(quick_path: Path) -> None:
    told = cut_power(quick_path, cycles=50, seed=5)
    assert told["cut"] == 50
    assert (told["lost"], told["wrong"]) == (0, 0)
    assert told["kept"] > 500


@pytest.mark.soak
def test_nothing_acknowledged_is_lost_in_a_thousand_power_cuts(quick_path: Path) -> None:
    told = cut_power(quick_path, cycles=1_000, seed=6)
    assert told["cut"] == 1_000
    assert (told["lost"], told["wrong"]) == (0, 0)
