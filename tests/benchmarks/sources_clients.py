"""A user's load from one of several holders, or from all of them; called by child.py."""

from __future__ import annotations

import time
from typing import Any

import kachery_p2p as kp


def load_file(uri: str, node: str | None) -> dict[str, Any]:
    """Load a file, only from that node if one is named."""
    began = time.perf_counter()
    path = kp.load_file(uri, from_node=node)
    return {"path": path, "seconds": time.perf_counter() - began}
