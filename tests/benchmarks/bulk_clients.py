"""What a user's Python process asks for in the bulk benchmarks, timed inside it."""

from __future__ import annotations

import time
from typing import Any

import kachery_p2p as kp


def read_first(uris: list[str]) -> dict[str, Any]:
    """Read the first byte of each of these files, which are at another node."""
    return {"seconds": [_read_first_s(uri) for uri in uris]}


def _read_first_s(uri: str) -> float:
    began = time.perf_counter()
    assert len(kp.load_bytes(uri, 0, 1)) == 1
    return time.perf_counter() - began
