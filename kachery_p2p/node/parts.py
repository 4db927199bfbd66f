"""The parts of a running node, as the operations see them. Made by `node`, once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from kachery_p2p.channels.channel import Channel
from kachery_p2p.identity.keys import NodeKey
from kachery_p2p.network.bulk_sessions import BulkSessions
from kachery_p2p.network.link import Link
from kachery_p2p.network.memberships import Memberships
from kachery_p2p.network.pace import Pace
from kachery_p2p.network.sessions import Sessions
from kachery_p2p.node.config import NodeConfig
from kachery_p2p.node.feeding import Feeding
from kachery_p2p.node.finding import Finding
from kachery_p2p.node.joining import Joining
from kachery_p2p.node.keeping import Keeping
from kachery_p2p.node.succession import Succession
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.grants import Grants
from kachery_p2p.transfer.batches import Batches
from kachery_p2p.transfer.download import Downloads
from kachery_p2p.transfer.given import Given
from kachery_p2p.transfer.holders import Holders
from kachery_p2p.transfer.serve import Server

if TYPE_CHECKING:
    from kachery_p2p.node.bucketing import Bucketing
    from kachery_p2p.node.history_looking import HistoryLooking
    from kachery_p2p.node.log_mirroring import LogMirroring
    from kachery_p2p.node.mirroring import Mirroring


class NetworkParts:
    """What exists once the node is on the network."""

    # Those that look after its channels.
    keeping: Keeping
    joining: Joining
    succession: Succession
    finding: Finding
    feeds: Feeding
    # Loads of many small files.
    batches: Batches
    bucketing: Bucketing
    mirroring: Mirroring
    # Feeds and histories in buckets.
    logs: LogMirroring
    histories: HistoryLooking

    def __init__(
        self,
        link: Link,
        sessions: Sessions,
        holders: Holders,
        downloads: Downloads,
        server: Server,
        bulk: BulkSessions,
    ) -> None:
        self.link = link
        self.sessions = sessions
        self.holders = holders
        self.downloads = downloads
        self.server = server
        self.bulk = bulk
        self.given = Given()


class Parts:
    """What exists from the start; the network comes 0.5 s later, when libp2p is imported."""

    def __init__(
        self,
        config: NodeConfig,
        key: NodeKey,
        memberships: Memberships,
        bootstrap: Sequence[str],
        blobs: BlobStore,
        grants: Grants,
        invited_at: Sequence[str] = (),
    ) -> None:
        self.config = config
        self.key = key
        self.node_id = key.node_id
        self.memberships = memberships
        # Addresses of members that the user or a channel file named.
        self.bootstrap = bootstrap
        # Those of members that an invite named: they stay, and are no wish of the user.
        self.invited_at = invited_at
        self.blobs = blobs
        self.grants = grants
        self.pace = Pace.limited(config.max_upload, config.max_download)
        self.http: str | None = None
        self.started_at = time.monotonic()
        self.stop = trio.Event()
        self.problems: dict[str, str] = {}
        self._network: NetworkParts | None = None
        self._connected = trio.Event()

    def connected(self, network: NetworkParts) -> None:
        self._network = network
        self._connected.set()

    async def network(self) -> NetworkParts:
        """The network's parts, waiting for them while the node is starting."""
        await self._connected.wait()
        assert self._network is not None
        return self._network

    @property
    def network_now(self) -> NetworkParts | None:
        return self._network

    @property
    def channels(self) -> tuple[Channel, ...]:
        """The channels this node is in now."""
        return self.memberships.channels

    def channel_name(self, channel_id: str) -> str:
        return next((c.name for c in self.channels if c.id == channel_id), channel_id[:16])
