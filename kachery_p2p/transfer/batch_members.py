"""Whom to ask for each of many small contents: who announced it, then other members."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import BATCH_ASKED_MAX, BATCH_INDEX_QUESTIONS_MAX
from kachery_p2p.transfer.batch_asking import BatchSource
from kachery_p2p.transfer.only import Only
from kachery_p2p.transfer.rounds import Announcements

Tiers = tuple[Sequence[BatchSource], Sequence[BatchSource]]


class Members:
    """The sources of one round: each member in each channel that `only` allows."""

    def __init__(
        self, sources: Sequence[BatchSource], only: Only, announcements: Announcements | None
    ) -> None:
        self._announcements = announcements
        self._by_place: dict[str, dict[NodeId, BatchSource]] = {}
        for source in sources:
            if only.allows(source.node, source.channel):
                place = self._by_place.setdefault(source.channel, {})
                place[NodeId(source.node)] = source
        # Asked in the end, whoever has announced what.
        self._others = [
            source
            for place in self._by_place.values()
            for source in list(place.values())[:BATCH_ASKED_MAX]
        ]

    @property
    def sources(self) -> list[BatchSource]:
        """All that may be asked."""
        return [source for place in self._by_place.values() for source in place.values()]

    async def tiers_of(self, contents: Sequence[ContentHash]) -> list[Tiers]:
        """For each content who announced it or is named by the index, and who else may have it."""
        told = [self._announcers(content) for content in contents]
        questions = [
            (number, channel, keeper)
            for number, content in enumerate(contents)
            if not told[number]
            for channel, keeper in self._keepers(content)
        ]

        async def ask(number: int, channel: str, keeper: NodeId) -> None:
            assert self._announcements is not None
            named = await self._announcements.named_by(keeper, contents[number], channel)
            place = self._by_place[channel]
            told[number] += [place[node] for node in named if node in place]

        await _some_at_once(BATCH_INDEX_QUESTIONS_MAX, ask, questions)
        return [(tuple(dict.fromkeys(first)), self._others) for first in told]

    def _announcers(self, content: ContentHash) -> list[BatchSource]:
        if self._announcements is None:
            return []
        return [
            place[node]
            for channel, place in self._by_place.items()
            for node in self._announcements.announced(content, channel)
            if node in place
        ]

    def _keepers(self, content: ContentHash) -> list[tuple[str, NodeId]]:
        if self._announcements is None:
            return []
        return [
            (channel, keeper)
            for channel in self._by_place
            for keeper in self._announcements.keepers(content, channel)
        ]


async def _some_at_once(
    most: int,
    ask: Callable[[int, str, NodeId], Awaitable[None]],
    questions: list[tuple[int, str, NodeId]],
) -> None:
    """Ask them all, so many at a time."""

    async def ask_on() -> None:
        while questions:
            await ask(*questions.pop())

    async with trio.open_nursery() as nursery:
        for _ in range(min(most, len(questions))):
            nursery.start_soon(ask_on)
