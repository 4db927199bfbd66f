"""The order in which things reach the disk, and what a kill at any step leaves."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.store import groups, objects, placing, small, temps
from kachery_p2p.store.blobs import BlobStore, Stored
from kachery_p2p.store.index import Index
from kachery_p2p.store.paths import temp_dir

# Every call by which the store changes a disk.
CALLS = (
    "open",
    "mkdir",
    "chmod",
    "fchmod",
    "pwrite",
    "copy_file_range",
    "fsync",
    "rename",
    "rename_new",
    "sync_filesystem",
    "ftruncate",
    "unlink",
    "rmdir",
)
NODE = "ab" * 32


def recorded(monkeypatch: pytest.MonkeyPatch, top: str) -> list[str]:
    """The durable calls made from now on, each with the path it was about."""
    told: list[str] = []

    def wrap(name: str, about: Callable[..., str]) -> None:
        really = getattr(os, name)

        def call(*args: Any) -> Any:
            told.append(f"{name} {about(*args)}")
            return really(*args)

        monkeypatch.setattr(os, name, call)

    def of_fd(fd: int, *_: object) -> str:
        return os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), top)

    wrap("fsync", of_fd)
    wrap("fchmod", of_fd)
    wrap("mkdir", lambda path, *_: os.path.relpath(path, top))
    for module, name in (
        (placing, "rename_new"),
        (small, "rename_new"),
        (groups, "sync_filesystem"),
    ):
        really = getattr(module, name)

        def call(*args: Any, name: str = name, really: Callable[..., Any] = really) -> Any:
            about = os.path.relpath(args[1], top) if name == "rename_new" else "all"
            told.append(f"{name.removesuffix('_new')} {about}")
            return really(*args)

        monkeypatch.setattr(module, name, call)
    return told


def test_an_object_is_durable_before_its_name_and_its_name_before_the_answer(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"data")
    told = recorded(monkeypatch, str(tmp_path))
    stored = store.put_file(tmp_path / "file")
    h = stored.content
    a, b, c = f"store/sha1/{h[:2]}", f"store/sha1/{h[:2]}/{h[2:4]}", os.path.dirname(stored.path)
    c = os.path.relpath(c, tmp_path)
    temp = next(call.split()[1] for call in told if "fchmod" in call)
    assert temp.startswith("store/.tmp/")
    calls = [call for call in told if "config" not in call and call != "mkdir store/.tmp"]
    # The directories that gained a directory, in any order.
    assert [*calls[:-4], *sorted(calls[-4:])] == [
        "mkdir store",
        "fsync .",
        "fsync store",
        "mkdir store/sha1",
        f"mkdir {a}",
        f"mkdir {b}",
        f"mkdir {c}",
        f"fchmod {temp}",
        f"fsync {temp}",
        f"rename {os.path.relpath(stored.path, tmp_path)}",
        f"fsync {c}",
        *sorted(("fsync store", "fsync store/sha1", f"fsync {a}", f"fsync {b}")),
    ]


def test_the_short_way_of_a_value_keeps_the_same_order(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_bytes(b"first")
    told = recorded(monkeypatch, str(tmp_path))
    stored = store.put_bytes(b"data")
    h = stored.content
    a, b, c = f"store/sha1/{h[:2]}", f"store/sha1/{h[:2]}/{h[2:4]}", os.path.dirname(stored.path)
    c = os.path.relpath(c, tmp_path)
    temp = next(call.split()[1] for call in told if "fchmod" in call)
    calls = [call for call in told if "config" not in call]
    # Directories while the disk takes the bytes; these before the name.
    assert [*calls[:-3], *sorted(calls[-3:])] == [
        f"mkdir {a}",
        f"mkdir {b}",
        f"mkdir {c}",
        f"fchmod {temp}",
        f"fsync {temp}",
        f"rename {os.path.relpath(stored.path, tmp_path)}",
        f"fsync {c}",
        *sorted(("fsync store/sha1", f"fsync {a}", f"fsync {b}")),
    ]


def test_directories_that_another_process_made_are_synced_too(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    h = sha1_of(b"data")
    os.makedirs(f"{tmp_path}/store/sha1/{h[:2]}/{h[2:4]}/{h[4:6]}")
    told = recorded(monkeypatch, str(tmp_path))
    store.put_bytes(b"data")
    for name in ("store", "store/sha1", f"store/sha1/{h[:2]}", f"store/sha1/{h[:2]}/{h[2:4]}"):
        assert f"fsync {name}" in told


def test_an_object_that_stands_is_made_durable_before_it_is_acknowledged(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = store.put_bytes(b"data")
    (tmp_path / "file").write_bytes(b"data")
    told = recorded(monkeypatch, str(tmp_path))
    store.put_file(tmp_path / "file")
    assert f"fsync {os.path.relpath(os.path.dirname(stored.path), tmp_path)}" in told
    assert not [call for call in told if call.startswith("rename")]


def test_a_group_is_durable_before_its_names_and_its_names_before_the_answer(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [b"%d" % number for number in range(70)]
    told = recorded(monkeypatch, str(tmp_path))
    answers = []
    for answer in store.put_many(items):
        assert isinstance(answer, Stored)
        told.append(f"answer {os.path.relpath(answer.path, tmp_path)}")
        answers.append(answer)
    kinds = [call.split()[0] for call in told if "config" not in call]
    first, second = (at for at, kind in enumerate(kinds) if kind == "sync_filesystem")
    # Their modes are those of objects from the beginning.
    assert "fchmod" not in kinds
    assert "rename" not in kinds[:first]
    assert kinds[first:second].count("rename") == 70
    assert set(kinds[second:]) == {"sync_filesystem", "answer"}


def test_where_one_sync_promises_nothing_each_file_and_directory_is_synced(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temps, "syncs_at_once", lambda fd: False)
    told = recorded(monkeypatch, str(tmp_path))
    items = [b"%d" % number for number in range(70)]
    stored = [answer for answer in store.put_many(items) if isinstance(answer, Stored)]
    assert len(stored) == 70
    assert "sync_filesystem all" not in told
    names = [call for call in told if "config" not in call]
    at = {call: number for number, call in enumerate(names)}
    for number, answer in enumerate(stored):
        temp = next(call for call in names if call.endswith(f"/{number + 1}") and "fsync" in call)
        path = os.path.relpath(answer.path, tmp_path)
        assert at[temp] < at[f"rename {path}"]
        while (path := os.path.dirname(path)) != "store":
            assert at[f"mkdir {path}"] < at[f"fsync {os.path.dirname(path)}"]
        assert (
            at[f"rename {os.path.relpath(answer.path, tmp_path)}"]
            < at[f"fsync {os.path.relpath(os.path.dirname(answer.path), tmp_path)}"]
        )


# --- kill at every step ---------------------------------------------------------------------

KILLED = """
import ctypes, hashlib, json, os, sys
sys.path.insert(0, os.getcwd())
from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.store import blobs as blobs_module, groups, placing, small, temps
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.hashing import hash_bytes
from kachery_p2p.store.index import Index
from kachery_p2p.store.partials import Partial

