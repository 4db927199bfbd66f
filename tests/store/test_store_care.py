"""Looking after a store: listing, verifying, rebuilding the index, removing, sweeping."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
from pathlib import Path

import pytest

from kachery_p2p.content.hashes import ContentHash, sha1_of
from kachery_p2p.errors import (
    CorruptObjectError,
    LinkChangedError,
    NotFoundError,
    StorageFailedError,
)
from kachery_p2p.limits import PARTIAL_AGE_S_MAX
from kachery_p2p.store import objects
from kachery_p2p.store.blobs import BlobStore, Stored
from kachery_p2p.store.hashing import hash_bytes
from kachery_p2p.store.index import Index
from kachery_p2p.store.partials import Partial
from kachery_p2p.store.paths import blob_path, partial_dir, quarantine_dir, temp_dir

NODE = "ab" * 32


def filled(store: BlobStore, count: int) -> list[Stored]:
    rng = random.Random(count)
    outcomes = store.put_many(rng.randbytes(rng.randrange(1, 5_000)) for _ in range(count))
    return [one for one in outcomes if isinstance(one, Stored)]


def flip_a_bit(path: str, rng: random.Random) -> None:
    """Behind everybody's back: size, mtime and mode stay."""
    status = os.stat(path)
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        at = rng.randrange(status.st_size)
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << rng.randrange(8)]))
    os.chmod(path, status.st_mode & 0o777)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


# --- listing ------------------------------------------------------------------------------


def test_objects_are_listed_by_name_with_their_sizes(store: BlobStore) -> None:
    stored = filled(store, 100)
    listed = list(store.list_objects())
    assert [one.content for one in listed] == sorted(one.content for one in stored)
    assert {(one.content, one.size, one.path) for one in listed} == {
        (one.content, one.size, one.path) for one in stored
    }
    assert isinstance(listed[0].content, ContentHash)


def test_whatever_is_no_object_is_not_listed(store: BlobStore) -> None:
    stored = store.put_bytes(b"data")
    place = os.path.dirname(stored.path)
    for name in (f"{stored.content}.link", "ab" * 20, "x", stored.content.upper()):
        Path(place, name).write_bytes(b"")
    os.symlink(stored.path, os.path.join(place, stored.content[:6] + "0" * 34))
    os.mkdir(os.path.join(place, stored.content[:6] + "1" * 34))
    os.symlink("/etc", f"{store.directory}/sha1/00")
    os.mkdir(f"{store.directory}/sha1/zz")
    assert [one.content for one in store.list_objects()] == [stored.content]


def test_an_absent_store_has_no_objects(store: BlobStore) -> None:
    assert [*store.list_objects(), *store.verify_store()] == []


# --- verifying ------------------------------------------------------------------------------


def test_a_thousand_flipped_bits_are_all_found(quick_path: Path) -> None:
    index = Index(f"{quick_path}/config/index.db")
    store = BlobStore(f"{quick_path}/store", index, 0)
    stored = filled(store, 1_200)
    rng = random.Random(1)
    bad = {one.content for one in rng.sample(stored, 1_000)}
    for content in sorted(bad):
        flip_a_bit(blob_path(store.directory, content), rng)
    found = {one.listed.content: one.error for one in store.verify_store()}
    assert found.keys() == {one.content for one in stored}
    assert {content for content, error in found.items() if error} == bad
    assert {type(error) for error in found.values()} == {CorruptObjectError, type(None)}
    # Nobody can be given them any more, and what was read is kept for whoever asks.
    assert not any(store.find(content) or store.known(content) for content in bad)
    assert len(os.listdir(quarantine_dir(store.directory))) == 1_000
    assert all(one.error is None for one in store.verify_store())
    index.close()


