"""A channel that goes on under another key: taking it over, and following who did."""

from __future__ import annotations

import time

import trio

from kachery_p2p.channels.channel import Channel
from kachery_p2p.channels.files import joined, load_channel
from kachery_p2p.channels.history import History
from kachery_p2p.channels.owned import follow_successor, load_history, succeed_owned
from kachery_p2p.errors import UnknownChannelError
from kachery_p2p.identity.keys import NodeKey
from kachery_p2p.network.memberships import Memberships
from kachery_p2p.node.feeding import Feeding
from kachery_p2p.store.grants import Grants


class Succession:
    """Replaces channels of this node by those that continue them; what is shared moves along."""

    def __init__(
        self,
        config_dir: str,
        key: NodeKey,
        label: str,
        memberships: Memberships,
        grants: Grants,
        feeds: Feeding,
    ) -> None:
        self._config_dir = config_dir
        self._key = key
        self._label = label
        self._memberships = memberships
        self._grants = grants
        self._feeds = feeds
        self._changing = trio.Lock()

    async def take_over(self, channel_id: str) -> str:
        """Let the channel go on under a key of this node; the new id.

        Raises SuccessionError if this node may not.
        """
        name = self._name(channel_id)

        def succeed() -> str:
            return succeed_owned(self._config_dir, name, self._key, self._label, time.time())[1].id

        async with self._changing:
            new_id = await trio.to_thread.run_sync(succeed)
            await self._replace(channel_id, new_id)
        return new_id

    async def follow(self, old_id: str, new: History) -> None:
        """Go on in the channel with this history. Raises SuccessionError if it may not be."""
        name = self._name(old_id)

        async with self._changing:
            await trio.to_thread.run_sync(
                follow_successor, self._config_dir, name, new, time.time()
            )
            await self._replace(old_id, new.channel_id)

    async def _replace(self, old_id: str, new_id: str) -> None:
        """What is on the disk by now becomes true of the running node."""

        def load() -> list[tuple[Channel, History]]:
            # First, so that a crash in between shares too little and not too much.
            self._grants.move(old_id, new_id)
            names = [
                known.name for known in joined(self._config_dir) if known.id in (old_id, new_id)
            ]
            return [
                (load_channel(self._config_dir, name), load_history(self._config_dir, name))
                for name in names
            ]

        found = await trio.to_thread.run_sync(load)
        await self._feeds.move_channel(old_id, new_id)
        self._memberships.drop(old_id)
        for channel, history in found:
            self._memberships.add(channel, history)

    def _name(self, channel_id: str) -> str:
        channel = self._memberships.channel(channel_id)
        if channel is None:
            raise UnknownChannelError("this node is not in that channel")
        return channel.name
