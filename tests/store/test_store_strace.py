"""The same kills and failures, by the kernel: strace ends the process inside a system call."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.index import Index

STORES = """
import ctypes, os, sys
sys.path.insert(0, os.getcwd())
from kachery_p2p.errors import KacheryError
from kachery_p2p.store import blobs
from kachery_p2p.store.index import Index
blobs.GROUP_OBJECTS_MIN = 2
top = sys.argv[1]
index = Index(top + "/config/index.db")
store = blobs.BlobStore(top + "/store", index, 0)
for way in (lambda: [store.put_bytes(b"single")], lambda: store.put_many([b"1", b"2"])):
    try:
        for outcome in way():
            print(getattr(outcome, "content", type(outcome).__name__), flush=True)
    except KacheryError as error:
        print(type(error).__name__, flush=True)
"""
CONTENTS = {sha1_of(data): data for data in (b"single", b"1", b"2")}
# Each run takes a third of a second, so only the calls on which durability hangs;
# test_store_durability.py has all of them.
CALLS = ["pwrite64", "fsync", "renameat2", "syncfs"]


def store_under(path: Path, injection: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    call = injection.split(":")[0]
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}"]
    answer = subprocess.run(
        [*command, "-e", f"inject={injection}", sys.executable, "-c", STORES, str(path)],
        capture_output=True,
        text=True,
    )
    if "ptrace" in answer.stderr.lower() or "invalid option" in answer.stderr:
        pytest.skip(f"strace does not work here: {answer.stderr.splitlines()[0]}")
    return answer


def check_store(path: Path, acknowledged: list[str]) -> None:
    index = Index(f"{path}/config/index.db")
    store = BlobStore(f"{path}/store", index, 0)
    files = [file for file in (path / "store" / "sha1").glob("*/*/*/*") if file.is_file()]
    for file in files:
        assert file.read_bytes() == CONTENTS[sha1_of(file.read_bytes())]
        assert file.name == sha1_of(file.read_bytes())
    assert set(acknowledged) & CONTENTS.keys() <= {file.name for file in files}
    for data in CONTENTS.values():
        store.open_verified(store.put_bytes(data).content).close()
    assert all(checked.error is None for checked in store.verify_store())
    index.close()


@pytest.mark.parametrize("call", CALLS)
def test_a_kill_inside_any_system_call_leaves_whole_objects(quick_path: Path, call: str) -> None:
    # The index is there already: what SQLite writes is not what is looked at here.
    index = Index(f"{quick_path}/new/config/index.db")
    index.pinned_root(sha1_of(b""))
    index.close()
    at = 0
    for at in range(1, 100):
        path = quick_path / str(at)
        shutil.copytree(quick_path / "new", path)
        answer = store_under(path, f"{call}:signal=KILL:when={at}")
        if not answer.returncode:
            break
        assert answer.returncode in (-9, 137), answer.stderr
        check_store(path, answer.stdout.split())
    assert at > 2


@pytest.mark.parametrize("fault", ["error=EIO", "error=ENOSPC"])
@pytest.mark.parametrize("call", ["fsync", "syncfs", "renameat2"])
def test_a_system_call_that_fails_is_a_typed_error(quick_path: Path, call: str, fault: str) -> None:
    # From the second on, for good: the first fsync is that of the index's own directory.
    answer = store_under(quick_path, f"{call}:{fault}:when={2 if call == 'fsync' else 1}+")
    assert answer.returncode == 0, answer.stderr
    told = answer.stdout.split()
    assert {"StorageFailedError", "StorageFullError"} & set(told)
    check_store(quick_path, told)


def test_an_interrupted_write_is_made_again(quick_path: Path) -> None:
    answer = store_under(quick_path, "pwrite64:error=EINTR:when=1")
    assert sorted(answer.stdout.split()) == sorted(CONTENTS)
    check_store(quick_path, answer.stdout.split())
    assert os.listdir(quick_path / "store" / ".tmp") == []
