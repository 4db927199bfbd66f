"""What a client does in a process of its own when thousands of small files are loaded."""

from __future__ import annotations

import time
from typing import Any

import kachery_p2p as kp
from kachery_p2p.client.local import open_store
from kachery_p2p.client.storing import share_stored


def store_shared(texts: list[str]) -> dict[str, Any]:
    """Store texts as a group, and share them with one call: what the giver has, not measured."""
    with open_store() as store:
        stored = list(store.put_many(text.encode() for text in texts))
        store.flush_index()
    contents = [one.content for one in stored]  # type: ignore[union-attr]
    for at in range(0, len(contents), 4_000):
        share_stored(contents[at : at + 4_000], None)
    return {"uris": [f"sha1://{content}" for content in contents]}


def load_many(uris: list[str]) -> dict[str, Any]:
    """Load all of them with one `load_files`."""
    began = time.perf_counter()
    paths = kp.load_files(uris)
    return {"paths": paths, "seconds": time.perf_counter() - began}