def test_nothing_corrupt_is_granted_after_a_thousand_flipped_bits(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody else writes here, so nothing need settle.
    monkeypatch.setattr(objects, "unsettled_s", lambda status: 0)
    index = Index(f"{quick_path}/config/index.db")
    store = BlobStore(f"{quick_path}/store", index, 0)
    contents = [one.content for one in filled(store, 1_200)]
    rng = random.Random(2)
    bad = set(rng.sample(contents, 1_000))
    for content in sorted(bad):
        flip_a_bit(blob_path(store.directory, content), rng)
    missing = sha1_of(b"never stored")
    vouched = store.vouch([*contents, missing])
    assert type(vouched.pop(missing)) is NotFoundError
    assert {content for content, error in vouched.items() if error} == bad
    assert {type(error) for error in vouched.values()} == {CorruptObjectError, type(None)}
    assert not any(store.find(content) for content in bad)
    index.close()


def test_what_this_node_has_hashed_is_vouched_for_without_reading_it(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, found = store.put_bytes(b"known").content, sha1_of(b"found")
    # As an older package, or another user, leaves it.
    path = Path(blob_path(store.directory, found))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"found")
    read: list[str] = []
    really = objects.read_settled

    def read_settled(fd: int, which: str) -> objects.Read | None:
        read.append(which)
        return really(fd, which)

    monkeypatch.setattr(objects, "read_settled", read_settled)
    for _ in range(2):
        assert store.vouch([known, found]) == {known: None, found: None}
    assert read == [f"stored as {found}"]


def test_rot_that_changes_no_status_is_found_when_asked_to_verify(
    store: BlobStore, index: Index
) -> None:
    stored = store.put_bytes(b"data")
    flip_a_bit(stored.path, random.Random(1))
    # As if the disk had done it: the index believes in the file as it is now.
    index.remember(stored.content, os.stat(stored.path), hash_bytes(b"data"))
    store.open_verified(stored.content).close()
    with pytest.raises(CorruptObjectError, match="quarantine"):
        store.verify(stored.content)
    assert store.find(stored.content) is None
    with pytest.raises(NotFoundError):
        store.verify(stored.content)


def test_a_good_object_verifies(store: BlobStore) -> None:
    stored = store.put_bytes(b"data")
    assert store.verify(stored.content) == hash_bytes(b"data").root_object
    assert store.known(stored.content) == hash_bytes(b"data").root_object


def test_a_sample_is_that_share_of_the_store(store: BlobStore) -> None:
    filled(store, 400)
    rng = random.Random(5)
    checked = list(store.verify_store(0.25, rng))
    assert 70 < len(checked) < 130
    assert checked == list(store.verify_store(0.25, random.Random(5)))
    assert list(store.verify_store(0.0)) == []


def test_links_are_verified_too(store: BlobStore, tmp_path: Path) -> None:
    for name in ("good", "bad", "gone"):
        (tmp_path / name).write_bytes(name.encode())
        store.link_file(tmp_path / name)
    (tmp_path / "bad").write_bytes(b"other")
    (tmp_path / "gone").unlink()
    errors = {Path(one.listed.path).name: one.error for one in store.verify_store()}
    assert errors.keys() == {"good", "bad", "gone"}
    assert errors["good"] is None
    assert isinstance(errors["bad"], LinkChangedError)
    assert type(errors["gone"]) is NotFoundError


def test_what_cannot_be_read_is_told_and_stays(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = store.put_bytes(b"data")

    def hash_file(fd: int, size: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(objects, "hash_file", hash_file)
        (checked,) = store.verify_store()
    assert isinstance(checked.error, StorageFailedError)
    assert store.find(stored.content) == stored.path


# --- rebuilding the index ---------------------------------------------------------------


def test_a_lost_index_is_rebuilt_by_walking_the_store(store: BlobStore, tmp_path: Path) -> None:
    stored = filled(store, 80)
    index = Index(str(tmp_path / "new" / "index.db"))
    again = BlobStore(store.directory, index, 0)
    assert not any(again.known(one.content) for one in stored)
    assert {one.listed.content for one in again.rebuild_index()} == {one.content for one in stored}
    assert all(again.known(one.content) for one in stored)
    assert list(again.rebuild_index()) == []
    index.close()


def test_rebuilding_forgets_what_is_gone_and_quarantines_what_is_bad(
    store: BlobStore, index: Index
) -> None:
    gone, bad, good = (store.put_bytes(text) for text in (b"gone", b"bad", b"good"))
    os.unlink(gone.path)
    flip_a_bit(bad.path, random.Random(1))
    (checked,) = store.rebuild_index()
    assert checked.listed.content == bad.content
    assert isinstance(checked.error, CorruptObjectError)
    assert list(index.contents()) == [good.content]
    assert index.pinned_root(gone.content) == gone.root


def test_a_file_is_on_disk_before_the_index_knows_it(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(blob_path(store.directory, sha1_of(b"data")))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"data")  # by a tool that syncs nothing
    really, synced = os.fsync, []

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        really(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    store.open_verified(sha1_of(b"data")).close()
    synced = [call for call in synced if "/config" not in call]
    assert synced[0] == str(path)
    assert {str(parent) for parent in list(path.parents)[:5]} <= set(synced)


# --- removing ---------------------------------------------------------------------------


def test_a_removed_object_is_gone_and_can_be_stored_again(store: BlobStore) -> None:
    stored = store.put_bytes(b"data")
    assert store.remove(stored.content) == 4
    assert store.find(stored.content) is None
    assert store.known(stored.content) is None
    assert store.pinned_root(stored.content) == stored.root
    with pytest.raises(NotFoundError, match="is not stored in"):
        store.remove(stored.content)
    assert store.put_bytes(b"data") == stored


def test_what_stands_there_instead_is_removed_or_left_alone(store: BlobStore) -> None:
    content = store.put_bytes(b"data").content
    path = blob_path(store.directory, content)
    os.unlink(path)
    os.symlink("/etc/passwd", path)
    store.remove(content)
    assert not os.path.lexists(path)
    os.mkdir(path)
    with pytest.raises(NotFoundError):
        store.remove(content)
    assert os.path.isdir(path)


# --- sweeping ---------------------------------------------------------------------------


def aged(path: Path, age_s: float) -> None:
    for one in (path, *path.rglob("*")):
        stamp = one.stat().st_mtime - age_s
        os.utime(one, (stamp, stamp))


def partial_of(store: BlobStore, node: str, data: bytes) -> Path:
    manifest = hash_bytes(data)
    partial = Partial.open(store.directory, node, manifest.root_object, 0)
    partial.write_page(0, manifest.pages[0])
    partial.close()
    return Path(partial.directory)


def test_downloads_of_dead_nodes_are_swept_but_no_living_ones(store: BlobStore) -> None:
    old, young, locked = (partial_of(store, NODE, text) for text in (b"1", b"2", b"3"))
    other = partial_of(store, "cd" * 32, b"4")
    for path in (old, locked, other):
        aged(path, PARTIAL_AGE_S_MAX + 10)
    # A node that went on a moment ago with what it began long since.
    (locked / "bits").write_bytes(b"1")
    aged(locked, PARTIAL_AGE_S_MAX + 10)
    fd = os.open(locked / "root", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert store.sweep() == 2
    os.close(fd)
    assert sorted(Path(partial_dir(store.directory, NODE)).iterdir()) == sorted([young, locked])
    assert not Path(partial_dir(store.directory, "cd" * 32)).exists()
    aged(locked, PARTIAL_AGE_S_MAX + 10)
    os.utime(locked / "data")
    assert store.sweep() == 0


def test_a_download_that_lost_its_lock_file_is_swept(store: BlobStore) -> None:
    path = partial_of(store, NODE, b"1")
    (path / "root").unlink()
    aged(path, PARTIAL_AGE_S_MAX + 10)
    assert store.sweep() == 1
    assert not path.exists()


def test_groups_of_killed_writers_are_swept_with_all_their_files(store: BlobStore) -> None:
    store.put_bytes(b"data")
    groups = []
    for name in ("dead", "fresh", "alive"):
        group = Path(temp_dir(store.directory), name)
        group.mkdir()
        for number in range(3):
            (group / str(number)).write_bytes(hashlib.sha1(name.encode()).digest())
        groups.append(group)
    for group in (groups[0], groups[2]):
        os.utime(group, (1, 1))
    fd = os.open(groups[2], os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert store.sweep() == 1
    os.close(fd)
    assert sorted(os.listdir(temp_dir(store.directory))) == ["alive", "fresh"]
