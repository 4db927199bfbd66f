"""Two users of one group who share a storage directory, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

USERS = """
import ctypes, hashlib, importlib, json, os, pickle, pkgutil, shutil, sqlite3, sys, time, traceback
sys.path.insert(0, os.getcwd())
# All of it now: other users may not read where Python is installed.
for room in ("content", "identity", "channels", "store", "client", "compat"):
    package = importlib.import_module("kachery_p2p." + room)
    for module in pkgutil.iter_modules(package.__path__):
        if module.name != "__main__":
            importlib.import_module(f"kachery_p2p.{room}.{module.name}")
import kachery_p2p as kp
from kachery_p2p.client import local
from kachery_p2p.compat import kachery as ka, kachery_cloud as kcl, scratch

top, umask = sys.argv[1], int(sys.argv[2], 8)
ANN, BOB, LAB = 60_001, 60_002, 54_321

def as_user(uid, act):
    child = os.fork()
    if not child:
        try:
            os.setgroups([LAB])
            os.setgid(uid)
            os.setuid(uid)
            os.umask(umask)
            home = f"{top}/home-{uid}"
            os.chdir(home)
            os.environ.update(
                HOME=home, KACHERY_P2P_CONFIG_DIR=home + "/config",
                KACHERY_STORAGE_DIR=top + "/lab/store", KACHERY_CLOUD_DIR=top + "/lab/cloud",
                KACHERY_DIR=top + "/lab/kachery", KACHERY_CLOUD_MULTI_USER="1",
            )
            act()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, f"user {uid} failed"

for path, uid, gid, mode in (
    (top, 0, 0, 0o755), (top + "/lab", 0, LAB, 0o2775),
    (f"{top}/home-{ANN}", ANN, ANN, 0o700), (f"{top}/home-{BOB}", BOB, BOB, 0o700),
):
    os.makedirs(path, exist_ok=True)
    os.chown(path, uid, gid)
    os.chmod(path, mode)

def write(name, data):
    with open(name, "wb") as file:
        file.write(data)
    return name

SHARED = b"of both" * 1000
LARGE = bytes(range(256)) * 12_000

def ann():
    kcl.store_text("ann's first", label="a.txt")
    kcl.store_file(write("shared", SHARED))
    ka.store_file(write("large", LARGE), basename="large.dat")
    os.mkdir("d")
    write("d/x", b"in a directory"), write("d/y", SHARED)
    ka.store_dir("d", algorithm="md5")
    kcl.set_mutable_local("@lab/session", "41")
    os.environ["KACHERY_ZONE"] = "scratch"
    kcl.store_text("scratched by ann")
    del os.environ["KACHERY_ZONE"]
    write("private", b"not stored")
    kp.link_file(write("linked", b"ann's own file"))

def bob():
    # Read, stored again, linked, replaced, removed: whatever is in the store directory.
    assert kcl.load_text("sha1://" + kp.store_text("ann's first")[7:47]) == "ann's first"
    path = kp.load_file(kp.store_file(write("mine", LARGE)), verify=True)
    assert kp.load_bytes(kp.link_file(path), 5, 9) == LARGE[5:9]
    os.mkdir("n")
    write("n/x", b"in a directory")
    assert list(kp.load_dir(kp.store_dir("n"))) == ["x"]
    for n in range(70):
        write(f"many{n}", b"%d" % n)
    kp.store_files([f"many{n}" for n in range(70)])
    assert kcl.get_mutable_local("@lab/session") == "41"
    kcl.set_mutable_local("@lab/session", "42")
    kcl.set_mutable_local("@lab/other", "1")
    os.environ["KACHERY_ZONE"] = "scratch"
    assert kcl.load_text(kcl.store_text("scratched by ann")) == "scratched by ann"
    kcl.store_text("scratched by bob")
    del os.environ["KACHERY_ZONE"]
    with local.open_store() as store:
        assert all(checked.error is None for checked in store.verify_store())
        content = kp.store_text("bob's first")[7:47]
        assert store.remove(store.put_bytes(b"ann's first").content)
        store.sweep()
    kcl.use_sandbox()
    assert kcl.load_text(kcl.store_text("sand of bob")) == "sand of bob"
    kcl.use_sandbox(False)
    # And nothing else of the other's.
    for name in ("private", "config", "config/state/index.db", "linked"):
        try:
            os.stat(f"{top}/home-{ANN}/{name}")
        except PermissionError:
            continue
        raise AssertionError(name)
    hidden = hashlib.sha1(b"ann's own file").hexdigest()
    assert not kp.find_file(f"sha1://{hidden}").local

def rot():
    path = kp.load_file(kp.store_text("bob's first"))
    os.chmod(path, 0o644)
    write(path, b"rot")

def ann_again():
    assert kp.load_text(kp.store_text("ann's first")) == "ann's first"
    # Bob's object is bad: Ann's good one takes its place.
    assert kp.load_text(kp.store_text("bob's first")) == "bob's first"
    kp.load_file(kp.store_text("bob's first"), verify=True)
    assert kcl.get_mutable_local("@lab/session") == "42"
    kcl.delete_mutable_folder_local("@lab")
    os.environ["KACHERY_ZONE"] = "scratch"
    assert scratch.sweep(time.time() + 15 * 86_400) == 2
    kcl.use_sandbox()
    assert kcl.load_text(kcl.store_text("sand of ann")) == "sand of ann"

as_user(ANN, ann)
as_user(BOB, bob)
as_user(BOB, rot)
as_user(ANN, ann_again)
"""


@pytest.fixture
def commons() -> Iterator[Path]:
    """Where every user may go: the directories of pytest are root's alone."""
    with tempfile.TemporaryDirectory(prefix="kachery-users-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become two other users")
@pytest.mark.parametrize("umask", ["022", "077"])
def test_two_users_of_a_group_share_a_store_directory_and_nothing_else(
    commons: Path, umask: str
) -> None:
    top = commons / "top"
    answer = subprocess.run(
        [sys.executable, "-c", USERS, str(top), umask],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    for path in (top / "lab" / "store").rglob("*"):
        status = path.stat()
        assert status.st_gid == 54_321
        if path.is_dir():
            assert status.st_mode & 0o2770 == 0o2770, path
        elif ".quarantine" not in str(path):
            assert status.st_mode & 0o777 == 0o444, path


def test_a_store_directory_for_many_users_is_made_for_its_group(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kachery_p2p.compat import kachery as ka

    monkeypatch.setenv("KACHERY_MULTI_USER", "1")
    before = os.umask(0o077)
    try:
        ka.store_text("for all", label="x")
    finally:
        os.umask(before)
    assert (home / "store").stat().st_mode & 0o7777 == 0o2775
    assert (home / "store/sha1").stat().st_mode & 0o3777 == 0o2775
