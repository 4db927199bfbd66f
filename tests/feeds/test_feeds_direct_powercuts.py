"""Power cuts while the node and several programs append to one subfeed."""

from __future__ import annotations

from pathlib import Path

from tests.feeds.test_feeds_log_powercuts import cut_power

CUTS = """
import errno, fcntl, json, os, random, struct, subprocess, sys, threading
sys.path.insert(0, os.getcwd())
from kachery_p2p.errors import KacheryError
from kachery_p2p.feeds import opened, room, writers
from kachery_p2p.feeds.direct import DirectLog, NotHere
from kachery_p2p.feeds.log_files import LogFiles
from tests.feeds.feed_parts import KEY, LOG, messages

top, cycles, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
image, disk = top + "/image", top + "/disk"
rng = random.Random(seed)
EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2
told = {"cut": 0, "lost": 0, "wrong": 0, "kept": 0}
lock = threading.Lock()
left = 0
# From the first record on.
room.FEED_ROOM_BYTES_MIN = 1

def step():
    global left
    with lock:
        left -= 1
        if left < 0:
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

def append(log, number, kept):
    count = 0
    while True:
        # Some are longer than a page, so that a part of one can be missing.
        first = log.append(messages(rng.choice([1, 1, 2, 300]), count, f"c{cycle}-{number}-"))
        kept[number, count] = first
        count += 1

def absorb(own, number, kept):
    while True:
        own.absorb()
        first = own.append(messages(1, 0, f"node{cycle}-"), 1)
        kept[number, first] = first

def run(way, *arguments):
    try:
        way(*arguments)
    except (KacheryError, NotHere, OSError):
        pass

subprocess.run(["truncate", "-s", "64m", image], check=True)
os.mkdir(disk)
really = os.fsync, os.fdatasync
known = []
for cycle in range(1, cycles + 1):
    writers.boot_id = lambda: b"boot%12d" % cycle
    if cycle % 10 == 1:
        if cycle > 1:
            subprocess.run(["umount", disk], check=True)
        subprocess.run(["mkfs.ext4", "-qF", "-b", "4096", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, disk], check=True)
        known = []
    files = LogFiles(disk + "/feeds")
    # Not while it is opened, which is for the node alone.
    left = rng.randrange(16, 88)
    os.fsync, os.fdatasync = map(hooked, really)
    kept = {}
    own = files.own(LOG, KEY)
    logs = [DirectLog(own.path) for _ in range(5)]
    threads = [threading.Thread(target=run, args=[append, log, n, kept])
               for n, log in enumerate(logs)]
    threads.append(threading.Thread(target=run, args=[absorb, own, 9, kept]))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.fsync, os.fdatasync = really
    told["cut"] += left <= 0
    run(files.close)
    for log in logs:
        log.close()
    del own, logs, log
    subprocess.run(["umount", disk], check=True)
    subprocess.run(["mount", "-o", "loop", image, disk], check=True)
    files = LogFiles(disk + "/feeds")
    own = files.own(LOG, KEY)
    found = []
    while batch := own.entries(len(found), 10_000, 1 << 20):
        found += batch
    told["kept"] += len(kept)
    for (number, count), first in kept.items():
        expected = (messages(1, 0, f"node{cycle}-") if number == 9
                    else messages(1, count, f"c{cycle}-{number}-"))
        told["lost"] += found[first : first + 1] != expected
    told["wrong"] += len(found) != own.size or bool(own.check()) or found[: len(known)] != known
    told["wrong"] += own.restored
    own.append(messages(1, 0, "after"), 2)
    known = [*found, *messages(1, 0, "after")]
    files.close()
    del own
print(json.dumps(told))
"""


def test_nothing_acknowledged_is_lost_in_power_cuts_with_many_writers(quick_path: Path) -> None:
    told = cut_power(quick_path, cycles=12, seed=5, program=CUTS)
    assert told["cut"] == 12
    assert (told["lost"], told["wrong"]) == (0, 0)
    assert told["kept"] > 100
