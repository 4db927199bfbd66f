"""The buckets and mirrors of this node's channels: what they say they have, and how they are.

Questions block, so they run in threads, a bounded number; answers are remembered for a
while, for a bucket may take money for each. One that fails is left alone for a time that
doubles, or that it asks for, and is named among the node's problems.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import trio

from kachery_p2p.bucket.layout import key_of
from kachery_p2p.bucket.reading import OF_WORDS, Meta, Readable, believed
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import BucketBusyError, BucketEncryptionError, KacheryError
from kachery_p2p.limits import (
    BUCKET_FOUND_S,
    BUCKET_KNOWN_MAX,
    BUCKET_NOT_FOUND_S,
    BUCKET_REST_S_MAX,
    BUCKET_REST_S_MIN,
    BUCKET_THREADS_MAX,
    HAVE_S_MAX,
)
from kachery_p2p.transfer.only import Only

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class Kept(NamedTuple):
    """A bucket that says it has a content, in which channel, and what it says of it."""

    place: Readable
    channel: str
    meta: Meta


def _looked(place: Readable, content: ContentHash) -> Meta | None:
    return believed(place, [key_of(content)], lambda: place.look(content), OF_WORDS)


class _State:
    """How one bucket is."""

    def __init__(self) -> None:
        self.failures = 0
        self.rest_until = 0.0
        self.problem: KacheryError | None = None


class Buckets:
    """All of them, by channel."""

    def __init__(self, refresh: Callable[[], Awaitable[None]] | None = None) -> None:
        """`refresh` is called before each load, to `put` what is new."""
        self._refresh = refresh
        self._places: dict[str, tuple[Readable, ...]] = {}
        # Each place by itself: two channels may have one bucket, and read it through others.
        self._states: dict[Readable, _State] = {}
        # What each said of a content, and until when that is believed.
        self._known: dict[tuple[Readable, ContentHash], tuple[float, Meta | None]] = {}
        self._threads = trio.CapacityLimiter(BUCKET_THREADS_MAX)

    def put(self, places: Mapping[str, Sequence[Readable]]) -> None:
        """These are the buckets from now on, by channel id."""
        # What only the settings kept from working is tried at once.
        known = {
            (channel, place.node): self._states[place]
            for place, channel in self.of_channels()
            if not isinstance(self._states[place].problem, BucketEncryptionError)
        }
        self._places = {channel: tuple(some) for channel, some in places.items() if some}
        self._states = {
            place: known.get((channel, place.node), _State())
            for place, channel in self.of_channels()
        }
        self._known.clear()

    async def be_current(self) -> None:
        """What somebody has just changed in the settings is known when this returns."""
        if self._refresh is not None:
            await self._refresh()

    def __bool__(self) -> bool:
        return bool(self._places)

    def names(self, only: Only) -> list[str]:
        """How people know those that a call with this restriction may use."""
        return [place.name for place, _ in self._allowed(only)]

    def of_channels(self) -> list[tuple[Readable, str]]:
        """Each, and the id of its channel."""
        return [(place, channel) for channel, some in self._places.items() for place in some]

    def _allowed(self, only: Only) -> list[tuple[Readable, str]]:
        return [
            (place, channel)
            for channel, some in self._places.items()
            for place in some
            if only.allows(place.node, channel)
        ]

    # --- asking ----------------------------------------------------------------------------

    async def look(self, content: ContentHash, only: Only, told: list[Kept]) -> None:
        """Fill `told` with those that have it, as they answer; in HAVE_S_MAX at most."""
        with trio.move_on_after(HAVE_S_MAX):
            async with trio.open_nursery() as nursery:
                for place, channel in self._allowed(only):
                    nursery.start_soon(self._look_at, place, channel, content, told)

    def known(self, content: ContentHash, only: Only) -> list[Kept]:
        """Those that said not long ago that they have it."""
        found = []
        for place, channel in self._allowed(only):
            meta = self._remembered(place, content)
            if isinstance(meta, Meta):
                found.append(Kept(place, channel, meta))
        return found

    async def _look_at(
        self, place: Readable, channel: str, content: ContentHash, told: list[Kept]
    ) -> None:
        meta = self._remembered(place, content)
        if meta is False and not self.rests(place):
            try:
                meta = await self.run(lambda: _looked(place, content))
            except KacheryError as error:
                self.failed(place, error)
                return
            self.worked(place)
            self._remember(place, content, meta)
        if isinstance(meta, Meta):
            told.append(Kept(place, channel, meta))

    async def run(self, work: Callable[[], Answer]) -> Answer:
        """What a blocking call answers, in a thread that is left to itself when cancelled."""
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._threads)

    def _remembered(self, place: Readable, content: ContentHash) -> Meta | bool | None:
        """What it said; False if it said nothing lately."""
        until, meta = self._known.get((place, content), (0.0, None))
        return meta if trio.current_time() < until else False

    def _remember(self, place: Readable, content: ContentHash, meta: Meta | None) -> None:
        if len(self._known) >= BUCKET_KNOWN_MAX:
            self._known.clear()
        believed_s = BUCKET_NOT_FOUND_S if meta is None else BUCKET_FOUND_S
        self._known[place, content] = (trio.current_time() + believed_s, meta)

    def forget(self, place: Readable, content: ContentHash) -> None:
        """What it said of a content turned out to be wrong."""
        self._known.pop((place, content), None)

    # --- how they are -------------------------------------------------------------------------

    def rests(self, place: Readable) -> bool:
        """True while it is left alone, because it failed."""
        state = self._states.get(place)
        return state is not None and trio.current_time() < state.rest_until

    def worked(self, place: Readable) -> None:
        """It answered."""
        if (state := self._states.get(place)) is not None:
            state.failures, state.problem, state.rest_until = 0, None, 0.0

    def failed(self, place: Readable, error: KacheryError) -> None:
        """It did not: it is asked again later."""
        state = self._states.get(place)
        if state is None:
            return
        if state.problem is None:
            log.warning("%s", error)
        state.problem = error
        rest_s = min(BUCKET_REST_S_MAX, BUCKET_REST_S_MIN * 2.0 ** min(state.failures, 16))
        if isinstance(error, BucketBusyError):
            rest_s = max(rest_s, error.retry_after_s)
        state.failures += 1
        state.rest_until = trio.current_time() + rest_s

    def problems(self) -> dict[str, str]:
        """What is wrong with each that did not answer last time, by the bucket's name."""
        found = {}
        for some in self._places.values():
            for place in some:
                error = self._states[place].problem
                if error is not None:
                    hint = f" ({error.hint})" if error.hint else ""
                    found[place.name] = f"bucket: {error}{hint}"
        return found
