from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from kachery_p2p.errors import PartialInUseError, StorageFullError, StoreError, VerificationError
from kachery_p2p.limits import CHUNK_BYTES
from kachery_p2p.store.bitmap import Bitmap
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.hashing import hash_bytes
from kachery_p2p.store.partials import Partial

MIB = CHUNK_BYTES
NODE = "ab" * 32
DATA = hashlib.shake_128(b"partial").digest(11 * MIB + 5)
MANIFEST = hash_bytes(DATA)
CHUNKS = MANIFEST.root_object.chunk_count


def begin(store: BlobStore) -> Partial:
    return Partial.open(store.directory, NODE, MANIFEST.root_object, reserve_bytes=0)


def chunk(number: int) -> bytes:
    return DATA[number * MIB : (number + 1) * MIB]


def filled(store: BlobStore, numbers: range = range(CHUNKS)) -> Partial:
    partial = begin(store)
    partial.write_page(0, MANIFEST.pages[0])
    for number in numbers:
        partial.write_chunk(number, chunk(number))
    return partial


def test_a_finished_partial_is_the_object(store: BlobStore) -> None:
    partial = filled(store)
    assert partial.complete
    inode = os.fstat(partial.data_fd).st_ino
    stored = store.adopt_partial(partial, MANIFEST)
    assert Path(stored.path).read_bytes() == DATA
    assert os.stat(stored.path).st_ino == inode
    assert os.stat(stored.path).st_mode & 0o777 == 0o444
    assert not os.path.exists(partial.directory)
    assert store.known(stored.content) == MANIFEST.root_object
    assert store.page(stored.content, 0) == MANIFEST.pages[0]


def test_a_finished_partial_of_what_is_stored_already_is_dropped(store: BlobStore) -> None:
    first = store.put_bytes(DATA)
    inode = os.stat(first.path).st_ino
    partial = filled(store)
    assert store.adopt_partial(partial, MANIFEST) == first
    assert os.stat(first.path).st_ino == inode
    assert not os.path.exists(partial.directory)


def test_an_empty_content_needs_no_chunk(store: BlobStore) -> None:
    manifest = hash_bytes(b"")
    partial = Partial.open(store.directory, NODE, manifest.root_object, 0)
    assert partial.complete
    assert list(partial.verified_chunks()) == []
    assert Path(store.adopt_partial(partial, manifest).path).read_bytes() == b""


def test_an_unfinished_partial_is_not_an_object(store: BlobStore) -> None:
    partial = filled(store, range(CHUNKS - 1))
    with pytest.raises(AssertionError):
        store.adopt_partial(partial, MANIFEST)
    partial.close()


def test_a_download_goes_on_where_it_was_put_down(store: BlobStore) -> None:
    filled(store, range(3, 7)).close()
    partial = begin(store)
    assert partial.has_page(0)
    assert list(partial.verified_chunks()) == [3, 4, 5, 6]
    assert partial.read_chunk(5) == chunk(5)
    assert 5 in partial.have
    assert 7 not in partial.have
    partial.close()


def test_flipped_bytes_are_found_when_a_download_goes_on(store: BlobStore) -> None:
    partial = filled(store)
    partial.close()
    rng = random.Random(1)
    bad = rng.sample(range(CHUNKS), 5)
    with open(partial.data_path, "r+b") as file:
        for number in bad:
            at = number * MIB + rng.randrange(len(chunk(number)))
            file.seek(at)
            file.write(bytes([DATA[at] ^ 1]))
    partial = begin(store)
    assert set(partial.verified_chunks()) == set(range(CHUNKS)) - set(bad)
    assert not partial.complete
    partial.close()
    again = begin(store)
    assert sorted(again.have) == sorted(set(range(CHUNKS)) - set(bad))
    again.close()


@pytest.mark.parametrize("name", ["root", "pages", "bits", "data"])
@pytest.mark.parametrize("damage", ["missing", "empty", "noise"])
def test_damage_to_any_file_costs_a_download_not_the_truth(
    store: BlobStore, name: str, damage: str
) -> None:
    partial = filled(store)
    partial.close()
    path = Path(partial.directory, name)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else random.Random(2).randbytes(5000))
    partial = begin(store)
    good = set(partial.verified_chunks())
    assert all(partial.read_chunk(number) == chunk(number) for number in good)
    partial.write_page(0, MANIFEST.pages[0])
    for number in set(range(CHUNKS)) - good:
        partial.write_chunk(number, chunk(number))
    stored = store.adopt_partial(partial, MANIFEST)
    assert Path(stored.path).read_bytes() == DATA


