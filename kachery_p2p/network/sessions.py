"""All members this node is connected to: meeting them, keeping one session each, finding more.

Both sides may dial at once, so two control streams to one peer can come to be. Both
sides keep the same one: of different diallers the one with the smaller node id; of one
dialler the newer. Membership is proved on each stream anew.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import trio

from kachery_p2p.channels.channel import Channel
from kachery_p2p.errors import (
    NotAMemberError,
    PeerBusyError,
    PeerError,
    PeerRefusedError,
    ProtocolVersionError,
)
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    ADDRESSES_PER_NODE_MAX,
    LABEL_CHARS_MAX,
    LEAVE_S_MAX,
    MEMBERS_REFRESH_S,
    PEERS_MAX,
    REQUEST_S_MAX,
)
from kachery_p2p.network.dials import Dial, Dials
from kachery_p2p.network.discovery import AddressBook
from kachery_p2p.network.failures import one_error
from kachery_p2p.network.greetings import Greetings
from kachery_p2p.network.histories import Histories
from kachery_p2p.network.link import CONTROL, Link, Stream
from kachery_p2p.network.meeting import Me, meet
from kachery_p2p.network.session import Handler, Session

log = logging.getLogger(__name__)


class Sessions:
    """The members connected now. `label` and `agent` are what members are told of this node."""

    def __init__(
        self,
        link: Link,
        me: Me,
        book: AddressBook,
        histories: Histories,
        *,
        label: str,
        agent: str,
    ) -> None:
        self.book = book
        self.problems: dict[NodeId, str] = {}
        self._link = link
        self._me = me
        self._histories = histories
        self._label = _told(label)
        self._agent = _told(agent)
        self._sessions: dict[NodeId, Session] = {}
        self._handlers: dict[str, Handler] = {
            "introduce": self._introduce,
            "members": self._members,
            "ping": _pong,
            "leave": self._leave,
            "history": histories.hear,
            "entries": histories.entries,
        }
        self._changed = trio.Event()
        self._dials = Dials(link)
        self._dial_now = trio.Event()
        self._dialled_once = False
        self._greetings = Greetings()
        # How many control streams to a node are being opened, proved or used.
        self._meetings: dict[NodeId, int] = {}
        self._open = False

    def handle(self, op: str, handler: Handler) -> None:
        """Answer members' requests for `op` with `handler`. To be called before `running`."""
        self._handlers[op] = handler

    @property
    def channels(self) -> tuple[Channel, ...]:
        """The channels of this node."""
        return self._me.memberships.channels

    def all(self) -> tuple[Session, ...]:
        return tuple(self._sessions.values())

    def get(self, node: NodeId) -> Session | None:
        return self._sessions.get(node)

    def seek(self, node: NodeId, addresses: Iterable[str]) -> None:
        """Meet this node, which is known to be a member, as soon as can be."""
        self.book.add(node, addresses, proved=True, by_invite=True)
        self.look_again()

    def look_again(self) -> None:
        """The address book has learnt something: dial who is due."""
        self._dial_now.set()

    def may(self, channel: str, action: str) -> bool:
        """True if this node itself may do `action` (`channels.permissions`) in the channel."""
        return self._me.memberships.may(self._me.key.node_id, channel, action)

    async def changed(self) -> None:
        """Wait until a member comes or goes, a dial fails, or who is a member changes."""
        await self._changed.wait()

    @property
    def settled(self) -> bool:
        """True when everyone we know of, or will be told of, has been dialled at least once.

        Who is only hearsay, and who does not tell, is waited for HEARSAY_AWAITED_S at most.
        """
        now = trio.current_time()
        greeted = self._dialled_once and self._greetings.awaited_until(now) <= now
        return greeted and self.book.settled(now)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Meet members while inside; leaving ends every session."""
        async with self._histories.running(self.all), trio.open_nursery() as nursery:
            self._open = True
            self._me.memberships.on_change(lambda channel: self._tell_changed())
            self._me.memberships.on_join(self._joined)
            self._link.accept(CONTROL, self._meet_caller)
            nursery.start_soon(self._dial_for_ever)
            nursery.start_soon(self._refresh_for_ever)
            try:
                yield
            finally:
                self._open = False
                for session in self.all():
                    session.end()
                nursery.cancel_scope.cancel()

    # --- meeting ------------------------------------------------------------------------------

    async def _meet_caller(self, stream: Stream) -> None:
        try:
            async with self._meeting(stream.peer):
                await self._converse(stream)
        except PeerError as error:
            log.info("node %s: %s", stream.peer[:16], error)

    @asynccontextmanager
    async def _meeting(self, node: NodeId) -> AsyncIterator[None]:
        """When the last control stream to `node` is over, its connections are dropped.

        The next dial then makes a new connection instead of trusting a dead one. Not
        before: of two streams that cross, the one to be kept may still be proving.
        """
        self._meetings[node] = self._meetings.get(node, 0) + 1
        try:
            yield
        finally:
            self._meetings[node] -= 1
            if not self._meetings[node]:
                del self._meetings[node]
                with trio.move_on_after(LEAVE_S_MAX, shield=True):
                    await self._link.disconnect(node)

    async def _converse(self, stream: Stream, met_event: trio.Event | None = None) -> None:
        """The life of one control stream, from the first hello to its end."""
        met = await meet(stream, self._me)
        session = Session(stream, met, self._me.memberships)
        session.place = self._link.place_of(stream.peer)
        # From the moment it is there, so that nobody believes all members to be known.
        self._greetings.begin(session.peer, trio.current_time())
        # Whoever waits is told when it is awaited no more.
        self._dial_now.set()
        try:
            with one_error():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._welcome, session, met_event)
                    await session.run(self._handlers)
                    nursery.cancel_scope.cancel()
        finally:
            self._forget(session)

    async def _welcome(self, session: Session, met_event: trio.Event | None) -> None:
        """See that the peer is a member, keep the session, and get to know the peer.

        Raises NotAMemberError, and other PeerErrors.
        """
        try:
            await self._histories.exchange(session)
            if not session.channels:
                raise NotAMemberError(f"node {session.peer[:16]} is no member of a channel of ours")
            if not self._keep(session):
                session.end()
                return
            self._link.admit(session.peer)
            if met_event is not None:
                met_event.set()
            session.judge()
            await self._get_to_know(session)
        finally:
            self._greetings.end(session.peer)
            self._tell_changed()

    def _keep(self, session: Session) -> bool:
        """Register the session, or not if a better one to the same peer is there.

        Raises PeerBusyError when no more members can be met.
        """
        present = self._sessions.get(session.peer)
        if not self._open:
            return False
        if present is None and len(self._sessions) >= PEERS_MAX:
            raise PeerBusyError(f"one member too many: {PEERS_MAX} are connected")
        if present is not None:
            if self._dialler(present) < self._dialler(session):
                # If the peer has lost the present one (a crash), the next attempt will be kept.
                present.suspect()
                return False
            present.end()
        self._sessions[session.peer] = session
        self._dials.give_up(session.peer)
        self.problems.pop(session.peer, None)
        self.book.reached(session.peer, trio.current_time())
        self._tell_changed()
        return True

    def _dialler(self, session: Session) -> NodeId:
        return self._link.node_id if session.outgoing else session.peer

    def _forget(self, session: Session) -> None:
        if self._sessions.get(session.peer) is not session:
            return
        del self._sessions[session.peer]
        self.book.lost(session.peer, trio.current_time(), self._jitter())
        self._tell_changed()
        self._dial_now.set()

    async def _get_to_know(self, session: Session) -> None:
        """Ask who the member is, and whom else it knows. Nothing depends on the answers."""
        try:
            answer = await session.request("introduce", self._introduction(), REQUEST_S_MAX)
            self._note_introduction(session, answer)
            await self._ask_for_members(session)
        except PeerError as error:
            log.info("node %s: %s", session.peer[:16], error)

    async def _ask_for_members(self, session: Session) -> None:
        for channel in sorted(session.channels):
            answer = await session.request("members", {"channel": channel}, REQUEST_S_MAX)
            for member in answer["members"]:
                node = NodeId.of_raw(member["node"])
                self.book.add(node, member["addresses"], teller=session.peer)
        self._dial_now.set()

    def _joined(self, channel: Channel) -> None:
        """Whoever is connected may be in the new channel too: both prove it on a new stream."""
        self._greetings.begin_anew()
        for session in self.all():
            if not session.has_proved(channel.id):
                session.end()

    def _tell_changed(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # --- answering ------------------------------------------------------------------------------

    def _introduction(self) -> dict[str, Any]:
        addresses = list(self._link.addresses)[:ADDRESSES_PER_NODE_MAX]
        return {"label": self._label, "agent": self._agent, "addresses": addresses}

    def _note_introduction(self, session: Session, body: dict[str, Any]) -> None:
        session.label = body["label"]
        session.addresses = tuple(body["addresses"])
        self.book.add(session.peer, session.addresses, proved=True)
        self._tell_changed()

    async def _introduce(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        self._note_introduction(session, body)
        return self._introduction()

    async def _members(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        channel = body["channel"]
        if channel not in session.channels:
            raise PeerRefusedError("not available in this channel")
        members = [
            {"node": other.peer.raw, "addresses": list(other.addresses)}
            for other in self.all()
            if channel in other.channels and other is not session
        ]
        return {"members": members[:PEERS_MAX]}

    async def _leave(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        session.leave(body["channel"])
        self._tell_changed()
        return {}

    # --- dialling ---------------------------------------------------------------------------------

    async def _dial_for_ever(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                self._dial_now = trio.Event()
                now = trio.current_time()
                for node, addresses in self.book.due(now, *self._dials.room(now)):
                    hearsay = not self.book.is_vouched(node)
                    dial = self._dials.begin(node, now, is_hearsay=hearsay)
                    nursery.start_soon(self._dial, node, addresses, dial)
                self._dialled_once = True
                self._tell_changed()
                with trio.move_on_after(max(self._look_again_at(now) - now, 0.05)):
                    await self._dial_now.wait()

    def _look_again_at(self, now: float) -> float:
        waits = [self._greetings.awaited_until(now) - now, self._dials.wait_s(now)]
        return min([self.book.next_due_at(now), *(now + wait_s for wait_s in waits if wait_s > 0)])

    async def _dial(self, node: NodeId, addresses: tuple[str, ...], dial: Dial) -> None:
        met = trio.Event()
        try:
            async with self._meeting(node):
                try:
                    stream = await self._dials.open_control(node, addresses, dial)
                finally:
                    # There is room for another.
                    self._dial_now.set()
                if stream is None:
                    # It came by itself, or is dialled anew.
                    return
                try:
                    await self._converse(stream, met)
                finally:
                    await stream.reset()
        except (NotAMemberError, ProtocolVersionError) as error:
            self._note_problem(node, error)
            self.book.drop(node)
        except PeerError as error:
            self._note_problem(node, error)
        except Exception:
            # A mistake of ours in one conversation must not cost the others.
            log.exception("the conversation with node %s failed", node[:16])
        if not met.is_set() and node not in self._sessions:
            self.book.failed(node, trio.current_time(), self._jitter())
            self._tell_changed()
            # When to try again is known only now.
            self._dial_now.set()

    def _note_problem(self, node: NodeId, error: PeerError) -> None:
        log.info("node %s: %s", node[:16], error)
        self.problems.pop(node, None)
        if len(self.problems) >= PEERS_MAX:
            del self.problems[next(iter(self.problems))]
        self.problems[node] = str(error)

    def _jitter(self) -> float:
        return self._me.random(1)[0] / 255

    async def _refresh_for_ever(self) -> None:
        """Ask one member after the other whom it knows: it may reach those we have not met."""
        turn = 0
        while True:
            await trio.sleep(MEMBERS_REFRESH_S)
            sessions = self.all()
            if not sessions:
                continue
            turn = (turn + 1) % len(sessions)
            try:
                await self._ask_for_members(sessions[turn])
            except PeerError as error:
                log.info("node %s: %s", sessions[turn].peer[:16], error)


def _told(name: str) -> str:
    """A name as it may be told to members: the wire refuses what a terminal could choke on."""
    return "".join(c if c.isprintable() else "?" for c in name)[:LABEL_CHARS_MAX]


async def _pong(session: Session, body: dict[str, Any]) -> dict[str, Any]:
    return {}
