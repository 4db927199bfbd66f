"""A store that others may write: what they put in the place of a new file is not believed."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.errors import CorruptObjectError
from kachery_p2p.store import placing, verified
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.durable import DurableDirectories, Made, rename_new
from kachery_p2p.store.verified import Verified

TEXTS = [b"text %03d" % number for number in range(100)]


def swapping(tmp_path: Path, target: str) -> object:
    """A rename behind which somebody puts other bytes of the same length at once."""

    def rename(old: str, new: str) -> None:
        rename_new(old, new)
        if new.endswith(target):
            evil = tmp_path / "evil"
            evil.write_bytes(b"evil 000")
            os.replace(evil, new)

    return rename


@pytest.mark.parametrize("way", ["group", "verified"])
def test_a_file_that_was_put_in_the_place_of_a_new_one_is_not_known(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    victim = sha1_of(TEXTS[42])
    rename = swapping(tmp_path, victim)
    monkeypatch.setattr(placing, "rename_new", rename)
    monkeypatch.setattr(verified, "rename_new", rename)
    if way == "group":
        list(store.put_many(TEXTS))
        assert store.known(victim) is None
        with pytest.raises(CorruptObjectError):
            store.open_verified(victim)
    else:
        monkeypatch.setattr(placing, "rename_new", rename_new)
        outcomes = store.verified.put([Verified(sha1_of(text), text) for text in TEXTS])
        assert len(outcomes) == 100
        # It was put there again, and what lay there is in quarantine.
        with store.open_verified(victim) as opened:
            assert os.pread(opened.descriptor, 100, 0) == TEXTS[42]
        assert len(os.listdir(f"{store.directory}/.quarantine")) == 1
    assert all(store.known(sha1_of(text)) for text in TEXTS if text != TEXTS[42])


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_objects_of_a_group_can_be_read_whatever_the_umask(store: BlobStore, umask: int) -> None:
    store.put_bytes(b"first")
    before = os.umask(umask)
    try:
        stored = list(store.put_many(TEXTS))
    finally:
        os.umask(before)
    assert {os.stat(one.path).st_mode & 0o777 for one in stored} == {0o444}  # type: ignore[union-attr]


def test_directories_of_a_group_are_open_as_the_top_whichever_were_there(tmp_path: Path) -> None:
    top = tmp_path / "store"
    (top / "sha1" / "zz").mkdir(parents=True)
    (top / "sha1" / "ab").mkdir()
    # The store was opened to a group later: one of the directories was forgotten.
    for path in (top, top / "sha1", top / "sha1" / "zz"):
        os.chmod(path, 0o2775)
    os.chmod(top / "sha1" / "ab", 0o755)
    directories, made = DurableDirectories(str(top)), Made()
    before = os.umask(0o022)
    for name in ("zz/yy", "ab/cd", "zz/xx", "ab/ce", "cc/dd"):
        directories.make_unsynced(f"{top}/sha1/{name}", made)
    os.umask(before)
    for name in ("zz/yy", "ab/cd", "zz/xx", "ab/ce", "cc", "cc/dd"):
        assert os.stat(top / "sha1" / name).st_mode & 0o3777 == 0o2775, name


def test_directories_that_are_forgotten_meanwhile_are_made_all_the_same(tmp_path: Path) -> None:
    directories = DurableDirectories(str(tmp_path / "store"))
    directories.make(f"{tmp_path}/store/sha1")
    ended = threading.Event()

    def forget() -> None:
        while not ended.is_set():
            directories.forget()

    forgetting = threading.Thread(target=forget)
    # Else the one that forgets has the interpreter for 5 ms, each time it is let in.
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    forgetting.start()
    try:
        for number in range(2_000):
            path = f"{tmp_path}/store/sha1/{number % 50:02d}/{number:04d}"
            directories.make_unsynced(path, Made())
            assert os.path.isdir(path)
    finally:
        sys.setswitchinterval(interval_s)
        ended.set()
        forgetting.join()
