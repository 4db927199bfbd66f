"""The addresses of members, kept for the next start: STATE/peers.json.

A hint, not state to be trusted: a damaged file is as good as none.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping

from kachery_p2p.errors import ConfigError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import ADDRESSES_PER_NODE_MAX, PEERS_MAX

log = logging.getLogger(__name__)

_SCHEMA = 1
# PEERS_MAX nodes with all their addresses fit many times over.
_FILE_BYTES_MAX = 16 << 20

# What reading JSON that says anything at all can raise.
_DAMAGED = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    ConfigError,
)


def load_peers(path: str) -> dict[NodeId, tuple[str, ...]]:
    """The members of the last run and their addresses; {} when nothing usable is there."""
    try:
        with open(path, "rb") as file:
            state = json.loads(file.read(_FILE_BYTES_MAX))
        if state["schema"] != _SCHEMA:
            log.warning("%s is of another version and is not read", path)
            return {}
        found = {}
        for node, addresses in list(state["peers"].items())[:PEERS_MAX]:
            found[NodeId.parse(node)] = _texts(addresses)
    except FileNotFoundError:
        return {}
    except _DAMAGED as error:
        log.warning("%s cannot be read, members are met again from scratch: %s", path, error)
        return {}
    return found


def _texts(addresses: object) -> tuple[str, ...]:
    if not isinstance(addresses, list) or not all(isinstance(a, str) for a in addresses):
        raise ValueError("the addresses of a node are not a list of texts")
    return tuple(addresses[:ADDRESSES_PER_NODE_MAX])


def save_peers(path: str, peers: Mapping[NodeId, tuple[str, ...]]) -> None:
    """Replace the file. Not fsynced: losing it costs one more `--bootstrap`."""
    text = json.dumps({"schema": _SCHEMA, "peers": {k: list(v) for k, v in peers.items()}})
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".peers.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
