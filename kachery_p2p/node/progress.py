"""What clients are told of running work: the fields of `PROGRESS` in `wire.operations`.

A client is given a place to look, not a stream of events: the door looks there when it is
about to send (five times a second at most), so a client that reads slowly costs the work
nothing and gets what is true then. Guests learn how many serve and how fast, not who.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import trio

from kachery_p2p.limits import GIVEN_LOOK_S, PEERS_MAX, PROGRESS_TOLD_S
from kachery_p2p.node.doors import Call
from kachery_p2p.node.parts import NetworkParts
from kachery_p2p.transfer.progress import AT_WORK, Snapshot, SourceProgress, View

# What this node does when it takes a file from a client.
STORING = "storing"

ChannelName = Callable[[str], str]


def fields_of(shown: Snapshot, channel_name: ChannelName, *, guest: bool) -> dict[str, Any]:
    """A transfer as its fields in progress and `status`; for guests without names of peers."""
    sources = shown.sources[:PEERS_MAX]
    return {
        "phase": shown.phase,
        "waiting_for": shown.waiting_for,
        "bytes": shown.bytes,
        "verified": shown.bytes,
        "size": shown.size,
        "reused": shown.reused,
        "wasted": shown.wasted,
        "rate": shown.rate,
        "eta_s": shown.eta_s,
        "sources": [] if guest else [one.name for one in sources if one.state in AT_WORK],
        "by_source": [_source(one, channel_name, guest) for one in sources],
    }


def _source(source: SourceProgress, channel_name: ChannelName, guest: bool) -> dict[str, Any]:
    return {
        "node_id": None if guest else source.node,
        "name": None if guest else source.name,
        "channel": channel_name(source.channel),
        "state": source.state,
        "rate": source.rate,
        "bytes": source.bytes,
        "wasted": source.wasted,
    }


class Telling:
    """Tells the client of a call how far it is: first this `phase`, then what it is shown."""

    def __init__(self, call: Call, channel_name: ChannelName, phase: str) -> None:
        self._call = call
        self._channel_name = channel_name
        self._view: View = lambda now: Snapshot(phase)
        self._call.progress(self.look)

    def __call__(self, view: View) -> None:
        """There is something new to be seen in `view`."""
        self._view = view
        self._call.progress(self.look)

    def look(self) -> dict[str, Any]:
        """The fields of progress as they are now."""
        shown = self._view(trio.current_time())
        return fields_of(shown, self._channel_name, guest=self._call.guest is not None)


async def count_given(network: NetworkParts) -> None:
    """Look, for ever, at how much each member was given."""
    while True:
        counts: Counter[str] = Counter(network.bulk.sent_to())
        counts.update(network.server.served_to)
        network.given.look(counts, trio.current_time())
        await trio.sleep(GIVEN_LOOK_S)


class Counting:
    """Tells the client of a call how many bytes of `size` a thread has worked through.

    Made in trio; called in the thread with each further number of bytes.
    """

    def __init__(self, call: Call, phase: str, size: int) -> None:
        self._call = call
        self._phase = phase
        self._size = size
        self._bytes = 0
        self._token = trio.lowlevel.current_trio_token()
        self._next_at = -math.inf

    def __call__(self, byte_count: int) -> None:
        self._bytes += byte_count
        # A node that stops does not wait for the thread.
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._tell, idempotent=True)

    def _tell(self) -> None:
        now = trio.current_time()
        if now >= self._next_at or self._bytes >= self._size:
            self._next_at = now + PROGRESS_TOLD_S
            self._call.progress(self.look)

    def look(self) -> dict[str, Any]:
        """The fields of progress as they are now."""
        size = max(self._size, self._bytes)
        return {"phase": self._phase, "bytes": self._bytes, "size": size}
