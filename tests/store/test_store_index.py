from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kachery_p2p.content.hashes import ContentHash, Root, sha1_of
from kachery_p2p.content.manifests import ManifestBuilder
from kachery_p2p.errors import StateVersionError, StorePermissionError
from kachery_p2p.limits import CHUNK_BYTES, PAGE_CHUNKS_MAX
from kachery_p2p.store.hashing import hash_bytes
from kachery_p2p.store.index import Index

MANIFEST = hash_bytes(b"data")
CONTENT = MANIFEST.content


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"data")
    return path


def test_a_file_is_known_while_nothing_about_it_changes(index: Index, file: Path) -> None:
    status = os.stat(file)
    assert index.known(CONTENT, status) is None
    index.remember(CONTENT, status, MANIFEST)
    assert index.known(CONTENT, status) == MANIFEST.root_object
    assert index.known(sha1_of(b"other"), status) is None
    assert index.page(CONTENT, 0) == MANIFEST.pages[0]
    assert index.page(CONTENT, 1) is None


@pytest.mark.parametrize("at", ["st_ino", "st_dev", "st_size", "st_mtime_ns", "st_ctime_ns"])
def test_a_file_that_differs_in_one_thing_is_not_known(index: Index, file: Path, at: str) -> None:
    status = os.stat(file)
    index.remember(CONTENT, status, MANIFEST)
    index.remember_source(status, CONTENT, MANIFEST.root)

    class Changed:
        def __getattr__(self, name: str) -> int:
            return getattr(status, name) + (name == at)  # type: ignore[no-any-return]

    assert index.known(CONTENT, Changed()) is None  # type: ignore[arg-type]
    assert index.source_of(Changed()) is None  # type: ignore[arg-type]


def test_numbers_that_no_sqlite_integer_holds_are_kept(index: Index) -> None:
    class Status:
        st_dev = st_ino = (1 << 64) - 1
        st_size = 4
        st_mtime_ns = -1
        st_ctime_ns = 1 << 62

    index.remember(CONTENT, Status(), MANIFEST)  # type: ignore[arg-type]
    assert index.known(CONTENT, Status()) == MANIFEST.root_object  # type: ignore[arg-type]


def test_a_pin_outlives_the_file(index: Index, file: Path) -> None:
    index.remember(CONTENT, os.stat(file), MANIFEST)
    index.forget(CONTENT)
    assert index.known(CONTENT, os.stat(file)) is None
    assert index.page(CONTENT, 0) is None
    assert index.pinned_root(CONTENT) == MANIFEST.root
    assert isinstance(index.pinned_root(CONTENT), Root)
    assert index.pinned_root(sha1_of(b"other")) is None
    index.remember(CONTENT, os.stat(file), MANIFEST)
    assert index.known(CONTENT, os.stat(file)) is not None


def test_a_source_is_remembered_by_its_latest_content(index: Index, file: Path) -> None:
    status = os.stat(file)
    assert index.source_of(status) is None
    index.remember_source(status, sha1_of(b"x"), MANIFEST.root)
    index.remember_source(status, CONTENT, MANIFEST.root)
    found = index.source_of(status)
    assert found == (CONTENT, MANIFEST.root)
    assert isinstance(found[0], ContentHash)


def test_the_pages_of_a_large_content_are_kept_apart(index: Index, file: Path) -> None:
    builder = ManifestBuilder()
    chunk = bytes(CHUNK_BYTES)
    for _ in range(PAGE_CHUNKS_MAX + 1):
        builder.update(chunk)
    manifest = builder.finish(CONTENT)
    index.remember(CONTENT, os.stat(file), manifest)
    assert index.page(CONTENT, 0) == manifest.pages[0]
    assert index.page(CONTENT, 1) == manifest.pages[1]
    index.remember(CONTENT, os.stat(file), MANIFEST)
    for _ in range(2):
        assert index.page(CONTENT, 0) == MANIFEST.pages[0]
        assert index.page(CONTENT, 1) is None
        index.write_waiting()


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_whatever_its_size_a_content_is_known_with_its_pages(
    index: Index, file: Path, size: int
) -> None:
    manifest = hash_bytes(bytes(size))
    index.remember(manifest.content, os.stat(file), manifest)
    index.write_waiting()
    assert index.known(manifest.content, os.stat(file)) == manifest.root_object
    pages = [index.page(manifest.content, number) for number in range(len(manifest.pages) + 1)]
    assert pages == [*manifest.pages, None]
    index.forget(manifest.content)
    assert index.page(manifest.content, 0) is None
    assert index.pinned_root(manifest.content) == manifest.root


