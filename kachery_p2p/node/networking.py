"""The parts of a node that are on the network, wired once on an open link."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator

import trio

from kachery_p2p.channels.history import History
from kachery_p2p.channels.owned import save_history
from kachery_p2p.errors import ConfigError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.network.admissions import Admissions
from kachery_p2p.network.announcer import Announcer
from kachery_p2p.network.discovery import AddressBook
from kachery_p2p.network.files import load_peers, save_peers
from kachery_p2p.network.histories import Histories, Save
from kachery_p2p.network.link import Link
from kachery_p2p.network.session import Me
from kachery_p2p.network.sessions import Sessions
from kachery_p2p.network.successions import Successions
from kachery_p2p.node.finding import Finding
from kachery_p2p.node.joining import InviteDesk, Joining
from kachery_p2p.node.keeping import Keeping
from kachery_p2p.node.parts import NetworkParts, Parts
from kachery_p2p.node.succession import Succession
from kachery_p2p.node.supervise import supervise
from kachery_p2p.transfer.download import Downloads
from kachery_p2p.transfer.serve import Server
from kachery_p2p.transfer.sources import Holders
from kachery_p2p.version import __version__


@contextlib.asynccontextmanager
async def networking(parts: Parts, link: Link) -> AsyncIterator[NetworkParts]:
    """Sessions, transfers and serving on an open link."""
    key = parts.key
    book = AddressBook(key.node_id)
    for node, addresses in load_peers(parts.config.peers_path).items():
        book.add(node, addresses, proved=True)
    for address in parts.bootstrap:
        book.add(_node_in(address), [address], by_user=True)
    me = Me(key, parts.memberships, os.urandom)
    agent = f"kachery-p2p {__version__}"
    histories = Histories(me, _history_keeper(parts))
    sessions = Sessions(link, me, book, histories, label=parts.config.label, agent=agent)
    server = Server(sessions=sessions, link=link, blobs=parts.blobs, grants=parts.grants)
    announcer = Announcer(
        sessions=sessions,
        grants=parts.grants,
        holds=lambda content: parts.blobs.find(content) is not None,
        node_id=key.node_id,
    )
    holders = Holders(sessions, link, announcer)
    downloads = Downloads(
        holders=holders, blobs=parts.blobs, grants=parts.grants, node_id=key.node_id
    )
    config_dir = parts.config.config_dir
    keeping = Keeping(config_dir, key, parts.config.label, parts.memberships, histories, sessions)
    Admissions(link, me, InviteDesk(config_dir, parts.memberships, keeping.record))
    succession = Succession(config_dir, key, parts.config.label, parts.memberships, parts.grants)
    successions = Successions(me, sessions, succession.follow)
    joining = Joining(config_dir, parts.config.label, link, me, sessions)
    finding = Finding(parts, link, sessions)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        nursery.start_soon(supervise, parts, "saving addresses", _save_peers, parts, sessions)
        async with downloads.running(), sessions.running():
            await nursery.start(joining.run)
            nursery.start_soon(supervise, parts, "asking bootstrap nodes", finding.rendezvous.run)
            nursery.start_soon(supervise, parts, "looking on the local network", finding.be_local)
            nursery.start_soon(supervise, parts, "announcing", announcer.run)
            nursery.start_soon(supervise, parts, "signing channels", keeping.renew_for_ever)
            nursery.start_soon(supervise, parts, "telling of successors", successions.tell_for_ever)
            yield NetworkParts(
                link, sessions, holders, downloads, server, keeping, joining, succession, finding
            )
        nursery.cancel_scope.cancel()


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
