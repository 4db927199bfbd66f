"""A store in company: many processes, many users, and what older packages left there."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.errors import CorruptObjectError
from kachery_p2p.store.blobs import BlobStore, Stored
from kachery_p2p.store.paths import blob_path, temp_dir

# --- many processes -------------------------------------------------------------------------

MANY = """
import ctypes, hashlib, os, sys, traceback
sys.path.insert(0, os.getcwd())
from kachery_p2p.store.blobs import BlobStore, Stored
from kachery_p2p.store.hashing import hash_bytes
from kachery_p2p.store.index import Index

top, count = sys.argv[1], int(sys.argv[2])
hash_bytes(b"")  # imports what is imported late
begin, start = os.pipe()

def work(number):
    index = Index(top + "/config/index.db")
    store = BlobStore(top + "/store", index, 0)
    os.read(begin, 1)
    store.put_file(top + "/same")
    store.put_bytes(b"of %d" % number)
    shared = [b"shared %d" % n for n in range(70)]
    own = [b"own %d %d" % (number, n) for n in range(5)]
    # Each in another order, so that all of them meet somewhere.
    items = shared[number * 2 :] + own + shared[: number * 2]
    outcomes = list(store.put_many(items))
    failed = [one for one in outcomes if not isinstance(one, Stored)]
    assert not failed, failed
    for one in outcomes:
        store.open_verified(one.content).close()
    store.close()
    index.close()

children = []
for number in range(count):
    child = os.fork()
    if not child:
        os.close(start)
        try:
            work(number)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    children.append(child)
os.close(start)
failed = [child for child in children if os.waitpid(child, 0)[1]]
sys.exit(len(failed))
"""


def test_processes_that_store_at_once_make_one_object_of_each(quick_path: Path) -> None:
    count = 32
    same = hashlib.shake_128(b"same").digest(3_000_000)
    (quick_path / "same").write_bytes(same)
    answer = subprocess.run(
        [sys.executable, "-c", MANY, str(quick_path), str(count)], capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    datas = [same] + [b"of %d" % number for number in range(count)]
    datas += [b"shared %d" % number for number in range(70)]
    datas += [b"own %d %d" % (number, n) for number in range(count) for n in range(5)]
    files = [path for path in (quick_path / "store" / "sha1").rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == sorted(sha1_of(data) for data in datas)
    assert all(path.name == sha1_of(path.read_bytes()) for path in files)
    assert list(Path(temp_dir(str(quick_path / "store"))).iterdir()) == []


# --- many users -----------------------------------------------------------------------------

USERS = """
import ctypes, os, sys
sys.path.insert(0, os.getcwd())
from kachery_p2p.errors import KacheryError
from kachery_p2p.store.blobs import BlobStore, Stored
from kachery_p2p.store.hashing import hash_bytes
from kachery_p2p.store.index import Index

top = sys.argv[1]
hash_bytes(b"")
LAB = 54_321

def a_user(uid, act):
    child = os.fork()
    if not child:
        try:
            os.setgroups([LAB])
            os.setgid(uid)
            os.setuid(uid)
            os.umask(0o022)
            index = Index(f"{top}/home-{uid}/index.db")
            act(BlobStore(top + "/store", index, 0))
        except BaseException as error:
            print(f"user {uid}: {error!r}", flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

os.mkdir(top + "/store")
os.chown(top + "/store", 0, LAB)
os.chmod(top + "/store", 0o2770)
for uid in (60_001, 60_002):
    os.mkdir(f"{top}/home-{uid}")
    os.chown(f"{top}/home-{uid}", uid, uid)
os.chmod(top, 0o755)

def ann(store):
    store.put_bytes(b"ann's")
    assert all(isinstance(one, Stored) for one in store.put_many(b"a %d" % n for n in range(70)))

def bob(store):
    for data in (b"ann's", b"bob's"):
        stored = store.put_bytes(data)
        store.open_verified(stored.content).close()
    items = [b"a %d" % n for n in range(60)] + [b"b %d" % n for n in range(70)]
    assert all(isinstance(one, Stored) for one in store.put_many(items))
    assert len(list(store.verify_store())) == 142
    assert store.remove(store.put_bytes(b"a 61").content) == 4

def rot(store):
    path = store.put_bytes(b"bob's").path
    os.chmod(path, 0o644)
    open(path, "wb").write(b"rot")

def ann_again(store):
    # Bob's file is bad: the group may move it away, and put a good one there.
    store.open_verified(store.put_bytes(b"bob's").content).close()

a_user(60_001, ann)
a_user(60_002, bob)
a_user(60_002, rot)
a_user(60_001, ann_again)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_group_of_users_shares_a_store(quick_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", USERS, str(quick_path)], capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    for path in (quick_path / "store").rglob("*"):
        status = path.stat()
        assert status.st_gid == 54_321
        if path.is_dir():
            assert status.st_mode & 0o7777 == 0o2770
        elif "quarantine" not in str(path):
            assert status.st_mode & 0o7777 == 0o444


# --- older packages ---------------------------------------------------------------------------


@pytest.fixture
def old_store(tmp_path: Path) -> Path:
    """A directory as years of kachery, kachery-p2p, kachery-client and kachery-cloud left it."""
    top = tmp_path / "store"
    contents = [b"", b"test-content\n", b"example text", bytes(3_000_000)]
    for data in contents:
        path = Path(blob_path(str(top), sha1_of(data)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        Path(f"{path}.hints.json").write_text('{"files": []}')
        Path(f"{path}.record.json").write_text("{}")
        Path(f"{path}.lock").touch()
    (tmp_path / "recording").write_bytes(b"linked by kachery-cloud")
    note = top / f"linked_files{blob_path('', sha1_of(b'linked by kachery-cloud'))}"
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps({"path": str(tmp_path / "recording"), "size": 23, "mtime": 1.5}))
    for name in ("md5/ab/cd/ef", "sha1-trash", "mutables/@x", "sandbox", "ipfs/mp/n5/ga"):
        (top / name).mkdir(parents=True)
    for name in ("private.pem", "kachery-node-id", "client-auth", "feeds.db", "kachery.yaml"):
        (top / name).write_text("old")
    (top / "store.file.abcdef.tmp").write_bytes(b"half")
    torn = Path(blob_path(str(top), sha1_of(b"written before a power cut")))
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"written before")
    return top


def test_a_store_of_older_packages_just_works(store: BlobStore, old_store: Path) -> None:
    assert store.directory == str(old_store)
    before = {path for path in old_store.rglob("*") if "sha1/" not in str(path)}
    sizes = {one.content: one.size for one in store.list_objects()}
    assert len(sizes) == 5
    opened = store.open_verified(sha1_of(b"test-content\n"))
    assert os.pread(opened.descriptor, 100, 0) == b"test-content\n"
    opened.close()
    assert store.find(sha1_of(b"linked by kachery-cloud")) == f"{old_store.parent}/recording"
    store.open_verified(sha1_of(b"linked by kachery-cloud")).close()
    assert store.put_bytes(b"example text").path == blob_path(
        store.directory, "d9e989f651cdd269d7f9bb8a215d024d8d283688"
    )
    torn = sha1_of(b"written before a power cut")
    (bad,) = (one for one in store.verify_store() if one.error)
    assert bad.listed.content == torn
    assert isinstance(bad.error, CorruptObjectError)
    assert isinstance(next(store.put_many([b"written before a power cut"])), Stored)
    store.remove(sha1_of(b""))
    store.sweep()
    assert before <= set(old_store.rglob("*"))
    assert Path(f"{blob_path(store.directory, sha1_of(b''))}.hints.json").exists()
