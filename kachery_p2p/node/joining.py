"""Entering owned channels with an invite, and letting others in.

A wish to enter is on the disk until it has come true or cannot any more: the node that
is to let us in may be asleep for a weekend, and so may we.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

import trio

from kachery_p2p.channels.admission import Admitted, Applicant, Door, Waiting
from kachery_p2p.channels.changes import MemberSet
from kachery_p2p.channels.channel import OWNED, Channel
from kachery_p2p.channels.files import load_channel
from kachery_p2p.channels.history import History
from kachery_p2p.channels.invite_book import (
    InviteBook,
    add_pending_join,
    drop_pending_join,
    pending_joins,
)
from kachery_p2p.channels.invites import Admitter, Invite
from kachery_p2p.channels.owned import join_owned, load_entry_secret
from kachery_p2p.errors import ChannelError, ConfigError, PeerError, PeerUnreachableError
from kachery_p2p.limits import JOIN_RETRY_S_MAX, JOIN_RETRY_S_MIN
from kachery_p2p.network.admissions import ask_to_enter
from kachery_p2p.network.link import Link
from kachery_p2p.network.meeting import Me
from kachery_p2p.network.memberships import Memberships
from kachery_p2p.network.sessions import Sessions

log = logging.getLogger(__name__)


class InviteDesk:
    """Finds the invites of this node, and makes members of those who have one."""

    def __init__(
        self,
        config_dir: str,
        memberships: Memberships,
        record: Callable[[str, MemberSet], Awaitable[None]],
    ) -> None:
        self._config_dir = config_dir
        self._memberships = memberships
        self._record = record

    def now(self) -> float:
        return time.time()

    def find(self, invite_id: bytes) -> Door | None:
        for channel in self._memberships.channels:
            history = self._memberships.history(channel.id)
            if channel.kind == OWNED and history is not None:
                issued = InviteBook(self._config_dir, channel.name).find(invite_id)
                if issued is not None:
                    return Door(issued, history)
        return None

    async def admit(self, applicant: Applicant) -> bytes:
        issued, history = applicant.door
        channel = self._memberships.channel(history.channel_id)
        assert channel is not None
        name = channel.name

        def use() -> bytes:
            book = InviteBook(self._config_dir, name)
            book.use(issued.invite_id, applicant.member.node, self.now())
            return load_entry_secret(self._config_dir, name)

        # Used up before it has an effect: a crash in between costs the joiner one more try, by
        # the same invite, and lets nobody else in.
        entry_secret = await trio.to_thread.run_sync(use)
        if not applicant.is_member:
            await self._record(history.channel_id, MemberSet(applicant.member))
        return entry_secret


class _Wish:
    """One channel that this node wants to enter."""

    def __init__(self, invite: Invite) -> None:
        self.invite = invite
        self.ended = trio.Event()
        self.why = "nobody was asked yet"
        self.refusal: Exception | None = None


class Joining:
    """The channels that this node was invited to and is not in yet."""

    def __init__(
        self,
        config_dir: str,
        label: str,
        link: Link,
        me: Me,
        sessions: Sessions,
    ) -> None:
        self._config_dir = config_dir
        self._label = label
        self._link = link
        self._me = me
        self._sessions = sessions
        self._wishes: dict[str, _Wish] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Go on with what was begun in an earlier run, and with what `begin` adds."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for name, invite in await trio.to_thread.run_sync(pending_joins, self._config_dir):
                self._start(name, invite)
            task_status.started()
            await trio.sleep_forever()

    async def begin(self, invite: Invite, alias: str | None) -> str:
        """Start entering; the name of the channel here. Nothing to do for a member.

        Raises InviteExpiredError, InviteError if it is for another node, ChannelError if the
        name is taken.
        """
        invite.check_time(time.time())
        invite.check_node(self._me.key.node_id)
        known = self._me.memberships.channel(invite.channel_id)
        if known is not None and self._is_member(known):
            return known.name
        name = alias or invite.name
        await trio.to_thread.run_sync(add_pending_join, self._config_dir, name, invite)
        self._start(name, invite)
        return name

    def _is_member(self, channel: Channel) -> bool:
        return bool(self._me.memberships.roles(self._me.key.node_id, channel.id))

    async def ended(self, name: str) -> None:
        """Wait until this node is in the channel. Raises the ChannelError why it never will be."""
        wish = self._wishes.get(name)
        if wish is not None:
            await wish.ended.wait()
            if wish.refusal is not None:
                del self._wishes[name]
                raise wish.refusal

    def awaited(self, name: str) -> str | None:
        """What entering the channel waits for; None if this node is in it."""
        wish = self._wishes.get(name)
        return None if wish is None else wish.why

    async def give_up(self, name: str) -> None:
        """Wait for the channel no more."""
        self._wishes.pop(name).ended.set()
        await trio.to_thread.run_sync(drop_pending_join, self._config_dir, name)

    def problems(self) -> list[str]:
        """What people should know of each channel that was not entered yet."""
        return [
            f"not let into channel {name}: {wish.refusal or wish.why}"
            for name, wish in self._wishes.items()
        ]

    # --- one channel ------------------------------------------------------------------------

    def _start(self, name: str, invite: Invite) -> None:
        assert self._nursery is not None, "run() has not begun"
        known = self._wishes.get(name)
        if known is not None and known.invite == invite and not known.ended.is_set():
            return
        if known is not None:
            known.ended.set()
        wish = self._wishes[name] = _Wish(invite)
        self._nursery.start_soon(self._enter, name, wish)

    async def _enter(self, name: str, wish: _Wish) -> None:
        try:
            answer = await self._ask_until_answered(name, wish)
            if answer is None:
                return
            admitted, admitter = answer
            channel = await trio.to_thread.run_sync(self._join, name, wish.invite, admitted)
            del self._wishes[name]
            self._me.memberships.add(channel, History.empty(channel.id))
            self._sessions.seek(*admitter)
            log.info("entered channel %s", name)
        except ChannelError as error:
            # For good: the wish is forgotten on the disk, and told until the next start.
            wish.refusal = error
            if self._wishes.get(name) is wish:
                await trio.to_thread.run_sync(drop_pending_join, self._config_dir, name)
        except Exception:
            log.exception("entering channel %s failed", name)
            wish.refusal = ConfigError("it failed, the daemon's log tells more")
        finally:
            wish.ended.set()

    async def _ask_until_answered(self, name: str, wish: _Wish) -> tuple[Admitted, Admitter] | None:
        """Who let us in, and with what; None if the wish was given up, or replaced by another."""
        wait_s = JOIN_RETRY_S_MIN
        while self._wishes.get(name) is wish:
            wish.invite.check_time(time.time())
            for admitter in wish.invite.admitters:
                answer = await self._ask(admitter, wish)
                if answer is not None and self._wishes.get(name) is wish:
                    return answer, admitter
            with trio.move_on_after(wait_s):
                await wish.ended.wait()
            wait_s = min(2 * wait_s, JOIN_RETRY_S_MAX)
        return None

    async def _ask(self, admitter: Admitter, wish: _Wish) -> Admitted | None:
        node, _ = admitter
        try:
            await self._connect(admitter)
            answer = await ask_to_enter(self._link, self._me, wish.invite, node, self._label)
        except PeerError as error:
            wish.why = f"node {node[:16]} is awaited: {error}"
            return None
        finally:
            # Strangers may stay for seconds only: as a member we come back on a fresh connection.
            if self._sessions.get(node) is None:
                await self._link.disconnect(node)
        if isinstance(answer, Waiting):
            wish.why = f"node {node[:16]} says: {answer.reason}"
            return None
        return answer

    async def _connect(self, admitter: Admitter) -> None:
        node, addresses = admitter
        why: PeerError = PeerUnreachableError("the invite has no address of it")
        if self._sessions.get(node) is not None:
            return
        for address in addresses:
            try:
                await self._link.connect(address)
                return
            except PeerError as error:
                why = error
        raise why

    def _join(self, name: str, invite: Invite, admitted: Admitted) -> Channel:
        join_owned(
            self._config_dir,
            admitted.channel_id,
            admitted.entry_secret,
            name,
            now=time.time(),
            bootstrap=[address for _, found in invite.admitters for address in found],
        )
        drop_pending_join(self._config_dir, name)
        return load_channel(self._config_dir, name)
