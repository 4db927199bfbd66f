"""The same kills and failures, by the kernel: strace ends the process inside a system call."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kachery_p2p.feeds.log_files import LogFiles
from tests.feeds.feed_parts import KEY, LOG, messages

APPENDS = """
import os, sys
sys.path.insert(0, os.getcwd())
from kachery_p2p.errors import KacheryError
from kachery_p2p.feeds import opened
from kachery_p2p.feeds.log_files import LogFiles
from tests.feeds.feed_parts import KEY, LOG, messages
opened.FEED_CHECKPOINT_ENTRIES = 4
files = LogFiles(sys.argv[1] + "/feeds")
for count in (1, 3, 1, 2):
    try:
        own = files.own(LOG, KEY)
        own.append(messages(count, own.size), 1)
        print(own.size, flush=True)
    except KacheryError as error:
        print(type(error).__name__, flush=True)
        files.close()
"""
# Each run takes a third of a second, so only the calls on which durability hangs;
# test_feeds_log_kills.py has all of them.
CALLS = ["pwrite64", "fdatasync", "rename"]


def append_under(path: Path, injection: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    call = injection.split(":")[0]
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}"]
    answer = subprocess.run(
        [*command, "-e", f"inject={injection}", sys.executable, "-c", APPENDS, str(path)],
        capture_output=True,
        text=True,
    )
    if "ptrace" in answer.stderr.lower() or "invalid option" in answer.stderr:
        pytest.skip(f"strace does not work here: {answer.stderr.splitlines()[0]}")
    return answer


def check_log(path: Path, told: list[str]) -> None:
    sizes = [int(word) for word in told if word.isdigit()]
    files = LogFiles(f"{path}/feeds")
    own = files.own(LOG, KEY)
    assert own.size >= max(sizes, default=0)
    assert own.entries(0, 100, 1 << 20) == messages(own.size)
    assert own.check() == ()
    assert own.append(messages(1, own.size), 2) == own.size - 1
    files.close()


@pytest.mark.parametrize("call", CALLS)
def test_a_kill_inside_any_system_call_loses_nothing(quick_path: Path, call: str) -> None:
    at = 0
    for at in range(1, 100):
        path = quick_path / str(at)
        path.mkdir()
        answer = append_under(path, f"{call}:signal=KILL:when={at}")
        if not answer.returncode:
            break
        assert answer.returncode in (-9, 137), answer.stderr
        check_log(path, answer.stdout.split())
    assert at > 2


@pytest.mark.parametrize("fault", ["error=EIO", "error=ENOSPC"])
@pytest.mark.parametrize("call", ["fdatasync", "pwrite64"])
def test_a_system_call_that_fails_is_a_typed_error(quick_path: Path, call: str, fault: str) -> None:
    answer = append_under(quick_path, f"{call}:{fault}:when=4+")
    assert answer.returncode == 0, answer.stderr
    told = answer.stdout.split()
    assert {"FeedStoppedError", "StorageFailedError", "StorageFullError"} & set(told)
    check_log(quick_path, told)


def test_an_interrupted_or_short_write_is_gone_on_with(quick_path: Path) -> None:
    answer = append_under(quick_path, "pwrite64:error=EINTR:when=2+3")
    assert answer.stdout.split() == ["1", "4", "5", "7"]
    check_log(quick_path, answer.stdout.split())
