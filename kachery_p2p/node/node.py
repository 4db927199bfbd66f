"""The daemon: wires every part together, once, and keeps them running until told to stop.

The order is that of what a user waits for: the Unix door answers first, libp2p is
imported in a thread behind it. A part that fails is started again; one that keeps
failing takes the node down with its reason, so that a service manager sees it: a node
is never half dead.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from kachery_p2p.channels.channel import Channel
from kachery_p2p.channels.files import joined, load_channel, resolve
from kachery_p2p.errors import (
    ConfigError,
    DaemonError,
    StorePermissionError,
    sole_error,
)
from kachery_p2p.identity.keyring import load_or_create
from kachery_p2p.identity.keys import NodeId, NodeKey
from kachery_p2p.limits import (
    RESTART_S_MAX,
    RESTART_S_MIN,
    RESTARTS_MAX,
    SHARES_LOG_S,
    STOP_S_MAX,
)
from kachery_p2p.network.discovery import AddressBook
from kachery_p2p.network.files import load_peers, save_peers
from kachery_p2p.network.lean_import import empty_packages
from kachery_p2p.network.session import Me
from kachery_p2p.network.sessions import Sessions
from kachery_p2p.node.api import Api
from kachery_p2p.node.config import NodeConfig
from kachery_p2p.node.lock import only_daemon
from kachery_p2p.node.parts import NetworkParts, Parts
from kachery_p2p.node.token import load_or_create_token
from kachery_p2p.node.unix_door import serve_unix_door
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.grants import Grants
from kachery_p2p.store.index import Index
from kachery_p2p.store.shares import take_shares
from kachery_p2p.transfer.download import Downloads
from kachery_p2p.transfer.serve import Server
from kachery_p2p.transfer.sources import Holders
from kachery_p2p.version import __version__

if TYPE_CHECKING:
    from kachery_p2p.network.link import Link

log = logging.getLogger(__name__)

Announce = Callable[[str], None]
# Opens the link: real hosts in a daemon, a simulated world in tests.
OpenLink = Callable[[NodeKey], "contextlib.AbstractAsyncContextManager[Link]"]


def run(config: NodeConfig, announce: Announce) -> None:
    """Run a node until SIGTERM, SIGINT or `stop`. `announce` gets lines for who started it.

    Raises KacheryError for whatever keeps it from starting, or took it down.
    """
    config.check()
    _make_private(config.config_dir)
    hint = "`kachery-p2p status` tells more; another node needs its own --config-dir"
    with only_daemon(config.config_dir, hint):
        try:
            trio.run(_run, config, announce)
        except BaseExceptionGroup as group:
            error = sole_error(group)
            if error is None:
                raise
            raise error from None


async def _run(config: NodeConfig, announce: Announce) -> None:
    parts, key = await trio.to_thread.run_sync(_prepare, config, announce)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_on_signal, parts.stop)
            nursery.start_soon(_serve, parts, key, announce, _libp2p(config))
            await parts.stop.wait()
            _end_without_grace_after(STOP_S_MAX)
            nursery.cancel_scope.cancel()
    finally:
        parts.grants.close()


async def _serve(parts: Parts, key: NodeKey, announce: Announce, open_link: OpenLink) -> None:
    handlers = Api(parts).handlers()
    config = parts.config
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_unix_door, config.config_dir, handlers)
        nursery.start_soon(_supervise, parts, "reading shares.log", _watch_shares_log, parts)
        if config.http is not None:
            # h11 and json, which a node without this door never needs.
            from kachery_p2p.node.http_door import serve_http_door

            token = await trio.to_thread.run_sync(load_or_create_token, config.config_dir)
            host, port = await nursery.start(serve_http_door, config.http, token, handlers)
            parts.http = f"http://{host}:{port}" if ":" not in host else f"http://[{host}]:{port}"
        async with open_link(key) as link, _network(parts, key, link) as network:
            parts.connected(network)
            _announce(parts, link, announce)
            _tell_service_manager("READY=1")
            try:
                await trio.sleep_forever()
            finally:
                _tell_service_manager("STOPPING=1")


@contextlib.asynccontextmanager
async def _network(parts: Parts, key: NodeKey, link: Link) -> AsyncIterator[NetworkParts]:
    """Sessions, transfers and serving on an open link."""
    book = AddressBook(key.node_id)
    for node, addresses in load_peers(parts.config.peers_path).items():
        book.add(node, addresses, proved=True)
    for address in parts.bootstrap:
        book.add(_node_in(address), [address], by_user=True)
    me = Me(key, parts.channels, os.urandom)
    agent = f"kachery-p2p {__version__}"
    sessions = Sessions(link, me, book, label=parts.config.label, agent=agent)
    server = Server(sessions=sessions, link=link, blobs=parts.blobs, grants=parts.grants)
    holders = Holders(sessions, link)
    downloads = Downloads(
        holders=holders, blobs=parts.blobs, grants=parts.grants, node_id=key.node_id
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        nursery.start_soon(_supervise, parts, "saving addresses", _save_peers, parts, sessions)
        async with downloads.running(), sessions.running():
            yield NetworkParts(link, sessions, holders, downloads, server)
        nursery.cancel_scope.cancel()


# --- before the event loop ---------------------------------------------------------------


def _make_private(config_dir: str) -> None:
    try:
        os.makedirs(config_dir, mode=0o700, exist_ok=True)
        os.makedirs(f"{config_dir}/state", mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make the config directory {config_dir}: {error.strerror}",
            hint="choose another with --config-dir or KACHERY_P2P_CONFIG_DIR",
        ) from error


def _prepare(config: NodeConfig, announce: Announce) -> tuple[Parts, NodeKey]:
    """Keys, channels and the store: everything on disk, before any door opens."""
    key = load_or_create(config.config_dir)
    channels, bootstrap = _channels(config, announce)
    try:
        os.makedirs(config.storage_dir, exist_ok=True)
    except OSError as error:
        raise StorePermissionError(
            f"cannot make the storage directory {config.storage_dir}: {error.strerror}",
            hint="choose another with --storage-dir or KACHERY_STORAGE_DIR",
        ) from error
    blobs = BlobStore(config.storage_dir, Index(config.index_path))
    parts = Parts(config, key.node_id, channels, bootstrap, blobs, Grants(config.grants_path))
    # What clients shared while no daemon ran becomes grants.
    take_shares(config.config_dir, parts.grants.keep)
    return parts, key


def _channels(
    config: NodeConfig, announce: Announce
) -> tuple[tuple[Channel, ...], tuple[str, ...]]:
    """The channels asked for, joining them if need be, and those joined earlier; whom to dial."""
    for name in config.channels:
        resolve(name, config.config_dir, os.getcwd(), config.environment(), announce)
    known = joined(config.config_dir)
    channels = tuple(load_channel(config.config_dir, channel.name) for channel in known)
    told = [address for channel in known for address in channel.bootstrap]
    return channels, tuple(dict.fromkeys([*config.bootstrap, *told]))


# --- parts that run for ever -------------------------------------------------------------


async def _supervise(
    parts: Parts, name: str, work: Callable[..., Awaitable[None]], *arguments: object
) -> None:
    """Run `work` for ever, again after a failure; too many failures take the node down."""
    failures: list[float] = []
    while True:
        try:
            await work(*arguments)
            return
        except Exception as error:
            log.exception("%s failed", name)
            now = trio.current_time()
            failures = [at for at in failures if now - at < RESTART_S_MAX * RESTARTS_MAX] + [now]
            if len(failures) > RESTARTS_MAX:
                raise DaemonError(
                    f"{name} failed {len(failures)} times, last: {error}",
                    hint="the daemon's log tells more",
                ) from error
            parts.problems[name] = f"{name} failed and was started again: {error}"
            await trio.sleep(min(RESTART_S_MAX, RESTART_S_MIN * 2 ** len(failures)))


async def _watch_shares_log(parts: Parts) -> None:
    """Clients that cannot reach the daemon leave what they share in shares.log."""
    while True:
        await trio.sleep(SHARES_LOG_S)
        await trio.to_thread.run_sync(take_shares, parts.config.config_dir, parts.grants.keep)


async def _save_peers(parts: Parts, sessions: Sessions) -> None:
    saved = load_peers(parts.config.peers_path)
    while True:
        await sessions.changed()
        known = sessions.book.known()
        if known != saved:
            await trio.to_thread.run_sync(save_peers, parts.config.peers_path, known)
            saved = known


def _end_without_grace_after(seconds: float) -> None:
    """End the process then, whatever still works: a disk that hangs must not keep it.

    Nothing is lost that was acknowledged; what was verified of downloads is kept.
    """
    ending = threading.Timer(seconds, os._exit, (0,))
    ending.daemon = True
    ending.start()


async def _stop_on_signal(stop: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            if stop.is_set():
                # Asked twice: whoever asks does not want to wait for the grace.
                os._exit(130)
            stop.set()


# --- the network -------------------------------------------------------------------------


def _libp2p(config: NodeConfig) -> OpenLink:
    @contextlib.asynccontextmanager
    async def open_link(key: NodeKey) -> AsyncIterator[Link]:
        # The imports take half a second: in a thread, so that the doors answer meanwhile.
        host = await trio.to_thread.run_sync(_import_host)
        async with host(key, [config.listen], config.advertise) as link:
            yield link

    return open_link


def _import_host() -> Callable[..., contextlib.AbstractAsyncContextManager[Link]]:
    # Only in a daemon, where nobody else uses libp2p: its host is not needed, and takes long.
    with empty_packages(("libp2p", "libp2p.transport", "libp2p.security", "libp2p.network")):
        from kachery_p2p.network.libp2p_host import open_libp2p_link
    return open_libp2p_link


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


# --- telling -----------------------------------------------------------------------------


def _announce(parts: Parts, link: Link, announce: Announce) -> None:
    announce(f"node     {parts.node_id}")
    for address in link.addresses:
        announce(f"address  {address}")
    for channel in parts.channels:
        announce(f"channel  {channel.name} ({channel.id[:16]})")
    if not parts.channels:
        announce("channel  none: this node shares nothing; give it --channel NAME")
    if parts.http:
        announce(f"http     {parts.http}")
    pending = parts.grants.pending_count()
    if pending and parts.channels:
        name = parts.channels[0].name
        announce(
            f"note     {pending} files are not shared;"
            f" `kachery-p2p share --pending --channel {name}` shares them"
        )
    announce("ready")


def _tell_service_manager(message: str) -> None:
    """systemd's readiness protocol (sd_notify(3)): one datagram to $NOTIFY_SOCKET."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + path[1:] if path.startswith("@") else path)
        sock.send(message.encode())
