"""The channels this node is in, and who may do what there at this moment.

The one place that is asked before anything is served or believed. In a shared-secret
channel everybody who proved the secret is a member. In an owned one the channel's
history decides: `update` with a newer one changes every answer from then on, so that
whoever was removed gets nothing more, in the middle of a transfer too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kachery_p2p.channels.channel import SHARED, Channel
from kachery_p2p.channels.history import History
from kachery_p2p.channels.permissions import SHARED_MEMBER_ROLES, may
from kachery_p2p.identity.keys import NodeId

_NOTHING: frozenset[str] = frozenset()


class Memberships:
    """Channels by id. Every owned one among `channels` has its history in `histories`."""

    def __init__(self, channels: Iterable[Channel] = (), histories: Iterable[History] = ()) -> None:
        self._channels = {channel.id: channel for channel in channels}
        self._histories = {history.channel_id: history for history in histories}
        # Channels whose owner removed this node, and with which entry of the history: as long as
        # the history here does not reach that far, nobody is a member as far as we can tell.
        self._removed_by: dict[str, int] = {}
        self._listeners: list[Callable[[str], None]] = []
        self._join_listeners: list[Callable[[Channel], None]] = []

    @property
    def channels(self) -> tuple[Channel, ...]:
        """The channels of this node, in the order of joining."""
        return tuple(self._channels.values())

    def channel(self, channel_id: str) -> Channel | None:
        return self._channels.get(channel_id)

    def history(self, channel_id: str) -> History | None:
        """What is known of an owned channel; None for other channels."""
        return self._histories.get(channel_id)

    def roles(self, node: NodeId, channel_id: str) -> frozenset[str]:
        """What `node` is in the channel, if it proved to know the channel's secret."""
        channel = self._channels.get(channel_id)
        if channel is None or channel_id in self._removed_by:
            return _NOTHING
        if channel.kind == SHARED:
            return SHARED_MEMBER_ROLES
        return self._histories[channel_id].roster.roles_of(node)

    def may(self, node: NodeId, channel_id: str, action: str) -> bool:
        """True if `node` may do `action` (`channels.permissions`) in the channel now."""
        return may(self.roles(node, channel_id), action)

    def is_removed_from(self, channel_id: str) -> bool:
        """True if the channel's owner has removed this node."""
        return channel_id in self._removed_by

    # --- changes ------------------------------------------------------------------------------

    def on_change(self, tell: Callable[[str], None]) -> None:
        """Call `tell(channel_id)` after each change of what is said of a channel."""
        self._listeners.append(tell)

    def on_join(self, tell: Callable[[Channel], None]) -> None:
        """Call `tell(channel)` after this node has joined one."""
        self._join_listeners.append(tell)

    def add(self, channel: Channel, history: History | None = None) -> None:
        """This node has joined `channel`."""
        assert (channel.kind == SHARED) == (history is None)
        self._channels[channel.id] = channel
        if history is not None:
            self._histories[channel.id] = history
        self._removed_by.pop(channel.id, None)
        self._tell(channel.id)
        for tell in self._join_listeners:
            tell(channel)

    def drop(self, channel_id: str) -> None:
        """This node has left the channel."""
        self._channels.pop(channel_id, None)
        self._histories.pop(channel_id, None)
        self._removed_by.pop(channel_id, None)
        self._tell(channel_id)

    def update(self, history: History) -> None:
        """More is known of an owned channel; it is on the disk already."""
        if history.channel_id not in self._channels:
            return
        self._histories[history.channel_id] = history
        if history.size > self._removed_by.get(history.channel_id, -1):
            self._removed_by.pop(history.channel_id, None)
        self._tell(history.channel_id)

    def removed_us(self, channel_id: str, entry: int) -> None:
        """It was proved that this node was removed with that entry of the channel's history."""
        self._removed_by[channel_id] = entry
        self._tell(channel_id)

    def _tell(self, channel_id: str) -> None:
        for tell in self._listeners:
            tell(channel_id)
