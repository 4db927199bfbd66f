"""The same work with nothing of ours in between: what this computer could do at best.

Each function is called by child.py in a process of its own.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import queue
import socket
import threading
import time
from typing import Any

from blake3 import blake3

PIECE_BYTES = 1 << 20
PIECES_AHEAD_MAX = 8


def store_texts(texts: list[str], directory: str) -> dict[str, Any]:
    """Store texts as `store_text` does while no daemon runs: call for call, and nothing else.

    For each: a look whether a daemon runs and whether the index is still there; a read lock
    on the index; a new file, locked, written, read-only, synced; the directories that are
    missing, with a look at the mode of the first; the rename; a sync of each directory that
    gained an entry; a look at the times of the file; a look for channels; and a line in
    shares.log, locked and synced. For each 256 the pages of a commit to the index, which
    has no sync of its own. Left out: what is not the disk (getpid and the like), and the
    second hash. `strace -f -c` of both shows the same numbers of calls.
    """
    began = time.perf_counter()
    os.makedirs(f"{directory}/.tmp")
    os.mkdir(f"{directory}/sha1")
    log = f"{directory}/shares.log"
    os.close(os.open(log, os.O_WRONLY | os.O_CREAT, 0o600))
    with _BareIndex(f"{directory}/index") as index:
        for text in texts:
            _exists(f"{directory}/daemon.sock")
            index.look()
            content = _store(text.encode(), directory)
            index.note()
            _exists(f"{directory}/channels")
            _append(log, b'{"content":"%s","channels":null,"why":"store","time":%d}\n', content)
    return {"seconds": time.perf_counter() - began}


class _BareIndex:
    """The system calls of the index, without the database."""

    OBJECTS = 256
    # Rows of 200 bytes, in pages of 4 KiB behind a header of 24 bytes.
    PAGES = OBJECTS * 200 // 4096 + 1

    def __init__(self, path: str) -> None:
        self._path = path
        self._waiting = 0

    def __enter__(self) -> _BareIndex:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def look(self) -> None:
        """A read transaction."""
        os.stat(self._path)
        fcntl.lockf(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 124)
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, 124)

    def note(self) -> None:
        """Of so many objects a write transaction."""
        self._waiting += 1
        if self._waiting < self.OBJECTS:
            return
        self._waiting = 0
        for number in range(self.PAGES):
            os.pwrite(self._fd, bytes(24), number * 4120)
            os.pwrite(self._fd, bytes(4096), number * 4120 + 24)


def store_group(texts: list[str], directory: str) -> dict[str, Any]:
    """Store texts as one group, call for call as `put_many` does: all files, one syncfs, all
    directories and names, one syncfs; the names are looked at before and after.

    Then the pages of one commit to the index. Left out: the second hash.
    """
    began = time.perf_counter()
    os.makedirs(f"{directory}/.tmp")
    os.mkdir(f"{directory}/sha1")
    top = os.open(directory, os.O_RDONLY)
    contents = []
    for number, text in enumerate(texts):
        data = text.encode()
        contents.append(hashlib.sha1(data, usedforsecurity=False).hexdigest())
        _exists(_place(directory, contents[-1]))
        fd = os.open(f"{directory}/.tmp/{number}", _NEW, 0o600)
        os.pwrite(fd, data, 0)
        os.fchmod(fd, 0o444)
        os.close(fd)
    _sync_file_system(top)
    made: set[str] = set()
    for number, content in enumerate(contents):
        _make_parents(directory, content, made)
        os.rename(f"{directory}/.tmp/{number}", _place(directory, content))
    _sync_file_system(top)
    for content in contents:
        os.lstat(_place(directory, content))
    os.close(top)
    with _BareIndex(f"{directory}/index") as index:
        for _ in contents:
            index.note()
    return {"seconds": time.perf_counter() - began}


_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def _sync_file_system(fd: int) -> None:
    if ctypes.CDLL(None, use_errno=True).syncfs(fd):
        raise OSError(ctypes.get_errno(), "syncfs")


def _store(data: bytes, directory: str) -> str:
    content = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    temp, place = f"{directory}/.tmp/{os.urandom(16).hex()}", _place(directory, content)
    fd = os.open(temp, _NEW, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.statvfs(directory)
    os.pwrite(fd, data, 0)
    os.fchmod(fd, 0o444)
    os.fsync(fd)
    grown = _make_parents(directory, content, _made)
    if grown:  # the mode of the first, against that of the store
        os.stat(directory)
        os.stat(os.path.dirname(place))
    os.rename(temp, place)
    for parent in (os.path.dirname(place), *grown):
        _sync(parent)
    os.fstat(fd)
    os.close(fd)
    return content


def _place(directory: str, content: str) -> str:
    return f"{directory}/sha1/{content[:2]}/{content[2:4]}/{content[4:6]}/{content}"


# Directories that this process knows to be there.
_made: set[str] = set()


def _make_parents(directory: str, content: str, made: set[str]) -> list[str]:
    """Make the directories for it that are missing; those that they are in."""
    place, grown = f"{directory}/sha1", list[str]()
    for part in (content[:2], content[2:4], content[4:6]):
        parent, place = place, f"{place}/{part}"
        if place not in made:
            os.mkdir(place)
            made.add(place)
            grown.append(parent)
    return grown


def _exists(path: str) -> bool:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _append(log: str, line: bytes, content: str) -> None:
    fd = os.open(log, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_EX)
    size = os.fstat(fd).st_size
    if size:
        os.pread(fd, 1, size - 1)
    os.write(fd, line % (content.encode(), time.time_ns()))
    os.fsync(fd)
    os.close(fd)


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fsync(fd)
    os.close(fd)


def send(path: str) -> dict[str, Any]:
    """Print a port, and send the file to whoever connects to it."""
    with socket.create_server(("127.0.0.1", 0)) as server, open(path, "rb") as file:
        print(server.getsockname()[1], flush=True)
        connection, _ = server.accept()
        with connection:
            connection.sendfile(file)
    return {}


def receive(port: int, path: str) -> dict[str, Any]:
    """Receive a file: BLAKE3 of each MiB and writing in one thread, SHA-1 in another."""
    began = time.perf_counter()
    whole = hashlib.sha1(usedforsecurity=False)
    free: queue.Queue[bytearray] = queue.Queue()
    full: queue.Queue[memoryview | None] = queue.Queue()
    for _ in range(PIECES_AHEAD_MAX):
        free.put(bytearray(PIECE_BYTES))
    hasher = threading.Thread(target=_hash, args=(whole, full, free))
    hasher.start()
    with socket.create_connection(("127.0.0.1", port)) as source, open(path, "wb", 0) as file:
        chunks = []
        while piece := _receive_piece(source, free.get()):
            chunks.append(blake3(piece).digest())
            file.write(piece)
            full.put(piece)
        full.put(None)
        hasher.join()
        verified = time.perf_counter()
        os.fsync(file.fileno())
    return {
        "sha1": whole.hexdigest(),
        "chunks": len(chunks),
        "seconds": verified - began,
        "durable_s": time.perf_counter() - began,
    }


def _receive_piece(source: socket.socket, buffer: bytearray) -> memoryview:
    view, filled = memoryview(buffer), 0
    while filled < PIECE_BYTES and (count := source.recv_into(view[filled:])):
        filled += count
    return view[:filled]


def _hash(whole: Any, full: queue.Queue[memoryview | None], free: queue.Queue[bytearray]) -> None:
    while (piece := full.get()) is not None:
        whole.update(piece)
        free.put(piece.obj)  # type: ignore[arg-type] # the bytearray that it is a view of
