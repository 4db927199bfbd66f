"""What the buckets say of the histories of this node's channels.

A member on a new computer, with its keys and the channel's secret and nobody to meet, learns from
the bucket who is a member: itself too, or it may do nothing. What is read there is judged as what
a member tells (`network.histories`): by the channel's key, never backwards, and a second history
becomes a proof.
"""

from __future__ import annotations

import logging
from typing import Any

import trio

from kachery_p2p.bucket.log_layout import LogHead
from kachery_p2p.bucket.log_reading import OF_A_LIE, read_head, read_segment
from kachery_p2p.bucket.reading import Readable
from kachery_p2p.channels.notices import log_id
from kachery_p2p.errors import BucketError, KacheryError, PeerError
from kachery_p2p.limits import (
    BUCKET_HISTORY_ALONE_S,
    BUCKET_HISTORY_S,
    UPLOADS_LOOK_S,
)
from kachery_p2p.network.histories import Histories
from kachery_p2p.network.sessions import Sessions
from kachery_p2p.node.bucketing import Bucketing
from kachery_p2p.node.parts import Parts

log = logging.getLogger(__name__)


class HistoryLooking:
    """Looks up histories in buckets: at the start, now and then, and when somebody says so."""

    def __init__(
        self, parts: Parts, sessions: Sessions, histories: Histories, bucketing: Bucketing
    ) -> None:
        self._parts = parts
        self._sessions = sessions
        self._histories = histories
        self._buckets = bucketing.buckets
        # By bucket and channel: when it was looked at last.
        self._looked_at: dict[tuple[Readable, str], float] = {}
        self._wanted: set[str] = set()
        self._problems: dict[str, str] = {}

    async def run(self) -> None:
        """For ever."""
        while True:
            await self.look()
            await trio.sleep(UPLOADS_LOOK_S)

    def look_soon(self, channel: str) -> None:
        """The bucket of a channel says something that is not known here."""
        self._wanted.add(channel)

    def problems(self) -> list[str]:
        """What is wrong with the histories in buckets."""
        return list(self._problems.values())

    async def look(self) -> None:
        """Look at what is due."""
        places = self._buckets.of_channels()
        self._looked_at = {k: at for k, at in self._looked_at.items() if k in places}
        wanted, self._wanted = self._wanted, set()
        for place, channel in places:
            is_owned = self._parts.memberships.history(channel) is not None
            if is_owned and (channel in wanted or self._is_due(place, channel)):
                self._looked_at[place, channel] = trio.current_time()
                await self._look_at(place, channel)

    def _is_due(self, place: Readable, channel: str) -> bool:
        if self._buckets.rests(place):
            return False
        is_alone = not any(channel in session.channels for session in self._sessions.all())
        every_s = BUCKET_HISTORY_ALONE_S if is_alone else BUCKET_HISTORY_S
        at = self._looked_at.get((place, channel))
        return at is None or trio.current_time() >= at + every_s

    async def _look_at(self, place: Readable, channel: str) -> None:
        name = self._parts.channel_name(channel)
        try:
            told = await self._buckets.run(lambda: read_head(place, log_id(channel)))
            self._buckets.worked(place)
            if told is not None:
                await self._histories.hear_of(_Teller(place, channel, told, self._buckets), channel)
            self._problems.pop(channel, None)
        except (*OF_A_LIE, PeerError) as error:
            self._problems[channel] = f"bucket of channel {name}: its history there: {error}"
            log.warning("what %s has as the history of channel %s is wrong: %s",
                        place.name, name, error)  # fmt: skip
        except BucketError as error:
            self._buckets.failed(place, error)
            # What failed is tried again when the bucket has rested.
            self._looked_at.pop((place, channel), None)
        except KacheryError as error:
            log.warning("channel %s: %s", name, error)


class _Teller:
    """A bucket that tells of one history, as a member would."""

    def __init__(self, place: Readable, channel: str, told: LogHead, buckets: Any) -> None:
        self._place = place
        self._channel = channel
        self._head = told
        self._buckets = buckets

    @property
    def told(self) -> dict[str, bytes]:
        """What a member says first."""
        return {"head": self._head.head.encode(), "fork": self._head.fork, "notice": b""}

    async def request(self, op: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The entries of one segment, from the one on that is asked for. PeerError, BucketError."""
        assert op == "entries"
        for first, segment in self._head.spans():
            if first <= body["first"] < segment.end:
                entries = await self._buckets.run(
                    lambda at=first, one=segment: read_segment(
                        self._place, log_id(self._channel), at, one
                    )
                )
                return {"entries": entries[body["first"] - first :]}
        return {"entries": []}