def test_a_page_that_is_not_the_page_is_refused(store: BlobStore) -> None:
    partial = begin(store)
    assert not partial.has_page(0)
    with pytest.raises(VerificationError):
        partial.page(0)
    for bad in (b"", MANIFEST.pages[0][:-1], bytes(len(MANIFEST.pages[0]))):
        with pytest.raises(VerificationError):
            partial.write_page(0, bad)
    partial.write_page(0, MANIFEST.pages[0])
    assert partial.has_page(0)
    assert partial.page(0) == MANIFEST.pages[0]
    partial.close()


def test_two_processes_cannot_write_one_download(store: BlobStore) -> None:
    partial = begin(store)
    with pytest.raises(PartialInUseError) as caught:
        begin(store)
    assert isinstance(caught.value, StoreError)
    code = """
import sys
from kachery_p2p.content.manifests import RootObject
from kachery_p2p.store.partials import Partial
Partial.open(sys.argv[1], sys.argv[2], RootObject.decode(bytes.fromhex(sys.argv[3])), 0)
"""
    command = [sys.executable, "-c", code, store.directory, NODE]
    command.append(MANIFEST.root_object.encode().hex())
    answer = subprocess.run(command, capture_output=True, text=True)
    assert "PartialInUseError" in answer.stderr
    partial.close()
    partial.close()
    begin(store).close()


def test_another_root_of_the_same_sha1_is_another_download(store: BlobStore) -> None:
    claimed = hash_bytes(b"lie").root_object._replace(content=MANIFEST.content)
    lie = Partial.open(store.directory, NODE, claimed, 0)
    truth = begin(store)
    assert lie.directory != truth.directory
    lie.discard()
    truth.write_page(0, MANIFEST.pages[0])
    truth.close()
    assert not os.path.exists(lie.directory)


def test_a_download_that_does_not_fit_is_not_begun(store: BlobStore) -> None:
    huge = hash_bytes(b"").root_object._replace(size=1 << 43, pages=(bytes(32),) * 8192)
    with pytest.raises(StorageFullError, match=r"need 8\.8 TB"):
        Partial.open(store.directory, NODE, huge, reserve_bytes=0)


def test_only_what_is_missing_must_fit(store: BlobStore) -> None:
    filled(store).close()
    free = os.statvfs(store.directory)
    reserve = free.f_bavail * free.f_frsize - 4 * MIB
    Partial.open(store.directory, NODE, MANIFEST.root_object, max(0, reserve)).close()


def test_the_data_can_be_read_while_it_arrives(store: BlobStore) -> None:
    partial = filled(store, range(2, 3))
    fd = partial.open_data()
    assert os.pread(fd, MIB, 2 * MIB) == chunk(2)
    with pytest.raises(OSError):
        os.write(fd, b"x")
    partial.write_chunk(4, chunk(4))
    assert os.pread(fd, MIB, 4 * MIB) == chunk(4)
    os.close(fd)
    partial.close()


def test_a_symbolic_link_in_a_download_is_not_followed(store: BlobStore, tmp_path: Path) -> None:
    partial = begin(store)
    partial.close()
    (tmp_path / "victim").write_bytes(b"victim")
    os.unlink(partial.data_path)
    os.symlink(tmp_path / "victim", partial.data_path)
    with pytest.raises(StoreError):
        begin(store)
    assert (tmp_path / "victim").read_bytes() == b"victim"


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 1000])
def test_a_bitmap_is_a_set(length: int) -> None:
    rng = random.Random(length)
    bits, model = Bitmap(length), set[int]()
    for _ in range(3 * length):
        number = rng.randrange(length)
        if rng.random() < 0.6:
            bits.add(number)
            model.add(number)
        else:
            bits.remove(number)
            model.discard(number)
    assert sorted(bits) == sorted(model)
    assert len(bits) == len(model)
    assert all((number in bits) == (number in model) for number in range(-2, length + 2))


def test_a_bitmap_from_disk_holds_nothing_past_its_end() -> None:
    assert list(Bitmap(3, b"\xff\xff")) == [0, 1, 2]
    assert list(Bitmap(9, b"\x01")) == [0]
