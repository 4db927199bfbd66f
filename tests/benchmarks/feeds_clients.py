"""What users' processes do with feeds, timed inside them: each function is called by child.py."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import kachery_p2p as kp

# 200 bytes as JSON.
MESSAGE = "x" * 198
BATCH = 1_000
_FOLLOW_MS = 20_000
# Until then an interpreter has not seen which types its instructions meet.
_WARMING = 50


def create_feed() -> dict[str, Any]:
    """A feed with a subfeed, and one message in it, so that everything is imported and open."""
    subfeed = kp.create_feed().get_subfeed("main")
    subfeed.append_message(MESSAGE)
    return {"uri": subfeed.uri}


def append_one_by_one(uri: str, bare: str, calls: int) -> dict[str, Any]:
    """Append, and beside it write and sync as many bytes to a plain file, in turns."""
    subfeed = kp.load_subfeed(uri)
    subfeed.append_message(MESSAGE)
    shares, rates = [], []
    for _ in range(5):
        plain = _bare_loop(Path(bare), calls)
        began = time.perf_counter()
        for _ in range(calls):
            subfeed.append_message(MESSAGE)
        rates.append(calls / (time.perf_counter() - began))
        shares.append(rates[-1] / plain)
    return {"rates": rates, "shares": shares}


def _bare_loop(path: Path, calls: int) -> float:
    data = MESSAGE.encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    began = time.perf_counter()
    for _ in range(calls):
        os.write(descriptor, data)
        os.fdatasync(descriptor)
    seconds = time.perf_counter() - began
    os.close(descriptor)
    path.unlink()
    return calls / seconds


def append_batches(uri: str, batches: int) -> dict[str, Any]:
    """Append in batches, and read all of it back."""
    subfeed = kp.load_subfeed(uri)
    subfeed.append_message(MESSAGE)
    batch = [MESSAGE] * BATCH
    began = time.perf_counter()
    for _ in range(batches):
        subfeed.append_messages(batch)
    appended = time.perf_counter()
    count = len(subfeed.get_next_messages())
    read_s = time.perf_counter() - appended
    return {"appended": batches * BATCH / (appended - began), "read": count / read_s}


def append_when_told(uri: str, gate: str, way_out: str, calls: int) -> dict[str, Any]:
    """One of many processes that append when the FIFO `gate` is closed.

    It says when it began and ended, and leaves when `way_out` is closed: an interpreter that ends
    takes as long as a hundred appends of those that still write.
    """
    subfeed = kp.load_subfeed(uri)
    with open(gate, "rb") as opened, open(way_out, "rb") as leaving:
        for _ in range(_WARMING):
            subfeed.append_message(MESSAGE)
        print("{}", flush=True)
        opened.read()
        began = time.time()
        for _ in range(calls):
            subfeed.append_message(MESSAGE)
        print(json.dumps({"began": began, "ended": time.time()}), flush=True)
        leaving.read()
    return {}


def append_times(uri: str, calls: int) -> dict[str, Any]:
    """Append the time of a clock that all processes share, with pauses."""
    subfeed = kp.load_subfeed(uri)
    for _ in range(calls):
        subfeed.append_message(time.monotonic_ns())
        time.sleep(0.01)
    return {}


def hear_times(uri: str, calls: int) -> dict[str, Any]:
    """Milliseconds from an append elsewhere to `get_next_messages` returning."""
    subfeed = kp.load_subfeed(uri)
    subfeed.get_next_messages(max_num_messages=1)
    print("{}", flush=True)
    waits: list[float] = []
    while len(waits) < calls:
        messages = subfeed.get_next_messages(wait_msec=_FOLLOW_MS)
        now = time.monotonic_ns()
        if not messages:
            break
        waits += [(now - sent) / 1e6 for sent in messages]
    return {"waits_ms": waits}
