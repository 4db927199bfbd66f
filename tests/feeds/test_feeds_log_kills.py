"""The order in which things reach the disk, and what a kill at any step leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.feeds import keys
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.log_files import LogFiles
from kachery_p2p.log.heads import SignedHead
from kachery_p2p.log.rules import Writer
from kachery_p2p.log.tree import Frontier, leaf_hash
from tests.feeds.feed_parts import KEY, LOG, messages

KILLED = """
import json, os, sys
sys.path.insert(0, os.getcwd())
from kachery_p2p.feeds import opened
from kachery_p2p.feeds.keys import FeedKey, save
from kachery_p2p.feeds.log_files import LogFiles
from kachery_p2p.log.tree import leaf_hash
from tests.feeds.feed_parts import KEY, LOG, messages
opened.FEED_CHECKPOINT_ENTRIES = 6
CALLS = ("open", "mkdir", "pwrite", "write", "fsync", "fdatasync", "ftruncate", "rename", "link",
         "unlink")
top, halves = sys.argv[1], sys.argv[2] == "halves"

def tell(what):
    with open(home + "/acknowledged", "a") as file:
        file.write(json.dumps(what) + "\\n")

def live():
    key = FeedKey(bytes(range(32)))
    save(home, key)
    tell({"key": key.feed})
    own = LogFiles(home + "/feeds").own(LOG, KEY)
    copies = LogFiles(home + "/copies")
    copy = copies.copy(LOG)
    for count in (1, 3, 4):
        own.append(messages(count, own.size), 1)
        tell({"own": own.size})
        copy.keep([], copy.frontier(), [], own.signed)
        entries = own.entries(copy.size, 2, 1 << 20)
        frontier, stored = copy.frontier().extended(map(leaf_hash, entries))
        copy.keep(entries, frontier, stored, None)
        tell({"copy": copy.size, "head": copy.signed.encode().hex()})
        if count == 3:
            own.close()
    tell({"deleting": True})
    copies.delete(LOG)
    tell({"deleted": True})

def count_down(left):
    def wrapped(name):
        really = getattr(os, name)
        def call(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                if halves and name in ("pwrite", "write"):
                    really(args[0], bytes(args[1])[: len(args[1]) // 2], *args[2:])
                os._exit(9)
            return really(*args, **kwargs)
        setattr(os, name, call)
    for name in CALLS:
        wrapped(name)

for number in range(1, 1_000):
    home = f"{top}/{number}"
    os.mkdir(home, 0o700)
    child = os.fork()
    if not child:
        count_down(number)
        live()
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not killed:
        break
    assert killed == 9, killed
print(number)
"""


def acknowledged(home: Path) -> dict[str, Any]:
    """The last that was said of each thing before the kill."""
    told: dict[str, Any] = {"own": 0, "copy": 0}
    if (home / "acknowledged").exists():
        for line in (home / "acknowledged").read_text().splitlines():
            told |= json.loads(line)
    return told


def check_own(home: Path, size: int) -> None:
    files = LogFiles(f"{home}/feeds")
    own = files.own(LOG, KEY)
    assert own.size >= size
    assert not own.restored
    assert own.entries(0, 100, 1 << 20) == messages(own.size)
    assert own.check() == ()
    # The writer's state fits: it goes on from the head that is on the disk.
    Writer(LOG, KEY, own.frontier(), own.signed)
    first = own.append(messages(1, own.size), 2)
    assert own.entries(first, 1, 1 << 20) == messages(1, first)
    files.close()


def check_copy(home: Path, told: dict[str, Any]) -> None:
    files = LogFiles(f"{home}/copies")
    copy = files.get(LOG)
    if copy is None:
        assert "deleting" in told or not told["copy"]
        assert not list((home / "copies").glob(".deleted-*"))
        return
    assert "deleted" not in told
    assert copy.size >= told["copy"]
    assert copy.entries(0, 100, 1 << 20) == messages(copy.size)
    if "head" in told:
        known = SignedHead.decode(bytes.fromhex(told["head"]), LOG.tag)
        assert copy.signed is not None
        assert copy.signed.size >= known.size
        assert copy.signed == known or copy.signed.size > known.size
    frontier = Frontier().extended(map(leaf_hash, messages(copy.size))).frontier
    assert copy.frontier() == frontier
    files.close()


@pytest.mark.parametrize("how", ["before", "halves"])
def test_a_kill_at_any_step_loses_nothing_that_was_acknowledged(quick_path: Path, how: str) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", KILLED, str(quick_path), how],
        check=True,
        capture_output=True,
        text=True,
    )
    steps = int(answer.stdout)
    assert 100 < steps < 999
    for number in range(1, steps + 1):
        home = quick_path / str(number)
        told = acknowledged(home)
        assert (number == steps) == bool(told.get("deleted"))
        if "key" in told:
            assert keys.load(str(home), told["key"]) is not None
        check_own(home, told["own"])
        check_copy(home, told)


# --- the order --------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written and synced from now on, in order."""
    told: list[str] = []

    def wrap(name: str) -> None:
        really = getattr(os, name)

        def call(fd: int, *args: Any) -> Any:
            told.append(f"{name} {os.path.basename(os.readlink(f'/proc/self/fd/{fd}'))}")
            return really(fd, *args)

        monkeypatch.setattr(os, name, call)

    for name in ("pwrite", "fsync", "fdatasync", "ftruncate"):
        wrap(name)
    return told


def test_a_batch_is_one_write_and_one_sync(own: LogFile, calls: list[str]) -> None:
    own.append(messages(100), 1)
    calls.append("acknowledged")
    assert calls == [
        "pwrite hashes",
        "pwrite offsets",
        "pwrite entries",
        "pwrite writers",
        "fdatasync entries",
        "acknowledged",
    ]


def test_nobody_hears_of_an_entry_before_it_is_on_the_disk(
    own: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, object]] = []
    really = os.fdatasync

    def looking(fd: int) -> None:
        seen.append((own.size, own.signed))
        assert own.entries(0, 10, 1 << 20) == []
        really(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", looking)
        own.append(messages(2), 1)
    assert seen == [(0, None)]
    assert own.entries(0, 10, 1 << 20) == messages(2)


def test_a_directory_is_on_the_disk_before_a_log_is_in_it(quick_path: Path) -> None:
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        really = os.fsync

        def noted(fd: int) -> None:
            told.append(os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), quick_path))
            really(fd)

        patch.setattr(os, "fsync", noted)
        LogFiles(f"{quick_path}/feeds").own(LOG, KEY).append(messages(1), 1)
    name = LOG.name.hex()
    path = f"feeds/{name[:2]}/{name}"
    made = [about for about in told if ".temp" not in about]
    assert made[:3] == [".", "feeds", f"feeds/{name[:2]}"]
    assert set(made[3:]) == {path}


def test_a_checkpoint_says_only_what_is_on_the_disk(
    own: LogFile, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kachery_p2p.feeds.opened.FEED_CHECKPOINT_ENTRIES", 2)
    own.append(messages(3), 1)
    synced = [call for call in calls if "pwrite" not in call]
    assert synced[:3] == ["fdatasync entries", "fdatasync hashes", "fdatasync offsets"]
    assert synced[3].startswith("fsync .temp-")
