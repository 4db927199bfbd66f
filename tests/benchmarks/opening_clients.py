"""What a Python process that reads parts of remote files does, timed inside it: see child.py."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import kachery_p2p as kp
from kachery_p2p.client.daemon import connect

MIB = 1 << 20
READ_BYTES = 1024
# A reader takes pieces of this size, as pandas and zipfile do.
PIECE_BYTES = 256 << 10


def read_end(warm_uri: str, uri: str) -> dict[str, Any]:
    """Read the last KiB of a file of which nothing is here, over connections that are."""
    kp.load_bytes(warm_uri, 0, 1)
    before = _downloaded()
    began = time.perf_counter()
    with kp.open(uri) as file:
        file.seek(-READ_BYTES, os.SEEK_END)
        data = file.read()
        seconds = time.perf_counter() - began
    assert len(data) == READ_BYTES
    return {"seconds": seconds, "moved": _downloaded() - before}


def read_through(uri: str) -> dict[str, Any]:
    """Read a file from its beginning to its end."""
    began, size = time.perf_counter(), 0
    with kp.open(uri) as file:
        while piece := file.read(PIECE_BYTES):
            size += len(piece)
    return {"seconds": time.perf_counter() - began, "bytes": size}


def read_beside(uri: str, big_uri: str, reads: int) -> dict[str, Any]:
    """Read KiBs of a file, each of another chunk, while a thread loads a big one."""
    kp.load_bytes(uri, 0, 1)
    loading = threading.Thread(target=kp.load_file, args=(big_uri,))
    before = _downloaded()
    loading.start()
    while _downloaded() < before + 4 * MIB and loading.is_alive():
        time.sleep(0.001)
    found = []
    for number in range(1, reads + 1):
        moved, began = _downloaded(), time.perf_counter()
        kp.load_bytes(uri, number * MIB, number * MIB + READ_BYTES)
        seconds = time.perf_counter() - began
        if loading.is_alive():
            found.append((seconds, _downloaded() - moved))
    loading.join()
    return {"seconds": [one[0] for one in found], "moved": [one[1] for one in found]}


def _downloaded() -> int:
    return int(connect().call("status", {})[0]["pace"]["downloaded"])
