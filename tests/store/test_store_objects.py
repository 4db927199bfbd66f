"""What may stand under a name already: files of others, bad files, links, forgeries."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from kachery_p2p.content.hashes import ContentHash, sha1_of
from kachery_p2p.content.manifests import Manifest
from kachery_p2p.errors import (
    CorruptObjectError,
    HashCollisionError,
    NotFoundError,
)
from kachery_p2p.limits import CHUNK_BYTES
from kachery_p2p.store import hashing, objects
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.hashing import hash_bytes
from kachery_p2p.store.index import Index
from kachery_p2p.store.paths import blob_path, quarantine_dir, temp_dir

MIB = CHUNK_BYTES


def pattern(size: int) -> bytes:
    return hashlib.shake_128(b"kachery").digest(65_537) * (size // 65_537 + 1)


def bytes_of(size: int) -> bytes:
    return pattern(size)[:size]


def leftovers(store: BlobStore) -> list[str]:
    try:
        return os.listdir(temp_dir(store.directory))
    except FileNotFoundError:
        return []


def plant(store: BlobStore, content: str, data: bytes) -> Path:
    """What an older kachery, or another user, put into the store."""
    path = Path(blob_path(store.directory, content))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# --- what already stands under the name ---------------------------------------------------


def test_files_of_older_packages_are_hashed_once_before_use(
    store: BlobStore, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes_of(2 * MIB)
    path = plant(store, sha1_of(data), data)
    assert store.find(sha1_of(data)) == str(path)
    assert store.known(sha1_of(data)) is None
    opened = store.open_verified(sha1_of(data))
    assert os.read(opened.descriptor, 10) == data[:10]
    opened.close()
    monkeypatch.setattr(objects, "hash_file", None)
    store.open_verified(sha1_of(data)).close()
    assert store.page(sha1_of(data), 0) == hash_bytes(data).pages[0]


def test_threads_that_ask_for_one_unknown_file_hash_it_once(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes_of(4 * MIB)
    plant(store, sha1_of(data), data)
    hashed: list[int] = []
    really = hashing.hash_file

    def hash_file(fd: int, size: int) -> Manifest:
        hashed.append(size)
        return really(fd, size)

    monkeypatch.setattr(objects, "hash_file", hash_file)
    threads = [
        threading.Thread(target=lambda: store.open_verified(sha1_of(data)).close())
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hashed == [len(data)]


@pytest.mark.parametrize("bad", [b"", b"dat", b"datA", b"data\n"])
def test_a_bad_file_goes_to_quarantine(store: BlobStore, bad: bytes) -> None:
    content = sha1_of(b"data")
    plant(store, content, bad)
    with pytest.raises(CorruptObjectError, match="does not have the bytes of its name"):
        store.open_verified(content)
    assert store.find(content) is None
    (kept,) = Path(quarantine_dir(store.directory)).iterdir()
    assert kept.name.startswith(content + ".")
    assert kept.read_bytes() == bad
    with pytest.raises(NotFoundError):
        store.open_verified(content)


def test_every_flipped_bit_of_a_stored_file_is_found_once_it_is_looked_at(
    store: BlobStore,
) -> None:
    data = bytes_of(64)
    for bit in range(0, 512, 37):
        stored = store.put_bytes(data)
        os.chmod(stored.path, 0o644)
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        Path(stored.path).write_bytes(bytes(bad))
        with pytest.raises(CorruptObjectError):
            store.open_verified(stored.content)


def test_storing_over_a_bad_file_moves_it_away(store: BlobStore) -> None:
    content = sha1_of(b"data")
    plant(store, content, b"DATA")
    assert store.put_bytes(b"data").content == content
    assert Path(blob_path(store.directory, content)).read_bytes() == b"data"
    (kept,) = Path(quarantine_dir(store.directory)).iterdir()
    assert kept.read_bytes() == b"DATA"


def test_storing_over_a_good_file_keeps_it(store: BlobStore) -> None:
    path = plant(store, sha1_of(b"data"), b"data")
    inode = path.stat().st_ino
    stored = store.put_bytes(b"data")
    assert path.stat().st_ino == inode
    assert store.known(stored.content) is not None
    assert leftovers(store) == []


@pytest.mark.parametrize("kind", ["symlink", "dangling", "directory", "fifo"])
def test_what_is_no_file_under_a_name_is_never_followed(
    store: BlobStore, tmp_path: Path, kind: str
) -> None:
    content = sha1_of(b"data")
    path = Path(blob_path(store.directory, content))
    path.parent.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_bytes(b"data" if kind == "symlink" else b"")
    if kind == "symlink":
        path.symlink_to(victim)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    assert store.find(content) is None
    assert store.known(content) is None
    store.put_bytes(b"data")
    assert path.is_file()
    assert not path.is_symlink()
    assert not (tmp_path / "nowhere").exists()
    assert victim.exists()


def test_a_symbolic_link_under_a_name_is_not_served(store: BlobStore, tmp_path: Path) -> None:
    content = sha1_of(b"data")
    path = Path(blob_path(store.directory, content))
    path.parent.mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"data")
    path.symlink_to(tmp_path / "file")
    with pytest.raises(CorruptObjectError, match="is not a file"):
        store.open_verified(content)


def other_bytes(content: ContentHash) -> Manifest:
    """The manifest of different bytes with the same SHA-1, as only an attacker could make them."""
    forged = hash_bytes(b"forged")
    return Manifest(forged.root_object._replace(content=content), forged.pages)


def test_a_second_content_with_one_sha1_is_refused_and_the_first_kept(
    store: BlobStore, index: Index
) -> None:
    content = sha1_of(b"data")
    path = plant(store, content, b"data")
    index.remember(content, os.lstat(path), other_bytes(content))
    with pytest.raises(HashCollisionError, match="two different contents"):
        store.put_bytes(b"data")
    assert path.read_bytes() == b"data"
    assert leftovers(store) == []
    assert index.pinned_root(content) == other_bytes(content).root


def test_a_pinned_root_outlives_its_file(store: BlobStore, index: Index) -> None:
    content = sha1_of(b"data")
    path = plant(store, content, b"data")
    index.remember(content, os.lstat(path), other_bytes(content))
    path.unlink()
    with pytest.raises(HashCollisionError):
        store.put_bytes(b"data")
    plant(store, content, b"data")
    with pytest.raises(HashCollisionError):
        store.open_verified(content)
    assert store.find(content) == str(path)


def test_a_file_that_is_still_being_written_is_neither_served_nor_moved(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = sha1_of(b"data")
    path = plant(store, content, b"d")
    really = hashing.hash_file

    def hash_file(fd: int, size: int) -> Manifest:
        with open(path, "ab") as file:
            file.write(b"x")
        return really(fd, size)

    monkeypatch.setattr(objects, "hash_file", hash_file)
    with pytest.raises(NotFoundError, match="still being written"):
        store.open_verified(content)
    assert path.exists()