top, how, calls = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
DATA = hashlib.shake_128(b"kill").digest(2_500_000)
MIB = 1 << 20
blobs_module.GROUP_OBJECTS_MIN = 3
if how == "many on nfs":
    temps.syncs_at_once = lambda fd: False

def store(home):
    index = Index(home + "/config/index.db")
    blobs = BlobStore(home + "/store", index, 0)
    if how == "file":
        return blobs.put_file(top + "/file").content
    if how == "bytes":
        return blobs.put_bytes(DATA).content
    if how == "small":
        return blobs.put_bytes(DATA[:1000]).content
    if how == "stream":
        return blobs.put_stream([DATA[:17], DATA[17:]], sha1_of(DATA)).content
    if how.startswith("many"):
        return [one.content for one in blobs.put_many([b"1", b"2", top + "/file", b"2"])]
    if how == "removed":
        content = blobs.put_bytes(DATA).content
        blobs.remove(content)
        return blobs.put_bytes(DATA).content
    if how == "quarantined":
        path = blobs.put_bytes(DATA).path
        os.chmod(path, 0o644)
        open(path, "wb").write(b"rot")
        blobs.put_file(top + "/file").content
        list(blobs.verify_store())
        return
    manifest = hash_bytes(DATA)
    partial = Partial.open(home + "/store", "ab" * 32, manifest.root_object, 0)
    held = set(partial.verified_chunks())
    for number in range(3):
        if number not in held:
            partial.write_page(0, manifest.pages[0])
            partial.write_chunk(number, DATA[number * MIB : (number + 1) * MIB])
    return blobs.adopt_partial(partial, manifest).content

