"""The same work with nothing of ours in between: what this computer could do at best.

Each function is called by child.py in a process of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
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
    """Store texts as kachery_p2p does, by its system calls for the object and for shares.log.

    In its order too: the directories that gained one are synced last, when a journal has
    committed them with the object. Only the index is left out: it is not synced, and so
    costs no wait for the disk.
    """
    began = time.perf_counter()
    os.makedirs(f"{directory}/.tmp")
    os.mkdir(f"{directory}/sha1")
    log = os.open(f"{directory}/shares.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number, text in enumerate(texts):
        content = _store(text.encode(), directory, f"{directory}/.tmp/{number}")
        os.write(log, b'{"content": "%s", "channels": null}\n' % content.encode())
        os.fsync(log)
    return {"seconds": time.perf_counter() - began}


def store_group(texts: list[str], directory: str) -> dict[str, Any]:
    """Store texts as one group: all written, one syncfs, all renamed, one syncfs. No index."""
    began = time.perf_counter()
    os.makedirs(f"{directory}/.tmp")
    os.mkdir(f"{directory}/sha1")
    top = os.open(directory, os.O_RDONLY)
    contents = []
    for number, text in enumerate(texts):
        data = text.encode()
        contents.append(hashlib.sha1(data, usedforsecurity=False).hexdigest())
        fd = os.open(f"{directory}/.tmp/{number}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, data)
        os.fchmod(fd, 0o444)
        os.close(fd)
    _sync_file_system(top)
    for number, content in enumerate(contents):
        place = f"{directory}/sha1"
        for part in (content[:2], content[2:4], content[4:6]):
            place = f"{place}/{part}"
            with contextlib.suppress(FileExistsError):
                os.mkdir(place)
        os.rename(f"{directory}/.tmp/{number}", f"{place}/{content}")
    _sync_file_system(top)
    os.close(top)
    return {"seconds": time.perf_counter() - began}


def _sync_file_system(fd: int) -> None:
    if ctypes.CDLL(None, use_errno=True).syncfs(fd):
        raise OSError(ctypes.get_errno(), "syncfs")


def _store(data: bytes, directory: str, temp: str) -> str:
    content = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    fd = os.open(temp, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(fd, data)
    place = f"{directory}/sha1"
    grown = []
    for part in (content[:2], content[2:4], content[4:6]):
        with contextlib.suppress(FileExistsError):
            os.mkdir(f"{place}/{part}")
            grown.append(place)
        place = f"{place}/{part}"
    os.fchmod(fd, 0o444)
    os.fsync(fd)
    os.rename(temp, f"{place}/{content}")
    for parent in (place, *grown):
        _sync(parent)
    os.close(fd)
    return content


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
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
