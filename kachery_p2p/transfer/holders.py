"""Asking the connected members who holds a blob, and what it is said to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import trio

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.errors import PeerError
from kachery_p2p.limits import HAVE_S_MAX
from kachery_p2p.network.bulk_sessions import Bulk
from kachery_p2p.network.link import Link
from kachery_p2p.network.session import Session
from kachery_p2p.network.sessions import Sessions
from kachery_p2p.transfer.only import ANYONE, Only
from kachery_p2p.transfer.rounds import Announcements, Round
from kachery_p2p.transfer.sources import Claim, PartialPeer, PeerSource


class _Asking:
    """One `have?` under way, for everyone here who wants to know."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.claim: Claim | None = None
        self.error: PeerError | None = None


class Answers(NamedTuple):
    """What the members said: claims; whether someone is still hashing; and who was asked.

    `failed`: somebody gave no answer, and may have it.
    """

    claims: list[Claim]
    busy: bool
    asked: tuple[Session, ...]
    failed: bool


class Holders:
    """Ask the connected members of our channels who holds a blob.

    With `announcements`, those who announced it are asked before the others.
    """

    def __init__(
        self,
        sessions: Sessions,
        link: Link,
        announcements: Announcements | None = None,
        bulk: Bulk | None = None,
    ) -> None:
        self._sessions = sessions
        self._link = link
        self._bulk = bulk
        self._announcements = announcements
        self._asking: dict[tuple[Session, str, ContentHash], _Asking] = {}

    def asked(self) -> tuple[int, tuple[str, ...]]:
        """(how many members are connected, the names of our channels), for error messages."""
        return len(self._sessions.all()), tuple(c.name for c in self._sessions.channels)

    async def find(
        self,
        content: ContentHash,
        wanted: Callable[[Claim], bool],
        patience_s: float,
        only: Only = ANYONE,
    ) -> list[Claim]:
        """Claims that are `wanted`; waits while members are being dialled or hash the blob.

        Nobody is asked but those that `only` allows.
        """
        return (await self.look(content, wanted, patience_s, only)).claims

    async def look(
        self,
        content: ContentHash,
        wanted: Callable[[Claim], bool],
        patience_s: float,
        only: Only = ANYONE,
    ) -> Answers:
        """The same, and whether there might be more claims in a while."""
        give_up_at = trio.current_time() + patience_s
        while True:
            said = await self._ask_members(content, only, wanted)
            said = said._replace(claims=[claim for claim in said.claims if wanted(claim)])
            left_s = give_up_at - trio.current_time()
            if said.claims or left_s <= 0:
                return said
            if any(session not in said.asked for session in self._sessions.all()):
                continue
            if self._sessions.settled and not said.busy:
                return said
            await self.wait_for_change(min(left_s, 1.0) if said.busy else left_s)

    async def ask(
        self,
        content: ContentHash,
        channel: str,
        wanted: Callable[[Claim], bool] = lambda claim: True,
        node: str | None = None,
    ) -> list[Claim]:
        """Who in `channel` (or only `node` there) says it holds `content`, now.

        Until a claim is `wanted`, the slow are waited for.
        """
        return (await self._ask_members(content, Only(channel, node), wanted)).claims

    async def wait_for_change(self, timeout_s: float) -> None:
        """Return when a member comes or goes, or after `timeout_s`."""
        with trio.move_on_after(max(timeout_s, 0)):
            await self._sessions.changed()

    async def _claim(self, session: Session, channel: str, content: ContentHash) -> Claim:
        """What a member answers to `have?`. Raises PeerError.

        One request on the wire however many here ask the same at the same time.
        """
        key = (session, channel, content)
        while (asking := self._asking.get(key)) is not None:
            await asking.done.wait()
            if asking.claim is not None:
                return asking.claim
            if asking.error is not None:
                raise type(asking.error)(str(asking.error))
            # Whoever asked was cancelled: the next one asks.
        asking = self._asking[key] = _Asking()
        try:
            asking.claim = await self._have(session, channel, content)
        except PeerError as error:
            asking.error = error
            raise
        finally:
            del self._asking[key]
            asking.done.set()
        return asking.claim

    async def _have(self, session: Session, channel: str, content: ContentHash) -> Claim:
        body = {"channel": channel, "content": content.raw}
        answer = await session.request("have", body, HAVE_S_MAX)
        kind = PeerSource if answer["pinned"] else PartialPeer
        source = kind(session, self._link, channel, self._bulk)
        return Claim(source, answer["size"], Root.of_raw(answer["root"]), answer["pinned"])

    async def _ask_members(
        self, content: ContentHash, only: Only, wanted: Callable[[Claim], bool]
    ) -> Answers:
        sessions = self._sessions.all()
        members = {
            (name, session.peer): session
            for session in sessions
            for name in sorted(session.channels)
            if only.allows(session.peer, name)
        }
        asking = Round(self._claim, content, members, wanted)
        await asking.run(self._announcements)
        return Answers(asking.claims, asking.busy, sessions, asking.failed)