def count_down(left):
    for name in calls:
        for module in (os, placing, small, groups):
            if not hasattr(module, name):
                continue
            def call(*args, _really=getattr(module, name), **kwargs):
                nonlocal left
                left -= 1
                if left == 0:
                    os._exit(9)
                return _really(*args, **kwargs)
            setattr(module, name, call)

open(top + "/file", "wb").write(DATA)
for number in range(1, 400):
    home = f"{top}/{number}"
    os.mkdir(home)
    child = os.fork()
    if not child:
        count_down(number)
        store(home)
        open(home + "/acknowledged", "w").close()
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not killed:
        break
    assert killed == 9, killed
print(json.dumps({"steps": number}))
"""
WAYS = [
    "file",
    "bytes",
    "small",
    "stream",
    "partial",
    "many",
    "many on nfs",
    "removed",
    "quarantined",
]


@pytest.mark.parametrize("how", WAYS)
def test_a_kill_at_any_step_leaves_whole_objects_or_none(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    # Nothing here changes a file behind the store's back, so nothing need settle.
    monkeypatch.setattr(objects, "unsettled_s", lambda status: 0)
    answer = subprocess.run(
        [sys.executable, "-c", KILLED, str(quick_path), how, ",".join(CALLS)],
        check=True,
        capture_output=True,
        text=True,
    )
    steps = json.loads(answer.stdout)["steps"]
    assert 15 < steps < 399
    data = hashlib.shake_128(b"kill").digest(2_500_000)
    contents = {data, b"1", b"2"} if how.startswith("many") else {data}
    if how == "small":
        contents = {data[:1000]}
    complete = 0
    for number in range(1, steps + 1):
        home = f"{quick_path}/{number}"
        # The one that rots by itself may be seen before it is moved away.
        found = [path.read_bytes() for path in objects_in(f"{home}/store", how != "quarantined")]
        if os.path.exists(f"{home}/acknowledged"):
            assert set(found) == contents
        complete += bool(found)
        check_works_again(home, data)
    assert 0 < complete < steps


def objects_in(store: str, checked: bool = True) -> list[Path]:
    paths = [path for path in Path(store).glob("sha1/*/*/*/*") if path.is_file()]
    for path in paths:
        assert not checked or path.name == sha1_of(path.read_bytes())
    return paths


def check_works_again(home: str, data: bytes) -> None:
    index = Index(f"{home}/config/index.db")
    store = BlobStore(f"{home}/store", index, 0)
    stored = store.put_bytes(data)
    store.open_verified(stored.content).close()
    assert Path(stored.path).read_bytes() == data
    assert all(checked.error is None for checked in store.verify_store())
    tmp = Path(temp_dir(store.directory))
    for left in tmp.glob("*"):
        os.utime(left, (1, 1))
    store.sweep()
    assert list(tmp.glob("*")) == []
    index.close()


def test_what_a_killed_writer_left_is_swept_but_not_what_a_living_one_writes(
    store: BlobStore,
) -> None:
    import fcntl

    store.put_bytes(b"data")
    names = {}
    for name in ("dead", "fresh", "alive"):
        names[name] = os.path.join(temp_dir(store.directory), name)
        Path(names[name]).write_bytes(b"half")
        if name != "fresh":
            os.utime(names[name], (1, 1))
    fd = os.open(names["alive"], os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert store.sweep() == 1
    os.close(fd)
    assert sorted(os.listdir(temp_dir(store.directory))) == ["alive", "fresh"]