def test_two_processes_share_an_index(index: Index, file: Path, tmp_path: Path) -> None:
    index.remember(CONTENT, os.stat(file), MANIFEST)
    index.write_waiting()
    code = (
        "import os, sys; from kachery_p2p.store.index import Index;"
        "from kachery_p2p.content.hashes import sha1_of;"
        "index = Index(sys.argv[1]); print(index.pinned_root(sha1_of(b'data'))); index.close()"
    )
    path = str(tmp_path / "config" / "state" / "index.db")
    answer = subprocess.run(
        [sys.executable, "-c", code, path], check=True, capture_output=True, text=True
    )
    assert answer.stdout.strip() == MANIFEST.root


def test_threads_write_and_read_at_once(index: Index, file: Path) -> None:
    status = os.stat(file)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                content = sha1_of(b"%d %d" % (number, turn))
                index.remember(content, status, MANIFEST)
                assert index.pinned_root(content) == MANIFEST.root
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_child_of_a_fork_opens_its_own_connections(tmp_path: Path) -> None:
    code = """
import os, sys
from kachery_p2p.store.index import Index
from kachery_p2p.store.hashing import hash_bytes
index = Index(sys.argv[1])
manifest = hash_bytes(b"data")
index.remember(manifest.content, os.stat("/"), manifest)
index.write_waiting()
child = os.fork()
if not child:
    other = hash_bytes(b"child")
    index.remember(other.content, os.stat("/"), other)
    index.write_waiting()
    ok = index.pinned_root(manifest.content) == manifest.root
    os._exit(0 if ok else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert index.pinned_root(hash_bytes(b"child").content)
assert index.pinned_root(manifest.content)
index.close()
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "index.db")], check=True)


def test_the_index_is_readable_by_its_owner_only(index: Index, tmp_path: Path) -> None:
    index.pinned_root(CONTENT)
    state = tmp_path / "config" / "state"
    assert state.stat().st_mode & 0o777 == 0o700
    for path in state.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize("damage", ["noise", "header", "middle", "empty"])
def test_a_damaged_index_is_kept_aside_and_begun_anew(
    tmp_path: Path, file: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    path = tmp_path / "index.db"
    index = Index(str(path))
    for number in range(200):
        index.remember(sha1_of(b"%d" % number), os.stat(file), MANIFEST)
    index.close()
    data = bytearray(path.read_bytes())
    if damage == "noise":
        data = bytearray(os.urandom(len(data)))
    elif damage == "header":
        data[:16] = b"this is no index"
    elif damage == "middle":
        data[4096:] = os.urandom(len(data) - 4096)
    else:
        data.clear()
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        index.pinned_root(CONTENT)
        index.remember(CONTENT, os.stat(file), MANIFEST)
    assert index.known(CONTENT, os.stat(file)) == MANIFEST.root_object
    index.close()
    aside = [name for name in os.listdir(tmp_path) if ".damaged-" in name]
    assert bool(aside) == (damage != "empty")
    assert ("is damaged" in caplog.text) == (damage != "empty")


def test_a_flipped_bit_in_a_row_only_costs_a_hashing(index: Index, file: Path) -> None:
    index.remember(CONTENT, os.stat(file), MANIFEST)
    index.write_waiting()
    for bad in (MANIFEST.root_object.encode()[:-1], bytes([0]), bytes(72)):
        index._database.write(
            lambda connection, bad=bad: connection.execute(  # type: ignore[misc]
                "UPDATE objects SET root_object = ?", (bad,)
            )
        )
        assert index.known(CONTENT, os.stat(file)) is None
    flipped = MANIFEST.root_object._replace(size=5).encode()
    index._database.write(
        lambda connection: connection.execute("UPDATE objects SET root_object = ?", (flipped,))
    )
    assert index.known(CONTENT, os.stat(file)) is None


def test_an_index_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "index.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(StateVersionError, match="newer") as caught:
        Index(str(path)).pinned_root(CONTENT)
    assert "upgrade" in str(caught.value.hint)
    assert sorted(os.listdir(tmp_path)) == ["index.db", "index.db.lock"]


def test_an_index_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"")
    with pytest.raises(StorePermissionError, match="cannot be opened"):
        Index(str(tmp_path / "state" / "index.db")).pinned_root(CONTENT)
