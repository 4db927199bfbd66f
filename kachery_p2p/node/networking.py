"""The parts of a node that are on the network, wired once on an open link."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from kachery_p2p.channels.history import History
from kachery_p2p.channels.owned import save_history
from kachery_p2p.errors import ConfigError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.network.admissions import Admissions
from kachery_p2p.network.announcer import Announcer
from kachery_p2p.network.bulk import open_bulk_plane
from kachery_p2p.network.bulk_sessions import BulkSessions
from kachery_p2p.network.discovery import AddressBook
from kachery_p2p.network.files import load_peers, save_peers
from kachery_p2p.network.histories import Histories, Save
from kachery_p2p.network.link import Link
from kachery_p2p.network.meeting import Me
from kachery_p2p.network.pace_link import PacedLink
from kachery_p2p.network.sessions import Sessions
from kachery_p2p.network.successions import Successions
from kachery_p2p.node.bucket_keeping import BucketKeeping
from kachery_p2p.node.bucketing import Bucketing
from kachery_p2p.node.feeding import Feeding
from kachery_p2p.node.finding import Finding
from kachery_p2p.node.history_looking import HistoryLooking
from kachery_p2p.node.joining import InviteDesk, Joining
from kachery_p2p.node.keeping import Keeping
from kachery_p2p.node.log_mirroring import LogMirroring
from kachery_p2p.node.mirroring import Mirroring
from kachery_p2p.node.parts import NetworkParts, Parts
from kachery_p2p.node.progress import count_given
from kachery_p2p.node.providing import Providing
from kachery_p2p.node.succession import Succession
from kachery_p2p.node.supervise import supervise
from kachery_p2p.node.wishes import Wishes
from kachery_p2p.transfer.batches import Batches
from kachery_p2p.transfer.bucket_holders import HoldersAndBuckets
from kachery_p2p.transfer.download import Downloads
from kachery_p2p.transfer.partial_serving import Offers
from kachery_p2p.transfer.serve import Server
from kachery_p2p.version import __version__


@contextlib.asynccontextmanager
async def networking(parts: Parts, link: Link) -> AsyncIterator[NetworkParts]:
    """Sessions, transfers and serving on an open link."""
    me = Me(parts.key, parts.memberships, os.urandom)
    histories = Histories(me, _history_keeper(parts))
    agent = f"kachery-p2p {__version__}"
    label = parts.config.label
    sessions = Sessions(link, me, _address_book(parts), histories, label=label, agent=agent)
    offers = Offers()
    paced = PacedLink(link, parts.pace)
    server = Server(
        sessions=sessions, link=paced, blobs=parts.blobs, grants=parts.grants, offers=offers
    )
    listen = [] if parts.config.bulk is None else [parts.config.bulk]
    async with (
        open_bulk_plane(parts.node_id, listen, server.serve_bulk, pace=parts.pace) as plane,
        trio.open_nursery() as nursery,
    ):

        def keep_running(name: str, work: Callable[[], Awaitable[None]]) -> None:
            nursery.start_soon(supervise, parts, name, work)

        bulk = BulkSessions(plane, sessions)
        announcer = _announcer(parts, sessions, offers)
        bucketing = Bucketing(parts, sessions)
        await bucketing.look()
        buckets = bucketing.buckets
        holders = HoldersAndBuckets(sessions, paced, announcer, bulk, buckets=buckets)
        downloads = Downloads(
            holders=holders,
            blobs=parts.blobs,
            grants=parts.grants,
            node_id=parts.node_id,
            offers=offers,
            buckets=buckets,
        )
        network = NetworkParts(link, sessions, holders, downloads, server, bulk)
        network.bucketing = bucketing
        network.mirroring = Mirroring(parts, bucketing)
        wishes = Wishes(parts, holders, downloads, network.mirroring)
        Providing(sessions, bucketing, network.mirroring, wishes)
        network.batches = Batches(
            sessions=sessions,
            link=paced,
            blobs=parts.blobs,
            grants=parts.grants,
            announcements=announcer,
            bulk=bulk,
            liars=downloads.liars,
            is_loading=downloads.is_loading,
        )
        config_dir = parts.config.config_dir
        network.feeds = Feeding(config_dir, parts.node_id, sessions, keep_running, buckets)
        network.histories = HistoryLooking(parts, sessions, histories, bucketing)
        network.logs = LogMirroring(
            parts, network.mirroring, network.feeds, network.histories.look_soon
        )
        _look_after_channels(parts, network, me, histories, keep_running)
        await nursery.start(server.run)
        nursery.start_soon(trio.to_thread.run_sync, parts.blobs.known_files.open_index)
        keep_running("saving addresses", lambda: _save_peers(parts, sessions))
        async with downloads.running(), sessions.running():
            await nursery.start(network.joining.run)
            keep_running("asking bootstrap nodes", network.finding.rendezvous.run)
            keep_running("asking who is at bootstrap addresses", network.finding.places.run)
            keep_running("looking on the local network", network.finding.be_local)
            keep_running("announcing", announcer.run)
            keep_running("looking after buckets", bucketing.run)
            keep_running("filling buckets", network.mirroring.run)
            keep_running("looking for histories in buckets", network.histories.run)
            keep_running("putting logs into buckets", network.logs.run)
            keep_running("keys of buckets", BucketKeeping(parts, network.mirroring).run)
            keep_running("filling buckets for members", wishes.run)
            keep_running("watching bulk connections", bulk.watch_for_ever)
            keep_running("counting what is served", lambda: count_given(network))
            nursery.start_soon(_begin_feeds, parts, network)
            yield network
        nursery.cancel_scope.cancel()


def _address_book(parts: Parts) -> AddressBook:
    book = AddressBook(parts.node_id)
    # First: a book full of members takes no more.
    for address in parts.invited_at:
        book.add(_node_in(address), [address], proved=True, by_invite=True)
    for node, addresses in load_peers(parts.config.peers_path).items():
        book.add(node, addresses, proved=True)
    for address in parts.bootstrap:
        book.add(_node_in(address), [address], by_user=True)
    return book


def _announcer(parts: Parts, sessions: Sessions, offers: Offers) -> Announcer:
    return Announcer(
        sessions=sessions,
        grants=parts.grants,
        holds=lambda content: parts.blobs.find(content) is not None,
        node_id=parts.node_id,
        loading=offers.contents,
    )


def _look_after_channels(
    parts: Parts,
    network: NetworkParts,
    me: Me,
    histories: Histories,
    keep_running: Callable[[str, Callable[[], Awaitable[None]]], None],
) -> None:
    """What enters, keeps, continues and finds the members of this node's channels."""
    config_dir, label = parts.config.config_dir, parts.config.label
    link, sessions, memberships = network.link, network.sessions, parts.memberships
    network.keeping = Keeping(config_dir, parts.key, label, memberships, histories, sessions)
    Admissions(link, me, InviteDesk(config_dir, memberships, network.keeping.record))
    network.succession = Succession(
        config_dir, parts.key, label, memberships, parts.grants, network.feeds
    )
    successions = Successions(me, sessions, network.succession.follow)
    network.joining = Joining(config_dir, label, link, me, sessions)
    network.finding = Finding(parts, link, sessions)
    keep_running("signing channels", network.keeping.renew_for_ever)
    keep_running("telling of successors", successions.tell_for_ever)


async def _begin_feeds(parts: Parts, network: NetworkParts) -> None:
    """Those of this node, if there are any, once it is ready."""
    await parts.network()
    await network.feeds.begin()


def _history_keeper(parts: Parts) -> Save:
    """Makes the history of an owned channel durable."""

    async def save(history: History) -> None:
        name = parts.channel_name(history.channel_id)
        await trio.to_thread.run_sync(save_history, parts.config.config_dir, name, history)

    return save


async def _save_peers(parts: Parts, sessions: Sessions) -> None:
    saved = load_peers(parts.config.peers_path)
    while True:
        await sessions.changed()
        known = sessions.book.known()
        if known != saved:
            await trio.to_thread.run_sync(save_peers, parts.config.peers_path, known)
            saved = known


def _node_in(address: str) -> NodeId:
    """The node that a bootstrap address names."""
    _, found, peer = address.rpartition("/p2p/")
    if not found:
        raise ConfigError(
            f"the address {address[:200]!r} does not say which node answers there",
            hint="use an address that `kachery-p2p status` prints on the other machine;"
            " it ends in /p2p/ID",
        )
    return NodeId.parse(peer)
