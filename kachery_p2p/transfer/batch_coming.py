"""What loads of many have taken on: others who want it wait, and do not ask a second time."""

from __future__ import annotations

import trio

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.transfer.only import Only


class Taken:
    """A content that a load has taken on. Thousands are, so an event is made for who waits."""

    __slots__ = ("_changed", "alone", "ended")

    def __init__(self) -> None:
        # It is fetched by itself, as any single load fetches it; it is here, or failed.
        self.alone = False
        self.ended = False
        self._changed: trio.Event | None = None

    async def wait(self) -> None:
        """Return when it has ended."""
        while not self.ended:
            await self._change()

    async def wait_while_in_batches(self) -> None:
        """Return when no batch is to bring it any more."""
        while not (self.ended or self.alone):
            await self._change()

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()

    def tell(self) -> None:
        """Let those who wait look again."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None


class Coming:
    """All that loads of many have taken on in a node, and from which sources."""

    def __init__(self) -> None:
        self._taken: dict[tuple[ContentHash, Only], Taken] = {}

    def __len__(self) -> int:
        return len(self._taken)

    def take_on(self, content: ContentHash, only: Only) -> Taken | None:
        """None: the caller is to bring it, and say when that has ended. Else whoever does."""
        taken = self._taken.get((content, only))
        if taken is None:
            self._taken[content, only] = Taken()
        return taken

    def go_alone(self, content: ContentHash, only: Only) -> None:
        """From now on it is fetched by itself."""
        if (taken := self._taken.get((content, only))) is not None:
            taken.alone = True
            taken.tell()

    def end(self, content: ContentHash, only: Only) -> None:
        """It is in the store, or could not be had. Harmless twice."""
        if (taken := self._taken.pop((content, only), None)) is not None:
            taken.ended = True
            taken.tell()

    async def wait_while_in_batches(self, content: ContentHash, only: Only) -> bool:
        """Return when no batch is to bring it from these sources; False if none was."""
        taken = self._taken.get((content, only))
        if taken is None or taken.alone:
            return False
        await taken.wait_while_in_batches()
        return True


class Claims:
    """What one load of many has taken on, by its numbers. It ends no claim of another load."""

    def __init__(self, coming: Coming, only: Only) -> None:
        self._coming = coming
        self._only = only
        self._mine: dict[int, ContentHash] = {}

    def take_on(self, number: int, content: ContentHash) -> Taken | None:
        """As of `Coming`: None if this load is to bring it."""
        taken = self._coming.take_on(content, self._only)
        if taken is None:
            self._mine[number] = content
        return taken

    def go_alone(self, number: int) -> None:
        """From now on it is fetched by itself."""
        if (content := self._mine.get(number)) is not None:
            self._coming.go_alone(content, self._only)

    def end(self, number: int) -> None:
        """It is in the store, or could not be had. Harmless twice, and for what others bring."""
        if (content := self._mine.pop(number, None)) is not None:
            self._coming.end(content, self._only)

    def end_all(self) -> None:
        """This load ends."""
        for number in list(self._mine):
            self.end(number)
