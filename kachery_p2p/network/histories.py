"""Keeping the histories of owned channels equal among their members.

When two nodes have met they tell each other the head of each owned channel that both
know the secret of; whoever has the older one asks for the entries that are missing. What
comes is believed because the channel's key signed it, not because of who sent it. Each
news goes on at once to all who are connected, so that a removal reaches every connected
member within a moment, and whoever was removed is shown the proof and then cut off.

To nodes that are not members nothing is told but that proof; an outsider cannot even ask,
because it does not know the channel's secret.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet

import trio

from kachery_p2p.channels.channel import OWNED
from kachery_p2p.channels.history import History
from kachery_p2p.errors import (
    ChannelForkedError,
    LogError,
    PeerError,
    PeerRefusedError,
    PeerTimeoutError,
    ProofError,
    ProtocolError,
)
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    ENTRIES_ANSWER_BYTES,
    HISTORY_BYTES_MAX,
    HISTORY_S_MAX,
    REMOVAL_TOLD_S,
    REQUEST_S_MAX,
)
from kachery_p2p.log.forks import ForkProof
from kachery_p2p.network.meeting import Me
from kachery_p2p.network.session import Session

log = logging.getLogger(__name__)

# Makes a history durable; nobody hears of it before that.
Save = Callable[[History], Awaitable[None]]


class Teller(Protocol):
    """Somebody else than a member who tells of a history: the bucket of its channel."""

    @property
    def told(self) -> dict[str, Any]:
        """What it says first, as in `history`."""

    async def request(self, op: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """What it answers to `entries`."""


class Histories:
    """What this node knows of its owned channels, and what it tells of them."""

    def __init__(self, me: Me, save: Save) -> None:
        self._memberships = me.memberships
        self._me = me.key.node_id
        self._save = save
        self._sessions: Callable[[], Collection[Session]] = tuple
        self._changing: dict[str, trio.Lock] = {}
        # What a session and we last knew to have in common: (channel, told) pairs.
        self._common: WeakKeyDictionary[Session, dict[str, bytes]] = WeakKeyDictionary()
        # What peers told that was not taken in yet, and whose is being taken in.
        self._waiting: WeakKeyDictionary[Session, dict[str, dict[str, Any]]] = WeakKeyDictionary()
        self._busy: WeakSet[Session] = WeakSet()
        self._learning: WeakKeyDictionary[Session, trio.Lock] = WeakKeyDictionary()
        self._nursery: trio.Nursery | None = None

    @asynccontextmanager
    async def running(self, sessions: Callable[[], Collection[Session]]) -> AsyncIterator[None]:
        """Tell news to `sessions()`, while inside."""
        self._sessions = sessions
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._memberships.on_change(self._spread)
            try:
                yield
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()

    # --- what is told --------------------------------------------------------------------------

    async def exchange(self, session: Session) -> None:
        """Tell a node that we met what we know, and learn what it knows.

        Raises PeerTimeoutError after HISTORY_S_MAX, and other PeerErrors.
        """
        with trio.move_on_after(HISTORY_S_MAX):
            for channel in session.proved:
                if channel.kind == OWNED:
                    await self._tell(session, channel.id)
            return
        raise PeerTimeoutError(f"did not tell what it knows within {HISTORY_S_MAX:.0f} s")

    async def hear(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        """Answer `history`: our own news at once, what there is to learn meanwhile."""
        channel = self._proved(session, body["channel"])
        # The newest news of each channel wait, and no more: who floods us replaces its own.
        self._waiting.setdefault(session, {})[channel] = body
        if self._nursery is not None and session not in self._busy:
            self._busy.add(session)
            self._nursery.start_soon(self._learn_in_background, session)
        return self._news_for(session.peer, channel)

    async def entries(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        """Answer `entries`."""
        history = self._memberships.history(body["channel"])
        if history is None or not _may_read(session, history):
            raise PeerRefusedError("not available in this channel")
        return {"entries": history.entries(body["first"], ENTRIES_ANSWER_BYTES)}

    def _proved(self, session: Session, channel: str) -> str:
        if not session.has_proved(channel) or self._memberships.history(channel) is None:
            raise PeerRefusedError("not available in this channel")
        return channel

    def _news_for(self, peer: NodeId, channel: str) -> dict[str, Any]:
        history = self._memberships.history(channel)
        told = {"head": b"", "fork": b"", "notice": b""}
        if history is None or history.head is None:
            return told
        if history.roster.roles_of(peer):
            told["head"] = history.head.encode()
            told["fork"] = history.fork.encode() if history.fork is not None else b""
        else:
            told["notice"] = history.removal_notice(peer) or b""
        return told

    async def _tell(self, session: Session, channel: str) -> None:
        news = self._news_for(session.peer, channel)
        answer = await session.request("history", {"channel": channel, **news}, REQUEST_S_MAX)
        await self._learn(session, channel, answer)
        self._common.setdefault(session, {})[channel] = news["head"] + news["fork"]

    # --- what is learnt ------------------------------------------------------------------------

    async def _learn_in_background(self, session: Session) -> None:
        """Take in all that waits of what this peer told, one after the other."""
        try:
            while waiting := self._waiting.get(session):
                channel, told = waiting.popitem()
                with trio.move_on_after(HISTORY_S_MAX):
                    await self._learn(session, channel, told)
        except PeerError as error:
            log.info("node %s: %s", session.peer[:16], error)
        finally:
            self._busy.discard(session)

    async def _learn(self, session: Session, channel: str, told: dict[str, Any]) -> None:
        """Take in what a peer told. Raises ProtocolError if it lied."""
        lock = self._learning.setdefault(session, trio.Lock())
        async with lock:
            try:
                await self._believe(session, channel, told)
            except LogError as error:
                raise ProtocolError(f"what it told of a channel's history is wrong: {error}")
        self._common.setdefault(session, {})[channel] = told["head"] + told["fork"]

    async def hear_of(self, teller: Teller, channel: str) -> None:
        """Take in what else than a session tells. ProtocolError if it lies, LogError as well."""
        await self._believe(teller, channel, teller.told)

    async def _believe(self, session: Session | Teller, channel: str, told: dict[str, Any]) -> None:
        history = self._memberships.history(channel)
        if history is None:
            return
        if told["notice"]:
            entry = history.check_notice(self._me, told["notice"])
            self._memberships.removed_us(channel, entry)
        if told["fork"] and history.fork is None:
            await self._convict(channel, ForkProof.decode(told["fork"], history.log.tag))
        if told["head"]:
            await self._catch_up(session, channel, told["head"])

    async def _catch_up(self, session: Session | Teller, channel: str, head: bytes) -> None:
        history = self._memberships.history(channel)
        assert history is not None
        wanted = history.missing(head)
        # Fetched before anything is locked: a slow peer holds up nobody else's news.
        fetched = await fetch_entries(session, channel, wanted)

        def extended(now: History) -> History:
            missing = now.missing(head)
            return now.extended(head, fetched[missing.start - wanted.start :] if missing else [])

        try:
            await self.change(channel, extended)
        except ChannelForkedError as fork:
            await self._convict(channel, ForkProof.decode(fork.evidence, history.log.tag))
        except ProofError:
            # Either the peer lies, or the channel's key signed two histories: with all of the
            # other one it can be told, and proved, which.
            everything = await fetch_entries(session, channel, range(history.size_of(head)))
            await self._convict(channel, history.diverged(head, everything))

    async def _convict(self, channel: str, proof: ForkProof) -> None:
        log.warning("the key of channel %s has signed two histories", channel[:16])
        await self.change(channel, lambda now: now.convicted(proof))

    async def change(self, channel: str, change: Callable[[History], History]) -> None:
        """Change what is known of a channel: durable, and then told to everybody connected.

        Raises what `change` raises.
        """
        async with self._changing.setdefault(channel, trio.Lock()):
            now = self._memberships.history(channel)
            if now is None:
                return
            changed = change(now)
            if changed is not now:
                # What was signed is either on the disk and known here, or failed: nothing between.
                with trio.CancelScope(shield=True):
                    await self._save(changed)
                self._memberships.update(changed)

    # --- spreading ------------------------------------------------------------------------------

    def _spread(self, channel: str) -> None:
        """Something changed in the channel: tell those who are connected, cut off who is out."""
        for session in self._sessions():
            if self._nursery is not None and session.has_proved(channel):
                self._nursery.start_soon(self._spread_to, session, channel)

    async def _spread_to(self, session: Session, channel: str) -> None:
        news = self._news_for(session.peer, channel)
        told = self._common.get(session, {}).get(channel)
        is_member = bool(session.channels)
        try:
            if news["notice"] or told != news["head"] + news["fork"]:
                with trio.move_on_after(HISTORY_S_MAX if is_member else REMOVAL_TOLD_S):
                    await self._tell(session, channel)
        except PeerError as error:
            log.info("node %s: %s", session.peer[:16], error)
        finally:
            if not session.channels:
                session.end()


def _may_read(session: Session, history: History) -> bool:
    """Members read the history, and those of an older channel which this one continues."""
    roster = history.roster
    proved = session.has_proved(history.channel_id) or (
        roster.succeeds is not None and session.has_proved(roster.succeeds.old_id)
    )
    return proved and bool(roster.roles_of(session.peer))


async def fetch_entries(session: Session | Teller, channel: str, wanted: range) -> list[bytes]:
    """The entries that a peer has of a channel's history, unverified. Raises PeerErrors."""
    found: list[bytes] = []
    size = 0
    while len(found) < len(wanted):
        body = {"channel": channel, "first": wanted.start + len(found)}
        answer = await session.request("entries", body, REQUEST_S_MAX)
        if not answer["entries"]:
            raise ProtocolError("it has fewer entries than it said")
        size += sum(map(len, answer["entries"]))
        if size > HISTORY_BYTES_MAX:
            raise ProtocolError(f"its history has more than {HISTORY_BYTES_MAX} bytes")
        found.extend(answer["entries"])
    return found[: len(wanted)]
