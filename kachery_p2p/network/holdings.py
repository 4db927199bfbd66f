"""What this node may announce, channel by channel: what is granted there, and in the store.

And what it is loading there, which it serves as far as it has it (`transfer/partial_serving`).

Read from the grants once, then kept up to date by what changes. A content that leaves the
store by other means than `kachery-p2p rm` stays announced until the next start: it costs
who asks for it one refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import trio

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.limits import (
    ANNOUNCE_CHANGES_MAX,
    ANNOUNCE_GRANTS_READ_MAX,
    ANNOUNCED_PER_PEER_MAX,
)
from kachery_p2p.network.catalogue import Catalogue, differences
from kachery_p2p.network.prefixes import PrefixSet, prefix_of
from kachery_p2p.store.grants import Grants

Loading = Callable[[str], Collection[ContentHash]]


class Holdings:
    """A catalogue for each channel of this node, ANNOUNCED_PER_PEER_MAX prefixes in all."""

    def __init__(
        self,
        grants: Grants,
        holds: Callable[[ContentHash], bool],
        prefixes_max: int = ANNOUNCED_PER_PEER_MAX,
        *,
        loading: Loading = lambda channel: (),
    ) -> None:
        """`loading`: what is being loaded in a channel, and served there as far as it is here."""
        self._loading = loading
        # What was announced of that, by channel.
        self._announced_early: dict[str, set[ContentHash]] = {}
        self._grants = grants
        self._holds = holds
        self._prefixes_max = prefixes_max
        self._watch = grants.watch()
        self._catalogues: dict[str, Catalogue] = {}

    def channels(self) -> list[str]:
        """The channels that were looked at."""
        return sorted(self._catalogues)

    def catalogue(self, channel: str) -> Catalogue:
        return self._catalogues[channel]

    @property
    def count(self) -> int:
        return sum(len(catalogue.held) for catalogue in self._catalogues.values())

    async def look(self, channels: Sequence[str]) -> bool:
        """Bring the catalogues of these channels up to date; True if any changed.

        Costs 10 us when nothing was granted or revoked.
        """
        before = self._versions()
        for channel in self._catalogues.keys() - set(channels):
            del self._catalogues[channel]
            self._announced_early.pop(channel, None)
        try:
            await self._look(channels)
        except BaseException:
            # What was taken from the watch is lost: next time all is looked at.
            self._watch.note(None)
            raise
        return self._versions() != before

    async def _look(self, channels: Sequence[str]) -> None:
        unread = [channel for channel in channels if channel not in self._catalogues]
        if self._watch.has_changed():
            changes = await trio.to_thread.run_sync(self._watch.take)
            if changes.unknown:
                unread = list(channels)
            else:
                await self._note(changes.touched)
        for channel in unread:
            await self._read(channel)
        for channel in channels:
            await self._look_at_loading(channel)

    async def _look_at_loading(self, channel: str) -> None:
        """Announce what is being loaded, and no more what was given up."""
        before = self._announced_early.get(channel, set())
        now = set(self._loading(channel))
        self._announced_early[channel] = now
        for content in now:
            if self.count < self._prefixes_max:
                self._catalogues[channel].set(prefix_of(content), True)
        await self._note((content, channel) for content in before - now)

    def _versions(self) -> dict[str, int]:
        return {channel: catalogue.version for channel, catalogue in self._catalogues.items()}

    async def _note(self, touched: Iterable[tuple[ContentHash, str]]) -> None:
        ours = [(content, channel) for content, channel in touched if channel in self._catalogues]
        if not ours:
            return
        held = await trio.to_thread.run_sync(self._are_held, ours)
        for (content, channel), is_held in zip(ours, held, strict=True):
            if not is_held or self.count < self._prefixes_max:
                self._catalogues[channel].set(prefix_of(content), is_held)

    def _are_held(self, pairs: list[tuple[ContentHash, str]]) -> list[bool]:
        granted = {
            channel: self._grants.granted_of((one for one, id in pairs if id == channel), channel)
            for channel in {id for _, id in pairs}
        }
        return [content in granted[channel] and self._holds(content) for content, channel in pairs]

    async def _read(self, channel: str) -> None:
        """Look at all that is granted in a channel."""
        catalogue = self._catalogues.get(channel) or Catalogue()
        room = self._prefixes_max - self.count + len(catalogue.held)
        held, changes = await trio.to_thread.run_sync(self._compare, channel, catalogue.held, room)
        self._catalogues[channel] = catalogue
        if changes is None:
            catalogue.replace(held)
        for prefix in changes or ():
            catalogue.set(prefix, prefix in held)

    def _compare(
        self, channel: str, old: PrefixSet, room: int
    ) -> tuple[PrefixSet, list[int] | None]:
        held = PrefixSet()
        page: list[ContentHash] = []
        while len(held) < room:
            after = page[-1] if page else None
            page = self._grants.contents(channel, after, ANNOUNCE_GRANTS_READ_MAX)
            if not page:
                break
            for content in page:
                if len(held) < room and self._holds(content):
                    held.add(prefix_of(content))
        return held, differences(old, held, ANNOUNCE_CHANGES_MAX)
