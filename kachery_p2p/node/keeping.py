"""Changing who is a member of an owned channel: signing it as the keeper, or asking the keeper.

The keeper is the node that holds the channel's key. It signs what its own user wants,
and what admins ask for in signed requests that their role allows; and it signs every
channel again once a day, so that members can tell silence from peace. A change is on the
keeper's disk before anybody hears of it, and on its way to all connected members when
the call returns.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

import trio

from kachery_p2p.channels.changes import Change, SignedRequest
from kachery_p2p.channels.history import History
from kachery_p2p.channels.keeper import Keeper
from kachery_p2p.channels.owned import load_channel_key
from kachery_p2p.channels.permissions import ADMIN
from kachery_p2p.errors import (
    ChannelError,
    KeeperAsleepError,
    LogError,
    NotAllowedError,
    PeerError,
    PeerRefusedError,
)
from kachery_p2p.identity.channel_keys import ChannelKey
from kachery_p2p.identity.keys import NodeKey
from kachery_p2p.limits import HISTORY_RENEWAL_S, REQUEST_S_MAX
from kachery_p2p.network.histories import Histories
from kachery_p2p.network.memberships import Memberships
from kachery_p2p.network.session import Session
from kachery_p2p.network.sessions import Sessions

log = logging.getLogger(__name__)

# How often it is looked whether a history is due to be signed again.
_LOOK_S = 600.0
# How long a starting keeper waits for a member, who may know of later changes: for the daily
# signing, and while its user waits for a change.
_HEAR_S_MAX = 60.0
_HEAR_FOR_USER_S_MAX = 5.0
_REQUEST_BYTES = 16


class Keeping:
    """Changes of the owned channels of this node, whose key is `key`."""

    def __init__(
        self,
        config_dir: str,
        key: NodeKey,
        label: str,
        memberships: Memberships,
        histories: Histories,
        sessions: Sessions,
    ) -> None:
        self._config_dir = config_dir
        self._key = key
        self._label = label
        self._memberships = memberships
        self._histories = histories
        self._sessions = sessions
        self._keepers: dict[str, Keeper] = {}
        # Channels of which nothing more is signed before a restart.
        self._failed: set[str] = set()
        sessions.handle("change", self._asked)

    async def record(self, channel_id: str, change: Change) -> None:
        """Let the channel's history record `change`, which the user of this node wants.

        Raises NotAllowedError; KeeperAsleepError if another node is the keeper and is not
        connected; other ChannelErrors.
        """
        channel_key = await self._channel_key(channel_id)
        if channel_key is None:
            await self._ask_keeper(channel_id, change)
            return
        if len(self._history(channel_id).roster.members) > 1:
            await self._hear_who_is_there()
        asked = (change, self._key.node_id, os.urandom(_REQUEST_BYTES))
        await self._sign(channel_id, channel_key, lambda k: k.recorded([asked], _now_ms()))

    async def renew_for_ever(self) -> None:
        """Sign the histories of this node's own channels again when they are a day old.

        And once when a channel's key was brought here from another node.
        """
        await self._hear_members_first()
        while True:
            for channel in self._memberships.channels:
                if self._memberships.history(channel.id) is not None:
                    await self._renew(channel.id)
            await trio.sleep(_LOOK_S)

    async def _hear_members_first(self) -> None:
        """A keeper that came back from a backup may know less than the members do.

        If it signed at once, there would be two histories.
        """
        with trio.move_on_after(_HEAR_S_MAX):
            while not self._sessions.all():
                await self._sessions.changed()

    async def _hear_who_is_there(self) -> None:
        """The same, for no longer than it takes to find that nobody known answers."""
        with trio.move_on_after(_HEAR_FOR_USER_S_MAX):
            while not self._sessions.all() and not self._sessions.settled:
                await self._sessions.changed()

    async def _renew(self, channel_id: str) -> None:
        channel_key = await self._channel_key(channel_id)
        if channel_key is None:
            return
        history = self._history(channel_id)
        try:
            if history.roster.keeper != self._key.node_id:
                await self._sign(channel_id, channel_key, self._taken_over)
            elif history.age_s(_now_ms()) >= HISTORY_RENEWAL_S:
                await self._sign(channel_id, channel_key, lambda k: k.renewed(_now_ms()))
        except LogError as error:
            # A fork, or a copy of the key elsewhere: `status` and `channel show` tell of it.
            log.warning("channel %s cannot be signed again: %s", channel_id[:16], error)

    # --- the keeper's side -----------------------------------------------------------------------

    async def _asked(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        """Answer `change`: an admin's signed request."""
        try:
            request = SignedRequest.decode(body["request"])
            channel_id = request.channel_id
            if channel_id not in session.channels:
                raise PeerRefusedError("not available in this channel")
            channel_key = await self._channel_key(channel_id)
            if channel_key is None:
                raise PeerRefusedError("not the keeper of this channel")
            await self._sign(
                channel_id, channel_key, lambda keeper: keeper.fulfilled(request, _now_ms())
            )
        except (ChannelError, LogError) as error:
            # The admin's user is to read why.
            raise PeerError(str(error)) from error
        return {}

    async def _sign(
        self, channel_id: str, channel_key: ChannelKey, act: Callable[[Keeper], History]
    ) -> None:
        """Let the keeper `act`, and everybody know once it is on the disk."""
        signing: Keeper | None = None

        def signed(now: History) -> History:
            nonlocal signing
            keeper = self._keeper(now, channel_key)
            changed = act(keeper)
            signing = keeper if changed is not now else None
            return changed

        try:
            await self._histories.change(channel_id, signed)
        except BaseException:
            if signing is not None:
                # Nobody knows how much of it is on the disk: nothing else may be signed.
                signing.failed()
                self._failed.add(channel_id)
            raise

    def _keeper(self, now: History, channel_key: ChannelKey) -> Keeper:
        """One keeper as long as nothing is learnt from elsewhere: it knows what it has signed."""
        keeper = self._keepers.get(now.channel_id)
        if keeper is None or (keeper.history is not now and now.channel_id not in self._failed):
            keeper = self._keepers[now.channel_id] = Keeper(now, channel_key)
        return keeper

    # --- asking the keeper -----------------------------------------------------------------------

    def _taken_over(self, keeper: Keeper) -> History:
        return keeper.taken_over(self._key, self._label, os.urandom(2 * _REQUEST_BYTES), _now_ms())

    async def _ask_keeper(self, channel_id: str, change: Change) -> None:
        roster = self._history(channel_id).roster
        roster.allowed(self._key.node_id, change, is_keeper=False)
        request = SignedRequest.signed(
            channel_id, change, self._key, os.urandom(_REQUEST_BYTES), _now_ms()
        ).encode()
        for session in self._keeper_first(channel_id):
            try:
                await session.request("change", {"request": request}, REQUEST_S_MAX)
                return
            except PeerRefusedError:
                continue
            except PeerError as error:
                raise ChannelError(
                    f"the keeper of the channel did not do it: {session.name} {error}",
                    hint="`kachery-p2p channel show NAME` tells who is the keeper",
                ) from error
        keeper = roster.keeper
        raise KeeperAsleepError(
            f"the keeper of the channel ({'unknown' if keeper is None else keeper[:16]}) "
            "is not connected",
            hint="ask its owner to start it, then repeat this",
        )

    def _keeper_first(self, channel_id: str) -> list[Session]:
        """The connected admins: the key may have moved to another of them."""
        keeper = self._history(channel_id).roster.keeper
        admins = [s for s in self._sessions.all() if s.may(channel_id, ADMIN)]
        return sorted(admins, key=lambda session: session.peer != keeper)

    # --- both ---------------------------------------------------------------------------------

    def _history(self, channel_id: str) -> History:
        history = self._memberships.history(channel_id)
        if history is None:
            raise NotAllowedError(
                "the channel is entered with a shared secret: nobody is in charge of it",
                hint="change the secret everywhere with `kachery-p2p channel rekey`",
            )
        return history

    async def _channel_key(self, channel_id: str) -> ChannelKey | None:
        return await trio.to_thread.run_sync(load_channel_key, self._config_dir, channel_id)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
