"""What the index has yet to be told: answered meanwhile, written soon, lost without harm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.errors import StorageFailedError
from kachery_p2p.limits import CHUNK_BYTES, INDEX_WAIT_S_MAX, INDEX_WAITING_MAX
from kachery_p2p.store import backlog
from kachery_p2p.store.backlog import Backlog, Remembered, SourceSeen
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.hashing import hash_bytes
from kachery_p2p.store.index import Index


class Written:
    """Stands for the index: keeps what it is told, a list for each commit."""

    def __init__(self) -> None:
        self.commits: list[list[Remembered]] = []
        self.sources: list[SourceSeen] = []
        self.failure: Exception | None = None

    def __call__(self, objects: list[Remembered], sources: list[SourceSeen]) -> None:
        if self.failure is not None:
            raise self.failure
        self.commits.append(objects)
        self.sources += sources


def known(data: bytes) -> Remembered:
    manifest = hash_bytes(data)
    return Remembered(manifest.content, manifest, manifest.root, os.stat("/"))


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(backlog, "time", self)

    def monotonic(self) -> float:
        return self.now


def test_what_waits_is_answered_and_written_in_one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    written = Written()
    waiting = Backlog(written)
    several = [known(b"%d" % number) for number in range(INDEX_WAITING_MAX)]
    for one in several[:-1]:
        waiting.add_object(one)
    assert written.commits == []
    assert waiting.object(several[0].content) == several[0]
    waiting.add_object(several[-1])
    assert written.commits == [several]
    assert waiting.object(several[0].content) is None


def test_nothing_waits_for_long_behind_what_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, written = Clock(monkeypatch), Written()
    waiting = Backlog(written)
    waiting.add_object(known(b"1"))
    clock.now += INDEX_WAIT_S_MAX / 2
    waiting.add_object(known(b"2"))
    assert written.commits == []
    clock.now += INDEX_WAIT_S_MAX
    source = SourceSeen(os.stat("/"), known(b"3").content, known(b"3").root)
    waiting.add_source(source)
    assert written.commits == [[known(b"1"), known(b"2")]]
    assert written.sources == [source]


def test_what_cannot_be_written_is_dropped_and_said_once() -> None:
    written = Written()
    waiting = Backlog(written)
    waiting.add_object(known(b"1"))
    written.failure = StorageFailedError("no disk")
    with pytest.raises(StorageFailedError):
        waiting.write()
    written.failure = None
    waiting.write()
    assert written.commits == []


def test_threads_lose_nothing() -> None:
    written = Written()
    waiting = Backlog(written)

    def add(thread: int) -> None:
        for number in range(500):
            waiting.add_object(known(b"%d %d" % (thread, number)))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    waiting.write()
    assert len({one.content for commit in written.commits for one in commit}) == 2_000


def test_a_small_object_is_in_the_index_when_it_is_closed(tmp_path: Path) -> None:
    path = str(tmp_path / "config" / "index.db")
    index, other = Index(path), Index(path)
    store = BlobStore(str(tmp_path / "store"), index, 0)
    large, small = store.put_bytes(bytes(CHUNK_BYTES + 1)), store.put_bytes(b"small")
    assert other.known(large.content, os.stat(large.path)) is not None
    assert other.known(small.content, os.stat(small.path)) is None
    assert store.known(small.content) == hash_bytes(b"small").root_object
    index.close()
    assert other.known(small.content, os.stat(small.path)) == hash_bytes(b"small").root_object
    other.close()


KILLED = """
import json, os, signal, sys
sys.path.insert(0, os.getcwd())
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.index import Index
top = sys.argv[1]
index = Index(top + "/config/index.db")
store = BlobStore(top + "/store", index, 0)
print(json.dumps([store.put_bytes(b"value %d" % number).content for number in range(300)]))
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_loses_rows_of_the_index_but_no_object(quick_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(quick_path)], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    contents = [sha1_of(b"value %d" % number) for number in range(300)]
    assert json.loads(done.stdout) == contents
    index = Index(f"{quick_path}/config/index.db")
    store = BlobStore(f"{quick_path}/store", index, 0)
    unknown = [content for content in contents if store.known(content) is None]
    assert len(unknown) == 300 - INDEX_WAITING_MAX
    assert set(store.vouch(contents).values()) == {None}
    assert all(store.known(content) is not None for content in contents)
    index.close()


FORKED = """
import os, sys
sys.path.insert(0, os.getcwd())
from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.index import Index
top = sys.argv[1]
index = Index(top + "/config/index.db")
store = BlobStore(top + "/store", index, 0)
store.put_bytes(b"parent")
# As if another thread were adding at the moment of the fork.
index._backlog._lock.acquire()
child = os.fork()
if not child:
    store.put_bytes(b"child")
    index.close()
    other = Index(top + "/config/index.db")
    told = [other.pinned_root(sha1_of(data)) is not None for data in (b"parent", b"child")]
    os._exit(0 if told == [False, True] else 1)
index._backlog._lock.release()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
index.close()
assert Index(top + "/config/index.db").pinned_root(sha1_of(b"parent"))
"""


def test_after_a_fork_each_process_writes_what_it_stored(quick_path: Path) -> None:
    subprocess.run([sys.executable, "-c", FORKED, str(quick_path)], check=True, timeout=60)
