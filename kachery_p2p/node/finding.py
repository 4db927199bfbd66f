"""Finding members by other ways than their addresses: introducers and the local network."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from kachery_p2p.identity.keys import NodeId
from kachery_p2p.network.link import Link
from kachery_p2p.network.multiaddrs import parse_address
from kachery_p2p.network.places import Places, places_in
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
            introducers=self._introducers,
            is_lonely=self._is_lonely,
            found=sessions.look_again,
            random=os.urandom,
        )
        self.places = Places(
            places_in(parts.config.bootstrap),
            parts.config.places_path,
            meet=self._meet,
            found=self._found_at_place,
        )
        if parts.config.introduce:
            Introducer(link, link.place_of)
        parts.memberships.on_join(lambda channel: self.rendezvous.wake())

    @property
    def settled(self) -> bool:
        """True when every introducer has been asked once."""
        asked = self.rendezvous.settled or not self._introducers()
        return asked and self.places.settled

    def _introducers(self) -> tuple[str, ...]:
        """Whoever is named anywhere may be one."""
        return (*self._parts.bootstrap, *self._parts.invited_at)

    async def _meet(self, kind: str, host: str, port: int) -> NodeId:
        # The link has imported it by now: it is the one file that knows libp2p.
        from kachery_p2p.network.libp2p_host import who_answers

        return await who_answers(self._parts.key, kind, host, port)

    def _found_at_place(self, address: str) -> None:
        self._parts.bootstrap = (*self._parts.bootstrap, address)
        self._sessions.book.add(parse_address(address).node, [address], by_user=True)
        self._sessions.look_again()
        self.rendezvous.wake()

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
            secret=self._parts.key.exchange_secret,
        )

    def _is_lonely(self, channel_id: str) -> bool:
        return not any(channel_id in session.channels for session in self._sessions.all())
