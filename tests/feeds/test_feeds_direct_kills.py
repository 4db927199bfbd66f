"""Processes that append, killed at any call, and a node that is killed meanwhile."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.errors import KacheryError
from kachery_p2p.feeds.direct import DirectLog, NotHere
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.log_files import LogFiles
from kachery_p2p.feeds.writers import Standing
from tests.feeds.direct_logs import said, take_in
from tests.feeds.feed_logs import all_of, reopened
from tests.feeds.feed_parts import KEY, LOG, messages

KILLED = """
import json, os, sys
sys.path.insert(0, os.getcwd())
import fcntl
from kachery_p2p.feeds import room
from kachery_p2p.feeds.direct import DirectLog
from tests.feeds.feed_parts import messages
path, told, halves = sys.argv[1], sys.argv[2], sys.argv[3] == "halves"
room.FEED_ROOM_BYTES_MIN = int(sys.argv[4])
CALLS = ("open", "pread", "pwrite", "lseek", "stat", "fdatasync", "ftruncate")

def live():
    log = DirectLog(path)
    size = int(open(told).read())
    for count in (1, 3):
        first = log.append(messages(count, size))
        assert first == size, (first, size)
        size += count
        with open(told, "w") as file:
            file.write(str(size))

def count_down(module, names, left=[0]):
    def wrapped(name):
        really = getattr(module, name)
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                if halves and name == "pwrite":
                    really(args[0], bytes(args[1])[: len(args[1]) // 2], *args[2:])
                os._exit(9)
            return really(*args, **kwargs)
        setattr(module, name, call)
    for name in names:
        wrapped(name)
    return left

for number in range(1, 200):
    child = os.fork()
    if not child:
        left = count_down(os, CALLS)
        count_down(fcntl, ("flock",), left)
        left[0] = number
        live()
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert killed in (0, 9), killed
    # What was acknowledged is there, and whoever comes next goes on behind what was written.
    log = DirectLog(path)
    size = log.append(messages(1, 0, "next"))
    with open(told) as file:
        assert size >= int(file.read())
    print(json.dumps([size, killed]), flush=True)
    with open(told, "w") as file:
        file.write(str(size + 1))
    log.close()
    if not killed:
        break
"""


@pytest.mark.parametrize("room_bytes", [1, 1 << 20], ids=["room", "no room"])
@pytest.mark.parametrize("how", ["before", "halves"])
def test_a_kill_at_any_step_of_a_program_loses_nothing(
    own: LogFile, quick_path: Path, how: str, room_bytes: int
) -> None:
    told = quick_path / "told"
    told.write_text("0")
    answer = subprocess.run(
        [sys.executable, "-c", KILLED, own.path, str(told), how, str(room_bytes)],
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    lines = [json.loads(line) for line in answer.stdout.splitlines()]
    assert len(lines) > 20
    found = take_in(own)
    assert len(found) == own.size == int(told.read_text())
    # Each entry is whole, and at the position that its text says, but for those of the next ones.
    nexts = {size for size, _ in lines}
    assert [found[at] for at in sorted(nexts)] == messages(1, 0, "next") * len(nexts)
    for position, entry in enumerate(found):
        assert position in nexts or entry in messages(1, position)
    assert own.check() == ()


STRACED = """
import os, sys
sys.path.insert(0, os.getcwd())
from kachery_p2p.errors import KacheryError
from kachery_p2p.feeds.direct import DirectLog, NotHere
from tests.feeds.feed_parts import messages
log = DirectLog(sys.argv[1])
for number in range(4):
    try:
        print(log.append(messages(2, 2 * number)), flush=True)
    except (KacheryError, NotHere) as error:
        print(type(error).__name__, flush=True)
        break
"""


@pytest.mark.parametrize(
    "injection",
    [
        *[
            f"{call}:signal=KILL:when={at}"
            for call in ("pwrite64", "fdatasync")
            for at in (1, 2, 3)
        ],
        "flock:signal=KILL:when=2",
        "pwrite64:error=EINTR:when=2+3",
        "pwrite64:error=ENOSPC:when=3+",
        "pwrite64:error=EIO:when=4",
        "fdatasync:error=EIO:when=2",
    ],
)
def test_a_system_call_that_fails_or_kills_loses_nothing(own: LogFile, injection: str) -> None:
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={injection.split(':')[0]}"]
    try:
        answer = subprocess.run(
            [*command, "-e", f"inject={injection}", sys.executable, "-c", STRACED, own.path],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        pytest.skip("strace is not installed")
    if "ptrace" in answer.stderr.lower() or "invalid option" in answer.stderr:
        pytest.skip(f"strace does not work here: {answer.stderr.splitlines()[0]}")
    told = answer.stdout.split()
    positions = [int(word) for word in told if word.isdigit()]
    assert positions == list(range(0, 2 * len(positions), 2))
    if "KILL" in injection:
        assert answer.returncode in (-9, 137), answer.stderr
    elif "EINTR" in injection:
        assert len(positions) == 4
    else:
        assert set(told[len(positions) :]) <= {"FeedStoppedError", "StorageFullError"}
        assert len(positions) < 4
    if said(own).standing is Standing.STOPPED:
        # What was acknowledged is there when the disk has been seen to.
        reopened(own)
    take_in(own)
    assert own.size >= 2 * len(positions)
    assert all_of(own) == messages(own.size)
    assert own.size in (2 * len(positions), 2 * len(positions) + 2)
    assert DirectLog(own.path).append(messages(1, own.size)) == own.size


# --- many processes -------------------------------------------------------------------------------

APPENDS = """
import os, sys, time
sys.path.insert(0, os.getcwd())
from kachery_p2p.feeds.direct import DirectLog, NotHere
from tests.feeds.feed_parts import messages
path, number, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
log, done = None, 0
deadline = time.monotonic() + 60
while done < count and time.monotonic() < deadline:
    try:
        log = log or DirectLog(path)
        print(log.append(messages(1, done, f"p{number}-")), flush=True)
        done += 1
    except NotHere:  # the node is opening it
        log = None
        time.sleep(0.001)
"""
NODE = """
import os, sys
sys.path.insert(0, os.getcwd())
from kachery_p2p.feeds.log_files import LogFiles
from kachery_p2p.feeds.writers import Standing
from tests.feeds.feed_parts import KEY, LOG, messages
own = LogFiles(sys.argv[1]).own(LOG, KEY)
print("open", flush=True)
number = 0
while True:
    print(own.append(messages(1, number, f"n{os.getpid()}-"), 1), flush=True)
    own.absorb()
    own.signed
    number += 1
"""


def begun(program: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def positions_of(process: subprocess.Popen[str]) -> list[int]:
    """What it said; a line that its kill cut off says nothing."""
    assert process.stdout is not None
    lines = process.stdout.read().split("\n")[:-1]
    return [int(line) for line in lines if line.isdigit()]


@pytest.fixture
def path(quick_path: Path) -> Iterator[str]:
    """The feeds of a node that is killed and started again."""
    files = LogFiles(f"{quick_path}/feeds")
    name = files.own(LOG, KEY).path
    files.close()
    yield name


def test_many_processes_append_while_the_node_is_killed_again_and_again(
    path: str, quick_path: Path
) -> None:
    programs = {number: begun(APPENDS, path, str(number), "60") for number in range(8)}
    kept: list[tuple[str, list[int]]] = []
    try:
        for _ in range(4):
            node = begun(NODE, f"{quick_path}/feeds")
            assert node.stdout is not None
            assert node.stdout.readline() == "open\n"
            for _ in range(5):
                node.stdout.readline()
            node.send_signal(signal.SIGKILL)
            kept.append((f"n{node.pid}-", positions_of(node)))
            node.wait()
            node.stdout.close()
        answers = {number: positions_of(program) for number, program in programs.items()}
    finally:
        for program in programs.values():
            program.kill()
            program.communicate()
    files = LogFiles(f"{quick_path}/feeds")
    own = files.own(LOG, KEY)
    found = all_of(own)
    assert own.check() == ()
    for number, positions in answers.items():
        assert len(positions) == 60
        assert positions == sorted(positions)
        assert [found[at] for at in positions] == messages(60, 0, f"p{number}-")
    for what, positions in kept:
        # The first five lines were read before; a kill can leave one more that nobody was told of.
        assert [found[at] for at in positions] == messages(len(positions), 5, what)
    assert len(set(found)) == len(found)
    files.close()


def test_a_process_that_is_killed_with_the_lock_leaves_it_to_the_next(
    own: LogFile, quick_path: Path
) -> None:
    holder = begun(
        "import fcntl, sys, time\nfile = open(sys.argv[1], 'rb')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\nprint('held', flush=True)\ntime.sleep(60)",
        f"{own.path}/writers",
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
        holder.wait()
    began = time.monotonic()
    assert DirectLog(own.path).append(messages(1)) == 0
    assert time.monotonic() - began < 5


# --- one call goes wrong --------------------------------------------------------------------------

FAULTS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "short": 0}


@pytest.mark.parametrize("fault", FAULTS)
def test_any_call_that_fails_is_a_typed_error_and_loses_nothing(
    files: LogFiles, own: LogFile, fault: str
) -> None:
    size = 0
    for number in range(1, 60):
        calls = 0

        def wrap(patch: pytest.MonkeyPatch, name: str, at: int) -> None:
            really = getattr(os, name)

            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == at and FAULTS[fault]:
                    raise OSError(FAULTS[fault], os.strerror(FAULTS[fault]))
                if calls == at and name == "pwrite":
                    return really(args[0], bytes(args[1])[: len(args[1]) // 3], args[2])
                return really(*args, **kwargs)

            patch.setattr(os, name, call)

        with pytest.MonkeyPatch.context() as patch:
            for name in ("open", "pread", "pwrite", "lseek", "stat", "fdatasync", "ftruncate"):
                wrap(patch, name, number)
            try:
                log = DirectLog(own.path)
                for _ in range(2):
                    first = log.append(messages(1, size))
                    assert first == size
                    size += 1
            except NotHere:
                pass
            except KacheryError as error:
                assert error.hint
        own.close()
        own.open()
        assert size <= own.size <= size + 1
        size = own.size
        assert all_of(own) == messages(size)
        if calls < number:
            break
    assert 15 < number < 59
