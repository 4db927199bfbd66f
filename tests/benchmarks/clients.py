"""What a user's Python process does, timed inside it: each function is called by child.py."""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

import kachery_p2p as kp
from kachery_p2p.client.daemon import connect, hello
from kachery_p2p.client.local import open_store
from kachery_p2p.store.blobs import Stored

RANGE_BYTES = 4096
BATCHES = 20


def store_file(path: str) -> dict[str, Any]:
    """Store a file, and then again, unchanged."""
    began = time.perf_counter()
    uri = kp.store_file(path)
    stored = time.perf_counter()
    assert kp.store_file(path) == uri
    return {
        "uri": uri,
        "seconds": stored - began,
        "again_s": time.perf_counter() - stored,
    }


def store_texts(texts: list[str]) -> dict[str, Any]:
    """Store texts one by one. What the first costs more, imports above all, is not counted."""
    kp.store_text("first")
    began = time.perf_counter()
    uris = [kp.store_text(text) for text in texts]
    return {"uris": uris, "seconds": time.perf_counter() - began}


def store_group(texts: list[str]) -> dict[str, Any]:
    """Store texts as one group, nothing shared. Opening the store is not counted."""
    with open_store() as store:
        store.put_bytes(b"first")
        began = time.perf_counter()
        stored = list(store.put_many([text.encode() for text in texts]))
        seconds = time.perf_counter() - began
    assert all(isinstance(one, Stored) for one in stored), stored[:3]
    return {"seconds": seconds}


def load_files(uris: list[str]) -> dict[str, Any]:
    """Load files one by one."""
    began = time.perf_counter()
    paths = [kp.load_file(uri) for uri in uris]
    return {"paths": paths, "seconds": time.perf_counter() - began}


def find_stored(uri: str, calls: int) -> dict[str, Any]:
    """Seconds a call of load_file takes for a file that is stored: each a mean of many."""
    return {"seconds": [_seconds_a_call(uri, calls) for _ in range(BATCHES)]}


def _seconds_a_call(uri: str, calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        kp.load_file(uri)
    return (time.perf_counter() - began) / calls


def read_ranges(uri: str, size: int, calls: int) -> dict[str, Any]:
    """Seconds a call of load_bytes takes, anywhere in a file that is stored."""
    places = random.Random(1)  # the same places in every run
    means = []
    for _ in range(BATCHES):
        starts = [places.randrange(size - RANGE_BYTES) for _ in range(calls)]
        began = time.perf_counter()
        for start in starts:
            kp.load_bytes(uri, start, start + RANGE_BYTES)
        means.append((time.perf_counter() - began) / calls)
    return {"seconds": means}


def say_hello(calls: int) -> dict[str, Any]:
    """Seconds of the median round trip to the daemon's Unix door, several times over."""
    return {"seconds": [_median_hello(calls) for _ in range(BATCHES)]}


def _median_hello(calls: int) -> float:
    daemon = connect()
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        hello(daemon)
        times.append(time.perf_counter() - began)
    return statistics.median(times)
