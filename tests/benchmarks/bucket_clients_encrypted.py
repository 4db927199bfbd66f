"""What a process does with an encrypted bucket in these benchmarks, and with a plain one."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bucket_clients import opened

from kachery_p2p.bucket.member_keys import SecretKeys
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.rings import ring_of_secret
from kachery_p2p.bucket.sealed_objects import SealedObjects

PIECE, RANGE, AT_ONCE = 1 << 20, 4 << 20, 8


def plain(url: str, size: int) -> dict[str, Any]:
    """Put so many bytes there and get them again, in ranges as a transfer does."""
    return _measured(opened(url), size)


def encrypted(url: str, size: int) -> dict[str, Any]:
    """The same with the keys of a shared secret."""
    return _measured(SealedObjects(opened(url), SecretKeys(ring_of_secret(bytes(20), "lab"))), size)


def _measured(bucket: Objects, size: int) -> dict[str, Any]:
    piece = os.urandom(PIECE)

    def put() -> None:
        bucket.put_large("bench.dat", (piece for _ in range(size // PIECE)), size, {})

    def got(start: int) -> int:
        return sum(map(len, bucket.read_key("bench.dat", start, start + RANGE)))

    def get() -> None:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            assert sum(threads.map(got, range(0, size, RANGE))) == size

    bucket.put_new("warm", b"x", {})
    put_s, put_cpu_s = _timed(put)
    bucket.head("bench.dat")
    get_s, get_cpu_s = _timed(get)
    bucket.delete("bench.dat")
    return {"put": put_s, "put_cpu": put_cpu_s, "get": get_s, "get_cpu": get_cpu_s}


def _timed(work: Any) -> tuple[float, float]:
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - cpu
