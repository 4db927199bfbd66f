from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kachery_p2p.content.hashes import Root, sha1_of
from kachery_p2p.errors import (
    InvalidNameError,
    NotFoundError,
    ResolutionError,
    SourceChangedError,
    SourceFileError,
    StorageFailedError,
    VerificationError,
)
from kachery_p2p.limits import CHUNK_BYTES
from kachery_p2p.store import hashing
from kachery_p2p.store.blobs import BlobStore, Stored
from kachery_p2p.store.hashing import hash_bytes
from kachery_p2p.store.index import Index
from kachery_p2p.store.paths import temp_dir

MIB = CHUNK_BYTES
SIZES = [0, 1, MIB - 1, MIB, MIB + 1, 8 * MIB, 8 * MIB + 1, 20 * MIB + 7]


def pattern(size: int) -> bytes:
    return hashlib.shake_128(b"kachery").digest(65_537) * (size // 65_537 + 1)


def bytes_of(size: int) -> bytes:
    return pattern(size)[:size]


def settled(path: Path, data: bytes) -> Path:
    """A file that was finished long enough ago that a later change must show."""
    path.write_bytes(data)
    stamp = time.time_ns()
    while path.stat().st_ctime_ns + 25_000_000 > time.time_ns():
        assert time.time_ns() < stamp + 10**9
    return path


def leftovers(store: BlobStore) -> list[str]:
    try:
        return os.listdir(temp_dir(store.directory))
    except FileNotFoundError:
        return []


@pytest.mark.parametrize("size", SIZES)
def test_a_file_lies_under_its_hash(store: BlobStore, tmp_path: Path, size: int) -> None:
    data = bytes_of(size)
    (tmp_path / "file").write_bytes(data)
    stored = store.put_file(tmp_path / "file")
    manifest = hash_bytes(data)
    assert stored == Stored(sha1_of(data), manifest.root, size, stored.path)
    h = stored.content
    assert stored.path == f"{tmp_path}/store/sha1/{h[:2]}/{h[2:4]}/{h[4:6]}/{h}"
    assert Path(stored.path).read_bytes() == data
    assert os.stat(stored.path).st_mode & 0o777 == 0o444
    assert store.find(h) == stored.path
    assert leftovers(store) == []


@pytest.mark.parametrize("size", SIZES)
def test_file_bytes_and_stream_have_the_same_names(
    store: BlobStore, tmp_path: Path, size: int
) -> None:
    data = bytes_of(size)
    (tmp_path / "file").write_bytes(data)
    cuts = [0, size // 3, size // 3 + 1, size]
    pieces = [data[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    ways: list[Callable[[BlobStore], Stored]] = [
        lambda s: s.put_file(str(tmp_path / "file")),
        lambda s: s.put_bytes(data),
        lambda s: s.put_stream(pieces),
    ]
    names = set()
    for number, way in enumerate(ways):
        index = Index(str(tmp_path / f"index{number}.db"))
        other = BlobStore(str(tmp_path / f"store{number}"), index, reserve_bytes=0)
        stored = way(other)
        names.add(stored[:3])
        opened = other.open_verified(stored.content)
        assert opened.root_object == hash_bytes(data).root_object
        opened.close()
        index.close()
    assert len(names) == 1


def test_a_descriptor_is_stored_from_its_beginning_and_stays_open(
    store: BlobStore, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    os.lseek(fd, 5, os.SEEK_SET)
    assert store.put_file(fd).content == sha1_of(b"0123456789")
    assert os.read(fd, 10) == b"56789"
    os.close(fd)


def test_storing_again_unchanged_reads_nothing(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = settled(tmp_path / "file", bytes_of(3 * MIB))
    first = store.put_file(path)
    monkeypatch.setattr(os, "preadv", None)
    monkeypatch.setattr(os, "pread", None)
    monkeypatch.setattr(os, "copy_file_range", None)
    assert store.put_file(path) == first


def test_a_file_that_was_edited_is_stored_anew(store: BlobStore, tmp_path: Path) -> None:
    path = settled(tmp_path / "file", b"one")
    first = store.put_file(path)
    path.write_bytes(b"two")
    assert store.put_file(path).content == sha1_of(b"two") != first.content


def test_a_file_edited_within_one_clock_tick_is_stored_anew(
    store: BlobStore, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    for number in range(60):
        data = b"%06d" % number
        path.write_bytes(data)
        assert store.put_file(path).content == sha1_of(data)


def test_a_removed_object_is_stored_again(store: BlobStore, tmp_path: Path) -> None:
    path = settled(tmp_path / "file", b"data")
    first = store.put_file(path)
    os.unlink(first.path)
    assert store.put_file(path) == first
    assert Path(first.path).read_bytes() == b"data"


def test_a_store_removed_under_us_is_made_again(store: BlobStore) -> None:
    import shutil

    stored = store.put_bytes(b"data")
    shutil.rmtree(store.directory)
    assert store.put_bytes(b"data") == stored
    assert store.find(stored.content)
    shutil.rmtree(os.path.join(store.directory, "sha1"))
    assert store.put_bytes(b"data") == stored


# --- sources that cannot be stored ------------------------------------------------------


def test_what_is_no_file_is_refused_with_a_sentence(store: BlobStore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, sentence in {
        "missing": "there is no file",
        ".": "is a directory",
        "pipe": "is not a regular file",
        "nul\0": "cannot be opened",
    }.items():
        with pytest.raises(SourceFileError, match=sentence):
            store.put_file(f"{tmp_path}/{name}")
    with pytest.raises(SourceFileError, match="is not a regular file"):
        store.put_file("/dev/zero")
    with pytest.raises(SourceFileError, match="is not open"):
        store.put_file(99_999)
    assert not os.path.exists(store.directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_unreadable_file_and_an_unwritable_store_are_told_apart(tmp_path: Path) -> None:
    code = """
import ctypes, os, sys  # ctypes: the other user may not be able to read this Python
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.index import Index
from kachery_p2p.errors import KacheryError
os.umask(0)
top = sys.argv[1]
os.chmod(top, 0o777)
os.makedirs(top + "/closed", 0o755)
for name, mode in (("secret", 0o600), ("open", 0o644)):
    open(f"{top}/{name}", "w").write(name)
    os.chmod(f"{top}/{name}", mode)
os.seteuid(65534)
index = Index(top + "/config/index.db")
for store, name in (("mine", "secret"), ("closed", "open"), ("mine", "open")):
    try:
        print(BlobStore(f"{top}/{store}", index, 0).put_file(f"{top}/{name}").size)
    except KacheryError as error:
        print(type(error).__name__)
index.close()
"""
    os.chmod(tmp_path.parent.parent, 0o755)
    os.chmod(tmp_path.parent, 0o755)
    answer = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert answer.stdout.split() == ["SourceFileError", "StorePermissionError", "4"]


@pytest.mark.parametrize("change", ["grow", "shrink", "edit"])
def test_a_source_that_changes_meanwhile_is_refused(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = settled(tmp_path / "file", bytes_of(20 * MIB))
    really = hashing.FileHashes.grown

    def grown(self: hashing.FileHashes, size: int) -> None:
        with open(path, "r+b") as file:
            if change == "grow":
                file.seek(0, os.SEEK_END)
                file.write(b"more")
            elif change == "shrink":
                file.truncate(9 * MIB)
            else:
                file.write(b"edited")
        really(self, size)

    monkeypatch.setattr(hashing.FileHashes, "grown", grown)
    with pytest.raises(SourceChangedError, match="written to") as caught:
        store.put_file(path)
    assert caught.value.hint
    assert leftovers(store) == []
    assert not os.path.exists(os.path.join(store.directory, "sha1"))


# --- streams ------------------------------------------------------------------------------


def test_a_stream_with_other_bytes_than_expected_leaves_nothing(store: BlobStore) -> None:
    with pytest.raises(VerificationError, match="nothing was stored"):
        store.put_stream([b"other"], expected=sha1_of(b"bytes"))
    assert leftovers(store) == []
    assert store.find(sha1_of(b"other")) is None


def test_a_stream_that_breaks_off_leaves_nothing(store: BlobStore) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(12):
            yield bytes_of(MIB)
        raise ConnectionResetError("gone")

    before = threading.active_count()
    with pytest.raises(ConnectionResetError):
        store.put_stream(pieces())
    assert leftovers(store) == []
    assert threading.active_count() == before


# --- many at once ---------------------------------------------------------------------------


def test_processes_that_store_one_file_at_once_make_one_object(
    store: BlobStore, tmp_path: Path
) -> None:
    data = bytes_of(3 * MIB)
    (tmp_path / "file").write_bytes(data)
    code = """
import sys
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.index import Index
top = sys.argv[1]
sys.stdin.read()
index = Index(top + "/config/state/index.db")
store = BlobStore(top + "/store", index, 0)
print(store.put_file(top + "/file").content)
print(store.put_bytes(sys.argv[2].encode()).content)
index.close()
"""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.close()
        worker.stdin = None
    for number, worker in enumerate(workers):
        out, _ = worker.communicate(timeout=60)
        assert out.split() == [sha1_of(data), sha1_of(str(number).encode())]
    assert leftovers(store) == []
    # The index of all eight knows the one file that stands there.
    for content in [sha1_of(data)] + [sha1_of(str(n).encode()) for n in range(8)]:
        assert store.known(content) is not None


# --- out of the store -------------------------------------------------------------------------


def test_a_copy_goes_to_a_path_or_into_a_directory(store: BlobStore, tmp_path: Path) -> None:
    data = bytes_of(9 * MIB)
    content = store.put_bytes(data).content
    assert store.copy_to(content, f"{tmp_path}/a.bin") == f"{tmp_path}/a.bin"
    (tmp_path / "dir").mkdir()
    assert store.copy_to(content, str(tmp_path / "dir"), "b.bin") == f"{tmp_path}/dir/b.bin"
    for name in ("a.bin", "dir/b.bin"):
        assert (tmp_path / name).read_bytes() == data
        assert os.access(tmp_path / name, os.W_OK)
    assert os.listdir(tmp_path / "dir") == ["b.bin"]


def test_a_copy_goes_nowhere_else(store: BlobStore, tmp_path: Path) -> None:
    content = store.put_bytes(b"data").content
    with pytest.raises(ResolutionError, match="there is no directory") as caught:
        store.copy_to(content, f"{tmp_path}/missing/file")
    assert "mkdir" in str(caught.value.hint)
    with pytest.raises(ResolutionError, match="is a directory"):
        store.copy_to(content, str(tmp_path))
    with pytest.raises(ResolutionError, match="not a regular file"):
        store.copy_to(content, "/dev/null")
    with pytest.raises(InvalidNameError):
        store.copy_to(content, str(tmp_path), "../evil")
    with pytest.raises(NotFoundError):
        store.copy_to(sha1_of(b"absent"), f"{tmp_path}/file")


def test_a_copy_that_fails_leaves_what_was_there(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = store.put_bytes(bytes_of(3 * MIB)).content
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "file").write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(5, "I/O error")))
    # Not a ResolutionError: nothing is wrong with the destination that was chosen.
    with pytest.raises(StorageFailedError, match="cannot be written"):
        store.copy_to(content, str(tmp_path / "dir" / "file"))
    assert (tmp_path / "dir" / "file").read_bytes() == b"before"
    assert os.listdir(tmp_path / "dir") == ["file"]


def test_finding_is_not_fooled_by_names(store: BlobStore) -> None:
    assert store.find(sha1_of(b"absent")) is None
    with pytest.raises(NotFoundError):
        store.open_verified(sha1_of(b"absent"))
    assert store.pinned_root(sha1_of(b"absent")) is None
    stored = store.put_bytes(b"present")
    assert store.pinned_root(stored.content) == stored.root == Root(stored.root)


def test_an_index_that_cannot_write_does_not_lose_the_file(
    store: BlobStore, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kachery_p2p.errors import StorageFullError

    def full(*_: object) -> None:
        raise StorageFullError("no space is left for the state file")

    monkeypatch.setattr(index, "remember", full)
    stored = store.put_bytes(b"data")
    assert Path(stored.path).read_bytes() == b"data"
    store.open_verified(stored.content).close()
