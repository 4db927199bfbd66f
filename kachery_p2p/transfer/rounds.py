"""One round of asking the members who holds a blob: those who announced it go first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import trio

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.errors import PeerBusyError, PeerError, PeerRefusedError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    ANNOUNCED_ASKED_MAX,
    ANNOUNCED_GRACE_S,
    HAVE_GRACE_S,
    PART_GRACE_S,
)
from kachery_p2p.network.session import Session

if TYPE_CHECKING:
    from kachery_p2p.transfer.sources import Claim

# Asks one member in one channel `have?`. Raises PeerError.
Have = Callable[[Session, str, ContentHash], Awaitable["Claim"]]


class Announcements(Protocol):
    """What was announced of who holds what: hints, which `network/announcer` has."""

    def announced(self, content: ContentHash, channel: str) -> Sequence[NodeId]:
        """Who announced the content in the channel, best first."""

    def keepers(self, content: ContentHash, channel: str) -> Sequence[NodeId]:
        """Who can name holders, in a channel too large for everyone to tell everyone."""

    async def named_by(
        self, keeper: NodeId, content: ContentHash, channel: str
    ) -> Sequence[NodeId]:
        """Whom a keeper names; nobody if it does not answer in time. Never raises."""


class Round:
    """One round of `have?`: to who announced the content, and, if that helps not, to all.

    The others are asked as soon as those asked first have all answered without a claim
    that is wanted, and after a grace whatever they do: an announcement that is false costs
    no more. They are also asked at once when the claims do not agree, or one is of no use:
    somebody errs or lies then, and who did not announce has a vote too.
    """

    def __init__(
        self,
        have: Have,
        content: ContentHash,
        members: Mapping[tuple[str, NodeId], Session],
        wanted: Callable[[Claim], bool],
    ) -> None:
        self.claims: list[Claim] = []
        self.busy = False
        self.failed = False
        self._have = have
        self._content = content
        self._members = members
        self._wanted = wanted
        self._asked: set[tuple[str, NodeId]] = set()
        self._root: Root | None = None
        self._found = trio.Event()
        # A claim of somebody who is loading it: better ones are waited for a while longer.
        self._in_part = trio.Event()
        # Questions without an answer so far, and that there is no point in waiting for them.
        self._pending = 0
        self._doubt = False
        self._answered = trio.Event()

    async def run(self, announcements: Announcements | None) -> None:
        async with trio.open_nursery() as nursery:
            for heard, grace_s in ((self._found, HAVE_GRACE_S), (self._in_part, PART_GRACE_S)):
                nursery.start_soon(self._stop_after, heard, grace_s, nursery.cancel_scope)
            async with trio.open_nursery() as asking:
                if announcements is not None:
                    await self._ask_announced(asking, announcements)
                if self._doubt or not self._found.is_set():
                    for channel, node in self._members:
                        self._ask(asking, channel, node)
            nursery.cancel_scope.cancel()

    @staticmethod
    async def _stop_after(heard: trio.Event, grace_s: float, scope: trio.CancelScope) -> None:
        # A frozen member must not hold up what another has already answered.
        await heard.wait()
        await trio.sleep(grace_s)
        scope.cancel()

    async def _ask_announced(self, asking: trio.Nursery, hints: Announcements) -> None:
        """Ask who announced it, and who is named by the index; returns when others are due."""
        grace_s = ANNOUNCED_GRACE_S
        for channel in sorted({channel for channel, _ in self._members}):
            for node in hints.announced(self._content, channel)[:ANNOUNCED_ASKED_MAX]:
                self._ask(asking, channel, node)
            for keeper in hints.keepers(self._content, channel):
                # First the index is to answer, then those it names.
                grace_s = 2 * ANNOUNCED_GRACE_S
                self._pending += 1
                asking.start_soon(self._ask_keeper, asking, hints, channel, keeper)
        with trio.move_on_after(grace_s):
            while self._pending and not self._doubt:
                await self._answered.wait()

    def _ask(self, asking: trio.Nursery, channel: str, node: NodeId) -> None:
        session = self._members.get((channel, node))
        if session is not None and (channel, node) not in self._asked:
            self._asked.add((channel, node))
            self._pending += 1
            asking.start_soon(self._ask_member, session, channel)

    async def _ask_keeper(
        self, asking: trio.Nursery, hints: Announcements, channel: str, keeper: NodeId
    ) -> None:
        try:
            for node in await hints.named_by(keeper, self._content, channel):
                self._ask(asking, channel, node)
        finally:
            self._tell_answered()

    async def _ask_member(self, session: Session, channel: str) -> None:
        try:
            self._hear(await self._have(session, channel, self._content))
        except PeerBusyError:
            self.busy = True
        except PeerRefusedError:
            return
        except PeerError:
            self.failed = True
        finally:
            self._tell_answered()

    def _hear(self, claim: Claim) -> None:
        self.claims.append(claim)
        if not self._wanted(claim) or self._root not in (None, claim.root):
            self._doubt = True
        if self._wanted(claim):
            self._root = claim.root
            (self._found if claim.pinned else self._in_part).set()

    def _tell_answered(self) -> None:
        self._pending -= 1
        self._answered.set()
        self._answered = trio.Event()
