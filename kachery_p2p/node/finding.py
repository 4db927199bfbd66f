"""Finding members by other ways than their addresses: introducers and the local network."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from kachery_p2p.network.link import Link
from kachery_p2p.network.rendezvous import Introducer, Rendezvous
from kachery_p2p.network.sessions import Sessions

if TYPE_CHECKING:
    from kachery_p2p.network.mdns import LocalNetwork
    from kachery_p2p.node.parts import Parts


class Finding:
    """The ways of one node. What they find goes into the address book."""

    def __init__(self, parts: Parts, link: Link, sessions: Sessions) -> None:
        self._parts = parts
        self._link = link
        self._sessions = sessions
        self.rendezvous = Rendezvous(
            link,
            parts.key,
            sessions.book,
            channels=lambda: parts.channels,
            introducers=lambda: parts.bootstrap,
            is_lonely=self._is_lonely,
            found=sessions.look_again,
            random=os.urandom,
        )
        if parts.config.introduce:
            Introducer(link, link.place_of)
        parts.memberships.on_join(lambda channel: self.rendezvous.wake())

    @property
    def settled(self) -> bool:
        """True when every introducer has been asked once."""
        return self.rendezvous.settled or not self._parts.bootstrap

    async def be_local(self) -> None:
        """Be on the local network for ever, unless the user does not want it."""
        if not self._parts.config.mdns:
            return
        # Imported when the node is ready: nobody waits for it.
        local = await trio.to_thread.run_sync(self._local_network)
        self._parts.memberships.on_join(lambda channel: local.wake())
        await local.run()

    def _local_network(self) -> LocalNetwork:
        from kachery_p2p.network.mdns import LocalNetwork

        return LocalNetwork(
            self._parts.node_id,
            self._sessions.book,
            addresses=lambda: self._link.addresses,
            discovery_keys=lambda: [c.discovery_key for c in self._parts.channels],
            found=self._sessions.look_again,
            random=os.urandom,
        )

    def _is_lonely(self, channel_id: str) -> bool:
        return not any(channel_id in session.channels for session in self._sessions.all())
