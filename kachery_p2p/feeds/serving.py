"""Answering members who fetch entries, or hashes to find a fork with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import trio

from kachery_p2p.errors import EntryDamagedError, KacheryError, PeerError
from kachery_p2p.feeds.following import refusal
from kachery_p2p.feeds.permits import Permits
from kachery_p2p.feeds.subfeed import Subfeed
from kachery_p2p.feeds.subfeeds import Subfeeds
from kachery_p2p.feeds.told import SubfeedName
from kachery_p2p.limits import FEED_ANSWER_BYTES
from kachery_p2p.log.proofs import prove_consistency
from kachery_p2p.log.tree import Frontier, stored_count
from kachery_p2p.network.session import Session
from kachery_p2p.wire.feed_messages import LENGTH_BYTES, pack, unpack_numbers

log = logging.getLogger(__name__)


class Serving:
    """Gives entries to whoever may have them. `damaged` is told of those that are not sound."""

    def __init__(
        self, permits: Permits, subfeeds: Subfeeds, damaged: Callable[[Subfeed, int], None]
    ) -> None:
        self._permits = permits
        self._subfeeds = subfeeds
        self._damaged = damaged

    async def answer_entries(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        """Answer `feed entries`."""
        subfeed = await self._permitted(session, body)
        size = subfeed.replica.log.size
        if not body["first"] < body["size"] <= size:
            raise refusal()
        try:
            return await trio.to_thread.run_sync(_entries, subfeed, body)
        except EntryDamagedError as error:
            for position in error.positions:
                self._damaged(subfeed, position)
            raise PeerError("some of its entries are damaged")
        except KacheryError as error:
            log.warning("feed %s: cannot be served: %s", subfeed.name.feed[:16], error)
            raise refusal()

    async def answer_hashes(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        """Answer `feed hashes`."""
        subfeed = await self._permitted(session, body)
        places = unpack_numbers(body["places"])
        here = stored_count(subfeed.replica.log.size)
        if not all(place < here for place in places):
            raise refusal()

        def read() -> bytes:
            return b"".join(map(subfeed.replica.log.read_hash, places))

        return {"hashes": await trio.to_thread.run_sync(read)}

    async def _permitted(self, session: Session, body: dict[str, Any]) -> Subfeed:
        name = SubfeedName.of(body)
        if not await self._permits.may_tell(session, body["channel"], name):
            raise refusal()
        subfeed = await self._subfeeds.open_existing(name)
        if subfeed is None:
            raise refusal()
        return subfeed


def _entries(subfeed: Subfeed, body: dict[str, Any]) -> dict[str, Any]:
    """As many of the entries as fit, one at least, and their proof. In a thread."""
    held, first, size = subfeed.replica.log, body["first"], body["size"]
    count = min(body["count"], size - first)
    # The lengths of small entries count too.
    found = held.entries(first, min(count, FEED_ANSWER_BYTES), FEED_ANSWER_BYTES)
    room = FEED_ANSWER_BYTES
    entries: list[bytes] = []
    for entry in found:
        room -= len(entry) + LENGTH_BYTES
        if entries and room < 0:
            break
        entries.append(entry)
    if not entries:
        raise refusal()
    path = prove_consistency(first + len(entries), size, held.read_hash)
    frontier = Frontier.at(first, held.read_hash).hashes if body["frontier"] else ()
    return {
        "entries": pack(entries),
        "path": b"".join(path),
        "frontier": b"".join(frontier),
    }
